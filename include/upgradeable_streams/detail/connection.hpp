/// @file
/// What a reader and its writer share: stream, read buffer, write queue, epoch.
#ifndef UPGRADEABLE_STREAMS_DETAIL_CONNECTION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_CONNECTION_HPP

#include <upgradeable_streams/detail/connection_settings.hpp>
#include <upgradeable_streams/detail/handshake_limit.hpp>
#include <upgradeable_streams/detail/read_buffer.hpp>
#include <upgradeable_streams/detail/strand.hpp>
#include <upgradeable_streams/detail/stream_state.hpp>
#include <upgradeable_streams/detail/wait.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/socket_address.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/dispatch.hpp>
#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/socket_base.hpp>
#include <asio/ssl/error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace upgradeable_streams::detail
{

struct read_result
{
    asio::error_code error;
    std::size_t size;
};

inline void throw_if(bool condition, errc error)
{
    if (condition)
        throw std::system_error(error);
}

class read_handler;

/// A connection whose kind of socket has been forgotten.
///
/// Concurrency: used on one executor, a strand where the io_context has several threads. Lifetime: an operation under
/// way holds a shared_ptr.
class connection : public std::enable_shared_from_this<connection>
{
    friend class read_handler;
    friend class turn;

public:
    connection(const connection&) = delete;
    connection& operator=(const connection&) = delete;
    virtual ~connection() = default;

    const asio::any_io_executor& get_executor() const { return executor_; }
    virtual SSL* ssl() const = 0;
    virtual bool is_tls() const = 0;
    virtual const tls_settings& settings() const = 0;
    virtual std::optional<int> native_socket() = 0;

    const std::optional<socket_address>& peername() const { return peername_; }
    const std::optional<socket_address>& sockname() const { return sockname_; }
    void set_names(socket_address peer, socket_address own)
    {
        peername_ = std::move(peer);
        sockname_ = std::move(own);
    }

    std::size_t limit() const { return limit_; }
    unsigned epoch() const { return epoch_; }
    bool is_current(unsigned epoch) const { return epoch == epoch_ || epoch == inner_epoch; }
    bool is_closing() const { return closing_ || lost_; }
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
    }

    /// Adds what the stream holds to the buffer; false when that is nothing. Throws the first error of reading again
    /// each time.
    bool receive_now();

    /// As receive_now, into memory of the caller's; the buffer must be empty.
    std::size_t read_now(asio::mutable_buffer memory);

    /// Waits until there may be something to receive; receive_now has to have found nothing.
    asio::awaitable<read_result> wait_to_receive();

    /// Whether the connection may go on without a trip through the event loop, and that trip.
    bool has_turn() const { return spent_ < turn_size; }
    asio::awaitable<read_result> wait_for_turn();

    /// To be called with the result of wait_to_receive.
    void receive(const read_result& result);

    /// A pending wait_to_receive has asio::error::operation_aborted for its result.
    virtual void cancel_read() = 0;

    /// Marks a read as pending for as long as it lives.
    class read_guard
    {
    public:
        read_guard(connection& c, unsigned epoch) : connection_(c)
        {
            c.check_epoch(epoch);
            throw_if(c.reading_, errc::operation_in_progress);
            throw_if(c.closing_, errc::connection_closed);
            c.reading_ = true;
        }

        ~read_guard()
        {
            connection_.reading_ = false;
            if (connection_.closing_)
                connection_.changed_->cancel();
        }

        read_guard(const read_guard&) = delete;
        read_guard& operator=(const read_guard&) = delete;

    private:
        connection& connection_;
    };

    // Writing: what is queued is sent, without a further call, once control is back at the event loop.

    void check_write(unsigned epoch) const
    {
        check_epoch(epoch);
        throw_if(closing_, errc::connection_closed);
        throw_if_lost();
    }

    void throw_if_write_ended() const
    {
        if (write_ended_)
            throw std::system_error(std::make_error_code(std::errc::broken_pipe), "write after write_eof");
    }

    void write(std::string_view data);

    void set_write_buffer_limits(std::size_t high, std::size_t low)
    {
        high_ = high;
        low_ = low;
        paused_ = queued() > high_ || (paused_ && queued() > low_);
        changed_->cancel();
    }

    /// Whether drain has nothing to wait for.
    bool is_drained();
    asio::awaitable<void> drain();
    void write_eof();
    void close();
    void abort();

    /// Waits for the end; the result is the reason of a loss.
    asio::awaitable<std::error_code> wait_closed();

    /// Upgrades to TLS, or goes back to plain text, and begins a new epoch. A failure closes the connection.
    asio::awaitable<void> upgrade(std::unique_ptr<upgrade_request> request);
    asio::awaitable<void> downgrade();

    // A TLS session inside this one: until it has ended, to close this is to close it.

    /// Of the handles that the inner connection has, which no change makes void.
    static constexpr unsigned inner_epoch = std::numeric_limits<unsigned>::max();

    /// Throws where an inner connection cannot begin: one that has been made closes this when it goes.
    void check_inner() const
    {
        check_change();
        throw_if(!is_tls(), errc::not_tls);
    }

    connection_settings settings_inside() const { return {settings(), limit_, handshakes_, {}}; }

    /// Upgrades the inner connection, as `upgrade` does this one.
    asio::awaitable<void> upgrade_inner(std::shared_ptr<connection> inner, std::unique_ptr<upgrade_request> request);

    void end_inner()
    {
        inner_.reset();
        close();
    }

    /// Waits until all was handed to the socket.
    asio::awaitable<void> flush();

protected:
    connection(const asio::any_io_executor& executor, const connection_settings& settings)
        : strand_(settings.strand),
          executor_(strand_ ? asio::any_io_executor(strand_executor(executor, strand_)) : executor),
          changed_(std::make_shared<asio::steady_timer>(executor_, asio::steady_timer::time_point::max())),
          limit_(settings.limit), handshakes_(settings.handshakes)
    {
    }

    /// What a stream took without waiting, and how much of that it has yet to send.
    struct write_result
    {
        std::size_t size = 0;
        bool is_blocked = false;
        std::size_t unsent = 0;
        asio::error_code error = {};
    };

    /// asio::error::would_block when there is nothing.
    virtual std::size_t read_some(asio::mutable_buffer buffer, asio::error_code& error) = 0;

    /// Waits until there may be more. May put it into what `room` gives, and tells how much with `arrived`.
    virtual void async_receive(read_handler handler) = 0;
    virtual read_result arrived(const asio::error_code& error, std::size_t size) = 0;

    virtual write_result write_some(asio::const_buffer data) = 0;

    /// Waits until write_some can go on, and may write of `data`. Calls `written` in the end.
    virtual void async_write(asio::const_buffer data) = 0;

    virtual asio::awaitable<void> start_tls(std::unique_ptr<upgrade_request> request) = 0;
    virtual asio::awaitable<std::string> stop_tls() = 0; ///< Gives what is then to be read first.
    virtual asio::awaitable<void> shutdown(asio::socket_base::shutdown_type what, asio::error_code& error) = 0;
    virtual std::size_t unread() = 0; ///< Bytes that the operating system holds.
    virtual void close_socket() = 0;

    void written(const asio::error_code& error, std::size_t size);
    asio::mutable_buffer room(bool is_socket)
    {
        return buffer_.prepare(is_socket ? read_buffer::small_size : std::max(next_receive_, smallest_large_receive));
    }

    std::optional<socket_address> peername_;
    std::optional<socket_address> sockname_;
    bool is_dry_ = false; ///< There is nothing more to be told of the stream before it was waited for.

private:
    /// Ends the connection with `reason` when time is up, unless destroyed before.
    class expiry;

    static constexpr std::size_t smallest_large_receive = 4 * 1024;
    static constexpr std::size_t largest_receive = 64 * 1024;

    /// From this size on a write goes to the stream at once, and only what that does not take is copied.
    static constexpr std::size_t large_write = 64 * 1024;

    /// How much a connection may read and write before others have their turn.
    static constexpr std::size_t turn_size = 1280 * 1024;

    void throw_if_lost() const
    {
        if (lost_)
            throw std::system_error(lost_);
        throw_if(closed_, errc::connection_closed);
    }

    void spend(std::size_t size) { spent_ += size + 64; }
    std::size_t queued() const { return queue_.size() + sending_.size() - sent_ + unsent_; }
    bool hand_over(std::string_view& data);
    void block();
    void shrink();
    void schedule_send();
    void send();
    void lose(const std::error_code& reason);
    asio::awaitable<void> wait_change() { return wait(*changed_); }
    asio::awaitable<void> finish_writing();
    asio::awaitable<void> finish();
    void check_epoch(unsigned epoch) const;
    void check_change() const;

    /// To be read before all that the stream holds.
    void put_back(std::string_view bytes)
    {
        buffer_.commit(asio::buffer_copy(buffer_.prepare(bytes.size()), asio::buffer(bytes)));
    }

    template <typename Step>
    asio::awaitable<void> change(std::chrono::steady_clock::duration timeout, errc late, const char* what, Step step);

    const std::shared_ptr<strand> strand_;
    const asio::any_io_executor executor_;
    std::shared_ptr<asio::steady_timer> changed_; ///< Cancelled at each change that somebody may wait for.
    unsigned epoch_ = 0;                          ///< Counts the changes; handles of an earlier one are void.
    bool changing_ = false;                       ///< To TLS or back.
    bool closing_ = false;
    bool closed_ = false;
    std::error_code lost_; ///< Why writing is no longer possible.
    std::weak_ptr<connection> inner_;

    std::size_t limit_;
    std::shared_ptr<handshake_limit> handshakes_;
    read_buffer buffer_;
    std::size_t next_receive_ = read_buffer::small_size;
    bool reading_ = false;
    bool eof_ = false;
    std::error_code read_error_;

    std::string queue_;
    std::string sending_;     ///< What was queued before; its first `sent_` bytes the stream has taken.
    std::size_t sent_ = 0;
    std::size_t unsent_ = 0;  ///< What the stream has taken and not yet sent.
    bool is_blocked_ = false; ///< The stream takes no more until `written` is called.
    bool send_scheduled_ = false;
    bool in_turn_ = false; ///< At whose end what is queued is sent.
    std::size_t spent_ = 0;
    bool paused_ = false; ///< Above the high mark, and not yet at the low one again.
    bool write_ended_ = false;
    bool ending_ = false; ///< While write_eof tells the peer.
    std::size_t high_ = 64 * 1024;
    std::size_t low_ = 16 * 1024;
};

class connection::expiry
{
public:
    expiry(connection& c, std::chrono::steady_clock::duration timeout, errc reason)
        : timer_(std::make_shared<asio::steady_timer>(c.get_executor(), timeout))
    {
        timer_->async_wait(
            [timer = std::weak_ptr(timer_), weak = c.weak_from_this(), reason](const asio::error_code& error)
            {
                const auto self = weak.lock();
                if (error || timer.expired() || !self)
                    return;
                self->lose(reason);
                self->abort();
            });
    }

    expiry(const expiry&) = delete;
    expiry& operator=(const expiry&) = delete;

private:
    std::shared_ptr<asio::steady_timer> timer_;
};

/// A stretch of work from the event loop back to it; what it has queued is sent at its end.
class turn
{
public:
    explicit turn(connection& c) : connection_(c)
    {
        c.in_turn_ = true;
        c.spent_ = 0;
    }

    ~turn()
    {
        connection_.in_turn_ = false;
        connection_.spent_ = 0;
        connection_.send();
    }

    turn(const turn&) = delete;
    turn& operator=(const turn&) = delete;

private:
    connection& connection_;
};

/// Resumes the coroutine that awaits a read_result, without an exception for an error.
class read_handler
{
public:
    using target_type = asio::async_result<asio::use_awaitable_t<>, void(read_result)>::handler_type;

    read_handler(std::shared_ptr<connection> c, target_type&& resumed)
        : target_(std::move(resumed)), connection_(std::move(c))
    {
    }

    using cancellation_slot_type = target_type::cancellation_slot_type;
    cancellation_slot_type get_cancellation_slot() const noexcept { return target_.get_cancellation_slot(); }

    void operator()(const asio::error_code& error, std::size_t size)
    {
        const auto keep = connection_;
        auto arrive = [h = std::move(*this), error, size]() mutable
        {
            h.connection_->is_dry_ = false;
            h.resume(h.connection_->arrived(error, size));
        };
        if (keep->strand_)
            keep->strand_->enter(std::move(arrive));
        else
            arrive();
    }

    void resume(const read_result& result)
    {
        const auto keep = std::move(connection_);
        const turn begun(*keep);
        const auto executor = target_.get_executor();
        if (executor == keep->get_executor())
            std::move(target_)(result);
        else
            asio::dispatch(executor, [t = std::move(target_), result]() mutable { std::move(t)(result); });
    }

private:
    target_type target_;
    std::shared_ptr<connection> connection_;
};

inline std::size_t connection::read_now(asio::mutable_buffer memory)
{
    if (read_error_)
        throw std::system_error(read_error_);
    if (eof_ || is_dry_ || !has_turn())
        return 0;
    asio::error_code error;
    const std::size_t size = read_some(memory, error);
    spend(size);
    is_dry_ = is_dry_ || error == asio::error::would_block;
    if (error != asio::error::would_block)
        receive({error, 0});
    return size;
}

inline bool connection::receive_now()
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

inline asio::awaitable<read_result> connection::wait_to_receive()
{
    if (!has_turn())
        return wait_for_turn();
    send();
    shrink();
    return asio::async_initiate<const asio::use_awaitable_t<>, void(read_result)>(
        [this](read_handler::target_type target)
        { async_receive(read_handler(shared_from_this(), std::move(target))); },
        asio::use_awaitable);
}

inline asio::awaitable<read_result> connection::wait_for_turn()
{
    return asio::async_initiate<const asio::use_awaitable_t<>, void(read_result)>(
        [this](read_handler::target_type target)
        {
            asio::post(get_executor(), [handler = read_handler(shared_from_this(), std::move(target))]() mutable
                       { handler.resume({}); });
        },
        asio::use_awaitable);
}

inline void connection::receive(const read_result& result)
{
    throw_if(closing_, errc::connection_closed);
    buffer_.commit(result.size);
    if (result.error == asio::error::eof)
        eof_ = true;
    else if (result.error)
    {
        if (result.error == asio::error::operation_aborted)
            throw std::system_error(result.error);
        read_error_ = result.error;
        is_dry_ = false;
        if (result.error != asio::ssl::error::stream_truncated)
            lose(result.error);
        throw std::system_error(result.error);
    }
}

inline void connection::write(std::string_view data)
{
    throw_if_write_ended();
    if (data.size() >= large_write)
    {
        send();
        if (!is_blocked_ && !hand_over(data) && !lost_)
            try
            {
                sending_ = data;
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

inline void connection::schedule_send()
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
inline bool connection::hand_over(std::string_view& data)
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

/// Goes on with what is in sending_ when the stream takes more, or at the next turn.
inline void connection::block()
{
    is_blocked_ = true;
    paused_ = paused_ || queued() > high_;
    try
    {
        if (has_turn())
            return async_write(asio::buffer(sending_) + sent_);
        asio::post(get_executor(), [self = shared_from_this()] { self->written({}, 0); });
    }
    catch (const std::bad_alloc&)
    {
        is_blocked_ = false;
        lose(asio::error::no_memory);
    }
}

inline void connection::send()
{
    while (!is_blocked_ && !lost_ && !closed_ && (!sending_.empty() || !queue_.empty()))
    {
        std::string& source = sending_.empty() ? queue_ : sending_;
        std::string_view rest = std::string_view(source).substr(sent_);
        const bool all = hand_over(rest);
        if (lost_)
            return;
        sent_ = all ? 0 : source.size() - rest.size();
        if (all)
            source.clear();
        else if (sending_.empty())
            sending_.swap(queue_);
        if (!all)
            block();
    }
    if (queued() <= low_)
        paused_ = false;
}

/// Gives back the memory that an idle connection does not need.
inline void connection::shrink()
{
    buffer_.shrink();
    for (std::string* const each : {&queue_, &sending_})
        if (each->empty() && each->capacity() > read_buffer::small_size)
            *each = {};
}

inline void connection::written(const asio::error_code& error, std::size_t size)
{
    is_blocked_ = false;
    unsent_ = 0;
    sent_ += size;
    spent_ = 0;
    if (sent_ == sending_.size())
    {
        sending_.clear();
        sent_ = 0;
    }
    if (error)
        return lose(error);
    send();
    changed_->cancel();
}

inline void connection::lose(const std::error_code& reason)
{
    if (!lost_ && !closed_)
        lost_ = reason;
    queue_.clear();
    if (!is_blocked_)
    {
        sending_.clear();
        sent_ = 0;
    }
    paused_ = false;
    changed_->cancel();
}

inline bool connection::is_drained()
{
    if (paused_)
        send();
    if (paused_ && !lost_ && !closed_)
        return false;
    throw_if_lost();
    return has_turn();
}

inline asio::awaitable<void> connection::drain()
{
    while (paused_ && !lost_ && !closed_)
        co_await wait_change();
    throw_if_lost();
    if (!has_turn())
        co_await wait_for_turn();
}

inline asio::awaitable<void> connection::flush()
{
    send();
    while (queued() > 0 && !lost_ && !closed_)
        co_await wait_change();
    throw_if_lost();
}

inline void connection::write_eof()
{
    if (std::exchange(write_ended_, true))
        return;
    asio::co_spawn(
        get_executor(), [self = shared_from_this()] { return self->finish_writing(); }, asio::detached);
}

inline asio::awaitable<void> connection::finish_writing()
{
    while (queued() > 0 && !is_closing())
        co_await wait_change();
    if (is_closing())
        co_return;
    asio::error_code error;
    ending_ = true;
    co_await shutdown(asio::socket_base::shutdown_send, error);
    ending_ = false;
    if (error)
        lose(error);
    changed_->cancel();
}

inline void connection::close()
{
    if (closing_)
        return;
    if (const auto inner = inner_.lock(); inner && !inner->is_closed())
        return inner->close();
    if (changing_ || lost_)
        return abort();
    closing_ = true;
    try
    {
        asio::co_spawn(
            get_executor(), [self = shared_from_this()] { return self->finish(); }, asio::detached);
    }
    catch (...)
    {
        abort();
    }
}

inline asio::awaitable<void> connection::finish()
{
    try
    {
        const expiry deadline(*this, settings().shutdown_timeout, errc::shutdown_timeout);
        co_await flush();
        while (ending_)
            co_await wait_change();
        if (reading_)
            cancel_read();
        while (reading_)
            co_await wait_change();
        asio::error_code ignored;
        co_await shutdown(asio::socket_base::shutdown_both, ignored);
        if (ignored == errc::shutdown_timeout)
            lose(ignored);
        // A socket closed with bytes unread resets the connection, and what the peer has yet to receive is lost.
        while (!ignored && unread() > 0)
        {
            buffer_.consume(received().size());
            const read_result result = co_await wait_to_receive();
            buffer_.commit(result.size);
            ignored = result.error;
        }
    }
    catch (...)
    {
    }
    abort();
}

inline void connection::abort()
{
    if (const auto inner = inner_.lock(); inner && !inner->is_closed())
        return inner->abort(); // which aborts this
    closing_ = true;
    closed_ = true;
    queue_.clear();
    close_socket();
    changed_->cancel();
}

inline asio::awaitable<std::error_code> connection::wait_closed()
{
    while (!closed_)
    {
        if (lost_ && !closing_)
            close();
        else
            co_await wait_change();
    }
    co_return lost_;
}

inline void connection::check_epoch(unsigned epoch) const
{
    throw_if(!is_current(epoch), errc::connection_upgraded);
    throw_if(changing_ && epoch != inner_epoch, errc::upgrade_in_progress);
}

inline void connection::check_change() const
{
    throw_if(changing_, errc::upgrade_in_progress);
    throw_if(closing_, errc::connection_closed);
    throw_if(reading_, errc::operation_in_progress);
    throw_if_write_ended();
}

/// Sends what is queued, and then takes the step.
template <typename Step>
asio::awaitable<void> connection::change(std::chrono::steady_clock::duration timeout, errc late, const char* what,
                                         Step step)
{
    changing_ = true;
    try
    {
        const expiry deadline(*this, timeout, late);
        co_await flush();
        co_await step();
    }
    catch (const std::system_error& error)
    {
        changing_ = false;
        const bool is_late = lost_ == late;
        lose(error.code());
        abort();
        if (is_late)
            throw tls_error(late, what, X509_V_OK, {});
        throw;
    }
    catch (...)
    {
        changing_ = false;
        lose(asio::error::no_memory);
        abort();
        throw;
    }
    changing_ = false;
    is_dry_ = false;
    ++epoch_;
}

inline asio::awaitable<void> connection::upgrade(std::unique_ptr<upgrade_request> request)
{
    check_change();
    throw_if(is_tls(), errc::already_tls);
    throw_if(!request->ssl, errc::not_upgradeable);
    const auto shake_hands = [this, &request]() -> asio::awaitable<void>
    {
        if (eof_)
            throw tls_error(asio::error::eof, "TLS upgrade", X509_V_OK, {});
        std::optional<handshake_limit::place> place;
        if (handshakes_)
        {
            place.emplace(handshakes_, get_executor(), changed_);
            while (!place->try_enter())
            {
                co_await wait_change();
                throw_if_lost();
            }
        }
        request->received = received();
        discard(request->received.size());
        co_await start_tls(std::move(request));
    };
    co_await change(request->settings.handshake_timeout, errc::handshake_timeout, "TLS upgrade", shake_hands);
}

inline asio::awaitable<void> connection::downgrade()
{
    check_change();
    throw_if(!is_tls(), errc::not_tls);
    const auto close_tls = [this]() -> asio::awaitable<void>
    {
        const std::string plain = co_await stop_tls();
        put_back(plain);
        eof_ = false;
    };
    co_await change(settings().shutdown_timeout, errc::shutdown_timeout, "end of TLS", close_tls);
}

inline asio::awaitable<void> connection::upgrade_inner(std::shared_ptr<connection> inner,
                                                       std::unique_ptr<upgrade_request> request)
{
    const auto begin = [this, &inner, &request]() -> asio::awaitable<void>
    {
        inner->put_back(received());
        discard(received().size());
        inner->set_write_buffer_limits(high_, low_);
        inner_ = inner;
        co_await inner->upgrade(std::move(request));
    };
    co_await change(request->settings.handshake_timeout, errc::handshake_timeout, "TLS upgrade", begin);
}

} // namespace upgradeable_streams::detail

#endif
