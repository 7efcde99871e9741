#include <upgradeable_streams/tls_context.hpp>
#include <upgradeable_streams/upgradeable_stream.hpp>

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/chunked_stream.hpp"
#include "support/duplex.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/socket_pair.hpp"
#include "support/thread.hpp"
#include "support/tls_records.hpp"
#include "support/wire_tap.hpp"

#include <asio/bind_allocator.hpp>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/bind_executor.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/read.hpp>
#include <asio/read_until.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/use_future.hpp>
#include <asio/write.hpp>
#if __has_include(<asio/as_tuple.hpp>)
#include <asio/as_tuple.hpp>
#include <asio/deferred.hpp>
#else
#include <asio/experimental/as_tuple.hpp>
#include <asio/experimental/deferred.hpp>
#endif

#include <poll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using asio::use_awaitable;
using asio::ip::tcp;
using us::tls_role;
using namespace std::chrono_literals;
using namespace std::string_literals;
using namespace std::string_view_literals;

namespace
{

#if __has_include(<asio/as_tuple.hpp>)
using asio::as_tuple;
using asio::deferred;
#else
using asio::experimental::as_tuple;
using asio::experimental::deferred;
#endif

using tcp_stream = us::upgradeable_stream<tcp::socket>;
using chunked_stream = us::upgradeable_stream<test::chunked_stream<tcp::socket>>;

asio::ssl::context& server_ssl()
{
    static auto context = us::create_server_context(
        {.identity = {.certificate_chain_file = test::localhost_certificate().certificate_file,
                      .private_key_file = test::localhost_certificate().key_file}});
    return context;
}

asio::ssl::context& client_ssl()
{
    static const std::string ca_file = test::authority().ca_file();
    static auto context = us::create_client_context({.ca_file = ca_file});
    return context;
}

/// What a stream of this role needs to come to terms with `handshake` at the other end.
us::tls_options options_of(tls_role role)
{
    return {
        .ssl = role == tls_role::client ? &client_ssl() : &server_ssl(), .role = role, .server_hostname = "localhost"};
}

/// The handshake of a peer whose other end plays `role`.
void handshake(test::raw_peer& peer, tls_role role)
{
    if (role == tls_role::client)
        peer.tls_accept(test::localhost_server());
    else
        peer.tls_connect(test::localhost_client());
}

struct connection
{
    tcp::socket socket;
    test::raw_peer peer;
};

connection connect(const asio::any_io_executor& executor)
{
    test::raw_listener listener;
    tcp::socket socket(executor);
    socket.connect(test::loopback(listener.port()));
    return {std::move(socket), listener.accept()};
}

/// The other end: runs `function(peer)` on a thread, and closes the peer with the end of `function`.
template <typename Function>
auto play(test::raw_peer&& peer, Function function)
{
    return test::run_in_thread(
        [raw = std::move(peer), function]() mutable
        {
            test::raw_peer ends_here = std::move(raw);
            return function(ends_here);
        });
}

/// The other end of a stream that plays `role`: a handshake, then `function(peer)`, then an orderly close.
template <typename Function>
auto play_tls(test::raw_peer&& peer, tls_role role, Function function)
{
    return play(std::move(peer),
                [role, function](test::raw_peer& raw)
                {
                    handshake(raw, role);
                    function(raw);
                    raw.tls_shutdown();
                });
}

/// Keeps the other end open until the stream was closed, with a FIN or a RST.
void hold_open(test::raw_peer& peer)
{
    try
    {
        peer.recv_all();
    }
    catch (const std::system_error& error)
    {
        if (error.code() != std::errc::connection_reset)
            throw;
    }
}

/// What a callback was given.
struct outcome
{
    bool done = false;
    asio::error_code error;
    std::size_t size = 0;
};

auto into(outcome& result)
{
    return [&result](asio::error_code error, std::size_t size = 0) { result = {true, error, size}; };
}

asio::awaitable<void> finished(const outcome& result)
{
    co_await test::eventually([&result] { return result.done; });
}

/// Runs `io` until the callback of `result` was called.
void run_until_done(asio::io_context& io, const outcome& result)
{
    const auto deadline = std::chrono::steady_clock::now() + test::run_deadline;
    io.restart();
    while (!result.done && io.run_one_until(deadline) != 0)
    {
    }
    REQUIRE(result.done);
}

template <typename T>
T wait_for(asio::io_context& io, std::future<T> result)
{
    const auto deadline = std::chrono::steady_clock::now() + test::run_deadline;
    io.restart();
    while (result.wait_for(0s) != std::future_status::ready && io.run_one_until(deadline) != 0)
    {
    }
    REQUIRE(result.wait_for(0s) == std::future_status::ready);
    return result.get();
}

template <typename Stream>
asio::awaitable<std::string> read_line(Stream& stream)
{
    std::string line;
    co_await asio::async_read_until(stream, asio::dynamic_buffer(line), '\n', use_awaitable);
    co_return line;
}

template <typename Stream>
asio::awaitable<std::string> read_exactly(Stream& stream, std::size_t size)
{
    std::string bytes(size, '\0');
    co_await asio::async_read(stream, asio::buffer(bytes), use_awaitable);
    co_return bytes;
}

/// All that comes before an error, and the error.
template <typename Stream>
asio::awaitable<std::pair<std::string, asio::error_code>> read_to_error(Stream& stream)
{
    std::pair<std::string, asio::error_code> result;
    co_await asio::async_read(stream, asio::dynamic_buffer(result.first),
                              asio::redirect_error(use_awaitable, result.second));
    co_return result;
}

template <typename Stream>
asio::awaitable<void> write(Stream& stream, std::string_view bytes)
{
    co_await asio::async_write(stream, asio::buffer(bytes), use_awaitable);
}

template <typename Stream>
asio::awaitable<std::error_code> read_error(Stream& stream)
{
    char byte = 0;
    co_return co_await test::error_of(stream.async_read_some(asio::buffer(&byte, 1), use_awaitable));
}

template <typename Stream>
asio::awaitable<std::error_code> write_error(Stream& stream)
{
    co_return co_await test::error_of(stream.async_write_some(asio::buffer("x", 1), use_awaitable));
}

template <typename Stream>
asio::awaitable<void> shut_down(Stream& stream)
{
    co_await stream.async_shutdown({}, use_awaitable);
}

template <typename Stream>
asio::awaitable<std::error_code> shutdown_error(Stream& stream)
{
    co_return co_await test::error_of(stream.async_shutdown({}, use_awaitable));
}

bool is_writable(int descriptor)
{
    pollfd entry{descriptor, POLLOUT, 0};
    return ::poll(&entry, 1, 0) == 1;
}

/// Waits until the operation that writes stands still, because nobody reads at the other end.
asio::awaitable<void> stuck(chunked_stream& stream)
{
    std::size_t before = 0;
    co_await test::eventually(
        [&]
        {
            const std::size_t writes = stream.next_layer().writes();
            return !is_writable(stream.lowest_layer().native_handle()) && std::exchange(before, writes) == writes;
        });
}

const std::string& flood()
{
    static const std::string bytes = test::pattern(7).bytes(0, 32 << 20);
    return bytes;
}

} // namespace

// Reading and writing

TEST_CASE("upgradeable_stream: lines and larger data arrive whole before and after the upgrade, however they are split")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(int(role), chunk);
    const std::string data = test::pattern(3).bytes(0, chunk == 1 ? 20'000 : 200'000);

    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), role,
                                 [&](test::raw_peer& p)
                                 {
                                     p.tls_write("220 ready\r\n");
                                     if (p.tls_read_exactly(data.size()) == data)
                                         p.tls_write(data);
                                 });
            chunked_stream stream(test::chunked_stream(std::move(socket), chunk), options_of(role));
            co_await stream.start_tls();
            const std::string greeting = co_await read_line(stream);
            CHECK(greeting == "220 ready\r\n");
            co_await write(stream, data);
            const std::string echoed = co_await read_exactly(stream, data.size());
            CHECK((echoed == data));
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });

    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 p.send_all(p.recv_line());
                                 p.send_all(p.recv_exactly(data.size()));
                                 handshake(p, role);
                                 p.tls_write(p.tls_read_line());
                                 p.tls_shutdown();
                             });
            chunked_stream stream(test::chunked_stream(std::move(socket), chunk), options_of(role));
            co_await write(stream, "plain\n");
            const std::string plain = co_await read_line(stream);
            CHECK(plain == "plain\n");
            co_await write(stream, data);
            const std::string echoed = co_await read_exactly(stream, data.size());
            CHECK((echoed == data));
            co_await stream.start_tls();
            co_await write(stream, "secret\n");
            const std::string secret = co_await read_line(stream);
            CHECK(secret == "secret\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: sequences of several buffers arrive in order, plain and encrypted")
{
    const bool encrypted = GENERATE(false, true);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 if (encrypted)
                                     handshake(p, tls_role::server);
                                 encrypted ? p.tls_write(p.tls_read_exactly(6)) : p.send_all(p.recv_exactly(6));
                                 if (encrypted)
                                     p.tls_shutdown();
                             });
            tcp_stream stream(std::move(socket), options_of(tls_role::server));
            if (encrypted)
                co_await stream.start_tls();
            const std::array<asio::const_buffer, 4> out{asio::buffer("ab", 2), asio::const_buffer(),
                                                        asio::buffer("c", 1), asio::buffer("def", 3)};
            co_await asio::async_write(stream, out, use_awaitable);
            std::string first(1, '\0');
            std::string rest(5, '\0');
            const std::array<asio::mutable_buffer, 3> in{asio::buffer(first), asio::mutable_buffer(),
                                                         asio::buffer(rest)};
            co_await asio::async_read(stream, in, use_awaitable);
            CHECK(first + rest == "abcdef");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: reads and writes of nothing complete with 0 bytes, plain and encrypted")
{
    const bool encrypted = GENERATE(false, true);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 if (encrypted)
                                     handshake(p, tls_role::client);
                                 encrypted ? p.tls_shutdown() : p.send_fin();
                             });
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            if (encrypted)
                co_await stream.start_tls();
            const std::size_t read = co_await stream.async_read_some(asio::mutable_buffer(), use_awaitable);
            CHECK(read == 0);
            const std::size_t written = co_await stream.async_write_some(asio::const_buffer(), use_awaitable);
            CHECK(written == 0);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: a handler is never called from within the call that started its operation")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    tcp_stream stream(std::move(socket), options_of(tls_role::server));
    std::array<char, 8> bytes;
    outcome upgraded, read, written, again, shut;

    stream.async_start_tls({}, into(upgraded));
    CHECK(!upgraded.done);
    stream.async_read_some(asio::buffer(bytes), into(read));
    stream.async_write_some(asio::buffer("x", 1), into(written));
    stream.async_start_tls({}, into(again));
    stream.async_shutdown({}, into(shut));
    CHECK((!read.done && !written.done && !again.done && !shut.done));
    raw.close();
    io.run();
    CHECK((upgraded.done && read.done && written.done && again.done && shut.done));
}

// Completion tokens

namespace
{

/// The other end of the tests of completion tokens.
auto token_peer(test::raw_peer&& raw)
{
    return play(std::move(raw),
                [](test::raw_peer& p)
                {
                    p.send_all(p.recv_exactly(5));
                    handshake(p, tls_role::client);
                    p.tls_write(p.tls_read_exactly(6));
                    p.tls_shutdown();
                });
}

} // namespace

TEST_CASE("upgradeable_stream: every operation takes a callback")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    tcp_stream stream(std::move(socket), options_of(tls_role::client));
    std::array<char, 16> bytes;
    outcome wrote, read, upgraded, shut;

    stream.async_write_some(asio::buffer("plain", 5), into(wrote));
    run_until_done(io, wrote);
    stream.async_read_some(asio::buffer(bytes), into(read));
    run_until_done(io, read);
    CHECK(std::string_view(bytes.data(), read.size) == "plain");
    stream.async_start_tls({}, into(upgraded));
    run_until_done(io, upgraded);
    CHECK(!upgraded.error);
    stream.async_write_some(asio::buffer("secret", 6), into(wrote = {}));
    run_until_done(io, wrote);
    CHECK(wrote.size == 6);
    stream.async_read_some(asio::buffer(bytes), into(read = {}));
    run_until_done(io, read);
    CHECK(std::string_view(bytes.data(), read.size) == "secret");
    stream.async_shutdown({}, into(shut));
    run_until_done(io, shut);
    CHECK(!shut.error);
    peer.get();
}

TEST_CASE("upgradeable_stream: every operation takes use_awaitable")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = token_peer(std::move(raw));
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            std::array<char, 16> bytes;
            std::size_t size = co_await stream.async_write_some(asio::buffer("plain", 5), use_awaitable);
            CHECK(size == 5);
            size = co_await stream.async_read_some(asio::buffer(bytes), use_awaitable);
            CHECK(std::string_view(bytes.data(), size) == "plain");
            co_await stream.async_start_tls({}, use_awaitable);
            size = co_await stream.async_write_some(asio::buffer("secret", 6), use_awaitable);
            CHECK(size == 6);
            size = co_await stream.async_read_some(asio::buffer(bytes), use_awaitable);
            CHECK(std::string_view(bytes.data(), size) == "secret");
            co_await stream.async_shutdown({}, use_awaitable);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: every operation takes use_future")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    tcp_stream stream(std::move(socket), options_of(tls_role::client));
    std::array<char, 16> bytes;
    CHECK(wait_for(io, stream.async_write_some(asio::buffer("plain", 5), asio::use_future)) == 5);
    std::size_t size = wait_for(io, stream.async_read_some(asio::buffer(bytes), asio::use_future));
    CHECK(std::string_view(bytes.data(), size) == "plain");
    wait_for(io, stream.async_start_tls({}, asio::use_future));
    CHECK(stream.is_tls());
    CHECK(wait_for(io, stream.async_write_some(asio::buffer("secret", 6), asio::use_future)) == 6);
    size = wait_for(io, stream.async_read_some(asio::buffer(bytes), asio::use_future));
    CHECK(std::string_view(bytes.data(), size) == "secret");
    wait_for(io, stream.async_shutdown({}, asio::use_future));
    peer.get();
    CHECK_THROWS_AS(wait_for(io, stream.async_start_tls({}, asio::use_future)), std::system_error);
}

namespace
{

/// Notes whether it was used on another thread than the one that made it.
class home_stream : public test::chunked_stream<tcp::socket>
{
public:
    using test::chunked_stream<tcp::socket>::chunked_stream;

    template <typename Buffers, typename Token>
    auto async_read_some(const Buffers& buffers, Token&& token)
    {
        note();
        return test::chunked_stream<tcp::socket>::async_read_some(buffers, std::forward<Token>(token));
    }

    template <typename Buffers, typename Token>
    auto async_write_some(const Buffers& buffers, Token&& token)
    {
        note();
        return test::chunked_stream<tcp::socket>::async_write_some(buffers, std::forward<Token>(token));
    }

    bool left_home() const { return *left_home_; }

private:
    void note()
    {
        if (std::this_thread::get_id() != home_)
            *left_home_ = true;
    }

    std::thread::id home_ = std::this_thread::get_id();
    std::shared_ptr<std::atomic<bool>> left_home_ = std::make_shared<std::atomic<bool>>(false);
};

} // namespace

TEST_CASE("upgradeable_stream: with use_future, whose executor is the system's, the work stays on the socket's thread")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    us::upgradeable_stream<home_stream> stream(home_stream(std::move(socket)), options_of(tls_role::client));
    std::array<char, 16> bytes;
    wait_for(io, stream.async_write_some(asio::buffer("plain", 5), asio::use_future));
    wait_for(io, stream.async_read_some(asio::buffer(bytes), asio::use_future));
    wait_for(io, stream.async_start_tls({}, asio::use_future));
    wait_for(io, stream.async_write_some(asio::buffer("secret", 6), asio::use_future));
    wait_for(io, stream.async_read_some(asio::buffer(bytes), asio::use_future));
    wait_for(io, stream.async_shutdown({}, asio::use_future));
    CHECK(!stream.next_layer().left_home());
    peer.get();
}

TEST_CASE("upgradeable_stream: every operation takes as_tuple")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = token_peer(std::move(raw));
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            std::array<char, 16> bytes;
            auto [error, size] = co_await stream.async_write_some(asio::buffer("plain", 5), as_tuple(use_awaitable));
            CHECK(!error);
            CHECK(size == 5);
            std::tie(error, size) = co_await stream.async_read_some(asio::buffer(bytes), as_tuple(use_awaitable));
            CHECK(!error);
            CHECK(std::string_view(bytes.data(), size) == "plain");
            std::tie(error) = co_await stream.async_start_tls({}, as_tuple(use_awaitable));
            CHECK(!error);
            std::tie(error, size) =
                co_await stream.async_write_some(asio::buffer("secret", 6), as_tuple(use_awaitable));
            CHECK(!error);
            CHECK(size == 6);
            std::tie(error, size) = co_await stream.async_read_some(asio::buffer(bytes), as_tuple(use_awaitable));
            CHECK(!error);
            CHECK(std::string_view(bytes.data(), size) == "secret");
            std::tie(error) = co_await stream.async_start_tls({}, as_tuple(use_awaitable));
            CHECK(error == us::errc::already_tls);
            std::tie(error) = co_await stream.async_shutdown({}, as_tuple(use_awaitable));
            CHECK(!error);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: every operation takes deferred, and starts when what that gives is called")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    tcp_stream stream(std::move(socket), options_of(tls_role::client));
    std::array<char, 16> bytes;
    outcome wrote, read, upgraded, shut;

    auto write_plain = stream.async_write_some(asio::buffer("plain", 5), deferred);
    io.run();
    std::move(write_plain)(into(wrote));
    run_until_done(io, wrote);
    stream.async_read_some(asio::buffer(bytes), deferred)(into(read));
    run_until_done(io, read);
    CHECK(std::string_view(bytes.data(), read.size) == "plain");
    auto upgrade = stream.async_start_tls({}, deferred);
    io.poll();
    CHECK(stream.native_handle() == nullptr);
    std::move(upgrade)(into(upgraded));
    run_until_done(io, upgraded);
    CHECK(stream.is_tls());
    stream.async_write_some(asio::buffer("secret", 6), deferred)(into(wrote = {}));
    run_until_done(io, wrote);
    CHECK(wrote.size == 6);
    stream.async_read_some(asio::buffer(bytes), deferred)(into(read = {}));
    run_until_done(io, read);
    CHECK(std::string_view(bytes.data(), read.size) == "secret");
    stream.async_shutdown({}, deferred)(into(shut));
    run_until_done(io, shut);
    CHECK(!shut.error);
    peer.get();
}

TEST_CASE("upgradeable_stream: the socket's default completion token is the stream's")
{
    using socket_type = asio::use_awaitable_t<>::as_default_on_t<tcp::socket>;
    test::run(
        []() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = token_peer(std::move(raw));
            us::upgradeable_stream<socket_type> stream(socket_type(std::move(socket)), options_of(tls_role::client));
            std::array<char, 16> bytes;
            co_await stream.async_write_some(asio::buffer("plain", 5));
            co_await stream.async_read_some(asio::buffer(bytes));
            co_await stream.async_start_tls();
            co_await stream.async_write_some(asio::buffer("secret", 6));
            const std::size_t size = co_await stream.async_read_some(asio::buffer(bytes));
            CHECK(std::string_view(bytes.data(), size) == "secret");
            co_await stream.async_shutdown();
            co_await test::joined(std::move(peer));
        });
}

// Associated executor and allocator

TEST_CASE("upgradeable_stream: a handler bound to a strand is called on that strand")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    tcp_stream stream(std::move(socket), options_of(tls_role::client));
    auto strand = asio::make_strand(io);
    int calls = 0;
    std::array<char, 16> bytes;
    const auto run = [&](auto&& start)
    {
        outcome result;
        start(asio::bind_executor(strand,
                                  [&](asio::error_code error, std::size_t size = 0)
                                  {
                                      calls += strand.running_in_this_thread();
                                      result = {true, error, size};
                                  }));
        run_until_done(io, result);
        return result.error;
    };
    run([&](auto handler) { stream.async_write_some(asio::buffer("plain", 5), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(!run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }));
    run([&](auto handler) { stream.async_write_some(asio::buffer("secret", 6), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }) == us::errc::already_tls);
    CHECK(!run([&](auto handler) { stream.async_shutdown({}, std::move(handler)); }));
    CHECK(calls == 7);
    peer.get();
}

TEST_CASE("upgradeable_stream: a handler bound to another io_context's executor is called there")
{
    asio::io_context other;
    asio::io_context io; // Goes first: what is queued in it when the test ends holds executors of the other.
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    tcp_stream stream(std::move(socket), options_of(tls_role::client));
    std::array<char, 16> bytes;
    const auto run = [&](auto&& start)
    {
        bool elsewhere = false;
        bool was_elsewhere = false;
        outcome result;
        start(asio::bind_executor(other.get_executor(),
                                  [&](asio::error_code error, std::size_t size = 0)
                                  {
                                      was_elsewhere = elsewhere;
                                      result = {true, error, size};
                                  }));
        while (!result.done)
        {
            io.restart();
            io.run_one_for(1ms);
            other.restart();
            elsewhere = true;
            other.poll();
            elsewhere = false;
        }
        CHECK(was_elsewhere);
        return result.error;
    };
    run([&](auto handler) { stream.async_write_some(asio::buffer("plain", 5), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(!run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }));
    run([&](auto handler) { stream.async_write_some(asio::buffer("secret", 6), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }) == us::errc::already_tls);
    CHECK(!run([&](auto handler) { stream.async_shutdown({}, std::move(handler)); }));
    peer.get();
}

namespace
{

struct allocation_count
{
    std::size_t made = 0;
    std::size_t live = 0;
};

template <typename T>
struct counting_allocator
{
    using value_type = T;

    explicit counting_allocator(allocation_count& c) : count(&c) {}
    template <typename U>
    counting_allocator(const counting_allocator<U>& other) : count(other.count)
    {
    }

    T* allocate(std::size_t n)
    {
        ++count->made;
        ++count->live;
        return std::allocator<T>().allocate(n);
    }

    void deallocate(T* p, std::size_t n)
    {
        --count->live;
        std::allocator<T>().deallocate(p, n);
    }

    template <typename U>
    bool operator==(const counting_allocator<U>& other) const
    {
        return count == other.count;
    }

    allocation_count* count;
};

} // namespace

TEST_CASE("upgradeable_stream: a handler's allocator is used by each operation, and all is given back before the call")
{
    // The executor is a concrete one, because any_io_executor passes no allocator on when asio::post goes through it.
    using socket_type = asio::basic_stream_socket<tcp, asio::io_context::executor_type>;
    asio::io_context io;
    test::raw_listener listener;
    socket_type socket(io);
    socket.connect(test::loopback(listener.port()));
    auto peer = token_peer(listener.accept());
    us::upgradeable_stream<socket_type> stream(std::move(socket), options_of(tls_role::client));
    std::array<char, 16> bytes;
    const auto run = [&](auto&& start)
    {
        allocation_count count;
        outcome result;
        std::size_t live_at_call = 1;
        start(asio::bind_allocator(counting_allocator<char>(count),
                                   [&](asio::error_code error, std::size_t size = 0)
                                   {
                                       live_at_call = count.live;
                                       result = {true, error, size};
                                   }));
        run_until_done(io, result);
        CHECK(count.made > 0);
        CHECK(live_at_call == 0);
        CHECK(count.live == 0);
        return result.error;
    };
    run([&](auto handler) { stream.async_write_some(asio::buffer("plain", 5), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(!run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }));
    run([&](auto handler) { stream.async_write_some(asio::buffer("secret", 6), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }) == us::errc::already_tls);
    CHECK(!run([&](auto handler) { stream.async_shutdown({}, std::move(handler)); }));
    peer.get();
}

// Cancellation

TEST_CASE("upgradeable_stream: a cancelled read leaves the stream as it was, plain and encrypted")
{
    const bool encrypted = GENERATE(false, true);
    const auto type =
        GENERATE(asio::cancellation_type::terminal, asio::cancellation_type::partial, asio::cancellation_type::total);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 if (encrypted)
                                     handshake(p, tls_role::client);
                                 encrypted ? p.tls_write(p.tls_read_line()) : p.send_all(p.recv_line());
                                 if (encrypted)
                                     p.tls_shutdown();
                             });
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            if (encrypted)
                co_await stream.start_tls();

            std::array<char, 16> bytes;
            asio::cancellation_signal signal;
            outcome read;
            stream.async_read_some(asio::buffer(bytes), asio::bind_cancellation_slot(signal.slot(), into(read)));
            CHECK(!read.done);
            signal.emit(type);
            co_await finished(read);
            CHECK(read.error == asio::error::operation_aborted);
            CHECK(read.size == 0);

            co_await write(stream, "still fine\n");
            const std::string line = co_await read_line(stream);
            CHECK(line == "still fine\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: a write can go on while reads of an encrypted stream are cancelled again and again")
{
    const std::string data = test::pattern(5).bytes(0, 400'000);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::client,
                                 [&](test::raw_peer& p)
                                 {
                                     if (p.tls_read_exactly(data.size()) == data)
                                         p.tls_write("whole\n");
                                 });
            chunked_stream stream(test::chunked_stream(std::move(socket), 1024), options_of(tls_role::client));
            co_await stream.start_tls();
            const auto executor = co_await asio::this_coro::executor;
            const auto writing =
                test::spawn(executor, [&]() -> asio::awaitable<void> { co_await write(stream, data); });
            char byte = 0;
            while (!writing.done())
            {
                asio::cancellation_signal signal;
                outcome read;
                stream.async_read_some(asio::buffer(&byte, 1), asio::bind_cancellation_slot(signal.slot(), into(read)));
                co_await asio::post(executor, use_awaitable);
                if (!read.done)
                    signal.emit(asio::cancellation_type::terminal);
                co_await finished(read);
                if (!read.error)
                    break;
                CHECK(read.error == asio::error::operation_aborted);
            }
            co_await writing.join();
            std::string line(byte == 'w' ? 1 : 0, 'w');
            line += co_await read_line(stream);
            CHECK(line == "whole\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: a write of an encrypted stream that is cancelled half-way makes it unusable")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            std::promise<void> may_go_on;
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_write("data that came before");
                                 may_go_on.get_future().get();
                             });
            chunked_stream stream(test::chunked_stream(std::move(socket), 1000), options_of(tls_role::client));
            co_await stream.start_tls();
            asio::cancellation_signal signal;
            outcome written;
            asio::async_write(stream, asio::buffer(flood()),
                              asio::bind_cancellation_slot(signal.slot(), into(written)));
            co_await stuck(stream);
            CHECK(!written.done);
            signal.emit(asio::cancellation_type::terminal);
            co_await finished(written);
            CHECK(written.error == asio::error::operation_aborted);

            std::error_code error = co_await write_error(stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await read_error(stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await shutdown_error(stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await test::error_of(stream.start_tls());
            CHECK(error == us::errc::stream_unusable);
            may_go_on.set_value();
            stream.lowest_layer().close();
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: a cancelled write of a plain stream leaves it as it was")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            chunked_stream stream(test::chunked_stream(std::move(socket), 1000), options_of(tls_role::client));
            asio::cancellation_signal signal;
            outcome written;
            asio::async_write(stream, asio::buffer(flood()),
                              asio::bind_cancellation_slot(signal.slot(), into(written)));
            co_await stuck(stream);
            signal.emit(asio::cancellation_type::terminal);
            co_await finished(written);
            CHECK(written.error == asio::error::operation_aborted);

            auto peer = play(std::move(raw),
                             [size = written.size](test::raw_peer& p)
                             {
                                 const bool whole = p.recv_exactly(size) == flood().substr(0, size);
                                 const std::string line = p.recv_line();
                                 handshake(p, tls_role::client);
                                 p.tls_write((whole ? "whole" : "damaged") + line);
                                 p.tls_shutdown();
                             });
            co_await write(stream, ", and more\n");
            co_await stream.start_tls();
            const std::string line = co_await read_line(stream);
            CHECK(line == "whole, and more\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("start_tls: a cancelled upgrade closes the stream, and every later operation says that it is unusable")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    CAPTURE(int(role));
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            tcp_stream stream(std::move(socket), options_of(role));
            const auto upgrade = test::spawn(executor, [&] { return stream.start_tls(); });
            co_await test::eventually([&] { return stream.native_handle() != nullptr; });
            upgrade.cancel();
            std::error_code error = co_await test::error_of(upgrade.join());
            CHECK(error == asio::error::operation_aborted);
            CHECK(!stream.is_tls());
            CHECK(!stream.lowest_layer().is_open());
            CHECK(!stream.session());

            error = co_await read_error(stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await write_error(stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await test::error_of(stream.start_tls());
            CHECK(error == us::errc::stream_unusable);
            error = co_await shutdown_error(stream);
            CHECK(error == us::errc::stream_unusable);
            const std::string sent = raw.recv_all();
            CHECK(sent.empty() == (role == tls_role::server));
            CHECK(test::tls_records(sent).end == sent.size());
        });
}

TEST_CASE("upgradeable_stream: a cancelled shutdown of an encrypted stream makes it unusable")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 const std::string data = p.tls_read_all();
                                 hold_open(p);
                                 return data;
                             });
            std::optional<tcp_stream> stream(std::in_place, std::move(socket), options_of(tls_role::client));
            co_await stream->start_tls();
            asio::cancellation_signal signal;
            outcome shut;
            stream->async_shutdown({}, asio::bind_cancellation_slot(signal.slot(), into(shut)));
            co_await asio::post(executor, use_awaitable);
            co_await asio::post(executor, use_awaitable);
            CHECK(!shut.done);
            signal.emit(asio::cancellation_type::terminal);
            co_await finished(shut);
            CHECK(shut.error == asio::error::operation_aborted);
            std::error_code error = co_await write_error(*stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await read_error(*stream);
            CHECK(error == us::errc::stream_unusable);
            stream.reset();
            co_await test::joined(std::move(peer));
        });
}

// Options, and what can be told

TEST_CASE("upgradeable_stream: is_tls, session and native_handle tell nothing while plain, and all once encrypted")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), role, [](test::raw_peer&) {});
            tcp_stream stream(std::move(socket), options_of(role));
            CHECK(!stream.is_tls());
            CHECK(!stream.session());
            CHECK(stream.native_handle() == nullptr);
            co_await stream.start_tls();
            CHECK(stream.is_tls());
            REQUIRE(stream.native_handle() != nullptr);
            CHECK(SSL_is_server(stream.native_handle()) == (role == tls_role::server));
            const auto session = stream.session();
            REQUIRE(session);
            CHECK(session->version == "TLSv1.3");
            CHECK(session->cipher.protocol == "TLSv1.3");
            CHECK(session->cipher.secret_bits >= 128);
            CHECK(session->server_name == "localhost");
            CHECK(!session->alpn_protocol);
            CHECK(!session->session_reused);
            CHECK(session->verify_result == X509_V_OK);
            CHECK(session->peer_certificate.has_value() == (role == tls_role::client));
            if (session->peer_certificate)
                CHECK(session->peer_certificate->subject() == "CN=localhost");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE(
    "upgradeable_stream: get_executor, next_layer and lowest_layer are the socket's, before and after the upgrade")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            const int descriptor = socket.native_handle();
            auto peer = play_tls(std::move(raw), tls_role::client, [](test::raw_peer&) {});
            chunked_stream stream(test::chunked_stream(std::move(socket), 64), options_of(tls_role::client));
            CHECK(stream.get_executor() == executor);
            CHECK(stream.lowest_layer().native_handle() == descriptor);
            CHECK(stream.next_layer().reads() == 0);
            co_await stream.start_tls();
            CHECK(stream.get_executor() == executor);
            CHECK(std::as_const(stream).lowest_layer().available() == stream.lowest_layer().available());
            CHECK(stream.lowest_layer().native_handle() == descriptor);
            CHECK(stream.next_layer().reads() > 0);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("start_tls: options at the call override those that the stream was made with")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::client, [](test::raw_peer&) {});
            // Each of these would fail.
            tcp_stream stream(std::move(socket), {.ssl = &server_ssl(),
                                                  .role = tls_role::server,
                                                  .server_hostname = "elsewhere.test",
                                                  .handshake_timeout = 1ns});
            co_await stream.start_tls({.ssl = &client_ssl(),
                                       .role = tls_role::client,
                                       .server_hostname = "localhost",
                                       .handshake_timeout = 60s});
            CHECK(stream.session()->server_name == "localhost");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("start_tls: options that are left out at the call keep the values that the stream was made with")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::server, [](test::raw_peer&) {});
            tcp_stream stream(std::move(socket), {.role = tls_role::server});
            co_await stream.start_tls({.ssl = &server_ssl()});
            CHECK(SSL_is_server(stream.native_handle()) == 1);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("start_tls: options that were overridden at a call that was refused do not stay")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::server, [](test::raw_peer&) {});
            tcp_stream stream(std::move(socket), {.role = tls_role::server});
            const std::error_code error =
                co_await test::error_of(stream.start_tls({.role = tls_role::client, .server_hostname = "localhost"}));
            CHECK(error == us::errc::not_upgradeable);
            co_await stream.start_tls({.ssl = &server_ssl()});
            CHECK(SSL_is_server(stream.native_handle()) == 1);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("start_tls: what the options view may go as soon as the call has returned, the context too")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::client, [](test::raw_peer&) {});
            std::optional<tcp_stream> stream;
            asio::awaitable<void> upgrade;
            {
                const std::string ca_file = test::authority().ca_file();
                auto context = us::create_client_context({.ca_file = ca_file});
                std::string name = "localhost";
                stream.emplace(std::move(socket), us::tls_options{.ssl = &context});
                upgrade = stream->start_tls({.server_hostname = name});
                name.assign(name.size(), 'x');
            }
            co_await std::move(upgrade);
            CHECK(stream->session()->server_name == "localhost");
            co_await shut_down(*stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: options that make no sense are std::invalid_argument, at the call")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    CHECK_THROWS_AS(tcp_stream(tcp::socket(io), {.handshake_timeout = 0s}), std::invalid_argument);
    CHECK_THROWS_AS(tcp_stream(tcp::socket(io), {.handshake_timeout = -1s}), std::invalid_argument);
    CHECK_THROWS_AS(tcp_stream(tcp::socket(io), {.shutdown_timeout = 0s}), std::invalid_argument);
    CHECK_THROWS_AS(tcp_stream(tcp::socket(io), {.received = "x"}), std::invalid_argument);
    CHECK_THROWS_AS(tcp_stream(tcp::socket(io), {.server_hostname = "*.test"}), std::invalid_argument);

    tcp_stream stream(std::move(socket), {.ssl = &client_ssl()});
    outcome result;
    CHECK_THROWS_AS(stream.start_tls({.server_hostname = "localhost", .handshake_timeout = 0s}), std::invalid_argument);
    CHECK_THROWS_AS(stream.start_tls({.server_hostname = "localhost", .shutdown_timeout = -1s}), std::invalid_argument);
    CHECK_THROWS_AS(stream.async_start_tls({.handshake_timeout = 0s}, into(result)), std::invalid_argument);
    CHECK_THROWS_AS(stream.async_shutdown({.timeout = 0s}, into(result)), std::invalid_argument);
    CHECK_THROWS_AS(stream.async_shutdown({.what = asio::socket_base::shutdown_receive}, into(result)),
                    std::invalid_argument);
    io.run();
    CHECK(!result.done);
    CHECK(stream.lowest_layer().is_open());
    stream.lowest_layer().close();
    CHECK(raw.recv_all().empty());
}

// Upgrades that are refused, or that fail

TEST_CASE("start_tls: without a context it is not_upgradeable, and the plain stream goes on")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream stream(std::move(socket));
            const std::error_code error = co_await test::error_of(stream.start_tls());
            CHECK(error == us::errc::not_upgradeable);
            CHECK(!stream.is_tls());
            co_await write(stream, "still plain\n");
            const std::string line = raw.recv_line();
            CHECK(line == "still plain\n");
        });
}

TEST_CASE("start_tls: a second upgrade is already_tls, and the encrypted stream goes on")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer =
                play_tls(std::move(raw), tls_role::client, [](test::raw_peer& p) { p.tls_write(p.tls_read_line()); });
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            SSL* const before = stream.native_handle();
            const std::error_code error = co_await test::error_of(stream.start_tls());
            CHECK(error == us::errc::already_tls);
            CHECK(stream.native_handle() == before);
            co_await write(stream, "still fine\n");
            const std::string line = co_await read_line(stream);
            CHECK(line == "still fine\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("start_tls: while it runs, reads, writes, shutdowns and upgrades are upgrade_in_progress, and it goes on")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream stream(std::move(socket), options_of(role));
            outcome upgraded;
            stream.async_start_tls({}, into(upgraded));
            std::error_code error = co_await read_error(stream);
            CHECK(error == us::errc::upgrade_in_progress);
            error = co_await write_error(stream);
            CHECK(error == us::errc::upgrade_in_progress);
            error = co_await shutdown_error(stream);
            CHECK(error == us::errc::upgrade_in_progress);
            error = co_await test::error_of(stream.start_tls());
            CHECK(error == us::errc::upgrade_in_progress);
            CHECK(!stream.is_tls());
            CHECK(!stream.session());
            CHECK(!upgraded.done);
            auto peer = play_tls(std::move(raw), role, [](test::raw_peer& p) { p.tls_write(p.tls_read_line()); });
            co_await finished(upgraded);
            CHECK(!upgraded.error);
            co_await write(stream, "line\n");
            const std::string line = co_await read_line(stream);
            CHECK(line == "line\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("start_tls: an upgrade that fails closes the stream, which never goes on in plain text")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 std::string refusal;
                                 try
                                 {
                                     handshake(p, tls_role::client);
                                     p.tls_read_all();
                                 }
                                 catch (const test::failure& error)
                                 {
                                     refusal = error.what();
                                 }
                                 return std::pair(refusal, p.recv_all());
                             });
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            std::error_code error = co_await test::error_of(stream.start_tls({.server_hostname = "elsewhere.test"}));
            CHECK(error);
            CHECK(!stream.is_tls());
            CHECK(!stream.session());
            CHECK(!stream.lowest_layer().is_open());
            const std::error_code first = error;
            error = co_await write_error(stream);
            CHECK(error == first);
            error = co_await read_error(stream);
            CHECK(error == first);
            error = co_await test::error_of(stream.start_tls({.server_hostname = "localhost"}));
            CHECK(error == first);
            const auto [refusal, rest] = co_await test::joined(std::move(peer));
            CHECK_THAT(refusal, test::contains("alert"));
            CHECK(rest.empty());
        });
}

TEST_CASE("start_tls: a peer that hangs up during the handshake is an error, not a success")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream stream(std::move(socket), options_of(role));
            raw.send_fin();
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls());
            CHECK((error.code() == asio::ssl::error::stream_truncated || error.code() == asio::error::eof));
            CHECK(error.received().empty());
            CHECK(!stream.lowest_layer().is_open());
        });
}

// Bytes that came before the handshake (DESIGN section 6)

TEST_CASE("start_tls: a ClientHello in the same segment as STARTTLS is not lost, whatever part of it was read before")
{
    const auto read_before = GENERATE(0, 1, 2, 5, 6, 100, -1);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(read_before, chunk);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_client();
                                 settings.send_before = "STARTTLS\n";
                                 p.tls_connect(settings);
                                 p.tls_write(p.tls_read_line());
                                 p.tls_shutdown();
                             });
            chunked_stream stream(test::chunked_stream(std::move(socket), chunk), options_of(tls_role::server));
            const std::string line = co_await read_exactly(stream, 9);
            CHECK(line == "STARTTLS\n");
            std::string received;
            if (read_before > 0)
                received = co_await read_exactly(stream, std::size_t(read_before));
            if (read_before < 0)
            {
                received = co_await read_exactly(stream, 5);
                const auto size =
                    static_cast<unsigned char>(received[3]) * 256u + static_cast<unsigned char>(received[4]);
                received += co_await read_exactly(stream, size);
            }
            co_await stream.start_tls({.received = received});
            co_await write(stream, "220 now over TLS\r\n");
            const std::string echoed = co_await read_line(stream);
            CHECK(echoed == "220 now over TLS\r\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("start_tls: a ClientHello that async_read_until took beyond STARTTLS is not lost")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_client();
                                 settings.send_before = "STARTTLS\n";
                                 p.tls_connect(settings);
                                 p.tls_write(p.tls_read_line());
                                 p.tls_shutdown();
                             });
            tcp_stream stream(std::move(socket), options_of(tls_role::server));
            std::string buffer;
            const std::size_t size =
                co_await asio::async_read_until(stream, asio::dynamic_buffer(buffer), '\n', use_awaitable);
            CHECK(buffer.size() > size);
            co_await stream.start_tls({.received = std::string_view(buffer).substr(size)});
            co_await write(stream, "line\n");
            const std::string echoed = co_await read_line(stream);
            CHECK(echoed == "line\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("start_tls: plain text that a client appended to STARTTLS is plaintext_injection, and is told")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream stream(std::move(socket), options_of(tls_role::server));
            auto error =
                co_await test::exception_of<us::tls_error>(stream.start_tls({.received = "RCPT TO:<evil>\r\n"}));
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == "RCPT TO:<evil>\r\n");
            CHECK(!stream.lowest_layer().is_open());
            CHECK(!stream.is_tls());
            CHECK(raw.recv_all().empty());
            const std::error_code later = co_await write_error(stream);
            CHECK(later);
        });
}

TEST_CASE("start_tls: bytes that only begin like a TLS handshake are plaintext_injection")
{
    const auto bytes = GENERATE("\x16"s + "\x02",
                                "\x16"
                                "A"s,
                                "\x17\x03"s, "\x15\x03\x03"s, "\x14\x03\x03"s, "\0"s, std::string(1, '\x80'));
    asio::io_context io;
    const std::error_code error =
        test::run_on(io,
                     [&]() -> asio::awaitable<std::error_code>
                     {
                         auto [socket, raw] = connect(co_await asio::this_coro::executor);
                         tcp_stream stream(std::move(socket), options_of(tls_role::server));
                         co_return co_await test::error_of(stream.start_tls({.received = bytes}));
                     });
    CHECK(error == us::errc::plaintext_injection);
}

TEST_CASE("start_tls: plain text behind a ClientHello in the bytes received is plaintext_injection, and is told")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_client();
                                 settings.send_after = "RCPT TO:<evil>\r\n";
                                 try
                                 {
                                     p.tls_connect(settings);
                                     p.tls_read_all();
                                 }
                                 catch (const std::exception&)
                                 {
                                     return true;
                                 }
                                 return false;
                             });
            tcp_stream stream(std::move(socket), options_of(tls_role::server));
            std::string received;
            co_await asio::async_read_until(stream, asio::dynamic_buffer(received), "<evil>\r\n", use_awaitable);
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls({.received = received}));
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == "RCPT TO:<evil>\r\n");
            CHECK(!stream.lowest_layer().is_open());
            const bool refused = co_await test::joined(std::move(peer));
            CHECK(refused);
        });
}

TEST_CASE("start_tls: plain text behind a ClientHello on the socket fails the handshake")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_client();
                                 settings.send_after = "RCPT TO:<evil>\r\n";
                                 try
                                 {
                                     p.tls_connect(settings);
                                     p.tls_read_all();
                                 }
                                 catch (const std::exception&)
                                 {
                                     return true;
                                 }
                                 return false;
                             });
            chunked_stream stream(test::chunked_stream(std::move(socket), chunk), options_of(tls_role::server));
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls());
            CHECK(error.code());
            CHECK(!stream.lowest_layer().is_open());
            const bool refused = co_await test::joined(std::move(peer));
            CHECK(refused);
        });
}

TEST_CASE("start_tls: any byte that a client received before is plaintext_injection, even if it looks like TLS")
{
    const auto bytes = GENERATE("4"s, "454 TLS not available\r\n"s, "\x16\x03\x03"s);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls({.received = bytes}));
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == bytes);
            CHECK(!stream.lowest_layer().is_open());
            CHECK(raw.recv_all().empty());
        });
}

TEST_CASE("start_tls: a peer's plain text in place of TLS is plaintext_injection, and is told to its end or a bound")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const std::string text = "454 TLS not available\r\n";
    CAPTURE(int(role), chunk);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            raw.send_all(text);
            chunked_stream stream(test::chunked_stream(std::move(socket), chunk), options_of(role));
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls());
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received().size() >= 5);
            CHECK(text.starts_with(error.received()));
            if (chunk == 0)
                CHECK(error.received() == text);
            CHECK(!stream.lowest_layer().is_open());
        });
}

TEST_CASE("start_tls: no more than 512 bytes of what came in place of TLS are told")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const bool received = GENERATE(false, true);
    const std::string text = "454 " + std::string(5000, 'x');
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            if (!received)
                raw.send_all(text);
            tcp_stream stream(std::move(socket), options_of(role));
            us::tls_options options;
            if (received)
                options.received = text;
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls(options));
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == text.substr(0, 512));
        });
}

// Deadlines

TEST_CASE("start_tls: a peer that never answers is a handshake_timeout, which closes the stream")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream stream(std::move(socket), options_of(role));
            std::error_code error = co_await test::error_of(stream.start_tls({.handshake_timeout = 5ms}));
            CHECK(error == us::errc::handshake_timeout);
            CHECK(error == std::errc::timed_out);
            CHECK(!stream.lowest_layer().is_open());
            error = co_await write_error(stream);
            CHECK(error == us::errc::handshake_timeout);
            raw.recv_all();
        });
}

TEST_CASE("start_tls: the handshake's deadline is one for all of it, so bytes that drip do not put it off")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [ours, theirs] = test::tcp_pair(executor);
            tcp_stream stream(std::move(ours), options_of(tls_role::server));
            const auto dripping =
                test::spawn(executor,
                            [socket = std::move(theirs)]() mutable -> asio::awaitable<void>
                            {
                                asio::steady_timer timer(socket.get_executor());
                                asio::error_code error;
                                co_await asio::async_write(
                                    socket, asio::buffer("\x16\x03\x01\x3f\xff\x01\x00\x3f\xfb", 9), use_awaitable);
                                while (!error)
                                {
                                    timer.expires_after(1ms);
                                    co_await timer.async_wait(use_awaitable);
                                    co_await socket.async_write_some(asio::buffer("\x03", 1),
                                                                     asio::redirect_error(use_awaitable, error));
                                }
                            });
            const std::error_code error = co_await test::error_of(stream.start_tls({.handshake_timeout = 30ms}));
            CHECK(error == us::errc::handshake_timeout);
            co_await dripping.join();
        });
}

TEST_CASE("upgradeable_stream: a peer that never answers close_notify is a shutdown_timeout, which closes the stream")
{
    const bool at_the_call = GENERATE(false, true);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 const std::string data = p.tls_read_all();
                                 hold_open(p);
                                 return data;
                             });
            auto options = options_of(tls_role::client);
            if (!at_the_call)
                options.shutdown_timeout = 5ms;
            tcp_stream stream(std::move(socket), options);
            co_await stream.start_tls();
            us::shutdown_options shutdown;
            if (at_the_call)
                shutdown.timeout = 5ms;
            const std::error_code error = co_await test::error_of(stream.async_shutdown(shutdown, use_awaitable));
            CHECK(error == us::errc::shutdown_timeout);
            CHECK(error == std::errc::timed_out);
            CHECK(!stream.lowest_layer().is_open());
            const std::string data = co_await test::joined(std::move(peer));
            CHECK(data.empty());
        });
}

TEST_CASE("upgradeable_stream: a peer that goes on sending does not put off the shutdown's deadline")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 try
                                 {
                                     while (true)
                                         p.tls_write("more");
                                 }
                                 catch (const std::exception&)
                                 {
                                 }
                             });
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            const std::error_code error =
                co_await test::error_of(stream.async_shutdown({.timeout = 20ms}, use_awaitable));
            CHECK(error == us::errc::shutdown_timeout);
            co_await test::joined(std::move(peer));
        });
}

// The end of a connection

TEST_CASE("upgradeable_stream: a plain shutdown sends a FIN, and reading goes on")
{
    const auto what = GENERATE(asio::socket_base::shutdown_send, asio::socket_base::shutdown_both);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw), [](test::raw_peer& p) { p.send_all(p.recv_all() + " to the end"); });
            tcp_stream stream(std::move(socket));
            co_await write(stream, "read");
            co_await stream.async_shutdown({.what = what}, use_awaitable);
            const auto [data, error] = co_await read_to_error(stream);
            CHECK(data == "read to the end");
            CHECK(error == asio::error::eof);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: shutdown_send under TLS 1.3 sends close_notify while a read goes on")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(int(role), chunk);
    const std::string data = test::pattern(4).bytes(0, 40'000);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 handshake(p, role);
                                 const std::string request = p.tls_read_all();
                                 p.tls_write(data);
                                 p.tls_shutdown_send_only();
                                 return request;
                             });
            chunked_stream stream(test::chunked_stream(std::move(socket), chunk), options_of(role));
            co_await stream.start_tls();
            const auto reading = test::spawn(executor, [&] { return read_to_error(stream); });
            co_await write(stream, "request");
            co_await stream.async_shutdown({.what = asio::socket_base::shutdown_send}, use_awaitable);
            const auto [answer, error] = co_await reading.join();
            CHECK((answer == data));
            CHECK(error == asio::error::eof);
            const std::string request = co_await test::joined(std::move(peer));
            CHECK(request == "request");
        });
}

TEST_CASE("upgradeable_stream: a write after shutdown_send is an error")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::client, [](test::raw_peer&) {});
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            co_await stream.async_shutdown({.what = asio::socket_base::shutdown_send}, use_awaitable);
            const std::error_code error = co_await write_error(stream);
            CHECK(error);
            co_await stream.async_shutdown({}, use_awaitable);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: shutdown_both awaits the peer's close_notify, and drops what comes before it")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    CAPTURE(int(role), version);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 auto settings =
                                     role == tls_role::client ? test::localhost_server() : test::localhost_client();
                                 settings.max_version = version;
                                 role == tls_role::client ? p.tls_accept(settings) : p.tls_connect(settings);
                                 p.tls_write(std::string(100'000, 'x'));
                                 p.tls_shutdown();
                                 return p.recv_all();
                             });
            std::optional<tcp_stream> stream(std::in_place, std::move(socket), options_of(role));
            co_await stream->start_tls();
            CHECK(stream->session()->version == (version == TLS1_2_VERSION ? "TLSv1.2" : "TLSv1.3"));
            co_await shut_down(*stream);
            co_await shut_down(*stream);
            stream.reset();
            const std::string rest = co_await test::joined(std::move(peer));
            CHECK(rest.empty());
        });
}

TEST_CASE("upgradeable_stream: a shutdown that the peer answers by hanging up is stream_truncated")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_read_all();
                             });
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            const std::error_code error = co_await shutdown_error(stream);
            CHECK(error == asio::ssl::error::stream_truncated);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: close_notify is eof, for every later read too")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::client, [](test::raw_peer& p) { p.tls_write("data"); });
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            const auto [data, error] = co_await read_to_error(stream);
            CHECK(data == "data");
            CHECK(error == asio::error::eof);
            const std::error_code again = co_await read_error(stream);
            CHECK(again == asio::error::eof);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: an end without close_notify is stream_truncated, or eof with suppress_ragged_eofs")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool suppress = GENERATE(false, true);
    CAPTURE(int(role), chunk, suppress);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 handshake(p, role);
                                 p.tls_write("data");
                                 p.send_fin();
                                 hold_open(p);
                             });
            auto options = options_of(role);
            options.suppress_ragged_eofs = suppress;
            std::optional<chunked_stream> stream(std::in_place, test::chunked_stream(std::move(socket), chunk),
                                                 options);
            co_await stream->start_tls();
            const auto [data, error] = co_await read_to_error(*stream);
            const std::error_code expected =
                suppress ? asio::error_code(asio::error::eof) : asio::error_code(asio::ssl::error::stream_truncated);
            CHECK(data == "data");
            CHECK(error == expected);
            const std::error_code again = co_await read_error(*stream);
            CHECK(again == expected);
            stream.reset();
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: an end in the middle of a record is never eof without suppress_ragged_eofs")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.send_all("\x17\x03\x03\x01"sv);
                                 p.send_fin();
                                 hold_open(p);
                             });
            std::optional<tcp_stream> stream(std::in_place, std::move(socket), options_of(tls_role::client));
            co_await stream->start_tls();
            const std::error_code error = co_await read_error(*stream);
            CHECK(error == asio::ssl::error::stream_truncated);
            stream.reset();
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: plain text after the upgrade is an error, not data")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_write("data");
                                 p.send_all("plain text, and more of it\r\n");
                                 hold_open(p);
                             });
            std::optional<tcp_stream> stream(std::in_place, std::move(socket), options_of(tls_role::client));
            co_await stream->start_tls();
            const auto [data, error] = co_await read_to_error(*stream);
            CHECK(data == "data");
            CHECK(error.category() == asio::error::get_ssl_category());
            const std::error_code again = co_await read_error(*stream);
            CHECK(again == error);
            stream.reset();
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: a reset is told by the first read after it, and by all later ones")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_read_line();
                                 p.reset();
                             });
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            co_await write(stream, "reset\n");
            for (int i = 0; i < 3; ++i)
            {
                const std::error_code error = co_await read_error(stream);
                CHECK(error == asio::error::connection_reset);
            }
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: writes to a peer that is gone fail, now or later, and never for good succeed")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_read_line();
                                 p.reset();
                             });
            tcp_stream stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            co_await write(stream, "reset\n");
            co_await test::joined(std::move(peer));
            std::error_code error = co_await test::error_of(write(stream, flood()));
            CHECK((error == asio::error::broken_pipe || error == asio::error::connection_reset));
            error = co_await write_error(stream);
            CHECK(error);
        });
}

// Lifetime

TEST_CASE("upgradeable_stream: destroying it closes the socket, and pending operations are operation_aborted")
{
    const bool encrypted = GENERATE(false, true);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            std::promise<void> destroyed;
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 if (encrypted)
                                     handshake(p, tls_role::client);
                                 destroyed.get_future().get();
                                 hold_open(p);
                             });
            auto stream = std::make_unique<chunked_stream>(test::chunked_stream(std::move(socket), 1000),
                                                           options_of(tls_role::client));
            if (encrypted)
                co_await stream->start_tls();
            std::array<char, 16> bytes;
            outcome read, written;
            stream->async_read_some(asio::buffer(bytes), into(read));
            asio::async_write(*stream, asio::buffer(flood()), into(written));
            co_await stuck(*stream);
            CHECK((!read.done && !written.done));
            stream.reset();
            CHECK((!read.done && !written.done));
            co_await finished(read);
            co_await finished(written);
            CHECK(read.error == asio::error::operation_aborted);
            CHECK(written.error == asio::error::operation_aborted);
            destroyed.set_value();
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: destroying it with an upgrade or a shutdown pending is operation_aborted")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            for (const auto role : {tls_role::client, tls_role::server})
            {
                auto [socket, raw] = connect(executor);
                outcome upgraded;
                {
                    tcp_stream stream(std::move(socket), options_of(role));
                    stream.async_start_tls({}, into(upgraded));
                    co_await asio::post(executor, use_awaitable);
                }
                co_await finished(upgraded);
                CHECK(upgraded.error == asio::error::operation_aborted);
                raw.recv_all();
            }
            auto [socket, raw] = connect(executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 hold_open(p);
                             });
            outcome shut;
            {
                tcp_stream stream(std::move(socket), options_of(tls_role::client));
                co_await stream.start_tls();
                stream.async_shutdown({}, into(shut));
                co_await asio::post(executor, use_awaitable);
            }
            co_await finished(shut);
            CHECK(shut.error == asio::error::operation_aborted);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: a stream that is moved while operations are pending completes them")
{
    const bool encrypted = GENERATE(false, true);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 if (encrypted)
                                     handshake(p, tls_role::client);
                                 encrypted ? p.tls_write(p.tls_read_exactly(4)) : p.send_all(p.recv_exactly(4));
                                 if (encrypted)
                                     p.tls_shutdown();
                             });
            tcp_stream first(std::move(socket), options_of(tls_role::client));
            outcome upgraded;
            std::optional<tcp_stream> second;
            if (encrypted)
            {
                first.async_start_tls({}, into(upgraded));
                second.emplace(std::move(first));
                co_await finished(upgraded);
                CHECK(!upgraded.error);
                CHECK(second->is_tls());
            }
            else
                second.emplace(std::move(first));
            std::array<char, 16> bytes;
            outcome read, written;
            second->async_read_some(asio::buffer(bytes), into(read));
            second->async_write_some(asio::buffer("data", 4), into(written));
            tcp_stream third = std::move(*second);
            second.reset();
            co_await finished(read);
            CHECK(std::string_view(bytes.data(), read.size) == "data");
            co_await finished(written);
            CHECK(written.size == 4);
            co_await shut_down(third);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: a stream that is assigned over closes, and what is assigned goes on")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [old_socket, old_raw] = connect(executor);
            auto [new_socket, new_raw] = connect(executor);
            tcp_stream stream(std::move(old_socket));
            tcp_stream other(std::move(new_socket));
            std::array<char, 16> old_bytes, new_bytes;
            outcome old_read, new_read;
            stream.async_read_some(asio::buffer(old_bytes), into(old_read));
            other.async_read_some(asio::buffer(new_bytes), into(new_read));
            stream = std::move(other);
            co_await finished(old_read);
            CHECK(old_read.error == asio::error::operation_aborted);
            CHECK(old_raw.recv_all().empty());
            new_raw.send_all("data");
            co_await finished(new_read);
            CHECK(std::string_view(new_bytes.data(), new_read.size) == "data");
            co_await write(stream, "answer\n");
            const std::string line = new_raw.recv_line();
            CHECK(line == "answer\n");
        });
}

TEST_CASE("upgradeable_stream: an io_context that goes away with operations pending leaks nothing")
{
    std::array<char, 16> bytes;
    outcome read, upgraded;
    {
        asio::io_context io;
        auto [first_socket, first_raw] = connect(io.get_executor());
        auto [second_socket, second_raw] = connect(io.get_executor());
        tcp_stream first(std::move(first_socket), options_of(tls_role::client));
        tcp_stream second(std::move(second_socket));
        first.async_start_tls({}, into(upgraded));
        second.async_read_some(asio::buffer(bytes), into(read));
        io.poll();
    }
    CHECK((!read.done && !upgraded.done));
}

// Socket types and TLS layers

namespace
{

template <typename Socket>
Socket convert(tcp::socket socket, asio::io_context& io)
{
    return Socket(io.get_executor(), tcp::v4(), socket.release());
}

/// Upgrades both ends, which are streams of the same type, and sends a line each way.
template <typename Stream>
void ping(asio::io_context& io, Stream client, Stream server)
{
    test::run_on(io,
                 [&]() -> asio::awaitable<void>
                 {
                     const auto executor = co_await asio::this_coro::executor;
                     const auto serving = test::spawn(executor,
                                                      [&]() -> asio::awaitable<void>
                                                      {
                                                          const std::string line = co_await read_exactly(server, 9);
                                                          CHECK(line == "STARTTLS\n");
                                                          co_await server.start_tls();
                                                          co_await write(server, "220 ready\n");
                                                          const std::string ping = co_await read_line(server);
                                                          CHECK(ping == "PING\n");
                                                          co_await shut_down(server);
                                                      });
                     co_await write(client, "STARTTLS\n");
                     co_await client.start_tls();
                     const std::string line = co_await read_line(client);
                     CHECK(line == "220 ready\n");
                     co_await write(client, "PING\n");
                     co_await shut_down(client);
                     co_await serving.join();
                     CHECK(client.is_tls());
                     CHECK(client.session()->version == "TLSv1.3");
                 });
}

} // namespace

TEST_CASE("upgradeable_stream: the socket may be a tcp::socket")
{
    asio::io_context io;
    auto [left, right] = test::tcp_pair(io.get_executor());
    ping(io, tcp_stream(std::move(left), options_of(tls_role::client)),
         tcp_stream(std::move(right), options_of(tls_role::server)));
}

TEST_CASE("upgradeable_stream: the socket may be a local::stream_protocol::socket")
{
    asio::io_context io;
    auto [left, right] = test::local_pair(io.get_executor());
    using stream = us::upgradeable_stream<asio::local::stream_protocol::socket>;
    ping(io, stream(std::move(left), options_of(tls_role::client)),
         stream(std::move(right), options_of(tls_role::server)));
}

TEST_CASE("upgradeable_stream: the socket may have a concrete executor")
{
    asio::io_context io;
    using executor = asio::io_context::executor_type;
    auto [left, right] = test::tcp_pair<executor>(io.get_executor());
    using stream = us::upgradeable_stream<asio::basic_stream_socket<tcp, executor>>;
    ping(io, stream(std::move(left), options_of(tls_role::client)),
         stream(std::move(right), options_of(tls_role::server)));
}

TEST_CASE("upgradeable_stream: the socket's executor may be a strand, on which all intermediate work is done")
{
    asio::io_context io;
    using executor = asio::strand<asio::io_context::executor_type>;
    auto [left, right] = test::tcp_pair<executor>(asio::make_strand(io));
    using stream = us::upgradeable_stream<asio::basic_stream_socket<tcp, executor>>;
    ping(io, stream(std::move(left), options_of(tls_role::client)),
         stream(std::move(right), options_of(tls_role::server)));
}

TEST_CASE("upgradeable_stream: the socket may be an upgradeable_stream, for TLS within TLS")
{
    asio::io_context io;
    auto [left, right] = test::tcp_pair(io.get_executor());
    tcp_stream client(std::move(left), options_of(tls_role::client));
    tcp_stream server(std::move(right), options_of(tls_role::server));
    outcome client_done, server_done;
    client.async_start_tls({}, into(client_done));
    server.async_start_tls({}, into(server_done));
    io.run();
    REQUIRE((!client_done.error && !server_done.error));
    using stream = us::upgradeable_stream<tcp_stream>;
    ping(io, stream(std::move(client), options_of(tls_role::client)),
         stream(std::move(server), options_of(tls_role::server)));
}

namespace
{

/// A TLS layer that counts how it is used.
template <typename NextLayer>
class counting_layer : public asio::ssl::stream<NextLayer>
{
public:
    using asio::ssl::stream<NextLayer>::stream;

    template <typename Buffers, typename Token>
    auto async_read_some(const Buffers& buffers, Token&& token)
    {
        ++reads;
        return asio::ssl::stream<NextLayer>::async_read_some(buffers, std::forward<Token>(token));
    }

    static inline int reads = 0;
};

template <typename NextLayer>
using aliased_layer = asio::ssl::stream<NextLayer>;

/// Throws when it is made.
template <typename NextLayer>
class broken_layer : public asio::ssl::stream<NextLayer>
{
public:
    template <typename Next>
    broken_layer(Next&& next, SSL* ssl) : asio::ssl::stream<NextLayer>(next, ssl)
    {
        throw std::runtime_error("broken");
    }
};

} // namespace

TEST_CASE("upgradeable_stream: another TLS layer can stand in the place of asio::ssl::stream")
{
    asio::io_context io;
    auto [left, right] = test::tcp_pair(io.get_executor());
    using stream = us::upgradeable_stream<tcp::socket, counting_layer>;
    ping(io, stream(std::move(left), options_of(tls_role::client)),
         stream(std::move(right), options_of(tls_role::server)));
    CHECK(counting_layer<us::detail::write_queue<tcp::socket>&>::reads >= 2);
}

TEST_CASE("upgradeable_stream: the TLS layer may be an alias template")
{
    asio::io_context io;
    auto [left, right] = test::tcp_pair(io.get_executor());
    using stream = us::upgradeable_stream<tcp::socket, aliased_layer>;
    ping(io, stream(std::move(left), options_of(tls_role::client)),
         stream(std::move(right), options_of(tls_role::server)));
}

TEST_CASE("start_tls: a TLS layer that cannot be made leaves the plain socket in its place")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            us::upgradeable_stream<tcp::socket, broken_layer> stream(std::move(socket), options_of(tls_role::client));
            outcome result;
            CHECK_THROWS_AS(stream.async_start_tls({}, into(result)), std::runtime_error);
            CHECK(!result.done);
            CHECK(!stream.is_tls());
            CHECK(stream.native_handle() == nullptr);
            co_await write(stream, "plain\n");
            const std::string line = raw.recv_line();
            CHECK(line == "plain\n");
        });
}

// Verification of the server

namespace
{

/// What the upgrade of a client to `name` gives when the server has a certificate for these names.
std::optional<us::tls_error> verify(const std::string& name, const test::issued& certificate,
                                    std::optional<std::string>* sni = nullptr)
{
    return test::run(
        [&]() -> asio::awaitable<std::optional<us::tls_error>>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 test::tls_settings settings;
                                 settings.certificate_file = certificate.certificate_file;
                                 settings.key_file = certificate.key_file;
                                 std::optional<std::string> seen;
                                 try
                                 {
                                     p.tls_accept(settings);
                                     if (const char* given = SSL_get_servername(p.ssl(), TLSEXT_NAMETYPE_host_name))
                                         seen = given;
                                     p.tls_shutdown();
                                 }
                                 catch (const std::exception&)
                                 {
                                 }
                                 return seen;
                             });
            std::optional<us::tls_error> result;
            {
                tcp_stream stream(std::move(socket), {.ssl = &client_ssl(), .server_hostname = name});
                try
                {
                    co_await stream.start_tls();
                    co_await shut_down(stream);
                }
                catch (const us::tls_error& error)
                {
                    result = error;
                }
            }
            auto seen = co_await test::joined(std::move(peer));
            if (sni)
                *sni = seen;
            co_return result;
        });
}

test::issued certificate_for(const std::vector<std::string>& dns_names, const std::vector<std::string>& addresses = {},
                             const std::string& common_name = "test")
{
    return test::authority().issue({.common_name = common_name, .dns_names = dns_names, .ip_addresses = addresses});
}

} // namespace

TEST_CASE("start_tls: a server's DNS names and IP addresses are accepted, in each form of the name asked for")
{
    const auto certificate = certificate_for({"host.test", "*.wild.test", "xn--bcher-kva.test"}, {"127.0.0.1", "::1"});
    for (const char* name : {"host.test", "HOST.test", "host.test.", "a.wild.test", "xn--bcher-kva.test", "127.0.0.1",
                             "::1", "[::1]", "0:0:0:0:0:0:0:1"})
    {
        CAPTURE(name);
        const auto error = verify(name, certificate);
        CHECK(!error);
    }
}

TEST_CASE("start_tls: names that a certificate is not for are refused, and tls_error says which and why")
{
    const auto certificate =
        certificate_for({"host.test", "*.wild.test", "f*.partial.test", "10.0.0.1", "nul.test\0.evil.test"s},
                        {"127.0.0.1", "::1"}, "common.test");
    for (const char* name : {"other.test", "sub.host.test", "test", "common.test", "wild.test", "a.b.wild.test",
                             "foo.partial.test", "nul.test"})
    {
        CAPTURE(name);
        const auto error = verify(name, certificate);
        REQUIRE(error);
        CHECK(error->verify_result() == X509_V_ERR_HOSTNAME_MISMATCH);
        CHECK(error->code().category() == asio::error::get_ssl_category());
        CHECK_THAT(error->what(), test::contains(std::string("\"") + name + "\""));
        CHECK_THAT(error->what(), test::contains(X509_verify_cert_error_string(X509_V_ERR_HOSTNAME_MISMATCH)));
        CHECK(error->received().empty());
    }
    for (const char* name : {"127.0.0.2", "10.0.0.1", "::2", "[::2]", "::ffff:127.0.0.1"})
    {
        CAPTURE(name);
        const auto error = verify(name, certificate);
        REQUIRE(error);
        CHECK(error->verify_result() == X509_V_ERR_IP_ADDRESS_MISMATCH);
    }
}

TEST_CASE("start_tls: an expired, a future or an untrusted certificate is refused, and tls_error says which")
{
    using std::chrono::days;
    const auto verify_request = [](test::certificate_authority& issuer, days from, days until, bool client_auth = false,
                                   bool by_intermediate = false)
    {
        return verify("host.test", issuer.issue({.common_name = "test",
                                                 .dns_names = {"host.test"},
                                                 .valid_from = from,
                                                 .valid_until = until,
                                                 .client_auth = client_auth,
                                                 .by_intermediate = by_intermediate}));
    };
    auto error = verify_request(test::authority(), days(-3), days(-1));
    REQUIRE(error);
    CHECK(error->verify_result() == X509_V_ERR_CERT_HAS_EXPIRED);
    CHECK_THAT(error->what(), test::contains("certificate has expired"));

    error = verify_request(test::authority(), days(1), days(2));
    REQUIRE(error);
    CHECK(error->verify_result() == X509_V_ERR_CERT_NOT_YET_VALID);

    error = verify_request(test::unrelated_authority(), days(-1), days(1));
    REQUIRE(error);
    CHECK(error->verify_result() == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY);
    CHECK_THAT(error->what(), test::contains("unable to get local issuer certificate"));

    error = verify_request(test::authority(), days(-1), days(1), true);
    REQUIRE(error);
    CHECK(error->verify_result() == X509_V_ERR_INVALID_PURPOSE);

    error = verify_request(test::authority(), days(-1), days(1), false, true);
    CHECK(!error);
}

TEST_CASE("start_tls: SNI is sent for names, without the trailing dot, and never for IP addresses")
{
    const auto certificate = certificate_for({"host.test"}, {"127.0.0.1", "::1"});
    std::optional<std::string> sni;
    for (const char* name : {"host.test", "host.test."})
    {
        verify(name, certificate, &sni);
        CHECK(sni == "host.test");
    }
    for (const char* address : {"127.0.0.1", "127.0.0.1.", "::1", "[::1]", "::1%lo"})
    {
        CAPTURE(address);
        verify(address, certificate, &sni);
        CHECK(!sni);
    }
}

TEST_CASE("start_tls: names that OpenSSL would match too liberally are std::invalid_argument, before a byte is sent")
{
    const auto name = GENERATE("."s, ".host.test"s, "*"s, "*.host.test"s, "h*st.test"s, "host\0.test"s, "localhost\0"s,
                               "127.0.0.1\0"s,
                               "b\xc3\xbc"
                               "cher.test"s,
                               "host test"s, "host.test\n"s, " "s, std::string(300, 'a'));
    CAPTURE(name);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream stream(std::move(socket), {.ssl = &client_ssl()});
            outcome result;
            CHECK_THROWS_AS(stream.start_tls({.server_hostname = name}), std::invalid_argument);
            CHECK_THROWS_AS(stream.async_start_tls({.server_hostname = name}, into(result)), std::invalid_argument);
            CHECK_THROWS_AS(tcp_stream(tcp::socket(stream.get_executor()), {.server_hostname = name}),
                            std::invalid_argument);
            co_await write(stream, "plain\n");
            const std::string first_sent = raw.recv_line();
            CHECK(first_sent == "plain\n");
            CHECK(!result.done);
        });
}

TEST_CASE("start_tls: a client that verifies needs a server_hostname, one that does not verify needs none")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_server();
                                 p.tls_accept(settings);
                                 p.tls_shutdown();
                             });
            auto trusting = us::create_client_context({.verify_peer = false});
            tcp_stream stream(std::move(socket), {.ssl = &client_ssl()});
            CHECK_THROWS_AS(stream.start_tls(), std::invalid_argument);
            CHECK_THROWS_AS(stream.start_tls({.server_hostname = ""}), std::invalid_argument);
            co_await stream.start_tls({.ssl = &trusting});
            CHECK(!stream.session()->server_name);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE(
    "start_tls: a client that does not verify accepts any certificate, and the session tells why it was not trusted")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            const auto untrusted =
                test::unrelated_authority().issue({.common_name = "test", .dns_names = {"other.test"}});
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 test::tls_settings settings;
                                 settings.certificate_file = untrusted.certificate_file;
                                 settings.key_file = untrusted.key_file;
                                 p.tls_accept(settings);
                                 p.tls_shutdown();
                             });
            auto trusting = us::create_client_context({.verify_peer = false});
            tcp_stream stream(std::move(socket), {.ssl = &trusting, .server_hostname = "host.test"});
            co_await stream.start_tls();
            const auto session = stream.session();
            REQUIRE(session->peer_certificate);
            CHECK(session->verify_result != X509_V_OK);
            CHECK(session->server_name == "host.test");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("start_tls: in TLS 1.3 a client whose certificate is refused learns it at its first read")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_server();
                                 settings.ca_file = test::authority().ca_file();
                                 try
                                 {
                                     p.tls_accept(settings);
                                 }
                                 catch (const test::failure&)
                                 {
                                     p.send_fin();
                                     hold_open(p);
                                 }
                             });
            std::optional<tcp_stream> stream(std::in_place, std::move(socket), options_of(tls_role::client));
            co_await stream->start_tls();
            const std::error_code error = co_await read_error(*stream);
            CHECK(error.category() == asio::error::get_ssl_category());
            CHECK_THAT(error.message(), test::contains("alert certificate required"));
            const std::error_code again = co_await read_error(*stream);
            CHECK(again == error);
            stream.reset();
            co_await test::joined(std::move(peer));
        });
}

// The wire

TEST_CASE("start_tls: after STARTTLS nothing but TLS records is on the wire, in either direction")
{
    const auto split = GENERATE(std::size_t(0), std::size_t(1), std::size_t(64));
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            tcp::acceptor acceptor(executor, test::loopback());
            test::wire_tap tap(executor, acceptor.local_endpoint(), split);
            tcp::socket left(executor);
            co_await left.async_connect(tap.endpoint(), use_awaitable);
            tcp::socket right = co_await acceptor.async_accept(use_awaitable);
            tcp_stream client(std::move(left), options_of(tls_role::client));
            tcp_stream server(std::move(right), options_of(tls_role::server));
            const auto serving =
                test::spawn(executor,
                            [&]() -> asio::awaitable<void>
                            {
                                std::string buffer;
                                const std::size_t size = co_await asio::async_read_until(
                                    server, asio::dynamic_buffer(buffer), '\n', use_awaitable);
                                co_await server.start_tls({.received = std::string_view(buffer).substr(size)});
                                co_await write(server, "secret answer\n");
                                co_await shut_down(server);
                            });
            co_await write(client, "STARTTLS\n");
            co_await client.start_tls();
            co_await write(client, "secret question\n");
            const std::string answer = co_await read_line(client);
            CHECK(answer == "secret answer\n");
            co_await shut_down(client);
            co_await serving.join();

            const std::string sent = tap.client_to_server();
            REQUIRE(sent.starts_with("STARTTLS\n"));
            CHECK(test::tls_records(std::string_view(sent).substr(9)).all_tls);
            CHECK(test::tls_records(tap.server_to_client()).all_tls);
            CHECK(sent.find("secret") == sent.npos);
            CHECK(tap.server_to_client().find("secret") == sent.npos);
            tap.close();
        });
}

// Full duplex

namespace
{

/// Sends pattern 1 in pieces of uneven size, and checks that pattern 2 comes in, both at once.
template <typename Stream>
asio::awaitable<void> talk(Stream& stream, std::uint64_t size)
{
    const auto executor = co_await asio::this_coro::executor;
    const auto writing = test::spawn(executor,
                                     [&]() -> asio::awaitable<void>
                                     {
                                         std::size_t next = 1;
                                         for (std::uint64_t sent = 0; sent < size;)
                                         {
                                             next = next * 7 % 40'009;
                                             const auto n = std::size_t(std::min<std::uint64_t>(next, size - sent));
                                             co_await write(stream, test::pattern(1).bytes(sent, n));
                                             sent += n;
                                         }
                                     });
    std::vector<char> buffer(30'000);
    for (std::uint64_t received = 0; received < size;)
    {
        const std::size_t n = co_await stream.async_read_some(asio::buffer(buffer), use_awaitable);
        if (test::pattern(2).check(received, std::span(buffer.data(), n)))
            throw test::failure("wrong bytes near offset " + std::to_string(received));
        received += n;
    }
    co_await writing.join();
}

test::duplex_plan plan_of(std::uint64_t size, std::size_t key_update_every, bool request)
{
    test::duplex_plan plan;
    plan.bytes_to_send = plan.bytes_to_receive = size;
    plan.sent = test::pattern(2);
    plan.received = test::pattern(1);
    plan.key_update_every = key_update_every;
    plan.request_peer = request;
    return plan;
}

/// How much can be sent with each chunk size in a time that a test may take.
std::uint64_t volume(std::size_t chunk)
{
    const std::uint64_t whole = test::under_sanitizer ? 1 << 20 : 4 << 20;
    return chunk == 1 ? whole / 128 : chunk == 5 ? whole / 32 : chunk == 64 ? whole / 8 : whole;
}

} // namespace

TEST_CASE("upgradeable_stream: KeyUpdates in the middle of transfers in both directions lose and corrupt nothing")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool request = GENERATE(true, false);
    CAPTURE(int(role), chunk, request);
    const std::uint64_t size = volume(chunk);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 auto settings =
                                     role == tls_role::client ? test::localhost_server() : test::localhost_client();
                                 settings.min_version = TLS1_3_VERSION;
                                 role == tls_role::client ? p.tls_accept(settings) : p.tls_connect(settings);
                                 auto plan = plan_of(size, std::size_t(size / 64), request);
                                 plan.write_size = std::size_t(size / 200);
                                 const auto result = test::exchange(p, plan);
                                 if (result.ok())
                                     p.tls_shutdown();
                                 return result;
                             });
            {
                chunked_stream stream(test::chunked_stream(std::move(socket), chunk), options_of(role));
                co_await stream.start_tls();
                co_await talk(stream, size);
                co_await shut_down(stream);
            }
            const auto result = co_await test::joined(std::move(peer));
            CHECK(result.error == "");
            CHECK(!result.mismatch);
            CHECK(result.sent == size);
            CHECK(result.received == size);
            CHECK(result.key_updates >= 60);
        });
}

TEST_CASE(
    "upgradeable_stream: a KeyUpdate that is answered while a write is stuck does not let the write succeed unsent")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            std::promise<void> may_read;
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.key_update(true);
                                 p.tls_write("look\n");
                                 may_read.get_future().get();
                                 const bool whole = p.tls_read_exactly(flood().size()) == flood();
                                 const std::string line = p.tls_read_line();
                                 p.tls_shutdown();
                                 return whole && line == "last\n";
                             });
            chunked_stream stream(test::chunked_stream(std::move(socket), 50'000), options_of(tls_role::client));
            co_await stream.start_tls();
            outcome written;
            asio::async_write(stream, asio::buffer(flood()), into(written));
            co_await stuck(stream);
            const std::string line = co_await read_line(stream);
            CHECK(line == "look\n");
            CHECK(!written.done);
            may_read.set_value();
            co_await finished(written);
            CHECK(!written.error);
            co_await write(stream, "last\n");
            co_await shut_down(stream);
            const bool whole = co_await test::joined(std::move(peer));
            CHECK(whole);
        });
}

TEST_CASE("upgradeable_stream: large transfers in both directions at once are whole over TLS 1.2 and in plain text")
{
    const bool encrypted = GENERATE(false, true);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(encrypted, chunk);
    const std::uint64_t size = volume(chunk);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 if (!encrypted)
                                 {
                                     auto sending =
                                         test::run_in_thread([&] { p.send_all(test::pattern(2).bytes(0, size)); });
                                     const bool whole = p.recv_exactly(size) == test::pattern(1).bytes(0, size);
                                     sending.get();
                                     return whole;
                                 }
                                 auto settings = test::localhost_server();
                                 settings.max_version = TLS1_2_VERSION;
                                 p.tls_accept(settings);
                                 const auto result = test::exchange(p, plan_of(size, 0, false));
                                 p.tls_shutdown();
                                 return result.ok();
                             });
            {
                chunked_stream stream(test::chunked_stream(std::move(socket), chunk), options_of(tls_role::client));
                if (encrypted)
                    co_await stream.start_tls();
                co_await talk(stream, size);
                co_await shut_down(stream);
            }
            const bool whole = co_await test::joined(std::move(peer));
            CHECK(whole);
        });
}
