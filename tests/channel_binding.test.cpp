#include <upgradeable_streams/channel_binding.hpp>

#include "support/both_ends.hpp"
#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/contexts.hpp"
#include "support/hex.hpp"
#include "support/process.hpp"
#include "support/run.hpp"
#include "support/stream_links.hpp"
#include "support/temporary_directory.hpp"
#include "support/thread.hpp"

#include <upgradeable_streams/start_server.hpp>

#include <asio/awaitable.hpp>
#include <asio/this_coro.hpp>

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;

namespace
{

/// What `openssl` prints.
std::string openssl(const std::string& arguments)
{
    const auto made = test::run_process(test::words("openssl " + arguments));
    INFO(made.errors);
    REQUIRE(made.status == 0);
    return made.output;
}

/// Peers with a certificate that was signed with itself by `algorithm`, an argument of `openssl req`.
struct self_signed
{
    explicit self_signed(const std::string& algorithm)
    {
        server.certificate_file = directory.file("certificate.pem");
        server.key_file = directory.file("key.pem");
        openssl("req -x509 -nodes -subj /CN=localhost -newkey " + algorithm + " -out " + server.certificate_file +
                " -keyout " + server.key_file);
    }

    test::temporary_directory directory;
    test::tls_settings server;
    test::tls_settings client;
};

test::tls_settings limited(test::tls_settings settings, int version)
{
    settings.max_version = version;
    return settings;
}

} // namespace

TEST_CASE("export_keying_material: both ends get the same bytes, others for another label, context, size or session")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    CAPTURE(version);
    const auto materials = [](SSL* ssl)
    {
        return std::vector<std::string>{
            us::export_keying_material(ssl, "EXPERIMENTAL one", 20),
            us::export_keying_material(ssl, "EXPERIMENTAL two", 20),
            us::export_keying_material(ssl, "EXPERIMENTAL one", 20, "context"),
            us::export_keying_material(ssl, "EXPERIMENTAL one", 20, std::string_view("con\0text", 8)),
            us::export_keying_material(ssl, "EXPERIMENTAL one", 20, ""),
            us::export_keying_material(ssl, "EXPERIMENTAL one", 100),
        };
    };
    const auto client_settings = limited(test::localhost_client(), version);
    const auto [client, server] = test::at_both_ends(client_settings, test::localhost_server(), materials);
    CHECK(client == server);
    for (std::size_t i = 0; i < client.size(); ++i)
    {
        CHECK(client[i].size() == (i == 5 ? 100u : 20u));
        for (std::size_t j = 0; j < i; ++j)
            CHECK((client[i] == client[j]) == (version == TLS1_3_VERSION && j == 0 && i == 4));
    }
    const auto again = test::at_both_ends(client_settings, test::localhost_server(), materials);
    CHECK(again.first != client);
}

TEST_CASE("export_keying_material: openssl s_client gets the same bytes")
{
    const std::string version = GENERATE(as<std::string>(), "-tls1_2", "-tls1_3");
    std::string material;
    const auto handler = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
    {
        material = us::export_keying_material(writer.get_extra_info<"ssl_object">(), "EXPERIMENTAL one", 20);
        co_await reader.read();
    };
    const std::string output = test::run(
        [&]() -> asio::awaitable<std::string>
        {
            us::server server = co_await us::start_server(handler, "127.0.0.1", 0, {.ssl = &test::server_context()});
            const auto command = [&, port = std::to_string(server.sockets().at(0).port)]
            {
                auto client =
                    test::words("openssl s_client " + version + " -connect 127.0.0.1:" + port + " -keymatexportlen 20");
                client.insert(client.end(), {"-keymatexport", "EXPERIMENTAL one"});
                return test::run_process(client).output;
            };
            std::string printed = co_await test::joined(test::run_in_thread(command));
            server.close();
            co_await server.wait_closed();
            co_return printed;
        });
    CHECK(material.size() == 20);
    CHECK_THAT(output, test::contains("Keying material: " + test::hex(material)));
}

TEST_CASE("export_keying_material: a label of TLS itself is OpenSSL's error")
{
    const auto error = [](SSL* ssl)
    {
        try
        {
            us::export_keying_material(ssl, "key expansion", 20);
            return std::error_code();
        }
        catch (const std::system_error& e)
        {
            return e.code();
        }
    };
    const auto both =
        test::at_both_ends(limited(test::localhost_client(), TLS1_2_VERSION), test::localhost_server(), error);
    CHECK(both.first.category() == asio::error::get_ssl_category());
    CHECK(both.first == both.second);
}

TEST_CASE("tls_exporter: both ends of an upgraded pair have the same 32 bytes, those of RFC 9266's exporter")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto link = co_await test::link_of_streams({.ssl = &test::client_context(), .upgradeable = true});
            CHECK_THROWS_AS(us::tls_exporter(link.writer.get_extra_info<"ssl_object">()), std::invalid_argument);
            const auto executor = co_await asio::this_coro::executor;
            const auto other = test::spawn(executor, [&] { return link.peer_writer.start_tls(); });
            std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
            auto peer = co_await other.join();
            SSL* const ssl = link.writer.get_extra_info<"ssl_object">();
            const std::string bytes = us::tls_exporter(ssl);
            CHECK(bytes.size() == 32);
            CHECK(bytes == us::tls_exporter(peer.second.get_extra_info<"ssl_object">()));
            CHECK(bytes == us::export_keying_material(ssl, "EXPORTER-Channel-Binding", 32, ""));
        });
}

TEST_CASE("tls_exporter: in TLS 1.2 it needs the extended master secret")
{
    const bool extended = GENERATE(true, false);
    CAPTURE(extended);
    test::tls_settings client = limited(test::localhost_client(), TLS1_2_VERSION);
    if (!extended)
        client.adjust = [](SSL_CTX* context) { SSL_CTX_set_options(context, SSL_OP_NO_EXTENDED_MASTER_SECRET); };
    const auto exported = [](SSL* ssl)
    {
        try
        {
            return us::tls_exporter(ssl);
        }
        catch (const std::runtime_error& error)
        {
            return std::string(error.what());
        }
    };
    const auto [at_client, at_server] = test::at_both_ends(client, test::localhost_server(), exported);
    CHECK(at_client == at_server);
    if (extended)
        CHECK(at_client.size() == 32);
    else
        CHECK(at_client == "tls-exporter needs TLS 1.3, or TLS 1.2 with the extended master secret");
}

TEST_CASE("tls_server_end_point: the certificate's hash by the function of its signature, SHA-256 in place of SHA-1")
{
    const auto [algorithm, hash] = GENERATE(table<std::string, std::string>({
        {"ec -pkeyopt ec_paramgen_curve:P-256 -sha256", "sha256"},
        {"ec -pkeyopt ec_paramgen_curve:P-256 -sha384", "sha384"},
        {"ec -pkeyopt ec_paramgen_curve:P-256 -sha512", "sha512"},
        {"rsa:2048 -sha512 -sigopt rsa_padding_mode:pss", "sha512"},
        {"rsa:2048 -sha1", "sha256"},
    }));
    CAPTURE(algorithm);
    const self_signed peers(algorithm);
    const auto [client, server] = test::at_both_ends(peers.client, peers.server, us::tls_server_end_point);
    CHECK(test::hex(client) == test::hex(server));
    std::string fingerprint = openssl("x509 -noout -fingerprint -" + hash + " -in " + peers.server.certificate_file);
    std::erase(fingerprint, ':');
    CHECK_THAT(fingerprint, test::ends_with("=" + test::hex(client) + "\n"));
}

TEST_CASE("tls_server_end_point: it is the server's certificate, when the client has one too")
{
    const test::tls_settings client = test::localhost_client(test::client_certificate());
    test::tls_settings server = test::localhost_server();
    server.ca_file = test::authority().ca_file();
    const auto both = test::at_both_ends(client, server, us::tls_server_end_point);
    CHECK(both.first == both.second);
}

TEST_CASE("tls_server_end_point: for a certificate signed by Ed25519 there is none")
{
    const self_signed peers("ed25519");
    const auto refused = [](SSL* ssl)
    {
        try
        {
            return us::tls_server_end_point(ssl);
        }
        catch (const std::runtime_error& error)
        {
            return std::string(error.what());
        }
    };
    const auto [client, server] = test::at_both_ends(peers.client, peers.server, refused);
    CHECK(client == "tls-server-end-point is not defined for the signature of CN=localhost");
    CHECK(client == server);
}

TEST_CASE("channel bindings: without a session they are std::invalid_argument")
{
    const auto context = test::make_context({}, false);
    const test::openssl_ptr<SSL, SSL_free> fresh(SSL_new(context.get()));
    for (SSL* const ssl : {static_cast<SSL*>(nullptr), fresh.get()})
    {
        CHECK_THROWS_AS(us::export_keying_material(ssl, "EXPERIMENTAL one", 20), std::invalid_argument);
        CHECK_THROWS_AS(us::tls_exporter(ssl), std::invalid_argument);
        CHECK_THROWS_AS(us::tls_server_end_point(ssl), std::invalid_argument);
    }
}
