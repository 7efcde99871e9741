// What is SMTP's own: replies of several lines, names, and the answers of servers.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/chunked_stream.hpp"

#include <upgradeable_streams/starttls/smtp.hpp>

#include <stdexcept>
#include <string>
#include <string_view>

namespace us = upgradeable_streams;
using test::hear;
using test::say;
using us::errc;

TEST_CASE("smtp: the lines of a reply have one code, and each its mark")
{
    for (const std::string reply : {"250-a\r\n251 b\r\n", "250-a\r\n220-b\r\n250 c\r\n", "250+a\r\n", "25 a\r\n", "2500 a\r\n",
                                    "\r\n", "ab0 c\r\n", "250\t\r\n", "250 \x01\r\n", "250 a\rb\r\n"})
    {
        const test::outcome result = test::negotiate(
            us::starttls::smtp, {say("220 ready\r\n"), hear("EHLO [127.0.0.1]\r\n"), say(reply), {test::step::kind::finish}});
        CAPTURE(reply);
        CHECK(result.error == errc::reply_malformed);
    }
}

TEST_CASE("smtp: STARTTLS is found as a whole word, in any case and on any line, and lines may end in LF or without words")
{
    for (const std::string reply : {"250 STARTTLS\r\n", "250-a\r\n250-starttls\r\n250 b\r\n", "250-\n250-StartTLS\n250\n"})
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

TEST_CASE("smtp: a server that fails behind its go-ahead, over TLS, is told with its words")
{
    std::vector<test::step> steps = test::conversation_of("smtp").steps;
    steps.back() = say("421 no more\r\n");
    steps.push_back(say(""));
    const test::outcome result = test::negotiate(us::starttls::smtp, steps);
    CHECK(result.error == errc::request_refused);
    CHECK(result.what == "SMTP: to \"EHLO\" the server answered \"421 no more\": the peer refused what it was asked for");
}
