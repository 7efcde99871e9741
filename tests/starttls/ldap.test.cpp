// What is LDAP's own: BER that is right and wrong, result codes, and messageIDs.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/stream_links.hpp"

#include <upgradeable_streams/starttls/ldap.hpp>

#include <string>
#include <utility>

namespace us = upgradeable_streams;
using us::errc;

namespace
{

const std::string start_tls_oid = "1.3.6.1.4.1.1466.20037";

/// An element, with as many bytes of length as are wanted behind the first.
std::string ber(char tag, const std::string& content, int length_size = 0)
{
    std::string length(1, static_cast<char>(length_size ? 0x80 + length_size : int(content.size())));
    for (int i = length_size; i-- > 0;)
        length += static_cast<char>(i > 3 ? 0 : content.size() >> 8 * i & 0xff);
    return tag + length + content;
}

std::string extended_response(const std::string& result, const std::string& rest = "", char id = 1, int length_size = 0)
{
    return ber('\x30',
               ber('\x02', std::string(1, id), length_size) +
                   ber('\x78',
                       ber('\x0a', result, length_size) + ber('\x04', "", length_size) +
                           ber('\x04', "because", length_size) + rest,
                       length_size),
               length_size);
}

std::string start_tls_request(const std::string& id, int length_size = 0)
{
    return ber('\x30', ber('\x02', id, length_size) + ber('\x77', ber('\x80', start_tls_oid, length_size), length_size),
               length_size);
}

test::outcome answer_ldap_client(const std::string& answer, bool with_tls = false)
{
    std::vector<test::step> steps = {test::hear(start_tls_request("\x01")), test::say(answer)};
    steps.push_back({with_tls ? test::step::kind::tls : test::step::kind::finish});
    return test::negotiate(us::starttls::ldap, steps);
}

} // namespace

TEST_CASE(
    "ldap: a result but success is a refusal, and protocolError, unavailable or a referral that TLS is not offered")
{
    for (int code = 1; code < 128; ++code)
    {
        const test::outcome result = answer_ldap_client(extended_response(std::string(1, static_cast<char>(code))));
        CAPTURE(code);
        CHECK(result.error == (code == 2 || code == 10 || code == 52 ? errc::tls_not_offered : errc::request_refused));
        CHECK_THAT(result.what, test::starts_with("LDAP: to \"StartTLS\" localhost answered \"resultCode " +
                                                  std::to_string(code) + ": because\""));
    }
    const std::string large = extended_response(std::string("\x01\0\0\0", 4)); // not 0
    CHECK(answer_ldap_client(large).error == errc::request_refused);
}

TEST_CASE(
    "ldap: an answer is taken with lengths of every form, with the name of StartTLS, and with what is unknown in it")
{
    const std::string success(1, '\0');
    std::vector<std::string> answers;
    for (int length_size = 0; length_size <= 4; ++length_size)
        answers.push_back(extended_response(success, "", 1, length_size));
    answers.push_back(extended_response(success, ber('\x8a', start_tls_oid)));
    answers.push_back(extended_response(success, ber('\xa3', ber('\x04', "ldap://x")) + ber('\x9f', "?")));
    answers.push_back(ber('\x30', extended_response(success).substr(2) + ber('\xa0', ""))); // controls
    for (const std::string& answer : answers)
    {
        const test::outcome result = answer_ldap_client(answer, true);
        CHECK(result.what == "");
        CHECK(result.is_tls);
    }
}

TEST_CASE("ldap: an answer that is another message or of another request is malformed, and so are lengths that lie")
{
    const std::string success(1, '\0');
    const std::string good = extended_response(success);
    const std::string id = good.substr(2, 3), operation = good.substr(5);
    for (const std::string& answer :
         {std::string("\x30\x80\x02\x01\x01", 5),                            // indefinite
          extended_response(success, "", 1, 5),                              // longer than any
          extended_response(success, "", 2),                                 // of another request
          extended_response(success, ber('\x8a', "1.3.6.1.4.1.1466.20038")), // of another operation
          extended_response(success, ber('\x8a', "1.3.6.1.4.1.1466.20036")), // a notice with our messageID
          extended_response(""),
          extended_response(std::string(5, '\0')), // no number
          extended_response(success, "\x8a\x7f"),
          extended_response(success, "\x8a"),                 // cut short
          ber('\x30', id + ber('\x61', operation.substr(2))), // a BindResponse
          ber('\x30', operation),
          ber('\x30', ber('\x02', "") + operation),
          ber('\x30', ber('\x04', "\x01") + operation),
          ber('\x30', id + "\x78\x84\x7f\xff\xff\xff" + operation.substr(2)), // longer than what holds it
          ber('\x30', id + "\x78\x80" + operation.substr(2) + std::string(2, '\0')),
          ber('\x30', id + ber('\x78', ber('\x0a', success))),
          ber('\x30', id),
          ber('\x30', ""),
          ber('\x31', id + operation)})
    {
        const test::outcome result = answer_ldap_client(answer);
        CAPTURE(answer);
        CHECK(result.error == errc::reply_malformed);
    }
    CHECK(answer_ldap_client("\x30\x84\xff\xff\xff\xff" + good).error == errc::reply_too_long);
    CHECK(answer_ldap_client(std::string("\x30\x83\x01\0\0", 5) + good).error == errc::reply_too_long);
}

TEST_CASE("ldap: a notice that is unknown is passed over, and one of disconnection is a refusal")
{
    const std::string success(1, '\0');
    const std::string unknown = extended_response(success, "", 0) + extended_response("\x34", ber('\x8a', "1.2.3"), 0);
    const test::outcome gone_on = answer_ldap_client(unknown + extended_response(success), true);
    CHECK(gone_on.what == "");
    CHECK(gone_on.is_tls);
    CHECK(answer_ldap_client(unknown).error == errc::incomplete_read);
    const std::string notice = extended_response("\x34", ber('\x8a', "1.3.6.1.4.1.1466.20036"), 0);
    const test::outcome result = answer_ldap_client(notice);
    CHECK(result.error == errc::request_refused);
    CHECK_THAT(result.what, test::contains("resultCode 52: because"));
}

TEST_CASE("ldap: a request is known with lengths of every form, and answered with its messageID")
{
    for (const std::string& id : {std::string("\x02"), std::string("\0\xff", 2), std::string("\x7f\xff\xff\xff")})
        for (int length_size = 0; length_size <= 4; ++length_size)
        {
            const std::string request = start_tls_request(id, length_size);
            REQUIRE(us::starttls::is_ldap_request(request));
            const std::string heard = test::run(
                [&]() -> asio::awaitable<std::string>
                {
                    test::raw_link link = co_await test::link_with_raw_peer();
                    const auto answered = co_await us::starttls::answer_ldap(link.reader, link.writer, request);
                    auto writer = answered.second;
                    writer.close();
                    co_await writer.wait_closed();
                    co_return link.peer.recv_all();
                });
            CHECK_THAT(heard.substr(2), test::starts_with(ber('\x02', id) + '\x78'));
        }
    for (const std::string& id :
         {std::string(1, '\0'), std::string("\x80"), std::string("\0\0\0\0\x01", 5), std::string()})
        CHECK_FALSE(us::starttls::is_ldap_request(start_tls_request(id)));
    CHECK_FALSE(us::starttls::is_ldap_request(start_tls_request("\x01", 5)));
}

TEST_CASE("ldap: a request with a critical control is refused, as are malformed ones; others are ignored")
{
    const std::string request = start_tls_request("\x01").substr(2);
    const std::string type = ber('\x04', "1.2.3");
    const auto result_of = [&](const std::string& controls)
    {
        const std::string heard = test::run(
            [&]() -> asio::awaitable<std::string>
            {
                test::raw_link link = co_await test::link_with_raw_peer();
                auto [reader, writer] = co_await us::starttls::answer_ldap(link.reader, link.writer,
                                                                           ber('\x30', request + ber('\xa0', controls)));
                writer.close();
                co_await writer.wait_closed();
                co_return link.peer.recv_all();
            });
        return int(heard.at(9)); // behind the heads of the message and of the operation, and the messageID
    };
    const std::string critical = ber('\x30', type + ber('\x01', "\xff"));
    const std::string valued = ber('\x30', type + ber('\x01', "\xff") + ber('\x04', "value"));
    const std::string uncritical = ber('\x30', type + ber('\x01', std::string(1, '\0')));
    const std::string by_default = ber('\x30', type);
    CHECK(result_of(critical) == 12);
    CHECK(result_of(ber('\x30', type + ber('\x01', "\x01"))) == 12); // BER has true in many ways
    CHECK(result_of(valued) == 12);
    CHECK(result_of(by_default + uncritical + critical) == 12);
    CHECK(result_of(by_default + uncritical) == 52);
    CHECK(result_of("") == 52);
    CHECK(result_of(critical.substr(0, critical.size() - 1)) == 2);
    CHECK(result_of(ber('\x30', ber('\x01', "\xff"))) == 2);
    CHECK(result_of(type) == 2);
}
