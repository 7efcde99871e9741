// What is IMAP's own: greetings, tags, literals and goodbyes.

#include "conversation.hpp"
#include "support/catch.hpp"

#include <upgradeable_streams/starttls/imap.hpp>

#include <string>
#include <vector>

namespace us = upgradeable_streams;
using test::hear;
using test::say;
using us::errc;

TEST_CASE("imap: capabilities in the greeting are not asked for again, and those in other replies are not believed")
{
    for (const std::string greeting :
         {"* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n", "* ok [capability  StartTLS ]\n"})
    {
        const test::outcome result =
            test::negotiate(us::starttls::imap,
                            {say(greeting), hear("a2 STARTTLS\r\n"), say("* CAPABILITY X-PLAIN\r\na2 OK\r\n"),
                             test::begin_tls(), hear("a3 CAPABILITY\r\n"), say("A3 ok [CAPABILITY X-LATE] done\r\n")});
        CAPTURE(greeting);
        CHECK(result.what == "");
        CHECK(result.is_tls);
        CHECK(result.capabilities.empty());
    }
    for (const std::string greeting :
         {"* OK [CAPABILITY STARTTLS\r\n", "* OK STARTTLS [CAPABILITY STARTTLS]\r\n", "* OK\r\n",
          "* OK [ALERT] [CAPABILITY STARTTLS]\r\n", "* OK {x} {} {5} [{]}\r\n"})
    {
        const test::outcome result =
            test::negotiate(us::starttls::imap,
                            {say(greeting), hear("a1 CAPABILITY\r\n"), say("a1 OK\r\n"), {test::step::kind::finish}});
        CAPTURE(greeting);
        CHECK(result.error == errc::tls_not_offered);
        CHECK(result.trouble == "");
    }
}

TEST_CASE("imap: PREAUTH, which makes TLS impossible, is not silently gone along with")
{
    const std::string greeting = "* PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] welcome";
    const std::vector<test::step> steps = {say(greeting + "\r\n")};
    for (const us::starttls_policy policy : {us::starttls_policy::attempt, us::starttls_policy::never})
    {
        const test::outcome result = test::negotiate(us::starttls::imap, steps, {.policy = policy});
        CHECK(result.goes_on);
        CHECK_FALSE(result.is_tls);
        CHECK(result.greeting == greeting);
        CHECK(result.capabilities == std::vector<std::string>{"IMAP4rev1", "STARTTLS"});
    }
    const test::outcome result =
        test::negotiate(us::starttls::imap, {say("* PREAUTH hi\r\n"), {test::step::kind::finish}});
    CHECK(result.error == errc::tls_not_offered);
    CHECK(result.is_closed);
    CHECK(result.heard == "");
}

TEST_CASE("imap: a reply has the command's tag and nothing else, and a literal is refused")
{
    for (const std::string reply :
         {"a10 OK\r\n", "a OK\r\n", "a1OK\r\n", "b1 OK\r\n", " a1 OK\r\n", "+ OK\r\n", "OK\r\n", "\r\n", "a1 YES\r\n",
          "a1\r\n", "** OK\r\n", "* CAPABILITY IMAP4rev1 {8}\r\nSTARTTLS\r\na1 OK\r\n", "* X ~{4}\r\n", "* X {0}\r\n",
          "a1 OK {2}\r\n", "* X {3+}\r\n", "* X {99999999999999999999999}\r\n"})
    {
        const test::outcome result = test::negotiate(
            us::starttls::imap, {say("* OK\r\n"), hear("a1 CAPABILITY\r\n"), say(reply), {test::step::kind::finish}});
        CAPTURE(reply);
        CHECK(result.error == errc::reply_malformed);
    }
}

TEST_CASE("imap: a refusal is shown in its own words, whatever came before it")
{
    const test::outcome result = test::negotiate(
        us::starttls::imap, {say("* OK [CAPABILITY STARTTLS] ready\r\n"), hear("a2 STARTTLS\r\n"),
                             say("* OK [ALERT] " + std::string(200, 'x') + "\r\na2 NO not today\r\n"), say("")});
    CHECK(result.error == errc::request_refused);
    CHECK_THAT(result.what, test::contains("to \"STARTTLS\" localhost answered \"a2 NO not today\""));
}

TEST_CASE("imap: a goodbye over TLS is a refusal, with its words")
{
    std::vector<test::step> steps = test::conversation_of("imap").steps;
    steps.back() = say("* BYE no more\r\n");
    steps.push_back(say(""));
    const test::outcome result = test::negotiate(us::starttls::imap, steps);
    CHECK(result.what ==
          "IMAP: to \"CAPABILITY\" localhost answered \"* BYE no more\": the peer refused what it was asked for");
}
