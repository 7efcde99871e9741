// What is NNTP's own: responses of one line, most of which need no text.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/chunked_stream.hpp"

#include <upgradeable_streams/starttls/nntp.hpp>

#include <cstddef>
#include <string>
#include <vector>

namespace us = upgradeable_streams;
using test::hear;
using test::say;
using us::errc;

TEST_CASE("nntp: a server that lists nothing over TLS has no capabilities, and those from before are forgotten")
{
    for (const std::string answer : {"101\n.\n", "503 not now\r\n"})
    {
        std::vector<test::step> steps = test::conversation_of("nntp").steps;
        steps.back() = say(answer);
        const test::outcome result = test::negotiate(us::starttls::nntp, steps);
        CHECK(result.what == "");
        CHECK(result.is_tls);
        CHECK(result.capabilities.empty());
    }
}

TEST_CASE("nntp: a server that speaks with other servers first is asked to be a reader's")
{
    const std::vector<test::step> steps = {say("200 ready\r\n"),
                                           hear("CAPABILITIES\r\n"),
                                           say("101 list\r\nVERSION 2\r\nmode-reader\r\n.\r\n"),
                                           hear("MODE READER\r\n"),
                                           say("201 no posting\r\n"),
                                           hear("CAPABILITIES\r\n"),
                                           say("101 list\r\nVERSION 2\r\nREADER\r\nSTARTTLS\r\n.\r\n"),
                                           hear("STARTTLS\r\n"),
                                           say("382 go\r\n"),
                                           test::begin_tls(),
                                           hear("CAPABILITIES\r\n"),
                                           say("101 list\r\nVERSION 2\r\nREADER\r\n.\r\n")};
    for (const std::size_t chunk : test::chunk_sizes)
    {
        const test::outcome result = test::negotiate(us::starttls::nntp, steps, {}, chunk);
        CHECK(result.what == "");
        CHECK(result.trouble == "");
        CHECK(result.capabilities == std::vector<std::string>{"VERSION 2", "READER"});
    }
}

TEST_CASE("nntp: a server that does not know CAPABILITIES offers no TLS, and one that fails is no such server")
{
    for (const auto policy : {us::starttls_policy::require, us::starttls_policy::attempt})
        for (const std::string code : {"500", "501", "502", "503", "400", "403", "480", "483", "504", "599"})
        {
            const std::vector<test::step> steps = {
                say("200 ready\r\n"), hear("CAPABILITIES\r\n"), say(code + " no\r\n"), {test::step::kind::finish}};
            const test::outcome result = test::negotiate(us::starttls::nntp, steps, {.policy = policy});
            CAPTURE(code);
            if (code < "500" || code > "503")
                CHECK(result.error == errc::request_refused);
            else if (policy == us::starttls_policy::require)
                CHECK(result.error == errc::tls_not_offered);
            else
                CHECK(result.what == "");
        }
}

TEST_CASE("nntp: a code is three digits, alone or before a blank")
{
    for (const std::string response :
         {"20\r\n", "2000\r\n", "200-a\r\n", "2x0 a\r\n", " 200 a\r\n", "\r\n", "200\ta\r\n"})
    {
        const test::outcome result = test::negotiate(us::starttls::nntp, {say(response), {test::step::kind::finish}});
        CAPTURE(response);
        CHECK(result.error == errc::reply_malformed);
    }
}
