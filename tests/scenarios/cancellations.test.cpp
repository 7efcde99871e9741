// A whole session between two pairs, of which one is stopped at each of its steps in turn: a step is a handler that
// the io_context runs. Nothing may be left behind, neither memory nor a descriptor nor an operation.

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/deadline.hpp"
#include "support/descriptors.hpp"
#include "support/run.hpp"
#include "support/socket_pair.hpp"
#include "support/stream_links.hpp"
#include "support/task.hpp"

#include <asio/awaitable.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/post.hpp>
#include <asio/ssl/context.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace us = upgradeable_streams;
using asio::ip::tcp;

namespace
{

enum class stop
{
    never,
    cancel,       ///< The session is cancelled.
    cancel_again, ///< The operation under way is cancelled, and called again where it says that this changes nothing.
    drop,         ///< The handles go while the operation runs.
};

/// One end of a session, and what it is doing.
struct session
{
    std::optional<std::pair<us::stream_reader, us::stream_writer>> pair{};
    const char* awaiting = "";
    bool stopped = false;
    bool complete = false;
};

[[noreturn]] void give_up()
{
    throw std::system_error(asio::error::operation_aborted);
}

/// Awaits one operation.
template <typename Operation>
asio::awaitable<void> await(session& s, const char* name, Operation operation)
{
    s.awaiting = name;
    co_await operation();
    if (!s.pair)
        give_up();
}

/// As `await`, for operations that can be called again after a cancellation.
template <typename Operation>
asio::awaitable<void> await_repeatable(session& s, const char* name, stop how, Operation operation)
{
    bool cancelled = false;
    try
    {
        co_await await(s, name, operation);
    }
    catch (const std::system_error& error)
    {
        cancelled = error.code() == asio::error::operation_aborted && how == stop::cancel_again;
        if (!cancelled)
            throw;
    }
    if (how == stop::cancel_again)
        co_await asio::this_coro::reset_cancellation_state();
    if (cancelled)
        co_await await(s, name, operation);
}

asio::awaitable<void> expect_line(session& s, const char* name, stop how, std::string expected)
{
    const auto readline = [&]() -> asio::awaitable<void>
    {
        const std::string line = co_await s.pair->first.readline();
        if (line != expected)
            throw test::failure("another line was expected than " + line);
    };
    co_await await_repeatable(s, name, how, readline);
}

asio::awaitable<void> start_tls(session& s)
{
    const auto upgrade = [&]() -> asio::awaitable<void>
    {
        auto upgraded = co_await s.pair->second.start_tls();
        if (s.pair)
            s.pair.emplace(std::move(upgraded));
    };
    co_await await(s, "start_tls", upgrade);
}

asio::awaitable<void> send(session& s, stop how, std::string line)
{
    s.pair->second.set_write_buffer_limits({.high = 0});
    s.pair->second.write(line);
    co_await await_repeatable(s, "drain", how, [&] { return s.pair->second.drain(); });
}

asio::awaitable<void> close(session& s, stop how)
{
    s.pair->second.close();
    co_await await_repeatable(s, "wait_closed", how, [&] { return s.pair->second.wait_closed(); });
    s.complete = true;
}

constexpr std::size_t limit = 4 * 1024 * 1024;

/// More than the sockets hold between them, so that drain has to wait.
const std::string long_line = std::string(1'500'000, 'x') + "\n";

asio::awaitable<void> client(session& s, stop how, tcp::endpoint endpoint, asio::ssl::context& ssl)
{
    const auto connect = [&]() -> asio::awaitable<void>
    {
        auto made = co_await us::open_connection(
            "127.0.0.1", endpoint.port(),
            {.ssl = &ssl, .upgradeable = true, .server_hostname = "localhost", .limit = limit});
        if (!s.stopped)
            s.pair.emplace(std::move(made));
    };
    co_await await(s, "open_connection", connect);
    co_await send(s, how, "hello\n");
    co_await expect_line(s, "readline in plain text", how, "hello\n");
    co_await send(s, how, "STARTTLS\n");
    co_await start_tls(s);
    co_await send(s, how, long_line);
    co_await expect_line(s, "readline in TLS", how, long_line);
    co_await close(s, how);
}

asio::awaitable<void> server(session& s, stop how, tcp::acceptor& acceptor)
{
    const auto accept = [&]() -> asio::awaitable<void>
    {
        auto socket = co_await acceptor.async_accept(asio::use_awaitable);
        auto made = co_await us::open_connection(
            std::move(socket),
            {.ssl = &test::server_context(), .upgradeable = true, .limit = limit, .role = us::tls_role::server});
        if (!s.stopped)
            s.pair.emplace(std::move(made));
    };
    co_await await(s, "accept", accept);
    co_await expect_line(s, "readline in plain text", how, "hello\n");
    co_await send(s, how, "hello\n");
    co_await expect_line(s, "readline in plain text", how, "STARTTLS\n");
    co_await start_tls(s);
    co_await expect_line(s, "readline in TLS", how, long_line);
    co_await send(s, how, long_line);
    co_await expect_line(s, "readline in TLS", how, "");
    co_await close(s, how);
}

const std::set<std::string_view> repeatable = {"readline in plain text", "readline in TLS", "drain", "wait_closed"};

struct stopped_session
{
    std::string_view awaited; ///< What the session was doing when it was stopped; empty when it had ended.
    std::error_code error;    ///< Of the session that was stopped.
    bool complete = false;
};

/// Stops the client's or the server's end after so many steps.
stopped_session stop_after(std::size_t steps, stop how, us::tls_role role, asio::ssl::context& ssl)
{
    const auto deadline = std::chrono::steady_clock::now() + test::run_deadline;
    asio::io_context io;
    tcp::acceptor acceptor(io, test::loopback());
    session ends[2];
    session& s = ends[role == us::tls_role::server];
    session& other = ends[role == us::tls_role::client];
    const auto how_for = [&](const session& end) { return &end == &s ? how : stop::never; };
    const auto clients = test::spawn(io.get_executor(),
                                     [&] { return client(ends[0], how_for(ends[0]), acceptor.local_endpoint(), ssl); });
    const auto servers = test::spawn(io.get_executor(), [&] { return server(ends[1], how_for(ends[1]), acceptor); });
    const auto& stopped = role == us::tls_role::client ? clients : servers;
    const auto& goes_on = role == us::tls_role::client ? servers : clients;

    for (std::size_t i = 0; i < steps && !stopped.done(); ++i)
        io.run_one_until(deadline);
    stopped_session made;
    asio::post(io,
               [&]
               {
                   if (stopped.done())
                       return;
                   made.awaited = s.awaiting;
                   s.stopped = how != stop::cancel_again;
                   if (how == stop::drop)
                       s.pair.reset();
                   else
                       stopped.cancel();
               });
    while (!stopped.done() && io.run_one_until(deadline) != 0)
    {
    }
    s.pair.reset();
    acceptor.close();
    while (!goes_on.done() && io.run_one_until(deadline) != 0)
    {
    }
    other.pair.reset();
    while (io.run_one_until(deadline) != 0)
    {
    }
    if (!io.stopped())
        throw test::failure("work was left behind");
    try
    {
        stopped.result();
    }
    catch (const std::system_error& error)
    {
        made.error = error.code();
    }
    made.complete = s.complete;
    return made;
}

} // namespace

TEST_CASE("cancellations: a session that is cancelled, or whose handles are dropped, at any step leaves nothing behind")
{
    const us::tls_role role = GENERATE(us::tls_role::client, us::tls_role::server);
    const stop how = GENERATE(stop::cancel, stop::cancel_again, stop::drop);
    asio::ssl::context& ssl = GENERATE(true, false) ? test::client_context() : test::tls12_client_context();
    CHECK(stop_after(100'000, how, role, ssl).complete);
    std::set<std::string> expected = {"", "readline in plain text", "start_tls", "drain", "readline in TLS"};
    if (role == us::tls_role::client)
        expected.insert({"open_connection", "wait_closed"});
    else
        expected.insert("accept");
    std::set<std::string> awaited;
    // The same number of steps leads further at one time than at another, so that one round may miss a short wait.
    for (std::size_t round = 0; round < 10 && !std::ranges::includes(awaited, expected); ++round)
    {
        std::size_t steps = round;
        for (bool stopped = true; stopped && steps < 10'000; steps += test::under_sanitizer ? 3 : 1)
        {
            const std::size_t descriptors = test::open_descriptors();
            const test::memory_use before = test::allocated();
            const stopped_session made = stop_after(steps, how, role, ssl);
            const test::memory_use after = test::allocated();
            stopped = !made.awaited.empty();
            const bool may_go_on = how == stop::cancel_again && repeatable.contains(made.awaited);
            INFO("step " << steps << ", " << made.awaited << ", " << made.error.message());
            if (may_go_on)
                CHECK(made.complete);
            else
                CHECK((made.complete || made.error == asio::error::operation_aborted));
            CHECK(after.allocations == before.allocations);
            CHECK(after.bytes == before.bytes);
            CHECK(test::open_descriptors() == descriptors);
            awaited.emplace(made.awaited);
        }
        CHECK(steps >= 20);
    }
    if (role == us::tls_role::server) // the client has closed before
        awaited.erase("wait_closed");
    CHECK(awaited == expected);
}
