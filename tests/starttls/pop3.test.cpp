// What is POP3's own: a server need not know CAPA.

#include "conversation.hpp"
#include "support/catch.hpp"

#include <upgradeable_streams/starttls/pop3.hpp>

#include <string>
#include <vector>

namespace us = upgradeable_streams;
using test::say;
using us::errc;

TEST_CASE("pop3: a server that refuses CAPA over TLS has no capabilities, and those from before are forgotten")
{
    std::vector<test::step> steps = test::conversation_of("pop3").steps;
    steps.back() = say("-ERR\r\n");
    const test::outcome result = test::negotiate(us::starttls::pop3, steps);
    CHECK(result.what == "");
    CHECK(result.is_tls);
    CHECK(result.capabilities.empty());
    CHECK(result.greeting == "");
}

TEST_CASE("pop3: a status is +OK or -ERR as a whole word")
{
    for (const std::string status : {"+OK\n", "+ok ready\r\n"})
    {
        const test::outcome result =
            test::negotiate(us::starttls::pop3, {say(status), test::hear("CAPA\r\n"), say("-err\r\n")},
                            {.policy = us::starttls_policy::attempt});
        CAPTURE(status);
        CHECK(result.what == "");
        CHECK(result.goes_on);
    }
    for (const std::string status :
         {"+OK,\r\n", "+\r\n", "OK\r\n", "\r\n", " +OK\r\n", "-ERROR\r\n", "+ OK\r\n", "* OK\r\n"})
    {
        const test::outcome result = test::negotiate(us::starttls::pop3, {say(status), {test::step::kind::finish}});
        CAPTURE(status);
        CHECK(result.error == errc::reply_malformed);
    }
}
