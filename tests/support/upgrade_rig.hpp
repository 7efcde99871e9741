#ifndef TEST_SUPPORT_UPGRADE_RIG_HPP
#define TEST_SUPPORT_UPGRADE_RIG_HPP

#include <upgradeable_streams/tls_stream.hpp>
#include <upgradeable_streams/upgradeable_stream.hpp>

#include "any_handler.hpp"
#include "catch.hpp"
#include "certificates.hpp"
#include "chunked_stream.hpp"
#include "contexts.hpp"
#include "duplex.hpp"
#include "raw_peer.hpp"
#include "run.hpp"
#include "socket_pair.hpp"
#include "thread.hpp"
#include "tls_records.hpp"
#include "wire_tap.hpp"

#include <asio/bind_allocator.hpp>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/bind_executor.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/read.hpp>
#include <asio/read_until.hpp>
#include <asio/ssl/stream.hpp>
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

/// What the tests of upgradeable_stream share: streams against a raw peer, and operations on them.
namespace test::rig
{

namespace us = upgradeable_streams;
using asio::use_awaitable;
using asio::ip::tcp;
using us::tls_role;
using namespace std::chrono_literals;
using namespace std::string_literals;
using namespace std::string_view_literals;

#if __has_include(<asio/as_tuple.hpp>)
using asio::as_tuple;
using asio::deferred;
#else
using asio::experimental::as_tuple;
using asio::experimental::deferred;
#endif

/// For `TEMPLATE_TEST_CASE`: the TLS layers that an upgradeable_stream may have.
struct with_ssl_stream
{
    template <typename NextLayer>
    using type = asio::ssl::stream<NextLayer>;
};

struct with_tls_stream
{
    template <typename NextLayer>
    using type = us::tls_stream<NextLayer>;
};

template <typename Layer, typename Socket>
using stream_over = us::upgradeable_stream<Socket, Layer::template type>;

/// A stream whose operations are compiled once, in upgrade_rig.cpp, since all have handlers of one type. A buffer is
/// one piece of memory.
template <typename Layer, typename Socket>
class compiled_stream : public stream_over<Layer, Socket>
{
    using stream = stream_over<Layer, Socket>;

public:
    using stream::stream;

    template <typename Buffer, typename Token>
    auto async_read_some(const Buffer& buffer, Token&& token)
    {
        return initiate<std::size_t>(&compiled_stream::read, asio::mutable_buffer(buffer), token);
    }

    template <typename Buffer, typename Token>
    auto async_write_some(const Buffer& buffer, Token&& token)
    {
        return initiate<std::size_t>(&compiled_stream::write, asio::const_buffer(buffer), token);
    }

    template <typename Token>
    auto async_start_tls(const us::tls_options& options, Token&& token)
    {
        return initiate<>(&compiled_stream::upgrade, options, token);
    }

    template <typename Token>
    auto async_stop_tls(const us::stop_tls_options& options, Token&& token)
    {
        return initiate<>(&compiled_stream::stop, options, token);
    }

    template <typename Token>
    auto async_shutdown(const us::shutdown_options& options, Token&& token)
    {
        return initiate<>(&compiled_stream::shut_down, options, token);
    }

    asio::awaitable<void> start_tls(const us::tls_options& options = {});
    asio::awaitable<void> stop_tls(const us::stop_tls_options& options = {});

private:
    template <typename... Size, typename Operation, typename Given, typename Token>
    auto initiate(Operation operation, const Given& given, Token& token)
    {
        return asio::async_initiate<Token, void(asio::error_code, Size...)>(
            [this, operation](auto handler, const Given& g)
            { (this->*operation)(g, test::any_handler::of<Size...>(std::move(handler), this->get_executor())); },
            token, given);
    }

    void read(asio::mutable_buffer buffer, test::any_handler handler);
    void write(asio::const_buffer buffer, test::any_handler handler);
    void upgrade(const us::tls_options& options, test::any_handler handler);
    void stop(const us::stop_tls_options& options, test::any_handler handler);
    void shut_down(const us::shutdown_options& options, test::any_handler handler);
};

template <typename Layer>
using tcp_stream = compiled_stream<Layer, tcp::socket>;

template <typename Layer>
using chunked_stream = compiled_stream<Layer, test::chunked_stream<tcp::socket>>;

/// TLS within TLS.
template <typename Layer>
using nested_stream = compiled_stream<Layer, stream_over<Layer, tcp::socket>>;

/// What a stream of this role needs to come to terms with `handshake` at the other end.
inline us::tls_options options_of(tls_role role)
{
    return {
        .ssl = role == tls_role::client ? &client_context() : &server_context(), .role = role, .server_hostname = "localhost"};
}

/// The handshake of a peer whose other end plays `role`.
inline void handshake(test::raw_peer& peer, tls_role role)
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

inline connection connect(const asio::any_io_executor& executor, test::raw_listener&& listener = test::raw_listener())
{
    tcp::socket socket(executor);
    socket.connect(test::loopback(listener.port()));
    socket.set_option(tcp::no_delay(true));
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
inline void hold_open(test::raw_peer& peer)
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

inline auto into(outcome& result)
{
    return [&result](asio::error_code error, std::size_t size = 0) { result = {true, error, size}; };
}

inline asio::awaitable<void> finished(const outcome& result)
{
    co_await test::eventually([&result] { return result.done; });
}

/// Runs `io` until the callback of `result` was called.
inline void run_until_done(asio::io_context& io, const outcome& result)
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

inline bool is_writable(int descriptor)
{
    pollfd entry{descriptor, POLLOUT, 0};
    return ::poll(&entry, 1, 0) == 1;
}

/// Waits until the operation that writes stands still, because nobody reads at the other end.
template <typename Stream>
asio::awaitable<void> stuck(Stream& stream)
{
    std::size_t before = 0;
    co_await test::eventually(
        [&]
        {
            const std::size_t writes = stream.next_layer().writes();
            return !is_writable(stream.lowest_layer().native_handle()) && std::exchange(before, writes) == writes;
        });
}

inline const std::string& flood()
{
    static const std::string bytes = test::pattern(7).bytes(0, 32 << 20);
    return bytes;
}

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

inline test::duplex_plan plan_of(std::uint64_t size, std::size_t key_update_every, bool request)
{
    test::duplex_plan plan;
    plan.bytes_to_send = plan.bytes_to_receive = size;
    plan.sent = test::pattern(2);
    plan.received = test::pattern(1);
    plan.key_update_every = key_update_every;
    plan.request_peer = request;
    return plan;
}

/// The other end of `talk`: renews its keys 64 times, and shuts down when all went well.
inline test::duplex_result renew_keys(test::raw_peer& peer, std::uint64_t size, bool request)
{
    auto plan = plan_of(size, std::size_t(size / 64), request);
    plan.write_size = std::size_t(size / 200);
    const auto result = test::exchange(peer, plan);
    if (result.ok())
        peer.tls_shutdown();
    return result;
}

} // namespace test::rig
#endif
