/// @file
/// What a connection receives, and how its coroutines wait.
#ifndef UPGRADEABLE_STREAMS_DETAIL_READ_SIDE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_READ_SIDE_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/read_buffer.hpp>
#include <upgradeable_streams/detail/second_look.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/time_limit.hpp>
#include <upgradeable_streams/detail/write_side.hpp>
#include <upgradeable_streams/error.hpp>

#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/dispatch.hpp>
#include <asio/error.hpp>
#include <asio/ssl/error.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace upgradeable_streams::detail
{

/// The part of a connection that reads, and has reads and drains wait.
class read_side : public write_side
{
    friend class read_handler;

public:
    // What was received changes only while one of these runs.

    std::string_view received() const { return buffer_.filled(); }
    bool at_eof() const { return eof_ && received().empty(); }
    bool eof() const { return eof_; }

    std::string take(std::size_t size)
    {
        std::string taken(received().substr(0, size));
        discard(taken.size());
        return taken;
    }

    void discard(std::size_t size)
    {
        spend(size);
        buffer_.consume(size);
        amid_dropped_line_ = amid_dropped_line_ && size == 0;
    }

    /// Whether what is received next is the rest of a line that was too long: until some of it was taken otherwise.
    bool is_amid_dropped_line() const { return amid_dropped_line_; }
    void drop_line(bool is_amid) { amid_dropped_line_ = is_amid; }

    /// Adds what the stream holds to the buffer; false when that is nothing. Throws the first error of reading again
    /// each time.
    bool receive_now();

    /// As receive_now, into memory of the caller's; the buffer must be empty.
    std::size_t read_now(asio::mutable_buffer memory);

    /// As receive_now, also when a wait is what would come next, and whatever the connection has spent of its turn.
    /// True too where the stream holds still more of what is no data.
    bool poll()
    {
        if (!received().empty() || eof_)
            return true;
        if (!tells_at_once())
            throw std::system_error(std::make_error_code(std::errc::operation_not_supported),
                                    "poll: only a socket, or TLS over one, tells without waiting what has come");
        const std::size_t spent = std::exchange(spent_, 0);
        bool has_come = false;
        bool is_more = true;
        for (int looks = 0, skips = 0; is_more && !has_come && looks < most_looks && skips < most_skips; ++looks)
        {
            const bool is_part = look_again();
            has_come = receive_now();
            const bool is_skip = has_skipped();
            is_more = is_part || is_skip;
            skips += is_skip;
        }
        spent_ = spent;
        return has_come || is_more;
    }

    /// Waits until there may be something to receive or others had their turn; receive_now has to have found nothing.
    asio::awaitable<read_result> wait_to_receive();

    /// The trip through the event loop that gives the connection its next turn: of the read that is pending, whose time
    /// limit holds for it, or beside it.
    asio::awaitable<read_result> wait_for_turn(bool is_read = true);

    /// Whether the read that is pending has taken longer than it may.
    bool is_read_late() const { return time_limit_ && time_limit_->is_read_late(); }

    /// To be called with what a read was told by either. One that was cancelled meanwhile leaves what came to the next.
    void receive(const read_result& result, bool was_cancelled = false);

    /// Whether drain has nothing to wait for.
    bool is_drained();
    asio::awaitable<void> drain();

protected:
    using write_side::write_side;

    /// Where a wait receives in plain text. Never throws, since Asio ends the program when an initiation does.
    asio::mutable_buffer room(bool is_socket)
    try
    {
        return buffer_.prepare(is_socket ? small_receive : std::max(next_receive_, smallest_large_receive));
    }
    catch (const std::bad_alloc&)
    {
        return buffer_.prepare(small_receive);
    }

    /// Whether the end that was received is that of a broken connection: a socket tells its error once, to a write too.
    bool is_cut_off() const
    {
        return tells_cut_off(lost_) && !(is_tls() && (SSL_get_shutdown(ssl()) & SSL_RECEIVED_SHUTDOWN));
    }

    /// To be read before all that the stream holds.
    void put_back(std::string_view bytes)
    {
        buffer_.commit(asio::buffer_copy(buffer_.prepare(bytes.size()), asio::buffer(bytes)));
    }

    static constexpr std::size_t small_receive = 512;

    bool closing_ = false;
    read_buffer buffer_;
    bool eof_ = false;
    bool is_dry_ = false; ///< There is nothing more to be told of the stream before it was waited for.
    bool read_cancelled_ = false; ///< Between two waits, the next of which is not to begin.
    std::shared_ptr<time_limit> time_limit_; ///< Null where there was none yet. It stays, for reads that are under way.

private:
    static constexpr std::size_t smallest_large_receive = 4 * 1024;
    static constexpr std::size_t largest_receive = 64 * 1024;

    /// Of a poll: in the sessions of TLS within TLS a record comes in parts, of a size that grows.
    static constexpr int most_looks = 16;

    /// Of these, so many in vain: session tickets come before data. Who sends more of what is no data is not heard out.
    static constexpr int most_skips = 2;

    void end_reading(const asio::error_code& told);
    void settle_to_wait();
    static asio::awaitable<read_result> cancelled_read();

    std::size_t next_receive_ = small_receive;
    second_look second_look_;
    bool amid_dropped_line_ = false;
    std::error_code read_error_;
};

/// Resumes the coroutine that awaits a read_result, without an exception for an error.
class read_handler
{
public:
    using target_type = asio::async_result<asio::use_awaitable_t<>, void(read_result)>::handler_type;

    read_handler(read_side& r, target_type&& resumed, bool is_read = true)
        : target_(std::move(resumed)),
          read_side_(std::static_pointer_cast<read_side>(r.shared_from_this())),
          limit_(is_read ? r.time_limit_ : nullptr)
    {
        if (limit_)
            limit_->pass_on(target_.get_cancellation_slot());
    }

    using cancellation_slot_type = target_type::cancellation_slot_type;
    cancellation_slot_type get_cancellation_slot() const noexcept
    {
        return limit_ ? limit_->read_slot() : target_.get_cancellation_slot();
    }

    void operator()(const asio::error_code& error, std::size_t size)
    {
        const auto keep = read_side_;
        keep->enter(
            [h = std::move(*this), error, size]() mutable
            {
                h.read_side_->is_dry_ = false;
                h.resume(h.read_side_->arrived(error, size));
            });
    }

    void resume(const read_result& result)
    {
        const auto keep = std::move(read_side_);
        const turn begun(*keep);
        const auto executor = target_.get_executor();
        if (executor == keep->get_executor())
            std::move(target_)(result);
        else
            asio::dispatch(executor, [t = std::move(target_), result]() mutable { std::move(t)(result); });
    }

private:
    target_type target_;
    std::shared_ptr<read_side> read_side_;
    std::shared_ptr<time_limit> limit_;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL std::size_t read_side::read_now(asio::mutable_buffer memory)
{
    if (read_error_)
        throw std::system_error(read_error_);
    if (eof_ || is_dry_ || !has_turn())
        return 0;
    asio::error_code error;
    const std::size_t size = read_some(asio::buffer(memory, left_of_turn()), error);
    spend(size);
    if (size > 0)
        second_look_.found();
    else if (error == asio::error::would_block)
        is_dry_ = true;
    else
        receive({error, 0});
    return size;
}

UPGRADEABLE_STREAMS_DECL bool read_side::receive_now()
{
    if (is_dry_)
        return false;
    const std::size_t size = read_now(buffer_.prepare(next_receive_));
    buffer_.commit(size);
    if (size == next_receive_)
        next_receive_ = std::min(8 * size, largest_receive);
    else if (size < next_receive_ / 8)
        next_receive_ = std::max(next_receive_ / 8, small_receive);
    return size > 0 || eof_;
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<read_result> read_side::wait_to_receive()
{
    if (std::exchange(read_cancelled_, false) || is_read_late())
        return cancelled_read();
    if (!has_turn())
        return wait_for_turn();
    send();
    if (second_look_.is_due())
        return wait_for_turn();
    settle_to_wait();
    return asio::async_initiate<const asio::use_awaitable_t<>, void(read_result)>(
        [this](read_handler::target_type target) { async_receive(read_handler(*this, std::move(target))); },
        asio::use_awaitable);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<read_result> read_side::cancelled_read()
{
    co_return read_result{asio::error::operation_aborted, 0};
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<read_result> read_side::wait_for_turn(bool is_read)
{
    return asio::async_initiate<const asio::use_awaitable_t<>, void(read_result)>(
        [this, is_read](read_handler::target_type target)
        { async_yield(read_handler(*this, std::move(target), is_read)); },
        asio::use_awaitable);
}

UPGRADEABLE_STREAMS_DECL void read_side::receive(const read_result& result, bool was_cancelled)
{
    throw_if(closing_, errc::connection_closed);
    buffer_.commit(result.size);
    if (result.error)
        end_reading(result.error);
    if (was_cancelled)
        throw std::system_error(asio::error::operation_aborted);
}

/// At the end of what can be read, or with the reason why there is no more for now.
UPGRADEABLE_STREAMS_DECL void read_side::end_reading(const asio::error_code& told)
{
    const std::error_code error = told == asio::error::eof && is_cut_off() ? lost_ : std::error_code(told);
    if (error == asio::error::eof)
    {
        eof_ = true;
        return;
    }
    if (error == asio::error::operation_aborted)
        throw std::system_error(is_read_late() ? make_error_code(errc::operation_timeout) : error);
    read_error_ = error;
    is_dry_ = false;
    if (error != asio::ssl::error::stream_truncated)
        lose(error);
    throw std::system_error(error);
}

/// Gives back the memory that an idle connection does not need, and takes what it does; TLS receives elsewhere what it
/// waits for.
UPGRADEABLE_STREAMS_DECL void read_side::settle_to_wait()
{
    buffer_.shrink(is_tls() ? 0 : small_receive);
    if (!is_tls())
        buffer_.prepare(small_receive);
    queue_.shrink(small_receive);
}

UPGRADEABLE_STREAMS_DECL bool read_side::is_drained()
{
    if (paused_)
        send();
    if (paused_ && !lost_ && !closed_)
        return false;
    throw_if_lost();
    return has_turn();
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> read_side::drain()
{
    const auto end = time_limit_ ? time_limit_->end() : time_limit::never;
    while (paused_ && !lost_ && !closed_)
    {
        if (end != time_limit::never)
        {
            throw_if(end <= time_limit::clock::now(), errc::operation_timeout);
            time_limit_->wake_drain(end);
        }
        co_await wait_change();
    }
    throw_if_lost();
    if (has_turn())
        co_return;
    const read_result result = co_await wait_for_turn(false);
    if (result.error == asio::error::operation_aborted)
        throw std::system_error(result.error);
}

#endif

} // namespace upgradeable_streams::detail

#endif
