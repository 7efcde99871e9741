/// @file
/// The parameter type of calls that take none, one or several strings.
#ifndef UPGRADEABLE_STREAMS_STRING_LIST_HPP
#define UPGRADEABLE_STREAMS_STRING_LIST_HPP

#include <concepts>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <string_view>
#include <type_traits>

namespace upgradeable_streams
{

/// None, one or several strings: `{}`, `"a"`, `{"a", "b"}` or a `std::span` of `std::string_view`.
///
/// Lifetime: a view. The call that takes it copies what it needs.
class string_list
{
public:
    constexpr string_list() = default;

    template <std::convertible_to<std::string_view> String>
    constexpr string_list(const String& one) : one_(one), size_(1)
    {
    }

    constexpr string_list(std::initializer_list<std::string_view> several)
        : string_list(std::span(several.begin(), several.size()))
    {
    }

    constexpr string_list(std::span<const std::string_view> several)
        : several_(several.data()), size_(several.size())
    {
    }

    constexpr std::size_t size() const { return size_; }
    constexpr bool empty() const { return size_ == 0; }
    constexpr std::string_view operator[](std::size_t i) const { return several_ ? several_[i] : one_; }

private:
    std::string_view one_;
    const std::string_view* several_ = nullptr;
    std::size_t size_ = 0;
};

static_assert(std::is_trivially_destructible_v<string_list>);

} // namespace upgradeable_streams

#endif
