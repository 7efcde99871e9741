// Other people's clients, as far as this machine has them.

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/echo_server.hpp"
#include "support/process.hpp"
#include "support/run.hpp"
#include "support/thread.hpp"

#include <asio/awaitable.hpp>
#include <asio/ssl/context.hpp>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

namespace us = upgradeable_streams;

namespace
{

/// As much of SMTP as a client needs for STARTTLS (RFC 3207); in TLS one line is sent back.
asio::awaitable<void> smtp(us::stream_reader reader, us::stream_writer writer)
{
    writer.write("220 localhost ESMTP\r\n");
    for (;;)
    {
        const std::string line = co_await reader.readline();
        if (line.empty())
            co_return;
        if (line == "STARTTLS\r\n")
            break;
        writer.write("250-localhost\r\n250 STARTTLS\r\n");
    }
    writer.write("220 ready\r\n");
    std::tie(reader, writer) = co_await writer.start_tls();
    const std::string line = co_await reader.readline();
    writer.write(*writer.get_extra_info<"version">() + " " + line);
}

/// Runs a client, given the port, against a server with this handler.
template <typename Command>
test::process::outcome outcome_with(us::connection_handler handler, Command command, const std::string& input)
{
    return test::run(
        [&]() -> asio::awaitable<test::process::outcome>
        {
            asio::ssl::context ssl = test::server_context();
            us::server server = co_await us::start_server(handler, "127.0.0.1", 0, {.ssl = &ssl, .upgradeable = true});
            const auto run_client = [&, port = server.sockets().at(0).port]
            {
                test::process client(command(std::to_string(port)));
                client.write(input);
                return client.wait();
            };
            const auto outcome = co_await test::joined(test::run_in_thread(run_client));
            server.close();
            co_await server.wait_closed();
            co_return outcome;
        });
}

} // namespace

TEST_CASE("interop: openssl s_client upgrades by SMTP's STARTTLS")
{
    if (!test::succeeds({"openssl", "version"}))
    {
        WARN("skipped: there is no openssl program");
        return;
    }
    for (const std::string version : {"TLSv1.2", "TLSv1.3"})
    {
        const auto command = [&](const std::string& port)
        {
            return std::vector<std::string>{"openssl",
                                            "s_client",
                                            "-connect",
                                            "127.0.0.1:" + port,
                                            "-starttls",
                                            "smtp",
                                            "-servername",
                                            "localhost",
                                            "-CAfile",
                                            test::authority().ca_file(),
                                            "-verify_return_error",
                                            "-verify_hostname",
                                            "localhost",
                                            "-quiet",
                                            version == "TLSv1.2" ? "-tls1_2" : "-tls1_3"};
        };
        const auto outcome = outcome_with(smtp, command, "hello\n");
        INFO(outcome.output << outcome.errors);
        CHECK(outcome.status == 0);
        CHECK_THAT(outcome.output, test::ends_with(version + " hello\n"));
    }
}

TEST_CASE("interop: a client of Python's asyncio upgrades without waiting for an answer")
{
    if (!test::succeeds({"python3", "-c", "import sys, ssl; sys.exit(sys.version_info < (3, 11))"}))
    {
        WARN("skipped: there is no Python 3.11 or newer");
        return;
    }
    const std::string script = R"(
import asyncio, ssl, sys

async def main(port, ca):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"plain\n")
    plain = await reader.readline()
    writer.write(b"STARTTLS\n")
    await writer.start_tls(ssl.create_default_context(cafile=ca), server_hostname="localhost")
    writer.write(b"secure\n")
    secure = await reader.readline()
    print(plain, secure, writer.get_extra_info("ssl_object").version())
    writer.close()
    await writer.wait_closed()

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
)";
    const auto command = [&](const std::string& port) {
        return std::vector<std::string>{"python3", "-c", script, port, test::authority().ca_file()};
    };
    const auto outcome = outcome_with(test::echo, command, "");
    INFO(outcome.errors);
    CHECK(outcome.status == 0);
    CHECK(outcome.output == "b'plain\\n' b'secure\\n' TLSv1.3\n");
}
