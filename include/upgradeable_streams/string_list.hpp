/// @file
/// The parameter type of calls that take none, one or several strings.
#ifndef UPGRADEABLE_STREAMS_STRING_LIST_HPP
#define UPGRADEABLE_STREAMS_STRING_LIST_HPP

#include <array>
#include <concepts>
#include <cstddef>
#include <iterator>
#include <span>
#include <string_view>
#include <type_traits>

namespace upgradeable_streams
{

/// None, one or several strings: `{}`, `"a"`, `{"a", "b"}` up to 16, or a span, vector or array of
/// `std::string_view`.
///
/// Lifetime: a view. The call that takes it copies what it needs.
class string_list
{
    static constexpr std::size_t most_listed = 16;

public:
    constexpr string_list() = default;

    // No std::initializer_list: g++ 12 refuses its array in a co_await expression ("array used as initializer").
    template <std::convertible_to<std::string_view>... Strings>
        requires(sizeof...(Strings) >= 1 && sizeof...(Strings) <= most_listed)
    constexpr string_list(const Strings&... strings) : listed_{std::string_view(strings)...}, size_(sizeof...(Strings))
    {
    }

    template <std::convertible_to<std::span<const std::string_view>> Several>
    constexpr string_list(const Several& several)
        : several_(std::span<const std::string_view>(several).data()), size_(std::size(several))
    {
    }

    constexpr std::size_t size() const { return size_; }
    constexpr bool empty() const { return size_ == 0; }
    constexpr std::string_view operator[](std::size_t i) const { return several_ ? several_[i] : listed_[i]; }

private:
    std::array<std::string_view, most_listed> listed_;
    const std::string_view* several_ = nullptr;
    std::size_t size_ = 0;
};

static_assert(std::is_trivially_destructible_v<string_list>);

} // namespace upgradeable_streams

#endif
