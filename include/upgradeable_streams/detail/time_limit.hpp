/// @file
/// How long a connection's operations may take.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TIME_LIMIT_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TIME_LIMIT_HPP

#include <upgradeable_streams/detail/deadline.hpp>

#include <asio/cancellation_signal.hpp>
#include <asio/cancellation_type.hpp>
#include <asio/error_code.hpp>
#include <asio/steady_timer.hpp>

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>
#include <optional>
#include <utility>

namespace upgradeable_streams::detail
{

/// Ends a read that takes too long, and wakes drains. The timer runs on when an operation is done, and is set anew when
/// it expires, since each setting costs a system call.
///
/// Concurrency: used on the connection's executor.
class time_limit : public std::enable_shared_from_this<time_limit>
{
public:
    using clock = std::chrono::steady_clock;
    static constexpr clock::time_point never = clock::time_point::max();

    /// `changed` is what drains wait on.
    explicit time_limit(std::shared_ptr<asio::steady_timer> changed)
        : changed_(std::move(changed)), timer_(changed_->get_executor())
    {
    }

    /// For operations that begin from now on.
    void set(const std::optional<clock::duration>& each) { each_ = each; }
    const std::optional<clock::duration>& each() const { return each_; }

    /// Of an operation that begins now.
    clock::time_point end() const { return each_ ? time_after(*each_) : never; }

    void begin_read()
    {
        read_end_ = end();
        run();
    }

    void end_read() { read_end_ = never; }
    bool is_read_late() const { return read_end_ <= clock::now(); }

    /// Where the operations of a read are cancelled. What is asked of `outer` is passed on to it.
    asio::cancellation_slot read_slot() { return read_signal_.slot(); }
    void pass_on(asio::cancellation_slot outer)
    {
        if (outer.is_connected())
            outer.assign([self = shared_from_this()](asio::cancellation_type type) { self->read_signal_.emit(type); });
    }

    /// Cancels `changed` at `end`, or before.
    void wake_drain(clock::time_point end)
    {
        drain_end_ = std::min(drain_end_, end);
        run();
    }

    void stop() { timer_.cancel(); }

private:
    /// `now` is when the caller looked for what is late: what has become so since is left to the timer.
    void run(clock::time_point now = clock::now())
    {
        const auto next = std::min(read_end_ > now ? read_end_ : never, drain_end_);
        if (next == never || (running_ && timer_.expiry() <= next))
            return;
        running_ = false;
        timer_.expires_at(next);
        timer_.async_wait(
            [weak = weak_from_this()](const asio::error_code& error)
            {
                const auto self = weak.lock();
                if (error || !self)
                    return;
                self->running_ = false;
                self->expired();
            });
        running_ = true;
    }

    void expired()
    {
        const auto now = clock::now();
        if (drain_end_ <= now)
        {
            drain_end_ = never;
            changed_->cancel();
        }
        if (read_end_ <= now)
            read_signal_.emit(asio::cancellation_type::terminal);
        try
        {
            run(now);
        }
        catch (const std::bad_alloc&) // the next operation tries again
        {
        }
    }

    std::optional<clock::duration> each_;
    clock::time_point read_end_ = never;
    clock::time_point drain_end_ = never;
    std::shared_ptr<asio::steady_timer> changed_;
    asio::steady_timer timer_;
    bool running_ = false;
    asio::cancellation_signal read_signal_;
};

} // namespace upgradeable_streams::detail

#endif
