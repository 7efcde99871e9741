// What is MySQL's own: the server's first packet, the client's flags, and where a login goes on.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/stream_links.hpp"

#include <upgradeable_streams/starttls/mysql.hpp>

#include <stdexcept>
#include <string>
#include <utility>

namespace us = upgradeable_streams;
using us::errc;

namespace
{

std::string mysql_packet(const std::string& payload, char number = 0)
{
    return std::string{static_cast<char>(payload.size()), '\0', '\0', number} + payload;
}

/// A greeting with these flags, which ends where flags of the upper half would begin.
std::string short_greeting(const std::string& flags)
{
    return std::string("\x0a"
                       "4.1\0"
                       "\x07\0\0\0"
                       "abcdefgh\0",
                       18) +
           flags;
}

test::outcome greet_mysql_client(const std::string& packet)
{
    const auto client = [](const us::stream_reader& reader, const us::stream_writer& writer,
                           const us::starttls::starttls_options& options)
    { return us::starttls::mysql(reader, writer, options); };
    return test::negotiate(client, {test::say(packet), {test::step::kind::finish}});
}

} // namespace

TEST_CASE("mysql: an error in place of a greeting is a refusal, and its number and words are shown")
{
    for (const auto& [payload, words] :
         {std::pair(std::string("\xff\x10\x04Too many connections", 23), "1040: Too many connections"),
          std::pair(std::string("\xff\x10\x04#08004Too many", 17), "1040: Too many"),
          std::pair(std::string("\xff\x10\x04#08", 6), "1040: "), std::pair(std::string("\xff"), "0: ")})
    {
        const test::outcome result = greet_mysql_client(mysql_packet(payload));
        CAPTURE(payload);
        CHECK(result.error == errc::request_refused);
        CHECK_THAT(result.what, test::starts_with("MySQL: localhost answered \"" + std::string(words) + '"'));
    }
}

TEST_CASE("mysql: a server without CLIENT_SSL or CLIENT_PROTOCOL_41 does not offer TLS, and is named")
{
    for (const std::string& flags : {std::string("\xff\xf7"), std::string("\xff\xfd"), std::string("\0\x08", 2)})
    {
        const test::outcome result = greet_mysql_client(mysql_packet(short_greeting(flags)));
        CHECK(result.error == errc::tls_not_offered);
        CHECK_THAT(result.what, test::contains("answered \"4.1\""));
    }
}

TEST_CASE("mysql: a greeting of another protocol, without its flags or out of sequence is malformed")
{
    const std::string good = short_greeting("\xff\xff");
    for (const std::string& packet : {mysql_packet(""), mysql_packet("\x09" + good.substr(1)),
                                      mysql_packet(good.substr(0, 19)), mysql_packet(good, 1),
                                      mysql_packet("\x0a"
                                                   "without an end"),
                                      mysql_packet("\x0a")})
    {
        const test::outcome result = greet_mysql_client(packet);
        CAPTURE(packet);
        CHECK(result.error == errc::reply_malformed);
    }
}

TEST_CASE("mysql: a login begins as the SSLRequest did, and without CLIENT_SSL in plain text")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::connection_options how = test::upgradeable_options();
            test::raw_link link = co_await test::link_with_raw_peer(how);
            const std::string greeting = short_greeting("\xfd\xaf");
            const us::starttls::mysql_client client{
                .capabilities = 0xffffffff, .max_packet_size = 0x01020304, .character_set = 8};
            std::string request;
            auto playing = test::run_in_thread(
                [&]
                {
                    link.peer.send_all(mysql_packet(greeting));
                    request = link.peer.recv_exactly(36);
                    link.peer.tls_accept(test::localhost_server());
                });
            const us::starttls::negotiated plain{link.reader, link.writer, {}, greeting};
            const std::string without_tls = us::starttls::mysql_login_header(plain, client);
            const us::starttls::negotiated made = co_await us::starttls::mysql(link.reader, link.writer, {}, client);
            co_await test::joined(std::move(playing));
            const std::string rest = std::string("\x04\x03\x02\x01\x08", 5) + std::string(23, '\0');
            CHECK(made.greeting == greeting);
            CHECK(request == std::string("\x20\0\0\x01\xfd\xaf\0\0", 8) + rest);
            CHECK(us::starttls::mysql_login_header(made, client) == request.substr(4));
            CHECK(without_tls == std::string("\xfd\xa7\0\0", 4) + rest);
            const us::starttls::negotiated other{made.reader, made.writer, {}, ""};
            CHECK_THROWS_AS(us::starttls::mysql_login_header(other), std::invalid_argument);
        });
}
