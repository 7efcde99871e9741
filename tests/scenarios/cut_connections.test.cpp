// A session between a client and a server that a relay ends, with a FIN or a RST, after so many bytes and so many more.

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/deadline.hpp"
#include "support/descriptors.hpp"
#include "support/echo_server.hpp"
#include "support/run.hpp"
#include "support/wire_tap.hpp"

#include <asio/awaitable.hpp>
#include <asio/ssl/context.hpp>
#include <asio/this_coro.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>

namespace us = upgradeable_streams;

namespace
{

struct talk
{
    int answers = 0; ///< Of three.
    bool upgraded = false;
    bool clean_end = false; ///< Whether the server's end was found, and no error.
};

/// Has one line answered in plain text and two in TLS; the third asks the server to end.
asio::awaitable<talk> converse(std::uint16_t port, asio::ssl::context& ssl)
{
    talk made;
    try
    {
        auto [reader, writer] = co_await us::open_connection(
            "127.0.0.1", port, {.ssl = &ssl, .upgradeable = true, .server_hostname = "localhost"});
        for (const std::string line : {"plain\n", "secure\n", "QUIT\n"})
        {
            writer.write(line);
            const std::string answer = co_await reader.readline();
            if (answer != line)
                co_return made;
            ++made.answers;
            if (made.upgraded)
                continue;
            writer.write("STARTTLS\n");
            std::tie(reader, writer) = co_await writer.start_tls();
            made.upgraded = true;
        }
        const std::string rest = co_await reader.read();
        made.clean_end = rest.empty();
        writer.close();
        co_await writer.wait_closed();
    }
    catch (const std::system_error&)
    {
    }
    co_return made;
}

/// As test::echo, but ends at QUIT.
asio::awaitable<void> echo_until_quit(us::stream_reader reader, us::stream_writer writer)
{
    std::string line;
    while (line != "QUIT\n")
    {
        line = co_await reader.readline();
        if (line.empty())
            co_return;
        if (line == "STARTTLS\n")
            std::tie(reader, writer) = co_await writer.start_tls();
        else
            writer.write(line);
    }
}

/// The sizes of a whole session in both directions, up to the server's close_notify.
struct sizes
{
    std::size_t from_client;
    std::size_t from_server;
};

struct cut_session
{
    talk client;
    std::size_t reported; ///< By the server.
    talk next;            ///< A session with the same server, without a relay.
    sizes passed;
};

cut_session cut(std::optional<test::wire_cut> where, asio::ssl::context& client_ssl, asio::ssl::context& server_ssl)
{
    return test::run(
        [&]() -> asio::awaitable<cut_session>
        {
            const auto executor = co_await asio::this_coro::executor;
            const test::error_log errors;
            us::server server = co_await us::start_server(
                echo_until_quit, "127.0.0.1", 0, {.ssl = &server_ssl, .upgradeable = true, .error_handler = errors});
            cut_session made{};
            {
                test::wire_tap tap(executor, test::endpoint_of(server));
                if (where)
                    tap.cut(*where);
                made.client = co_await converse(tap.port(), client_ssl);
                made.next = co_await converse(server.sockets().front().port, client_ssl);
                server.close();
                co_await server.wait_closed();
                co_await test::turns(); // the relay has read all
                made.passed = {tap.client_to_server().size(), tap.server_to_client().size()};
            }
            made.reported = errors.size();
            co_return made;
        });
}

} // namespace

TEST_CASE("cut connections: a session that ends early is never taken for a whole one, and the server goes on")
{
    asio::ssl::context client_ssl = test::make_client_context();
    asio::ssl::context server_ssl = test::make_server_context();
    if (GENERATE(false, true))
        SSL_CTX_set_max_proto_version(client_ssl.native_handle(), TLS1_2_VERSION);
    const bool from_client = GENERATE(true, false);
    const bool reset = GENERATE(false, true);

    const cut_session whole = cut({}, client_ssl, server_ssl);
    REQUIRE(whole.client.answers == 3);
    REQUIRE(whole.client.clean_end);
    REQUIRE(whole.reported == 0);
    // Certificates are signed anew each time: a session is some bytes shorter or longer than the last.
    const std::size_t end = (from_client ? whole.passed.from_client : whole.passed.from_server) + 8;
    std::size_t upgrades = 0;
    std::size_t cuts = 0;
    for (std::size_t after = 0; after < end; after += test::under_sanitizer ? 29 : 5, ++cuts)
    {
        const std::size_t descriptors = test::open_descriptors();
        const test::memory_use before = test::allocated();
        const cut_session made = cut(test::wire_cut{from_client, after, reset}, client_ssl, server_ssl);
        const test::memory_use left = test::allocated();
        const talk& client = made.client;
        INFO("after " << after << " of about " << end << " bytes: " << client.answers << " answers, " << made.reported
                      << " errors reported");
        CHECK(test::open_descriptors() == descriptors);
        CHECK(left.allocations == before.allocations);
        CHECK(left.bytes == before.bytes);
        CHECK(made.next.answers == 3);
        CHECK(made.next.clean_end);
        CHECK((client.answers == 3 || !client.clean_end));
        const bool may_overtake = reset && made.passed.from_server == after; // a RST the bytes just before it
        if (!from_client && !may_overtake)
            CHECK(client.clean_end == (client.answers == 3 && made.passed.from_server <= after));
        else if (!reset && after >= std::string_view("plain\nSTARTTLS\n").size())
            CHECK(made.reported == (client.answers == 3 ? 0 : 1));
        upgrades += client.upgraded;
    }
    CHECK(upgrades > 0);
    CHECK(upgrades < cuts);
}
