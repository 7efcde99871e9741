// What is HTTP's own: statuses, authorities and users, and a proxy that is in TLS itself.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/chunked_stream.hpp"
#include "support/contexts.hpp"
#include "support/raw_peer.hpp"
#include "support/stream_links.hpp"
#include "support/task.hpp"
#include "support/thread.hpp"
#include "support/tls_settings.hpp"

#include <upgradeable_streams/starttls/http_connect.hpp>

#include <asio/awaitable.hpp>

#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

namespace us = upgradeable_streams;
using us::errc;

namespace
{

/// To localhost:443.
test::outcome answer_http_client(const std::string& answer, bool with_tls = false)
{
    const auto client =
        [](const us::stream_reader& reader, const us::stream_writer& writer, const us::starttls::starttls_options&)
    { return us::starttls::http_connect(reader, writer, "localhost", 443); };
    const std::string request = "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n";
    return test::negotiate(
        client,
        {test::hear(request), test::say(answer), {with_tls ? test::step::kind::tls : test::step::kind::finish}});
}

} // namespace

TEST_CASE("http_connect: any 2xx of HTTP/1 is a go-ahead, with or without headers, and behind interim responses")
{
    for (const std::string answer :
         {"HTTP/1.0 200\r\n\r\n", "HTTP/1.1 299 \xc3\xa4\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 200 OK\n\n",
          "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 204 x\r\nA: b\r\n "
          "c\r\n\r\n"})
    {
        const test::outcome result = answer_http_client(answer, true);
        CAPTURE(answer);
        CHECK(result.what == "");
        CHECK(result.is_tls);
    }
}

TEST_CASE("http_connect: any other status is a refusal that shows it, and what is no status line is malformed")
{
    for (const std::string status :
         {"101 Switching", "301 Moved", "403 Forbidden", "407 Login", "502 Bad", "099 x", "900 x"})
    {
        const test::outcome result = answer_http_client("HTTP/1.1 " + status + "\r\nA: b\r\n\r\n");
        CHECK(result.error == errc::request_refused);
        CHECK_THAT(result.what,
                   test::contains("HTTP: to \"CONNECT localhost:443\" localhost answered \"HTTP/1.1 " + status + '"'));
    }
    const test::outcome late = answer_http_client("HTTP/1.1 103 Early Hints\r\nLink: " + std::string(200, 'x') +
                                                  "\r\n\r\nHTTP/1.1 407 Login\r\n\r\n");
    CHECK_THAT(late.what, test::contains("localhost answered \"HTTP/1.1 407 Login\""));
    for (const std::string line :
         {"HTTP/2 200 OK", "HTTP/1.2 200 OK", "HTTP/1.1  200 OK", "HTTP/1.1 20", "HTTP/1.1 2000", "HTTP/1.1 2x0 OK",
          "ICY 200 OK", "", " HTTP/1.1 200 OK", "HTTP/1.1 200\tOK"})
    {
        CAPTURE(line);
        CHECK(answer_http_client(line + "\r\n\r\n").error == errc::reply_malformed);
    }
}

TEST_CASE("http_connect: the certificate must be for the target, not for the proxy")
{
    const auto client =
        [](const us::stream_reader& reader, const us::stream_writer& writer, const us::starttls::starttls_options&)
    { return us::starttls::http_connect(reader, writer, "target.example", "8443"); };
    const std::string request = "CONNECT target.example:8443 HTTP/1.1\r\nHost: target.example:8443\r\n\r\n";
    const test::outcome result =
        test::negotiate(client, {test::hear(request), test::say("HTTP/1.1 200 OK\r\n\r\n"), test::begin_tls()});
    CHECK_THAT(result.what, test::contains("not accepted for \"target.example\""));
    CHECK(result.is_closed);
}

TEST_CASE(
    "http_connect: a tunnel in plain text is to the target, for which the certificate must be when TLS begins later")
{
    const std::string name = GENERATE("", "localhost");
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const us::connection_options how = test::upgradeable_options();
            test::raw_link link = co_await test::link_with_raw_peer(how);
            auto playing = test::run_in_thread(
                [&]
                {
                    link.peer.recv_exactly(std::string_view("CONNECT target.example:25 HTTP/1.1\r\n"
                                                            "Host: target.example:25\r\n\r\n")
                                               .size());
                    link.peer.send_all("HTTP/1.1 200 OK\r\n\r\n");
                    try
                    {
                        link.peer.tls_accept(test::localhost_server());
                    }
                    catch (const std::exception&) // when the certificate is refused
                    {
                    }
                });
            const us::starttls::starttls_options never{.policy = us::starttls_policy::never,
                                                       .tls = {.server_hostname = name}};
            us::starttls::negotiated made =
                co_await us::starttls::http_connect(link.reader, link.writer, "target.example", 25, never);
            std::string what;
            try
            {
                std::tie(made.reader, made.writer) = co_await made.writer.start_tls();
            }
            catch (const us::tls_error& error)
            {
                what = error.what();
            }
            co_await test::joined(std::move(playing));
            if (name.empty())
                CHECK_THAT(what, test::contains("not accepted for \"target.example\""));
            else
                CHECK(what == "");
            CHECK(made.reader.is_tls() == !name.empty());
        });
}

TEST_CASE("http_connect: user and password are in the request, and not in errors")
{
    const auto client =
        [](const us::stream_reader& reader, const us::stream_writer& writer, const us::starttls::starttls_options&)
    {
        return us::starttls::http_connect(reader, writer, "::1", 1, {}, {.user = "Aladdin", .password = "open sesame"});
    };
    const std::string secret = "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="; // RFC 7617 section 2
    const std::string request =
        "CONNECT [::1]:1 HTTP/1.1\r\nHost: [::1]:1\r\nProxy-Authorization: Basic " + secret + "\r\n\r\n";
    for (const std::string answer : {"HTTP/1.1 407 No\r\n", "?", "HTTP/1.1 200 OK\r\n\r\nx", "nothing\r\n"})
    {
        const test::outcome result =
            test::negotiate(client, {test::hear(request), test::say(answer), {test::step::kind::finish}});
        CHECK(result.trouble == "");
        CHECK(result.what != "");
        CHECK(result.what.find(secret) == std::string::npos);
        CHECK(result.what.find("sesame") == std::string::npos);
    }
}

TEST_CASE("http_connect: hosts, ports, users and passwords that would make another request are refused at the call")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::connection_options how = test::upgradeable_options();
            test::raw_link link = co_await test::link_with_raw_peer(how);
            const auto refuse = [&](std::string_view host, us::port_number port = 443, std::string_view user = {},
                                    std::string_view password = {})
            {
                CAPTURE(host, user, password);
                CHECK_THROWS_AS(us::starttls::http_connect(link.reader, link.writer, host, port, {},
                                                           {.user = user, .password = password}),
                                std::invalid_argument);
            };
            for (const std::string_view host : {"", "a b", "a\r\nb", "a\n", "a:80", "[::1]:80", "[]", "user@a", "a/",
                                                "a?", "a#", "fe80::1%eth0", "*.a", "\xc3\xa4", "[::1", "::g"})
                refuse(host);
            refuse(std::string_view("a\0b", 3));
            refuse("a", "https");
            refuse("a", "1\r\n");
            refuse("a", 1, "b:c", "d");
            refuse("a", 1, "b\r\nc", "d");
            refuse("a", 1, "b", std::string_view("c\0", 2));
            refuse("a", 1, "b", "c\x7f");
            CHECK_FALSE(link.writer.is_closing());
        });
}

TEST_CASE("http_connect: through a proxy that is in TLS itself, TLS with the target goes inside")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::connection_options how = test::options_of(true);
            test::stream_link link = co_await test::link_of_streams(how);
            const auto executor = co_await asio::this_coro::executor;
            auto other = test::spawn(executor,
                                     [&]() -> asio::awaitable<void>
                                     {
                                         const std::string request = co_await link.peer_reader.readuntil("\r\n\r\n");
                                         link.peer_writer.write("HTTP/1.1 200 OK\r\n\r\n");
                                         std::tie(link.peer_reader, link.peer_writer) =
                                             co_await link.peer_writer.start_tls<us::within_tls>();
                                         link.peer_writer.write("from the target\n");
                                     });
            CHECK_THROWS_AS(us::starttls::http_connect(link.reader, link.writer, "localhost", 1), std::system_error);
            us::starttls::negotiated made = co_await us::starttls::http_connect(
                link.reader, link.writer, "localhost", 1, {.policy = us::starttls_policy::never});
            auto [reader, writer] = co_await made.writer.start_tls<us::within_tls>({.server_hostname = "localhost"});
            const std::string line = co_await reader.readline();
            CHECK(line == "from the target\n");
            co_await other.join();
        });
}
