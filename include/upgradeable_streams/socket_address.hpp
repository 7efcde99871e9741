/// @file
/// Addresses: their families, and that of one end of a connection as text.
#ifndef UPGRADEABLE_STREAMS_SOCKET_ADDRESS_HPP
#define UPGRADEABLE_STREAMS_SOCKET_ADDRESS_HPP

#include <upgradeable_streams/detail/text.hpp>

#include <asio/generic/stream_protocol.hpp>
#include <asio/ip/address.hpp>
#include <asio/ip/tcp.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace upgradeable_streams
{

/// Which IP addresses are used.
enum class ip_family
{
    any,
    v4,
    v6
};

/// An IP address and port, or the path of a Unix domain socket (with port 0; empty when it is not bound).
struct socket_address
{
    std::string host;
    std::uint16_t port = 0;
    bool is_unix = false;

    socket_address() = default;

    explicit socket_address(const asio::generic::stream_protocol::endpoint& endpoint)
    {
        const int family = endpoint.data()->sa_family;
        if (family == AF_INET || family == AF_INET6)
        {
            asio::ip::tcp::endpoint ip;
            std::memcpy(ip.data(), endpoint.data(), std::min(endpoint.size(), ip.capacity())); // Windows gives more
            host = text_of(ip.address());
            port = ip.port();
        }
#ifndef _WIN32
        else if (family == AF_UNIX)
        {
            is_unix = true;
            constexpr std::size_t offset = offsetof(sockaddr_un, sun_path);
            const char* const path = reinterpret_cast<const char*>(endpoint.data()) + offset;
            if (endpoint.size() > offset)
                host.assign(path, std::min(endpoint.size() - offset, std::strlen(path)));
        }
#endif
    }

    /// `127.0.0.1:25`, `[::1]:25` or the path.
    std::string to_string() const
    {
        if (is_unix)
            return host.empty() ? "a Unix domain socket" : host;
        return detail::join_host_port(host, std::to_string(port));
    }

    friend bool operator==(const socket_address&, const socket_address&) = default;

private:
    /// As inet_ntop, which in glibc prints IPv4 by printf: for two addresses a tenth of what a connection costs.
    static std::string text_of(const asio::ip::address& address)
    {
        if (!address.is_v4())
            return address.to_string();
        std::array<char, 16> text;
        char* end = text.data();
        for (const unsigned char number : address.to_v4().to_bytes())
        {
            end = std::to_chars(end, end + 3, number).ptr;
            *end++ = '.';
        }
        return std::string(text.data(), end - 1);
    }
};

} // namespace upgradeable_streams

#endif
