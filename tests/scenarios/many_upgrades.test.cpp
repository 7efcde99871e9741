// The client sends STARTTLS and begins the handshake without waiting for an answer, so that its ClientHello may arrive
// together with the line. asyncio lost 71 of 96 such upgrades.

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/deadline.hpp"
#include "support/descriptors.hpp"
#include "support/echo_server.hpp"
#include "support/memory.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/thread.hpp"

#include <asio/awaitable.hpp>
#include <asio/ssl/context.hpp>
#include <asio/this_coro.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

namespace us = upgradeable_streams;

namespace
{

constexpr int all_upgrades = test::under_sanitizer ? 1'000 : 100'000;
constexpr int first_upgrades = all_upgrades / 100;
constexpr int at_once = 64;
constexpr std::chrono::seconds limit(900);

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

/// Runs clients on an io_context of their own. Returns: how many upgrades were not lost.
int upgrade_many(int count, std::uint16_t port, asio::ssl::context& ssl)
{
    int left = count;
    int done = 0;
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            std::vector<test::task<void>> clients;
            for (int i = 0; i < at_once; ++i)
                clients.push_back(
                    test::spawn(executor, [&] { return upgrade_again_and_again(port, ssl, left, done); }));
            for (const auto& client : clients)
                co_await client.join();
        },
        limit);
    return done;
}

} // namespace

TEST_CASE("many upgrades: none is lost when 64 clients at once do not wait for an answer, and none leaves anything")
{
    asio::ssl::context server_ssl = test::make_server_context();
    asio::ssl::context client_ssl = test::make_client_context();
    const auto upgrade = [&](int count)
    {
        const test::error_log errors;
        const auto serve = [&]() -> asio::awaitable<int>
        {
            us::server server = co_await us::start_server(
                test::echo, "127.0.0.1", 0, {.ssl = &server_ssl, .upgradeable = true, .error_handler = errors});
            const auto clients = [&, port = server.sockets().at(0).port]
            { return upgrade_many(count, port, client_ssl); };
            const int done = co_await test::joined(test::run_in_thread(clients));
            server.close();
            co_await server.wait_closed();
            co_return done;
        };
        CHECK(test::run(serve, limit) == count);
        CHECK(errors.size() == 0);
    };
    upgrade(first_upgrades);
    const std::size_t descriptors = test::open_descriptors();
    const test::memory_use memory = test::allocated();
    const std::size_t all_memory = test::live_bytes();
    upgrade(all_upgrades - first_upgrades);
    const test::memory_use memory_after = test::allocated();
    const std::size_t all_memory_after = test::live_bytes();
    CHECK(test::open_descriptors() == descriptors);
    CHECK(memory_after.allocations == memory.allocations);
    CHECK(memory_after.bytes == memory.bytes);
    CHECK(all_memory_after < all_memory + 1024 * 1024);
}

TEST_CASE("many upgrades: none is lost when the ClientHello is in the same segment as STARTTLS")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context ssl = test::make_server_context();
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
