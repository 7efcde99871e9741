// Looked at from outside: what passes on the wire once a connection is upgraded.

#include "support/catch.hpp"
#include "support/chunked_stream.hpp"
#include "support/echo_server.hpp"
#include "support/run.hpp"
#include "support/tls_records.hpp"
#include "support/wire_tap.hpp"

#include <asio/awaitable.hpp>
#include <asio/ssl/context.hpp>
#include <asio/this_coro.hpp>

#include <string>
#include <string_view>
#include <tuple>

namespace us = upgradeable_streams;

namespace
{

/// Whether any 8 bytes in a row of `secret` are in `bytes`.
bool reveals(std::string_view bytes, std::string_view secret)
{
    for (std::size_t i = 0; i + 8 <= secret.size(); ++i)
        if (bytes.find(secret.substr(i, 8)) != bytes.npos)
            return true;
    return false;
}

} // namespace

TEST_CASE("wire: every byte after the upgrade is of a TLS record, and no secret can be seen")
{
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    INFO("chunks of " << chunk << " bytes");
    test::run(
        [chunk]() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            asio::ssl::context client_ssl = test::make_client_context();
            us::server server =
                co_await us::start_server(test::echo, "127.0.0.1", 0, {.ssl = &server_ssl, .upgradeable = true});
            test::wire_tap tap(co_await asio::this_coro::executor, test::endpoint_of(server), chunk);
            const std::string secret = "correct horse battery staple\n";

            auto [reader, writer] =
                co_await us::open_connection("127.0.0.1", tap.port(), {.ssl = &client_ssl, .upgradeable = true});
            writer.write("in plain text\n");
            const std::string plain = co_await reader.readline();
            CHECK(plain == "in plain text\n");
            writer.write("STARTTLS\n");
            std::tie(reader, writer) = co_await writer.start_tls();
            for (int i = 0; i < 3; ++i)
            {
                writer.write(secret);
                const std::string answer = co_await reader.readline();
                CHECK(answer == secret);
            }
            writer.close();
            co_await writer.wait_closed();
            server.close();
            co_await server.wait_closed();

            const std::string_view from_client = tap.client_to_server();
            const std::string_view from_server = tap.server_to_client();
            const std::string_view plain_from_client = "in plain text\nSTARTTLS\n";
            const std::string_view plain_from_server = "in plain text\n";
            REQUIRE(from_client.starts_with(plain_from_client));
            REQUIRE(from_server.starts_with(plain_from_server));
            for (const auto& encrypted :
                 {from_client.substr(plain_from_client.size()), from_server.substr(plain_from_server.size())})
            {
                const test::tls_scan scan = test::tls_records(encrypted);
                CHECK(scan.all_tls);
                REQUIRE(scan.records.size() > 4);
                CHECK(scan.records.front().type == test::tls_record::handshake);
                CHECK(scan.records.back().type == test::tls_record::application_data); // close_notify, in TLS 1.3
                CHECK_FALSE(reveals(encrypted, secret));
                CHECK_FALSE(reveals(encrypted, "in plain text\n"));
            }
            tap.close();
        });
}

TEST_CASE("wire: what was written before the upgrade leaves in plain text before it, and nothing after it does")
{
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    INFO("chunks of " << chunk << " bytes");
    test::run(
        [chunk]() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            asio::ssl::context client_ssl = test::make_client_context();
            const std::string greeting(3000, 'g');
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                co_await reader.readline();
                writer.write(greeting);
                writer.write("220 ready\n");
                std::tie(reader, writer) = co_await writer.start_tls();
                writer.write("250 a secret of the server\n");
                co_await reader.readline();
            };
            us::server server =
                co_await us::start_server(handle, "127.0.0.1", 0, {.ssl = &server_ssl, .upgradeable = true});
            test::wire_tap tap(co_await asio::this_coro::executor, test::endpoint_of(server), chunk);

            auto [reader, writer] =
                co_await us::open_connection("127.0.0.1", tap.port(), {.ssl = &client_ssl, .upgradeable = true});
            writer.write("STARTTLS\n");
            co_await reader.readuntil("220 ready\n");
            std::tie(reader, writer) = co_await writer.start_tls();
            const std::string secret = co_await reader.readline();
            CHECK(secret == "250 a secret of the server\n");
            writer.close();
            co_await writer.wait_closed();
            server.close();
            co_await server.wait_closed();

            const std::string plain = greeting + "220 ready\n";
            const std::string_view from_server = tap.server_to_client();
            REQUIRE(from_server.starts_with(plain));
            CHECK(test::tls_records(from_server.substr(plain.size())).all_tls);
            CHECK_FALSE(reveals(from_server, "250 a secret of the server\n"));
            const std::string_view from_client = tap.client_to_server();
            REQUIRE(from_client.starts_with("STARTTLS\n"));
            CHECK(test::tls_records(from_client.substr(9)).all_tls);
            tap.close();
        });
}
