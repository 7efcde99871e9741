#include <upgradeable_streams/stream_writer.hpp>

#include "support/catch.hpp"
#include "support/chunked_stream.hpp"
#include "support/descriptors.hpp"
#include "support/flood.hpp"
#include "support/operations.hpp"
#include "support/pattern.hpp"
#include "support/run.hpp"
#include "support/stream_links.hpp"
#include "support/thread.hpp"
#include "support/tls_records.hpp"

#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/co_spawn.hpp>
#include <asio/compose.hpp>
#include <asio/detached.hpp>
#include <asio/error.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/post.hpp>
#include <asio/ssl/error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <future>
#include <limits>
#include <list>
#include <memory>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

namespace us = upgradeable_streams;
using namespace std::chrono_literals;
using asio::awaitable;
using test::error_of;
using test::exception_of;
using test::joined;
using test::link_of_streams;
using test::link_over_socket;
using test::link_with_raw_peer;
using test::options_of;
using test::raw_link;
using test::run_in_thread;
using test::soon;
using test::stream_link;

namespace
{

us::connection_options tls_from_the_start()
{
    us::connection_options options;
    options.ssl = &test::client_context();
    return options;
}

us::connection_options upgradeable_client()
{
    us::connection_options options = tls_from_the_start();
    options.upgradeable = true;
    options.server_hostname = "localhost";
    return options;
}

us::connection_options upgradeable_server()
{
    us::connection_options options;
    options.ssl = &test::server_context();
    options.upgradeable = true;
    options.role = us::tls_role::server;
    return options;
}

/// How many bytes may pass a gated_stream.
class gate
{
public:
    explicit gate(const asio::any_io_executor& executor) : opened_(executor, asio::steady_timer::time_point::max()) {}

    void close() { room_ = 0; }

    void open(std::size_t size = std::numeric_limits<std::size_t>::max())
    {
        room_ = size;
        opened_.cancel();
    }

    std::size_t room() const { return room_; }
    void pass(std::size_t size) { room_ -= size; }
    asio::steady_timer& opened() { return opened_; }

private:
    asio::steady_timer opened_;
    std::size_t room_ = std::numeric_limits<std::size_t>::max();
};

/// Hands to the socket no byte that its gate does not let pass, so that it is known how much was handed over.
class gated_stream : public test::chunked_stream<asio::ip::tcp::socket>
{
public:
    gated_stream(asio::ip::tcp::socket&& socket, std::shared_ptr<gate> before)
        : test::chunked_stream<asio::ip::tcp::socket>(std::move(socket)), gate_(std::move(before))
    {
    }

    template <typename Token>
    auto async_write_some(asio::const_buffer bytes, Token&& token)
    {
        return asio::async_compose<Token, void(asio::error_code, std::size_t)>(
            [this, bytes, g = gate_, passed = false](auto& self, asio::error_code error = {},
                                                     std::size_t size = 0) mutable
            {
                if (passed)
                {
                    g->pass(size);
                    return self.complete(error, size);
                }
                if (g->room() == 0)
                    return g->opened().async_wait(std::move(self));
                passed = true;
                const asio::const_buffer now = asio::buffer(bytes, g->room());
                next_layer().async_write_some(now, std::move(self));
            },
            token, next_layer());
    }

private:
    std::shared_ptr<gate> gate_;
};

/// As link_with_raw_peer, through a gate.
awaitable<raw_link> link_through(std::shared_ptr<gate> before, bool tls)
{
    auto sockets = test::tcp_pair(co_await asio::this_coro::executor);
    test::raw_peer peer(sockets.second.release());
    us::connection_options options = options_of(tls);
    std::future<void> handshake;
    if (tls)
    {
        options.server_hostname = "localhost";
        handshake = run_in_thread([&peer] { peer.tls_accept(test::localhost_server()); });
    }
    auto pair = co_await us::open_connection(gated_stream(std::move(sockets.first), std::move(before)), options);
    if (tls)
        co_await joined(std::move(handshake));
    raw_link made{std::move(pair.first), std::move(pair.second), std::move(peer)};
    co_return made;
}

/// What the peer receives next, while this thread goes on.
awaitable<std::string> peer_receives(raw_link& link, std::size_t size)
{
    return joined(run_in_thread([&link, size] { return link.receive(size); }));
}

/// What the peer receives until the end, a clean one or not.
awaitable<std::string> peer_receives_to_the_end(raw_link& link)
{
    return joined(run_in_thread(
        [&link]
        {
            std::string all;
            try
            {
                for (std::string piece; !(piece = link.peer.recv_some()).empty();)
                    all += piece;
            }
            catch (const std::system_error& error)
            {
                if (error.code() != std::errc::connection_reset)
                    throw;
            }
            return all;
        }));
}

/// Upgrades both ends at once; the client's handles are replaced, then the server's.
awaitable<void> upgrade_both(stream_link& link)
{
    const auto executor = co_await asio::this_coro::executor;
    auto server = test::spawn(executor, [&] { return link.peer_writer.start_tls(); });
    std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
    std::tie(link.peer_reader, link.peer_writer) = co_await server.join();
}

awaitable<stream_link> upgradeable_link(std::size_t chunk = 0)
{
    auto pending = link_of_streams(upgradeable_client(), {}, chunk);
    return pending;
}

} // namespace

TEST_CASE("write: the bytes arrive in order, without any further call")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    CAPTURE(chunk, tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(options_of(tls), chunk);
            const std::string sent = test::pattern(3).bytes(0, 5000);
            for (std::size_t at = 0; at < sent.size(); at += 100)
                link.writer.write(std::string_view(sent).substr(at, 100));
            const std::string received = co_await peer_receives(link, sent.size());
            CHECK(received == sent);
        });
}

TEST_CASE("write: the bytes may be gone once it returned, and none are no error")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            std::optional<std::string> text("a text longer than a small string");
            link.writer.write(*text);
            link.writer.write("");
            text.reset();
            const std::string received = co_await peer_receives(link, 33);
            CHECK(received == "a text longer than a small string");
        });
}

TEST_CASE("write: what is queued before control goes back to the event loop leaves in one send")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            for (int i = 0; i < 100; ++i)
                link.writer.write("line\n");
            link.writer.writelines({"last", "\n"});
            const std::string received = co_await joined(run_in_thread([&] { return link.peer.recv_some(); }));
            CHECK(received.size() == 505);
        });
}

TEST_CASE("write: under TLS what is queued before control goes back to the event loop leaves in one record")
{
    test::run(
        []() -> awaitable<void>
        {
            auto tapped = co_await test::link_through_tap(tls_from_the_start());
            stream_link& link = tapped.link;
            link.writer.write("first");
            const std::string first = co_await link.peer_reader.readexactly(5);
            CHECK(first == "first");
            const std::size_t before = tapped.tap->client_to_server().size();
            for (int i = 0; i < 1000; ++i)
                link.writer.write("a line\n");
            link.writer.writelines({"the ", "last ", "one\n"});
            const std::string all = co_await link.peer_reader.readexactly(7013);
            CHECK(all.ends_with("a line\nthe last one\n"));
            const auto scan = test::tls_records(std::string_view(tapped.tap->client_to_server()).substr(before));
            CHECK(scan.all_tls);
            REQUIRE(scan.records.size() == 1);
            CHECK(scan.records[0].type == test::tls_record::application_data);
        });
}

TEST_CASE("write, write_eof, close: while a session ticket has come in part they wait for its rest")
{
    const bool is_reading = GENERATE(true, false);
    const std::string what = GENERATE("write", "write_eof", "write and close", "close");
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(is_reading, what, chunk);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(options_of(true), chunk);
            const std::string ticket = link.peer.tls_unsent([&] { link.peer.session_ticket(); });
            SSL* const ssl = link.writer.get_extra_info<"ssl_object">();
            const auto reading = test::spawn(executor, [&] { return link.reader.readline(); });
            link.peer.send_all(std::string_view(ticket).substr(0, 700));
            co_await test::eventually([&] { return SSL_in_init(ssl) != 0; });
            if (!is_reading)
            {
                reading.cancel();
                const std::error_code error = co_await error_of(reading.join());
                CHECK(error == asio::error::operation_aborted);
            }
            const std::string written = what.starts_with("write") ? "to the peer\n" : "";
            link.writer.write(written);
            const bool is_closed = what.ends_with("close");
            if (what == "write_eof")
                link.writer.write_eof();
            if (is_closed)
                link.writer.close();
            co_await test::turns(20);
            char none = 0;
            CHECK(::recv(link.peer.descriptor(), &none, 1, MSG_PEEK | MSG_DONTWAIT) < 0);
            link.peer.send_all(std::string_view(ticket).substr(700));
            auto answering = test::run_in_thread(
                [&]
                {
                    const bool goes_on = what == "write";
                    const std::string received = goes_on ? link.peer.tls_read_line() : link.peer.tls_read_all();
                    is_closed ? link.peer.tls_shutdown() : link.peer.tls_write("from it\n");
                    return received;
                });
            const std::string received = co_await test::joined(std::move(answering));
            CHECK(received == written);
            if (is_closed)
            {
                co_await link.writer.wait_closed();
                if (is_reading)
                {
                    const std::error_code error = co_await error_of(reading.join());
                    CHECK(error == us::errc::connection_closed);
                }
                co_return;
            }
            std::string line;
            if (is_reading)
                line = co_await reading.join();
            else
                line = co_await link.reader.readline();
            CHECK(line == "from it\n");
        });
}

TEST_CASE("write: what a socket did not take arrives, where the write used up its turn too")
{
    // A write of so many batches whose last one ends the turn; which of them fills the socket is up to the system.
    const std::size_t batches = GENERATE(1U, 2U, 3U, 4U, 5U);
    const bool tls = GENERATE(false, true);
    CAPTURE(batches, tls);
    test::run(
        [=]() -> awaitable<void>
        {
            constexpr std::size_t batch = 64 * 1024;
            constexpr std::size_t turn = 1280 * 1024;
            const std::size_t read_before = turn - batches * batch;
            auto linking = test::link_of(options_of(tls, read_before),
                                         [](asio::ip::tcp::socket socket)
                                         {
                                             socket.set_option(asio::socket_base::send_buffer_size(1));
                                             return socket;
                                         });
            raw_link link = co_await std::move(linking);
            auto sending = test::run_in_thread([&] { link.send(std::string(read_before + 1, 'x')); });
            const auto error = co_await exception_of<us::limit_overrun_error>(link.reader.readuntil());
            CHECK(error.consumed() > read_before);
            co_await test::joined(std::move(sending));
            co_await test::turns(1);

            const std::string read = co_await link.reader.readexactly(read_before); // is there already
            CHECK(read == std::string(read_before, 'x'));
            const std::string sent = test::pattern(3).bytes(0, batches * batch);
            link.writer.write(sent);
            auto receiving = test::run_in_thread([&] { return link.receive(sent.size()); });
            const std::string received = co_await test::joined(std::move(receiving));
            CHECK(received == sent);
        });
}

TEST_CASE("close, abort: they end in time while a session ticket has come in part")
{
    const bool is_aborted = GENERATE(false, true);
    CAPTURE(is_aborted);
    us::connection_options options = options_of(true);
    options.ssl_shutdown_timeout = 50ms;
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_over_socket(options);
            const std::string ticket = link.peer.tls_unsent([&] { link.peer.session_ticket(); });
            SSL* const ssl = link.writer.get_extra_info<"ssl_object">();
            const auto reading = test::spawn(executor, [&] { return link.reader.readline(); });
            link.peer.send_all(std::string_view(ticket).substr(0, 700));
            co_await test::eventually([&] { return SSL_in_init(ssl) != 0; });
            link.writer.close();
            co_await test::turns(20);
            if (is_aborted)
            {
                link.writer.abort();
                co_await link.writer.wait_closed();
            }
            else
            {
                const std::error_code closed = co_await error_of(link.writer.wait_closed());
                CHECK(closed == us::errc::shutdown_timeout);
            }
            const std::error_code read = co_await error_of(reading.join());
            CHECK(read == us::errc::connection_closed);
        }); // and no work is left
}

TEST_CASE("session, get_extra_info: they are known while a session ticket has come in part")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_over_socket(options_of(true));
            const std::string ticket = link.peer.tls_unsent([&] { link.peer.session_ticket(); });
            SSL* const ssl = link.writer.get_extra_info<"ssl_object">();
            const auto reading =
                test::spawn(co_await asio::this_coro::executor, [&] { return link.reader.readline(); });
            link.peer.send_all(std::string_view(ticket).substr(0, 700));
            co_await test::eventually([&] { return SSL_in_init(ssl) != 0; });
            CHECK(link.writer.session()->version == "TLSv1.3");
            CHECK(link.writer.get_extra_info<"version">() == "TLSv1.3");
            CHECK(us::tls_exporter(ssl).size() == 32);
            link.writer.abort();
            co_await error_of(reading.join());
        });
}

TEST_CASE("write_eof: what comes with the rest of a session ticket that it waits for is read")
{
    const auto size = GENERATE(std::size_t(10), std::size_t(300), std::size_t(2000));
    CAPTURE(size);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_over_socket(options_of(true));
            std::string sent = link.peer.tls_unsent([&] { link.peer.tls_write("first\n"); });
            const std::string line = std::string(size, 'x') + "\n";
            sent += link.peer.tls_unsent(
                [&]
                {
                    link.peer.session_ticket();
                    link.peer.tls_write(line);
                });
            const std::size_t part = test::tls_records(sent).records.at(3).offset; // the line, and two of the ticket
            link.peer.send_all(std::string_view(sent).substr(0, part));
            co_await test::turns(20);
            const std::string first = co_await link.reader.readline();
            CHECK(first == "first\n");
            SSL* const ssl = link.writer.get_extra_info<"ssl_object">();
            CHECK(SSL_in_init(ssl) != 0);
            link.writer.write_eof();
            co_await test::turns(20);
            link.peer.send_all(std::string_view(sent).substr(part));
            co_await test::eventually([&] { return SSL_in_init(ssl) == 0; });
            const std::string second = co_await link.reader.readline();
            CHECK(second == line);
        });
}

TEST_CASE("writelines: pieces of any range, as if joined")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            link.writer.writelines({"one ", "two "});
            link.writer.writelines(std::vector<std::string>{"three ", "four "});
            const std::list<std::string_view> views{"five ", "six "};
            link.writer.writelines(views);
            link.writer.writelines(std::views::iota(7, 9) |
                                   std::views::transform([](int i) { return std::to_string(i); }));
            link.writer.writelines(std::vector<std::string>{});
            const std::string received = co_await peer_receives(link, 30);
            CHECK(received == "one two three four five six 78");
        });
}

TEST_CASE("drain: at once with the high mark of 64 KiB queued, and not with a byte more")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            for (const std::size_t more : {std::size_t(0), std::size_t(1)})
            {
                const auto before = std::make_shared<gate>(executor);
                raw_link link = co_await link_through(before, tls);
                before->close();
                const std::string sent = test::pattern(4).bytes(0, 64 * 1024 + more);
                link.writer.write(sent);
                auto drained = test::spawn(executor, [&] { return link.writer.drain(); });
                co_await test::turns(50);
                CHECK(drained.done() == (more == 0));
                before->open();
                const std::string received = co_await peer_receives(link, sent.size());
                CHECK(received == sent);
                co_await drained.join();
            }
        });
}

TEST_CASE("get_write_buffer_size: what was written and not yet handed to the socket")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_over_socket(options_of(tls));
            CHECK(link.writer.get_write_buffer_size() == 0);
            link.writer.write("1234567");
            CHECK(link.writer.get_write_buffer_size() == 7);
            co_await test::eventually([&] { return link.writer.get_write_buffer_size() == 0; });
            const std::string large(16 * 1024 * 1024, 'x');
            link.writer.write(large);
            const std::size_t queued = link.writer.get_write_buffer_size();
            CHECK(queued > 1024 * 1024);
            CHECK(queued < large.size());
            auto receiving = run_in_thread([&] { return link.receive(7 + large.size()); });
            const std::string received = co_await joined(std::move(receiving));
            CHECK(received.size() == 7 + large.size());
            co_await test::eventually([&] { return link.writer.get_write_buffer_size() == 0; });
        });
}

TEST_CASE("drain: at once with exactly the high mark queued, byte by byte, and not with one more")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await test::link_over_socket();
            test::shrink_buffers(link.peer.descriptor());
            test::shrink_buffers(*link.writer.get_extra_info<"socket">());
            std::size_t sent = 0;
            for (const std::string piece(1000, 'x'); link.writer.get_write_buffer_size() == 0; sent += piece.size())
            {
                link.writer.write(piece);
                co_await test::turns();
            }
            link.writer.set_write_buffer_limits({.high = link.writer.get_write_buffer_size() + 10});
            link.writer.write("0123456789");
            co_await link.writer.drain();
            link.writer.write("x");
            const auto drained = test::spawn(executor, [&] { return link.writer.drain(); });
            co_await test::turns(50);
            CHECK_FALSE(drained.done());
            co_await test::joined(test::run_in_thread([&] { return link.peer.recv_exactly(sent + 11); }));
            co_await drained.join();
        });
}

TEST_CASE("drain: several wait at once, and each returns")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer();
            link.writer.write(std::string(8 * 1024 * 1024, 'x'));
            auto one = test::spawn(executor, [&] { return link.writer.drain(); });
            auto two = test::spawn(executor, [&] { return link.writer.drain(); });
            const std::string received = co_await peer_receives(link, 8 * 1024 * 1024);
            CHECK(received.size() == 8 * 1024 * 1024);
            co_await one.join();
            co_await two.join();
            co_await link.writer.drain();
        });
}

TEST_CASE("drain: once above the high mark it waits for the low mark")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            const auto before = std::make_shared<gate>(executor);
            raw_link link = co_await link_through(before, false);
            before->close();
            link.writer.set_write_buffer_limits({.high = 150'000, .low = 100'000});
            link.writer.write(std::string(100'000, 'x'));
            co_await test::turns(50);
            link.writer.write(std::string(100'001, 'y'));
            auto drained = test::spawn(executor, [&] { return link.writer.drain(); });
            before->open(100'000);
            const std::string first = co_await peer_receives(link, 100'000);
            CHECK(first == std::string(100'000, 'x'));
            co_await test::turns(50);
            CHECK(!drained.done());
            before->open(1);
            co_await drained.join();
            before->open();
            const std::string second = co_await peer_receives(link, 100'001);
            CHECK(second == std::string(100'001, 'y'));
        });
}

TEST_CASE("set_write_buffer_limits: a missing high is 4 x low or 64 KiB, a missing low is high / 4")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            const auto before = std::make_shared<gate>(executor);
            raw_link link = co_await link_through(before, tls);
            before->close();
            constexpr std::size_t queued = 8 * 1024 * 1024;
            const auto waits = [&](us::write_buffer_limits limits) -> awaitable<bool>
            {
                link.writer.set_write_buffer_limits({.high = queued, .low = queued});
                link.writer.set_write_buffer_limits(limits);
                auto drained = test::spawn(executor, [&] { return link.writer.drain(); });
                co_await test::turns();
                const bool waiting = !drained.done();
                drained.cancel();
                co_await test::turns();
                co_return waiting;
            };
            link.writer.write(std::string(queued, 'x'));
            co_await test::turns();
            const bool exactly = co_await waits({.high = queued});
            const bool one_less = co_await waits({.high = queued - 1});
            const bool four_times = co_await waits({.low = queued / 4});
            const bool four_times_less = co_await waits({.low = queued / 4 - 1});
            const bool by_default = co_await waits({});
            const bool none = co_await waits({.high = 0});
            CHECK(!exactly);
            CHECK(one_less);
            CHECK(!four_times);
            CHECK(four_times_less);
            CHECK(by_default);
            CHECK(none);
            link.peer.reset();
            before->open();
        });
}

TEST_CASE("set_write_buffer_limits: a high mark of 0 makes drain wait until all was handed to the socket")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            link.writer.set_write_buffer_limits({.high = 0});
            link.writer.write("one byte is above it");
            co_await link.writer.drain();
            const std::string received = link.peer.recv_exactly(20);
            CHECK(received == "one byte is above it");
        });
}

TEST_CASE("set_write_buffer_limits: high less than low is std::invalid_argument")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            CHECK_THROWS_AS(link.writer.set_write_buffer_limits({.high = 1, .low = 2}), std::invalid_argument);
            CHECK_NOTHROW(link.writer.set_write_buffer_limits({.high = 2, .low = 2}));
            CHECK_NOTHROW(link.writer.set_write_buffer_limits({.high = 0, .low = 0}));
        });
}

TEST_CASE("drain: a cancelled drain is operation_aborted, and what was queued is still sent")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer();
            link.writer.write(std::string(8 * 1024 * 1024, 'x'));
            auto drained = test::spawn(executor, [&] { return link.writer.drain(); });
            co_await test::turns();
            drained.cancel();
            const std::error_code error = co_await error_of(drained.join());
            CHECK(error == asio::error::operation_aborted);
            const std::string received = co_await peer_receives(link, 8 * 1024 * 1024);
            CHECK(received.size() == 8 * 1024 * 1024);
        });
}

TEST_CASE("drain: that takes longer than operation_timeout ends, each of several, and what was queued is still sent")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(options_of(tls));
            const std::string sent = test::pattern(9).bytes(0, 16 * 1024 * 1024);
            link.writer.write(sent);
            link.writer.set_operation_timeout(5ms);
            auto one = test::spawn(executor, [&] { return link.writer.drain(); });
            co_await test::turns(1);
            auto two = test::spawn(executor, [&] { return link.writer.drain(); });
            const std::error_code first = co_await error_of(one.join());
            CHECK(first == us::errc::operation_timeout);
            const std::error_code second = co_await error_of(two.join());
            CHECK(second == us::errc::operation_timeout);
            link.writer.set_operation_timeout(1h);
            auto drained = test::spawn(executor, [&] { return link.writer.drain(); });
            const std::string received = co_await peer_receives(link, sent.size());
            CHECK(received == sent);
            co_await drained.join();
        });
}

TEST_CASE("drain: one with a longer operation_timeout does not put off the end of another")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await test::link_over_socket();
            link.writer.write(std::string(8'000'000, 'x'));
            link.writer.set_operation_timeout(20ms);
            const auto first = test::spawn(executor, [&] { return link.writer.drain(); });
            co_await test::turns();
            link.writer.set_operation_timeout(1h);
            const auto second = test::spawn(executor, [&] { return link.writer.drain(); });
            const std::error_code late = co_await test::error_of(first.join());
            CHECK(late == us::errc::operation_timeout);
            CHECK_FALSE(second.done());
            link.writer.abort();
            co_await test::error_of(second.join());
        });
}

TEST_CASE("drain: once it took too long its timer rests")
{
    asio::io_context io;
    std::optional<raw_link> link;
    bool is_late = false;
    const auto be_late = [&]() -> awaitable<void>
    {
        link.emplace(co_await test::link_over_socket());
        link->writer.set_operation_timeout(20ms);
        link->writer.write(std::string(8'000'000, 'x'));
        const std::error_code late = co_await test::error_of(link->writer.drain());
        CHECK(late == us::errc::operation_timeout);
        is_late = true;
    };
    asio::co_spawn(io, be_late, asio::detached);
    while (!is_late)
        io.run_one();
    int handlers = 0;
    while (handlers < 1000 && io.poll_one() > 0)
        ++handlers;
    CHECK(handlers < 1000);
    link.reset();
    io.poll();
}

TEST_CASE("set_operation_timeout: holds over start_tls, and a shorter one, or none, from the next read on")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            stream_link link = co_await link_of_streams(upgradeable_client(), upgradeable_server());
            for (const auto timeout : {std::chrono::milliseconds(1h), 5ms})
            {
                link.writer.set_operation_timeout(timeout);
                link.peer_writer.write("line\n");
                const std::string line = co_await link.reader.readline();
                CHECK(line == "line\n");
            }
            co_await upgrade_both(link);
            const std::error_code late = co_await error_of(link.reader.readline());
            CHECK(late == us::errc::operation_timeout);

            link.writer.set_operation_timeout({});
            link.peer_writer.set_operation_timeout(20ms);
            auto outlives_it = test::spawn(executor, [&] { return link.reader.readline(); });
            const std::error_code of_peer = co_await error_of(link.peer_reader.readline());
            CHECK(of_peer == us::errc::operation_timeout);
            link.peer_writer.write("line\n");
            const std::string line = co_await outlives_it.join();
            CHECK(line == "line\n");
        });
}

TEST_CASE("set_operation_timeout: keeps no timer running once the connection is closed")
{
    asio::io_context io;
    std::optional<raw_link> kept;
    test::run_on(io,
                 [&]() -> awaitable<void>
                 {
                     kept.emplace(co_await link_with_raw_peer());
                     kept->writer.set_operation_timeout(1h);
                     kept->send("line\n");
                     const std::string line = co_await kept->reader.readline();
                     CHECK(line == "line\n");
                     kept->writer.abort();
                     co_await kept->writer.wait_closed();
                 });
}

TEST_CASE("set_operation_timeout: no time at all is std::invalid_argument")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            CHECK_THROWS_AS(link.writer.set_operation_timeout(0s), std::invalid_argument);
            CHECK_THROWS_AS(link.writer.set_operation_timeout(-1s), std::invalid_argument);
            CHECK_NOTHROW(link.writer.set_operation_timeout(std::chrono::steady_clock::duration::max()));
            link.send("line\n");
            const std::string line = co_await link.reader.readline();
            CHECK(line == "line\n");
        });
}

TEST_CASE("drain: a connection that was lost is reported, and by write, writelines and write_eof too")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(options_of(tls));
            link.writer.write(std::string(8 * 1024 * 1024, 'x'));
            co_await test::turns();
            link.peer.reset();
            const std::error_code error = co_await error_of(link.writer.drain());
            CHECK((error == asio::error::connection_reset || error == asio::error::broken_pipe));
            const std::error_code again = co_await error_of(link.writer.drain());
            CHECK(again == error);
            CHECK(link.writer.is_closing());
            CHECK_THROWS_AS(link.writer.write("x"), std::system_error);
            CHECK_THROWS_AS(link.writer.writelines({"x"}), std::system_error);
            CHECK_THROWS_AS(link.writer.write_eof(), std::system_error);
        });
}

TEST_CASE("drain: a loss that a read has found is reported, as in asyncio")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(options_of(tls));
            link.peer.reset();
            const std::error_code found = co_await error_of(link.reader.read(1));
            CHECK(found == asio::error::connection_reset);
            const std::error_code error = co_await error_of(link.writer.drain());
            CHECK(error == found);
            link.writer.close();
            const std::error_code reason = co_await error_of(link.writer.wait_closed());
            CHECK(reason == found);
        });
}

TEST_CASE("handles: those that are empty or moved from are errc::connection_closed until they are assigned to")
{
    test::run(
        []() -> awaitable<void>
        {
            us::stream_reader reader;
            us::stream_writer writer;
            for (const bool moved : {false, true})
            {
                CAPTURE(moved);
                for (const auto& [name, operation] : test::operations_of(reader, writer))
                {
                    CAPTURE(name);
                    const std::error_code error = co_await error_of(operation());
                    CHECK(error == us::errc::connection_closed);
                }
                const std::error_code of_wait = co_await error_of(writer.wait_closed());
                CHECK(of_wait == us::errc::connection_closed);
                CHECK_THROWS_AS(writer.close(), std::system_error);
                raw_link link = co_await link_with_raw_peer();
                reader = std::move(link.reader);
                writer = std::move(link.writer);
                link.peer.send_all("line\n");
                const std::string line = co_await reader.readline();
                CHECK(line == "line\n");
                const auto kept = std::pair(std::move(reader), std::move(writer));
            }
        });
}

TEST_CASE("close: write, writelines, write_eof and every read after it are errc::connection_closed")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            us::connection_options options = options_of(tls);
            options.ssl_shutdown_timeout = std::chrono::seconds(10);
            raw_link link = co_await link_with_raw_peer(options);
            CHECK(!link.writer.is_closing());
            link.writer.close();
            CHECK(link.writer.is_closing());
            link.writer.close();
            for (const bool closed : {false, true})
            {
                CAPTURE(closed);
                CHECK_THROWS_AS(link.writer.write("x"), std::system_error);
                const std::error_code error = co_await error_of(
                    [](us::stream_writer& w) -> awaitable<void>
                    {
                        w.write("x");
                        co_return;
                    }(link.writer));
                CHECK(error == us::errc::connection_closed);
                CHECK_THROWS_AS(link.writer.writelines({"x"}), std::system_error);
                CHECK_THROWS_AS(link.writer.write_eof(), std::system_error);
                const std::error_code read = co_await error_of(link.reader.read(1));
                const std::error_code line = co_await error_of(link.reader.readline());
                const std::error_code exactly = co_await error_of(link.reader.readexactly(1));
                CHECK(read == us::errc::connection_closed);
                CHECK(line == us::errc::connection_closed);
                CHECK(exactly == us::errc::connection_closed);
                if (!closed)
                {
                    link.end();
                    co_await link.writer.wait_closed();
                }
            }
            const std::error_code drained = co_await error_of(link.writer.drain());
            CHECK(drained == us::errc::connection_closed);
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("close: ends a pending read with errc::connection_closed")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(options_of(tls));
            auto pending = test::spawn(executor, [&] { return link.reader.readline(); });
            co_await test::turns();
            link.writer.close();
            const std::error_code error = co_await error_of(pending.join());
            CHECK(error == us::errc::connection_closed);
            link.end();
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("close: sends what is queued, then FIN")
{
    const auto chunk = GENERATE(std::size_t(1024), std::size_t(0));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer({}, chunk);
            const std::string sent = test::pattern(5).bytes(0, 4 * 1024 * 1024);
            link.writer.write(sent);
            link.writer.close();
            const std::string received = co_await joined(run_in_thread([&] { return link.peer.recv_all(); }));
            CHECK((received == sent));
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("close: the peer is told of the end though another process has the socket too")
{
    const bool has_unread = GENERATE(false, true);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_over_socket();
            const int other = ::dup(link.writer.get_extra_info<"socket">().value());
            REQUIRE(other >= 0);
            if (has_unread)
                link.send("unread");
            link.writer.write("bye\n");
            co_await test::turns();
            CHECK(link.writer.get_write_buffer_size() == 0);
            link.writer.close();
            const std::string received = co_await joined(run_in_thread([&] { return link.peer.recv_all(); }));
            CHECK(received == "bye\n");
            link.end();
            co_await link.writer.wait_closed();
            ::close(other);
        });
}

TEST_CASE("close: what the socket has taken arrives, though bytes that the peer sent were never read")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await test::link_over_socket();
            const int small = 16 * 1024, large = 1024 * 1024;
            ::setsockopt(link.peer.descriptor(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
            ::setsockopt(*link.writer.get_extra_info<"socket">(), SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
            link.send("unread");
            const std::string sent(150'000, 'x');
            link.writer.write(sent);
            co_await test::turns();
            REQUIRE(link.writer.get_write_buffer_size() == 0);
            link.writer.close();
            co_await link.writer.wait_closed();
            const std::string received =
                co_await test::joined(test::run_in_thread([&] { return link.peer.recv_all(); }));
            CHECK(received.size() == sent.size());
        });
}

TEST_CASE("close: under TLS sends what is queued, then close_notify, then FIN")
{
    us::connection_options options = tls_from_the_start();
    options.ssl = GENERATE(&test::client_context(), &test::tls12_client_context());
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(options);
            const std::string sent = test::pattern(6).bytes(0, 4 * 1024 * 1024);
            link.writer.write(sent);
            link.writer.close();
            const std::string received = co_await joined(run_in_thread(
                [&]
                {
                    std::string all = link.peer.tls_read_all(); // to the close_notify
                    link.peer.tls_shutdown();
                    return all + link.peer.recv_all();
                }));
            CHECK((received == sent));
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("close: what is queued arrives at a slow peer though bytes that it sent were never read")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            const int size = 16 * 1024;
            ::setsockopt(link.peer.descriptor(), SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
            link.send("nobody reads this");
            const std::string sent = test::pattern(10).bytes(0, 200'000);
            link.writer.write(sent);
            link.writer.close();
            co_await test::turns(50); // nothing is left to do but to await the peer
            const std::string received = co_await peer_receives_to_the_end(link);
            CHECK(received.size() == sent.size());
        });
}

TEST_CASE("close: with a read pending, the close_notify comes behind the replies to KeyUpdates that were not yet sent")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_over_socket(tls_from_the_start());
            test::shrink_buffers(*link.writer.get_extra_info<"socket">());
            test::shrink_buffers(link.peer.descriptor());
            const auto reading = test::spawn(executor, [&] { return link.reader.readline(); });
            const std::string updates = link.peer.tls_unsent(
                [&]
                {
                    for (int i = 0; i < 40'000; ++i)
                        link.peer.key_update(true);
                });
            const std::size_t sent = co_await test::flood(link.peer, updates);
            REQUIRE(sent < updates.size());
            link.writer.close();
            const std::string received = co_await joined(run_in_thread(
                [&]
                {
                    const std::string all = link.peer.tls_read_all(); // to the close_notify
                    link.peer.close();
                    return all;
                }));
            CHECK(received.empty());
            const std::error_code error = co_await error_of(reading.join());
            CHECK(error == us::errc::connection_closed);
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("close: under TLS what the peer still sends is dropped until its close_notify")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(tls_from_the_start());
            link.writer.close();
            link.send(std::string(100'000, 'x'), 10'000);
            link.end();
            co_await link.writer.wait_closed();
        });
}

template <typename Bytes>
concept writable = requires(us::stream_writer& writer, const Bytes& bytes) { writer.write(bytes); };
static_assert(writable<char[3]> && writable<std::u8string_view> && writable<unsigned char[3]>);
static_assert(!writable<char8_t[3]>, "the NUL of a UTF-8 literal would be sent");

TEST_CASE("wait_closed: returns once the connection is closed, to everyone who waits")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer();
            auto one = test::spawn(executor, [&] { return link.writer.wait_closed(); });
            auto two = test::spawn(executor, [&] { return link.writer.wait_closed(); });
            co_await test::turns();
            CHECK(!one.done());
            link.writer.close();
            co_await one.join();
            co_await two.join();
            CHECK(!link.writer.get_extra_info<"socket">());
            CHECK(link.writer.is_closing());
        });
}

TEST_CASE("wait_closed: reports why the connection was lost before all was sent")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(options_of(tls));
            link.writer.write(std::string(8 * 1024 * 1024, 'x'));
            co_await test::turns();
            link.writer.close();
            link.peer.reset();
            const std::error_code error = co_await error_of(link.writer.wait_closed());
            CHECK((error == asio::error::connection_reset || error == asio::error::broken_pipe));
            const std::error_code again = co_await error_of(link.writer.wait_closed());
            CHECK(again == error);
        });
}

namespace
{

/// Whose writes throw at the call.
struct throwing_socket : asio::ip::tcp::socket
{
    explicit throwing_socket(asio::ip::tcp::socket&& socket) : asio::ip::tcp::socket(std::move(socket)) {}

    template <typename Buffers, typename Token>
    auto async_write_some(const Buffers& buffers, Token&& token)
        -> decltype(std::declval<asio::ip::tcp::socket&>().async_write_some(buffers, std::forward<Token>(token)))
    {
        throw std::system_error(std::make_error_code(std::errc::io_error));
    }
};

awaitable<raw_link> throwing_link()
{
    return test::link_of({}, [](asio::ip::tcp::socket socket) { return throwing_socket(std::move(socket)); });
}

} // namespace

TEST_CASE("wait_closed: reports what the stream threw while close sent what was queued")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await throwing_link();
            link.writer.write("lost");
            link.writer.close();
            const std::error_code error = co_await error_of(link.writer.wait_closed());
            CHECK(error == std::errc::io_error);
            CHECK(link.peer.recv_all().empty());
        });
}

TEST_CASE("wait_closed: reports what the stream threw while it was written to, whoever wrote")
{
    const bool in_turn = GENERATE(false, true);
    CAPTURE(in_turn);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await throwing_link();
            if (in_turn)
            {
                asio::post(link.writer.get_executor(), [&] { link.send("line\n"); });
                co_await link.reader.readline();
            }
            link.writer.write("lost");
            const std::error_code error = co_await error_of(link.writer.wait_closed());
            CHECK(error == std::errc::io_error);
            CHECK(link.writer.is_closing());
        });
}

TEST_CASE("wait_closed: without close, returns with the reason when the connection is lost")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(options_of(tls));
            auto closed = test::spawn(executor, [&] { return link.writer.wait_closed(); });
            link.writer.write(std::string(8 * 1024 * 1024, 'x'));
            co_await test::turns();
            CHECK(!closed.done());
            link.peer.reset();
            const std::error_code error = co_await error_of(closed.join());
            CHECK((error == asio::error::connection_reset || error == asio::error::broken_pipe));
        });
}

TEST_CASE("wait_closed: cancelled is operation_aborted, and the connection is closed all the same")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(tls_from_the_start());
            link.writer.close();
            auto closed = test::spawn(executor, [&] { return link.writer.wait_closed(); });
            co_await test::turns();
            closed.cancel();
            const std::error_code error = co_await error_of(closed.join());
            CHECK(error == asio::error::operation_aborted);
            link.end();
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("close: a peer that never answers the close_notify is errc::shutdown_timeout")
{
    test::run(
        []() -> awaitable<void>
        {
            us::connection_options options = tls_from_the_start();
            options.ssl_shutdown_timeout = soon;
            raw_link link = co_await link_with_raw_peer(options);
            link.writer.write("goodbye");
            link.writer.close();
            const std::error_code error = co_await error_of(link.writer.wait_closed());
            CHECK(error == us::errc::shutdown_timeout);
            CHECK(error == std::errc::timed_out);
            CHECK(!link.writer.get_extra_info<"socket">());
            const std::string received = link.peer.tls_read_exactly(7);
            CHECK(received == "goodbye");
        });
}

TEST_CASE("close: a peer that never reads is errc::shutdown_timeout")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            us::connection_options options = options_of(tls);
            options.ssl_shutdown_timeout = soon;
            raw_link link = co_await link_with_raw_peer(options);
            link.writer.write(std::string(16 * 1024 * 1024, 'x'));
            link.writer.close();
            const std::error_code error = co_await error_of(link.writer.wait_closed());
            CHECK(error == us::errc::shutdown_timeout);
            CHECK(!link.writer.get_extra_info<"socket">());
        });
}

TEST_CASE("abort: ends the connection at once, whatever is queued, and a pending read with errc::connection_closed")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(options_of(tls));
            auto pending = test::spawn(executor, [&] { return link.reader.readline(); });
            co_await test::turns();
            link.writer.write(std::string(16 * 1024 * 1024, 'x'));
            link.writer.abort();
            CHECK(link.writer.is_closing());
            CHECK(!link.writer.get_extra_info<"socket">());
            const std::error_code error = co_await error_of(pending.join());
            CHECK(error == us::errc::connection_closed);
            co_await link.writer.wait_closed();
            CHECK_THROWS_AS(link.writer.write("x"), std::system_error);
            link.writer.abort();
            const std::string received = co_await joined(run_in_thread(
                [&]
                {
                    std::string bytes;
                    try
                    {
                        for (std::string more; !(more = link.peer.recv_some()).empty();)
                            bytes += more;
                    }
                    catch (const std::system_error&) // a reset
                    {
                    }
                    return bytes;
                }));
            CHECK(received.size() < 16 * 1024 * 1024);
        });
}

TEST_CASE("abort: in plain text the peer sees an end like any other, with SO_LINGER of 0 that it was cut off")
{
    const bool lingers = GENERATE(false, true);
    CAPTURE(lingers);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            if (lingers)
                test::reset_on_close(link.writer.get_extra_info<"socket">().value());
            link.writer.abort();
            char byte = 0;
            const auto received = ::recv(link.peer.descriptor(), &byte, 1, 0);
            CHECK(received == (lingers ? -1 : 0));
            if (lingers)
                CHECK(errno == ECONNRESET);
        });
}

TEST_CASE("write_eof: ends writing after what is queued, while reading goes on")
{
    const bool tls = GENERATE(false, true);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(tls, chunk);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(options_of(tls), chunk);
            CHECK(link.writer.can_write_eof());
            const std::string sent = test::pattern(7).bytes(0, 10'000);
            link.writer.write(sent);
            link.writer.write_eof();
            const std::string received =
                co_await joined(run_in_thread([&] { return tls ? link.peer.tls_read_all() : link.peer.recv_all(); }));
            CHECK(received == sent);
            CHECK(!link.writer.is_closing());
            link.send("the answer\n");
            link.end();
            const std::string answer = co_await link.reader.read();
            CHECK(answer == "the answer\n");
            link.writer.close();
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("write_eof: the end is sent too when a socket took at once what was queued before")
{
    const bool tls = GENERATE(false, true);
    const bool reads = GENERATE(false, true);
    CAPTURE(tls, reads);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await test::link_over_socket(options_of(tls));
            link.writer.write("the request\n");
            link.writer.write_eof();
            auto request = run_in_thread(
                [&]
                {
                    const std::string received = tls ? link.peer.tls_read_all() : link.peer.recv_all();
                    link.send("the answer\n");
                    link.end();
                    return received;
                });
            if (reads)
            {
                const std::string answer = co_await link.reader.read();
                CHECK(answer == "the answer\n");
            }
            const std::string received = co_await joined(std::move(request));
            CHECK(received == "the request\n");
        });
}

TEST_CASE("write_eof: a write after it is std::errc::broken_pipe")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            link.writer.write_eof();
            const std::error_code error = co_await error_of(
                [](us::stream_writer& w) -> awaitable<void>
                {
                    w.write("x");
                    co_return;
                }(link.writer));
            CHECK(error == std::errc::broken_pipe);
            const std::string received = co_await joined(run_in_thread([&] { return link.peer.recv_all(); }));
            CHECK(received.empty());
        });
}

TEST_CASE("write_eof: start_tls after it is std::errc::broken_pipe, and reading goes on")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await test::link_over_socket(test::upgradeable_options());
            link.writer.write_eof();
            const std::error_code refused = co_await test::error_of(link.writer.start_tls());
            CHECK(refused == std::errc::broken_pipe);
            link.send("still there\n");
            const std::string line = co_await link.reader.readline();
            CHECK(line == "still there\n");
        });
}

TEST_CASE("start_tls: a line that was too long in plain text drops nothing that comes over TLS")
{
    test::run(
        []() -> awaitable<void>
        {
            us::connection_options options = {.ssl = &test::server_context(), .upgradeable = true};
            options.role = us::tls_role::server;
            options.limit = 10;
            raw_link link = co_await test::link_over_socket(options);
            link.send("0123456789abcde"); // and the rest does not come
            const std::error_code overrun = co_await test::error_of(link.reader.readline());
            CHECK(overrun == us::errc::limit_overrun);
            auto shaking = test::run_in_thread([&] { link.peer.tls_connect(test::localhost_client()); });
            std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
            co_await test::joined(std::move(shaking));
            link.send("first\nsecond\n");
            const std::string line = co_await link.reader.readline();
            CHECK(line == "first\n");
        });
}

TEST_CASE("writer: a coroutine that was cancelled before may still drain, wait for the end, and connect")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            test::raw_listener listener;
            raw_link link = co_await link_over_socket();
            const auto tidy_up = [&]() -> awaitable<void>
            {
                co_await asio::this_coro::throw_if_cancelled(false);
                const std::error_code cancelled = co_await error_of(link.reader.readline());
                CHECK(cancelled == asio::error::operation_aborted);
                link.writer.write("goodbye\n");
                link.writer.set_write_buffer_limits({.high = 0});
                co_await link.writer.drain();
                auto other = co_await us::open_connection("127.0.0.1", listener.port());
                link.writer.close();
                co_await link.writer.wait_closed();
            };
            const auto tidying = test::spawn(executor, tidy_up);
            co_await test::turns();
            tidying.cancel();
            co_await tidying.join();
            const std::string received = link.peer.recv_all();
            CHECK(received == "goodbye\n");
        });
}

TEST_CASE("writer: a coroutine that is cancelled again stops draining, or waiting for the end, each time")
{
    const bool drains = GENERATE(false, true);
    CAPTURE(drains);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_over_socket();
            link.writer.write(std::string(32 << 20, 'x'));
            const auto wait_twice = [&]() -> awaitable<void>
            {
                co_await asio::this_coro::throw_if_cancelled(false);
                for (int i = 0; i < 2; ++i)
                {
                    auto waiting = drains ? link.writer.drain() : link.writer.wait_closed();
                    const std::error_code cancelled = co_await error_of(std::move(waiting));
                    CHECK(cancelled == asio::error::operation_aborted);
                }
            };
            const auto waiting = test::spawn(executor, wait_twice);
            for (int i = 0; i < 2; ++i)
            {
                co_await test::turns();
                waiting.cancel();
            }
            co_await waiting.join();
            link.writer.abort();
        });
}

TEST_CASE("writer: after much was queued a connection that waits holds no buffer for it")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const us::connection_options options = options_of(tls);
            const auto send_much = [](raw_link& through) -> awaitable<void>
            {
                const std::string much(8'000'000, 'x');
                through.writer.write(much);
                co_await test::turns();
                auto receiving = test::run_in_thread([&] { return through.receive(much.size()) == much; });
                const bool is_whole = co_await test::joined(std::move(receiving));
                CHECK(is_whole);
            };
            {
                raw_link other = co_await link_over_socket(options);
                co_await send_much(other); // what the thread keeps for good
            }
            raw_link link = co_await link_over_socket(options);
            co_await test::allocated_while_waiting(link);
            const std::ptrdiff_t before = co_await test::allocated_while_waiting(link);
            co_await send_much(link);
            const std::ptrdiff_t after = co_await test::allocated_while_waiting(link);
            CHECK(after - before < 2000);
        });
}

TEST_CASE("write_eof: refused under TLS 1.2, with nothing sent")
{
    test::run(
        []() -> awaitable<void>
        {
            us::connection_options options = tls_from_the_start();
            options.ssl = &test::tls12_client_context();
            raw_link link = co_await link_with_raw_peer(options);
            CHECK(link.writer.get_extra_info<"version">() == "TLSv1.2");
            CHECK(!link.writer.can_write_eof());
            const std::error_code error = co_await error_of(
                [](us::stream_writer& w) -> awaitable<void>
                {
                    w.write_eof();
                    co_return;
                }(link.writer));
            CHECK(error == std::errc::operation_not_supported);
            link.writer.write("goes on");
            const std::string received = co_await peer_receives(link, 7);
            CHECK(received == "goes on");
        });
}

TEST_CASE("handles: when the last goes out of scope, what was queued is sent and the connection closed")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const std::size_t before = test::open_descriptors();
            const std::string sent = test::pattern(8).bytes(0, 2 * 1024 * 1024);
            {
                raw_link link = co_await link_with_raw_peer(options_of(tls));
                std::optional<us::stream_reader> reader(std::move(link.reader));
                std::optional<us::stream_writer> writer(std::move(link.writer));
                writer->write("first");
                writer.reset();
                const std::string first = co_await joined(
                    run_in_thread([&] { return tls ? link.peer.tls_read_exactly(5) : link.peer.recv_exactly(5); }));
                CHECK(first == "first");
            }
            {
                raw_link link = co_await link_with_raw_peer(options_of(tls));
                test::raw_peer peer = std::move(link.peer);
                {
                    const us::stream_reader reader = std::move(link.reader);
                    us::stream_writer writer = std::move(link.writer);
                    writer.write(sent);
                }
                const std::string received = co_await joined(run_in_thread(
                    [&]
                    {
                        if (!tls)
                            return peer.recv_all();
                        std::string all = peer.tls_read_all();
                        peer.tls_shutdown();
                        return all + peer.recv_all();
                    }));
                CHECK((received == sent));
            }
            co_await test::eventually([before] { return test::open_descriptors() == before; });
        });
}

TEST_CASE("handles: they may be assigned and destroyed while operations run")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            std::optional<raw_link> link = co_await link_with_raw_peer(options_of(tls));
            raw_link other = co_await link_with_raw_peer(options_of(tls));
            auto line = test::spawn(executor, [&] { return link->reader.readline(); });
            link->writer.write(std::string(8 * 1024 * 1024, 'x'));
            auto drained = test::spawn(executor, [&] { return link->writer.drain(); });
            auto closed = test::spawn(executor, [&] { return other.writer.wait_closed(); });
            co_await test::turns();
            test::raw_peer peer = std::move(link->peer);
            link->reader = other.reader;
            link->writer = other.writer;
            link.reset();
            if (tls)
                peer.tls_write("line\n");
            else
                peer.send_all("line\n");
            const std::string got = co_await line.join();
            CHECK(got == "line\n");
            const std::string received = co_await joined(run_in_thread(
                [&] { return tls ? peer.tls_read_exactly(8 * 1024 * 1024) : peer.recv_exactly(8 * 1024 * 1024); }));
            CHECK(received.size() == 8 * 1024 * 1024);
            co_await drained.join();
            other.writer.close();
            other.end();
            co_await closed.join();
            if (tls)
                peer.tls_shutdown_send_only();
        });
}

TEST_CASE("writer: TCP_NODELAY is on, for an adopted socket too")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            asio::ip::tcp::acceptor acceptor(executor, test::loopback());
            auto connected = co_await us::open_connection("127.0.0.1", acceptor.local_endpoint().port());
            asio::ip::tcp::socket accepted = acceptor.accept();
            auto adopted = co_await us::open_connection(std::move(accepted));
            for (const us::stream_writer& writer : {connected.second, adopted.second})
            {
                int on = 0;
                socklen_t size = sizeof on;
                REQUIRE(::getsockopt(*writer.get_extra_info<"socket">(), IPPROTO_TCP, TCP_NODELAY, &on, &size) == 0);
                CHECK(on == 1);
            }
        });
}

namespace
{

template <us::extra_info_name Name>
using extra_info_t = decltype(std::declval<const us::stream_writer&>().get_extra_info<Name>());

static_assert(std::is_same_v<extra_info_t<"peername">, std::optional<us::socket_address>>);
static_assert(std::is_same_v<extra_info_t<"sockname">, std::optional<us::socket_address>>);
static_assert(std::is_same_v<extra_info_t<"socket">, std::optional<int>>);
static_assert(std::is_same_v<extra_info_t<"sslcontext">, SSL_CTX*>);
static_assert(std::is_same_v<extra_info_t<"ssl_object">, SSL*>);
static_assert(std::is_same_v<extra_info_t<"version">, std::optional<std::string>>);
static_assert(std::is_same_v<extra_info_t<"alpn_protocol">, std::optional<std::string>>);
static_assert(std::is_same_v<extra_info_t<"cipher">, std::optional<us::cipher_info>>);
static_assert(std::is_same_v<extra_info_t<"peercert">, std::optional<us::certificate>>);
static_assert(std::is_same_v<extra_info_t<"session_reused">, std::optional<bool>>);

} // namespace

TEST_CASE("get_extra_info: what TLS negotiated is empty before the upgrade and there after it")
{
    test::run(
        []() -> awaitable<void>
        {
            stream_link link = co_await upgradeable_link();
            for (const us::stream_writer& writer : {link.writer, link.peer_writer})
            {
                CHECK(writer.get_extra_info<"sslcontext">() == nullptr);
                CHECK(writer.get_extra_info<"ssl_object">() == nullptr);
                CHECK(!writer.get_extra_info<"version">());
                CHECK(!writer.get_extra_info<"alpn_protocol">());
                CHECK(!writer.get_extra_info<"cipher">());
                CHECK(!writer.get_extra_info<"peercert">());
                CHECK(!writer.session());
            }
            const auto peername = link.writer.get_extra_info<"peername">();
            const auto sockname = link.writer.get_extra_info<"sockname">();
            const auto socket = link.writer.get_extra_info<"socket">();
            REQUIRE((peername && sockname && socket));
            CHECK(peername->host == "127.0.0.1");
            CHECK(peername == link.peer_writer.get_extra_info<"sockname">());
            CHECK(sockname == link.peer_writer.get_extra_info<"peername">());

            co_await upgrade_both(link);
            CHECK(link.writer.get_extra_info<"sslcontext">() == test::client_context().native_handle());
            CHECK(link.peer_writer.get_extra_info<"sslcontext">() == test::server_context().native_handle());
            CHECK(link.writer.get_extra_info<"ssl_object">() != nullptr);
            CHECK(link.writer.get_extra_info<"version">() == "TLSv1.3");
            CHECK(!link.writer.get_extra_info<"alpn_protocol">());
            const auto cipher = link.writer.get_extra_info<"cipher">();
            REQUIRE(cipher);
            CHECK(cipher->name.starts_with("TLS_"));
            CHECK(cipher->protocol == "TLSv1.3");
            CHECK(cipher->secret_bits >= 128);
            const auto certificate = link.writer.get_extra_info<"peercert">();
            REQUIRE(certificate);
            const auto names = certificate->subject_alt_names();
            CHECK(std::find(names.begin(), names.end(), "DNS:localhost") != names.end());
            CHECK(!link.peer_writer.get_extra_info<"peercert">());
            const auto session = link.writer.session();
            REQUIRE(session);
            CHECK(session->version == "TLSv1.3");
            CHECK(session->peer_verified);
            REQUIRE(link.peer_writer.session());
            CHECK_FALSE(link.peer_writer.session()->peer_verified);
            CHECK(link.writer.get_extra_info<"peername">() == peername);
            CHECK(link.writer.get_extra_info<"sockname">() == sockname);
            CHECK(link.writer.get_extra_info<"socket">() == socket);
        });
}

TEST_CASE("get_extra_info: alpn_protocol is what the peers agreed on")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto& own = test::localhost_certificate();
            asio::ssl::context server = us::create_server_context(
                {.identity = {.certificate_chain_file = own.certificate_file, .private_key_file = own.key_file},
                 .alpn_protocols = {"two", "one"}});
            const std::string ca_file = test::authority().ca_file();
            asio::ssl::context client =
                us::create_client_context({.ca_file = ca_file, .alpn_protocols = {"one", "two"}});
            us::connection_options options = tls_from_the_start();
            options.ssl = &client;
            us::connection_options peer_options;
            peer_options.ssl = &server;
            stream_link link = co_await link_of_streams(options, peer_options);
            CHECK(link.writer.get_extra_info<"alpn_protocol">() == "two");
            CHECK(link.peer_writer.get_extra_info<"alpn_protocol">() == "two");
        });
}

TEST_CASE("get_extra_info: peername of a closed connection is still known, its socket is not")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            const auto before = link.writer.get_extra_info<"peername">();
            link.writer.close();
            co_await link.writer.wait_closed();
            CHECK(link.writer.get_extra_info<"peername">() == before);
            CHECK(!link.writer.get_extra_info<"socket">());
        });
}

TEST_CASE("start_tls: both sides go on encrypted, in both directions")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            stream_link link = co_await upgradeable_link(chunk);
            CHECK(!link.reader.is_tls());
            co_await upgrade_both(link);
            CHECK(link.reader.is_tls());
            CHECK(link.peer_reader.is_tls());
            link.writer.write("PING\n");
            const std::string ping = co_await link.peer_reader.readline();
            link.peer_writer.write("PONG\n");
            const std::string pong = co_await link.reader.readline();
            CHECK(ping == "PING\n");
            CHECK(pong == "PONG\n");
            link.writer.close();
            const std::string end = co_await link.peer_reader.readline();
            CHECK(end.empty());
            link.peer_writer.close();
            co_await link.writer.wait_closed();
            co_await link.peer_writer.wait_closed();
        });
}

TEST_CASE("start_tls: on the wire there are TLS records and nothing else from then on")
{
    test::run(
        []() -> awaitable<void>
        {
            auto tapped = co_await test::link_through_tap(upgradeable_client());
            stream_link& link = tapped.link;
            link.writer.write("STARTTLS\n");
            const std::string line = co_await link.peer_reader.readline();
            CHECK(line == "STARTTLS\n");
            link.peer_writer.write("220 go\n");
            const std::string go = co_await link.reader.readline();
            CHECK(go == "220 go\n");
            co_await upgrade_both(link);
            link.writer.write("a secret\n");
            const std::string secret = co_await link.peer_reader.readline();
            link.peer_writer.write("another secret\n");
            const std::string another = co_await link.reader.readline();
            CHECK(secret == "a secret\n");
            CHECK(another == "another secret\n");
            link.writer.close();
            link.peer_writer.close();
            co_await link.writer.wait_closed();
            co_await link.peer_writer.wait_closed();

            const std::string_view up = tapped.tap->client_to_server();
            const std::string_view down = tapped.tap->server_to_client();
            REQUIRE(up.starts_with("STARTTLS\n"));
            REQUIRE(down.starts_with("220 go\n"));
            CHECK(test::tls_records(up.substr(9)).all_tls);
            CHECK(test::tls_records(down.substr(7)).all_tls);
            CHECK(up.find("secret") == up.npos);
            CHECK(down.find("secret") == down.npos);
        });
}

TEST_CASE("start_tls: what was queued in plain text is sent first, in order")
{
    const auto chunk = GENERATE(std::size_t(64), std::size_t(1024), std::size_t(0));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_client(), chunk);
            const std::string sent = test::pattern(9).bytes(0, chunk == 0 ? 4 * 1024 * 1024 : 20'000);
            link.writer.write(sent);
            link.writer.write("STARTTLS\n");
            auto peer = run_in_thread(
                [&]
                {
                    std::string plain = link.peer.recv_exactly(sent.size() + 9);
                    link.peer.tls_accept(test::localhost_server());
                    return plain;
                });
            std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
            const std::string plain = co_await joined(std::move(peer));
            CHECK((plain == sent + "STARTTLS\n"));
            link.writer.write("encrypted");
            const std::string encrypted = co_await peer_receives(link, 9);
            CHECK(encrypted == "encrypted");
        });
}

TEST_CASE("start_tls: the old handles throw errc::connection_upgraded from then on")
{
    test::run(
        []() -> awaitable<void>
        {
            stream_link link = co_await upgradeable_link();
            us::stream_reader old_reader = link.reader;
            us::stream_writer old_writer = link.writer;
            co_await upgrade_both(link);

            std::vector<test::named_operation> operations = test::operations_of(old_reader, old_writer);
            operations.insert(operations.end(),
                              {{"at_eof",
                                [&]() -> awaitable<void>
                                {
                                    old_reader.at_eof();
                                    co_return;
                                }},
                               {"drain", [&]() -> awaitable<void> { co_await old_writer.drain(); }},
                               {"wait_closed", [&]() -> awaitable<void> { co_await old_writer.wait_closed(); }},
                               {"set_write_buffer_limits", [&]() -> awaitable<void>
                                {
                                    old_writer.set_write_buffer_limits({});
                                    co_return;
                                }}});
            for (const auto& [name, operation] : operations)
            {
                CAPTURE(name);
                const std::error_code error = co_await error_of(operation());
                CHECK(error == us::errc::connection_upgraded);
            }
            CHECK(old_writer.is_closing());
            CHECK(!link.writer.is_closing());
            link.writer.write("unharmed\n");
            const std::string line = co_await link.peer_reader.readline();
            CHECK(line == "unharmed\n");
        });
}

TEST_CASE("close, abort: end the connection through a writer from before the upgrade too, and the upgrade itself")
{
    const bool aborts = GENERATE(false, true);
    const bool during = GENERATE(false, true);
    CAPTURE(aborts, during);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            stream_link link = co_await upgradeable_link();
            us::stream_writer old_writer = link.writer;
            if (during)
            {
                auto upgrading = test::spawn(executor, [&] { return link.writer.start_tls(); });
                co_await test::turns();
                CHECK(!upgrading.done());
                aborts ? old_writer.abort() : old_writer.close();
                const std::error_code error = co_await error_of(upgrading.join());
                CHECK(error);
                co_return;
            }
            co_await upgrade_both(link);
            aborts ? old_writer.abort() : old_writer.close();
            CHECK(link.writer.is_closing());
            if (aborts)
            {
                const std::error_code end = co_await error_of(link.peer_reader.readline());
                CHECK(end == asio::ssl::error::stream_truncated);
            }
            else
            {
                const std::string line = co_await link.peer_reader.readline();
                CHECK(line == "");
            }
            link.peer_writer.close();
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("start_tls: the old handles going out of scope leaves the connection open, the new ones close it")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            auto peer = run_in_thread([&] { link.peer.tls_accept(test::localhost_server()); });
            {
                auto [reader, writer] = co_await link.writer.start_tls();
                co_await joined(std::move(peer));
                link.reader = reader;
                link.writer = writer;
                co_await test::turns();
                writer.write("open");
                const std::string open = co_await peer_receives(link, 4);
                CHECK(open == "open");
            }
            raw_link other = co_await link_with_raw_peer();
            link.reader = other.reader;
            link.writer = other.writer;
            const std::string rest = co_await joined(run_in_thread([&] { return link.peer.tls_read_all(); }));
            CHECK(rest.empty());
            link.peer.tls_shutdown_send_only();
        });
}

TEST_CASE("start_tls: while it runs, reads, writes and a second start_tls are errc::upgrade_in_progress")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            us::stream_reader reader = link.reader;
            us::stream_writer writer = link.writer;
            auto upgrade = test::spawn(executor, [&] { return link.writer.start_tls(); });
            co_await test::turns();
            const auto operations = test::operations_of(reader, writer);
            for (const auto& [name, operation] : operations)
            {
                CAPTURE(name);
                const std::error_code error = co_await error_of(operation());
                CHECK(error == us::errc::upgrade_in_progress);
            }
            CHECK(writer.is_closing());
            co_await joined(run_in_thread([&] { link.peer.tls_accept(test::localhost_server()); }));
            std::tie(link.reader, link.writer) = co_await upgrade.join();
            link.writer.write("unharmed");
            const std::string received = co_await peer_receives(link, 8);
            CHECK(received == "unharmed");
        });
}

TEST_CASE("start_tls: with a read pending it is errc::operation_in_progress, and can be called again after")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            auto line = test::spawn(executor, [&] { return link.reader.readline(); });
            co_await test::turns();
            const std::error_code error = co_await error_of(link.writer.start_tls());
            CHECK(error == us::errc::operation_in_progress);
            link.send("220 go\n");
            const std::string go = co_await line.join();
            CHECK(go == "220 go\n");
            auto peer = run_in_thread([&] { link.peer.tls_accept(test::localhost_server()); });
            std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
            co_await joined(std::move(peer));
            CHECK(link.reader.is_tls());
        });
}

TEST_CASE("start_tls: without a context it is errc::not_upgradeable, and the connection goes on")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            const std::error_code error = co_await error_of(link.writer.start_tls());
            CHECK(error == us::errc::not_upgradeable);
            link.writer.write("plain");
            const std::string received = co_await peer_receives(link, 5);
            CHECK(received == "plain");
        });
}

TEST_CASE("start_tls: of an encrypted connection it is errc::already_tls, and the connection goes on")
{
    const bool upgraded = GENERATE(false, true);
    CAPTURE(upgraded);
    test::run(
        [=]() -> awaitable<void>
        {
            stream_link link = co_await link_of_streams(upgraded ? upgradeable_client() : tls_from_the_start());
            if (upgraded)
                co_await upgrade_both(link);
            for (us::stream_writer writer : {link.writer, link.peer_writer})
            {
                const std::error_code error = co_await error_of(writer.start_tls());
                CHECK(error == us::errc::already_tls);
            }
            link.writer.write("goes on\n");
            const std::string line = co_await link.peer_reader.readline();
            CHECK(line == "goes on\n");
        });
}

TEST_CASE("start_tls: after close it is errc::connection_closed")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            link.writer.close();
            const std::error_code error = co_await error_of(link.writer.start_tls());
            CHECK(error == us::errc::connection_closed);
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("start_tls: after the peer's end in plain text it fails at once, and closes the connection")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            link.peer.send_fin();
            const std::string nothing = co_await link.reader.readline();
            CHECK(nothing.empty());
            const std::error_code error = co_await error_of(link.writer.start_tls());
            CHECK(error == asio::error::eof);
            CHECK(link.peer.recv_all().empty());
        });
}

TEST_CASE("start_tls: options that make no sense are std::invalid_argument at the call")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            using namespace std::string_view_literals;
            for (const std::string_view name : {"*.example.org"sv, ".example.org"sv, "local\0host"sv,
                                                "b\xc3\xbc"
                                                "cher.de"sv,
                                                "a b"sv})
                CHECK_THROWS_AS(link.writer.start_tls({.server_hostname = name}), std::invalid_argument);
            CHECK_THROWS_AS(link.writer.start_tls({.received = "x"}), std::invalid_argument);
            CHECK_THROWS_AS(link.writer.start_tls({.handshake_timeout = std::chrono::seconds(0)}),
                            std::invalid_argument);
            CHECK_THROWS_AS(link.writer.start_tls({.shutdown_timeout = std::chrono::seconds(-1)}),
                            std::invalid_argument);
            link.writer.write("unharmed");
            const std::string received = co_await peer_receives(link, 8);
            CHECK(received == "unharmed");

            raw_link nameless = co_await link_with_raw_peer();
            CHECK_THROWS_AS(nameless.writer.start_tls({.ssl = &test::client_context()}), std::invalid_argument);
        });
}

TEST_CASE("start_tls: a context, role and name given at the call make any connection upgradeable")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            stream_link link = co_await link_of_streams();
            auto server = test::spawn(
                executor, [&]
                { return link.peer_writer.start_tls({.ssl = &test::server_context(), .role = us::tls_role::server}); });
            std::tie(link.reader, link.writer) =
                co_await link.writer.start_tls({.ssl = &test::client_context(), .server_hostname = "localhost"});
            std::tie(link.peer_reader, link.peer_writer) = co_await server.join();
            link.writer.write("encrypted\n");
            const std::string line = co_await link.peer_reader.readline();
            CHECK(line == "encrypted\n");
            CHECK(link.writer.get_extra_info<"version">() == "TLSv1.3");
        });
}

TEST_CASE("start_tls: another context at the call is used in place of the connection's")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            stream_link link = co_await upgradeable_link();
            auto server = test::spawn(executor, [&] { return link.peer_writer.start_tls(); });
            std::tie(link.reader, link.writer) = co_await link.writer.start_tls({.ssl = &test::tls12_client_context()});
            std::tie(link.peer_reader, link.peer_writer) = co_await server.join();
            CHECK(link.writer.get_extra_info<"version">() == "TLSv1.2");
            CHECK(link.writer.get_extra_info<"sslcontext">() == test::tls12_client_context().native_handle());
        });
}

TEST_CASE("start_tls: another server_hostname at the call is verified, and a wrong one closes the connection")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            stream_link link = co_await upgradeable_link();
            auto server = test::spawn(executor, [&] { return link.peer_writer.start_tls(); });
            const auto error =
                co_await exception_of<us::tls_error>(link.writer.start_tls({.server_hostname = "other.example"}));
            CHECK(error.verify_result() == X509_V_ERR_HOSTNAME_MISMATCH);
            CHECK(std::string(error.what()).find("other.example") != std::string::npos);
            CHECK(error.received().empty());
            CHECK(link.writer.is_closing());
            CHECK(!link.writer.get_extra_info<"socket">());
            const std::error_code refused = co_await error_of(server.join());
            CHECK(refused);
            CHECK(link.peer_writer.is_closing());
            const std::error_code read = co_await error_of(link.reader.read(1));
            CHECK(read == us::errc::connection_closed);
        });
}

TEST_CASE("start_tls: a server of an authority that is not trusted closes the connection")
{
    test::run(
        []() -> awaitable<void>
        {
            const std::string ca_file = test::unrelated_authority().ca_file();
            asio::ssl::context stranger = us::create_client_context({.ca_file = ca_file});
            us::connection_options options = upgradeable_client();
            options.ssl = &stranger;
            const auto executor = co_await asio::this_coro::executor;
            stream_link link = co_await link_of_streams(options);
            auto server = test::spawn(executor, [&] { return link.peer_writer.start_tls(); });
            const auto error = co_await exception_of<us::tls_error>(link.writer.start_tls());
            CHECK(error.verify_result() != X509_V_OK);
            const std::error_code reason = co_await error_of(link.writer.wait_closed());
            CHECK(reason == error.code());
            const std::error_code refused = co_await error_of(server.join());
            CHECK(refused);
        });
}

TEST_CASE("start_tls: a client refuses plain text that followed the answer, and shows it")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const std::string injected = GENERATE("250 evil\r\n", "half a lin", "\x16\x03\x01", "x");
    CAPTURE(chunk, injected);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_client(), chunk);
            link.send("220 go\r\n" + injected);
            const std::string go = co_await link.reader.readline();
            CHECK(go == "220 go\r\n");
            if (chunk == 1)
                link.peer.send_fin(); // so that a handshake which saw too few bytes ends
            us::stream_reader reader = link.reader;
            const auto error = co_await exception_of<us::tls_error>(link.writer.start_tls());
            if (chunk != 1 || injected[0] != '\x16')
            {
                if (chunk == 0 || injected[0] != '\x16')
                    CHECK(error.code() == us::errc::plaintext_injection);
                if (error.code() == us::errc::plaintext_injection)
                {
                    CHECK(!error.received().empty());
                    CHECK(injected.starts_with(error.received()));
                }
                if (chunk == 0)
                    CHECK(error.received() == injected);
            }
            CHECK(link.writer.is_closing());
            CHECK(!link.writer.get_extra_info<"socket">());
            const std::error_code read = co_await error_of(reader.read(1));
            CHECK(read == us::errc::connection_closed);
            const std::string seen = co_await peer_receives_to_the_end(link);
            CHECK(test::only_tls(seen));
        });
}

TEST_CASE("start_tls: a client that finds plain text in its buffer sends nothing of the handshake")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            link.send("220 go\r\n250 evil\r\n");
            const std::string go = co_await link.reader.readline();
            const auto error = co_await exception_of<us::tls_error>(link.writer.start_tls());
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == "250 evil\r\n");
            const std::string seen = co_await peer_receives_to_the_end(link);
            CHECK(seen.empty());
        });
}

TEST_CASE("start_tls: a server refuses plain text that followed STARTTLS, and shows it")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const std::string injected = GENERATE("EVIL command\r\n", "half a command");
    CAPTURE(chunk, injected);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_server(), chunk);
            link.send("STARTTLS\r\n" + injected);
            const std::string line = co_await link.reader.readline();
            CHECK(line == "STARTTLS\r\n");
            const auto error = co_await exception_of<us::tls_error>(link.writer.start_tls());
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(!error.received().empty());
            CHECK(injected.starts_with(error.received()));
            if (chunk == 0)
                CHECK(error.received() == injected);
            CHECK(link.writer.is_closing());
            CHECK(!link.writer.get_extra_info<"socket">());
            const std::error_code read = co_await error_of(link.reader.read(1));
            CHECK(read == us::errc::connection_closed);
            const std::string seen = co_await peer_receives_to_the_end(link);
            CHECK(test::only_tls(seen));
        });
}

TEST_CASE("start_tls: what an injection shows is bounded to 512 bytes")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_server());
            link.send("STARTTLS\r\n" + std::string(3000, 'x'));
            co_await link.reader.readline();
            const auto error = co_await exception_of<us::tls_error>(link.writer.start_tls());
            CHECK(error.received() == std::string(512, 'x'));
        });
}

TEST_CASE("start_tls: an answer in plain text during the handshake is shown")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            auto upgrade = test::spawn(executor, [&] { return link.writer.start_tls(); });
            co_await test::turns();
            link.send("454 TLS not available\r\n");
            const auto error = co_await exception_of<us::tls_error>(upgrade.join());
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == "454 TLS not available\r\n");
            CHECK_THAT(error.what(), test::contains("answered with \"454 TLS not available\""));
        });
}

TEST_CASE("start_tls: what a peer sent in place of TLS is shown in one line, whatever it is")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            link.send("\x1b[2J\n" + std::string(200, 'x'));
            const auto error = co_await exception_of<us::tls_error>(link.writer.start_tls());
            CHECK_THAT(error.what(), test::contains("answered with \"\\x1b[2J\\x0a" + std::string(95, 'x') + "...\""));
        });
}

TEST_CASE("start_tls: a ClientHello in the same segment as STARTTLS is taken for the handshake")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    CAPTURE(chunk, version);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_server(), chunk);
            auto peer = run_in_thread(
                [&]
                {
                    test::tls_settings settings = test::localhost_client();
                    settings.max_version = version;
                    settings.send_before = "STARTTLS\n";
                    link.peer.tls_connect(settings);
                });
            const std::string line = co_await link.reader.readline();
            CHECK(line == "STARTTLS\n");
            std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
            co_await joined(std::move(peer));
            link.send("PING\n");
            const std::string ping = co_await link.reader.readline();
            CHECK(ping == "PING\n");
            link.writer.write("PONG\n");
            const std::string pong = co_await peer_receives(link, 5);
            CHECK(pong == "PONG\n");
        });
}

TEST_CASE("start_tls: plain text behind a ClientHello fails, closes the connection and reaches nobody")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(chunk);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_server(), chunk);
            auto peer = run_in_thread(
                [&]
                {
                    test::tls_settings settings = test::localhost_client();
                    settings.send_before = "STARTTLS\n";
                    settings.send_after = "EVIL\n";
                    try
                    {
                        link.peer.tls_connect(settings);
                        link.peer.tls_read_all();
                    }
                    catch (const std::exception&)
                    {
                        return;
                    }
                    throw test::failure("the peer's TLS session ended cleanly");
                });
            const std::string line = co_await link.reader.readline();
            CHECK(line == "STARTTLS\n");
            const auto error = co_await exception_of<us::tls_error>(link.writer.start_tls());
            CHECK(error.code());
            CHECK(link.writer.is_closing());
            CHECK(!link.writer.get_extra_info<"socket">());
            co_await joined(std::move(peer));
            const std::error_code read = co_await error_of(link.reader.read(1));
            CHECK(read == us::errc::connection_closed);
        });
}

TEST_CASE("start_tls: a peer that is silent is errc::handshake_timeout, and the connection is closed")
{
    const bool is_client = GENERATE(true, false);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(is_client ? upgradeable_client() : upgradeable_server());
            const std::error_code error = co_await error_of(link.writer.start_tls({.handshake_timeout = soon}));
            CHECK(error == us::errc::handshake_timeout);
            CHECK(error == std::errc::timed_out);
            CHECK(link.writer.is_closing());
            CHECK(!link.writer.get_extra_info<"socket">());
            const std::error_code reason = co_await error_of(link.writer.wait_closed());
            CHECK(reason == us::errc::handshake_timeout);
            co_await peer_receives_to_the_end(link);
        });
}

TEST_CASE("start_tls: the connection's handshake timeout holds when the call gives none")
{
    test::run(
        []() -> awaitable<void>
        {
            us::connection_options options = upgradeable_client();
            options.ssl_handshake_timeout = soon;
            raw_link link = co_await link_with_raw_peer(options);
            const std::error_code error = co_await error_of(link.writer.start_tls());
            CHECK(error == us::errc::handshake_timeout);
        });
}

TEST_CASE("start_tls: the handshake timeout covers sending what was queued in plain text")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            link.writer.write(std::string(16 * 1024 * 1024, 'x'));
            const std::error_code error = co_await error_of(link.writer.start_tls({.handshake_timeout = soon}));
            CHECK(error == us::errc::handshake_timeout);
            CHECK(link.writer.is_closing());
            CHECK(!link.writer.get_extra_info<"socket">());
        });
}

TEST_CASE("start_tls: cancelled at any moment it closes the connection, and no descriptor is left")
{
    const std::size_t queued = GENERATE(std::size_t(0), std::size_t(16 * 1024 * 1024));
    const int moment = GENERATE(0, 1, 2, 3, 5, 10, 20);
    CAPTURE(queued, moment);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            const std::size_t before = test::open_descriptors();
            {
                raw_link link = co_await link_with_raw_peer(upgradeable_client());
                link.writer.write(std::string(queued, 'x'));
                auto upgrade = test::spawn(
                    executor, [&] { return link.writer.start_tls({.handshake_timeout = std::chrono::seconds(5)}); });
                co_await test::turns(moment);
                upgrade.cancel();
                const std::error_code error = co_await error_of(upgrade.join());
                CHECK(error == asio::error::operation_aborted);
                if (moment >= 5)
                {
                    CHECK(link.writer.is_closing());
                    CHECK(!link.writer.get_extra_info<"socket">());
                    const std::error_code read = co_await error_of(link.reader.read(1));
                    CHECK(read == us::errc::connection_closed);
                }
            }
            co_await test::eventually([before] { return test::open_descriptors() == before; });
        });
}

TEST_CASE("start_tls: close while it runs ends it, and the connection is closed")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            auto upgrade = test::spawn(executor, [&] { return link.writer.start_tls(); });
            co_await test::turns();
            link.writer.close();
            const std::error_code error = co_await error_of(upgrade.join());
            CHECK(error);
            CHECK(link.writer.is_closing());
            CHECK(!link.writer.get_extra_info<"socket">());
        });
}

TEST_CASE("start_tls: the handles may be assigned while it runs")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            raw_link other = co_await link_with_raw_peer();
            auto upgrade = test::spawn(executor, [&] { return link.writer.start_tls(); });
            co_await test::turns();
            link.reader = other.reader;
            link.writer = other.writer;
            co_await joined(run_in_thread([&] { link.peer.tls_accept(test::localhost_server()); }));
            std::tie(link.reader, link.writer) = co_await upgrade.join();
            link.writer.write("encrypted");
            const std::string received = co_await peer_receives(link, 9);
            CHECK(received == "encrypted");
        });
}

TEST_CASE("start_tls: a handshake that the peer ends closes the connection, and reads never see plain text again")
{
    const bool reset = GENERATE(false, true);
    CAPTURE(reset);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(upgradeable_client());
            auto upgrade = test::spawn(executor, [&] { return link.writer.start_tls(); });
            co_await test::turns();
            if (reset)
                link.peer.reset();
            else
                link.peer.send_fin();
            const auto error = co_await exception_of<us::tls_error>(upgrade.join());
            CHECK(error.code());
            CHECK(error.code() != us::errc::plaintext_injection);
            CHECK(link.writer.is_closing());
            CHECK_THROWS_AS(link.writer.write("x"), std::system_error);
            const std::error_code read = co_await error_of(link.reader.read(1));
            CHECK(read == us::errc::connection_closed);
        });
}

// stop_tls

TEST_CASE("stop_tls: a pair goes back to plain text and over to TLS again, and each time the old handles are void")
{
    const us::tls_role role = GENERATE(us::tls_role::client, us::tls_role::server);
    const std::size_t chunk = GENERATE(std::size_t(1), std::size_t(5), std::size_t(64), std::size_t(1024), std::size_t(0));
    CAPTURE(role, chunk);
    constexpr int rounds = 3;
    test::run(
        [&]() -> awaitable<void>
        {
            us::connection_options options;
            options.ssl = role == us::tls_role::client ? &test::client_context() : &test::server_context();
            options.upgradeable = true;
            options.role = role;
            raw_link link = co_await link_with_raw_peer(options, chunk);
            auto playing = run_in_thread(
                                [=, raw = std::move(link.peer)]() mutable
                                {
                                    for (int i = 0; i < rounds; ++i)
                                    {
                                        raw.send_all(raw.recv_line());
                                        role == us::tls_role::client ? raw.tls_accept(test::localhost_server())
                                                                    : raw.tls_connect(test::localhost_client());
                                        raw.tls_write(raw.tls_read_line() + "unread\n");
                                        if (raw.tls_read_all() != "queued\n")
                                            throw test::failure("what was queued did not come through TLS");
                                        raw.send_all(raw.tls_unsent([&] { raw.tls_shutdown_send_only(); }) + "plain\n");
                                    }
                                    raw.send_all(raw.recv_line());
                                });
            for (int i = 0; i < rounds; ++i)
            {
                link.writer.write("go over\n");
                const std::string over = co_await link.reader.readline();
                CHECK(over == "go over\n");
                std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
                link.writer.write("encrypted\n");
                const std::string encrypted = co_await link.reader.readline();
                CHECK(encrypted == "encrypted\n");
                CHECK(link.writer.get_extra_info<"ssl_object">() != nullptr);
                us::stream_reader old_reader = link.reader;
                us::stream_writer old_writer = link.writer;
                link.writer.write("queued\n");
                std::tie(link.reader, link.writer) = co_await link.writer.stop_tls();
                CHECK_FALSE(link.reader.is_tls());
                CHECK(link.writer.get_extra_info<"ssl_object">() == nullptr);
                CHECK_FALSE(link.writer.get_extra_info<"version">());
                CHECK_THROWS_AS(old_writer.write("x"), std::system_error);
                const std::error_code old = co_await error_of(old_reader.readline());
                CHECK(old == us::errc::connection_upgraded);
                const std::string unread = co_await link.reader.readline();
                CHECK(unread == "unread\n");
                const std::string plain = co_await link.reader.readline();
                CHECK(plain == "plain\n");
            }
            link.writer.write("the end\n");
            const std::string last = co_await link.reader.readline();
            CHECK(last == "the end\n");
            co_await test::joined(std::move(playing));
            const std::string end = co_await link.reader.readline();
            CHECK(end.empty());
        });
}

TEST_CASE("stop_tls: both ends of a connection agree on it in either order")
{
    const bool answered_first = GENERATE(false, true);
    CAPTURE(answered_first);
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options;
            options.ssl = &test::client_context();
            stream_link link = co_await link_of_streams(options);
            for (int i = 0; i < 3; ++i)
            {
                auto other = test::spawn(executor,
                                         [&]() -> awaitable<void>
                                         {
                                             if (answered_first)
                                             {
                                                 const std::string end = co_await link.peer_reader.read();
                                                 if (!end.empty())
                                                     throw test::failure("data in place of a close_notify");
                                             }
                                             std::tie(link.peer_reader, link.peer_writer) =
                                                 co_await link.peer_writer.stop_tls();
                                         });
                std::tie(link.reader, link.writer) = co_await link.writer.stop_tls();
                co_await other.join();
                link.writer.write("plain\n");
                const std::string plain = co_await link.peer_reader.readline();
                CHECK(plain == "plain\n");
                co_await upgrade_both(link);
                link.writer.write("encrypted\n");
                const std::string encrypted = co_await link.peer_reader.readline();
                CHECK(encrypted == "encrypted\n");
            }
        });
}

TEST_CASE("stop_tls: what a pair cannot do now leaves it as it was")
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options;
            options.ssl = &test::client_context();
            options.upgradeable = true;
            stream_link link = co_await link_of_streams(options);
            const std::error_code plain = co_await error_of(link.writer.stop_tls());
            CHECK(plain == us::errc::not_tls);
            co_await upgrade_both(link);
            auto reading = test::spawn(executor, [&] { return link.reader.readline(); });
            co_await test::turns();
            const std::error_code busy = co_await error_of(link.writer.stop_tls());
            CHECK(busy == us::errc::operation_in_progress);
            link.peer_writer.write("still here\n");
            const std::string line = co_await reading.join();
            CHECK(line == "still here\n");
        });
}

TEST_CASE("stop_tls: while it runs nothing is read or written, and a peer that is silent is dropped in time")
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options;
            options.ssl = &test::client_context();
            options.ssl_shutdown_timeout = std::chrono::milliseconds(200);
            raw_link link = co_await link_with_raw_peer(options);
            auto stopping = test::spawn(executor, [&] { return link.writer.stop_tls(); });
            co_await test::turns();
            CHECK_THROWS_AS(link.writer.write("x"), std::system_error);
            const std::error_code reading = co_await error_of(link.reader.readline());
            CHECK(reading == us::errc::upgrade_in_progress);
            const std::error_code second = co_await error_of(link.writer.stop_tls());
            CHECK(second == us::errc::upgrade_in_progress);
            const std::error_code late = co_await error_of(stopping.join());
            CHECK(late == us::errc::shutdown_timeout);
            CHECK(link.writer.is_closing());
            CHECK_FALSE(link.writer.get_extra_info<"socket">());
        });
}
