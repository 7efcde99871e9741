/// @file
/// What a reader and its writer share: stream, read buffer, write queue, epoch.
#ifndef UPGRADEABLE_STREAMS_DETAIL_CONNECTION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_CONNECTION_HPP

#include <upgradeable_streams/detail/handshake_limit.hpp>
#include <upgradeable_streams/detail/stream_state.hpp>
#include <upgradeable_streams/detail/wait.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/socket_address.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/associator.hpp>
#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
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
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace upgradeable_streams::detail
{

struct read_result
{
    asio::error_code error;
    std::size_t size;
};

/// Resumes the coroutine that awaits a read_result, without an exception for an error.
struct read_handler
{
    using target_type = asio::async_result<asio::use_awaitable_t<>, void(read_result)>::handler_type;

    void operator()(const asio::error_code& error, std::size_t size) { std::move(target)(read_result{error, size}); }

    target_type target;
};

inline void throw_if(bool condition, errc error)
{
    if (condition)
        throw std::system_error(error);
}

/// Options of a connection, owned.
struct connection_settings
{
    tls_settings tls;
    std::size_t limit = 64 * 1024;
    std::shared_ptr<handshake_limit> handshakes;
};

/// Checks and owns what connection_options and server_options have in common.
template <typename Options>
connection_settings make_settings(const Options& options, tls_role role, std::string_view server_hostname)
{
    if (options.upgradeable && !options.ssl)
        throw std::invalid_argument("upgradeable needs ssl: the context to upgrade with");
    if (options.limit == 0)
        throw std::invalid_argument("limit must be greater than zero");
    connection_settings made;
    made.limit = options.limit;
    made.tls.apply({.ssl = options.ssl,
                    .role = role,
                    .handshake_timeout = options.ssl_handshake_timeout,
                    .shutdown_timeout = options.ssl_shutdown_timeout,
                    .suppress_ragged_eofs = options.suppress_ragged_eofs});
    made.tls.server_hostname = server_hostname;
    if (options.ssl)
        made.tls.make_ssl();
    return made;
}

/// A connection whose kind of socket has been forgotten.
///
/// Concurrency: used on one executor, a strand where the io_context has several threads. Lifetime: an operation under
/// way holds a shared_ptr.
class connection : public std::enable_shared_from_this<connection>
{
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
    std::size_t limit() const { return limit_; }
    unsigned epoch() const { return epoch_; }
    bool is_closing() const { return closing_ || lost_; }
    bool is_closed() const { return closed_; }

    // Reading: the buffer grows at its end only while `receive` runs.

    /// Marks a read as pending for as long as it lives.
    class read_guard
    {
    public:
        read_guard(connection& c, unsigned epoch) : connection_(c)
        {
            throw_if(epoch != c.epoch_, errc::connection_upgraded);
            throw_if(c.upgrading_, errc::upgrade_in_progress);
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

    std::string_view received() const { return {buffer_.data() + begin_, end_ - begin_}; }
    bool at_eof() const { return eof_ && begin_ == end_; }
    bool eof() const { return eof_; }

    std::string take(std::size_t size)
    {
        std::string taken(received().substr(0, size));
        discard(taken.size());
        return taken;
    }

    void discard(std::size_t size)
    {
        begin_ += size;
        if (begin_ < end_)
            return;
        begin_ = end_ = 0;
        if (buffer_.size() > largest_receive)
            buffer_ = {};
    }

    /// Adds at least one byte to the buffer or sets eof; throws the first error of reading again each time.
    asio::awaitable<void> receive();

    // Writing: what is queued is sent, without a further call, once control is back at the event loop.

    void check_write(unsigned epoch) const
    {
        throw_if(epoch != epoch_, errc::connection_upgraded);
        throw_if(upgrading_, errc::upgrade_in_progress);
        throw_if(closing_, errc::connection_closed);
        throw_if_lost();
    }

    void throw_if_write_ended() const
    {
        if (write_ended_)
            throw std::system_error(std::make_error_code(std::errc::broken_pipe), "write after write_eof");
    }

    void write(std::string_view data)
    {
        throw_if_write_ended();
        if (data.empty())
            return;
        queue_.append(data);
        if (queued() > high_)
            paused_ = true;
        schedule_send();
    }

    void set_write_buffer_limits(std::size_t high, std::size_t low)
    {
        high_ = high;
        low_ = low;
        paused_ = queued() > high_ || (paused_ && queued() > low_);
        changed_->cancel();
    }

    asio::awaitable<void> drain();
    void write_eof();
    void close();
    void abort();

    /// Waits for the end; the result is the reason of a loss.
    asio::awaitable<std::error_code> wait_closed();

    /// Upgrades to TLS and begins a new epoch. A failure closes the connection.
    asio::awaitable<void> upgrade(std::unique_ptr<upgrade_request> request);

protected:
    connection(const asio::any_io_executor& executor, const connection_settings& settings)
        : executor_(executor), changed_(std::make_shared<asio::steady_timer>(executor, asio::steady_timer::time_point::max())),
          limit_(settings.limit), handshakes_(settings.handshakes)
    {
    }

    virtual void async_read_some(asio::mutable_buffer buffer, read_handler handler) = 0;
    virtual void async_write(asio::const_buffer buffer) = 0; ///< Calls `written` in the end.
    virtual asio::awaitable<void> start_tls(std::unique_ptr<upgrade_request> request) = 0;
    virtual asio::awaitable<void> shutdown(asio::socket_base::shutdown_type what, asio::error_code& error) = 0;
    virtual std::size_t unread() = 0; ///< Bytes that the operating system holds.
    virtual void cancel_read() = 0;
    virtual void allow_reads() = 0;
    virtual void close_socket() = 0;

    void written(const asio::error_code& error);

    std::optional<socket_address> peername_;
    std::optional<socket_address> sockname_;

private:
    /// Ends the connection with `reason` when time is up, unless destroyed before.
    class expiry;

    static constexpr std::size_t smallest_receive = 4 * 1024;
    static constexpr std::size_t largest_receive = 64 * 1024;

    void throw_if_lost() const
    {
        if (lost_)
            throw std::system_error(lost_);
        throw_if(closed_, errc::connection_closed);
    }

    asio::awaitable<read_result> read_some(asio::mutable_buffer buffer);
    std::size_t queued() const { return queue_.size() + sending_.size(); }
    void schedule_send();
    void send();
    void lose(const std::error_code& reason);
    asio::awaitable<void> wait_change() { return wait(*changed_); }
    asio::awaitable<void> flush();
    asio::awaitable<void> finish_writing();
    asio::awaitable<void> finish();

    const asio::any_io_executor executor_;
    std::shared_ptr<asio::steady_timer> changed_; ///< Cancelled at each change that somebody may wait for.
    unsigned epoch_ = 0;                          ///< Counts the upgrades; handles of an earlier one are void.
    bool upgrading_ = false;
    bool closing_ = false;
    bool closed_ = false;
    std::error_code lost_; ///< Why writing is no longer possible.

    std::size_t limit_;
    std::shared_ptr<handshake_limit> handshakes_;
    std::vector<char> buffer_; ///< [begin_, end_) is received and not yet read.
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
    std::size_t next_receive_ = smallest_receive;
    bool reading_ = false;
    bool eof_ = false;
    std::error_code read_error_;

    std::string queue_;
    std::string sending_; ///< Not empty exactly while a write is under way.
    bool send_scheduled_ = false;
    bool paused_ = false; ///< Above the high mark, and not yet at the low one again.
    bool write_ended_ = false;
    bool ending_ = false; ///< While write_eof tells the peer.
    std::size_t high_ = 64 * 1024;
    std::size_t low_ = 16 * 1024;
};

/// What a reader and its writer hold together; when the last handle goes, the connection is closed.
class handle
{
public:
    handle(std::shared_ptr<detail::connection> c, unsigned epoch) : connection_(std::move(c)), epoch_(epoch) {}

    ~handle()
    {
        if (epoch_ != connection_->epoch() || connection_->is_closed())
            return;
        try
        {
            asio::post(connection_->get_executor(),
                       [c = connection_, epoch = epoch_]
                       {
                           if (epoch == c->epoch())
                               c->close();
                       });
        }
        catch (...)
        {
            connection_->abort();
        }
    }

    handle(const handle&) = delete;
    handle& operator=(const handle&) = delete;

    detail::connection& operator*() const { return *connection_; }
    const std::shared_ptr<detail::connection>& connection() const { return connection_; }
    unsigned epoch() const { return epoch_; }
    void check_epoch() const { throw_if(epoch_ != connection_->epoch(), errc::connection_upgraded); }

private:
    std::shared_ptr<detail::connection> connection_;
    unsigned epoch_;
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

inline asio::awaitable<read_result> connection::read_some(asio::mutable_buffer buffer)
{
    return asio::async_initiate<const asio::use_awaitable_t<>, void(read_result)>(
        [this, buffer](read_handler::target_type target) { async_read_some(buffer, read_handler{std::move(target)}); },
        asio::use_awaitable);
}

inline asio::awaitable<void> connection::receive()
{
    if (read_error_)
        throw std::system_error(read_error_);
    if (eof_)
        co_return;
    if (buffer_.size() - end_ < next_receive_ && begin_ > 0)
    {
        std::copy(buffer_.begin() + std::ptrdiff_t(begin_), buffer_.begin() + std::ptrdiff_t(end_), buffer_.begin());
        end_ -= std::exchange(begin_, 0);
    }
    if (buffer_.size() - end_ < next_receive_)
        buffer_.resize(end_ + next_receive_);

    const auto [error, size] = co_await read_some(asio::buffer(buffer_.data() + end_, next_receive_));
    throw_if(closing_, errc::connection_closed);
    if (error == asio::error::eof)
        eof_ = true;
    else if (error)
    {
        if (error == asio::error::operation_aborted)
            throw std::system_error(error);
        read_error_ = error;
        if (error != asio::ssl::error::stream_truncated)
            lose(error);
        throw std::system_error(error);
    }
    end_ += size;
    next_receive_ = size == next_receive_ ? std::min(2 * size, largest_receive) : next_receive_;
}

inline void connection::schedule_send()
{
    if (send_scheduled_ || !sending_.empty())
        return;
    asio::post(get_executor(),
               [self = shared_from_this()]
               {
                   self->send_scheduled_ = false;
                   self->send();
               });
    send_scheduled_ = true;
}

inline void connection::send()
{
    if (queue_.empty() || !sending_.empty() || closed_)
        return;
    sending_.swap(queue_);
    async_write(asio::buffer(sending_));
}

inline void connection::written(const asio::error_code& error)
{
    sending_.clear();
    if (error)
        return lose(error);
    send();
    if (queued() <= low_)
        paused_ = false;
    changed_->cancel();
}

inline void connection::lose(const std::error_code& reason)
{
    if (!lost_ && !closed_)
        lost_ = reason;
    queue_.clear();
    paused_ = false;
    changed_->cancel();
}

inline asio::awaitable<void> connection::drain()
{
    while (paused_ && !lost_ && !closed_)
        co_await wait_change();
    throw_if_lost();
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
    if (upgrading_ || lost_)
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
        allow_reads();
        asio::error_code ignored;
        co_await shutdown(asio::socket_base::shutdown_both, ignored);
        if (ignored == errc::shutdown_timeout)
            lose(ignored);
        // A socket closed with bytes unread resets the connection, and what the peer has yet to receive is lost.
        while (!ignored && unread() > 0)
        {
            buffer_.resize(largest_receive);
            const auto [error, size] = co_await read_some(asio::buffer(buffer_));
            ignored = error;
        }
    }
    catch (...)
    {
    }
    abort();
}

inline void connection::abort()
{
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

inline asio::awaitable<void> connection::upgrade(std::unique_ptr<upgrade_request> request)
{
    throw_if(upgrading_, errc::upgrade_in_progress);
    throw_if(closing_, errc::connection_closed);
    throw_if(is_tls(), errc::already_tls);
    throw_if(!request->ssl, errc::not_upgradeable);
    throw_if(reading_, errc::operation_in_progress);
    throw_if_write_ended();
    upgrading_ = true;
    try
    {
        const expiry deadline(*this, request->settings.handshake_timeout, errc::handshake_timeout);
        co_await flush();
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
    }
    catch (const std::system_error& error)
    {
        upgrading_ = false;
        const bool timed_out = lost_ == errc::handshake_timeout;
        lose(error.code());
        abort();
        if (timed_out)
            throw tls_error(errc::handshake_timeout, "TLS upgrade", X509_V_OK, {});
        throw;
    }
    catch (...)
    {
        upgrading_ = false;
        lose(asio::error::no_memory);
        abort();
        throw;
    }
    upgrading_ = false;
    ++epoch_;
}

} // namespace upgradeable_streams::detail

/// The executor, allocator and cancellation slot of a read_handler are those of its target.
template <template <typename, typename> class Associator, typename DefaultCandidate>
struct asio::associator<Associator, upgradeable_streams::detail::read_handler, DefaultCandidate>
    : Associator<upgradeable_streams::detail::read_handler::target_type, DefaultCandidate>
{
    using target = Associator<upgradeable_streams::detail::read_handler::target_type, DefaultCandidate>;

    static typename target::type get(const upgradeable_streams::detail::read_handler& handler,
                                     const DefaultCandidate& candidate = DefaultCandidate()) noexcept
    {
        return target::get(handler.target, candidate);
    }
};

#endif
