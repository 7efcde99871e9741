// What is IRC's own: nothing is offered beforehand, and servers talk of other things meanwhile.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/stream_links.hpp"

#include <upgradeable_streams/starttls/irc.hpp>

#include <asio/awaitable.hpp>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using test::hear;
using test::say;
using us::errc;

TEST_CASE("irc: with attempt a refusal leads on in plain text, but not a server that goes away")
{
    const us::starttls::starttls_options attempt{.policy = us::starttls_policy::attempt};
    for (const std::string refusal :
         {"421 STARTTLS\r\n", ":irc.example 451 * :You have not registered\r\n", "@a :b 691 * :failed\n"})
    {
        const test::outcome result = test::negotiate(us::starttls::irc, {hear("STARTTLS\r\n"), say(refusal)}, attempt);
        CAPTURE(refusal);
        CHECK(result.what == "");
        CHECK_FALSE(result.is_tls);
        CHECK(result.goes_on);
    }
    const test::outcome result = test::negotiate(
        us::starttls::irc, {hear("STARTTLS\r\n"), say("ERROR :Closing link\r\n"), {test::step::kind::finish}}, attempt);
    CHECK(result.what ==
          "IRC: to \"STARTTLS\" localhost answered \"ERROR :Closing link\": the peer refused what it was asked for");
}

TEST_CASE("irc: numerics are commands, not what stands in parameters, tags or prefixes")
{
    const std::string others =
        "\r\n670x\r\nNOTICE 670\r\n:670 NOTICE * :670 691 421\r\n@670 :691 001 670 :ERROR\r\n:670\r\n@691\r\n"
        ":irc.example NOTICE * :\x02Hello\x0f \x03"
        "4you\r\n:a :b 421 c\r\n:a @b 421 c\r\n";
    const test::outcome result =
        test::negotiate(us::starttls::irc, {hear("STARTTLS\r\n"), say(others + "670\r\n"), test::begin_tls()});
    CHECK(result.what == "");
    CHECK(result.is_tls);
    CHECK(result.capabilities.empty());
}

TEST_CASE("irc: a PING is answered with what it holds, in plain text and not where TLS has to begin")
{
    for (const auto& [pings, pongs] :
         {std::pair("PING :a  b\r\n", "PONG :a  b\r\n"), std::pair(":x PING a\nPING b\n", "PONG a\r\nPONG b\r\n")})
    {
        const test::outcome upgraded =
            test::negotiate(us::starttls::irc, {hear("STARTTLS\r\n"), say(pings), say("670\r\n"), test::begin_tls()});
        CHECK(upgraded.what == "");
        CHECK(upgraded.trouble == "");
        CHECK(upgraded.is_tls);
        CHECK(upgraded.goes_on);
        const test::outcome plain =
            test::negotiate(us::starttls::irc, {hear("STARTTLS\r\n"), say(pings), say("421\r\n"), hear(pongs)},
                            {.policy = us::starttls_policy::attempt});
        CHECK(plain.what == "");
        CHECK(plain.trouble == "");
        CHECK_FALSE(plain.is_tls);
        CHECK(plain.goes_on);
    }
    const test::outcome result = test::negotiate(
        us::starttls::irc, {hear("STARTTLS\r\n"), say("PING :a\rQUIT\r\n"), {test::step::kind::finish}});
    CHECK(result.error == errc::reply_malformed);
    CHECK(result.heard == "STARTTLS\r\n");
}

TEST_CASE("irc: a server's name is one word")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            test::raw_link link = co_await test::link_with_raw_peer();
            for (const std::string name : {"", "a b", "a\r\nb"})
                CHECK_THROWS_AS(us::starttls::answer_irc(link.reader, link.writer, "STARTTLS\r\n", name),
                                std::invalid_argument);
        });
}
