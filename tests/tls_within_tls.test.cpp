// A TLS session inside another: stream_writer::start_tls<within_tls>.

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/contexts.hpp"
#include "support/pattern.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/stream_links.hpp"
#include "support/thread.hpp"
#include "support/tlsa_records.hpp"

#include <upgradeable_streams/open_connection.hpp>
#include <upgradeable_streams/start_server.hpp>

#include <asio/awaitable.hpp>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/co_spawn.hpp>
#include <asio/ssl/error.hpp>
#include <asio/this_coro.hpp>

#include <chrono>
#include <cstddef>
#include <future>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include <poll.h>
#include <sys/socket.h>

namespace us = upgradeable_streams;
using asio::awaitable;
using test::error_of;
using test::raw_peer;
using namespace std::chrono_literals;

namespace
{

const test::issued& target_certificate()
{
    static const test::issued made = test::authority().issue({.common_name = "target", .dns_names = {"target.example"}});
    return made;
}

test::tls_settings target_server()
{
    return {.certificate_file = target_certificate().certificate_file, .key_file = target_certificate().key_file};
}

/// Until the end, or an error, of either side.
awaitable<void> relay(us::stream_reader from, us::stream_writer to)
try
{
    for (;;)
    {
        const std::string bytes = co_await from.read(64 * 1024);
        if (bytes.empty())
            break;
        to.write(bytes);
        co_await to.drain();
    }
    to.write_eof();
}
catch (const std::system_error&)
{
    to.close();
}

/// An HTTPS proxy that connects to whatever port it is asked for, and says `goodbye` behind its answer.
struct proxy
{
    std::string goodbye = {};
    bool saw_end = false;

    awaitable<void> operator()(us::stream_reader reader, us::stream_writer writer)
    {
        const std::string request = co_await reader.readuntil("\r\n\r\n");
        const std::size_t colon = request.find(':');
        auto [target_reader, target_writer] =
            co_await us::open_connection("127.0.0.1", std::uint16_t(std::stoi(request.substr(colon + 1))));
        writer.write("HTTP/1.1 200 OK\r\n\r\n" + goodbye);
        const auto executor = co_await asio::this_coro::executor;
        auto back = test::spawn(executor, [target_reader, writer] { return relay(target_reader, writer); });
        co_await relay(reader, target_writer);
        saw_end = reader.at_eof();
        co_await back.join();
    }
};

awaitable<std::pair<us::stream_reader, us::stream_writer>> connect_through(us::server& server, std::uint16_t port)
{
    const auto own = test::certificates_in(test::localhost_certificate().certificate_file).at(0);
    const std::vector records{test::record_of(own, test::tlsa::dane_ee)};
    us::connection_options options;
    options.ssl = &test::client_context();
    options.server_hostname = "localhost";
    options.tlsa_records = records; // of the proxy alone
    auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets().at(0).port, options);
    writer.write("CONNECT target.example:" + std::to_string(port) + " HTTP/1.1\r\n\r\n");
    co_await reader.readuntil("\r\n\r\n");
    co_return std::pair(std::move(reader), std::move(writer));
}

/// Runs `client(server, port)` with a proxy and a target, a raw peer on a thread for which `target(peer)` speaks.
template <typename Target, typename Client>
void run_with_proxy(proxy& relaying, Target target, Client client)
{
    test::raw_listener listener;
    auto playing = test::run_in_thread(
        [&]
        {
            raw_peer peer = listener.accept();
            target(peer);
        });
    test::run(
        [&]() -> awaitable<void>
        {
            us::server_options options;
            options.ssl = &test::server_context();
            const auto handler = [&](us::stream_reader reader, us::stream_writer writer)
            { return relaying(std::move(reader), std::move(writer)); };
            us::server server = co_await us::start_server(handler, "127.0.0.1", 0, options);
            co_await client(server, listener.port());
            server.close();
            server.close_clients();
            co_await server.wait_closed();
        });
    playing.get();
}

us::connection_options encrypted(us::tls_role role)
{
    us::connection_options options;
    options.ssl = role == us::tls_role::client ? &test::client_context() : &test::server_context();
    options.role = role;
    return options;
}

/// Both ends begin a session inside the one that there is.
awaitable<void> go_deeper(test::stream_link& link)
{
    const auto executor = co_await asio::this_coro::executor;
    auto other = test::spawn(executor,
                             [&]() -> awaitable<void>
                             {
                                 std::tie(link.peer_reader, link.peer_writer) =
                                     co_await link.peer_writer.start_tls<us::within_tls>();
                             });
    std::tie(link.reader, link.writer) = co_await link.writer.start_tls<us::within_tls>({.server_hostname = "localhost"});
    co_await other.join();
}

/// Both ends stop the innermost session.
awaitable<void> come_up(test::stream_link& link)
{
    const auto executor = co_await asio::this_coro::executor;
    auto other = test::spawn(executor, [&]() -> awaitable<void>
                             { std::tie(link.peer_reader, link.peer_writer) = co_await link.peer_writer.stop_tls(); });
    std::tie(link.reader, link.writer) = co_await link.writer.stop_tls();
    co_await other.join();
}

} // namespace

TEST_CASE("start_tls<within_tls>: through an HTTPS proxy the target is verified for its own name")
{
    proxy relaying;
    run_with_proxy(
        relaying,
        [](raw_peer& peer)
        {
            peer.tls_accept(target_server());
            peer.tls_write("hello from " + std::string(SSL_get_servername(peer.ssl(), TLSEXT_NAMETYPE_host_name)) + "\n");
            peer.tls_write(peer.tls_read_line());
            if (peer.tls_read_some() != "")
                throw test::failure("data in place of a close_notify");
            peer.tls_shutdown();
        },
        [&](us::server& server, std::uint16_t port) -> awaitable<void>
        {
            auto [reader, writer] = co_await connect_through(server, port);
            CHECK(writer.get_extra_info<"peercert">()->subject() == "CN=localhost");
            us::stream_reader old_reader = reader;
            us::stream_writer old_writer = writer;
            std::tie(reader, writer) = co_await writer.start_tls<us::within_tls>({.server_hostname = "target.example"});
            CHECK(writer.get_extra_info<"peercert">()->subject() == "CN=target");
            CHECK(writer.get_extra_info<"peername">()->port == server.sockets().at(0).port);
            CHECK(reader.is_tls());
            const std::string hello = co_await reader.readline();
            CHECK(hello == "hello from target.example\n");
            CHECK_THROWS_AS(old_writer.write("x"), std::system_error);
            const std::error_code old = co_await error_of(old_reader.readline());
            CHECK(old == us::errc::connection_upgraded);
            writer.write("over two sessions\n");
            const std::string line = co_await reader.readline();
            CHECK(line == "over two sessions\n");
            writer.close();
            co_await writer.wait_closed();
            co_await test::eventually([&] { return relaying.saw_end; });
        });
    CHECK(relaying.saw_end);
}

TEST_CASE("start_tls<within_tls>: a target that is not who it should be is refused, and the whole connection closed")
{
    proxy relaying;
    run_with_proxy(
        relaying,
        [](raw_peer& peer)
        {
            try
            {
                peer.tls_accept(target_server());
            }
            catch (const test::failure&)
            {
                return;
            }
            throw test::failure("the certificate was accepted");
        },
        [&](us::server& server, std::uint16_t port) -> awaitable<void>
        {
            auto [reader, writer] = co_await connect_through(server, port);
            const us::tls_error error = co_await test::exception_of<us::tls_error>(
                writer.start_tls<us::within_tls>({.server_hostname = "localhost"}));
            CHECK(error.verify_result() == X509_V_ERR_HOSTNAME_MISMATCH);
            CHECK_THAT(error.what(), test::contains("CN=target"));
            CHECK_THAT(error.what(), test::contains("it is for DNS:target.example"));
        });
}

TEST_CASE("start_tls<within_tls>: what came through the outer session before is never taken for the inner one")
{
    proxy relaying{.goodbye = "x"};
    run_with_proxy(
        relaying, [](raw_peer& peer) { peer.recv_all(); },
        [&](us::server& server, std::uint16_t port) -> awaitable<void>
        {
            auto [reader, writer] = co_await connect_through(server, port);
            const us::tls_error error = co_await test::exception_of<us::tls_error>(
                writer.start_tls<us::within_tls>({.server_hostname = "target.example"}));
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == "x");
        });
}

TEST_CASE("start_tls<within_tls>: three sessions inside one another carry bytes both ways, whole and in order")
{
    const std::size_t chunk = GENERATE(std::size_t(1), std::size_t(5), std::size_t(64), std::size_t(1024), std::size_t(0));
    CAPTURE(chunk);
    const std::size_t size = chunk == 1 || chunk == 5 ? 20'000 : 1'000'000;
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            test::stream_link link = co_await test::link_of_streams(encrypted(us::tls_role::client), {}, chunk);
            co_await go_deeper(link);
            co_await go_deeper(link);
            const std::string bytes = test::pattern(5).bytes(0, size);
            const auto echo = [&]() -> awaitable<void>
            {
                for (;;)
                {
                    const std::string piece = co_await link.peer_reader.read(64 * 1024);
                    if (piece.empty())
                        break;
                    link.peer_writer.write(piece);
                    co_await link.peer_writer.drain();
                }
                link.peer_writer.close();
                co_await link.peer_writer.wait_closed();
            };
            auto echoing = test::spawn(executor, echo);
            auto writing = test::spawn(executor,
                                       [&]() -> awaitable<void>
                                       {
                                           for (std::size_t sent = 0; sent < bytes.size(); sent += 30'000)
                                           {
                                               link.writer.write(bytes.substr(sent, 30'000));
                                               co_await link.writer.drain();
                                           }
                                       });
            const std::string all = co_await link.reader.readexactly(size);
            CHECK(all == bytes);
            co_await writing.join();
            link.writer.close();
            co_await link.writer.wait_closed();
            co_await echoing.join();
        });
}

TEST_CASE("start_tls<within_tls>: a connection that is plain, busy or asked for wrongly is left as it was")
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options = encrypted(us::tls_role::client);
            options.upgradeable = true;
            test::stream_link link = co_await test::link_of_streams(options);
            const std::error_code plain =
                co_await error_of(link.writer.start_tls<us::within_tls>({.server_hostname = "localhost"}));
            CHECK(plain == us::errc::not_tls);
            auto other = test::spawn(
                executor, [&]() -> awaitable<void>
                { std::tie(link.peer_reader, link.peer_writer) = co_await link.peer_writer.start_tls(); });
            std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
            co_await other.join();
            CHECK_THROWS_AS(link.writer.start_tls<us::within_tls>(), std::invalid_argument);
            auto reading = test::spawn(executor, [&] { return link.reader.readline(); });
            co_await test::turns();
            const std::error_code busy =
                co_await error_of(link.writer.start_tls<us::within_tls>({.server_hostname = "localhost"}));
            CHECK(busy == us::errc::operation_in_progress);
            link.peer_writer.write("still here\n");
            const std::string line = co_await reading.join();
            CHECK(line == "still here\n");
        });
}

TEST_CASE("start_tls<within_tls>: a cancelled read of the inner session loses nothing")
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            test::stream_link link = co_await test::link_of_streams(encrypted(us::tls_role::client));
            co_await go_deeper(link);
            asio::cancellation_signal signal;
            std::promise<std::exception_ptr> ended;
            asio::co_spawn(executor, link.reader.readline(),
                           asio::bind_cancellation_slot(signal.slot(), [&](std::exception_ptr error, std::string)
                                                        { ended.set_value(error); }));
            co_await test::turns();
            link.peer_writer.write("half ");
            co_await test::turns(50);
            signal.emit(asio::cancellation_type::terminal);
            const std::exception_ptr error = co_await test::joined(ended.get_future());
            REQUIRE(error);
            CHECK_THROWS_AS(std::rethrow_exception(error), std::system_error);
            link.peer_writer.write("and half\n");
            const std::string line = co_await link.reader.readline();
            CHECK(line == "half and half\n");
        });
}

TEST_CASE("start_tls<within_tls>: poll tells without waiting what the peer has sent through all sessions, and its end")
{
    const int depth = GENERATE(1, 2);
    const bool is_innermost_stopped = GENERATE(false, true);
    CAPTURE(depth, is_innermost_stopped);
    test::run(
        [&]() -> awaitable<void>
        {
            test::stream_link link = co_await test::link_of_streams(encrypted(us::tls_role::client));
            for (int i = 0; i < depth; ++i)
                co_await go_deeper(link);
            if (is_innermost_stopped)
                co_await come_up(link);
            us::stream_reader& reader = link.peer_reader; // the one whose sessions are over a socket
            REQUIRE(reader.is_tls() == !is_innermost_stopped);
            for (int i = 0; i < 3; ++i)
            {
                CHECK_FALSE(reader.poll());
                link.writer.write("line\n");
                co_await test::eventually([&] { return reader.poll(); });
                CHECK(reader.poll());
                CHECK_FALSE(reader.at_eof());
                const std::string line = co_await reader.readline();
                CHECK(line == "line\n");
            }
            link.writer.close();
            co_await test::eventually([&] { return reader.poll(); });
            CHECK(reader.at_eof());
            CHECK_THROWS_MATCHES(link.reader.poll(), std::system_error,
                                 test::message_contains(std::error_code(us::errc::connection_closed).message()));
            link.peer_writer.close();
            co_await link.peer_writer.wait_closed();
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("start_tls<within_tls>: the first poll tells what has come, of whatever size and though it has ended")
{
    const int depth = GENERATE(0, 1, 2);
    const auto size = GENERATE(as<std::size_t>{}, 1, 600, 4000, 20'000);
    CAPTURE(depth, size);
    test::run(
        [&]() -> awaitable<void>
        {
            test::stream_link link = co_await test::link_of_streams(encrypted(us::tls_role::client));
            for (int i = 0; i < depth; ++i)
                co_await go_deeper(link);
            us::stream_reader& reader = link.peer_reader;
            CHECK_FALSE(reader.poll());
            link.writer.write(std::string(size, 'x'));
            co_await test::eventually([&] { return link.writer.get_write_buffer_size() == 0; });
            REQUIRE(::shutdown(link.writer.get_extra_info<"socket">().value(), SHUT_WR) == 0);
            ::pollfd ended = {
                .fd = link.peer_writer.get_extra_info<"socket">().value(), .events = POLLRDHUP, .revents = 0};
            co_await test::eventually([&] { return ::poll(&ended, 1, 0) == 1; });
            CHECK(reader.poll());
            const std::string all = co_await reader.readexactly(size);
            CHECK(all == std::string(size, 'x'));
            CHECK_THROWS_AS(reader.poll(), std::system_error); // cut off
        });
}

TEST_CASE("start_tls<within_tls>: over a stream that is no socket poll is refused")
{
    test::run(
        []() -> awaitable<void>
        {
            test::stream_link link = co_await test::link_of_streams(encrypted(us::tls_role::client));
            co_await go_deeper(link);
            CHECK_THROWS_MATCHES(link.reader.poll(), std::system_error,
                                 test::message_contains("only a socket, or TLS over one, tells without waiting"));
        });
}

TEST_CASE("start_tls<within_tls>: close ends a pending read, at whatever step that is")
{
    const int lines = GENERATE(range(0, 8));
    const int turns = GENERATE(range(0, 4));
    CAPTURE(lines, turns);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options = encrypted(us::tls_role::client);
            options.ssl_shutdown_timeout = 1s;
            test::stream_link link = co_await test::link_of_streams(options);
            co_await go_deeper(link);
            for (int i = 0; i < lines; ++i)
            {
                link.peer_writer.write("line\n");
                co_await link.reader.readline();
            }
            const auto reading = test::spawn(executor, [&] { return link.reader.readline(); });
            const auto peer_reading = test::spawn(executor, [&] { return link.peer_reader.read(); });
            co_await test::turns(turns);
            link.writer.close();
            const std::error_code error = co_await error_of(reading.join());
            CHECK(error == us::errc::connection_closed);
            co_await peer_reading.join();
            link.peer_writer.close();
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("start_tls<within_tls>: the inner session can be stopped and begun again")
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            test::stream_link link = co_await test::link_of_streams(encrypted(us::tls_role::client));
            co_await go_deeper(link);
            for (int i = 0; i < 3; ++i)
            {
                co_await come_up(link);
                link.writer.write("between\n");
                const std::string between = co_await link.peer_reader.readline();
                CHECK(between == "between\n");
                auto other = test::spawn(
                    executor, [&]() -> awaitable<void>
                    { std::tie(link.peer_reader, link.peer_writer) = co_await link.peer_writer.start_tls(); });
                std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
                co_await other.join();
                link.writer.write("inside\n");
                const std::string inside = co_await link.peer_reader.readline();
                CHECK(inside == "inside\n");
            }
        });
}

TEST_CASE("start_tls<within_tls>: behind an inner session that was stopped write_eof ends the outer one's direction")
{
    test::run(
        [&]() -> awaitable<void>
        {
            test::stream_link link = co_await test::link_of_streams(encrypted(us::tls_role::client));
            co_await go_deeper(link);
            co_await come_up(link);
            CHECK(link.writer.can_write_eof());
            link.writer.write("tail");
            link.writer.write_eof();
            const std::string tail = co_await link.peer_reader.read();
            CHECK(tail == "tail");
            link.peer_writer.write("answer\n");
            const std::string answer = co_await link.reader.readline();
            CHECK(answer == "answer\n");
        });
}

TEST_CASE("start_tls<within_tls>: in plain text within TLS 1.2 there is no write_eof")
{
    test::run(
        [&]() -> awaitable<void>
        {
            us::connection_options options = encrypted(us::tls_role::client);
            options.ssl = &test::tls12_client_context();
            test::stream_link link = co_await test::link_of_streams(options);
            co_await go_deeper(link);
            co_await come_up(link);
            CHECK_FALSE(link.writer.can_write_eof());
            CHECK_THROWS_AS(link.writer.write_eof(), std::system_error);
            link.writer.write("unharmed\n");
            const std::string line = co_await link.peer_reader.readline();
            CHECK(line == "unharmed\n");
        });
}

TEST_CASE("start_tls<within_tls>: while it runs the old handles can close, and afterwards tell that they did")
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            test::stream_link link = co_await test::link_of_streams(encrypted(us::tls_role::client));
            auto upgrading = test::spawn(
                executor, [&] { return link.writer.start_tls<us::within_tls>({.server_hostname = "localhost"}); });
            co_await test::turns();
            const std::error_code reading = co_await error_of(link.reader.readline());
            CHECK(reading == us::errc::upgrade_in_progress);
            CHECK_FALSE(upgrading.done());
            link.writer.close();
            const std::error_code ended = co_await error_of(upgrading.join());
            CHECK(ended);
            CHECK(link.writer.is_closing());
            CHECK_FALSE(link.writer.get_extra_info<"socket">());
        });
}

TEST_CASE("start_tls<within_tls>: operation_timeout holds for the inner pair's reads, and costs neither session")
{
    test::run(
        [&]() -> awaitable<void>
        {
            us::connection_options options = encrypted(us::tls_role::client);
            options.operation_timeout = 5ms;
            test::stream_link link = co_await test::link_of_streams(options);
            co_await go_deeper(link);
            for (int i = 0; i < 3; ++i)
            {
                const std::error_code late = co_await error_of(link.reader.readline());
                CHECK(late == us::errc::operation_timeout);
            }
            link.writer.set_operation_timeout({});
            link.peer_writer.write("still here\n");
            const std::string line = co_await link.reader.readline();
            CHECK(line == "still here\n");
        });
}

TEST_CASE("start_tls<within_tls>: a server that aborts its clients wakes who waits for the inner connection's end")
{
    bool was_woken = false;
    test::run(
        [&]() -> awaitable<void>
        {
            const auto handler = [&](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                std::tie(reader, writer) = co_await writer.start_tls<us::within_tls>();
                writer.write("here\n");
                co_await writer.wait_closed();
                was_woken = true;
            };
            us::server_options options;
            options.ssl = &test::server_context();
            us::server server = co_await us::start_server(handler, "127.0.0.1", 0, options);
            us::connection_options client = encrypted(us::tls_role::client);
            client.server_hostname = "localhost";
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets().at(0).port, client);
            std::tie(reader, writer) = co_await writer.start_tls<us::within_tls>({.server_hostname = "localhost"});
            const std::string line = co_await reader.readline();
            CHECK(line == "here\n");
            server.close();
            server.abort_clients();
            co_await server.wait_closed();
            const std::error_code cut = co_await error_of(reader.readline());
            CHECK(cut == asio::ssl::error::stream_truncated);
        });
    CHECK(was_woken);
}

TEST_CASE("start_tls<within_tls>: a server that closes its clients closes the inner session in order")
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto handler = [](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                std::tie(reader, writer) = co_await writer.start_tls<us::within_tls>();
                writer.write("queued\n");
                co_await reader.read();
            };
            us::server_options options;
            options.ssl = &test::server_context();
            us::server server = co_await us::start_server(handler, "127.0.0.1", 0, options);
            us::connection_options client = encrypted(us::tls_role::client);
            client.server_hostname = "localhost";
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets().at(0).port, client);
            std::tie(reader, writer) = co_await writer.start_tls<us::within_tls>({.server_hostname = "localhost"});
            const std::string line = co_await reader.readline();
            CHECK(line == "queued\n");
            server.close();
            server.close_clients();
            const std::string end = co_await reader.read(); // throws for one that is not clean
            CHECK(end.empty());
            writer.close();
            co_await writer.wait_closed();
            co_await server.wait_closed();
        });
}

TEST_CASE("start_tls<within_tls>: a server whose outer connection was lost while the inner session was open ends in order")
{
    test::run(
        []() -> awaitable<void>
        {
            bool ended = false;
            const auto handler = [&](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                std::tie(reader, writer) = co_await writer.start_tls<us::within_tls>();
                writer.write("go\n");
                ::pollfd reset = {.fd = writer.get_extra_info<"socket">().value(), .events = 0, .revents = 0};
                co_await test::eventually([&] { return ::poll(&reset, 1, 0) == 1; });
                writer.write(std::string(100'000, 'x'));
                ended = true;
            };
            const us::server_options options = {.ssl = &test::server_context()};
            us::server server = co_await us::start_server(handler, "127.0.0.1", 0, options);
            auto [reader, writer] =
                co_await us::open_connection("127.0.0.1", server.sockets().at(0).port, encrypted(us::tls_role::client));
            std::tie(reader, writer) = co_await writer.start_tls<us::within_tls>({.server_hostname = "localhost"});
            const std::string line = co_await reader.readline();
            CHECK(line == "go\n");
            test::reset_on_close(writer.get_extra_info<"socket">().value());
            writer.abort();
            co_await test::eventually([&] { return ended; });
            co_await server.shutdown(5s);
            CHECK_FALSE(server.is_serving());
        });
}
