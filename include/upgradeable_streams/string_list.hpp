/// @file
/// The parameter type of calls that take none, one or several strings.
#ifndef UPGRADEABLE_STREAMS_STRING_LIST_HPP
#define UPGRADEABLE_STREAMS_STRING_LIST_HPP

#include <array>
#include <concepts>
#include <cstddef>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace upgradeable_streams
{

/// None, one or several strings: `{}`, `"a"`, `{"a", "b"}` up to 16, or a span, vector or array of `std::string` or
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
    constexpr string_list(const Strings&... strings)
        : listed_{std::string_view(strings)...}, size_(sizeof...(Strings)), is_given_(true)
    {
    }

    template <std::convertible_to<std::span<const std::string_view>> Several>
    constexpr string_list(const Several& several)
        : views_(std::span<const std::string_view>(several).data()), size_(std::size(several)), is_given_(true)
    {
    }

    template <std::convertible_to<std::span<const std::string>> Several>
    constexpr string_list(const Several& several)
        : strings_(std::span<const std::string>(several).data()), size_(std::size(several)), is_given_(true)
    {
    }

    constexpr std::size_t size() const { return size_; }
    constexpr bool empty() const { return size_ == 0; }

    /// Whether it was made of something, be that an empty span, and not of `{}`.
    constexpr bool is_given() const { return is_given_; }

    constexpr std::string_view operator[](std::size_t i) const
    {
        return strings_ ? std::string_view(strings_[i]) : views_ ? views_[i] : listed_[i];
    }

    std::vector<std::string> copy() const
    {
        std::vector<std::string> copied;
        copied.reserve(size_);
        for (std::size_t i = 0; i < size_; ++i)
            copied.emplace_back((*this)[i]);
        return copied;
    }

private:
    std::array<std::string_view, most_listed> listed_;
    const std::string_view* views_ = nullptr;
    const std::string* strings_ = nullptr;
    std::size_t size_ = 0;
    bool is_given_ = false;
};

static_assert(std::is_trivially_destructible_v<string_list>);

} // namespace upgradeable_streams

#endif
