// Who is who: certificates of servers and of clients, names, pins and sessions that are resumed, on readers and writers
// and on upgradeable_stream with either TLS layer.

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/contexts.hpp"
#include "support/echo_server.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/socket_pair.hpp"
#include "support/task.hpp"

#include <upgradeable_streams.hpp>

#include <asio/awaitable.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/read.hpp>
#include <asio/read_until.hpp>
#include <asio/redirect_error.hpp>
#include <asio/ssl/context.hpp>
#include <asio/ssl/stream.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/write.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using asio::awaitable;
using asio::ip::tcp;
using us::tls_role;
using namespace std::string_literals;

namespace
{

const std::string& ca_file()
{
    static const std::string file = test::authority().ca_file();
    return file;
}

us::key_pair_options identity_of(const test::issued& issued)
{
    return {.certificate_chain_file = issued.certificate_file, .private_key_file = issued.key_file};
}

asio::ssl::context demanding_server()
{
    return us::create_server_context(
        {.identity = identity_of(test::localhost_certificate()), .client_ca_file = ca_file()});
}

asio::ssl::context client_of(int version, us::client_context_options options = {})
{
    options.ca_file = ca_file();
    asio::ssl::context made = us::create_client_context(options);
    SSL_CTX_set_max_proto_version(made.native_handle(), version);
    return made;
}

std::string pin_of(const test::issued& issued)
{
    const test::openssl_ptr<BIO, BIO_free_all> in(BIO_new_file(issued.certificate_file.c_str(), "r"));
    const test::openssl_ptr<X509, X509_free> x509(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr));
    return us::certificate(x509.get()).public_key_pin();
}

/// A handler that tells what it knows of the connection, line by line, until the client leaves.
awaitable<void> tell(us::stream_reader reader, us::stream_writer writer)
{
    for (std::string line; !(line = co_await reader.readline()).empty();)
    {
        const us::tls_session session(writer.get_extra_info<"ssl_object">());
        const auto peer = writer.get_extra_info<"peercert">();
        writer.writelines({peer ? peer->subject() : "nobody", "; ",
                           *writer.get_extra_info<"session_reused">() ? "resumed" : "new", "; ",
                           session.server_name.value_or("no name"), "\n"});
    }
}

using pair_type = std::pair<us::stream_reader, us::stream_writer>;

awaitable<std::string> ask(pair_type& pair)
{
    pair.second.write("?\n");
    std::string answer = co_await pair.first.readline();
    co_return answer;
}

awaitable<void> leave(pair_type& pair)
{
    pair.second.close();
    co_await pair.second.wait_closed();
}

} // namespace

// Client certificates

TEST_CASE("client certificates: the handler is told who the client is, before and after an upgrade")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const bool upgradeable = GENERATE(false, true);
    test::run(
        [=]() -> awaitable<void>
        {
            auto server_ssl = demanding_server();
            auto client_ssl = client_of(version, {.identity = identity_of(test::client_certificate())});
            const auto handle = [upgradeable](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                if (upgradeable)
                {
                    const std::string starttls = co_await reader.readline();
                    if (writer.get_extra_info<"peercert">() || writer.get_extra_info<"session_reused">())
                        throw std::logic_error("nothing can be known of a peer in plain text");
                    std::tie(reader, writer) = co_await writer.start_tls();
                }
                co_await tell(std::move(reader), std::move(writer));
            };
            us::server server =
                co_await us::start_server(handle, "127.0.0.1", 0, {.ssl = &server_ssl, .upgradeable = upgradeable});
            const us::connection_options options = {
                .ssl = &client_ssl, .upgradeable = upgradeable, .server_hostname = "localhost"};
            auto pair = co_await us::open_connection("127.0.0.1", test::endpoint_of(server).port(), options);
            if (upgradeable)
            {
                pair.second.write("STARTTLS\n");
                pair = co_await pair.second.start_tls();
            }
            const std::string answer = co_await ask(pair);
            CHECK(answer == "CN=test client; new; localhost\n");
            co_await leave(pair);
        });
}

TEST_CASE("client certificates: a client that is refused learns why, in TLS 1.3 when it reads, and no handler is run")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const std::string which = GENERATE(as<std::string>(), "none", "of an unrelated authority", "expired");
    CAPTURE(version, which);
    test::run(
        [=]() -> awaitable<void>
        {
            const test::certificate_request request{.common_name = "client",
                                                    .valid_from = std::chrono::days(-3),
                                                    .valid_until = std::chrono::days(which == "expired" ? -1 : 1),
                                                    .client_auth = true};
            us::client_context_options given;
            test::issued issued;
            if (which != "none")
            {
                issued = (which == "expired" ? test::authority() : test::unrelated_authority()).issue(request);
                given.identity = identity_of(issued);
            }
            auto server_ssl = demanding_server();
            auto client_ssl = client_of(version, given);
            int handled = 0;
            const test::error_log errors;
            const auto handle = [&handled](us::stream_reader, us::stream_writer) -> awaitable<void>
            {
                ++handled;
                co_return;
            };
            us::server server =
                co_await us::start_server(handle, "127.0.0.1", 0, {.ssl = &server_ssl, .error_handler = errors});
            const us::connection_options options = {.ssl = &client_ssl, .server_hostname = "localhost"};
            std::string what;
            std::string when = "at the handshake";
            try
            {
                auto pair = co_await us::open_connection("127.0.0.1", test::endpoint_of(server).port(), options);
                when = "at the first read";
                co_await pair.first.readline();
                when = "never";
            }
            catch (const std::system_error& error)
            {
                what = error.what();
            }
            CHECK(when == (version == TLS1_3_VERSION ? "at the first read" : "at the handshake"));
            CHECK_THAT(what, test::contains(which == "expired"          ? "certificate expired"
                                            : which != "none"           ? "unknown ca"
                                            : version == TLS1_3_VERSION ? "certificate required"
                                                                        : "handshake failure"));
            co_await test::eventually([&] { return errors.size() == 1; });
            CHECK_THAT(errors.entries()[0].what,
                       test::contains(which == "none"      ? "peer did not return a certificate"
                                      : which == "expired" ? "certificate has expired"
                                                           : "unable to get local issuer certificate"));
            CHECK(handled == 0);
        });
}

// Names

TEST_CASE("names: a server shows the certificate that a client asks for, and its handler is told the name")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto mail = test::authority().issue({.common_name = "mail", .dns_names = {"mail.test"}});
            const auto members = test::authority().issue({.common_name = "members", .dns_names = {"members.test"}});
            auto server_ssl = [&]
            {
                auto mail_ssl = test::make_server_context(mail);
                auto members_ssl =
                    us::create_server_context({.identity = identity_of(members), .client_ca_file = ca_file()});
                const us::named_context contexts[] = {{"mail.test", &mail_ssl}, {"*.test", &members_ssl}};
                return us::create_server_context(
                    {.identity = identity_of(test::localhost_certificate()), .contexts_by_name = contexts});
            }();
            auto client_ssl = client_of(TLS1_3_VERSION, {.identity = identity_of(test::client_certificate())});
            us::server server = co_await us::start_server(tell, "127.0.0.1", 0, {.ssl = &server_ssl});
            for (const auto& [name, answer] : {std::pair("mail.test"s, "nobody; new; mail.test\n"s),
                                               std::pair("members.test"s, "CN=test client; new; members.test\n"s),
                                               std::pair("localhost"s, "nobody; new; localhost\n"s),
                                               std::pair("127.0.0.1"s, "nobody; new; no name\n"s)})
            {
                const us::connection_options options = {.ssl = &client_ssl, .server_hostname = name};
                auto pair = co_await us::open_connection("127.0.0.1", test::endpoint_of(server).port(), options);
                const std::string told = co_await ask(pair);
                CHECK(told == answer);
                co_await leave(pair);
            }
        });
}

TEST_CASE("names: a client of an unknown name is refused, and both ends tell why")
{
    test::run(
        []() -> awaitable<void>
        {
            auto server_ssl = us::create_server_context(
                {.identity = identity_of(test::localhost_certificate()), .refuse_unknown_names = true});
            auto client_ssl = client_of(TLS1_3_VERSION);
            const test::error_log errors;
            us::server server =
                co_await us::start_server(tell, "127.0.0.1", 0, {.ssl = &server_ssl, .error_handler = errors});
            const us::connection_options options = {.ssl = &client_ssl, .server_hostname = "other.test"};
            const auto error = co_await test::exception_of<us::tls_error>(
                us::open_connection("127.0.0.1", test::endpoint_of(server).port(), options));
            CHECK_THAT(error.what(), test::contains("unrecognized name"));
            co_await test::eventually([&] { return errors.size() == 1; });
            CHECK_THAT(errors.entries()[0].what, test::contains("unrecognized name"));
        });
}

// Pins

TEST_CASE("pins: a server with another key is refused, and the error tells why")
{
    test::run(
        []() -> awaitable<void>
        {
            const test::error_log errors;
            us::server server = co_await us::start_server(tell, "127.0.0.1", 0,
                                                          {.ssl = &test::server_context(), .error_handler = errors});
            const std::string other = pin_of(test::client_certificate());
            auto client_ssl = client_of(TLS1_3_VERSION, {.public_key_pins = other});
            const us::connection_options options = {.ssl = &client_ssl, .server_hostname = "localhost"};
            const std::uint16_t port = test::endpoint_of(server).port();
            const auto error =
                co_await test::exception_of<us::tls_error>(us::open_connection("127.0.0.1", port, options));
            CHECK(error.verify_result() == X509_V_ERR_APPLICATION_VERIFICATION);
            CHECK_THAT(error.what(), test::contains("its public key is not a pinned one"));
            CHECK(error.peer_certificate().value().public_key_pin() == pin_of(test::localhost_certificate()));

            auto self_signed_ssl = us::create_client_context(
                {.verify_peer = false, .public_key_pins = pin_of(test::localhost_certificate())});
            auto pair = co_await us::open_connection("127.0.0.1", port, {.ssl = &self_signed_ssl});
            const std::string answer = co_await ask(pair);
            CHECK(answer == "nobody; new; no name\n");
            co_await leave(pair);
        });
}

// Sessions

TEST_CASE("sessions: a client's connections resume those before them, and both ends are told")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const bool upgradeable = GENERATE(false, true);
    test::run(
        [=]() -> awaitable<void>
        {
            auto server_ssl = demanding_server();
            auto client_ssl =
                client_of(version, {.identity = identity_of(test::client_certificate()), .max_sessions = 8});
            const auto handle = [upgradeable](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                if (upgradeable)
                    std::tie(reader, writer) = co_await writer.start_tls();
                co_await tell(std::move(reader), std::move(writer));
            };
            us::server server =
                co_await us::start_server(handle, "127.0.0.1", 0, {.ssl = &server_ssl, .upgradeable = upgradeable});
            const us::connection_options options = {
                .ssl = &client_ssl, .upgradeable = upgradeable, .server_hostname = "localhost"};
            for (int i = 0; i < 4; ++i)
            {
                auto pair = co_await us::open_connection("127.0.0.1", test::endpoint_of(server).port(), options);
                if (upgradeable)
                    pair = co_await pair.second.start_tls();
                const std::string answer = co_await ask(pair);
                CHECK_THAT(answer, test::starts_with("CN=test client; "s + (i > 0 ? "resumed" : "new")));
                CHECK(pair.second.get_extra_info<"session_reused">() == (i > 0));
                CHECK(pair.second.get_extra_info<"peercert">()->subject() == "CN=localhost");
                co_await leave(pair);
            }
        });
}

TEST_CASE("sessions: an upgrade that is refused uses none up")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto server_ssl = demanding_server();
            auto client_ssl = client_of(
                TLS1_3_VERSION, {.identity = identity_of(test::client_certificate()), .max_sessions = 8});
            const auto handle = [](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                std::tie(reader, writer) = co_await writer.start_tls();
                co_await tell(std::move(reader), std::move(writer));
            };
            us::server server =
                co_await us::start_server(handle, "127.0.0.1", 0, {.ssl = &server_ssl, .upgradeable = true});
            const us::connection_options options = {
                .ssl = &client_ssl, .upgradeable = true, .server_hostname = "localhost"};
            for (const bool is_resumed : {false, true})
            {
                auto pair = co_await us::open_connection("127.0.0.1", test::endpoint_of(server).port(), options);
                const auto reading = test::spawn(executor, [&] { return pair.first.readline(); });
                co_await test::turns();
                const std::error_code refused = co_await test::error_of(pair.second.start_tls());
                CHECK(refused == us::errc::operation_in_progress);
                reading.cancel();
                const std::error_code cancelled = co_await test::error_of(reading.join());
                CHECK(cancelled == asio::error::operation_aborted);
                pair = co_await pair.second.start_tls();
                co_await ask(pair);
                CHECK(pair.second.get_extra_info<"session_reused">() == is_resumed);
                co_await leave(pair);
            }
        });
}

TEST_CASE("sessions: at most eight are kept for one name")
{
    test::run(
        []() -> awaitable<void>
        {
            auto server_ssl = test::make_server_context();
            SSL_CTX_set_num_tickets(server_ssl.native_handle(), 12);
            const us::server server = co_await us::start_server(tell, "127.0.0.1", 0, {.ssl = &server_ssl});
            auto client_ssl = client_of(TLS1_3_VERSION, {.max_sessions = 20});
            const us::connection_options options = {.ssl = &client_ssl, .server_hostname = "localhost"};
            const std::uint16_t port = test::endpoint_of(server).port();
            auto first = co_await us::open_connection("127.0.0.1", port, options);
            co_await ask(first); // what the tickets come before
            std::vector<us::stream_pair> others;
            int resumed = 0;
            for (int i = 0; i < 10; ++i)
            {
                others.push_back(co_await us::open_connection("127.0.0.1", port, options));
                resumed += others.back().second.session()->session_reused;
            }
            CHECK(resumed == 8);
            others.push_back(std::move(first));
            for (us::stream_pair& each : others)
                each.second.abort();
        });
}

TEST_CASE("sessions: resume_from resumes the session of another connection, as often as it is asked")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const bool upgradeable = GENERATE(false, true);
    const std::size_t max_sessions = GENERATE(0u, 8u);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto handle = [](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                if (!reader.is_tls())
                    std::tie(reader, writer) = co_await writer.start_tls();
                co_await tell(std::move(reader), std::move(writer));
            };
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0,
                                                          {.ssl = &test::server_context(), .upgradeable = upgradeable});
            auto client_ssl = client_of(version, {.max_sessions = max_sessions});
            us::connection_options options = {
                .ssl = &client_ssl, .upgradeable = upgradeable, .server_hostname = "localhost"};
            const std::uint16_t port = test::endpoint_of(server).port();
            auto control = co_await us::open_connection("127.0.0.1", port, options);
            if (upgradeable)
                control = co_await control.second.start_tls();
            const std::string greeting = co_await ask(control);
            CHECK(greeting == "nobody; new; localhost\n");
            for (int i = 0; i < 3; ++i)
            {
                options.resume_from = i == 1 ? nullptr : control.second.get_extra_info<"ssl_object">();
                auto data = co_await us::open_connection("127.0.0.1", port, options);
                if (upgradeable && i == 1)
                    data =
                        co_await data.second.start_tls({.resume_from = control.second.get_extra_info<"ssl_object">()});
                else if (upgradeable)
                    data = co_await data.second.start_tls();
                const std::string answer = co_await ask(data);
                const bool resumed = upgradeable || i != 1 || max_sessions > 0;
                CHECK_THAT(answer, test::starts_with("nobody; "s + (resumed ? "resumed" : "new")));
                data.second.close();
                co_await data.second.wait_closed();
            }
            const std::string still = co_await ask(control);
            CHECK(still == greeting);
            co_await leave(control);
        });
}

TEST_CASE("sessions: resume_from where the session is unknown, or cannot be resumed yet, is a handshake in full")
{
    test::run(
        []() -> awaitable<void>
        {
            us::server one = co_await us::start_server(tell, "127.0.0.1", 0, {.ssl = &test::server_context()});
            auto other_ssl = test::make_server_context();
            us::server other = co_await us::start_server(tell, "127.0.0.1", 0, {.ssl = &other_ssl});
            const auto impostor_files =
                test::unrelated_authority().issue({.common_name = "impostor", .dns_names = {"localhost"}});
            auto impostor_ssl = test::make_server_context(impostor_files);
            const test::error_log errors;
            us::server impostor =
                co_await us::start_server(tell, "127.0.0.1", 0, {.ssl = &impostor_ssl, .error_handler = errors});
            us::connection_options options = {.ssl = &test::client_context(), .server_hostname = "localhost"};
            auto control = co_await us::open_connection("127.0.0.1", test::endpoint_of(one).port(), options);
            options.resume_from = control.second.get_extra_info<"ssl_object">(); // its ticket is not read yet
            auto early = co_await us::open_connection("127.0.0.1", test::endpoint_of(one).port(), options);
            CHECK(early.second.get_extra_info<"session_reused">() == false);
            co_await leave(early);
            co_await ask(control);
            auto elsewhere = co_await us::open_connection("127.0.0.1", test::endpoint_of(other).port(), options);
            CHECK(elsewhere.second.get_extra_info<"session_reused">() == false);
            co_await leave(elsewhere);
            const auto error = co_await test::exception_of<us::tls_error>(
                us::open_connection("127.0.0.1", test::endpoint_of(impostor).port(), options));
            CHECK(error.verify_result() == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY);
            co_await leave(control);
        });
}

TEST_CASE("sessions: resume_from is std::invalid_argument for another context or name, a server, and no session")
{
    test::run(
        []() -> awaitable<void>
        {
            SSL* server_side = nullptr;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                server_side = writer.get_extra_info<"ssl_object">();
                co_await tell(std::move(reader), std::move(writer));
            };
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.ssl = &test::server_context()});
            const std::uint16_t port = test::endpoint_of(server).port();
            us::connection_options options = {.ssl = &test::client_context(), .server_hostname = "localhost"};
            auto control = co_await us::open_connection("127.0.0.1", port, options);
            co_await ask(control);
            SSL* const from = control.second.get_extra_info<"ssl_object">();
            const test::openssl_ptr<SSL, SSL_free> fresh(SSL_new(test::client_context().native_handle()));
            auto other_ssl = test::make_client_context();
            const auto refused = [&](const us::tls_options& bad, const std::string& reason)
            {
                asio::io_context io;
                us::upgradeable_stream<tcp::socket> stream{tcp::socket(io)};
                CHECK_THROWS_MATCHES(stream.start_tls(bad), std::invalid_argument, test::message_contains(reason));
                using other_stream = us::upgradeable_stream<tcp::socket, us::tls_stream>;
                CHECK_THROWS_MATCHES(other_stream(tcp::socket(io), bad), std::invalid_argument,
                                     test::message_contains(reason));
            };
            asio::ssl::context* const ssl = &test::client_context();
            refused({.ssl = &other_ssl, .server_hostname = "localhost", .resume_from = from}, "same context");
            refused({.server_hostname = "localhost", .resume_from = from}, "same context");
            refused({.ssl = ssl, .server_hostname = "127.0.0.1", .resume_from = from}, "same server_hostname");
            refused({.ssl = ssl, .resume_from = from}, "same server_hostname");
            refused({.ssl = ssl, .role = tls_role::server, .resume_from = from}, "is for clients");
            refused({.ssl = ssl, .server_hostname = "localhost", .resume_from = server_side}, "client's connection");
            refused({.ssl = ssl, .server_hostname = "localhost", .resume_from = fresh.get()}, "client's connection");
            options.resume_from = from;
            options.server_hostname = "127.0.0.1";
            CHECK_THROWS_AS(us::open_connection("localhost", port, options), std::invalid_argument);
            options = {.resume_from = from};
            CHECK_THROWS_AS(us::open_connection("localhost", port, options), std::invalid_argument);
            co_await leave(control);
        });
}

TEST_CASE("sessions: a name or context that is given later is not that of resume_from, whose session is then not used")
{
    test::run(
        []() -> awaitable<void>
        {
            us::server server = co_await us::start_server(
                [](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
                {
                    std::tie(reader, writer) = co_await writer.start_tls();
                    co_await tell(std::move(reader), std::move(writer));
                },
                "127.0.0.1", 0, {.ssl = &test::server_context(), .upgradeable = true});
            const std::uint16_t port = test::endpoint_of(server).port();
            us::connection_options options = {
                .ssl = &test::client_context(), .upgradeable = true, .server_hostname = "localhost"};
            auto control = co_await us::open_connection("127.0.0.1", port, options);
            control = co_await control.second.start_tls();
            co_await ask(control);
            options.resume_from = control.second.get_extra_info<"ssl_object">();
            auto other_ssl = test::make_client_context();
            for (const us::tls_options& later :
                 {us::tls_options{.server_hostname = "127.0.0.1"}, us::tls_options{.ssl = &other_ssl}})
            {
                auto data = co_await us::open_connection("127.0.0.1", port, options);
                data = co_await data.second.start_tls(later);
                CHECK(data.second.get_extra_info<"session_reused">() == false);
                co_await leave(data);
            }
            co_await leave(control);
        });
}

TEST_CASE("sessions: ALPN is agreed on anew when a session is resumed")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    test::run(
        [=]() -> awaitable<void>
        {
            auto server_ssl = us::create_server_context(
                {.identity = identity_of(test::localhost_certificate()), .alpn_protocols = "imap"});
            auto client_ssl = client_of(version, {.alpn_protocols = "imap", .max_sessions = 8});
            const test::error_log errors;
            us::server server =
                co_await us::start_server(tell, "127.0.0.1", 0, {.ssl = &server_ssl, .error_handler = errors});
            const us::connection_options options = {.ssl = &client_ssl, .server_hostname = "localhost"};
            const std::uint16_t port = test::endpoint_of(server).port();
            for (int i = 0; i < 2; ++i)
            {
                auto pair = co_await us::open_connection("127.0.0.1", port, options);
                const std::string answer = co_await ask(pair);
                CHECK_THAT(answer, test::starts_with("nobody; "s + (i > 0 ? "resumed" : "new")));
                CHECK(pair.second.get_extra_info<"alpn_protocol">() == "imap");
                co_await leave(pair);
            }
            SSL_CTX_set_alpn_select_cb(server_ssl.native_handle(), nullptr, nullptr); // it no longer chooses
            const auto error =
                co_await test::exception_of<us::tls_error>(us::open_connection("127.0.0.1", port, options));
            CHECK(error.code() == us::errc::alpn_not_agreed);
        });
}

TEMPLATE_TEST_CASE("sessions: a stream resumes, by the context and by resume_from, with a pin and by name", "",
                   (us::upgradeable_stream<tcp::socket>), (us::upgradeable_stream<tcp::socket, us::tls_stream>))
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const bool by_hand = GENERATE(false, true);
    CAPTURE(version, by_hand);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            const auto mail = test::authority().issue({.common_name = "mail", .dns_names = {"mail.test"}});
            auto mail_ssl = test::make_server_context(mail);
            const us::named_context contexts[] = {{"mail.test", &mail_ssl}};
            auto server_ssl = us::create_server_context(
                {.identity = identity_of(test::localhost_certificate()), .contexts_by_name = contexts});
            const std::string pin = pin_of(mail);
            auto client_ssl =
                client_of(version, {.public_key_pins = pin, .max_sessions = by_hand ? std::size_t(0) : 8});
            std::optional<TestType> first;
            for (int i = 0; i < 4; ++i)
            {
                auto sockets = test::tcp_pair(executor);
                TestType stream(std::move(sockets.first), {.ssl = &client_ssl, .server_hostname = "mail.test"});
                const auto serving = test::spawn(
                    executor,
                    [&]() -> awaitable<us::tls_session>
                    {
                        TestType peer(std::move(sockets.second), {.ssl = &server_ssl, .role = tls_role::server});
                        co_await peer.start_tls();
                        co_await asio::async_write(peer, asio::buffer("hello\n", 6), asio::use_awaitable);
                        auto session = peer.session();
                        std::error_code ignored;
                        std::string rest;
                        co_await asio::async_read(peer, asio::dynamic_buffer(rest),
                                                  asio::redirect_error(asio::use_awaitable, ignored));
                        co_await peer.async_shutdown({}, asio::redirect_error(asio::use_awaitable, ignored));
                        co_return *session;
                    });
                SSL* const from = first && by_hand ? first->native_handle() : nullptr;
                co_await stream.start_tls({.resume_from = from});
                std::string line;
                co_await asio::async_read_until(stream, asio::dynamic_buffer(line), '\n', asio::use_awaitable);
                const auto told = stream.session();
                CHECK(told->session_reused == (i > 0));
                CHECK(told->peer_certificate->subject() == "CN=mail");
                CHECK(told->verify_result == X509_V_OK);
                co_await stream.async_shutdown({}, asio::use_awaitable);
                const us::tls_session at_peer = co_await serving.join();
                CHECK(at_peer.session_reused == (i > 0));
                CHECK(at_peer.server_name == "mail.test");
                if (!first)
                    first = std::move(stream);
            }
        });
}
