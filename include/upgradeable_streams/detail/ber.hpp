/// @file
/// Elements of BER (X.690), as LDAP has them.
#ifndef UPGRADEABLE_STREAMS_DETAIL_BER_HPP
#define UPGRADEABLE_STREAMS_DETAIL_BER_HPP

#include <upgradeable_streams/detail/byte_order.hpp>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace upgradeable_streams::detail
{

/// An element of less than 128 bytes.
inline std::string make_ber(unsigned char tag, std::string_view content)
{
    return std::string{static_cast<char>(tag), static_cast<char>(content.size())}.append(content);
}

/// How many bytes of length follow the first. Returns: empty for the indefinite form, which LDAP excludes
/// (RFC 4511 section 5.1), and for more than four.
inline std::optional<std::size_t> ber_length_size(char first)
{
    const std::size_t size = static_cast<unsigned char>(first);
    if (size == 0x80 || size > 0x84)
        return std::nullopt;
    return size < 0x80 ? 0 : size - 0x80;
}

/// Takes the element in front. Returns: its content; empty where it is not whole or has another tag.
inline std::optional<std::string_view> take_ber(std::string_view& bytes, unsigned char tag)
{
    if (bytes.size() < 2 || static_cast<unsigned char>(bytes[0]) != tag)
        return std::nullopt;
    const std::optional<std::size_t> more = ber_length_size(bytes[1]);
    if (!more || bytes.size() - 2 < *more)
        return std::nullopt;
    const std::size_t size = parse_big_endian(*more > 0 ? bytes.substr(2, *more) : bytes.substr(1, 1));
    const std::string_view behind = bytes.substr(2 + *more);
    if (behind.size() < size)
        return std::nullopt;
    bytes = behind.substr(size);
    return behind.substr(0, size);
}

} // namespace upgradeable_streams::detail

#endif
