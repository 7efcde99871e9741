#include <upgradeable_streams/tls.hpp>

#include "support/both_ends.hpp"
#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/ssl_pair.hpp"
#include "support/tls_records.hpp"
#include "support/tls_settings.hpp"

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace us = upgradeable_streams;

namespace
{

using names = std::vector<std::string>;

/// What both ends of a handshake between raw peers can tell, the client's first.
std::pair<us::tls_session, us::tls_session> sessions(const test::tls_settings& client, const test::tls_settings& server)
{
    return test::at_both_ends(client, server, [](SSL* ssl) { return us::tls_session(ssl); });
}

} // namespace

TEST_CASE("tls_session: it tells what a handshake of TLS 1.3 negotiated")
{
    const auto [client, server] = sessions(test::localhost_client(), test::localhost_server());
    for (const auto& session : {client, server})
    {
        CHECK(session.version == "TLSv1.3");
        CHECK(session.cipher.protocol == "TLSv1.3");
        CHECK_THAT(session.cipher.name, test::starts_with("TLS_"));
        CHECK(session.cipher.secret_bits == 256);
        CHECK(session.server_name == "localhost");
        CHECK(!session.alpn_protocol);
        CHECK(!session.session_reused);
        CHECK(session.verify_result == X509_V_OK);
    }
    REQUIRE(client.peer_certificate);
    CHECK(client.peer_certificate->subject() == "CN=localhost");
    CHECK(client.peer_verified);
    CHECK(!server.peer_certificate);
    CHECK_FALSE(server.peer_verified);
}

TEST_CASE("tls_session: it tells what a handshake of TLS 1.2 negotiated, and the client's certificate")
{
    auto client_settings = test::localhost_client(test::client_certificate());
    client_settings.server_name.clear();
    client_settings.max_version = TLS1_2_VERSION;
    client_settings.adjust = [](SSL_CTX* context)
    { SSL_CTX_set_cipher_list(context, "ECDHE-ECDSA-AES128-GCM-SHA256"); };
    auto server_settings = test::localhost_server();
    server_settings.ca_file = test::authority().ca_file();

    const auto [client, server] = sessions(client_settings, server_settings);
    CHECK(client.version == "TLSv1.2");
    CHECK(client.cipher.name == "ECDHE-ECDSA-AES128-GCM-SHA256");
    CHECK(client.cipher.protocol == "TLSv1.2");
    CHECK(client.cipher.secret_bits == 128);
    CHECK(!client.server_name);
    REQUIRE(server.peer_certificate);
    CHECK(server.peer_certificate->subject() == "CN=test client");
    CHECK(server.peer_verified);
    CHECK(!server.server_name);
}

TEST_CASE("tls_session: it tells why a peer that was tolerated is not trusted")
{
    auto client = test::localhost_client();
    client.ca_file = test::unrelated_authority().ca_file();
    client.adjust = [](SSL_CTX* context) { SSL_CTX_set_verify(context, SSL_VERIFY_NONE, nullptr); };
    const auto session = sessions(client, test::localhost_server()).first;
    CHECK(session.verify_result == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY);
    CHECK_FALSE(session.peer_verified);
}

TEST_CASE("tls_session: a peer that a context does not verify is not verified, though its certificate is good")
{
    auto client = test::localhost_client();
    client.adjust = [](SSL_CTX* context) { SSL_CTX_set_verify(context, SSL_VERIFY_NONE, nullptr); };
    const auto session = sessions(client, test::localhost_server()).first;
    CHECK(session.verify_result == X509_V_OK);
    CHECK_FALSE(session.peer_verified);
}

TEST_CASE("tls_session: there is none before the handshake is complete")
{
    const auto context = test::make_context({}, false);
    const test::openssl_ptr<SSL, SSL_free> ssl(SSL_new(context.get()));
    CHECK_THROWS_AS(us::tls_session(ssl.get()), std::invalid_argument);
    CHECK_THROWS_AS(us::tls_session(nullptr), std::invalid_argument);
    CHECK_FALSE(std::is_default_constructible_v<us::tls_session>);
    CHECK_FALSE(std::is_aggregate_v<us::tls_session>);
}

TEST_CASE("tls_session: a certificate that is asked for after the handshake is told once it is proven")
{
    auto client_settings = test::localhost_client(test::client_certificate());
    client_settings.adjust = [](SSL_CTX* context) { SSL_CTX_set_post_handshake_auth(context, 1); };
    auto server_settings = test::localhost_server();
    server_settings.ca_file = test::authority().ca_file();
    server_settings.adjust = [](SSL_CTX* context)
    { SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_POST_HANDSHAKE, nullptr); };
    const auto client_context = test::make_context(client_settings, false);
    const auto server_context = test::make_context(server_settings, true);
    test::ssl_pair pair(SSL_new(client_context.get()), SSL_new(server_context.get()));
    REQUIRE(pair.connect());
    CHECK_FALSE(us::tls_session(pair.server()).peer_certificate);

    REQUIRE(SSL_verify_client_post_handshake(pair.server()) == 1);
    REQUIRE(SSL_do_handshake(pair.server()) == 1);
    char byte = 0;
    CHECK(SSL_read(pair.client(), &byte, 1) < 0);
    const std::string flight = pair.take_from_client(); // Certificate, CertificateVerify and Finished, a record each
    const std::size_t certificate = test::tls_records(flight).records.at(1).offset;
    pair.give_to_server(std::string_view(flight).substr(0, certificate));
    CHECK(SSL_read(pair.server(), &byte, 1) < 0);
    CHECK(SSL_get0_peer_certificate(pair.server()));
    CHECK_THROWS_AS(us::tls_session(pair.server()), std::invalid_argument);
    pair.give_to_server(std::string_view(flight).substr(certificate));
    CHECK(SSL_read(pair.server(), &byte, 1) < 0);
    const us::tls_session proven(pair.server());
    CHECK(proven.peer_verified);
    CHECK(proven.peer_certificate->subject() == "CN=test client");
}

TEST_CASE("tls_session: it lasts longer than the SSL object that it was read from")
{
    const auto session = sessions(test::localhost_client(), test::localhost_server()).first;
    CHECK(session.peer_certificate->subject_alt_names() ==
          names{"DNS:localhost", "IP Address:127.0.0.1", "IP Address:::1"});
}

TEST_CASE("tls_options: they can be given in a coroutine's call")
{
    CHECK(std::is_trivially_destructible_v<us::tls_options>);
    CHECK(std::is_aggregate_v<us::tls_options>);
}

TEST_CASE("begins_tls_handshake: two bytes decide, and fewer may still become a ClientHello")
{
    using namespace std::string_view_literals;
    for (const std::string_view yes : {""sv, "\x16"sv, "\x16\x03"sv, "\x16\x03\x01\x02\x00"sv, "\x16\x03text"sv})
        CHECK(us::begins_tls_handshake(yes));
    for (const std::string_view no : {"E"sv, "\x15"sv, "\x15\x03"sv, "\x17\x03"sv, "\x16\x02"sv, "\x16\n"sv,
                                      "\x96\x03"sv, "\0\x16\x03"sv, "\x80\x2e\x01"sv})
        CHECK_FALSE(us::begins_tls_handshake(no));
}
