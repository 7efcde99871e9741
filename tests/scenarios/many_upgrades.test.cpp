// The client sends STARTTLS and begins the handshake without waiting for an answer, so that its ClientHello may arrive
// together with the line. asyncio lost 71 of 96 such upgrades.

#include "support/catch.hpp"
#include "support/deadline.hpp"
#include "support/echo_server.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/thread.hpp"

#include <asio/awaitable.hpp>
#include <asio/ssl/context.hpp>
#include <asio/this_coro.hpp>

#include <chrono>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

namespace us = upgradeable_streams;

namespace
{

constexpr int all_upgrades = test::under_sanitizer ? 640 : 10'000;
constexpr int at_once = 64;
constexpr std::chrono::seconds limit(test::under_sanitizer ? 300 : 110);

/// Connects, upgrades, and has a line sent back, until no upgrade is left to do.
asio::awaitable<void> upgrade_again_and_again(std::uint16_t port, asio::ssl::context& ssl, int& left, int& done)
{
    while (left > 0)
    {
        const std::string line = "upgrade " + std::to_string(left--) + "\n";
        auto [reader, writer] = co_await us::open_connection(
            "127.0.0.1", port, {.ssl = &ssl, .upgradeable = true, .server_hostname = "localhost"});
        writer.write("STARTTLS\n");
        std::tie(reader, writer) = co_await writer.start_tls();
        writer.write(line);
        const std::string answer = co_await reader.readline();
        if (answer == line && reader.is_tls())
            ++done;
        writer.close();
        co_await writer.wait_closed();
    }
}

} // namespace

TEST_CASE("many upgrades: none is lost when 64 clients at once do not wait for an answer to STARTTLS")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::server_context();
            asio::ssl::context client_ssl = test::client_context();
            const test::error_log errors;
            us::server server = co_await us::start_server(
                test::echo, "127.0.0.1", 0, {.ssl = &server_ssl, .upgradeable = true, .error_handler = errors});
            const std::uint16_t port = server.sockets().at(0).port;
            int left = all_upgrades;
            int done = 0;
            const auto executor = co_await asio::this_coro::executor;
            std::vector<test::task<void>> clients;
            for (int i = 0; i < at_once; ++i)
                clients.push_back(
                    test::spawn(executor, [&] { return upgrade_again_and_again(port, client_ssl, left, done); }));
            for (const auto& client : clients)
                co_await client.join();
            CHECK(done == all_upgrades);
            server.close();
            co_await server.wait_closed();
            CHECK(errors.size() == 0);
        },
        limit);
}

TEST_CASE("many upgrades: none is lost when the ClientHello is in the same segment as STARTTLS")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context ssl = test::server_context();
            const test::error_log errors;
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0,
                                                          {.ssl = &ssl, .upgradeable = true, .error_handler = errors});
            const auto upgrades = [endpoint = test::endpoint_of(server)]
            {
                test::tls_settings settings = test::localhost_client();
                settings.send_before = "STARTTLS\n";
                int done = 0;
                for (int i = 0; i < 200; ++i)
                {
                    auto peer = test::raw_peer::connect(endpoint);
                    peer.tls_connect(settings);
                    peer.tls_write("hello\n");
                    done += peer.tls_read_line() == "hello\n";
                    peer.tls_shutdown();
                }
                return done;
            };
            const int done = co_await test::joined(test::run_in_thread(upgrades));
            CHECK(done == 200);
            server.close();
            co_await server.wait_closed();
            CHECK(errors.size() == 0);
        },
        limit);
}
