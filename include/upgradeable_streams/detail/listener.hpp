/// @file
/// The working half of a server: accept loops, and the connections that are open.
#ifndef UPGRADEABLE_STREAMS_DETAIL_LISTENER_HPP
#define UPGRADEABLE_STREAMS_DETAIL_LISTENER_HPP

#include <upgradeable_streams/detail/bound_sockets.hpp>
#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/detail/first_bytes.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/stream_connection.hpp>
#include <upgradeable_streams/detail/tls_settings.hpp>
#include <upgradeable_streams/detail/wait.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/socket_address.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/bind_executor.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/dispatch.hpp>
#include <asio/generic/stream_protocol.hpp>
#include <asio/multiple_exceptions.hpp>
#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <asio/use_awaitable.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <iostream>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace upgradeable_streams::detail
{

/// Options of a server, owned.
struct listener_settings
{
    std::function<asio::awaitable<void>(stream_reader, stream_writer)> handler;
    std::function<void(std::exception_ptr, const socket_address&)> error_handler;
    connection_settings connection;
    bool tls_at_once;
    std::optional<std::chrono::steady_clock::duration> detect_timeout; ///< Given when TLS is to be detected.
    std::function<bool(const socket_address&)> is_proxy;
    listening_options listening;
    bool keep_alive;
    std::size_t max_connections;
};

/// Concurrency: accept loops and waiters run on a strand; what other threads look at is behind a mutex.
class listener : public std::enable_shared_from_this<listener>
{
public:
    listener(asio::any_io_executor executor, listener_settings settings)
        : executor_(executor), strand_(asio::make_strand(executor)), settings_(std::move(settings)),
          bound_(strand_, settings_.listening), changed_(strand_, asio::steady_timer::time_point::max())
    {
    }

    /// To be bound before anything else.
    bound_sockets& bound() { return bound_; }

    void start_serving();
    void close();
    bool is_serving() const;
    std::vector<socket_address> sockets() const;
    void set_ssl_context(asio::ssl::context& ssl);
    void for_each_connection(void (connection::*action)());

    /// Waits until the server is closed, and its connections too.
    asio::awaitable<void> wait(bool connections_too);

private:
    using any_socket = asio::generic::stream_protocol::socket;

    struct client
    {
        std::weak_ptr<connection> open;
        bool closed_by_server = false; ///< What its handler then throws is no error.
    };

    /// A place among max_connections.
    class place
    {
    public:
        /// Throws errc::connection_closed when the server is closed.
        explicit place(std::shared_ptr<listener> l) : listener_(std::move(l))
        {
            const std::lock_guard lock(listener_->mutex_);
            throw_if(listener_->closed_, errc::connection_closed);
            self_ = listener_->clients_.emplace(listener_->clients_.end());
        }

        place(place&& other) noexcept : listener_(std::move(other.listener_)), self_(other.self_) {}
        place& operator=(place&&) = delete;

        ~place()
        {
            if (!listener_)
                return;
            {
                const std::lock_guard lock(listener_->mutex_);
                listener_->clients_.erase(self_);
            }
            try
            {
                listener_->notify();
            }
            catch (...)
            {
            }
        }

        /// Throws errc::connection_closed when the server has closed its clients.
        void set(const std::shared_ptr<connection>& c) const
        {
            const std::lock_guard lock(listener_->mutex_);
            throw_if(self_->closed_by_server, errc::connection_closed);
            self_->open = c;
        }

        bool closed_by_server() const
        {
            const std::lock_guard lock(listener_->mutex_);
            return self_->closed_by_server;
        }

    private:
        std::shared_ptr<listener> listener_;
        std::list<client>::iterator self_;
    };

    static constexpr std::chrono::seconds accept_retry_delay{1};

    void notify();
    bool is_closed() const;
    bool has_room() const;
    connection_settings settings_of_connection() const;
    void report(std::exception_ptr error, const socket_address& peer) const noexcept;
    static void write_to_log(const socket_address& peer, const std::string& what);

    bool start_session(any_socket socket);
    static asio::awaitable<void> accept_loop(std::shared_ptr<listener> self, bound_socket& bound);
    std::shared_ptr<connection> adopt(any_socket socket, const place& p);
    static asio::awaitable<void> session(std::shared_ptr<listener> self, std::shared_ptr<connection> c, place p);

    asio::any_io_executor executor_;
    asio::any_io_executor strand_;
    const listener_settings settings_;
    bound_sockets bound_;
    asio::steady_timer changed_;

    mutable std::mutex mutex_;
    std::shared_ptr<SSL_CTX> swapped_context_;
    std::list<client> clients_;
    bool serving_ = false;
    bool closed_ = false;
};

inline void listener::start_serving()
{
    {
        const std::lock_guard lock(mutex_);
        throw_if(closed_, errc::connection_closed);
        if (serving_)
            return;
        bound_.listen();
        serving_ = true;
    }
    for (bound_socket& each : bound_)
        asio::co_spawn(strand_, accept_loop(shared_from_this(), each), asio::detached);
}

inline void listener::close()
{
    {
        const std::lock_guard lock(mutex_);
        if (std::exchange(closed_, true))
            return;
        serving_ = false;
    }
    asio::dispatch(strand_,
                   [self = shared_from_this()]
                   {
                       self->bound_.close();
                       self->changed_.cancel();
                   });
}

inline bool listener::is_serving() const
{
    const std::lock_guard lock(mutex_);
    return serving_;
}

inline std::vector<socket_address> listener::sockets() const
{
    const std::lock_guard lock(mutex_);
    return closed_ ? std::vector<socket_address>() : bound_.addresses();
}

inline void listener::set_ssl_context(asio::ssl::context& ssl)
{
    throw_if(!settings_.connection.tls.context, errc::not_upgradeable);
    tls_settings changed = settings_.connection.tls;
    changed.context = share(ssl);
    changed.make_ssl();
    const std::lock_guard lock(mutex_);
    swapped_context_.swap(changed.context);
}

inline void listener::for_each_connection(void (connection::*action)())
{
    std::vector<std::shared_ptr<connection>> open;
    {
        const std::lock_guard lock(mutex_);
        for (client& each : clients_)
        {
            each.closed_by_server = true;
            if (auto c = each.open.lock())
                open.push_back(std::move(c));
        }
    }
    for (auto& c : open)
    {
        const auto executor = c->get_executor();
        asio::post(executor, [c = std::move(c), action] { ((*c).*action)(); });
    }
}

/// Called when a connection has gone.
inline void listener::notify()
{
    asio::post(strand_,
               [self = shared_from_this()]
               {
                   self->bound_.wake();
                   self->changed_.cancel();
               });
}

inline bool listener::is_closed() const
{
    const std::lock_guard lock(mutex_);
    return closed_;
}

inline bool listener::has_room() const
{
    const std::lock_guard lock(mutex_);
    return clients_.size() < settings_.max_connections;
}

inline connection_settings listener::settings_of_connection() const
{
    connection_settings made = settings_.connection;
    const std::lock_guard lock(mutex_);
    if (swapped_context_)
        made.tls.context = swapped_context_;
    return made;
}

/// What an exception says, of several operations' the first.
inline std::string message_of(const std::exception_ptr& error)
try
{
    std::rethrow_exception(error);
}
catch (const asio::multiple_exceptions& several)
{
    return message_of(several.first_exception());
}
catch (const std::exception& e)
{
    return e.what();
}
catch (...)
{
    return "unknown exception";
}

inline void listener::report(std::exception_ptr error, const socket_address& peer) const noexcept
try
{
    if (settings_.error_handler)
        settings_.error_handler(error, peer);
    else
        write_to_log(peer, message_of(error));
}
catch (...)
{
}

inline void listener::write_to_log(const socket_address& peer, const std::string& what)
{
    const std::string whose = peer == socket_address() ? "" : "connection from " + peer.to_string() + ": ";
    std::clog << "upgradeable_streams: " + whose + what + "\n";
}

inline asio::awaitable<void> listener::wait(bool connections_too)
{
    const auto on_strand = [](std::shared_ptr<listener> self, bool connections_too_) -> asio::awaitable<void>
    {
        const auto done = [&]
        {
            const std::lock_guard lock(self->mutex_);
            return self->closed_ && (!connections_too_ || self->clients_.empty());
        };
        while (!done())
            co_await detail::wait(self->changed_);
    };
    return asio::co_spawn(strand_, on_strand(shared_from_this(), connections_too), asio::use_awaitable);
}

inline asio::awaitable<void> listener::accept_loop(std::shared_ptr<listener> self, bound_socket& bound)
{
    std::optional<any_socket> accepted;
    while (!self->is_closed())
    try
    {
        asio::error_code error;
        if (!self->has_room())
        {
            bound.pause.expires_at(asio::steady_timer::time_point::max());
            co_await bound.pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
            continue;
        }
        if (!accepted)
        {
            accepted.emplace(co_await bound.acceptor.async_accept(
                self->executor_, asio::redirect_error(asio::use_awaitable, error)));
            if (!error)
                continue;
            accepted.reset();
        }
        else if (!self->start_session(*std::exchange(accepted, std::nullopt)))
            error = asio::error::no_memory;
        if (error && error != asio::error::operation_aborted && !tells_peer_left(error))
        {
            self->report(std::make_exception_ptr(std::system_error(error, "accept")), {});
            if (self->is_closed())
                co_return;
            bound.pause.expires_after(accept_retry_delay);
            co_await bound.pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
        }
    }
    catch (const std::bad_alloc&)
    {
        accepted.reset();
    }
}

inline bool listener::start_session(any_socket socket)
try
{
    place own(shared_from_this());
    auto c = adopt(std::move(socket), own);
    const auto executor = c->get_executor();
    asio::co_spawn(executor, session(shared_from_this(), std::move(c), std::move(own)), asio::detached);
    return true;
}
catch (const std::bad_alloc&)
{
    return false;
}
catch (const std::system_error&) // the server is closed
{
    return true;
}

inline std::shared_ptr<connection> listener::adopt(any_socket socket, const place& p)
{
    asio::error_code ignored;
    if (settings_.keep_alive)
        socket.set_option(asio::socket_base::keep_alive(true), ignored);
    connection_settings settings = settings_of_connection();
    settings.strand = std::make_shared<strand>(executor_);
    auto c = std::make_shared<stream_connection<any_socket>>(std::move(socket), settings);
    p.set(c);
    return c;
}

inline asio::awaitable<void> listener::session(std::shared_ptr<listener> self, std::shared_ptr<connection> c, place p)
{
    std::exception_ptr failure;
    try
    {
        const listener_settings& given = self->settings_;
        bool is_tls = given.tls_at_once;
        if (given.is_proxy && given.is_proxy(c->peername().value_or(socket_address())))
            co_await read_proxy_header(*c, c->settings().handshake_timeout);
        if (given.detect_timeout)
            is_tls = co_await detect_tls(*c, *given.detect_timeout);
        if (is_tls)
            co_await c->upgrade(std::make_unique<upgrade_request>(c->settings(), tls_options{}, true));
        c->set_operation_timeout(given.connection.operation_timeout);
        auto [reader, writer] = make_handles(c, c->epoch());
        co_await given.handler(std::move(reader), std::move(writer));
    }
    catch (...)
    {
        failure = std::current_exception();
    }
    if (!c->runs_here()) // the handler has ended on an executor of its own
    {
        auto back = asio::bind_executor(c->get_executor(), asio::use_awaitable);
        co_await asio::post(std::move(back));
    }
    if (failure && !p.closed_by_server())
        self->report(failure, c->peername().value_or(socket_address()));
    try
    {
        co_await c->end();
    }
    catch (const std::bad_alloc&)
    {
        c->abort();
    }
}

} // namespace upgradeable_streams::detail

#endif
