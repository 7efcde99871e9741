// What is ManageSieve's own: strings, quoted and literal.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/chunked_stream.hpp"

#include <upgradeable_streams/starttls/sieve.hpp>

#include <chrono>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using test::say;
using us::errc;

TEST_CASE("sieve: strings are quoted or literal, wherever they stand, and what they hold is not taken for lines")
{
    const std::vector<std::pair<std::string, std::string>> lines = {{"\"A\\\"\\\\\" \"b c\"\r\n", "A\"\\ b c"},
                                                                    {"{1}\r\nA {3}\r\nb c\r\n", "A b c"},
                                                                    {"{1+}\r\nA  \"b\" {0}\r\n\r\n", "A b"},
                                                                    {"\"A\" {2}\r\nOK\r\n", "A OK"},
                                                                    {"\"A\" \"{3}\"\r\n", "A {3}"},
                                                                    {"\"OK\"\r\n", "OK"}};
    for (const std::size_t chunk : test::chunk_sizes)
        for (const auto& [line, capability] : lines)
        {
            const test::outcome result =
                test::negotiate(us::starttls::sieve, {say(line + "ok (X \"a b\" {2}\r\n\r\n) {4}\r\n\"NO\"\r\n")},
                                {.policy = us::starttls_policy::attempt}, chunk);
            CAPTURE(line, chunk);
            CHECK(result.what == "");
            CHECK(result.goes_on);
            CHECK(result.capabilities == std::vector{capability});
        }
}

TEST_CASE("sieve: STARTTLS is offered by a whole string, literal too, in any case")
{
    for (const std::string offer :
         {"\"starttls\"\r\nOK\r\n", "{8}\r\nSTARTTLS\r\nOK\r\n", "{8+}\r\nStartTLS {0}\r\n\r\nOK\n"})
    {
        const test::outcome result =
            test::negotiate(us::starttls::sieve,
                            {say(offer), test::hear("STARTTLS\r\n"), say("OK\r\n"), test::begin_tls(), say("OK\r\n")});
        CAPTURE(offer);
        CHECK(result.what == "");
        CHECK(result.is_tls);
    }
}

TEST_CASE("sieve: literals that lie, open quotes and bare words are refused")
{
    const std::vector<std::pair<std::string, errc>> lines = {{"{7}\r\nSTARTTLS\r\nOK\r\n", errc::reply_malformed},
                                                             {"{90}\r\nSTARTTLS\r\nOK\r\n", errc::incomplete_read},
                                                             {"{65537}\r\nSTARTTLS\r\n", errc::reply_too_long},
                                                             {"{99999999999999999999999}\r\n", errc::reply_too_long},
                                                             {"{-1}\r\n", errc::reply_malformed},
                                                             {"{}\r\n", errc::reply_malformed},
                                                             {"\"A\" {+}\r\n", errc::reply_malformed},
                                                             {"\"A\r\n", errc::reply_malformed},
                                                             {"\"A\\\"\r\n", errc::reply_malformed},
                                                             {"\"A\\\r\n", errc::reply_malformed},
                                                             {"\"A\" b\r\n", errc::reply_malformed},
                                                             {"\"A\" {4}\r\nOK\r\n\r\n", errc::reply_malformed},
                                                             {"\"A\" {1}\r\n\x1b\r\n", errc::reply_malformed},
                                                             {"OK \"a\r\n", errc::reply_malformed},
                                                             {"\r\n", errc::reply_malformed},
                                                             {" OK\r\n", errc::reply_malformed},
                                                             {"\"\"\r\n", errc::reply_malformed}};
    for (const auto& [line, error] : lines)
    {
        const test::outcome result = test::negotiate(us::starttls::sieve, {say(line), {test::step::kind::finish}});
        CAPTURE(line);
        CHECK(result.error == error);
        CHECK(result.is_closed);
    }
}

TEST_CASE("sieve: a server that says nothing over TLS is given up at the deadline")
{
    std::vector<test::step> steps = test::conversation_of("sieve").steps;
    steps.back() = say("");
    const test::outcome result =
        test::negotiate(us::starttls::sieve, steps, {.timeout = std::chrono::milliseconds(200)});
    CHECK(result.error == errc::negotiation_timeout);
}

TEST_CASE("sieve: what came in plain text is not shown with what the server says unasked over TLS")
{
    std::vector<test::step> steps = test::conversation_of("sieve").steps;
    steps.back() = say("BYE \"no more\"\r\n");
    steps.push_back(say(""));
    const test::outcome result = test::negotiate(us::starttls::sieve, steps);
    CHECK(result.error == errc::request_refused);
    CHECK(result.reply == "BYE \"no more\"\r\n");
    CHECK(result.what ==
          "ManageSieve: localhost answered \"BYE \"no more\"\": the peer refused what it was asked for");
}
