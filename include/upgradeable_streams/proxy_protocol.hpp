/// @file
/// The PROXY protocol: how a proxy tells a server whose connection it relays.
#ifndef UPGRADEABLE_STREAMS_PROXY_PROTOCOL_HPP
#define UPGRADEABLE_STREAMS_PROXY_PROTOCOL_HPP

#include <upgradeable_streams/detail/byte_order.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/text.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/socket_address.hpp>

#include <asio/ip/address.hpp>
#include <asio/ip/address_v4.hpp>
#include <asio/ip/address_v6.hpp>
#include <asio/ip/tcp.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>

namespace upgradeable_streams
{

/// What a proxy told at the beginning of a connection.
struct proxy_header
{
    std::size_t size = 0;  ///< Of the header in bytes; what was received behind it is the client's.
    bool is_local = false; ///< The proxy speaks for itself, as in a health check (LOCAL of version 2).

    /// The client, and the address that it connected to. Both are empty when the proxy does not tell (LOCAL, UNKNOWN,
    /// UNSPEC), and the connection's own hold.
    std::optional<socket_address> source = {};
    std::optional<socket_address> destination = {};

    friend bool operator==(const proxy_header&, const proxy_header&) = default;
};

/// Reads the header of the PROXY protocol, version 1 or 2, that `received` begins with (HAProxy's proxy-protocol.txt).
///
/// Called again with all that was received until there is a result. Only a header that was demanded of a known proxy
/// is to be believed: anybody can send one. Extensions (TLV) are passed over, but where addresses are told a checksum
/// among them (CRC32C) must be right; of a LOCAL or UNSPEC header nothing but the size is read.
///
/// Returns: empty while the header may still become whole, for at most 106 bytes of version 1 and 65,550 of version 2.
///
/// Errors: std::system_error of errc::proxy_header_invalid that tells why, as soon as that is certain: at the byte that
/// is out of place, and for an address, a port or an extension at its end.
std::optional<proxy_header> parse_proxy_header(std::string_view received);

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

[[noreturn]] inline void refuse_proxy_header(const char* reason)
{
    throw std::system_error(errc::proxy_header_invalid, reason);
}

/// Whether `bytes` begin with `whole`, as far as they go.
inline bool may_begin_with(std::string_view bytes, std::string_view whole)
{
    return whole.starts_with(bytes.substr(0, whole.size()));
}

/// Takes a field and the end of it off `line`; empty while more of them may come.
inline std::optional<std::string_view> take_field(std::string_view& line, std::string_view alphabet,
                                                  std::size_t longest, std::string_view end)
{
    const std::string_view word = line.substr(0, line.find_first_not_of(alphabet));
    const std::string_view behind = line.substr(word.size());
    if (word.size() > longest || !may_begin_with(behind, end))
        refuse_proxy_header("the line is malformed");
    if (behind.size() < end.size())
        return std::nullopt;
    line = behind.substr(end.size());
    return word;
}

inline asio::ip::address parse_proxy_address(std::string_view text, bool is_v6)
{
    const auto address = parse_address(text);
    if (!address || address->is_v6() != is_v6)
        refuse_proxy_header("an address is malformed");
    return *address;
}

inline std::uint16_t parse_proxy_port(std::string_view text)
{
    std::uint16_t port = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
    if (error != std::errc() || (text.size() > 1 && text.front() == '0'))
        refuse_proxy_header("a port is malformed");
    return port;
}

/// Version 1: what follows `PROXY TCP4 ` or `PROXY TCP6 `.
inline std::optional<proxy_header> parse_proxy_line(std::string_view received, std::size_t begin, bool is_v6)
{
    const std::string_view alphabet = is_v6 ? "0123456789abcdefABCDEF:." : "0123456789.";
    std::string_view line = received.substr(begin);
    std::array<asio::ip::address, 2> addresses;
    std::array<std::uint16_t, 2> ports;
    for (auto& address : addresses)
    {
        const auto word = take_field(line, alphabet, is_v6 ? 39 : 15, " ");
        if (!word)
            return std::nullopt;
        address = parse_proxy_address(*word, is_v6);
    }
    for (auto& port : ports)
    {
        const auto word = take_field(line, "0123456789", 5, &port == &ports.front() ? " " : "\r\n");
        if (!word)
            return std::nullopt;
        port = parse_proxy_port(*word);
    }
    const auto told = [&](std::size_t i) { return socket_address(asio::ip::tcp::endpoint(addresses[i], ports[i])); };
    return proxy_header{.size = received.size() - line.size(), .source = told(0), .destination = told(1)};
}

/// Version 1: `PROXY UNKNOWN`, whatever follows on its line.
inline std::optional<proxy_header> parse_unknown_proxy_line(std::string_view received, std::size_t begin)
{
    constexpr std::size_t longest = 107;
    const std::string_view behind = received.substr(begin);
    const std::size_t end = received.substr(0, longest).find("\r\n", begin);
    if (!may_begin_with(behind, " ") && !may_begin_with(behind, "\r\n"))
        refuse_proxy_header("the line is malformed");
    if (end != received.npos)
        return proxy_header{.size = end + 2};
    if (received.size() >= longest)
        refuse_proxy_header("the line is too long");
    return std::nullopt;
}

/// The checksum of RFC 4960 appendix B over `bytes`, as if there were zeros in the place of its own four.
inline std::uint32_t crc32c(std::string_view bytes, std::size_t own)
{
    std::uint32_t crc = 0xffffffff;
    for (std::size_t i = 0; i < bytes.size(); ++i)
    {
        crc ^= i - own < 4 ? 0 : static_cast<unsigned char>(bytes[i]);
        for (int bit = 0; bit < 8; ++bit)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
    return ~crc;
}

/// Version 2: the type, length and value of each extension that follows the addresses.
inline void check_proxy_extensions(std::string_view header, std::size_t begin)
{
    constexpr char checksum_type = 0x03;
    std::optional<std::size_t> checksum;
    while (begin < header.size())
    {
        const std::size_t value = begin + 3;
        if (value > header.size())
            refuse_proxy_header("an extension is cut short");
        const std::size_t size = parse_big_endian(header.substr(begin + 1, 2));
        if (size > header.size() - value)
            refuse_proxy_header("an extension is cut short");
        if (header[begin] == checksum_type)
        {
            if (checksum || size != 4)
                refuse_proxy_header("the checksum is malformed");
            checksum = value;
        }
        begin = value + size;
    }
    if (checksum && crc32c(header, *checksum) != parse_big_endian(header.substr(*checksum, 4)))
        refuse_proxy_header("the checksum is wrong");
}

/// Version 2: an address of 4 or 16 bytes, or a path that a NUL ends.
inline socket_address make_proxy_address(std::string_view address, std::string_view port)
{
    socket_address made;
    made.port = static_cast<std::uint16_t>(parse_big_endian(port));
    asio::ip::address_v6::bytes_type v6;
    if (address.size() == 4)
        made.host = asio::ip::address_v4(parse_big_endian(address)).to_string();
    else if (address.size() == v6.size())
    {
        std::ranges::copy(address, v6.begin());
        made.host = asio::ip::address_v6(v6).to_string();
    }
    else
    {
        made.host = address.substr(0, address.find('\0'));
        made.is_unix = true;
    }
    return made;
}

/// Version 2, from its signature on.
inline std::optional<proxy_header> parse_proxy_block(std::string_view received)
{
    constexpr std::size_t fixed_size = 16;
    constexpr std::array<std::size_t, 4> address_sizes = {0, 4, 16, 108}; // UNSPEC, INET, INET6, UNIX
    constexpr std::array<std::size_t, 4> port_sizes = {0, 2, 2, 0};
    const auto byte = [&](std::size_t i) { return i < received.size() ? parse_big_endian(received.substr(i, 1)) : 0; };

    if (received.size() > 12 && byte(12) != 0x20 && byte(12) != 0x21)
        refuse_proxy_header("the version or the command is unknown");
    const bool is_local = byte(12) == 0x20;
    const std::uint32_t family = is_local ? 0 : byte(13) >> 4;
    const std::uint32_t protocol = is_local ? 0 : byte(13) & 0x0f;
    if (family > 3 || protocol > 2) // UNSPEC, STREAM, DGRAM
        refuse_proxy_header("the address family or the protocol is unknown");
    if (received.size() < fixed_size)
        return std::nullopt;

    const std::size_t size = fixed_size + parse_big_endian(received.substr(14, 2));
    const bool tells = family != 0 && protocol != 0;
    const std::size_t address = address_sizes[family];
    const std::size_t port = port_sizes[family];
    const std::size_t end_of_addresses = fixed_size + (tells ? 2 * (address + port) : 0);
    if (size < end_of_addresses)
        refuse_proxy_header("the length is less than that of the addresses");
    if (received.size() < size)
        return std::nullopt;

    proxy_header header{.size = size, .is_local = is_local};
    if (!tells)
        return header;
    check_proxy_extensions(received.substr(0, size), end_of_addresses);
    const std::string_view addresses = received.substr(fixed_size);
    const std::string_view ports = addresses.substr(2 * address);
    header.source = make_proxy_address(addresses.substr(0, address), ports.substr(0, port));
    header.destination = make_proxy_address(addresses.substr(address, address), ports.substr(port, port));
    return header;
}

} // namespace detail

UPGRADEABLE_STREAMS_DECL std::optional<proxy_header> parse_proxy_header(std::string_view received)
{
    constexpr std::string_view signature("\r\n\r\n\0\r\nQUIT\n", 12);
    constexpr std::array<std::string_view, 3> lines = {"PROXY TCP4 ", "PROXY TCP6 ", "PROXY UNKNOWN"};
    if (detail::may_begin_with(received, signature))
        return detail::parse_proxy_block(received);
    const auto* const line = std::ranges::find_if(
        lines, [&](std::string_view begin) { return detail::may_begin_with(received, begin); });
    if (line == lines.end())
        detail::refuse_proxy_header("it begins with something else");
    if (received.size() < line->size())
        return std::nullopt;
    if (line == &lines.back())
        return detail::parse_unknown_proxy_line(received, line->size());
    return detail::parse_proxy_line(received, line->size(), line == &lines[1]);
}

#endif

} // namespace upgradeable_streams

#endif
