/// @file
/// The line protocol on any AsyncStream, as it is written by hand: one engine for both streams, so that the stream is
/// all that two servers differ in.
#ifndef BENCH_LINE_ENGINE_HPP
#define BENCH_LINE_ENGINE_HPP

#include "line_protocol.hpp"

#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/error_code.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/redirect_error.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/write.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

namespace bench
{

/// What was received and is not used yet.
class line_buffer
{
public:
    std::string_view received() const { return {data_.data() + begin_, end_ - begin_}; }
    void consume(std::size_t size) { begin_ += size; }
    void commit(std::size_t size) { end_ += size; }

    /// Room for more; empty when a line is too long.
    asio::mutable_buffer prepare()
    {
        std::memmove(data_.data(), data_.data() + begin_, end_ - begin_);
        end_ -= std::exchange(begin_, 0);
        return asio::buffer(data_) + end_;
    }

private:
    std::array<char, 2048> data_;
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
};

/// Answers requests up to one that another layer has to answer. Returns: STARTTLS, or QUIT at any end.
template <typename Stream>
asio::awaitable<verb> answer(Stream& stream, line_buffer& input)
{
    static std::string ignored(256 * 1024, '\0'); // what SINK reads
    asio::error_code error;
    auto token = asio::redirect_error(asio::use_awaitable, error);
    while (!error)
    {
        const std::size_t length = input.received().find('\n');
        if (length == std::string_view::npos)
        {
            const asio::mutable_buffer room = input.prepare();
            if (room.size() == 0)
                co_return verb::quit;
            input.commit(co_await stream.async_read_some(room, token));
            continue;
        }
        const request asked(input.received().substr(0, length));
        input.consume(length + 1);
        std::size_t left = asked.size;
        switch (asked.what)
        {
        case verb::starttls:
        case verb::quit: co_return asked.what;
        case verb::ping: co_await asio::async_write(stream, asio::buffer("PONG\n", 5), token); break;
        case verb::echo: {
            const std::string_view first = input.received().substr(0, left);
            co_await asio::async_write(stream, asio::buffer(first), token);
            input.consume(first.size());
            left -= first.size();
            std::string piece(std::min<std::size_t>(left, 64 * 1024), '\0');
            while (left > 0 && !error)
            {
                const std::size_t size = co_await stream.async_read_some(asio::buffer(piece, left), token);
                if (!error)
                    co_await asio::async_write(stream, asio::buffer(piece, size), token);
                left -= size;
            }
            break;
        }
        case verb::sink: {
            const std::size_t first = std::min(left, input.received().size());
            input.consume(first);
            left -= first;
            while (left > 0 && !error)
                left -= co_await stream.async_read_some(asio::buffer(ignored, left), token);
            if (!error)
                co_await asio::async_write(stream, asio::buffer("OK\n", 3), token);
            break;
        }
        case verb::source:
            while (left > 0 && !error)
            {
                const std::size_t size = std::min(left, asked.piece);
                left -= co_await asio::async_write(stream, asio::buffer(source_bytes, size), token);
            }
        }
    }
    co_return verb::quit;
}

/// Accepts connections for ever and runs `converse(socket)`, a coroutine, for each.
template <typename Converse>
asio::awaitable<void> listen(std::uint16_t port, Converse converse)
{
    const auto executor = co_await asio::this_coro::executor;
    asio::ip::tcp::acceptor acceptor(executor, {asio::ip::address_v4::loopback(), port});
    announce(acceptor.local_endpoint().port());
    for (;;)
    {
        asio::ip::tcp::socket socket = co_await acceptor.async_accept(asio::use_awaitable);
        socket.set_option(asio::ip::tcp::no_delay(true));
        asio::co_spawn(executor, converse(std::move(socket)), asio::detached);
    }
}

} // namespace bench

#endif
