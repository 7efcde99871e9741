#ifndef TEST_SUPPORT_STREAM_LINKS_HPP
#define TEST_SUPPORT_STREAM_LINKS_HPP

// Connections for the tests of the library's readers and writers.

#include "allocations.hpp"
#include "chunked_stream.hpp"
#include "contexts.hpp"
#include "raw_peer.hpp"
#include "run.hpp"
#include "socket_pair.hpp"
#include "task.hpp"
#include "thread.hpp"
#include "wire_tap.hpp"

#include <upgradeable_streams.hpp>

#include <asio/awaitable.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/ssl/context.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <cstddef>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace test
{

/// A reader and a writer under test, and the other end.
struct raw_link
{
    upgradeable_streams::stream_reader reader;
    upgradeable_streams::stream_writer writer;
    raw_peer peer;

    /// Sends from the peer; under TLS in records of `piece` bytes, where that is not 0.
    void send(std::string_view bytes, std::size_t piece = 0)
    {
        if (!peer.ssl())
            return peer.send_all(bytes);
        for (; !bytes.empty(); bytes.remove_prefix(std::min(bytes.size(), piece ? piece : bytes.size())))
            peer.tls_write(bytes.substr(0, piece ? piece : bytes.size()));
    }

    /// What the peer receives next.
    std::string receive(std::size_t size)
    {
        return peer.ssl() ? peer.tls_read_exactly(size) : peer.recv_exactly(size);
    }

    /// The peer's clean end.
    void end()
    {
        if (peer.ssl())
            peer.tls_shutdown_send_only();
        peer.send_fin();
    }
};

/// Of a client in plain text, or in TLS from the start.
inline upgradeable_streams::connection_options options_of(bool tls, std::size_t limit = 64 * 1024)
{
    upgradeable_streams::connection_options options;
    options.ssl = tls ? &client_context() : nullptr;
    options.limit = limit;
    return options;
}

/// Of a client that may go from plain text to TLS.
inline upgradeable_streams::connection_options upgradeable_options()
{
    upgradeable_streams::connection_options options = options_of(true);
    options.upgradeable = true;
    return options;
}

/// Connects a pair with a raw peer, through what `wrap` makes of the socket; with a context and not `upgradeable`, both
/// are in TLS then.
template <typename Wrap>
asio::awaitable<raw_link> link_of(upgradeable_streams::connection_options options, Wrap wrap)
{
    const auto executor = co_await asio::this_coro::executor;
    auto sockets = tcp_pair(executor);
    raw_peer peer(sockets.second.release());
    const bool is_client = options.role == upgradeable_streams::tls_role::client;
    const bool tls = options.ssl != nullptr && !options.upgradeable;
    if (options.ssl != nullptr && is_client && options.server_hostname.empty())
        options.server_hostname = "localhost";
    std::future<void> handshake;
    if (tls)
        handshake =
            run_in_thread([&peer, is_client]
                          { is_client ? peer.tls_accept(localhost_server()) : peer.tls_connect(localhost_client()); });
    auto pair = co_await upgradeable_streams::open_connection(wrap(std::move(sockets.first)), options);
    if (tls)
        co_await joined(std::move(handshake));
    raw_link made{std::move(pair.first), std::move(pair.second), std::move(peer)};
    co_return made;
}

/// Through a stream that cuts what passes to `chunk` bytes.
inline asio::awaitable<raw_link> link_with_raw_peer(upgradeable_streams::connection_options options = {},
                                                    std::size_t chunk = 0)
{
    return link_of(options, [chunk](asio::ip::tcp::socket socket)
                   { return chunked_stream<asio::ip::tcp::socket>(std::move(socket), chunk); });
}

/// Over Asio's socket and nothing else.
inline asio::awaitable<raw_link> link_over_socket(upgradeable_streams::connection_options options = {})
{
    return link_of(options, [](asio::ip::tcp::socket socket) { return socket; });
}

/// What is allocated while a read of the link waits, in bytes.
inline asio::awaitable<std::ptrdiff_t> allocated_while_waiting(raw_link& link)
{
    const auto pending =
        spawn(co_await asio::this_coro::executor, [&] { return link.reader.readuntil("end of the wait"); });
    co_await turns();
    const std::ptrdiff_t bytes = allocated().bytes;
    link.send("end of the wait");
    co_await pending.join();
    co_return bytes;
}

/// Both ends of a connection under test.
struct stream_link
{
    upgradeable_streams::stream_reader reader;
    upgradeable_streams::stream_writer writer;
    upgradeable_streams::stream_reader peer_reader;
    upgradeable_streams::stream_writer peer_writer;
};

/// Connects two pairs, the first through a stream that cuts what passes to `chunk` bytes. With a context in
/// `options` both are in TLS then, or can be upgraded; `options` are those of the first.
inline asio::awaitable<stream_link> link_of_streams(upgradeable_streams::connection_options options = {},
                                                    upgradeable_streams::connection_options peer_options = {},
                                                    std::size_t chunk = 0)
{
    const auto executor = co_await asio::this_coro::executor;
    auto sockets = tcp_pair(executor);
    if (options.ssl != nullptr)
    {
        if (options.server_hostname.empty())
            options.server_hostname = "localhost";
        if (peer_options.ssl == nullptr)
            peer_options.ssl = &server_context();
        peer_options.upgradeable = options.upgradeable;
        peer_options.role = upgradeable_streams::tls_role::server;
    }
    auto other = spawn(executor, [&sockets, peer_options]
                       { return upgradeable_streams::open_connection(std::move(sockets.second), peer_options); });
    auto pair = co_await upgradeable_streams::open_connection(
        chunked_stream<asio::ip::tcp::socket>(std::move(sockets.first), chunk), options);
    auto peer = co_await other.join();
    stream_link made{std::move(pair.first), std::move(pair.second), std::move(peer.first), std::move(peer.second)};
    co_return made;
}

/// Both ends of a connection under test, and a tap on the wire between them.
struct tapped_link
{
    std::unique_ptr<wire_tap> tap;
    stream_link link;
};

/// As `link_of_streams`, with the first connected by `open_connection` to 127.0.0.1.
inline asio::awaitable<tapped_link> link_through_tap(upgradeable_streams::connection_options options = {})
{
    const auto executor = co_await asio::this_coro::executor;
    asio::ip::tcp::acceptor acceptor(executor, loopback());
    auto tap = std::make_unique<wire_tap>(executor, acceptor.local_endpoint());
    auto accepted = spawn(
        executor,
        [&]() -> asio::awaitable<std::pair<upgradeable_streams::stream_reader, upgradeable_streams::stream_writer>>
        {
            auto socket = co_await acceptor.async_accept(asio::use_awaitable);
            upgradeable_streams::connection_options peer_options;
            peer_options.ssl = options.ssl != nullptr ? &server_context() : nullptr;
            peer_options.upgradeable = options.upgradeable;
            peer_options.role = upgradeable_streams::tls_role::server;
            auto pair = co_await upgradeable_streams::open_connection(std::move(socket), peer_options);
            co_return pair;
        });
    auto pair = co_await upgradeable_streams::open_connection("127.0.0.1", tap->port(), options);
    auto peer = co_await accepted.join();
    tapped_link made{std::move(tap),
                     {std::move(pair.first), std::move(pair.second), std::move(peer.first), std::move(peer.second)}};
    co_return made;
}

} // namespace test

#endif
