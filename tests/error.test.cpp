#include <upgradeable_streams/error.hpp>

#include "support/catch.hpp"

#include <asio/error.hpp>

#include <iterator>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;

namespace
{

constexpr us::errc all_codes[] = {
    us::errc::not_upgradeable,       us::errc::already_tls,           us::errc::upgrade_in_progress,
    us::errc::connection_upgraded,   us::errc::plaintext_injection,   us::errc::operation_in_progress,
    us::errc::connection_closed,     us::errc::stream_unusable,       us::errc::handshake_timeout,
    us::errc::shutdown_timeout,      us::errc::connect_timeout,       us::errc::connect_failed,
    us::errc::incomplete_read,       us::errc::limit_overrun,         us::errc::alpn_not_agreed,
    us::errc::proxy_header_invalid,  us::errc::proxy_header_timeout,  us::errc::operation_timeout,
    us::errc::not_tls,               us::errc::tls_not_offered,       us::errc::request_refused,
    us::errc::reply_malformed,       us::errc::reply_too_long,        us::errc::negotiation_timeout,
};

} // namespace

TEST_CASE("errc: each code has a message of its own and is an error")
{
    std::set<std::string> messages;
    for (const us::errc code : all_codes)
    {
        const std::error_code error = code;
        CHECK(error);
        CHECK(&error.category() == &us::category());
        CHECK(error == code);
        CHECK(error.message() != "unknown error");
        messages.insert(error.message());
    }
    CHECK(messages.size() == std::size(all_codes));
}

TEST_CASE("errc: the category tells its name, and does not know other values")
{
    CHECK(std::string(us::category().name()) == "upgradeable_streams");
    CHECK(us::category().message(0) == "unknown error");
    CHECK(us::category().message(4711) == "unknown error");
}

TEST_CASE("errc: the six timeouts, and only they, are std::errc::timed_out")
{
    const std::set<us::errc> timeouts = {us::errc::handshake_timeout, us::errc::shutdown_timeout,
                                         us::errc::connect_timeout, us::errc::proxy_header_timeout,
                                         us::errc::negotiation_timeout, us::errc::operation_timeout};
    for (const us::errc code : all_codes)
        CHECK((make_error_code(code) == std::errc::timed_out) == timeouts.contains(code));
}

TEST_CASE("errc: a code is neither one of Asio's nor another of its own")
{
    CHECK(make_error_code(us::errc::not_upgradeable) != us::errc::already_tls);
    CHECK(make_error_code(us::errc::connection_closed) != asio::error::eof);
    CHECK(make_error_code(us::errc::handshake_timeout) != us::errc::shutdown_timeout);
    CHECK(std::error_code(static_cast<int>(us::errc::not_upgradeable), std::generic_category()) !=
          us::errc::not_upgradeable);
}

TEST_CASE("errc: an asio::error_code can be made of it and compared with it")
{
    const asio::error_code error = us::errc::plaintext_injection;
    CHECK(error == us::errc::plaintext_injection);
    CHECK(error != us::errc::already_tls);
}

TEST_CASE("incomplete_read_error: it tells what was read and what was expected")
{
    const us::incomplete_read_error error("abc", 5);
    CHECK(error.partial() == "abc");
    CHECK(error.expected() == 5u);
    CHECK(error.code() == us::errc::incomplete_read);
    CHECK_THAT(error.what(), test::contains("3 bytes read of 5 expected"));
}

TEST_CASE("incomplete_read_error: expected is empty when a separator was asked for")
{
    const us::incomplete_read_error error("abc", std::nullopt);
    CHECK(!error.expected());
    CHECK_THAT(error.what(), test::contains("3 bytes read"));
    CHECK_THAT(error.what(), !test::contains("expected"));
}

TEST_CASE("limit_overrun_error: it tells how many bytes hold no separator")
{
    const us::limit_overrun_error error(65537);
    CHECK(error.consumed() == 65537);
    CHECK(error.code() == us::errc::limit_overrun);
}

TEST_CASE("tls_error: it carries the code, the verify result and what the peer sent")
{
    const us::tls_error error(us::errc::plaintext_injection, "TLS upgrade", 10, "454 TLS not available\r\n");
    CHECK_FALSE(error.peer_certificate());
    CHECK(error.code() == us::errc::plaintext_injection);
    CHECK(error.verify_result() == 10);
    CHECK(error.received() == "454 TLS not available\r\n");
    CHECK_THAT(error.what(), test::starts_with("TLS upgrade"));
    CHECK_THAT(error.what(), test::contains("plain text where TLS had to begin"));
}

TEST_CASE("connect_error: it tells each address and its reason, in order")
{
    const us::connect_error error(
        us::errc::connect_failed, "example.org:25",
        {{"[::1]:25", asio::error::connection_refused}, {"127.0.0.1:25", us::errc::connect_timeout}});
    CHECK(error.code() == us::errc::connect_failed);
    REQUIRE(error.attempts().size() == 2);
    CHECK(error.attempts()[0].address == "[::1]:25");
    CHECK(error.attempts()[0].error == asio::error::connection_refused);
    CHECK(error.attempts()[1].address == "127.0.0.1:25");
    CHECK(error.attempts()[1].error == us::errc::connect_timeout);

    const std::string what = error.what();
    const auto first = what.find("[::1]:25: " + std::error_code(asio::error::connection_refused).message());
    const auto second = what.find("127.0.0.1:25: " + make_error_code(us::errc::connect_timeout).message());
    CHECK_THAT(what, test::starts_with("cannot connect to example.org:25"));
    REQUIRE(first != what.npos);
    REQUIRE(second != what.npos);
    CHECK(first < second);
}

TEST_CASE("connect_error: a reason that all addresses have in common is told once")
{
    const std::error_code refused = asio::error::connection_refused;
    const us::connect_error error(refused, "localhost:25", {{"[::1]:25", refused}, {"127.0.0.1:25", refused}});
    CHECK(std::string(error.what()) == "cannot connect to localhost:25 ([::1]:25; 127.0.0.1:25): " + refused.message());
}

TEST_CASE("connect_error: without attempts it names the target alone")
{
    const us::connect_error error(us::errc::connect_timeout, "example.org:25", {});
    CHECK(error.attempts().empty());
    CHECK_THAT(error.what(), test::starts_with("cannot connect to example.org:25: "));
}

TEST_CASE("exceptions: all are caught as std::system_error, and copies keep what they carry")
{
    const auto caught = [](const auto& error) -> std::error_code
    {
        try
        {
            throw error;
        }
        catch (const std::system_error& e)
        {
            return e.code();
        }
    };
    CHECK(caught(us::incomplete_read_error("x", 2)) == us::errc::incomplete_read);
    CHECK(caught(us::limit_overrun_error(1)) == us::errc::limit_overrun);
    CHECK(caught(us::tls_error(us::errc::handshake_timeout, "", 0, "")) == us::errc::handshake_timeout);
    CHECK(caught(us::connect_error(us::errc::connect_failed, "t", {})) == us::errc::connect_failed);

    const us::incomplete_read_error original("partial", 9);
    const us::incomplete_read_error copy = original;
    CHECK(copy.partial() == "partial");
    CHECK(copy.expected() == 9u);
}
