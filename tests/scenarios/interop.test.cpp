// Clients and servers that others wrote, as far as this machine has them.

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/echo_server.hpp"
#include "support/failure.hpp"
#include "support/pattern.hpp"
#include "support/process.hpp"
#include "support/run.hpp"
#include "support/served_client.hpp"
#include "support/socket_pair.hpp"
#include "support/thread.hpp"
#include "support/tls_records.hpp"
#include "support/wire_tap.hpp"

#include <asio/awaitable.hpp>
#include <asio/ssl/context.hpp>
#include <asio/this_coro.hpp>
#include <openssl/x509_vfy.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <future>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include <sys/ioctl.h>

namespace us = upgradeable_streams;

namespace
{

using command = std::vector<std::string>;

bool is_python_missing()
{
    return test::is_missing("Python 3.11 or newer",
                            {"python3", "-c", "import sys, ssl; sys.exit(sys.version_info < (3, 11))"});
}

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

/// As test::echo, with one line in plain text; STARTTLS is read only once more has come after it.
asio::awaitable<void> late_echo(us::stream_reader reader, us::stream_writer writer)
{
    const std::string line = co_await reader.readline();
    writer.write(line);
    const int descriptor = *writer.get_extra_info<"socket">();
    const auto more_has_come = [descriptor]
    {
        int unread = 0;
        return ::ioctl(descriptor, FIONREAD, &unread) == 0 && unread > 9;
    };
    co_await test::eventually(more_has_come);
    co_await test::echo(reader, writer);
}

/// `version` is that of TLS, `name` the one that the certificate has to be for.
command s_client(const std::string& port, const std::string& version, const std::string& name)
{
    return test::words("openssl s_client -starttls smtp -quiet -connect 127.0.0.1:" + port + " -servername localhost" +
                 " -min_protocol TLSv" + version + " -max_protocol TLSv" + version + " -CAfile " +
                 test::authority().ca_file() + " -verify_return_error -verify_hostname " + name);
}

command gnutls_cli(const std::string& starttls, const std::string& port, const std::string& version,
                   const std::string& name)
{
    return test::words("gnutls-cli " + starttls + " --port " + port + " --sni-hostname localhost" +
                 " --priority NORMAL:-VERS-ALL:+VERS-TLS" + version + " --x509cafile " + test::authority().ca_file() +
                 " --verify-hostname " + name + " 127.0.0.1");
}

/// Returns: the lines up to and with one that contains `text`.
std::string read_to(test::process& program, std::string_view text)
{
    std::string lines;
    for (std::size_t size = 0; lines.find(text, size) == lines.npos;)
    {
        size = lines.size();
        lines += program.read_line();
        if (lines.size() == size)
            throw test::failure("a program ended without \"" + std::string(text) + "\"; it wrote \"" + lines + '"');
    }
    return lines;
}

/// Does what a user of `gnutls-cli --starttls` does. Returns: what it writes of the handshake.
std::string ask_for_starttls(test::process& client)
{
    read_to(client, "220 localhost ESMTP");
    client.write("EHLO localhost\r\n");
    read_to(client, "250 STARTTLS");
    client.write("STARTTLS\r\n");
    read_to(client, "220 ready");
    auto handshake = test::run_in_thread([&client] { return read_to(client, "- Description: (TLS"); });
    do // again, for a signal that comes just before gnutls-cli waits for input does not wake it
        client.send_signal(SIGALRM);
    while (handshake.wait_for(std::chrono::milliseconds(100)) != std::future_status::ready);
    return handshake.get();
}

/// For both scripts. asyncio takes a FIN for the end of TLS too, so OpenSSL is asked.
const std::string script_head = R"(
import asyncio, random, ssl, sys

def has_got_close_notify(session):
    try:
        return session.read() == b""
    except ssl.SSLZeroReturnError:
        return True
)";

/// Serves one connection: sends each line back, upgrades at STARTTLS, and ends at QUIT.
class asyncio_server
{
public:
    explicit asyncio_server(const test::issued& identity)
        : process_({"python3", "-c", script_head + R"(
async def main(certificate, key):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    connections = asyncio.Queue()
    server = await asyncio.start_server(lambda *streams: connections.put_nowait(streams), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    reader, writer = await connections.get()
    while (line := await reader.readline()) not in (b"", b"QUIT\n"):
        if line == b"STARTTLS\n":
            writer.write(b"go ahead\n")
            await writer.start_tls(tls)
            session = writer.get_extra_info("ssl_object")
        else:
            writer.write(line)
            await writer.drain()
    writer.close()
    await writer.wait_closed()
    print(line, has_got_close_notify(session))

asyncio.run(main(*sys.argv[1:]))
)",
                    identity.certificate_file, identity.key_file}),
          port_(static_cast<std::uint16_t>(std::stoi(read_to(process_, "\n"))))
    {
    }

    std::uint16_t port() const { return port_; }
    test::process::outcome wait() { return process_.wait(); }

private:
    test::process process_;
    std::uint16_t port_;
};

/// As much of FTP as a client needs that logs in over TLS and goes back to plain text (RFC 4217).
asio::awaitable<void> ftp(us::stream_reader reader, us::stream_writer writer)
{
    writer.write("220 ready\r\n");
    for (;;)
    {
        const std::string line = co_await reader.readline();
        if (line == "AUTH TLS\r\n")
        {
            writer.write("234 begin\r\n");
            std::tie(reader, writer) = co_await writer.start_tls();
        }
        else if (line.starts_with("USER"))
            writer.write("331 password\r\n");
        else if (line.starts_with("PASS"))
            writer.write("230 welcome\r\n");
        else if (line == "CCC\r\n")
        {
            writer.write("200 end\r\n");
            std::tie(reader, writer) = co_await writer.stop_tls();
        }
        else if (line == "PWD\r\n")
            writer.write(writer.session() ? "257 \"/encrypted\"\r\n" : "257 \"/plain\"\r\n");
        else
            break;
    }
    writer.write("221 bye\r\n");
}

} // namespace

TEST_CASE("interop: openssl s_client upgrades by SMTP's STARTTLS")
{
    if (test::is_missing("openssl", {"openssl", "version"}))
        return;
    const std::string version = GENERATE(as<std::string>(), "1.2", "1.3");
    const auto run_client = [&](const std::string& port)
    {
        test::process client(s_client(port, version, "localhost"));
        client.write("hello\n");
        return client.wait();
    };
    const auto [client, errors] = test::serve(smtp, run_client);
    INFO(client.output << client.errors);
    CHECK(client.status == 0);
    CHECK_THAT(client.output, test::ends_with("TLSv" + version + " hello\n"));
    CHECK(errors.empty());
}

TEST_CASE("interop: openssl s_client refuses a certificate for another name, and the server is told so")
{
    if (test::is_missing("openssl", {"openssl", "version"}))
        return;
    const std::string version = GENERATE(as<std::string>(), "1.2", "1.3");
    const auto run_client = [&](const std::string& port)
    { return test::run_process(s_client(port, version, "other.example")); };
    const auto [client, errors] = test::serve(smtp, run_client);
    INFO(client.output << client.errors);
    CHECK(client.status == 1);
    CHECK_THAT(client.errors, test::contains("hostname mismatch"));
    REQUIRE(errors.size() == 1);
    CHECK_THAT(errors.front().what, test::starts_with("TLS upgrade, refused by the peer: "));
    CHECK_THAT(errors.front().what, test::contains("alert bad certificate"));
}

TEST_CASE("interop: gnutls-cli upgrades by SMTP's STARTTLS, asked for by the user or by itself")
{
    if (test::is_missing("gnutls-cli", {"gnutls-cli", "--version"}))
        return;
    const std::string starttls = GENERATE(as<std::string>(), "--starttls", "--starttls-proto=smtp");
    const std::string version = GENERATE(as<std::string>(), "1.2", "1.3");
    const auto run_client = [&](const std::string& port)
    {
        test::process client(gnutls_cli(starttls, port, version, "localhost"));
        std::string output =
            starttls == "--starttls" ? ask_for_starttls(client) : read_to(client, "- Description: (TLS");
        client.write("hello\n");
        output += read_to(client, " hello\n");
        auto outcome = client.wait();
        outcome.output.insert(0, output);
        return outcome;
    };
    const auto [client, errors] = test::serve(smtp, run_client);
    INFO(client.output << client.errors);
    CHECK(client.status == 0);
    CHECK_THAT(client.output, test::contains("The certificate is trusted."));
    CHECK_THAT(client.output, test::contains("- Description: (TLS" + version + "-X.509)"));
    CHECK_THAT(client.output, test::contains("\nTLSv" + version + " hello\n"));
    CHECK(errors.empty());
}

TEST_CASE("interop: gnutls-cli refuses a certificate for another name, and the server is told so")
{
    if (test::is_missing("gnutls-cli", {"gnutls-cli", "--version"}))
        return;
    const std::string version = GENERATE(as<std::string>(), "1.2", "1.3");
    const auto run_client = [&](const std::string& port)
    { return test::run_process(gnutls_cli("--starttls-proto=smtp", port, version, "other.example")); };
    const auto [client, errors] = test::serve(smtp, run_client);
    INFO(client.output << client.errors);
    CHECK(client.status == 1);
    CHECK_THAT(client.output, test::contains("The name in the certificate does not match the expected."));
    REQUIRE(errors.size() == 1);
    CHECK_THAT(errors.front().what, test::contains("alert bad certificate"));
}

TEST_CASE("interop: a client of asyncio upgrades without waiting for an answer, has 1 MiB sent back, and closes")
{
    if (is_python_missing())
        return;
    const std::string script = script_head + R"(
async def main(port, ca_file):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"plain\n")
    plain = await reader.readline()
    writer.write(b"STARTTLS\n")
    await writer.start_tls(ssl.create_default_context(cafile=ca_file), server_hostname="localhost")
    session = writer.get_extra_info("ssl_object")
    writer.write(b"secure\n")
    secure = await reader.readline()
    sent = random.Random(1).randbytes(1 << 20) + b"\n"
    writer.write(sent)
    received = await reader.readexactly(len(sent))
    writer.close()
    await writer.wait_closed()
    print(plain, secure, session.version(), received == sent, has_got_close_notify(session))

asyncio.run(main(*sys.argv[1:]))
)";
    const auto run_client = [&](const std::string& port) {
        return test::run_process({"python3", "-c", script, port, test::authority().ca_file()});
    };
    const auto [client, errors] = test::serve(late_echo, run_client);
    CHECK(client.status == 0);
    CHECK(client.output == "b'plain\\n' b'secure\\n' TLSv1.3 True True\n");
    CHECK(client.errors.empty());
    CHECK(errors.empty()); // which would tell of an end without close_notify
}

TEST_CASE("interop: a connection with a server of asyncio is upgraded, carries 1 MiB each way, and is closed by either")
{
    if (is_python_missing())
        return;
    const bool server_closes = GENERATE(false, true);
    asyncio_server server(test::localhost_certificate());
    test::run(
        [&]() -> asio::awaitable<void>
        {
            asio::ssl::context ssl = test::make_client_context();
            auto [reader, writer] =
                co_await us::open_connection("127.0.0.1", server.port(), {.ssl = &ssl, .upgradeable = true});
            writer.write("plain\n");
            const std::string plain = co_await reader.readline();
            CHECK(plain == "plain\n");
            writer.write("STARTTLS\n");
            const std::string go_ahead = co_await reader.readline();
            CHECK(go_ahead == "go ahead\n");
            std::tie(reader, writer) = co_await writer.start_tls();
            CHECK(writer.get_extra_info<"version">() == "TLSv1.3");
            writer.write("secure\n");
            const std::string secure = co_await reader.readline();
            CHECK(secure == "secure\n");

            const std::string sent = test::pattern(1).bytes(0, 1 << 20) + "\n";
            writer.write(sent);
            const std::string received = co_await reader.readexactly(sent.size());
            CHECK((received == sent));
            if (server_closes)
            {
                writer.write("QUIT\n");
                const std::string rest = co_await reader.read();
                CHECK(rest.empty());
            }
            writer.close();
            co_await writer.wait_closed();
        });
    const auto outcome = server.wait();
    CHECK(outcome.status == 0);
    CHECK(outcome.output == (server_closes ? "b'QUIT\\n' True\n" : "b'' True\n"));
    CHECK(outcome.errors.empty());
}

TEST_CASE("interop: a server of asyncio whose certificate is refused is told why, and is sent no plain text")
{
    if (is_python_missing())
        return;
    struct refusal
    {
        test::issued identity;
        long verify_result;
        std::string reason;
        std::string alert;
    };
    using std::chrono::days;
    const std::vector<refusal> refusals = {
        {test::unrelated_authority().issue({.common_name = "localhost", .dns_names = {"localhost"}}),
         X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY, "unable to get local issuer certificate", "UNKNOWN_CA"},
        {test::authority().issue({.common_name = "localhost", .dns_names = {"other.example"}}),
         X509_V_ERR_HOSTNAME_MISMATCH, "hostname mismatch", "BAD_CERTIFICATE"},
        {test::authority().issue(
             {.common_name = "localhost", .dns_names = {"localhost"}, .valid_from = days(-2), .valid_until = days(-1)}),
         X509_V_ERR_CERT_HAS_EXPIRED, "certificate has expired", "CERTIFICATE_EXPIRED"},
    };
    for (const refusal& expected : refusals)
    {
        INFO(expected.reason);
        asyncio_server server(expected.identity);
        const auto outcome = test::run(
            [&]() -> asio::awaitable<test::process::outcome>
            {
                asio::ssl::context ssl = test::make_client_context();
                test::wire_tap tap(co_await asio::this_coro::executor, test::loopback(server.port()));
                auto [reader, writer] = co_await us::open_connection(
                    "127.0.0.1", tap.port(), {.ssl = &ssl, .upgradeable = true, .server_hostname = "localhost"});
                writer.write("STARTTLS\n");
                const std::string go_ahead = co_await reader.readline();
                CHECK(go_ahead == "go ahead\n");

                const auto error = co_await test::exception_of<us::tls_error>(writer.start_tls());
                CHECK(error.verify_result() == expected.verify_result);
                CHECK_THAT(error.what(), test::contains("for \"localhost\" (" + expected.reason + ")"));
                CHECK_FALSE(writer.get_extra_info<"socket">()); // closed
                CHECK_THROWS_AS(writer.write("a secret\n"), std::system_error);
                const std::error_code lost = co_await test::error_of(writer.wait_closed());
                CHECK(lost == error.code());

                auto ended = co_await test::joined(test::run_in_thread([&] { return server.wait(); }));
                const std::string_view sent = tap.client_to_server();
                REQUIRE(sent.starts_with("STARTTLS\n"));
                CHECK(test::tls_records(sent.substr(9)).all_tls);
                tap.close();
                co_return ended;
            });
        CHECK(outcome.status == 1);
        CHECK(outcome.output.empty());
        CHECK_THAT(outcome.errors, test::contains("ALERT_" + expected.alert + "]"));
    }
}

TEST_CASE("interop: Python's ftplib logs in over TLS, and goes back to plain text with CCC")
{
    if (is_python_missing())
        return;
    const std::string version = GENERATE("TLSv1_2", "TLSv1_3");
    CAPTURE(version);
    const std::string script = R"(
import ftplib, ssl, sys
port, ca_file, version = sys.argv[1:]
context = ssl.create_default_context(cafile=ca_file)
context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
ftp = ftplib.FTP_TLS(context=context)
ftp.connect("localhost", int(port))
ftp.login("user", "password")
print(ftp.sock.version(), ftp.pwd())
ftp.ccc()
print(ftp.sock.version(), ftp.pwd(), ftp.quit())
)";
    const auto run_client = [&](const std::string& port) {
        return test::run_process({"python3", "-c", script, port, test::authority().ca_file(), version});
    };
    const auto [client, errors] = test::serve(ftp, run_client);
    CHECK(client.status == 0);
    const std::string name = version == "TLSv1_2" ? "TLSv1.2" : "TLSv1.3";
    CHECK(client.output == name + " /encrypted\nNone /plain 221 bye\n");
    CHECK(client.errors.empty());
    CHECK(errors.empty());
}
