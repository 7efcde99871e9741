/// @file
/// Moves a connection's bytes: what was received, what is to be sent, and whose turn it is.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TRANSPORT_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TRANSPORT_HPP

#include <upgradeable_streams/detail/erased_stream.hpp>
#include <upgradeable_streams/detail/read_buffer.hpp>
#include <upgradeable_streams/detail/second_look.hpp>
#include <upgradeable_streams/detail/send_queue.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/strand.hpp>
#include <upgradeable_streams/detail/strand_executor.hpp>
#include <upgradeable_streams/detail/time_limit.hpp>
#include <upgradeable_streams/detail/wait.hpp>
#include <upgradeable_streams/error.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/dispatch.hpp>
#include <asio/error.hpp>
#include <asio/post.hpp>
#include <asio/ssl/error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace upgradeable_streams::detail
{

inline void throw_if(bool condition, errc error)
{
    if (condition)
        throw std::system_error(error);
}

/// The part of a connection that reads and writes.
class transport : public erased_stream, public std::enable_shared_from_this<transport>
{
    friend class read_handler;
    friend class turn;

public:
    const asio::any_io_executor& get_executor() const { return executor_; }
    bool is_closed() const { return closed_; }

    // Reading: what was received changes only while one of these runs.

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

    /// Waits until there may be something to receive or others had their turn; receive_now has to have found nothing.
    asio::awaitable<read_result> wait_to_receive();

    /// Whether this thread is where the connection is used.
    bool runs_here() const { return !strand_ || strand_->runs_here(); }

    /// Whether the connection may go on without a trip through the event loop, and that trip: of the read that is
    /// pending, whose time limit holds for it, or beside it.
    bool has_turn() const { return spent_ < turn_size; }
    asio::awaitable<read_result> wait_for_turn(bool is_read = true);

    /// Whether the read that is pending has taken longer than it may.
    bool is_read_late() const { return time_limit_ && time_limit_->is_read_late(); }

    /// To be called with what a read was told by either. One that was cancelled meanwhile leaves what came to the next.
    void receive(const read_result& result, bool was_cancelled = false);

    // Writing: what is queued is sent, without a further call, once control is back at the event loop.

    void write(std::string_view data);

    void set_write_buffer_limits(std::size_t high, std::size_t low)
    {
        high_ = high;
        low_ = low;
        paused_ = queued() > high_ || (paused_ && queued() > low_);
        changed_->cancel();
    }

    /// How many bytes are queued, or encrypted and not yet sent.
    std::size_t queued() const { return queue_.size() + unsent_; }

    /// Whether drain has nothing to wait for.
    bool is_drained();
    asio::awaitable<void> drain();

    /// Waits until all was handed to the socket.
    asio::awaitable<void> flush();

protected:
    transport(const asio::any_io_executor& executor, std::shared_ptr<strand> s)
        : strand_(std::move(s)),
          executor_(executor_of_strand(executor, strand_)),
          changed_(std::make_shared<asio::steady_timer>(executor_, asio::steady_timer::time_point::max()))
    {
    }

    /// Calls the function where the connection is used. For a handler that the stream's executor runs.
    template <typename Function>
    void enter(Function&& function)
    {
        if (strand_)
            strand_->enter(std::forward<Function>(function));
        else
            std::forward<Function>(function)();
    }

    void written(const asio::error_code& error, std::size_t size);
    asio::mutable_buffer room(bool is_socket)
    {
        return buffer_.prepare(is_socket ? read_buffer::small_size : std::max(next_receive_, smallest_large_receive));
    }

    void throw_if_lost() const
    {
        if (lost_)
            throw std::system_error(lost_);
        throw_if(closed_, errc::connection_closed);
    }

    /// Whether the end that was received is that of a broken connection: a socket tells its error once, to a write too.
    bool is_cut_off() const
    {
        return tells_cut_off(lost_) && !(is_tls() && (SSL_get_shutdown(ssl()) & SSL_RECEIVED_SHUTDOWN));
    }

    /// Makes writing impossible.
    void lose(const std::error_code& reason);

    void send();
    asio::awaitable<void> wait_change() { return wait(*changed_); }

    /// To be read before all that the stream holds.
    void put_back(std::string_view bytes)
    {
        buffer_.commit(asio::buffer_copy(buffer_.prepare(bytes.size()), asio::buffer(bytes)));
    }

    const std::shared_ptr<strand> strand_;
    const asio::any_io_executor executor_;
    std::shared_ptr<asio::steady_timer> changed_; ///< Cancelled at each change that somebody may wait for.
    bool closing_ = false;
    std::atomic<bool> closed_ = false; ///< To be read on any thread.
    std::error_code lost_; ///< Why writing is no longer possible.

    read_buffer buffer_;
    bool eof_ = false;
    bool is_dry_ = false; ///< There is nothing more to be told of the stream before it was waited for.
    bool read_cancelled_ = false; ///< Between two waits, the next of which is not to begin.
    std::shared_ptr<time_limit> time_limit_; ///< Null where there was none yet. It stays, for reads that are under way.

    send_queue queue_;
    std::size_t high_ = 64 * 1024;
    std::size_t low_ = 16 * 1024;

private:
    static constexpr std::size_t smallest_large_receive = 4 * 1024;
    static constexpr std::size_t largest_receive = 64 * 1024;

    /// From this size on a write goes to the stream at once, and only what that does not take is copied.
    static constexpr std::size_t large_write = 64 * 1024;

    /// How much a connection may read and write before others have their turn.
    static constexpr std::size_t turn_size = 1280 * 1024;

    void spend(std::size_t size) { spent_ += size + 64; }
    void end_reading(const asio::error_code& told);
    bool hand_over(std::string_view& data);
    void block();
    void shrink();
    void schedule_send();
    static asio::awaitable<read_result> cancelled_read();

    std::size_t next_receive_ = read_buffer::small_size;
    second_look second_look_;
    bool amid_dropped_line_ = false;
    std::error_code read_error_;

    std::size_t unsent_ = 0;  ///< What the stream has taken and not yet sent.
    bool is_blocked_ = false; ///< The stream takes no more until `written` is called.
    bool send_scheduled_ = false;
    bool paused_ = false;  ///< Above the high mark, and not yet at the low one again.
    bool in_turn_ = false; ///< At whose end what is queued is sent.
    std::size_t spent_ = 0;
};

/// A stretch of work from the event loop back to it; what it has queued is sent at its end.
class turn
{
public:
    explicit turn(transport& t) : transport_(t)
    {
        t.in_turn_ = true;
        t.spent_ = 0;
    }

    ~turn()
    {
        transport_.in_turn_ = false;
        transport_.spent_ = 0;
        transport_.send();
    }

    turn(const turn&) = delete;
    turn& operator=(const turn&) = delete;

private:
    transport& transport_;
};

/// Resumes the coroutine that awaits a read_result, without an exception for an error.
class read_handler
{
public:
    using target_type = asio::async_result<asio::use_awaitable_t<>, void(read_result)>::handler_type;

    read_handler(std::shared_ptr<transport> t, target_type&& resumed, bool is_read = true)
        : target_(std::move(resumed)), transport_(std::move(t)), limit_(is_read ? transport_->time_limit_ : nullptr)
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
        const auto keep = transport_;
        keep->enter(
            [h = std::move(*this), error, size]() mutable
            {
                h.transport_->is_dry_ = false;
                h.resume(h.transport_->arrived(error, size));
            });
    }

    void resume(const read_result& result)
    {
        const auto keep = std::move(transport_);
        const turn begun(*keep);
        const auto executor = target_.get_executor();
        if (executor == keep->get_executor())
            std::move(target_)(result);
        else
            asio::dispatch(executor, [t = std::move(target_), result]() mutable { std::move(t)(result); });
    }

private:
    target_type target_;
    std::shared_ptr<transport> transport_;
    std::shared_ptr<time_limit> limit_;
};

inline std::size_t transport::read_now(asio::mutable_buffer memory)
{
    if (read_error_)
        throw std::system_error(read_error_);
    if (eof_ || is_dry_ || !has_turn())
        return 0;
    asio::error_code error;
    const std::size_t size = read_some(memory, error);
    spend(size);
    if (size > 0)
        second_look_.found();
    else if (error == asio::error::would_block)
        is_dry_ = true;
    else
        receive({error, 0});
    return size;
}

inline bool transport::receive_now()
{
    if (is_dry_)
        return false;
    const std::size_t size = read_now(buffer_.prepare(next_receive_));
    buffer_.commit(size);
    if (size == next_receive_)
        next_receive_ = std::min(8 * size, largest_receive);
    else if (size < next_receive_ / 8)
        next_receive_ = std::max(next_receive_ / 8, read_buffer::small_size);
    return size > 0 || eof_;
}

inline asio::awaitable<read_result> transport::wait_to_receive()
{
    if (std::exchange(read_cancelled_, false) || is_read_late())
        return cancelled_read();
    if (!has_turn())
        return wait_for_turn();
    send();
    if (second_look_.is_due())
        return wait_for_turn();
    shrink();
    return asio::async_initiate<const asio::use_awaitable_t<>, void(read_result)>(
        [this](read_handler::target_type target)
        { async_receive(read_handler(shared_from_this(), std::move(target))); },
        asio::use_awaitable);
}

inline asio::awaitable<read_result> transport::cancelled_read()
{
    co_return read_result{asio::error::operation_aborted, 0};
}

inline asio::awaitable<read_result> transport::wait_for_turn(bool is_read)
{
    return asio::async_initiate<const asio::use_awaitable_t<>, void(read_result)>(
        [this, is_read](read_handler::target_type target)
        { async_yield(read_handler(shared_from_this(), std::move(target), is_read)); },
        asio::use_awaitable);
}

inline void transport::receive(const read_result& result, bool was_cancelled)
{
    throw_if(closing_, errc::connection_closed);
    buffer_.commit(result.size);
    if (result.error)
        end_reading(result.error);
    if (was_cancelled)
        throw std::system_error(asio::error::operation_aborted);
}

/// At the end of what can be read, or with the reason why there is no more for now.
inline void transport::end_reading(const asio::error_code& told)
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

inline void transport::write(std::string_view data)
{
    if (data.size() >= large_write)
    {
        send();
        if (!is_blocked_ && !hand_over(data) && !lost_)
            try
            {
                queue_.begin(data);
                return block();
            }
            catch (const std::bad_alloc&)
            {
                lose(asio::error::no_memory);
                throw;
            }
    }
    if (data.empty() || lost_)
        return;
    queue_.append(data);
    if (queued() > high_)
        paused_ = true;
    schedule_send();
}

inline void transport::schedule_send()
{
    if (send_scheduled_ || in_turn_ || is_blocked_)
        return;
    asio::post(get_executor(),
               [self = shared_from_this()]
               {
                   self->send_scheduled_ = false;
                   self->send();
               });
    send_scheduled_ = true;
}

/// Takes from `data` what the stream does; whether that was all.
inline bool transport::hand_over(std::string_view& data)
{
    while (!data.empty())
    {
        if (closed_ || !has_turn())
            return false;
        const write_result result = write_some(asio::buffer(data));
        data.remove_prefix(result.size);
        unsent_ = result.unsent;
        spend(result.size);
        if (result.error)
            lose(result.error);
        if (result.error || result.is_blocked)
            return false;
    }
    return true;
}

/// Goes on with what is queued when the stream takes more, or at the next turn.
inline void transport::block()
{
    is_blocked_ = true;
    paused_ = paused_ || queued() > high_;
    try
    {
        if (has_turn() || unsent_ > 0)
            return async_write(asio::buffer(queue_.front()));
        asio::post(get_executor(), [self = shared_from_this()] { self->written({}, 0); });
    }
    catch (const std::bad_alloc&)
    {
        is_blocked_ = false;
        lose(asio::error::no_memory);
    }
}

inline void transport::send()
{
    while (!is_blocked_ && !lost_ && !closed_ && !queue_.empty())
    {
        std::string_view rest = queue_.front();
        const std::size_t size = rest.size();
        const bool all = hand_over(rest);
        if (lost_)
            return;
        queue_.take(size - rest.size());
        if (!all)
            block();
    }
    if (queued() <= low_)
        paused_ = false;
}

/// Gives back the memory that an idle connection does not need.
inline void transport::shrink()
{
    buffer_.shrink();
    queue_.shrink(read_buffer::small_size);
}

inline void transport::written(const asio::error_code& error, std::size_t size)
{
    is_blocked_ = false;
    unsent_ = 0;
    queue_.take(size);
    spent_ = 0;
    if (error)
        return lose(error);
    send();
    changed_->cancel();
}

inline void transport::lose(const std::error_code& reason)
{
    if (!lost_ && !closed_)
        lost_ = reason;
    queue_.drop(is_blocked_);
    paused_ = false;
    changed_->cancel();
}

inline bool transport::is_drained()
{
    if (paused_)
        send();
    if (paused_ && !lost_ && !closed_)
        return false;
    throw_if_lost();
    return has_turn();
}

inline asio::awaitable<void> transport::drain()
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

inline asio::awaitable<void> transport::flush()
{
    send();
    while ((queued() > 0 || !is_flushed()) && !lost_ && !closed_)
    {
        if (is_blocked_)
            co_await wait_change();
        else
            block();
    }
    throw_if_lost();
}

} // namespace upgradeable_streams::detail

#endif
