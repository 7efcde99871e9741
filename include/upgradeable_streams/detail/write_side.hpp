/// @file
/// What a connection sends, and whose turn it is.
#ifndef UPGRADEABLE_STREAMS_DETAIL_WRITE_SIDE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_WRITE_SIDE_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/erased_stream.hpp>
#include <upgradeable_streams/detail/send_queue.hpp>
#include <upgradeable_streams/detail/strand.hpp>
#include <upgradeable_streams/detail/strand_executor.hpp>
#include <upgradeable_streams/detail/wait.hpp>
#include <upgradeable_streams/error.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>

#include <atomic>
#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <string_view>
#include <system_error>
#include <utility>

namespace upgradeable_streams::detail
{

/// The part of a connection that writes: what is queued is sent, without a further call, once control is back at the
/// event loop.
class write_side : public erased_stream, public std::enable_shared_from_this<write_side>
{
    friend class turn;

public:
    const asio::any_io_executor& get_executor() const { return executor_; }
    bool is_closed() const { return closed_; }

    /// Whether this thread is where the connection is used.
    bool runs_here() const { return !strand_ || strand_->runs_here(); }

    /// Whether the connection may go on without a trip through the event loop.
    bool has_turn() const { return spent_ < turn_size; }

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

    /// Waits until all was handed to the socket.
    asio::awaitable<void> flush();

protected:
    write_side(const asio::any_io_executor& executor, std::shared_ptr<strand> s)
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

    void send();
    void written(const asio::error_code& error, std::size_t size);

    /// Makes writing impossible.
    void lose(const std::error_code& reason);

    void throw_if_lost() const
    {
        if (lost_)
            throw std::system_error(lost_);
        throw_if(closed_, errc::connection_closed);
    }

    void spend(std::size_t size) { spent_ += size + 64; }
    std::size_t left_of_turn() const { return spent_ < turn_size ? turn_size - spent_ : 0; }
    asio::awaitable<void> wait_change() { return wait(*changed_); }

    const std::shared_ptr<strand> strand_;
    const asio::any_io_executor executor_;
    std::shared_ptr<asio::steady_timer> changed_; ///< Cancelled at each change that somebody may wait for.
    std::atomic<bool> closed_ = false;            ///< To be read on any thread.
    std::error_code lost_;                        ///< Why writing is no longer possible.

    send_queue queue_;
    std::size_t high_ = 64 * 1024;
    std::size_t low_ = 16 * 1024;
    bool paused_ = false; ///< Above the high mark, and not yet at the low one again.

    std::size_t spent_ = 0; ///< Of the connection's turn.

private:
    /// From this size on a write goes to the stream at once, and only what that does not take is copied.
    static constexpr std::size_t large_write = 64 * 1024;

    /// How much a connection may read and write before others have their turn.
    static constexpr std::size_t turn_size = 1280 * 1024;

    bool hand_over(std::string_view& data);
    void block();
    void schedule_send();

    std::size_t unsent_ = 0;  ///< What the stream has taken and not yet sent.
    bool is_blocked_ = false; ///< The stream takes no more until `written` is called.
    bool send_scheduled_ = false;
    bool in_turn_ = false; ///< At whose end what is queued is sent.
};

/// A stretch of work from the event loop back to it; what it has queued is sent at its end.
class turn
{
public:
    explicit turn(write_side& w) : write_side_(w)
    {
        w.in_turn_ = true;
        w.spent_ = 0;
    }

    ~turn()
    {
        write_side_.in_turn_ = false;
        write_side_.spent_ = 0;
        write_side_.send();
    }

    turn(const turn&) = delete;
    turn& operator=(const turn&) = delete;

private:
    write_side& write_side_;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL void write_side::write(std::string_view data)
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

UPGRADEABLE_STREAMS_DECL void write_side::schedule_send()
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
UPGRADEABLE_STREAMS_DECL bool write_side::hand_over(std::string_view& data)
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
UPGRADEABLE_STREAMS_DECL void write_side::block()
{
    is_blocked_ = true;
    paused_ = paused_ || queued() > high_;
    try
    {
        if (has_turn() || unsent_ > 0)
            return async_write(asio::buffer(queue_.begin()));
        asio::post(get_executor(), [self = shared_from_this()] { self->written({}, 0); });
    }
    catch (...)
    {
        is_blocked_ = false;
        lose(code_of(std::current_exception()));
    }
}

UPGRADEABLE_STREAMS_DECL void write_side::send()
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

UPGRADEABLE_STREAMS_DECL void write_side::written(const asio::error_code& error, std::size_t size)
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

UPGRADEABLE_STREAMS_DECL void write_side::lose(const std::error_code& reason)
{
    if (!lost_ && !closed_)
        lost_ = reason;
    queue_.drop(is_blocked_);
    paused_ = false;
    changed_->cancel();
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> write_side::flush()
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

#endif

} // namespace upgradeable_streams::detail

#endif
