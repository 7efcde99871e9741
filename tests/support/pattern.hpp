#ifndef TEST_SUPPORT_PATTERN_HPP
#define TEST_SUPPORT_PATTERN_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace test
{

/// An endless pseudo-random byte string, the same for the same seed, that can be entered at any offset.
class pattern
{
public:
    explicit constexpr pattern(std::uint64_t seed) noexcept : seed_(seed) {}

    constexpr char at(std::uint64_t offset) const noexcept
    {
        return static_cast<char>(static_cast<unsigned char>(word(offset / 8) >> (offset % 8 * 8)));
    }

    constexpr void fill(std::uint64_t offset, std::span<char> bytes) const noexcept
    {
        for (char& byte : bytes)
            byte = at(offset++);
    }

    std::string bytes(std::uint64_t offset, std::size_t size) const
    {
        std::string result(size, '\0');
        fill(offset, result);
        return result;
    }

    /// Returns: the offset in the pattern of the first of `bytes` that differs from it, if one does.
    constexpr std::optional<std::uint64_t> check(std::uint64_t offset, std::span<const char> bytes) const noexcept
    {
        for (const char byte : bytes)
        {
            if (byte != at(offset))
                return offset;
            ++offset;
        }
        return std::nullopt;
    }

private:
    constexpr std::uint64_t word(std::uint64_t index) const noexcept // splitmix64
    {
        std::uint64_t z = seed_ + (index + 1) * 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    std::uint64_t seed_;
};

} // namespace test

#endif
