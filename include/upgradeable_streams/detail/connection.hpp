/// @file
/// What a reader and its writer share: both sides of a connection, its end, and its changes to TLS and back.
#ifndef UPGRADEABLE_STREAMS_DETAIL_CONNECTION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_CONNECTION_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/connection_settings.hpp>
#include <upgradeable_streams/detail/deadline.hpp>
#include <upgradeable_streams/detail/erased_stream.hpp>
#include <upgradeable_streams/detail/handshake_limit.hpp>
#include <upgradeable_streams/detail/read_side.hpp>
#include <upgradeable_streams/detail/tls_settings.hpp>
#include <upgradeable_streams/detail/upgrade_error.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/socket_address.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/error.hpp>
#include <asio/socket_base.hpp>
#include <asio/steady_timer.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace upgradeable_streams::detail
{

/// A connection, whatever its kind of socket.
///
/// Concurrency: used on one executor, a strand where the io_context has several threads. Lifetime: an operation under
/// way holds a shared_ptr.
class connection : public read_side
{
public:
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

    /// Whether nothing more will be written through a handle of this epoch.
    bool is_closing(unsigned epoch) const { return closing_ || lost_ || !is_current(epoch) || is_changing(epoch); }

    /// Marks a read as pending for as long as it lives.
    class read_guard
    {
    public:
        read_guard(connection& c, unsigned epoch) : connection_(c)
        {
            c.check_epoch(epoch);
            throw_if(c.reading_, errc::operation_in_progress);
            throw_if(c.closing_, errc::connection_closed);
            if (c.time_limit_ && epoch != inner_epoch)
                c.time_limit_->begin_read();
            c.reading_ = true;
        }

        ~read_guard()
        {
            if (connection_.time_limit_)
                connection_.time_limit_->end_read();
            connection_.reading_ = connection_.read_cancelled_ = false;
            if (connection_.closing_)
                connection_.changed_->cancel();
        }

        read_guard(const read_guard&) = delete;
        read_guard& operator=(const read_guard&) = delete;

    private:
        connection& connection_;
    };

    /// How long a read or a drain may take, from the next on.
    void set_operation_timeout(const std::optional<std::chrono::steady_clock::duration>& timeout)
    {
        if (timeout && !time_limit_)
            time_limit_ = std::make_shared<time_limit>(changed_);
        if (time_limit_)
            time_limit_->set(timeout);
    }

    /// Has a pending read end with asio::error::operation_aborted, at once or where it would wait next.
    void cancel_read()
    {
        read_cancelled_ = reading_;
        cancel();
    }

    void check_write(unsigned epoch) const
    {
        check_epoch(epoch);
        throw_if(closing_, errc::connection_closed);
        throw_if_lost();
    }

    void write(std::string_view data)
    {
        throw_if_write_ended();
        write_side::write(data);
    }

    void write_eof();

    /// Sends `farewell` before, unless TLS begins or ends just then.
    void close(std::string_view farewell = {});
    void abort();

    /// Waits for the end; the result is the reason of a loss.
    asio::awaitable<std::error_code> wait_closed();

    /// Closes and waits for the end. Without memory the connection is left to be aborted.
    asio::awaitable<void> end();

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

    connection_settings settings_inside() const
    {
        return {settings(), limit_, time_limit_ ? time_limit_->each() : std::nullopt, handshakes_, {}};
    }

    /// Upgrades the inner connection, as `upgrade` does this one.
    asio::awaitable<void> upgrade_inner(std::shared_ptr<connection> inner, std::unique_ptr<upgrade_request> request);

    void end_inner()
    {
        inner_.reset();
        close();
    }

protected:
    connection(const asio::any_io_executor& executor, const connection_settings& settings)
        : read_side(executor, settings.strand), limit_(settings.limit), handshakes_(settings.handshakes)
    {
        set_operation_timeout(settings.operation_timeout);
    }

    std::optional<socket_address> peername_;
    std::optional<socket_address> sockname_;

private:
    /// Ends the connection with `reason` when time is up, unless destroyed before.
    class expiry;

    std::shared_ptr<connection> self() { return std::static_pointer_cast<connection>(shared_from_this()); }

    void throw_if_write_ended() const
    {
        if (write_ended_)
            throw std::system_error(std::make_error_code(std::errc::broken_pipe), "nothing is sent after write_eof");
    }

    asio::awaitable<void> finish_writing();
    bool begin_to_close(std::string_view farewell = {});
    asio::awaitable<void> finish();
    void check_epoch(unsigned epoch) const;
    bool is_changing(unsigned epoch) const { return changing_ && epoch != inner_epoch; }
    void check_change() const;

    template <typename Step>
    asio::awaitable<void> change(std::chrono::steady_clock::duration timeout, errc late, const tls_settings* begun,
                                 Step step, std::optional<handshake_limit::place>* place = nullptr);

    std::atomic<unsigned> epoch_ = 0; ///< Counts the changes; handles of an earlier one are void. Read on any thread.
    bool changing_ = false;           ///< To TLS or back.
    std::weak_ptr<connection> inner_;

    std::size_t limit_;
    std::shared_ptr<handshake_limit> handshakes_;
    bool reading_ = false;
    bool write_ended_ = false;
    bool ending_ = false; ///< While write_eof tells the peer.
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

class connection::expiry
{
public:
    /// With a `place`, which outlives this, time is up too when a handshake that runs there outstays.
    expiry(connection& c, std::chrono::steady_clock::duration timeout, errc reason,
           std::optional<handshake_limit::place>* place = nullptr)
        : connection_(c), reason_(reason), place_(place), looks_left_(place ? looks : 1),
          interval_(timeout / looks_left_)
    {
        look_later();
    }

    expiry(const expiry&) = delete;
    expiry& operator=(const expiry&) = delete;

private:
    static constexpr int looks = 12; ///< At a place, in the whole of the time.

    void look_later()
    {
        next_.emplace(connection_.get_executor(), interval_, [this] { look(); });
    }

    void look()
    {
        try
        {
            if (--looks_left_ > 0 && !(*place_ && (*place_)->outstays()))
                return look_later();
        }
        catch (const std::bad_alloc&) // there is no later look
        {
        }
        connection_.lose(reason_);
        connection_.abort();
    }

    connection& connection_;
    const errc reason_;
    std::optional<handshake_limit::place>* const place_;
    int looks_left_;
    const std::chrono::steady_clock::duration interval_;
    std::optional<deadline> next_;
};

UPGRADEABLE_STREAMS_DECL void connection::write_eof()
{
    if (std::exchange(write_ended_, true))
        return;
    asio::co_spawn(
        get_executor(), [self = self()] { return self->finish_writing(); },
        [self = self()](const std::exception_ptr& error)
        {
            self->ending_ = false;
            if (error)
                self->lose(code_of(error));
            self->changed_->cancel();
        });
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> connection::finish_writing()
{
    co_await flush();
    if (closing_ || lost_)
        co_return;
    asio::error_code error;
    ending_ = true;
    co_await shutdown(asio::socket_base::shutdown_send, error);
    if (error)
        lose(error);
}

/// Closes at once where nothing is left to do. Returns: whether `finish` is to follow.
UPGRADEABLE_STREAMS_DECL bool connection::begin_to_close(std::string_view farewell)
{
    if (closing_)
        return false;
    if (const auto inner = inner_.lock(); inner && !inner->is_closed())
    {
        inner->close(farewell);
        return false;
    }
    try
    {
        if (!changing_ && !write_ended_)
            write_side::write(farewell);
    }
    catch (const std::bad_alloc&) // it is closed without a word
    {
    }
    if (!changing_ && !lost_)
        try
        {
            closing_ = true;
            send();
            if (!lost_ && (reading_ || ending_ || queued() > 0 || !end_at_once()))
                return true;
        }
        catch (...)
        {
            lose(code_of(std::current_exception()));
        }
    abort();
    return false;
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> connection::end()
{
    if (begin_to_close())
        co_await finish();
    co_await wait_closed();
}

UPGRADEABLE_STREAMS_DECL void connection::close(std::string_view farewell)
{
    if (!begin_to_close(farewell))
        return;
    try
    {
        asio::co_spawn(
            get_executor(), [self = self()] { return self->finish(); }, asio::detached);
    }
    catch (...)
    {
        abort();
    }
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> connection::finish()
{
    try
    {
        const expiry within(*this, settings().shutdown_timeout, errc::shutdown_timeout);
        while (ending_ && !closed_)
            co_await wait_change();
        co_await flush();
        if (reading_)
            cancel_read();
        while (reading_)
            co_await wait_change();
        asio::error_code ignored;
        co_await shutdown(asio::socket_base::shutdown_both, ignored);
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

UPGRADEABLE_STREAMS_DECL void connection::abort()
{
    if (const auto inner = inner_.lock(); inner && !inner->is_closed())
        return inner->abort(); // which aborts this
    closing_ = true;
    closed_ = true;
    queue_.drop(true);
    if (time_limit_)
        time_limit_->stop();
    close_socket();
    changed_->cancel();
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<std::error_code> connection::wait_closed()
{
    while (!closed_)
    {
        if (lost_ && !closing_)
            close(); // an inner connection first, which takes a while
        if (!closed_)
            co_await wait_change();
    }
    co_return lost_;
}

UPGRADEABLE_STREAMS_DECL void connection::check_epoch(unsigned epoch) const
{
    throw_if(!is_current(epoch), errc::connection_upgraded);
    throw_if(is_changing(epoch), errc::upgrade_in_progress);
}

UPGRADEABLE_STREAMS_DECL void connection::check_change() const
{
    throw_if(changing_, errc::upgrade_in_progress);
    throw_if(closing_, errc::connection_closed);
    if (reading_)
        throw std::system_error(errc::operation_in_progress, "TLS begins and ends while no read is pending");
    throw_if_write_ended();
}

/// Sends what is queued, and then takes the step: to TLS with what is `begun`, or back to plain text.
template <typename Step>
asio::awaitable<void> connection::change(std::chrono::steady_clock::duration timeout, errc late,
                                         const tls_settings* begun, Step step,
                                         std::optional<handshake_limit::place>* place)
{
    std::string what;
    changing_ = true;
    try
    {
        what = begun ? name_of_upgrade(*begun) : "end of TLS";
        const expiry within(*this, timeout, late, place);
        co_await flush();
        co_await step();
    }
    catch (const std::system_error& error)
    {
        changing_ = false;
        const bool is_late = lost_ == late;
        lose(error.code());
        abort();
        if (is_late && begun)
            throw tls_error(late, what, X509_V_OK, {});
        if (is_late)
            throw std::system_error(late, what);
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

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> connection::upgrade(std::unique_ptr<upgrade_request> request)
{
    check_change();
    throw_if(is_tls(), errc::already_tls);
    throw_if(!request->ssl, errc::not_upgradeable);
    std::optional<handshake_limit::place> place;
    const auto shake_hands = [this, &request, &place]() -> asio::awaitable<void>
    {
        if (eof_)
            throw tls_error(asio::error::eof,
                            name_of_upgrade(request->settings) + ", before which the peer closed the connection",
                            X509_V_OK, {});
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
        drop_line(false);
        co_await start_tls(std::move(request));
    };
    co_await change(request->settings.handshake_timeout, errc::handshake_timeout, &request->settings, shake_hands,
                    handshakes_ ? &place : nullptr);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> connection::downgrade()
{
    check_change();
    throw_if(!is_tls(), errc::not_tls);
    const auto close_tls = [this]() -> asio::awaitable<void>
    {
        const std::string plain = co_await stop_tls();
        put_back(plain);
        eof_ = false;
    };
    co_await change(settings().shutdown_timeout, errc::shutdown_timeout, nullptr, close_tls);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> connection::upgrade_inner(std::shared_ptr<connection> inner,
                                                                         std::unique_ptr<upgrade_request> request)
{
    const auto begin = [this, &inner, &request]() -> asio::awaitable<void>
    {
        inner->put_back(received());
        discard(received().size());
        drop_line(false);
        inner->set_write_buffer_limits(high_, low_);
        inner_ = inner;
        co_await inner->upgrade(std::move(request));
    };
    co_await change(request->settings.handshake_timeout, errc::handshake_timeout, &request->settings, begin);
}

#endif

} // namespace upgradeable_streams::detail

#endif
