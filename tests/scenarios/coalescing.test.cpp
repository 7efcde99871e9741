// How what is written leaves: in how many sends and records, whole and in order.

#include "support/catch.hpp"
#include "support/chunked_stream.hpp"
#include "support/contexts.hpp"
#include "support/echo_server.hpp"
#include "support/pattern.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/segments.hpp"
#include "support/socket_pair.hpp"
#include "support/thread.hpp"
#include "support/tls_records.hpp"

#include <upgradeable_streams/open_connection.hpp>
#include <upgradeable_streams/start_server.hpp>

#include <asio/awaitable.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <sys/socket.h>

namespace us = upgradeable_streams;
using asio::awaitable;
using test::joined;
using test::raw_peer;
using test::run_in_thread;

namespace
{

using handler = std::function<awaitable<void>(us::stream_reader&, us::stream_writer&)>;

constexpr std::size_t record_overhead = 22; // of TLS 1.3

us::server_options server_options_of(bool tls)
{
    return {.ssl = tls ? &test::server_context() : nullptr};
}

void write_answer(us::stream_writer& writer, int pieces = 100)
{
    for (int i = 0; i < pieces; ++i)
        writer.write("answer\n");
}

std::string answer(int pieces = 100)
{
    std::string text;
    for (int i = 0; i < pieces; ++i)
        text += "answer\n";
    return text;
}

awaitable<void> wait_for_a_timer()
{
    asio::steady_timer timer(co_await asio::this_coro::executor, std::chrono::milliseconds(1));
    co_await timer.async_wait(asio::use_awaitable);
}

/// A peer of a connection, and the descriptor of the connection itself.
struct watched_peer
{
    raw_peer peer;
    int other = -1;
    std::uint32_t segments = 0;

    void begin_to_count() { segments = test::data_segments_sent(other); }

    void send(std::string_view bytes) { peer.ssl() ? peer.tls_write(bytes) : peer.send_all(bytes); }

    awaitable<std::string> receive(std::size_t size)
    {
        return joined(run_in_thread([this, size]
                                    { return peer.ssl() ? peer.tls_read_exactly(size) : peer.recv_exactly(size); }));
    }

    std::string unread() const
    {
        std::string bytes(64 * 1024, '\0');
        const ssize_t size = ::recv(peer.descriptor(), bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
        bytes.resize(size > 0 ? std::size_t(size) : 0);
        return bytes;
    }

    /// Checks that `text` comes in one segment and, under TLS, in one record.
    awaitable<void> expect_at_once(std::string text)
    {
        const std::size_t size = text.size() + (peer.ssl() ? record_overhead : 0);
        co_await test::eventually([&] { return unread().size() >= size; });
        const test::tls_scan scan = test::tls_records(unread());
        const std::string received = co_await receive(text.size());
        CHECK(received == text);
        CHECK(test::data_segments_sent(other) - segments == 1);
        if (peer.ssl())
        {
            CHECK(scan.all_tls);
            CHECK(scan.records.size() == 1);
        }
    }
};

/// Runs a server, and `client` with a peer that is connected and got all that came before what the handler writes.
void serve(bool tls, const handler& handle, const std::function<awaitable<void>(watched_peer&)>& client)
{
    test::run(
        [=]() -> awaitable<void>
        {
            int descriptor = -1;
            const auto greet_and_handle = [&](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                descriptor = *writer.get_extra_info<"socket">();
                writer.write("ready\n");
                co_await handle(reader, writer);
            };
            us::server server =
                co_await us::start_server(greet_and_handle, "127.0.0.1", 0, server_options_of(tls));
            watched_peer one{raw_peer::connect(test::endpoint_of(server))};
            if (tls)
                co_await joined(run_in_thread([&] { one.peer.tls_connect(test::localhost_client()); }));
            const std::string ready = co_await one.receive(6);
            CHECK(ready == "ready\n");
            one.other = descriptor;
            one.begin_to_count();
            co_await client(one);
            one.peer.reset();
            server.close();
            co_await server.wait_closed();
        });
}

awaitable<void> ask_once(watched_peer& one)
{
    one.send("request\n");
    co_await one.expect_at_once(answer());
}

/// Does nothing until the peer has gone.
awaitable<void> wait_for_the_end(us::stream_reader& reader)
{
    try
    {
        co_await reader.read();
    }
    catch (const std::system_error&)
    {
    }
}

} // namespace

TEST_CASE("coalescing: what a handler writes after a read leaves in one send and record, whatever it awaits then")
{
    const bool tls = GENERATE(false, true);
    const std::string then = GENERATE("a read", "a timer", "a drain and a timer");
    CAPTURE(tls, then);
    serve(
        tls,
        [=](us::stream_reader& reader, us::stream_writer& writer) -> awaitable<void>
        {
            co_await reader.readline();
            write_answer(writer);
            if (then == "a drain and a timer")
                co_await writer.drain();
            if (then != "a read")
                co_await wait_for_a_timer();
            co_await wait_for_the_end(reader);
        },
        ask_once);
}

TEST_CASE("coalescing: what a handler writes after a timer leaves in one send and record")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    serve(
        tls,
        [](us::stream_reader& reader, us::stream_writer& writer) -> awaitable<void>
        {
            co_await reader.readline();
            for (int i = 0; i < 2; ++i)
            {
                co_await wait_for_a_timer();
                write_answer(writer);
                co_await reader.readline();
            }
        },
        [](watched_peer& one) -> awaitable<void>
        {
            co_await ask_once(one);
            one.begin_to_count();
            co_await ask_once(one);
        });
}

TEST_CASE("coalescing: what a coroutine that reads nothing writes after a timer leaves in one send and record each time")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    int wanted = 0;
    serve(
        tls,
        [&](us::stream_reader& reader, us::stream_writer& writer) -> awaitable<void>
        {
            const auto tick = [&wanted](us::stream_writer to) -> awaitable<void>
            {
                for (int i = 0; i < 3; ++i)
                {
                    co_await test::eventually([&] { return wanted > i; });
                    write_answer(to);
                }
            };
            asio::co_spawn(co_await asio::this_coro::executor, tick(writer), asio::detached);
            co_await wait_for_the_end(reader);
        },
        [&](watched_peer& one) -> awaitable<void>
        {
            for (int i = 0; i < 3; ++i)
            {
                one.begin_to_count();
                ++wanted;
                co_await one.expect_at_once(answer());
            }
        });
}

TEST_CASE("coalescing: what a coroutine that was just spawned writes leaves in one send and record")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    serve(
        tls,
        [](us::stream_reader& reader, us::stream_writer& writer) -> awaitable<void>
        {
            co_await reader.readline();
            const auto write = [](us::stream_writer to) -> awaitable<void>
            {
                write_answer(to);
                co_return;
            };
            asio::co_spawn(co_await asio::this_coro::executor, write(writer), asio::detached);
            co_await wait_for_the_end(reader);
        },
        ask_once);
}

TEST_CASE("coalescing: the answers to requests that came together leave in one send and record")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    serve(
        tls,
        [](us::stream_reader& reader, us::stream_writer& writer) -> awaitable<void>
        {
            for (std::string line = co_await reader.readline(); !line.empty(); line = co_await reader.readline())
            {
                write_answer(writer, 1);
                co_await writer.drain();
            }
        },
        [](watched_peer& one) -> awaitable<void>
        {
            std::string requests;
            for (int i = 0; i < 32; ++i)
                requests += "request\n";
            one.send(requests);
            co_await one.expect_at_once(answer(32));
        });
}

TEST_CASE("coalescing: what a handler writes to another connection leaves in one send and record without a further call")
{
    const bool tls = GENERATE(false, true);
    const bool reads_both = GENERATE(false, true);
    CAPTURE(tls, reads_both);
    test::raw_listener listener;
    std::optional<watched_peer> behind;
    serve(
        tls,
        [&](us::stream_reader& reader, us::stream_writer&) -> awaitable<void>
        {
            auto accepted = run_in_thread(
                [&]
                {
                    raw_peer peer = listener.accept();
                    if (tls)
                        peer.tls_accept(test::localhost_server());
                    return peer;
                });
            us::connection_options options;
            options.ssl = tls ? &test::client_context() : nullptr;
            auto [other_reader, other_writer] = co_await us::open_connection("127.0.0.1", listener.port(), options);
            raw_peer peer = co_await joined(std::move(accepted));
            std::optional<test::task<void>> reading;
            if (reads_both)
                reading = test::spawn(co_await asio::this_coro::executor, [&] { return wait_for_the_end(other_reader); });
            behind.emplace(watched_peer{std::move(peer), *other_writer.get_extra_info<"socket">()});
            behind->begin_to_count();
            for (std::string line = co_await reader.readline(); line == "request\n"; line = co_await reader.readline())
                write_answer(other_writer, 1);
            behind->peer.reset();
            if (reading)
                co_await reading->join();
        },
        [&](watched_peer& one) -> awaitable<void>
        {
            co_await test::eventually([&] { return behind.has_value(); });
            for (int round = 0; round < 2; ++round)
            {
                std::string requests;
                for (int i = 0; i < 32; ++i)
                    requests += "request\n";
                behind->begin_to_count();
                one.send(requests);
                co_await behind->expect_at_once(answer(32));
            }
            one.send("end\n");
            co_await test::eventually([&] { return behind->peer.descriptor() < 0; });
        });
}

namespace
{

constexpr std::size_t everything = std::numeric_limits<std::size_t>::max();

/// Writes of all sizes, `most` bytes at most, which a peer receives; without `chunk` over an Asio socket.
void write_and_compare(bool tls, std::optional<std::size_t> chunk, std::size_t most, bool drains, bool late)
{
    test::run(
        [=]() -> awaitable<void>
        {
            std::vector<std::size_t> sizes;
            std::size_t total = 0;
            for (const std::size_t size : {1u, 64u * 1024 - 1, 2u, 64u * 1024, 3u, 1024u * 1024, 64u * 1024, 1u, 3u * 1024 * 1024,
                                           1u, 64u * 1024 - 1, 3u * 1024 * 1024, 64u * 1024})
                if (total + size <= most)
                {
                    sizes.push_back(size);
                    total += size;
                }
            const std::string sent = test::pattern(7).bytes(0, total);

            auto sockets = test::tcp_pair(co_await asio::this_coro::executor);
            raw_peer peer(sockets.second.release());
            std::future<void> handshake;
            us::connection_options options;
            if (tls)
            {
                options.ssl = &test::client_context();
                options.server_hostname = "localhost";
                handshake = run_in_thread([&] { peer.tls_accept(test::localhost_server()); });
            }
            using pair = std::pair<us::stream_reader, us::stream_writer>;
            awaitable<pair> opening =
                chunk ? us::open_connection(
                            test::chunked_stream<asio::ip::tcp::socket>(std::move(sockets.first), *chunk), options)
                      : us::open_connection(std::move(sockets.first), options);
            auto [reader, writer] = co_await std::move(opening);
            if (tls)
                co_await joined(std::move(handshake));

            const auto receive = [&] { return tls ? peer.tls_read_exactly(total) : peer.recv_exactly(total); };
            std::future<std::string> receiving;
            if (!late)
                receiving = run_in_thread(receive);
            for (std::size_t at = 0; const std::size_t size : sizes)
            {
                writer.write(std::string_view(sent).substr(at, size));
                at += size;
                if (drains)
                    co_await writer.drain();
            }
            if (late)
                receiving = run_in_thread(receive);
            const std::string received = co_await joined(std::move(receiving));
            CHECK(received.size() == total);
            CHECK(received == sent);
            peer.reset();
        });
}

} // namespace

TEST_CASE("coalescing: small and large writes arrive whole and in order over a socket")
{
    const bool tls = GENERATE(false, true);
    const std::string how = GENERATE("drained", "at once", "at once to a peer that reads late");
    CAPTURE(tls, how);
    write_and_compare(tls, std::nullopt, everything, how == "drained", how.ends_with("late"));
}

TEST_CASE("coalescing: small and large writes arrive whole and in order over a stream that takes little at a time")
{
    const bool tls = GENERATE(false, true);
    const bool drains = GENERATE(false, true);
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(tls, drains, chunk);
    const std::size_t most = std::max<std::size_t>(140'000, test::much_in_chunks_of(chunk, everything));
    write_and_compare(tls, chunk, most, drains, false);
}

TEST_CASE("coalescing: what is written before the last handle is dropped arrives, then the end")
{
    const bool tls = GENERATE(false, true);
    const std::size_t size = GENERATE(as<std::size_t>{}, 1, 100'000, 3'000'000);
    const bool after_a_read = GENERATE(false, true);
    CAPTURE(tls, size, after_a_read);
    const std::string sent = test::pattern(8).bytes(0, size);
    test::run(
        [&]() -> awaitable<void>
        {
            test::raw_listener listener;
            auto received = run_in_thread(
                [&]
                {
                    raw_peer peer = listener.accept();
                    if (tls)
                        peer.tls_accept(test::localhost_server());
                    if (after_a_read)
                        tls ? peer.tls_write("go\n") : peer.send_all("go\n");
                    std::string all = tls ? peer.tls_read_all() : peer.recv_all();
                    if (tls)
                        peer.tls_shutdown_send_only();
                    return all;
                });
            us::connection_options options;
            options.ssl = tls ? &test::client_context() : nullptr;
            {
                auto [reader, writer] = co_await us::open_connection("127.0.0.1", listener.port(), options);
                if (after_a_read)
                    co_await reader.readline();
                writer.write(sent);
            }
            const std::string all = co_await joined(std::move(received));
            CHECK(all.size() == sent.size());
            CHECK(all == sent);
        });
}

TEST_CASE("coalescing: what a handler writes before it returns or throws arrives, then the end")
{
    const bool tls = GENERATE(false, true);
    const std::size_t size = GENERATE(as<std::size_t>{}, 1, 100'000, 3'000'000);
    const bool throws = GENERATE(false, true);
    CAPTURE(tls, size, throws);
    const std::string sent = test::pattern(9).bytes(0, size);
    test::run(
        [&]() -> awaitable<void>
        {
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                co_await reader.readline();
                writer.write(sent);
                if (throws)
                    throw std::runtime_error("thrown by the handler");
            };
            us::server_options options = server_options_of(tls);
            const test::error_log errors;
            options.error_handler = errors;
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0, options);
            auto received = run_in_thread(
                [&, endpoint = test::endpoint_of(server)]
                {
                    raw_peer peer = raw_peer::connect(endpoint);
                    if (tls)
                        peer.tls_connect(test::localhost_client());
                    tls ? peer.tls_write("go\n") : peer.send_all("go\n");
                    std::string all = tls ? peer.tls_read_all() : peer.recv_all();
                    if (tls)
                        peer.tls_shutdown_send_only();
                    return all;
                });
            const std::string all = co_await joined(std::move(received));
            CHECK(all.size() == sent.size());
            CHECK(all == sent);
            server.close();
            co_await server.wait_closed();
            CHECK(errors.size() == (throws ? 1 : 0));
        });
}
