// Servers that others wrote, as far as this machine has them.

#include "server_program.hpp"
#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/contexts.hpp"
#include "support/echo_server.hpp"
#include "support/run.hpp"

#include <upgradeable_streams/open_connection.hpp>
#include <upgradeable_streams/start_server.hpp>
#include <upgradeable_streams/starttls/ftp.hpp>
#include <upgradeable_streams/starttls/http_connect.hpp>
#include <upgradeable_streams/starttls/imap.hpp>
#include <upgradeable_streams/starttls/irc.hpp>
#include <upgradeable_streams/starttls/ldap.hpp>
#include <upgradeable_streams/starttls/mysql.hpp>
#include <upgradeable_streams/starttls/nbd.hpp>
#include <upgradeable_streams/starttls/nntp.hpp>
#include <upgradeable_streams/starttls/pop3.hpp>
#include <upgradeable_streams/starttls/postgres.hpp>
#include <upgradeable_streams/starttls/sieve.hpp>
#include <upgradeable_streams/starttls/smtp.hpp>
#include <upgradeable_streams/starttls/xmpp.hpp>

#include <asio/awaitable.hpp>
#include <asio/ssl/context.hpp>
#include <openssl/x509_vfy.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace us = upgradeable_streams;
namespace starttls = us::starttls;
using namespace std::string_view_literals;

namespace
{

struct protocol
{
    std::string name; ///< Of the server's port.
    asio::awaitable<starttls::negotiated> (*negotiate)(const us::stream_reader&, const us::stream_writer&,
                                                       const starttls::starttls_options&);
    std::string_view capability; ///< How one begins that the server tells over TLS; empty where it tells none.
    std::string_view request;
    std::string_view answer;
};

/// HTTP's CONNECT, to a target that sends each line back.
asio::awaitable<starttls::negotiated> connect_by_http(const us::stream_reader& reader, const us::stream_writer& writer,
                                                      const starttls::starttls_options& options)
{
    const test::error_log errors;
    const us::server target = co_await us::start_server(test::echo, "127.0.0.1", 0,
                                                        {.ssl = &test::server_context(), .error_handler = errors});
    auto session = co_await starttls::http_connect(reader, writer, "localhost", target.sockets().at(0).port,
                                                   {.policy = options.policy, .tls = options.tls});
    co_return session;
}

asio::awaitable<starttls::negotiated> log_in_by_mysql(const us::stream_reader& reader, const us::stream_writer& writer,
                                                      const starttls::starttls_options& options)
{
    auto session = co_await starttls::mysql(reader, writer, options);
    std::string login = starttls::mysql_login_header(session);
    login += "interop\0\0mysql_native_password\0"sv;
    const std::string header = {static_cast<char>(login.size()), 0, 0, 2};
    session.writer.write(header + login);
    co_return session;
}

asio::awaitable<starttls::negotiated> negotiate(const protocol& with, std::uint16_t port, asio::ssl::context& ssl,
                                                std::string_view name,
                                                us::starttls_policy policy = us::starttls_policy::require)
{
    auto [reader, writer] = co_await us::open_connection("127.0.0.1", port, {.ssl = &ssl, .upgradeable = true});
    auto session = co_await with.negotiate(
        reader, writer,
        {.policy = policy, .tls = {.server_hostname = name}, .client_name = "client.example", .domain = "localhost"});
    co_return session;
}

const protocol list_by_nbd{"nbd", starttls::nbd, "", "IHAVEOPT\0\0\0\3\0\0\0\0"sv,
                           "\0\3\xe8\x89\x04\x55\x65\xa9\0\0\0\3\0\0\0\1\0\0\0\0"sv};

/// Returns: why the client did not accept the server's certificate.
long refusal(const protocol& with, std::uint16_t port, asio::ssl::context& ssl, std::string_view name)
{
    return test::run([&] { return test::exception_of<us::tls_error>(negotiate(with, port, ssl, name)); })
        .verify_result();
}

asio::awaitable<void> converse(const protocol& with, std::uint16_t port, asio::ssl::context& ssl)
{
    auto session = co_await negotiate(with, port, ssl, "localhost");
    CHECK(session.writer.session()->peer_verified);
    CAPTURE(session.capabilities);
    const auto offers_tls = [](const std::string& told)
    { return told == "STARTTLS" || told == "STLS" || told.starts_with("<starttls"); };
    CHECK(std::ranges::none_of(session.capabilities, offers_tls));
    const auto is_expected = [&](const std::string& told) { return told.starts_with(with.capability); };
    CHECK(session.capabilities.empty() == with.capability.empty());
    CHECK(std::ranges::any_of(session.capabilities, is_expected) != with.capability.empty());
    session.writer.write(with.request);
    const std::string answer = co_await session.reader.readuntil(with.answer);
    CHECK(answer.ends_with(with.answer));
}

asio::awaitable<void> stay_in_plain_text(const protocol& with, std::uint16_t port)
{
    const auto session =
        co_await negotiate(with, port, test::client_context(), "localhost", us::starttls_policy::never);
    CHECK_FALSE(session.reader.is_tls());
}

/// Whether a test has to be skipped.
bool is_absent(const test::server_program& server)
{
    if (server.absence().empty())
        return false;
    WARN("skipped: " << server.absence());
    return true;
}

/// Clients that know the server's CA and name speak each protocol over TLS, and others refuse the server.
void check_server(const std::string& script, const std::vector<protocol>& protocols)
{
    test::server_program server(script);
    if (is_absent(server))
        return;
    const std::string unrelated_ca_file = test::unrelated_authority().ca_file();
    asio::ssl::context unrelated = us::create_client_context({.ca_file = unrelated_ca_file});
    for (const protocol& with : protocols)
    {
        CAPTURE(with.name);
        const std::uint16_t port = server.port(with.name);
        const long unknown_ca = refusal(with, port, unrelated, "localhost");
        CHECK((unknown_ca == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY ||
               unknown_ca == X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN));
        CHECK(refusal(with, port, test::client_context(), "wrong.example") == X509_V_ERR_HOSTNAME_MISMATCH);
        test::run([&] { return stay_in_plain_text(with, port); });
        for (asio::ssl::context* ssl : {&test::client_context(), &test::tls12_client_context()})
            test::run([&] { return converse(with, port, *ssl); });
    }
    server.end();
}

} // namespace

TEST_CASE("real servers: postfix")
{
    check_server("postfix", {{"smtp", starttls::smtp, "PIPELINING", "NOOP\r\n", "250 2.0.0 Ok\r\n"}});
}

TEST_CASE("real servers: dovecot")
{
    check_server(
        "dovecot",
        {{"submission", starttls::smtp, "AUTH PLAIN", "NOOP\r\n", "250 2.0.0 OK\r\n"},
         {"lmtp", starttls::lmtp, "PIPELINING", "NOOP\r\n", "250 2.0.0 OK\r\n"},
         {"imap", starttls::imap, "AUTH=PLAIN", "1 LOGIN user pass\r\n", " Logged in\r\n"},
         {"pop3", starttls::pop3, "SASL PLAIN", "USER user\r\nPASS pass\r\n", "+OK Logged in.\r\n"},
         {"sieve", starttls::sieve, "SASL PLAIN", "AUTHENTICATE \"PLAIN\" \"AHVzZXIAcGFzcw==\"\r\n",
          "OK \"Logged in.\"\r\n"}});
}

TEST_CASE("real servers: nnrpd of INN")
{
    check_server("inn2", {{"nntp", starttls::nntp, "AUTHINFO USER", "DATE\r\n", "111 "}});
}

TEST_CASE("real servers: vsftpd")
{
    check_server("vsftpd", {{"ftp", starttls::ftp, "EPSV", "USER anonymous\r\n", "230 Login successful.\r\n"}});
}

TEST_CASE("real servers: vsftpd sends a file over a data connection that resumes the session")
{
    test::server_program server("vsftpd");
    if (is_absent(server))
        return;
    const protocol ftp{"ftp", starttls::ftp, {}, {}, {}};
    for (asio::ssl::context* ssl : {&test::client_context(), &test::tls12_client_context()})
    {
        test::run(
            [&]() -> asio::awaitable<void>
            {
                auto [reader, writer, capabilities, greeting] =
                    co_await negotiate(ftp, server.port("ftp"), *ssl, "localhost");
                writer.write("USER anonymous\r\n");
                co_await reader.readuntil("230 Login successful.\r\n");
                writer.write("EPSV\r\n");
                co_await reader.readuntil("(|||");
                const std::string port = co_await reader.readuntil("|");
                writer.write("RETR file\r\n");
                const us::connection_options options{.ssl = ssl,
                                                     .server_hostname = "localhost",
                                                     .resume_from = writer.get_extra_info<"ssl_object">()};
                auto [data, data_writer] = co_await us::open_connection("127.0.0.1", std::stoi(port), options);
                const std::string file = co_await data.read();
                CHECK(file == "a file\n");
                CHECK(data_writer.session()->session_reused);
                data_writer.close(); // which the server awaits
                co_await reader.readuntil("226 Transfer complete.\r\n");
            });
    }
    server.end();
}

TEST_CASE("real servers: inspircd")
{
    check_server("inspircd",
                 {{"irc", starttls::irc, "", "NICK someone\r\nUSER someone 0 * :someone\r\n", " 001 someone :"}});
}

TEST_CASE("real servers: prosody")
{
    check_server("prosody",
                 {{"xmpp", starttls::xmpp, "<mechanisms ",
                   "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AHVzZXIAcGFzcw==</auth>",
                   "<not-authorized/>"},
                  {"xmpp_server", starttls::xmpp_server, "<dialback ", "</stream:stream>", "</stream:stream>"}});
}

TEST_CASE("real servers: slapd")
{
    check_server("slapd", {{"ldap", starttls::ldap, "",
                            "\x30\x23\x02\x01\x02\x60\x1e\x02\x01\x03\x04\x13" "cn=admin,dc=interop" "\x80\x04pass"sv,
                            "\x30\x0c\x02\x01\x02\x61\x07\x0a\x01\x00\x04\x00\x04\x00"sv}});
}

TEST_CASE("real servers: PostgreSQL")
{
    check_server("postgresql", {{"postgres", starttls::postgres, "",
                                 "\0\0\0\x17\0\3\0\0user\0postgres\0\0" "Q\0\0\0\x0fSELECT 6*7\0"sv,
                                 "\0\1\0\0\0\2" "42"sv}});
}

TEST_CASE("real servers: MariaDB")
{
    check_server("mariadb", {{"mysql", log_in_by_mysql, "", "\x0b\0\0\0\3SELECT 6*7"sv, "\2" "42"sv}});
}

TEST_CASE("real servers: nbdkit")
{
    check_server("nbdkit", {list_by_nbd});
}

TEST_CASE("real servers: qemu-nbd")
{
    check_server("qemu-nbd", {list_by_nbd});
}

TEST_CASE("real servers: squid")
{
    check_server("squid", {{"http", connect_by_http, "", "a line\n", "a line\n"}});
}

TEST_CASE("real servers: tinyproxy")
{
    check_server("tinyproxy", {{"http", connect_by_http, "", "a line\n", "a line\n"}});
}
