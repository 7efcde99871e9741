// What every server's answer of starttls/ does with clients that ask for TLS.

#include <upgradeable_streams/starttls/smtp.hpp>

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/chunked_stream.hpp"
#include "support/flood.hpp"
#include "support/stream_links.hpp"

#include <asio/awaitable.hpp>
#include <asio/post.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace us = upgradeable_streams;
using asio::awaitable;
using test::answering;
using test::raw_peer;
using us::errc;

namespace
{

enum class state
{
    upgradeable,
    without_context,
    encrypted
};

/// What came of an answer on the server's side.
struct answered
{
    bool is_tls = false;
    std::string next; ///< A line that the client sent afterwards.
    std::error_code error;
    std::string received; ///< Of a tls_error.
};

awaitable<void> serve(const answering& how, std::size_t size, us::stream_reader reader, us::stream_writer writer,
                      answered& result)
try
{
    const std::string request = co_await reader.readexactly(size);
    auto [next_reader, next_writer] = co_await how.answer(reader, writer, request, {});
    result.is_tls = next_reader.is_tls();
    result.next = co_await next_reader.readline();
    next_writer.write("done\n");
    next_writer.close();
    co_await next_writer.wait_closed();
    writer.set_write_buffer_limits({});
}
catch (const us::tls_error& error)
{
    result.error = error.code();
    result.received = error.received();
}
catch (const std::system_error& error)
{
    result.error = error.code();
}

/// Serves a client that `play(peer)` plays, whose request is of `size` bytes.
template <typename Play>
answered serve(const answering& how, std::size_t size, state at_first, std::size_t chunk, Play play)
{
    return test::run(
        [&]() -> awaitable<answered>
        {
            us::connection_options options;
            options.role = us::tls_role::server;
            if (at_first != state::without_context)
                options.ssl = &test::server_context();
            options.upgradeable = at_first == state::upgradeable;
            test::raw_link link = co_await test::link_with_raw_peer(options, chunk);
            auto playing = test::run_in_thread([&] { play(link.peer); });
            answered result;
            co_await serve(how, size, link.reader, link.writer, result);
            co_await test::joined(std::move(playing));
            co_return result;
        });
}

void expect(const std::string& heard, const std::string& meant)
{
    if (heard != meant)
        throw test::failure("the server answered \"" + heard + "\" in place of \"" + meant + '"');
}

void expect_end(raw_peer& peer)
{
    expect(peer.ssl() ? peer.tls_read_some() : peer.recv_some(), "");
    if (peer.ssl())
        peer.tls_shutdown();
}

/// Over TLS if there is some.
void go_on(raw_peer& peer)
{
    peer.ssl() ? peer.tls_write("next\n") : peer.send_all("next\n");
    expect(peer.ssl() ? peer.tls_read_line() : peer.recv_line(), "done\n");
    if (peer.ssl())
        peer.tls_shutdown();
}

} // namespace

TEST_CASE("starttls servers: a request is granted, and with or without a ClientHello in its segment TLS begins")
{
    const answering& how = GENERATE(from_range(test::answerings()));
    for (const std::size_t chunk : test::chunk_sizes)
        for (const bool is_early : {false, true})
        {
            CAPTURE(how.name, chunk, is_early);
            const auto play = [&](raw_peer& peer)
            {
                test::tls_settings settings = test::localhost_client();
                if (is_early)
                    settings.send_flight = [&](std::string_view flight, const auto& send)
                    {
                        send(how.request + std::string(flight));
                        expect(peer.recv_exactly(how.granted.size()), how.granted);
                    };
                else
                {
                    peer.send_all(how.request);
                    expect(peer.recv_exactly(how.granted.size()), how.granted);
                }
                peer.tls_connect(settings);
                go_on(peer);
            };
            const answered result = serve(how, how.request.size(), state::upgradeable, chunk, play);
            CHECK(result.error == errc::connection_upgraded); // of the old handle, at the end
            CHECK(result.is_tls);
            CHECK(result.next == "next\n");
        }
}

TEST_CASE("starttls servers: what a client sends behind its request in plain text is plaintext_injection, and shown")
{
    const answering& how = GENERATE(from_range(test::answerings()));
    for (const std::size_t chunk : test::chunk_sizes)
    {
        CAPTURE(how.name, chunk);
        const auto play = [&](raw_peer& peer)
        {
            peer.send_all(how.request + "smuggled\r\n");
            try
            {
                peer.recv_all();
            }
            catch (const std::system_error&) // a reset, for not all was read
            {
            }
        };
        const answered result = serve(how, how.request.size(), state::upgradeable, chunk, play);
        CHECK(result.error == errc::plaintext_injection);
        CHECK_THAT(std::string("smuggled\r\n"), test::starts_with(result.received));
        CHECK(result.received != "");
        CHECK_FALSE(result.is_tls);
    }
}

TEST_CASE("starttls servers: without a context, in TLS, and to a request that is wrong the answer is no")
{
    const answering& how = GENERATE(from_range(test::answerings()));
    const auto refuse = [&](state at_first, const std::string& request, const std::string& answer, std::size_t chunk)
    {
        CAPTURE(how.name, int(at_first), request, chunk);
        const auto play = [&](raw_peer& peer)
        {
            peer.ssl() ? peer.tls_write(request) : peer.send_all(request);
            expect(peer.ssl() ? peer.tls_read_exactly(answer.size()) : peer.recv_exactly(answer.size()), answer);
            how.closes ? expect_end(peer) : go_on(peer);
        };
        const answered result = serve(how, request.size(), at_first, chunk, play);
        CHECK(result.is_tls == (at_first == state::encrypted));
        CHECK(result.error == (how.closes ? make_error_code(errc::connection_closed) : std::error_code()));
        CHECK(result.next == (how.closes ? "" : "next\n"));
    };
    for (const std::size_t chunk : test::chunk_sizes)
    {
        refuse(state::without_context, how.request, how.unavailable, chunk);
        refuse(state::encrypted, how.request, how.encrypted, chunk);
        for (const auto& [request, answer] : how.refusals)
            refuse(state::upgradeable, request, answer, chunk);
    }
}

TEST_CASE("starttls servers: an answer while a read is pending closes the connection, for the client goes on with TLS")
{
    const answering& how = GENERATE(from_range(test::answerings()));
    CAPTURE(how.name);
    test::run(
        [&]() -> awaitable<void>
        {
            us::connection_options options{.ssl = &test::server_context(), .upgradeable = true};
            options.role = us::tls_role::server;
            test::raw_link link = co_await test::link_with_raw_peer(options);
            auto reading = test::spawn(co_await asio::this_coro::executor, [&] { return link.reader.readline(); });
            co_await asio::post(asio::use_awaitable); // it has begun
            std::error_code error;
            try
            {
                co_await how.answer(link.reader, link.writer, how.request, {});
            }
            catch (const std::system_error& e)
            {
                error = e.code();
            }
            CHECK(error == errc::operation_in_progress);
            CHECK(link.writer.is_closing());
            link.peer.send_all("plain text\n");
            std::error_code read_error;
            try
            {
                co_await reading.join();
            }
            catch (const std::system_error& e)
            {
                read_error = e.code();
            }
            CHECK(read_error == errc::connection_closed);
            link.peer.close();
        });
}

TEST_CASE("starttls servers: who would be the client in TLS is told so at the call")
{
    const answering& how = GENERATE(from_range(test::answerings()));
    CAPTURE(how.name);
    test::run(
        [&]() -> awaitable<void>
        {
            us::connection_options of_client{.ssl = &test::client_context(), .upgradeable = true};
            test::raw_link link = co_await test::link_with_raw_peer(of_client);
            CHECK_THROWS_AS(how.answer(link.reader, link.writer, how.request, {}), std::invalid_argument);
            CHECK_FALSE(link.writer.is_closing());
        });
}

TEST_CASE("starttls servers: what does not ask for TLS is told from what does, and not answered")
{
    const answering& how = GENERATE(from_range(test::answerings()));
    CAPTURE(how.name);
    CHECK(how.is_request(how.request));
    for (const auto& [request, answer] : how.refusals)
        CHECK(how.is_request(request));
    test::run(
        [&]() -> awaitable<void>
        {
            test::raw_link link = co_await test::link_with_raw_peer();
            for (const std::string& other : how.others)
            {
                CHECK_FALSE(how.is_request(other));
                CHECK_THROWS_AS(how.answer(link.reader, link.writer, other, {}), std::invalid_argument);
            }
        });
}

TEST_CASE("starttls servers: a client that asks again and again and reads no answer fills no memory")
{
    constexpr std::size_t requests = 40'000;
    const std::string request = "STARTTLS\r\n";
    const std::string answer = "454 4.7.0 TLS not available\r\n";
    test::run(
        [&]() -> awaitable<void>
        {
            test::raw_link link = co_await test::link_over_socket({.role = us::tls_role::server});
            test::shrink_buffers(*link.writer.get_extra_info<"socket">());
            test::shrink_buffers(link.peer.descriptor());
            std::size_t most_queued = 0;
            const auto serve_all = [&]() -> awaitable<void>
            {
                for (std::size_t i = 0; i < requests; ++i)
                {
                    const std::string line = co_await link.reader.readline();
                    co_await us::starttls::answer_smtp(link.reader, link.writer, line);
                    most_queued = std::max(most_queued, link.writer.get_write_buffer_size());
                }
            };
            const auto serving = test::spawn(co_await asio::this_coro::executor, serve_all);
            auto sending = test::run_in_thread(
                [&]
                {
                    for (std::size_t i = 0; i < requests; ++i)
                        link.peer.send_all(request);
                });
            co_await test::eventually([&] { return link.writer.get_write_buffer_size() > 0; });
            co_await test::turns(100);
            auto reading = test::run_in_thread([&] { link.peer.recv_exactly(requests * answer.size()); });
            co_await serving.join();
            co_await test::joined(std::move(sending));
            co_await test::joined(std::move(reading));
            CHECK(most_queued <= 64 * 1024);
        });
}
