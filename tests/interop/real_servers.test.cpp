// Servers that others wrote, as far as this machine has them.

#include "server_program.hpp"
#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/contexts.hpp"
#include "support/run.hpp"

#include <upgradeable_streams/open_connection.hpp>
#include <upgradeable_streams/starttls/lmtp.hpp>
#include <upgradeable_streams/starttls/smtp.hpp>

#include <asio/awaitable.hpp>
#include <asio/ssl/context.hpp>
#include <openssl/x509_vfy.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace us = upgradeable_streams;
namespace starttls = us::starttls;

namespace
{

/// What proves that a session works: an answer that the server gives over TLS.
struct protocol
{
    std::string port;
    asio::awaitable<starttls::negotiated> (*negotiate)(const us::stream_reader&, const us::stream_writer&,
                                                       const starttls::starttls_options&);
    std::string_view request;
    std::string_view answer;
};

asio::ssl::context make_unrelated_client_context()
{
    const std::string ca_file = test::unrelated_authority().ca_file();
    return us::create_client_context({.ca_file = ca_file});
}

asio::awaitable<starttls::negotiated> negotiate(const protocol& with, std::uint16_t port, asio::ssl::context& ssl,
                                                std::string_view name)
{
    auto [reader, writer] = co_await us::open_connection("127.0.0.1", port, {.ssl = &ssl, .upgradeable = true});
    auto session = co_await with.negotiate(reader, writer, {.tls = {.server_hostname = name}, .domain = "localhost"});
    co_return session;
}

/// Returns: the verify result.
long refusal(const protocol& with, std::uint16_t port, asio::ssl::context& ssl, std::string_view name)
{
    const auto error = test::run([&] { return test::exception_of<us::tls_error>(negotiate(with, port, ssl, name)); });
    return error.verify_result();
}

asio::awaitable<void> converse(const protocol& with, std::uint16_t port, asio::ssl::context& ssl)
{
    auto session = co_await negotiate(with, port, ssl, "localhost");
    CHECK(session.writer.session()->peer_verified);
    session.writer.write(with.request);
    const std::string answer = co_await session.reader.readuntil(with.answer);
    CHECK_THAT(answer, test::ends_with(std::string(with.answer)));
}

/// Clients that trust another CA or expect another name refuse the server, others do not.
void check_server(const std::string& script, const std::vector<protocol>& protocols)
{
    test::server_program server(script);
    if (!server.absence().empty())
    {
        WARN("skipped: " << server.absence());
        return;
    }
    asio::ssl::context unrelated = make_unrelated_client_context();
    for (const protocol& with : protocols)
    {
        CAPTURE(with.port);
        const std::uint16_t port = server.port(with.port);
        CHECK(refusal(with, port, unrelated, "localhost") != X509_V_OK);
        CHECK(refusal(with, port, test::client_context(), "wrong.example") == X509_V_ERR_HOSTNAME_MISMATCH);
        for (asio::ssl::context* ssl : {&test::client_context(), &test::tls12_client_context()})
            test::run([&] { return converse(with, port, *ssl); });
    }
    server.end();
}

} // namespace

TEST_CASE("real servers: postfix")
{
    check_server("postfix", {{"smtp", starttls::smtp, "NOOP\r\n", "250 2.0.0 Ok\r\n"}});
}

TEST_CASE("real servers: dovecot")
{
    check_server("dovecot", {{"submission", starttls::smtp, "NOOP\r\n", "250 2.0.0 OK\r\n"},
                             {"lmtp", starttls::lmtp, "NOOP\r\n", "250 2.0.0 OK\r\n"}});
}
