// What is NBD's own: flags on both sides, and replies of 20 bytes and words.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/chunked_stream.hpp"

#include <upgradeable_streams/starttls/nbd.hpp>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using namespace std::string_literals;
using us::errc;

namespace
{

const std::string start_tls = "IHAVEOPT\0\0\0\5\0\0\0\0"s;
const std::string reply_header = "\0\3\xe8\x89\x04\x55\x65\xa9\0\0\0\5"s;

std::string greet(std::string_view flags)
{
    return "NBDMAGICIHAVEOPT" + std::string(flags);
}

test::outcome answer_nbd_client(const std::string& reply, us::starttls_policy policy = us::starttls_policy::require)
{
    return test::negotiate(
        us::starttls::nbd,
        {test::say(greet("\0\3"s)), test::hear("\0\0\0\3"s + start_tls), test::say(reply), {test::step::kind::finish}},
        {.policy = policy});
}

} // namespace

TEST_CASE("nbd: the client has those flags that the server has and it knows itself")
{
    for (const auto& [flags, own] :
         {std::pair("\0\0"s, "\0\0\0\0"s), {"\0\1"s, "\0\0\0\1"s}, {"\0\2"s, "\0\0\0\2"s}, {"\xff\xff"s, "\0\0\0\3"s}})
        for (const auto policy : {us::starttls_policy::never, us::starttls_policy::attempt})
        {
            const bool asks = policy == us::starttls_policy::attempt && (flags[1] & 1) != 0;
            std::vector steps = {test::say(greet(flags)), test::hear(own)};
            if (asks)
                steps.insert(steps.end(),
                             {test::hear(start_tls), test::say(reply_header + "\0\0\0\1\0\0\0\0"s), test::begin_tls()});
            const test::outcome result = test::negotiate(us::starttls::nbd, steps, {.policy = policy});
            CAPTURE(flags, asks, result.what, result.trouble);
            CHECK(!result.error);
            CHECK(result.is_tls == asks);
            CHECK(result.greeting == greet(flags));
            CHECK(result.goes_on);
            CHECK(result.heard == own + (asks ? start_tls : ""));
        }
}

TEST_CASE("nbd: an error is shown by its number and words")
{
    for (const auto& [reply, words] : {std::pair(reply_header + "\x80\0\0\1\0\0\0\0"s, "error 1\""),
                                       {reply_header + "\x80\0\0\2\0\0\0\2no"s, "error 2: no\""},
                                       {reply_header + "\x80\0\0\7\0\0\0\5bye\x1b!"s, "error 7: bye\\x1b!\""},
                                       {reply_header + "\xff\xff\xff\xff\0\0\0\0"s, "error 2147483647\""}})
    {
        const test::outcome result = answer_nbd_client(reply);
        CHECK_THAT(result.what, test::starts_with("NBD: to \"NBD_OPT_STARTTLS\" localhost answered \""s + words));
        CHECK(result.reply == reply);
        CHECK(result.is_closed);
    }
}

TEST_CASE("nbd: of the errors those three that say that there is no TLS leave plain text to who may use it")
{
    for (char number = 0; number < 12; ++number)
        for (const auto policy : {us::starttls_policy::require, us::starttls_policy::attempt})
        {
            const test::outcome result = answer_nbd_client(reply_header + "\x80\0\0"s + number + "\0\0\0\1x"s, policy);
            const bool is_unavailable = number == 1 || number == 2 || number == 4;
            CAPTURE(int(number), result.what);
            if (is_unavailable && policy == us::starttls_policy::attempt)
                CHECK((!result.error && !result.is_tls && !result.is_closed));
            else
                CHECK(result.error == (is_unavailable ? errc::tls_not_offered : errc::request_refused));
        }
}

TEST_CASE("nbd: a reply that is none to NBD_OPT_STARTTLS, and a go-ahead with data, are malformed")
{
    for (std::size_t at = 0; at < 16; ++at)
    {
        std::string reply = reply_header + "\0\0\0\1\0\0\0\0"s;
        reply[at] ^= 0x10;
        CAPTURE(at);
        CHECK(answer_nbd_client(reply, us::starttls_policy::attempt).error == errc::reply_malformed);
    }
    CHECK(answer_nbd_client(reply_header + "\0\0\0\1\0\0\0\1x"s).error == errc::reply_malformed);
    CHECK(answer_nbd_client(reply_header + "\0\0\0\2\0\0\0\0"s).error == errc::reply_malformed);
}

TEST_CASE("nbd: sizes of errors that lie are found out")
{
    CHECK(answer_nbd_client(reply_header + "\x80\0\0\1\0\0\0\5no"s).error == errc::incomplete_read);
    CHECK(answer_nbd_client(reply_header + "\x80\0\0\1\xff\xff\xff\xff"s).error == errc::reply_too_long);
    const test::outcome large = answer_nbd_client(reply_header + "\x80\0\0\1\0\0\xf0\0"s + std::string(0xf000, 'x'));
    CHECK(large.error == errc::tls_not_offered);
    CHECK(large.reply.size() == 512);
}
