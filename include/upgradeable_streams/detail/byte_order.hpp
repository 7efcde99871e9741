/// @file
/// Numbers on the wire.
#ifndef UPGRADEABLE_STREAMS_DETAIL_BYTE_ORDER_HPP
#define UPGRADEABLE_STREAMS_DETAIL_BYTE_ORDER_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace upgradeable_streams::detail
{

/// Of at most 4 bytes.
inline std::uint32_t parse_big_endian(std::string_view bytes)
{
    std::uint32_t number = 0;
    for (const char byte : bytes)
        number = number << 8 | static_cast<unsigned char>(byte);
    return number;
}

/// Of at most 4 bytes.
inline std::uint32_t parse_little_endian(std::string_view bytes)
{
    return parse_big_endian(std::string(bytes.rbegin(), bytes.rend()));
}

inline std::string to_little_endian(std::uint32_t number, std::size_t size)
{
    std::string bytes;
    for (; bytes.size() < size; number >>= 8)
        bytes += static_cast<char>(number & 0xff);
    return bytes;
}

inline std::string to_big_endian(std::uint32_t number, std::size_t size)
{
    const std::string bytes = to_little_endian(number, size);
    return std::string(bytes.rbegin(), bytes.rend());
}

} // namespace upgradeable_streams::detail

#endif
