#include <upgradeable_streams/tlsa_record.hpp>

#include <upgradeable_streams/certificate.hpp>
#include <upgradeable_streams/detail/tls_settings.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/open_connection.hpp>
#include <upgradeable_streams/starttls/smtp.hpp>
#include <upgradeable_streams/tls.hpp>
#include <upgradeable_streams/tls_context.hpp>
#include <upgradeable_streams/upgradeable_stream.hpp>

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/contexts.hpp"
#include "support/openssl.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/socket_pair.hpp"
#include "support/ssl_pair.hpp"
#include "support/task.hpp"
#include "support/thread.hpp"
#include "support/tls_settings.hpp"
#include "support/tlsa_records.hpp"

#include <asio/awaitable.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/this_coro.hpp>

#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using test::certificates_in;
using test::record_of;
using namespace test::tlsa;
using namespace std::string_literals;
using namespace std::string_view_literals;

namespace
{

using records = std::vector<us::tlsa_record>;

struct outcome_at_client
{
    bool is_accepted;
    long verify_result;
    bool peer_verified;
    bool session_reused;
};

/// Has a client meet a server in memory.
outcome_at_client meet_server(asio::ssl::context& server, asio::ssl::context& client, const records& expected)
{
    us::detail::tls_settings settings({.ssl = &client, .server_hostname = "localhost", .tlsa_records = expected});
    us::detail::openssl_ptr<SSL> ssl = settings.make_ssl();
    settings.offer_known_session(ssl.get());
    test::ssl_pair pair(ssl.release(), SSL_new(server.native_handle()));
    const bool is_accepted = pair.connect();
    return {is_accepted, SSL_get_verify_result(pair.client()),
            is_accepted && us::tls_session(pair.client()).peer_verified, SSL_session_reused(pair.client()) == 1};
}

outcome_at_client meet_server(const test::issued& identity, asio::ssl::context& client, const records& expected)
{
    auto server = test::make_server_context(identity);
    return meet_server(server, client, expected);
}

/// Of a connection in plain text that can be upgraded.
us::connection_options upgradeable(asio::ssl::context& context)
{
    return {.ssl = &context, .upgradeable = true, .server_hostname = "localhost"};
}

asio::ssl::context client_that_trusts(const test::certificate_authority& authority)
{
    const std::string file = authority.ca_file();
    return us::create_client_context({.ca_file = file});
}

} // namespace

TEST_CASE("tlsa_record::parse: reads what zone files and dig have, and nothing else")
{
    const us::tlsa_record meant{3, 1, 1, "\x0b\x9f\xa1"s};
    for (const std::string text : {"3 1 1 0b9fa1", "3 1 1 0B9FA1", "3\t1  1 0b 9fa1 ", "003 01 1 0b9 fa1"})
        CHECK(us::tlsa_record::parse(text) == meant);
    CHECK(us::tlsa_record::parse("255 0 2 00") == us::tlsa_record{255, 0, 2, "\0"s});
    for (const std::string text :
         {"", "3", "3 1 1", "3 1 1 ", "3 1 1 0b9", "3 1 1 0x0b", "3 1 1 0g", "3 1 256 0b", "3 1 -1 0b", "3 1 x 0b",
          " 3 1 1 0b", "3 1 1 0b\n", "3 1 1 0b\r\n9f", "3,1,1,0b", "3 1 1 +b", "3 1 1 ( 0b )"})
    {
        CAPTURE(text);
        CHECK_THROWS_AS(us::tlsa_record::parse(text), std::invalid_argument);
    }
    CHECK_THROWS_MATCHES(us::tlsa_record::parse("3 1 1 \x01"), std::invalid_argument,
                         test::message_contains("\"3 1 1 \\x01\" is no TLSA record"));
}

TEST_CASE("tlsa_records: a server is accepted by a record of whatever usage, selector and matching type that holds")
{
    const auto u = GENERATE(pkix_ta, pkix_ee, dane_ta, dane_ee);
    const auto s = GENERATE(cert, spki);
    const auto m = GENERATE(full, sha2_256, sha2_512);
    const bool is_pkix = u == pkix_ta || u == pkix_ee;
    const bool is_end_entity = u == pkix_ee || u == dane_ee;
    const auto server =
        test::authority().issue({.common_name = "host", .dns_names = {"localhost"}, .by_intermediate = true});
    const auto others = test::unrelated_authority().issue(
        {.common_name = "other", .dns_names = {"localhost"}, .by_intermediate = true});
    const auto own = certificates_in(server.certificate_file);
    const us::tlsa_record right = record_of(own.at(is_end_entity ? 0 : 1), u, s, m);
    const us::tlsa_record wrong =
        record_of(certificates_in(others.certificate_file).at(is_end_entity ? 0 : 1), u, s, m);
    auto trusting = client_that_trusts(test::authority());
    auto distrusting = client_that_trusts(test::unrelated_authority());
    CAPTURE(int(u), int(s), int(m));

    CHECK(meet_server(server, trusting, {wrong, right}).peer_verified);
    CHECK(meet_server(server, distrusting, {right}).is_accepted == !is_pkix);
    const auto refused = meet_server(server, trusting, {wrong});
    CHECK(!refused.is_accepted);
    CHECK(refused.verify_result == X509_V_ERR_DANE_NO_MATCH);
}

TEST_CASE("tlsa_records: an authority that only DNS knows is the root of a chain, whether the server sends it or not")
{
    const auto server =
        test::unrelated_authority().issue({.common_name = "host", .dns_names = {"localhost"}, .by_intermediate = true});
    const auto root = certificates_in(test::unrelated_authority().ca_file()).at(0);
    auto context = client_that_trusts(test::authority());
    for (const selector s : {cert, spki})
        CHECK(meet_server(server, context, {record_of(root, dane_ta, s, full)}).is_accepted);
    const us::tlsa_record hash = record_of(root, dane_ta, cert, sha2_256); // of what nobody sends
    CHECK(!meet_server(server, context, {hash}).is_accepted);
}

TEST_CASE("tlsa_records: names and dates matter, but not where the record is of the server's own key")
{
    auto context = client_that_trusts(test::authority());
    const auto old = test::authority().issue({.common_name = "old",
                                              .dns_names = {"localhost"},
                                              .valid_from = std::chrono::days(-9),
                                              .valid_until = std::chrono::days(-2),
                                              .by_intermediate = true});
    const auto of_another =
        test::authority().issue({.common_name = "other", .dns_names = {"other.test"}, .by_intermediate = true});
    for (const auto& [server, reason] :
         {std::pair(old, X509_V_ERR_CERT_HAS_EXPIRED), std::pair(of_another, X509_V_ERR_HOSTNAME_MISMATCH)})
    {
        const auto own = certificates_in(server.certificate_file);
        CHECK(meet_server(server, context, {record_of(own.at(0), dane_ee)}).is_accepted);
        for (const usage u : {pkix_ee, pkix_ta, dane_ta})
            CHECK(meet_server(server, context, {record_of(own.at(u == pkix_ee ? 0 : 1), u)}).verify_result == reason);
    }
}

TEST_CASE("tlsa_records: a context that does not verify the peer does so for them")
{
    auto context = us::create_client_context({.verify_peer = false});
    const auto& server = test::localhost_certificate();
    const auto own = certificates_in(server.certificate_file).at(0);
    const auto other = certificates_in(test::client_certificate().certificate_file).at(0);
    CHECK(meet_server(server, context, {record_of(own, dane_ee)}).peer_verified);
    CHECK(meet_server(server, context, {record_of(other, dane_ee)}).verify_result == X509_V_ERR_DANE_NO_MATCH);
    const auto without = meet_server(server, context, {});
    CHECK(without.is_accepted);
    CHECK(!without.peer_verified);
}

TEST_CASE("tlsa_records: keys that are pinned are demanded beside them")
{
    const auto& server = test::localhost_certificate();
    const auto own = certificates_in(server.certificate_file).at(0);
    const auto other = certificates_in(test::client_certificate().certificate_file).at(0);
    const std::string file = test::authority().ca_file();
    for (const us::certificate& pinned : {own, other})
    {
        const std::string pin = pinned.public_key_pin();
        auto context = us::create_client_context({.ca_file = file, .public_key_pins = pin});
        const bool is_right = pinned.native_handle() == own.native_handle();
        CHECK(meet_server(server, context, {record_of(own, dane_ee)}).is_accepted == is_right);
        CHECK(!meet_server(server, context, {record_of(other, dane_ee)}).is_accepted);
    }
}

TEST_CASE("tlsa_records: those that cannot be used are passed over, and are an error where there is no other")
{
    auto context = client_that_trusts(test::authority());
    const auto& server = test::localhost_certificate();
    const us::tlsa_record right = record_of(certificates_in(server.certificate_file).at(0), dane_ee);
    records unusable(6, right);
    unusable[0].usage = 4;
    unusable[1].selector = 2;
    unusable[2].matching_type = 3;
    unusable[3].data.pop_back();
    unusable[4].data.clear();
    unusable[5].matching_type = full;
    const auto error_with = [&](const records& expected)
    {
        std::error_code told;
        try
        {
            meet_server(server, context, expected);
        }
        catch (const std::system_error& error)
        {
            told = error.code();
        }
        CHECK(ERR_peek_error() == 0);
        return told;
    };
    for (const us::tlsa_record& each : unusable)
        CHECK(error_with({each}) == us::errc::tlsa_records_unusable);
    CHECK(error_with(unusable) == us::errc::tlsa_records_unusable);
    unusable.push_back(right);
    CHECK(meet_server(server, context, unusable).is_accepted);
}

TEST_CASE("tlsa_records: a session is resumed only where they accept its server")
{
    auto server = test::make_server_context();
    const auto own = certificates_in(test::localhost_certificate().certificate_file).at(0);
    const auto other = certificates_in(test::client_certificate().certificate_file).at(0);
    const std::string strangers = test::unrelated_authority().ca_file();
    auto context = us::create_client_context({.ca_file = strangers, .max_sessions = 8});
    const auto meet_with = [&](const records& expected) { return meet_server(server, context, expected); };

    CHECK(!meet_with({record_of(own, dane_ee)}).session_reused);
    CHECK(meet_with({record_of(own, dane_ee)}).session_reused);
    const auto mismatched = meet_with({record_of(other, dane_ee)});
    CHECK(mismatched.verify_result == X509_V_ERR_DANE_NO_MATCH);
    CHECK(!meet_with({record_of(own, dane_ee)}).session_reused); // the session was used up
    CHECK(!meet_with({}).is_accepted);                           // nobody trusts it without them
}

TEST_CASE("tlsa_records: what makes no sense is refused at the call")
{
    auto context = client_that_trusts(test::authority());
    auto server = test::make_server_context();
    const auto own = certificates_in(test::localhost_certificate().certificate_file).at(0);
    const records expected{record_of(own, dane_ee)};
    const std::string pin = own.public_key_pin();
    auto by_key = us::create_client_context({.verify_peer = false, .public_key_pins = pin});
    asio::ssl::context foreign(asio::ssl::context::tls_client);

    const auto refused = [&](const us::connection_options& given, const std::string& why)
    {
        us::connection_options options = given;
        options.tlsa_records = expected;
        CHECK_THROWS_MATCHES(us::open_connection("localhost", 1, options), std::invalid_argument,
                             test::message_contains(why));
    };
    refused({}, "tlsa_records and other_hostnames need ssl: without it the connection is in plain text");
    refused({.ssl = &context, .server_hostname = "127.0.0.1"},
            "tlsa_records need a server_hostname that is a DNS name");
    refused({.ssl = &by_key}, "the pins of a context that verifies nothing else");
    refused({.ssl = &foreign}, "tlsa_records need a context of create_client_context");
    CHECK_NOTHROW(us::open_connection("localhost", 1, {.ssl = &context, .tlsa_records = expected}));

    asio::io_context io;
    asio::ip::tcp::socket socket(io);
    us::upgradeable_stream<asio::ip::tcp::socket> stream(std::move(socket), {.ssl = &context});
    CHECK_THROWS_MATCHES(stream.start_tls({.tlsa_records = expected}), std::invalid_argument,
                         test::message_contains("tlsa_records need a server_hostname"));
    CHECK_THROWS_MATCHES(stream.start_tls({.ssl = &server, .role = us::tls_role::server, .tlsa_records = expected}),
                         std::invalid_argument, test::message_contains("tlsa_records are for clients"));
}

TEST_CASE("tlsa_records: they hold for the name that they were given for; another needs its own")
{
    auto context = client_that_trusts(test::authority());
    const auto own = certificates_in(test::localhost_certificate().certificate_file).at(0);
    const auto other = certificates_in(test::client_certificate().certificate_file).at(0);
    const records right{record_of(own, dane_ee)};
    const records wrong{record_of(other, dane_ee)};
    const bool accepts = GENERATE(true, false);
    const bool renames = GENERATE(true, false);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto sockets = test::tcp_pair(executor);
            test::raw_peer peer(sockets.second.release());
            us::connection_options options = upgradeable(context);
            options.server_hostname = renames ? "elsewhere.test" : "LocalHost.";
            options.tlsa_records = renames || !accepts ? wrong : right;
            auto pair = co_await us::open_connection(std::move(sockets.first), options);
            us::tls_options upgrade;
            upgrade.server_hostname = "localhost";
            if (renames)
            {
                CHECK_THROWS_MATCHES(pair.second.start_tls(upgrade), std::invalid_argument,
                                     test::message_contains("tlsa_records were given for \"elsewhere.test\"; give "
                                                            "those for \"localhost\" with it"));
                upgrade.tlsa_records = accepts ? right : wrong;
            }
            auto serving = test::run_in_thread(
                [&peer]
                {
                    try
                    {
                        peer.tls_accept(test::localhost_server());
                        return true;
                    }
                    catch (const std::exception&)
                    {
                        return false;
                    }
                });
            std::error_code error;
            try
            {
                pair = co_await pair.second.start_tls(upgrade);
            }
            catch (const us::tls_error& failed)
            {
                CHECK(failed.verify_result() == X509_V_ERR_DANE_NO_MATCH);
                CHECK_THAT(failed.what(), test::starts_with("TLS upgrade: the peer's certificate (CN=localhost) is not "
                                                            "accepted for \"localhost\" ("));
                CHECK_THAT(failed.what(), test::contains("TLSA"));
                error = failed.code();
            }
            CHECK(!error == accepts);
            pair.second.abort();
            co_await test::joined(std::move(serving));
        });
}

TEST_CASE("tlsa_records: a client of starttls/ that may go on in plain text does not, where a server has them")
{
    auto context = us::create_client_context({.verify_peer = false});
    const auto own = certificates_in(test::localhost_certificate().certificate_file).at(0);
    const records expected{record_of(own, dane_ee)};
    const bool is_of_connection = GENERATE(true, false);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto sockets = test::tcp_pair(executor);
            test::raw_peer peer(sockets.second.release());
            us::connection_options options = upgradeable(context);
            if (is_of_connection)
                options.tlsa_records = expected;
            auto pair = co_await us::open_connection(std::move(sockets.first), options);
            us::starttls::starttls_options how;
            how.policy = us::starttls_policy::attempt;
            if (!is_of_connection)
                how.tls.tlsa_records = expected;
            peer.send_all("220 ready\r\n250 and no STARTTLS\r\n");
            auto asked = us::starttls::smtp(pair.first, pair.second, how);
            const auto ended = co_await test::exception_of<us::starttls_error>(std::move(asked));
            CHECK(ended.code() == us::errc::tls_not_offered);
            CHECK(pair.second.is_closing());
        });
}

TEST_CASE("tlsa_records: with the policy never they are refused at the call, but of a connection that began in TLS")
{
    auto context = client_that_trusts(test::authority());
    const auto own = certificates_in(test::localhost_certificate().certificate_file).at(0);
    const records expected{record_of(own, dane_ee)};
    const bool is_tls = GENERATE(false, true);
    const bool is_of_connection = GENERATE(false, true);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto sockets = test::tcp_pair(executor);
            us::connection_options options = upgradeable(context);
            options.upgradeable = !is_tls;
            us::starttls::starttls_options how;
            how.policy = us::starttls_policy::never;
            (is_of_connection ? options.tlsa_records : how.tls.tlsa_records) = expected;
            auto serving = test::run_in_thread(
                [is_tls, raw = sockets.second.release()]
                {
                    test::raw_peer peer(raw);
                    if (is_tls)
                        peer.tls_accept(test::localhost_server());
                });
            auto pair = co_await us::open_connection(std::move(sockets.first), options);
            const auto ask = [&] { static_cast<void>(us::starttls::smtp(pair.first, pair.second, how)); };
            if (is_tls && is_of_connection)
                CHECK_NOTHROW(ask());
            else
                CHECK_THROWS_MATCHES(ask(), std::invalid_argument,
                                     test::message_contains("give them where TLS begins"));
            pair.second.abort();
            co_await test::joined(std::move(serving));
        });
}

TEST_CASE("other_hostnames: the certificate may be for one of them")
{
    const auto server =
        test::authority().issue({.common_name = "other", .dns_names = {"example.test"}, .by_intermediate = true});
    auto context = client_that_trusts(test::authority());
    auto served = test::make_server_context(server);
    const us::tlsa_record of_issuer = record_of(certificates_in(server.certificate_file).at(1), dane_ta);
    const records expected = GENERATE_COPY(records{}, records{of_issuer});
    const auto meet = [&](const std::vector<std::string>& others)
    {
        us::detail::tls_settings settings(
            {.ssl = &context, .server_hostname = "localhost", .tlsa_records = expected, .other_hostnames = others});
        test::ssl_pair pair(settings.make_ssl().release(), SSL_new(served.native_handle()));
        const bool is_accepted = pair.connect();
        CHECK(SSL_get_servername(pair.client(), TLSEXT_NAMETYPE_host_name) == "localhost"s);
        return is_accepted;
    };
    CHECK(meet({"other.test", "Example.TEST."}));
    CHECK_FALSE(meet({}));
    CHECK_FALSE(meet({"other.test", "sub.example.test"}));
}

TEST_CASE("other_hostnames: they are DNS names beside another, and go when a server of another name is meant")
{
    auto context = client_that_trusts(test::authority());
    const auto refused = [&](std::string_view name, std::string_view other, const std::string& why)
    {
        const std::vector others{other};
        CHECK_THROWS_MATCHES(
            us::detail::tls_settings({.ssl = &context, .server_hostname = name, .other_hostnames = others}).make_ssl(),
            std::invalid_argument, test::message_contains(why));
    };
    refused("localhost", "*.example.test", "holds a wildcard");
    refused("localhost", "", "is empty");
    refused("localhost", "127.0.0.1", "must be DNS names");
    refused("127.0.0.1", "localhost", "must be DNS names");
    refused("", "localhost", "other_hostnames need server_hostname");

    const std::vector others{"example.test"sv};
    us::detail::tls_settings settings({.ssl = &context, .server_hostname = "localhost", .other_hostnames = others});
    settings.apply({.server_hostname = "LOCALHOST"});
    CHECK(settings.other_hostnames.size() == 1);
    settings.apply({.server_hostname = "elsewhere.test"});
    CHECK(settings.other_hostnames.empty());
}
