// What is PostgreSQL's own: an answer of one byte, and error messages of two ages.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/chunked_stream.hpp"

#include <upgradeable_streams/starttls/postgres.hpp>

#include <ctime>
#include <string>
#include <utility>

namespace us = upgradeable_streams;
using us::errc;

namespace
{

test::outcome answer_postgres_client(const std::string& answer,
                                     us::starttls_policy policy = us::starttls_policy::require)
{
    const std::string request("\0\0\0\x08\x04\xd2\x16\x2f", 8);
    return test::negotiate(us::starttls::postgres, {test::hear(request), test::say(answer), {test::step::kind::finish}},
                           {.policy = policy});
}

} // namespace

TEST_CASE("postgres: an error message is a refusal whatever the policy, and its words are shown")
{
    for (const auto& [message, words] :
         {std::pair(std::string("ESorry, too many clients\n\0", 26), "Sorry, too many clients"),
          std::pair(std::string("E\0\0\0\x20SFATAL\0C53300\0Mtoo many\0Rx\0\0", 33), "too many"),
          std::pair(std::string("E\0\0\0\x12SFATAL\0C53300", 19), "E\\x00\\x00\\x00\\x12SFATAL"),
          std::pair(std::string("E\0\0\0\x04", 5), "E\\x00\\x00\\x00\\x04")})
        for (const auto policy : {us::starttls_policy::attempt, us::starttls_policy::require})
        {
            const test::outcome result = answer_postgres_client(message, policy);
            CAPTURE(message);
            CHECK(result.error == errc::request_refused);
            CHECK_THAT(result.what,
                       test::starts_with("PostgreSQL: to \"SSLRequest\" localhost answered \"" + std::string(words)));
            CHECK(result.reply == message);
            CHECK(result.is_closed);
        }
}

TEST_CASE("postgres: sizes of error messages that lie are found out")
{
    CHECK(answer_postgres_client(std::string("E\0\0\0\x7fSFATAL\0", 12)).error == errc::incomplete_read);
    CHECK(answer_postgres_client(std::string("E\0\0\0\x03SFATAL\0", 12)).error == errc::request_refused);
    CHECK(answer_postgres_client("E\xff\xff\xff\xff" + std::string(100'000, 'x')).error == errc::reply_too_long);
    const test::outcome large = answer_postgres_client(std::string("E\0\0\x75\x30", 5) + std::string(30'000, 'M'));
    CHECK(large.error == errc::request_refused);
    CHECK(large.reply.size() == 512);
}

TEST_CASE("postgres: the fields of an error message are not copied over and over")
{
    std::string message("E\0\0\x75\x30", 5);
    while (message.size() < 1 + 30'000)
        message += std::string("M\0", 2);
    message.resize(1 + 30'000);
    const auto begin = std::clock();
    const test::outcome result = answer_postgres_client(message);
    CHECK(result.error == errc::request_refused);
    CHECK(std::clock() - begin < CLOCKS_PER_SEC / 4);
}

TEST_CASE("postgres: no byte but S, N and E is an answer")
{
    for (int byte = 0; byte < 256; ++byte)
        if (byte != 'S' && byte != 'N' && byte != 'E')
        {
            const test::outcome result = answer_postgres_client(std::string(1, static_cast<char>(byte)));
            CAPTURE(byte);
            CHECK(result.error == errc::reply_malformed);
        }
}
