// What one busy connection lets pass of the others, on one thread.

#include "support/catch.hpp"
#include "support/contexts.hpp"
#include "support/deadline.hpp"
#include "support/echo_server.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/thread.hpp"

#include <upgradeable_streams/open_connection.hpp>
#include <upgradeable_streams/start_server.hpp>

#include <asio/awaitable.hpp>
#include <asio/this_coro.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <sys/ioctl.h>
#include <sys/socket.h>

namespace us = upgradeable_streams;
using asio::awaitable;
using test::raw_peer;

namespace
{

constexpr std::size_t other_count = 64;
constexpr std::size_t round_count = test::under_sanitizer ? 20 : 50;
constexpr std::size_t most_per_round = 6 * 1024 * 1024;

/// What passes on the busy connection, and how often all the others have asked and were answered meanwhile.
struct progress
{
    std::size_t bytes = 0;
    std::vector<std::size_t> rounds = std::vector<std::size_t>(other_count);
    bool over = false;

    std::size_t full_rounds() const { return *std::ranges::min_element(rounds); }

    /// Adds to the bytes; false when it is time to stop.
    bool pass(std::size_t size)
    {
        bytes += size;
        over = over || full_rounds() >= round_count || bytes > 2 * round_count * most_per_round;
        return !over;
    }
};

/// Asks again and again until the busy connection is done.
awaitable<void> ping(std::uint16_t port, bool tls, progress& made, std::size_t own)
{
    auto [reader, writer] =
        co_await us::open_connection("127.0.0.1", port, {.ssl = tls ? &test::client_context() : nullptr});
    while (!made.over)
    {
        writer.write("PING\n");
        const std::string answer = co_await reader.readline();
        made.rounds[own] += answer == "PING\n";
    }
    writer.close();
    co_await writer.wait_closed();
}

/// A server whose first connection is `busy`'s, with `peer` at its other end in a thread of its own, while the others
/// have their lines sent back.
template <typename Busy, typename Peer>
progress run_beside_others(bool tls, Busy busy, Peer peer)
{
    progress made;
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            bool is_first = true;
            bool has_begun = false;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                if (!std::exchange(is_first, false))
                {
                    co_await test::echo(std::move(reader), std::move(writer));
                    co_return;
                }
                has_begun = true;
                co_await test::eventually([&] { return made.full_rounds() > 0; });
                std::ranges::fill(made.rounds, std::size_t(0));
                co_await busy(reader, writer, made);
                made.over = true;
            };
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0,
                                                          {.ssl = tls ? &test::server_context() : nullptr});
            auto other_end = test::run_in_thread(
                [&, endpoint = test::endpoint_of(server)]
                {
                    raw_peer one = raw_peer::connect(endpoint);
                    if (tls)
                        one.tls_connect(test::localhost_client());
                    peer(one);
                });
            co_await test::eventually([&] { return has_begun; });
            std::vector<test::task<void>> others;
            const std::uint16_t port = server.sockets().at(0).port;
            for (std::size_t i = 0; i < other_count; ++i)
                others.push_back(test::spawn(executor, [&, i] { return ping(port, tls, made, i); }));
            for (const auto& other : others)
                co_await other.join();
            server.close();
            server.abort_clients();
            co_await test::joined(std::move(other_end));
            co_await server.wait_closed();
        },
        2 * test::run_deadline);
    return made;
}

/// Drops what comes, encrypted or not, as fast as it comes, until nothing has come for `peer_deadline`.
void sink(raw_peer& peer)
{
    for (;;)
    {
        const ssize_t size = ::recv(peer.descriptor(), nullptr, 1024 * 1024, MSG_TRUNC);
        if (size == 0 || (size < 0 && errno != EINTR))
            return;
    }
}

/// Sends as fast as the other side takes it.
void pour(raw_peer& peer)
try
{
    const std::string bytes(256 * 1024, 'x');
    for (;;)
        peer.ssl() ? peer.tls_write(bytes) : peer.send_all(bytes);
}
catch (const std::exception&)
{
}

void check(const progress& made)
{
    INFO(made.bytes << " bytes in " << made.full_rounds() << " rounds");
    CHECK(made.full_rounds() > 0);
    CHECK(made.bytes <= std::max(std::size_t(1), made.full_rounds()) * most_per_round);
}

} // namespace

TEST_CASE("fairness: while a handler writes without pause, between two rounds of all the others little passes")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    const progress made = run_beside_others(
        tls,
        [](us::stream_reader&, us::stream_writer& writer, progress& p) -> awaitable<void>
        {
            const std::string piece(64 * 1024, 'x');
            while (p.pass(piece.size()))
            {
                writer.write(piece);
                co_await writer.drain();
            }
            writer.close();
        },
        sink);
    check(made);
}

TEST_CASE("fairness: while a handler reads without pause, between two rounds of all the others little passes")
{
    const bool tls = GENERATE(false, true);
    const bool into_memory = GENERATE(false, true);
    CAPTURE(tls, into_memory);
    const progress made = run_beside_others(
        tls,
        [=](us::stream_reader& reader, us::stream_writer&, progress& p) -> awaitable<void>
        {
            std::string memory(64 * 1024, '\0');
            for (std::size_t size = 1; size > 0 && p.pass(size);)
                if (into_memory)
                    size = co_await reader.readinto(memory);
                else
                {
                    const std::string piece = co_await reader.read(memory.size());
                    size = piece.size();
                }
        },
        pour);
    check(made);
}

TEST_CASE("fairness: while 60,000 requests that came together are answered, the others are too")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    constexpr std::size_t count = 60'000;
    std::size_t answers = 0;
    std::size_t most = 0;
    const progress made = run_beside_others(
        tls,
        [&](us::stream_reader& reader, us::stream_writer& writer, progress& p) -> awaitable<void>
        {
            const int descriptor = *writer.get_extra_info<"socket">();
            const int room = 1024 * 1024;
            ::setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
            constexpr std::size_t taken_by_handshake = 16 * 1024;
            const auto all_came = [&]
            {
                int size = 0;
                return ::ioctl(descriptor, FIONREAD, &size) == 0 &&
                       std::size_t(size) + taken_by_handshake >= 5 * count;
            };
            co_await test::eventually(all_came);
            std::size_t before = std::accumulate(p.rounds.begin(), p.rounds.end(), std::size_t(0));
            for (std::size_t alone = 0; answers < count; ++answers)
            {
                const std::string line = co_await reader.readline();
                writer.write(line);
                co_await writer.drain();
                const std::size_t rounds = std::accumulate(p.rounds.begin(), p.rounds.end(), std::size_t(0));
                alone = std::exchange(before, rounds) == rounds ? alone + 1 : 0;
                most = std::max(most, alone);
            }
        },
        [](raw_peer& peer)
        {
            std::string requests;
            for (std::size_t i = 0; i < count; ++i)
                requests += "PING\n";
            auto sending = test::run_in_thread([&] { peer.ssl() ? peer.tls_write(requests) : peer.send_all(requests); });
            sink(peer);
            sending.get();
        });
    CHECK(answers == count);
    CHECK(most < count / 4 * 3);
}

TEST_CASE("fairness: while a peer sends KeyUpdates with a byte between here and there, the others have their turn")
{
    const bool into_memory = GENERATE(false, true);
    const std::size_t updates_between = GENERATE(std::size_t(350), std::size_t(20));
    CAPTURE(into_memory, updates_between);
    const std::size_t bytes = 10'500 / updates_between;
    const std::size_t most = 128 * 1024 / (27 * updates_between); // in a turn
    std::size_t read = 0;
    std::size_t turns = 0;
    std::size_t most_at_once = 0;
    test::run(
        [&]() -> awaitable<void>
        {
            std::size_t sent = std::numeric_limits<std::size_t>::max();
            const auto read_all = [&](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                const auto executor = co_await asio::this_coro::executor;
                const int descriptor = *writer.get_extra_info<"socket">();
                const int room = 1024 * 1024;
                ::setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
                const auto has_come = [&]
                {
                    int size = 0;
                    return ::ioctl(descriptor, FIONREAD, &size) == 0 && std::size_t(size) >= sent;
                };
                co_await test::eventually(has_come);
                const auto count = [&]() -> awaitable<void>
                {
                    while (read < bytes)
                    {
                        co_await test::turns(1);
                        ++turns;
                    }
                };
                const auto counting = test::spawn(executor, count);
                std::string memory(1000, '\0');
                while (read < bytes)
                {
                    std::size_t size = 0;
                    if (into_memory)
                        size = co_await reader.readinto(memory);
                    else
                    {
                        const std::string piece = co_await reader.read(memory.size());
                        size = piece.size();
                    }
                    read += size;
                    most_at_once = std::max(most_at_once, size);
                }
                co_await counting.join();
            };
            us::server server =
                co_await us::start_server(read_all, "127.0.0.1", 0, {.ssl = &test::server_context()});
            const auto talk = [&, endpoint = test::endpoint_of(server)]
            {
                raw_peer peer = raw_peer::connect(endpoint);
                peer.tls_connect(test::localhost_client());
                std::string flood = peer.tls_unsent(
                    [&]
                    {
                        for (std::size_t i = 0; i < bytes; ++i)
                        {
                            for (std::size_t j = 0; j < updates_between; ++j)
                                peer.key_update(false);
                            peer.tls_write("x");
                        }
                    });
                return std::pair(std::move(peer), std::move(flood));
            };
            auto [peer, flood] = co_await test::joined(test::run_in_thread(talk));
            auto sending = test::run_in_thread([&, &one = peer, &all = flood] { one.send_all(all); });
            co_await test::joined(std::move(sending));
            sent = flood.size();
            co_await test::eventually([&] { return read == bytes; });
            peer.close();
            server.close();
            co_await server.wait_closed();
        });
    CHECK(read == bytes);
    CHECK(most_at_once <= most);
    CHECK(turns >= bytes / most);
}
