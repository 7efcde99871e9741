#include <upgradeable_streams/server.hpp>

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/descriptors.hpp"
#include "support/echo_server.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/socket_pair.hpp"
#include "support/thread.hpp"

#include <asio/awaitable.hpp>
#include <asio/co_spawn.hpp>
#include <asio/error.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/ssl/context.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <sys/socket.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>

namespace us = upgradeable_streams;
using namespace std::chrono_literals;
using asio::ip::tcp;

namespace
{

/// A server certificate of `authority()` for localhost with this common name.
test::issued localhost_certificate_named(const std::string& common_name)
{
    test::certificate_request request;
    request.common_name = common_name;
    request.dns_names = {"localhost"};
    return test::authority().issue(request);
}

/// A handler that sends so much, and waits for a line.
auto sends(std::size_t size)
{
    return [size](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
    {
        writer.write(std::string(size, 'x'));
        co_await reader.readline();
    };
}

/// Waits until something has come to a peer, which does not read it.
asio::awaitable<void> until_sent_to(test::raw_peer& peer)
{
    const auto has_come = [&]
    {
        char byte = 0;
        return ::recv(peer.descriptor(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
    };
    co_await test::eventually(has_come);
}

} // namespace

TEST_CASE("server: serve_forever begins to serve, and returns when the server is closed")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, {.start_serving = false});
            const auto executor = co_await asio::this_coro::executor;
            const auto serving = test::spawn(executor, [&] { return server.serve_forever(); });
            co_await test::eventually([&] { return server.is_serving(); });
            const std::string answer = co_await test::ask(server, "hello\n");
            CHECK(answer == "hello\n");
            CHECK_FALSE(serving.done());

            server.close();
            co_await serving.join();
            CHECK_FALSE(server.is_serving());
            const auto error = co_await test::error_of(server.serve_forever());
            CHECK(error == us::errc::connection_closed);
            CHECK_THROWS_MATCHES(server.start_serving(), std::system_error,
                                 test::message_contains("the server was closed"));
        });
}

TEST_CASE("server: serve_forever that is cancelled closes the server")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0);
            const std::uint16_t port = server.sockets()[0].port;
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", port);
            const auto executor = co_await asio::this_coro::executor;
            const auto serving = test::spawn(executor, [&] { return server.serve_forever(); });
            co_await test::eventually([&] { return server.is_serving(); });
            writer.write("before\n");
            co_await reader.readline();

            serving.cancel();
            const auto error = co_await test::error_of(serving.join());
            CHECK(error == asio::error::operation_aborted);
            CHECK_FALSE(server.is_serving());
            CHECK(server.sockets().empty());
            co_await test::until_refused(port);
            writer.write("after\n");
            const std::string line = co_await reader.readline();
            CHECK(line == "after\n");
        });
}

TEST_CASE("server: close ends listening and leaves connections running")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0);
            const std::uint16_t port = server.sockets()[0].port;
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", port);
            writer.write("before\n");
            co_await reader.readline();

            server.close();
            server.close();
            CHECK_FALSE(server.is_serving());
            CHECK(server.sockets().empty());
            CHECK_THROWS_AS(server.start_serving(), std::system_error);
            CHECK_FALSE(server.is_serving());
            co_await test::until_refused(port);
            writer.write("after\n");
            const std::string line = co_await reader.readline();
            CHECK(line == "after\n");
        });
}

TEST_CASE("server: a server that was closed listens no more, and another may take its address at once")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0);
            const std::uint16_t port = server.sockets()[0].port;
            for (int i = 0; i < 3; ++i)
            {
                server.close();
                CHECK_THROWS(test::raw_peer::connect(test::loopback(port)));
                server = co_await us::start_server(test::echo, "127.0.0.1", port);
                const std::string line = co_await test::ask(server, "hello\n");
                CHECK(line == "hello\n");
            }
        });
}

TEST_CASE("server: a handler may close its server")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            std::optional<us::server> server;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const std::string line = co_await reader.readline();
                server->close();
                writer.write("closed by " + line);
            };
            server = co_await us::start_server(handle, "127.0.0.1", 0);
            const std::string answer = co_await test::ask(*server, "you\n");
            CHECK(answer == "closed by you\n");
            co_await server->wait_closed();
        });
}

TEST_CASE("server: wait_closed waits for the server to be closed and for its connections")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0);
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            writer.write("one\n");
            co_await reader.readline();

            const auto executor = co_await asio::this_coro::executor;
            const auto waiting = test::spawn(executor, [&] { return server.wait_closed(); });
            server.close();
            writer.write("two\n");
            co_await reader.readline();
            CHECK_FALSE(waiting.done());
            writer.close();
            co_await writer.wait_closed();
            co_await waiting.join();
        });
}

TEST_CASE("server: wait_closed that is cancelled leaves the server as it was")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0);
            const auto executor = co_await asio::this_coro::executor;
            const auto waiting = test::spawn(executor, [&] { return server.wait_closed(); });
            const std::string before = co_await test::ask(server, "before\n");
            CHECK(before == "before\n");
            waiting.cancel();
            const auto error = co_await test::error_of(waiting.join());
            CHECK(error == asio::error::operation_aborted);
            CHECK(server.is_serving());
            const std::string after = co_await test::ask(server, "after\n");
            CHECK(after == "after\n");
        });
}

TEST_CASE("server: close_clients closes each connection after what is queued was sent")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const std::size_t size = 8 * 1024 * 1024;
            const auto handle = sends(size);
            const test::error_log errors;
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.error_handler = errors});
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            std::string received = co_await reader.readexactly(1);
            server.close_clients();
            received += co_await reader.read();
            CHECK(received.size() == size);
            CHECK(server.is_serving());
            server.close();
            co_await server.wait_closed();
        });
}

TEST_CASE("server: a farewell goes to each client that a handler has, over TLS where there is TLS, and to no other")
{
    const bool shuts_down = GENERATE(false, true);
    test::run(
        [=]() -> asio::awaitable<void>
        {
            int lines = 0;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                for (std::string line; !(line = co_await reader.readline()).empty(); ++lines)
                    if (line == "STARTTLS\n")
                        std::tie(reader, writer) = co_await writer.start_tls();
                    else
                        writer.write(line);
            };
            const test::error_log errors;
            us::server server = co_await us::start_server(
                handle, "127.0.0.1", 0,
                {.ssl = &test::server_context(), .upgradeable = true, .detect_tls = true, .error_handler = errors});
            const us::connection_options how = {
                .ssl = &test::client_context(), .upgradeable = true, .server_hostname = "localhost"};
            const std::uint16_t port = server.sockets()[0].port;
            const auto greet = [](us::stream_pair& pair) -> asio::awaitable<void>
            {
                pair.second.write("hello\n");
                const std::string line = co_await pair.first.readline();
                CHECK(line == "hello\n");
            };
            auto plain = co_await us::open_connection("127.0.0.1", port, how);
            co_await greet(plain);
            auto upgraded = co_await us::open_connection("127.0.0.1", port, how);
            upgraded.second.write("STARTTLS\n");
            upgraded = co_await upgraded.second.start_tls();
            co_await greet(upgraded);
            auto shaking = test::raw_peer::connect(test::endpoint_of(server));
            shaking.send_all("one\nSTARTTLS\n");
            const std::string one = co_await test::joined(test::run_in_thread([&] { return shaking.recv_line(); }));
            CHECK(one == "one\n"); // the handler goes on to the handshake, which does not begin
            auto undecided = test::raw_peer::connect(test::endpoint_of(server)); // TLS, or not
            co_await test::eventually([&] { return server.connection_count() == 4; });

            const int before = lines;
            plain.second.write("last\n");
            upgraded.second.write("last\n");
            co_await test::eventually([&] { return lines == before + 2; });
            const auto executor = co_await asio::this_coro::executor;
            std::optional<test::task<void>> ending;
            if (shuts_down)
                ending.emplace(test::spawn(executor, [&] { return server.shutdown(20s, "421 bye\r\n"); }));
            else
                server.close_clients("421 bye\r\n");
            const std::string over_plain_text = co_await plain.first.read();
            CHECK(over_plain_text == "last\n421 bye\r\n");
            const std::string over_tls = co_await upgraded.first.read();
            CHECK(over_tls == "last\n421 bye\r\n");
            for (test::raw_peer* peer : {&shaking, &undecided})
            {
                const std::string rest = co_await test::joined(test::run_in_thread([&] { return peer->recv_all(); }));
                CHECK(rest.empty());
            }
            plain.second.close();
            upgraded.second.close();
            server.close();
            co_await server.wait_closed();
            if (ending)
                co_await ending->join();
            CHECK(errors.size() == 0);
        });
}

TEST_CASE("server: abort_clients closes each connection at once")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto handle = sends(64 * 1024 * 1024);
            const test::error_log errors;
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.error_handler = errors});
            auto peer = test::raw_peer::connect(test::endpoint_of(server)); // does not read
            co_await until_sent_to(peer);
            server.close();
            server.abort_clients();
            co_await server.wait_closed();
        });
}

TEST_CASE("server: shutdown closes each connection after what is queued was sent, however long its grace")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const std::size_t size = 8 * 1024 * 1024;
            const auto handle = sends(size);
            const test::error_log errors;
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.error_handler = errors});
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            std::string received = co_await reader.readexactly(1);
            const auto executor = co_await asio::this_coro::executor;
            const auto ending = test::spawn(executor, [&] { return server.shutdown(24h); });
            received += co_await reader.read();
            CHECK(received.size() == size);
            writer.close();
            co_await ending.join();
            CHECK(!server.is_serving());
            CHECK(errors.size() == 0);
            co_await server.shutdown(24h); // has nothing left to do
        });
}

TEST_CASE("server: shutdown aborts what is open when its grace has passed")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto handle = sends(64 * 1024 * 1024);
            asio::ssl::context ssl = test::make_server_context();
            const test::error_log errors;
            us::server server = co_await us::start_server(
                handle, "127.0.0.1", 0,
                {.ssl = &ssl, .upgradeable = true, .ssl_shutdown_timeout = 1h, .error_handler = errors});
            auto peer = test::raw_peer::connect(test::endpoint_of(server)); // does not read
            co_await until_sent_to(peer);
            co_await server.shutdown(50ms);
            CHECK(errors.size() == 0);
            CHECK_THROWS_AS(server.shutdown(0s), std::invalid_argument);
        });
}

TEST_CASE("server: shutdown that is cancelled aborts nothing")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto handle = sends(64 * 1024 * 1024);
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0);
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            const auto executor = co_await asio::this_coro::executor;
            const auto ending = test::spawn(executor, [&] { return server.shutdown(20ms); });
            co_await test::turns();
            ending.cancel();
            const auto error = co_await test::error_of(ending.join());
            CHECK(error == asio::error::operation_aborted);
            asio::steady_timer past_grace(executor, 40ms);
            co_await past_grace.async_wait(asio::use_awaitable);
            const std::string received = co_await reader.read();
            CHECK(received.size() == 64 * 1024 * 1024);
            CHECK(!server.is_serving());
        });
}

TEST_CASE("server: the last handle of a server that goes stops listening and leaves connections running")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            std::optional<us::server> server = co_await us::start_server(test::echo, "127.0.0.1", 0);
            std::optional<us::server> copy = server;
            const std::uint16_t port = server->sockets()[0].port;
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", port);
            writer.write("one\n");
            co_await reader.readline();

            server.reset();
            CHECK(copy->is_serving());
            const std::string answer = co_await test::ask(*copy, "by the copy\n");
            CHECK(answer == "by the copy\n");
            copy.reset();
            co_await test::until_refused(port);
            writer.write("two\n");
            const std::string line = co_await reader.readline();
            CHECK(line == "two\n");
        });
}

TEST_CASE("server: connection_count counts what is open, also while a handler that is done closes")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0);
            CHECK(server.connection_count() == 0);
            const std::uint16_t port = server.sockets()[0].port;
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", port);
            auto [other_reader, other_writer] = co_await us::open_connection("127.0.0.1", port);
            co_await test::eventually([&] { return server.connection_count() == 2; });
            writer.write_eof();
            const std::string rest = co_await reader.read();
            CHECK(rest.empty());
            co_await test::eventually([&] { return server.connection_count() == 1; });
            other_writer.abort();
            co_await test::eventually([&] { return server.connection_count() == 0; });
        });
}

TEST_CASE("server: set_ssl_context serves the new certificate to new connections and leaves running ones alone")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            std::optional<asio::ssl::context> old_ssl(
                test::make_server_context(localhost_certificate_named("the old one")));
            asio::ssl::context client_ssl = test::make_client_context();
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, {.ssl = &*old_ssl});
            const std::uint16_t port = server.sockets()[0].port;
            auto [reader, writer] =
                co_await us::open_connection("localhost", port, {.ssl = &client_ssl, .family = us::ip_family::v4});
            CHECK(writer.get_extra_info<"peercert">()->subject() == "CN=the old one");

            {
                asio::ssl::context new_ssl = test::make_server_context(localhost_certificate_named("the new one"));
                server.set_ssl_context(new_ssl);
                old_ssl.reset();
            }
            for (int i = 0; i < 2; ++i)
            {
                const auto [certificate, answer] = co_await test::ask_tls(port, client_ssl, "hello\n");
                CHECK(certificate == "CN=the new one");
                CHECK(answer == "hello\n");
                writer.write("still running\n");
                const std::string line = co_await reader.readline();
                CHECK(line == "still running\n");
            }
        });
}

TEST_CASE("server: set_ssl_context holds for upgrades of connections accepted afterwards")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context old_ssl = test::make_server_context(localhost_certificate_named("the old one"));
            asio::ssl::context new_ssl = test::make_server_context(localhost_certificate_named("the new one"));
            asio::ssl::context client_ssl = test::make_client_context();
            us::server server =
                co_await us::start_server(test::echo, "127.0.0.1", 0, {.ssl = &old_ssl, .upgradeable = true});
            const us::connection_options options = {
                .ssl = &client_ssl, .upgradeable = true, .server_hostname = "localhost"};
            const std::uint16_t port = server.sockets()[0].port;
            for (const std::string expected : {"CN=the old one", "CN=the new one"})
            {
                auto [reader, writer] = co_await us::open_connection("127.0.0.1", port, options);
                writer.write("STARTTLS\n");
                std::tie(reader, writer) = co_await writer.start_tls();
                CHECK(writer.get_extra_info<"peercert">()->subject() == expected);
                server.set_ssl_context(new_ssl);
            }
        });
}

TEST_CASE("server: set_ssl_context is refused by a server that was started without one")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context ssl = test::make_server_context();
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0);
            std::error_code error;
            try
            {
                server.set_ssl_context(ssl);
            }
            catch (const std::system_error& e)
            {
                error = e.code();
            }
            CHECK(error == us::errc::not_upgradeable);
        });
}

TEST_CASE("server: one that is empty or moved from is errc::connection_closed until it is assigned to")
{
    asio::io_context io;
    us::server server;
    const auto error_of_sockets = [&server]
    {
        try
        {
            static_cast<void>(server.sockets());
        }
        catch (const std::system_error& e)
        {
            return e.code();
        }
        return std::error_code();
    };
    CHECK(error_of_sockets() == us::errc::connection_closed);
    asio::co_spawn(io, us::start_server(test::echo, "127.0.0.1", 0),
                   [&](std::exception_ptr error, us::server started)
                   {
                       CHECK(!error);
                       server = std::move(started);
                       CHECK(server.sockets().size() == 1);
                       server.close();
                   });
    io.run();
    us::server other = std::move(server);
    CHECK(error_of_sockets() == us::errc::connection_closed);
    CHECK(!other.is_serving());
}

TEST_CASE("server: set_ssl_context refuses a context of clients")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context ssl = test::make_server_context();
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, {.ssl = &ssl});
            CHECK_THROWS_AS(server.set_ssl_context(test::client_context()), std::invalid_argument);
        });
}
