// What is SMTP's own: replies of several lines, names, and the answers of servers.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/chunked_stream.hpp"
#include "support/contexts.hpp"
#include "support/raw_peer.hpp"
#include "support/stream_links.hpp"
#include "support/thread.hpp"
#include "support/tls_settings.hpp"

#include <upgradeable_streams/starttls/smtp.hpp>

#include <asio/awaitable.hpp>
#include <asio/ssl/error.hpp>

#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using test::hear;
using test::say;
using us::errc;

TEST_CASE("smtp: the lines of a reply have one code, and each its mark")
{
    for (const std::string reply :
         {"250-a\r\n251 b\r\n", "250-a\r\n220-b\r\n250 c\r\n", "250+a\r\n", "25 a\r\n", "2500 a\r\n", "\r\n",
          "ab0 c\r\n", "250\t\r\n", "250 \x01\r\n", "250 \x7f\r\n", "250 a\rb\r\n"})
    {
        const test::outcome result = test::negotiate(
            us::starttls::smtp,
            {say("220 ready\r\n"), hear("EHLO [127.0.0.1]\r\n"), say(reply), {test::step::kind::finish}});
        CAPTURE(reply);
        CHECK(result.error == errc::reply_malformed);
    }
}

TEST_CASE("smtp: STARTTLS is found as a whole word, in any case and on any line, and lines may end in LF")
{
    for (const std::string reply : {"250 STARTTLS\r\n", "250-a\r\n250-starttls\r\n250 b\r\n",
                                    "250-\n250-StartTLS\n250\n"})
    {
        const std::string offer = reply.starts_with("250 ") ? "250-a\r\n" + reply : reply;
        const test::outcome result = test::negotiate(us::starttls::smtp,
                                                     {say("220\r\n"), hear("EHLO [127.0.0.1]\r\n"), say(offer),
                                                      hear("STARTTLS\r\n"), say("220\n"), test::begin_tls(),
                                                      hear("EHLO [127.0.0.1]\r\n"), say("250 a\r\n")});
        CAPTURE(reply);
        CHECK(result.what == "");
        CHECK(result.is_tls);
        CHECK(result.capabilities.empty());
    }
}

TEST_CASE("smtp: a server that does not know EHLO does not offer TLS, and is told HELO where that is allowed")
{
    for (const std::string answer : {"500 what?\r\n", "502-what\r\n502 is it?\r\n", "504 no\r\n"})
    {
        CAPTURE(answer);
        std::vector<test::step> steps = {say("220\r\n"), hear("EHLO [127.0.0.1]\r\n"), say(answer)};
        const test::outcome refused = test::negotiate(us::starttls::smtp, steps);
        CHECK(refused.error == errc::tls_not_offered);
        CHECK(refused.reply == answer);
        CHECK(refused.is_closed);
        steps.insert(steps.end(), {hear("HELO [127.0.0.1]\r\n"), say("250 mail.example\r\n")});
        for (const us::starttls_policy policy : {us::starttls_policy::attempt, us::starttls_policy::never})
        {
            const test::outcome result = test::negotiate(us::starttls::smtp, steps, {.policy = policy});
            CHECK(result.what == "");
            CHECK(result.trouble == "");
            CHECK_FALSE(result.is_tls);
            CHECK(result.capabilities.empty());
            CHECK(result.goes_on);
        }
        steps.back() = say("550 go away\r\n");
        steps.push_back({test::step::kind::finish});
        const test::outcome again =
            test::negotiate(us::starttls::smtp, steps, {.policy = us::starttls_policy::attempt});
        CHECK(again.error == errc::request_refused);
        CHECK(again.reply == "550 go away\r\n");
    }
    for (const std::string answer : {"501 not a name\r\n", "550 no\r\n", "554 no\r\n", "421 bye\r\n"})
    {
        const test::outcome result = test::negotiate(
            us::starttls::smtp, {say("220\r\n"), hear("EHLO [127.0.0.1]\r\n"), say(answer), {test::step::kind::finish}},
            {.policy = us::starttls_policy::attempt});
        CHECK(result.error == errc::request_refused);
    }
    const test::outcome local = test::negotiate(
        us::starttls::lmtp,
        {say("220\r\n"), hear("LHLO [127.0.0.1]\r\n"), say("500 what?\r\n"), {test::step::kind::finish}},
        {.policy = us::starttls_policy::attempt});
    CHECK(local.error == errc::request_refused);
}

TEST_CASE("smtp: a server that ends TLS amid its answer is shown with its last words")
{
    std::vector<test::step> steps = test::conversation_of("smtp").steps;
    steps.back() = say("421 4.3.2 shutting");
    steps.push_back({test::step::kind::finish});
    const test::outcome result = test::negotiate(us::starttls::smtp, steps);
    CHECK(result.error == asio::ssl::error::stream_truncated);
    CHECK(result.reply == "421 4.3.2 shutting");
    CHECK_THAT(result.what, test::starts_with("SMTP: to \"EHLO\" localhost answered \"421 4.3.2 shutting\": "));
    CHECK(result.is_closed);
}

TEST_CASE("smtp: a server that demands a certificate of the client is told of as the one that refuses")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::connection_options how = test::upgradeable_options();
            test::raw_link link = co_await test::link_with_raw_peer(how);
            test::tls_settings settings = test::localhost_server();
            settings.ca_file = test::authority().ca_file();
            auto playing = test::run_in_thread(
                [&]
                {
                    link.peer.send_all("220\r\n");
                    link.peer.recv_line();
                    link.peer.send_all("250-a\r\n250 STARTTLS\r\n");
                    link.peer.recv_line();
                    link.peer.send_all("220 go\r\n");
                    try
                    {
                        link.peer.tls_accept(settings);
                    }
                    catch (const std::exception&) // who has no certificate
                    {
                    }
                });
            const auto ended =
                co_await test::exception_of<us::starttls_error>(us::starttls::smtp(link.reader, link.writer));
            co_await test::joined(std::move(playing));
            CHECK_THAT(ended.what(), test::starts_with("SMTP: to \"EHLO\" localhost answered nothing: "));
            CHECK_THAT(ended.what(), test::contains("certificate required"));
            CHECK(ended.code().category() == asio::error::get_ssl_category());
            CHECK(link.writer.is_closing());
        });
}

TEST_CASE("smtp: a server that fails behind its go-ahead, over TLS, is told with its words")
{
    std::vector<test::step> steps = test::conversation_of("smtp").steps;
    steps.back() = say("421 no more\r\n");
    steps.push_back(say(""));
    const test::outcome result = test::negotiate(us::starttls::smtp, steps);
    CHECK(result.error == errc::request_refused);
    CHECK(result.what ==
          "SMTP: to \"EHLO\" localhost answered \"421 no more\": the peer refused what it was asked for");
}

TEST_CASE("smtp: a client calls itself by the name that it is given, which is one word")
{
    const test::outcome named =
        test::negotiate(us::starttls::smtp, {say("220\r\n"), hear("EHLO client.example\r\n"), say("250 a\r\n")},
                        {.policy = us::starttls_policy::never, .client_name = "client.example"});
    CHECK(named.trouble == "");
    CHECK(named.goes_on);
    test::run(
        []() -> asio::awaitable<void>
        {
            test::raw_link link = co_await test::link_with_raw_peer();
            for (const std::string_view name : {"a b", "a\r\nMAIL", "\xc3\xa4"})
                CHECK_THROWS_AS(us::starttls::smtp(link.reader, link.writer,
                                                   {.policy = us::starttls_policy::never, .client_name = name}),
                                std::invalid_argument);
        });
}

TEST_CASE("smtp: over a connection that began with TLS, never says the same words")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::connection_options how = test::options_of(true);
            test::raw_link link = co_await test::link_with_raw_peer(how);
            std::string heard;
            auto playing = test::run_in_thread(
                [&]
                {
                    link.peer.tls_write("220\r\n");
                    heard = link.peer.tls_read_line();
                    link.peer.tls_write("250-a\r\n250 AUTH PLAIN\r\n");
                });
            const us::starttls::starttls_options never{.policy = us::starttls_policy::never};
            const us::starttls::negotiated made = co_await us::starttls::smtp(link.reader, link.writer, never);
            co_await test::joined(std::move(playing));
            CHECK(heard == "EHLO [127.0.0.1]\r\n");
            CHECK(made.reader.is_tls());
            CHECK(made.capabilities == std::vector<std::string>{"AUTH PLAIN"});
        });
}
