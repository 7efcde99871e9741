// What is FTP's own: nothing is offered beforehand, data connections are to be encrypted too, and replies have lines of
// any form.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/contexts.hpp"
#include "support/raw_peer.hpp"
#include "support/stream_links.hpp"
#include "support/thread.hpp"

#include <upgradeable_streams/starttls/ftp.hpp>

#include <asio/awaitable.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using test::hear;
using test::say;
using us::errc;

TEST_CASE(
    "ftp: with attempt a refusal of AUTH TLS leads on in plain text, but not a server that goes away or is at odds")
{
    for (const std::string refusal : {"500\r\n", "502 what?\r\n", "504 TLS?\r\n", "530 who?\r\n", "534 no\r\n",
                                      "431 not now\r\n", "500-a\r\n234 b\r\n500 c\r\n"})
    {
        const test::outcome result = test::negotiate(
            us::starttls::ftp,
            {say("220 ready\r\n"), hear("AUTH TLS\r\n"), say(refusal), hear("FEAT\r\n"), say("500\r\n")},
            {.policy = us::starttls_policy::attempt});
        CAPTURE(refusal);
        CHECK(result.what == "");
        CHECK(result.trouble == "");
        CHECK_FALSE(result.is_tls);
        CHECK(result.goes_on);
    }
    for (const std::string refusal : {"421 bye\r\n", "334 ADAT=\r\n", "200 ok\r\n"})
    {
        const test::outcome result = test::negotiate(
            us::starttls::ftp, {say("220 ready\r\n"), hear("AUTH TLS\r\n"), say(refusal), {test::step::kind::finish}},
            {.policy = us::starttls_policy::attempt});
        CAPTURE(refusal);
        CHECK(result.error == errc::request_refused);
        CHECK(result.is_closed);
    }
}

TEST_CASE("ftp: a server that would leave data connections in plain text is refused, over TLS")
{
    for (const std::size_t nth : {2u, 3u}) // PBSZ and PROT
    {
        const std::vector<test::step> steps =
            test::instead(test::conversation_of("ftp").steps, nth, {say("536 no\r\n"), say("")});
        for (const us::starttls_policy policy : {us::starttls_policy::require, us::starttls_policy::attempt})
        {
            const test::outcome result = test::negotiate(us::starttls::ftp, steps, {.policy = policy});
            CHECK(result.error == errc::request_refused);
            CHECK(result.reply == "536 no\r\n");
            CHECK_FALSE(result.goes_on);
        }
    }
}

TEST_CASE("ftp: where the connection began with TLS, data connections are encrypted too")
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
                    for (const char* answer : {"220 ready\r\n", "200 0\r\n", "200 private\r\n"})
                    {
                        link.peer.tls_write(answer);
                        heard += link.peer.tls_read_line();
                    }
                    link.peer.tls_write("211 none\r\n");
                });
            const us::starttls::starttls_options never{.policy = us::starttls_policy::never};
            const us::starttls::negotiated made = co_await us::starttls::ftp(link.reader, link.writer, never);
            co_await test::joined(std::move(playing));
            CHECK(heard == "PBSZ 0\r\nPROT P\r\nFEAT\r\n");
            CHECK(made.reader.is_tls());
        });
}

TEST_CASE("ftp: a server that wants the login before PBSZ and PROT is gone on with, over TLS")
{
    std::vector<test::step> steps = test::conversation_of("ftp").steps;
    std::ranges::find(steps, "200 0\r\n", &test::step::bytes)->bytes = "530 who?\r\n";
    for (const std::string bytes : {"PROT P\r\n", "200-so\r\n200 private\r\n"})
        steps.erase(std::ranges::find(steps, bytes, &test::step::bytes));
    const test::outcome result = test::negotiate(us::starttls::ftp, steps);
    CHECK(result.what == "");
    CHECK(result.trouble == "");
    CHECK(result.is_tls);
    CHECK(result.capabilities == test::conversation_of("ftp").capabilities);
}

TEST_CASE("ftp: a server need not know FEAT, and answers it with features or a refusal")
{
    std::vector<test::step> steps = test::conversation_of("ftp").steps;
    for (const std::string answer : {"500 what?\r\n", "530 who?\r\n", "211 none\r\n", "211-\n211 \n"})
    {
        steps.back() = say(answer);
        const test::outcome result = test::negotiate(us::starttls::ftp, steps);
        CAPTURE(answer);
        CHECK(result.what == "");
        CHECK(result.is_tls);
        CHECK(result.capabilities.empty());
    }
    steps.push_back(say(""));
    for (const auto& [answer, error] : {std::pair("200 ok\r\n", errc::reply_malformed),
                                        std::pair("421 going away\r\n", errc::request_refused)})
    {
        steps.at(steps.size() - 2) = say(answer);
        const test::outcome result = test::negotiate(us::starttls::ftp, steps);
        CHECK(result.error == error);
    }
}

TEST_CASE("ftp: a server that goes away behind a reply that it is not ready yet is shown with its last words")
{
    const test::outcome result = test::negotiate(
        us::starttls::ftp, {say("120 wait " + std::string(200, 'x') + "\r\n421 going away\r\n"), say("")});
    CHECK(result.error == errc::request_refused);
    CHECK_THAT(result.what, test::contains("localhost answered \"421 going away\""));
}

TEST_CASE("ftp: a reply of several lines ends where its code and a blank begin a line")
{
    for (const std::string last : {"220\r\n", " 220 \r\n", "220-\r\n", "2200 \r\n", "221 \r\n", ""})
    {
        const test::outcome result =
            test::negotiate(us::starttls::ftp, {say("220-a\r\n" + last), {test::step::kind::finish}});
        CAPTURE(last);
        CHECK(result.error == errc::incomplete_read);
    }
}
