// What every client of starttls/ does with servers that do as they should, and with those that do not.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/chunked_stream.hpp"
#include "support/contexts.hpp"
#include "support/raw_peer.hpp"
#include "support/socket_pair.hpp"
#include "support/stream_links.hpp"
#include "support/task.hpp"

#include <upgradeable_streams/starttls/smtp.hpp>

#include <asio/awaitable.hpp>
#include <asio/error.hpp>
#include <asio/this_coro.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using namespace std::chrono_literals;
using test::conversation;
using test::outcome;
using test::say;
using test::step;
using us::errc;
using us::starttls_policy;

namespace
{

const step finish{step::kind::finish};
const step stall{step::kind::stall};

/// The client was told why, the connection is closed, and the server has heard nothing but the protocol's requests.
void check_refusal(const outcome& result, const std::string& heard)
{
    CHECK(result.is_closed);
    CHECK_FALSE(result.goes_on);
    CHECK(result.heard == heard);
    CHECK(result.trouble == "");
}

/// Has a server do something else in place of each thing that it says in plain text, and gives the outcome to
/// `check(result, nth)`.
template <typename Others, typename Check>
void in_place_of_each(const conversation& meant, std::size_t chunk, us::starttls::starttls_options options,
                      Others others, Check check)
{
    for (std::size_t nth = 0; nth < test::count_said(meant.steps); ++nth)
    {
        const std::string& right = test::said(meant.steps, nth).bytes;
        const outcome result =
            test::negotiate(meant.client, test::instead(meant.steps, nth, others(right)), options, chunk);
        CAPTURE(meant.name, chunk, nth, result.what);
        check_refusal(result, test::heard_before(meant.steps, nth));
        check(result, nth);
    }
}

/// One of the errors that a server is to blame for.
bool is_complaint(const std::error_code& error)
{
    return error == errc::reply_malformed || error == errc::reply_too_long || error == errc::incomplete_read ||
           error == errc::request_refused;
}

} // namespace

TEST_CASE("starttls clients: a dialogue ends in TLS, with what the server said over it and nothing from before")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    for (const std::size_t chunk : test::chunk_sizes)
    {
        const outcome result = test::negotiate(meant.client, meant.steps, meant.options, chunk);
        CAPTURE(meant.name, chunk);
        CHECK(result.what == "");
        CHECK(result.trouble == "");
        CHECK(result.is_tls);
        CHECK(result.capabilities == meant.capabilities);
        CHECK(result.greeting == meant.greeting);
        CHECK(result.goes_on);
    }
}

TEST_CASE("starttls clients: with the policy never, and with attempt where TLS is not offered, plain text goes on")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    us::starttls::starttls_options options = meant.options;
    for (const std::size_t chunk : test::chunk_sizes)
        for (const auto& [policy, plain] : {std::pair(starttls_policy::never, &meant.never),
                                            std::pair(starttls_policy::attempt, &meant.not_offered)})
        {
            options.policy = policy;
            const outcome result = test::negotiate(meant.client, plain->steps, options, chunk);
            CAPTURE(meant.name, chunk, int(policy));
            CHECK(result.what == "");
            CHECK(result.trouble == "");
            CHECK_FALSE(result.is_tls);
            CHECK(result.capabilities == plain->capabilities);
            CHECK(result.goes_on);
        }
}

TEST_CASE("starttls clients: a refusal is an error of its own kind that shows the server's words")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    for (const std::size_t chunk : test::chunk_sizes)
        for (const auto& [nth, answer, error] : meant.refusals)
        {
            const outcome result = test::negotiate(
                meant.client, test::instead(meant.steps, nth, {say(answer), finish}), meant.options, chunk);
            CAPTURE(meant.name, chunk, nth, answer, result.what);
            check_refusal(result, test::heard_before(meant.steps, nth));
            CHECK(result.error == error);
            CHECK(result.reply == answer);
        }
}

TEST_CASE("starttls clients: a server that closes the connection, before or amid what it should say, is told as such")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    std::string said;
    for (const std::size_t chunk : test::chunk_sizes)
        for (const bool is_amid : {false, true})
            in_place_of_each(
                meant, chunk, meant.options,
                [&](const std::string& right)
                {
                    said = right.substr(0, is_amid ? right.size() / 2 : 0);
                    return std::vector{say(said), finish};
                },
                [&](const outcome& result, std::size_t)
                {
                    CHECK(result.error == errc::incomplete_read);
                    CHECK_THAT(result.reply, test::ends_with(said));
                });
}

TEST_CASE("starttls clients: binary noise is refused")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    std::string noise;
    for (int i = 0; i < 500; ++i)
        noise += char(7 + i * 167);
    for (const std::size_t chunk : test::chunk_sizes)
        in_place_of_each(
            meant, chunk, meant.options, [&](const std::string&) { return std::vector{say(noise + "\r\n"), finish}; },
            [&](const outcome& result, std::size_t) { CHECK(is_complaint(result.error)); });
}

TEST_CASE("starttls clients: a server that does not come to an end is cut off, and memory stays bounded")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    for (const std::string& endless : {meant.endless, std::string("a")})
        in_place_of_each(
            meant, 0, meant.options,
            [&](const std::string&) { return std::vector{step{step::kind::say_on, endless}}; },
            [&](const outcome& result, std::size_t nth)
            {
                if (nth == 0 && endless == meant.endless)
                    CHECK(result.error == errc::reply_too_long);
                CHECK((is_complaint(result.error) || result.error == errc::plaintext_injection));
                CHECK(result.grown < 512 * 1024);
            });
}

TEST_CASE("starttls clients: a server that stalls, before or amid what it should say, is given up at the deadline")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    us::starttls::starttls_options options = meant.options;
    options.timeout = 100ms;
    for (const bool is_amid : {false, true})
        in_place_of_each(
            meant, 0, options,
            [&](const std::string& right)
            { return std::vector{say(right.substr(0, is_amid ? right.size() / 2 : 0)), stall}; },
            [&](const outcome& result, std::size_t)
            {
                CHECK(result.error == errc::negotiation_timeout);
                CHECK(result.error == std::errc::timed_out);
            });
}

TEST_CASE("starttls clients: the handshake has a deadline of its own, in which that of the dialogue does not run")
{
    const conversation& meant = test::conversation_of("smtp");
    us::starttls::starttls_options options = meant.options;
    options.timeout = 1s;
    std::vector<step> steps = meant.steps;
    steps.insert(std::ranges::find(steps, step::kind::tls, &step::what), step{step::kind::dawdle});
    const outcome slow = test::negotiate(meant.client, steps, options);
    CHECK(slow.what == "");
    CHECK(slow.is_tls);
    options.tls.handshake_timeout = 300ms;
    const outcome late = test::negotiate(meant.client, steps, options);
    CHECK(late.error == errc::handshake_timeout);
    CHECK(late.is_closed);
}

TEST_CASE("starttls clients: whatever follows the go-ahead in plain text is plaintext_injection, and shown")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    const std::size_t last = test::count_said(meant.steps) - 1;
    const std::string heard = test::heard_before(meant.steps, last);
    const std::string smuggled = "250 smuggled\r\n";
    for (const std::size_t chunk : test::chunk_sizes)
        for (const bool is_apart : {false, true})
        {
            std::vector<step> steps(meant.steps.begin(), std::ranges::find(meant.steps, step::kind::tls, &step::what));
            if (is_apart) // not before the beginning of a ClientHello
                steps.insert(steps.end(), {test::hear(std::string("\x16\x03\x01", 3)), say(smuggled), finish});
            else if (steps.back().what == step::kind::say)
                steps.back().bytes += smuggled;
            else
                continue;
            steps.push_back(finish);
            const outcome result = test::negotiate(meant.client, steps, meant.options, chunk);
            CAPTURE(meant.name, chunk, is_apart, result.what);
            CHECK(result.error == errc::plaintext_injection);
            CHECK_THAT(smuggled, test::starts_with(result.reply));
            CHECK(result.reply != "");
            CHECK(result.is_closed);
            CHECK_FALSE(result.goes_on);
            CHECK_THAT(result.heard, test::starts_with(heard));
        }
}

TEST_CASE("starttls clients: a client that is cancelled closes the connection")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    const std::size_t last = test::count_said(meant.steps) - 1;
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const us::connection_options how = test::upgradeable_options();
            test::raw_link link = co_await test::link_with_raw_peer(how);
            const auto executor = co_await asio::this_coro::executor;
            const auto client =
                test::spawn(executor, [&] { return meant.client(link.reader, link.writer, meant.options); });
            std::string rest = "not closed";
            auto playing = test::run_in_thread(
                [&]
                {
                    for (const step& each : test::instead(meant.steps, last, {}))
                        if (each.what == step::kind::say)
                            link.peer.send_all(each.bytes);
                        else
                            link.peer.recv_exactly(each.bytes.size());
                    client.cancel();
                    rest = link.peer.recv_some();
                });
            co_await test::joined(std::move(playing));
            CAPTURE(meant.name);
            CHECK(rest == "");
            CHECK(link.writer.is_closing());
            const auto ended = co_await test::exception_of<std::system_error>(client.join());
            CHECK(ended.code() == asio::error::operation_aborted);
        });
}

TEST_CASE("starttls clients: a reset, and the time limit of a read, are errors of the dialogue and close the connection")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    const bool resets = GENERATE(false, true);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            us::connection_options how = test::upgradeable_options();
            if (!resets)
                how.operation_timeout = std::chrono::milliseconds(20);
            test::raw_link link = co_await test::link_with_raw_peer(how);
            const auto executor = co_await asio::this_coro::executor;
            const auto client =
                test::spawn(executor, [&] { return meant.client(link.reader, link.writer, meant.options); });
            if (resets)
            {
                co_await test::turns();
                link.peer.reset();
            }
            const auto ended = co_await test::exception_of<us::starttls_error>(client.join());
            CAPTURE(meant.name, ended.what());
            CHECK(ended.code() == (resets ? std::error_code(asio::error::connection_reset)
                                          : make_error_code(errc::negotiation_timeout)));
            CHECK(link.writer.is_closing());
        });
}

TEST_CASE("starttls clients: an error calls the server by the name that the connection has for it")
{
    const std::string name = GENERATE("", "mail.example");
    test::run(
        [&]() -> asio::awaitable<void>
        {
            us::connection_options how;
            how.ssl = name.empty() ? nullptr : &test::client_context();
            how.server_hostname = name;
            how.upgradeable = !name.empty();
            const auto executor = co_await asio::this_coro::executor;
            auto sockets = test::tcp_pair(executor);
            test::raw_peer peer(sockets.second.release());
            peer.send_all("554 no\r\n");
            auto pair = co_await us::open_connection(std::move(sockets.first), how);
            auto asked = us::starttls::smtp(pair.first, pair.second, {.policy = starttls_policy::never});
            const auto ended = co_await test::exception_of<us::starttls_error>(std::move(asked));
            CHECK(ended.what() == "SMTP: " + (name.empty() ? "the server" : name) +
                                      " answered \"554 no\": the peer refused what it was asked for");
        });
}

TEST_CASE("starttls clients: what makes no sense is refused at the call, with nothing sent")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    const auto refusal = [&](bool has_context, bool is_upgradeable, us::starttls::starttls_options options)
    {
        return test::run(
            [&]() -> asio::awaitable<std::error_code>
            {
                us::connection_options how;
                how.ssl = has_context ? &test::client_context() : nullptr;
                how.upgradeable = is_upgradeable;
                test::raw_link link = co_await test::link_with_raw_peer(how);
                std::error_code error;
                try
                {
                    const auto dialogue = meant.client(link.reader, link.writer, options);
                }
                catch (const std::system_error& refused)
                {
                    error = refused.code();
                }
                catch (const std::invalid_argument&)
                {
                    error = std::make_error_code(std::errc::invalid_argument);
                }
                CHECK_FALSE(link.writer.is_closing());
                link.writer.write("all");
                std::string heard;
                auto hearing = test::run_in_thread(
                    [&] { heard = link.peer.ssl() ? link.peer.tls_read_exactly(3) : link.peer.recv_exactly(3); });
                co_await test::joined(std::move(hearing));
                CHECK(heard == "all");
                co_return error;
            });
    };
    CAPTURE(meant.name);
    CHECK(refusal(false, false, meant.options) == errc::not_upgradeable);
    CHECK(refusal(true, false, meant.options) == errc::already_tls);
    us::starttls::starttls_options options = meant.options;
    options.timeout = 0s;
    CHECK(refusal(true, true, options) == std::errc::invalid_argument);
    options = meant.options;
    options.tls.server_hostname = "*.example";
    CHECK(refusal(true, true, options) == std::errc::invalid_argument);
}

TEST_CASE("starttls clients: who would be a server in TLS is told so at the call, with nothing sent")
{
    const conversation& meant = GENERATE(from_range(test::conversations()));
    CAPTURE(meant.name);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            us::connection_options of_server{.ssl = &test::server_context(), .upgradeable = true};
            of_server.role = us::tls_role::server;
            test::raw_link accepted = co_await test::link_with_raw_peer(of_server);
            us::starttls::starttls_options options = meant.options;
            options.tls.server_hostname = "localhost";
            CHECK_THROWS_AS(meant.client(accepted.reader, accepted.writer, options), std::invalid_argument);

            us::connection_options of_client{.ssl = &test::client_context(), .upgradeable = true};
            test::raw_link connected = co_await test::link_with_raw_peer(of_client);
            options.tls.role = us::tls_role::server;
            CHECK_THROWS_AS(meant.client(connected.reader, connected.writer, options), std::invalid_argument);
            CHECK_FALSE(connected.writer.is_closing());
        });
}
