/// @file
/// What a server reads of a connection before a handler has it: a proxy's header, and whether TLS begins.
#ifndef UPGRADEABLE_STREAMS_DETAIL_FIRST_BYTES_HPP
#define UPGRADEABLE_STREAMS_DETAIL_FIRST_BYTES_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/proxy_protocol.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>
#include <asio/error.hpp>

#include <chrono>
#include <cstddef>
#include <optional>
#include <system_error>

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace upgradeable_streams::detail
{

/// Adds to what was received; false at the end of the stream and when the read is late.
inline asio::awaitable<bool> receive_more(connection& c)
{
    const std::size_t before = c.received().size();
    while (c.received().size() == before)
    {
        if (c.eof())
            co_return false;
        if (c.receive_now())
            continue;
        const read_result result = co_await c.wait_to_receive();
        if (result.error == asio::error::operation_aborted && c.is_read_late())
            co_return false;
        c.receive(result);
    }
    co_return true;
}

/// Reads the header that the peer has to begin with, and gives the connection the addresses that it tells.
inline asio::awaitable<void> read_proxy_header(connection& c, std::chrono::steady_clock::duration timeout)
{
    c.set_operation_timeout(timeout);
    const connection::read_guard reading(c, c.epoch());
    std::optional<proxy_header> header;
    while (!(header = parse_proxy_header(c.received())))
    {
        const bool has_more = co_await receive_more(c);
        if (!has_more && c.is_read_late())
            throw std::system_error(errc::proxy_header_timeout);
        if (!has_more)
            throw std::system_error(errc::proxy_header_invalid, "the connection ended");
    }
    c.discard(header->size);
    if (header->source)
        c.set_names(*header->source, *header->destination);
}

/// Whether the client begins with TLS; not so one that says nothing.
inline asio::awaitable<bool> detect_tls(connection& c, std::chrono::steady_clock::duration timeout)
{
    c.set_operation_timeout(timeout);
    const connection::read_guard reading(c, c.epoch());
    bool has_more = true;
    while (has_more && c.received().size() < 2 && begins_tls_handshake(c.received()))
        has_more = co_await receive_more(c);
    co_return !c.received().empty() && begins_tls_handshake(c.received());
}

} // namespace upgradeable_streams::detail

#endif

#endif
