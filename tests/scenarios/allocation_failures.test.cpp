// Upgrades and TLS streams in which one allocation after the other fails. Asio takes the memory of its own operations
// from aligned_alloc, which does not fail here.

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/descriptors.hpp"
#include "support/stream_links.hpp"
#include "support/upgrade_rig.hpp"

#include <upgradeable_streams.hpp>

#include <asio/awaitable.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <sys/socket.h>

using namespace test::rig;

namespace
{

enum class result
{
    upgraded,
    out_of_memory,
    other
};

struct attempt
{
    result ended = result::other;
    bool failure_happened = false;
    bool closed = false;
};

/// Awaits an upgrade in which the nth allocation fails.
template <typename Upgrade>
asio::awaitable<void> upgrade(Upgrade start, std::size_t nth, attempt& made)
{
    const test::allocation_failure failure(nth);
    try
    {
        co_await start();
        made.ended = result::upgraded;
    }
    catch (const std::bad_alloc&)
    {
        made.ended = result::out_of_memory;
    }
    catch (const std::system_error& error)
    {
        if (error.code() == asio::error::no_memory)
            made.ended = result::out_of_memory;
    }
    made.failure_happened = failure.happened();
}

asio::awaitable<void> upgrade_pair(tcp::socket socket, tls_role role, std::size_t nth, attempt& made)
{
    const us::connection_options options = {
        .ssl = options_of(role).ssl, .upgradeable = true, .server_hostname = "localhost", .role = role};
    auto [reader, writer] = co_await us::open_connection(std::move(socket), options);
    const auto start = [&]() -> asio::awaitable<void> { std::tie(reader, writer) = co_await writer.start_tls(); };
    co_await upgrade(start, nth, made);
    made.closed = writer.is_closing();
}

template <typename Layer>
asio::awaitable<void> upgrade_stream(tcp::socket socket, tls_role role, std::size_t nth, attempt& made)
{
    stream_over<Layer, tcp::socket> stream(std::move(socket), options_of(role));
    const auto start = [&] { return stream.start_tls(); };
    co_await upgrade(start, nth, made);
    made.closed = !stream.lowest_layer().is_open();
    if (stream.is_tls())
        co_await shut_down(stream);
}

using upgrade_function = asio::awaitable<void> (*)(tcp::socket, tls_role, std::size_t, attempt&);

/// The other end, which may give up: as `play`, but a thread whose memory is given back once it is joined; that of a
/// future need not be.
template <typename Function>
std::thread play_alone(test::raw_peer&& peer, Function function)
{
    return std::thread(
        [raw = std::move(peer), function]() mutable
        {
            test::raw_peer ends_here = std::move(raw);
            try
            {
                function(ends_here);
            }
            catch (const std::exception&)
            {
            }
        });
}

attempt try_upgrade(upgrade_function function, tls_role role, std::size_t nth)
{
    attempt made;
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    std::thread peer = play_alone(std::move(raw),
                                  [role](test::raw_peer& p)
                                  {
                                      handshake(p, role);
                                      p.tls_shutdown();
                                  });
    asio::co_spawn(io, function(std::move(socket), role, nth, made), asio::detached);
    io.run();
    peer.join();
    return made;
}

/// Makes attempts in which one allocation after the other fails, until one has fewer; none leaks, whatever fails.
/// Returns: them all, the last of which had no failure.
template <typename Function>
std::vector<attempt> fail_each_allocation(Function function, std::size_t most = 1000)
{
    std::vector<attempt> all;
    do
    {
        const std::size_t descriptors = test::open_descriptors();
        const test::memory_use before = test::allocated();
        const attempt made = function(all.size() + 1);
        const test::memory_use after = test::allocated();
        INFO("allocation " << all.size() + 1);
        CHECK(test::open_descriptors() == descriptors);
        CHECK(after.allocations == before.allocations);
        CHECK(after.bytes == before.bytes);
        CHECK(made.ended != result::other);
        all.push_back(made);
    } while (all.back().failure_happened && all.size() <= most);
    CHECK(all.size() <= most);
    CHECK(all.back().ended == result::upgraded);
    return all;
}

} // namespace

TEST_CASE("allocation failures: whichever allocation of an upgrade fails, the error says so and nothing leaks")
{
    const tls_role role = GENERATE(tls_role::client, tls_role::server);
    const upgrade_function function =
        GENERATE(upgrade_pair, upgrade_stream<with_ssl_stream>, upgrade_stream<with_tls_stream>);
    CHECK(try_upgrade(function, role, 0).ended == result::upgraded);
    const std::vector<attempt> all =
        fail_each_allocation([&](std::size_t nth) { return try_upgrade(function, role, nth); });
    std::size_t failures = 0;
    std::size_t closed = 0;
    for (const attempt& made : all)
    {
        CHECK(made.ended == (made.failure_happened ? result::out_of_memory : result::upgraded));
        failures += made.failure_happened;
        closed += made.failure_happened && made.closed;
    }
    CHECK(failures >= 8);
    CHECK(closed >= failures - 2); // an upgrade that could not be asked for leaves the connection as it was
}

namespace
{

/// A handshake with bytes received before, a write of many fragments, another that does not fit into the socket, the
/// answer, and a shutdown; the nth allocation fails.
template <typename Layer>
asio::awaitable<void> converse(Layer& layer, std::string received, std::size_t nth, attempt& made)
{
    std::array<asio::const_buffer, 100> fragments;
    fragments.fill(asio::buffer(flood(), 100));
    std::string answer(100'000, '\0');
    const auto talk_to = [&]() -> asio::awaitable<void>
    {
        co_await layer.async_handshake(Layer::server, asio::buffer(std::as_const(received)), use_awaitable);
        co_await layer.async_write_some(fragments, use_awaitable);
        for (std::size_t sent = 0; sent < 1'000'000;)
        {
            const auto next = asio::buffer(flood(), 1'000'000 - sent);
            sent += co_await layer.async_write_some(next, use_awaitable);
        }
        co_await asio::async_read(layer, asio::buffer(answer), use_awaitable);
        co_await layer.async_shutdown(use_awaitable);
    };
    co_await upgrade(talk_to, nth, made);
}

template <typename Layer>
attempt try_conversation(std::size_t nth)
{
    attempt made;
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    const int small = 16 * 1024;
    ::setsockopt(socket.native_handle(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    std::thread peer = play_alone(std::move(raw),
                                  [](test::raw_peer& p)
                                  {
                                      handshake(p, tls_role::server);
                                      p.key_update(true);
                                      p.tls_read_exactly(1'010'000);
                                      p.tls_write(std::string_view(flood()).substr(0, 100'000));
                                      p.tls_shutdown();
                                  });
    std::string received(5, '\0');
    asio::read(socket, asio::buffer(received));
    typename Layer::next_layer_type next(std::move(socket));
    {
        Layer layer(std::move(next), test::server_context());
        asio::co_spawn(io, converse(layer, received, nth, made), asio::detached);
        io.run();
    }
    peer.join();
    return made;
}

/// For the library no socket, since it may do more.
struct other_socket : tcp::socket
{
    explicit other_socket(tcp::socket&& socket) : tcp::socket(std::move(socket)) {}
};

using conversation_function = attempt (*)(std::size_t);

} // namespace

TEST_CASE("allocation failures: whichever allocation of a TLS stream fails, the error says so and nothing leaks")
{
    const conversation_function function =
        GENERATE(&try_conversation<us::tls_stream<tcp::socket>>, &try_conversation<us::tls_stream<other_socket>>);
    CHECK(function(0).ended == result::upgraded);
    CHECK(fail_each_allocation(function).size() > 5);
}

namespace
{

enum class situation
{
    first_read,
    after_a_large_one,
    closing
};

/// Makes room for the timers of an io_context, whose lack would end the program: Asio takes it when a wait begins.
asio::awaitable<void> make_room_for_timers()
{
    std::vector<asio::steady_timer> timers;
    for (int i = 0; i < 64; ++i)
        timers.emplace_back(co_await asio::this_coro::executor, std::chrono::hours(1)).async_wait(asio::detached);
}

/// A line that comes while a read waits for it, or while a connection with bytes unread closes; the nth allocation
/// fails.
asio::awaitable<void> await_line(bool over_socket, situation when, std::size_t nth, attempt& made)
{
    auto linking = over_socket ? test::link_over_socket()
                               : test::link_of({}, [](tcp::socket socket) { return other_socket(std::move(socket)); });
    auto link = co_await std::move(linking);
    const auto executor = link.writer.get_executor();
    co_await make_room_for_timers();
    if (when == situation::after_a_large_one)
    {
        const std::string large = flood().substr(0, 20'000);
        link.send(large);
        const std::string received = co_await link.reader.readexactly(large.size());
        CHECK(received == large);
    }
    if (when == situation::closing)
        link.send("unread");
    std::string line;
    const auto read = [&]() -> asio::awaitable<void>
    {
        asio::post(executor, [&] { link.send("line\n"); });
        line = co_await link.reader.readline();
    };
    const auto close = [&]() -> asio::awaitable<void>
    {
        asio::post(executor, [&] { link.peer.close(); });
        link.writer.close();
        co_await link.writer.wait_closed();
    };
    if (when == situation::closing)
        co_await upgrade(close, nth, made);
    else
        co_await upgrade(read, nth, made);
    made.closed = link.writer.is_closing();
    if (when != situation::closing && made.ended == result::out_of_memory && !made.closed)
        line = co_await link.reader.readline();
    if (when != situation::closing && !made.closed)
        CHECK(line == "line\n");
    co_await test::turns(); // for what was posted
}

} // namespace

TEST_CASE("allocation failures: whichever allocation of a read that waits fails, the next one has what came")
{
    const bool over_socket = GENERATE(true, false);
    const situation when = GENERATE(situation::first_read, situation::after_a_large_one, situation::closing);
    flood(); // lasts
    CAPTURE(over_socket, static_cast<int>(when));
    const auto try_to_read = [&](std::size_t nth)
    {
        attempt made;
        test::run([&] { return await_line(over_socket, when, nth, made); });
        CHECK(made.closed == (when == situation::closing));
        return made;
    };
    CHECK(fail_each_allocation(try_to_read, 100).size() > 1);
}
