/// @file
/// The reading half of a connection, with the names and semantics of asyncio.StreamReader.
#ifndef UPGRADEABLE_STREAMS_STREAM_READER_HPP
#define UPGRADEABLE_STREAMS_STREAM_READER_HPP

#include <upgradeable_streams/detail/checked_ptr.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/detail/handle.hpp>
#include <upgradeable_streams/detail/separators.hpp>
#include <upgradeable_streams/detail/wait.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/string_list.hpp>

#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/this_coro.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <limits>
#include <memory>
#include <optional>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace upgradeable_streams
{

class stream_reader;
class stream_writer;

/// A connection (asyncio's `reader, writer`).
using stream_pair = std::pair<stream_reader, stream_writer>;

namespace detail
{

template <typename Range>
concept byte_range = std::ranges::contiguous_range<Range> && sizeof(std::ranges::range_value_t<Range>) == 1 &&
                     std::is_trivially_copyable_v<std::ranges::range_value_t<Range>>;

/// Handles that are void until the connection has come to `epoch`.
stream_pair make_handles(std::shared_ptr<connection> c, unsigned epoch);
} // namespace detail

/// Reads bytes and lines from a connection.
///
/// Errors, of every read: errc::operation_in_progress while another read is pending; errc::upgrade_in_progress while
/// start_tls or stop_tls runs, errc::connection_upgraded afterwards; errc::connection_closed after close; the reason of
/// a broken connection, asio::ssl::error::stream_truncated when TLS ended without a close_notify. Bytes that came
/// before such an error are delivered by `read(size)` first. errc::operation_timeout loses nothing; the next read goes
/// on.
///
/// Cancellation: a cancelled read throws asio::error::operation_aborted and loses nothing; the next read goes on.
///
/// Concurrency: a connection's handles are used on the executor of the coroutine that obtained them. A copy may be
/// destroyed on any thread.
///
/// Lifetime: handles are cheap to copy and may be assigned or destroyed while an operation runs. When the last reader
/// or writer of a connection goes, it is closed as if by stream_writer::close. Like Asio's own objects, handles must
/// not outlive the io_context.
class stream_reader
{
public:
    /// Of no connection, as one that was moved from: to be assigned to. Any other use is errc::connection_closed.
    stream_reader() = default;

    /// For `read`: everything up to the end of the stream.
    static constexpr std::size_t until_eof = std::numeric_limits<std::size_t>::max();

    /// Reads at least 1 and at most `size` bytes, or everything up to the end of the stream, however much that is.
    ///
    /// Returns: empty at the end of the stream, and for a size of 0.
    asio::awaitable<std::string> read(std::size_t size = until_eof) { return read(handle_, size); }

    /// Reads at least 1 and at most `memory.size()` bytes into memory of the caller's, without a copy between.
    ///
    /// Returns: how many; 0 at the end of the stream, and for no memory.
    ///
    /// Lifetime: the memory must live until the operation has completed.
    asio::awaitable<std::size_t> readinto(std::span<char> memory) { return readinto(handle_, memory); }

    /// As the other, into memory of another type, as of a `std::vector<std::byte>`.
    template <detail::byte_range Memory>
        requires(!std::is_const_v<std::remove_reference_t<std::ranges::range_reference_t<Memory>>> &&
                 std::ranges::borrowed_range<Memory> && !std::convertible_to<Memory, std::span<char>>)
    asio::awaitable<std::size_t> readinto(Memory&& memory)
    {
        return readinto(std::span(reinterpret_cast<char*>(std::ranges::data(memory)), std::ranges::size(memory)));
    }

    /// Reads exactly `size` bytes; not bounded by the limit.
    ///
    /// Errors: incomplete_read_error at the end of the stream.
    asio::awaitable<std::string> readexactly(std::size_t size) { return readexactly(handle_, size); }

    /// Reads up to and with the separator, or that one of several whose match ends first.
    ///
    /// Errors: std::invalid_argument for no or an empty separator; incomplete_read_error at the end of the stream;
    /// limit_overrun_error when the limit is passed, with the data still in the buffer.
    asio::awaitable<std::string> readuntil(string_list separators = "\n")
    {
        return read_match(handle_, detail::any_separator(separators));
    }

    /// Reads up to and with a newline.
    ///
    /// Returns: a partial line at the end of the stream, empty when there is none.
    ///
    /// Errors: limit_overrun_error for a line longer than the limit, which is dropped up to and with its newline; what
    /// of it comes later the next readline drops, however much that is, unless another read takes of it before (asyncio
    /// takes it for a line).
    asio::awaitable<std::string> readline() { return read_match(handle_, detail::newline()); }

    /// Looks, without waiting, whether a read would get anything at once: bytes, or the end of the stream. In a pool a
    /// connection that is idle has neither; one that has is not to be used any more.
    ///
    /// Errors: those of a read, as of a connection that was reset; std::errc::operation_not_supported over a stream
    /// of yours that is no socket.
    bool poll()
    {
        detail::connection& c = *handle_->connection();
        const detail::connection::read_guard guard(c, handle_->epoch());
        return c.poll();
    }

    /// Whether the stream has ended and all of it was read. Only a read or poll finds out that a stream has ended.
    bool at_eof() const { return handle_->current().at_eof(); }

    /// Whether the connection is encrypted.
    bool is_tls() const { return handle_->current().is_tls(); }

private:
    friend stream_pair detail::make_handles(std::shared_ptr<detail::connection>, unsigned);
    using shared_handle = detail::checked_ptr<detail::handle>;

    explicit stream_reader(shared_handle handle) : handle_(std::move(handle)) {}

    static asio::awaitable<std::string> read(shared_handle handle, std::size_t size);
    static asio::awaitable<std::size_t> readinto(shared_handle handle, std::span<char> memory);
    static asio::awaitable<std::string> readexactly(shared_handle handle, std::size_t size);

    template <typename Separators>
    static asio::awaitable<std::string> read_match(shared_handle handle, Separators separators);

    shared_handle handle_;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL asio::awaitable<std::string> stream_reader::read(shared_handle handle, std::size_t size)
{
    detail::connection& c = *handle->connection();
    const detail::connection::read_guard guard(c, handle->epoch());
    const detail::cancellation_watch cancellation(co_await asio::this_coro::cancellation_state);
    while (size > 0 && !c.eof() && (size == until_eof || c.received().empty()))
        if (!c.receive_now())
        {
            const detail::read_result result = co_await c.wait_to_receive();
            c.receive(result, cancellation.was_cancelled());
        }
    co_return c.take(size);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<std::size_t> stream_reader::readinto(shared_handle handle,
                                                                              std::span<char> memory)
{
    detail::connection& c = *handle->connection();
    const detail::connection::read_guard guard(c, handle->epoch());
    const detail::cancellation_watch cancellation(co_await asio::this_coro::cancellation_state);
    while (!memory.empty() && c.received().empty() && !c.eof())
    {
        const std::size_t size = c.read_now(asio::buffer(memory.data(), memory.size()));
        if (size > 0)
        {
            c.drop_line(false);
            co_return size;
        }
        if (c.eof())
            break;
        const detail::read_result result = co_await c.wait_to_receive();
        c.receive(result, cancellation.was_cancelled());
    }
    const std::size_t size = c.received().copy(memory.data(), memory.size());
    c.discard(size);
    co_return size;
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<std::string> stream_reader::readexactly(shared_handle handle, std::size_t size)
{
    detail::connection& c = *handle->connection();
    const detail::connection::read_guard guard(c, handle->epoch());
    const detail::cancellation_watch cancellation(co_await asio::this_coro::cancellation_state);
    while (c.received().size() < size)
    {
        if (c.eof())
            throw incomplete_read_error(c.take(size), size);
        if (c.receive_now())
            continue;
        const detail::read_result result = co_await c.wait_to_receive();
        c.receive(result, cancellation.was_cancelled());
    }
    co_return c.take(size);
}

template <typename Separators>
asio::awaitable<std::string> stream_reader::read_match(shared_handle handle, Separators separators)
{
    detail::connection& c = *handle->connection();
    const detail::connection::read_guard guard(c, handle->epoch());
    const detail::cancellation_watch cancellation(co_await asio::this_coro::cancellation_state);
    if (!c.has_turn())
    {
        const detail::read_result result = co_await c.wait_for_turn();
        c.receive(result, cancellation.was_cancelled());
    }
    const std::size_t limit = c.limit();
    std::size_t from = 0;
    for (;;)
    {
        const std::string_view data = c.received();
        const std::optional<detail::match> found = separators.find(data, from);
        if (Separators::ends_lines && c.is_amid_dropped_line() && !data.empty())
        {
            c.discard(found ? found->end : data.size());
            c.drop_line(!found);
            continue;
        }
        if (found && found->begin <= limit)
            co_return c.take(found->end);
        from = found ? found->begin : std::max(data.size() + 1, separators.longest) - separators.longest;
        if (from > limit)
        {
            if (Separators::ends_lines)
            {
                c.discard(found ? found->end : data.size());
                c.drop_line(!found);
            }
            throw limit_overrun_error(from);
        }
        if (c.eof())
        {
            std::string partial = c.take(data.size());
            if (Separators::ends_lines)
                co_return partial;
            throw incomplete_read_error(std::move(partial), std::nullopt);
        }
        if (c.receive_now())
            continue;
        const detail::read_result result = co_await c.wait_to_receive();
        c.receive(result, cancellation.was_cancelled());
    }
}

#endif

} // namespace upgradeable_streams

#endif
