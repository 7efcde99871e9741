/// @file
/// The working half of a server: accept loops, and the connections that are open.
#ifndef UPGRADEABLE_STREAMS_DETAIL_LISTENER_HPP
#define UPGRADEABLE_STREAMS_DETAIL_LISTENER_HPP

#include <upgradeable_streams/detail/bound_sockets.hpp>
#include <upgradeable_streams/detail/client_registry.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/detail/first_bytes.hpp>
#include <upgradeable_streams/detail/handler_error.hpp>
#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/detail/strand.hpp>
#include <upgradeable_streams/detail/strand_executor.hpp>
#include <upgradeable_streams/detail/stream_connection.hpp>
#include <upgradeable_streams/detail/text.hpp>
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
#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/ssl/context.hpp>
#include <asio/steady_timer.hpp>
#include <asio/use_awaitable.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <iostream>
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
        : executor_(executor), strand_(executor_of_strand(executor, std::make_shared<strand>(executor))),
          settings_(std::move(settings)), bound_(strand_, settings_.listening),
          changed_(strand_, asio::steady_timer::time_point::max()),
          clients_(settings_.max_connections, [this] { notify(); })
    {
    }

    /// To be bound before anything else.
    bound_sockets& bound() { return bound_; }
    client_registry& clients() { return clients_; }

    void start_serving();
    void close();
    bool is_serving() const;
    std::vector<socket_address> sockets() const;
    void set_ssl_context(asio::ssl::context& ssl);

    /// Waits until the server is closed, and its connections too.
    asio::awaitable<void> wait(bool connections_too);

private:
    using any_socket = asio::generic::stream_protocol::socket;
    using any_endpoint = asio::generic::stream_protocol::endpoint;

    static constexpr std::chrono::seconds accept_retry_delay{1};

    void notify();
    connection_settings settings_of_connection() const;
    void report(std::exception_ptr error, const socket_address& peer) const noexcept;
    static void write_to_log(const socket_address& peer, const std::string& what);

    bool start_session(any_socket socket, const any_endpoint& peer);
    static asio::awaitable<void> accept_loop(std::shared_ptr<listener> self, bound_socket& bound);
    std::shared_ptr<connection> adopt(any_socket socket, const any_endpoint& peer, const client_registry::entry& own);
    asio::awaitable<void> begin(connection& c) const;
    static asio::awaitable<void> session(std::shared_ptr<listener> self, std::shared_ptr<connection> c,
                                         client_registry::entry own);

    asio::any_io_executor executor_;
    asio::any_io_executor strand_;
    const listener_settings settings_;
    bound_sockets bound_;
    asio::steady_timer changed_;
    client_registry clients_; ///< Closed with the server.

    mutable std::mutex mutex_;
    std::shared_ptr<SSL_CTX> swapped_context_;
    bool has_started_ = false;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

/// Whether an error of accepting is about a peer that has left again: on macOS it is Asio that fails then, to set an
/// option of what it accepted.
inline bool tells_peer_left(const asio::error_code& error)
{
#ifdef __APPLE__
    if (error == asio::error::invalid_argument)
        return true;
#endif
    return error == asio::error::connection_aborted || error == asio::error::connection_reset; // on Windows
}

UPGRADEABLE_STREAMS_DECL void listener::start_serving()
{
    {
        const std::lock_guard lock(mutex_);
        if (clients_.is_closed())
            throw std::system_error(errc::connection_closed, "the server was closed");
        if (has_started_)
            return;
        bound_.listen();
        has_started_ = true;
    }
    for (bound_socket& each : bound_)
        asio::co_spawn(strand_, accept_loop(shared_from_this(), each), asio::detached);
}

UPGRADEABLE_STREAMS_DECL void listener::close()
{
    if (!clients_.close())
        return;
    asio::dispatch(strand_,
                   [self = shared_from_this()]
                   {
                       self->bound_.close();
                       self->changed_.cancel();
                   });
}

UPGRADEABLE_STREAMS_DECL bool listener::is_serving() const
{
    const std::lock_guard lock(mutex_);
    return has_started_ && !clients_.is_closed();
}

UPGRADEABLE_STREAMS_DECL std::vector<socket_address> listener::sockets() const
{
    return clients_.is_closed() ? std::vector<socket_address>() : bound_.addresses();
}

UPGRADEABLE_STREAMS_DECL void listener::set_ssl_context(asio::ssl::context& ssl)
{
    throw_if(!settings_.connection.tls.context, errc::not_upgradeable);
    tls_settings changed = settings_.connection.tls;
    changed.context = share(ssl.native_handle());
    changed.make_ssl();
    const std::lock_guard lock(mutex_);
    swapped_context_.swap(changed.context);
}

/// Called when a connection has gone that somebody waits for.
UPGRADEABLE_STREAMS_DECL void listener::notify()
{
    asio::post(strand_,
               [self = shared_from_this()]
               {
                   self->bound_.wake();
                   self->changed_.cancel();
               });
}

UPGRADEABLE_STREAMS_DECL connection_settings listener::settings_of_connection() const
{
    connection_settings made = settings_.connection;
    const std::lock_guard lock(mutex_);
    if (swapped_context_)
        made.tls.context = swapped_context_;
    return made;
}

UPGRADEABLE_STREAMS_DECL void listener::report(std::exception_ptr error, const socket_address& peer) const noexcept
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

UPGRADEABLE_STREAMS_DECL void listener::write_to_log(const socket_address& peer, const std::string& what)
{
    const std::string whose = peer == socket_address() ? "" : "connection from " + printable(peer.to_string()) + ": ";
    std::clog << "upgradeable_streams: " + whose + what + "\n";
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> listener::wait(bool connections_too)
{
    const auto on_strand = [](std::shared_ptr<listener> self, bool connections_too_) -> asio::awaitable<void>
    {
        while (!self->clients_.is_closed() || (connections_too_ && !self->clients_.empty()))
            co_await detail::wait(self->changed_);
    };
    return asio::co_spawn(strand_, on_strand(shared_from_this(), connections_too), asio::use_awaitable);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> listener::accept_loop(std::shared_ptr<listener> self,
                                                                     bound_socket& bound)
{
    std::optional<any_socket> accepted;
    any_endpoint peer;
    while (!self->clients_.is_closed())
    try
    {
        asio::error_code error;
        const bool has_room = self->clients_.has_room();
        if (has_room && !accepted)
        {
            accepted.emplace(co_await bound.acceptor.async_accept(self->executor_, peer,
                                                                  asio::redirect_error(asio::use_awaitable, error)));
            if (!error)
                continue;
            accepted.reset();
        }
        else if (has_room && !self->start_session(*std::exchange(accepted, std::nullopt), peer))
            error = asio::error::no_memory;
        if (error == asio::error::operation_aborted || tells_peer_left(error) || (has_room && !error))
            continue;
        if (error)
            self->report(std::make_exception_ptr(std::system_error(error, "accept")), {});
        if (self->clients_.is_closed())
            co_return;
        bound.pause.expires_after(accept_retry_delay);
        self->clients_.ask(); // who goes leaves a place and a descriptor, or has no memory to tell
        co_await bound.pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
    }
    catch (const std::bad_alloc&)
    {
        accepted.reset();
    }
}

UPGRADEABLE_STREAMS_DECL bool listener::start_session(any_socket socket, const any_endpoint& peer)
try
{
    client_registry::entry own(std::shared_ptr<client_registry>(shared_from_this(), &clients_));
    auto c = adopt(std::move(socket), peer, own);
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

UPGRADEABLE_STREAMS_DECL std::shared_ptr<connection> listener::adopt(any_socket socket, const any_endpoint& peer,
                                                                     const client_registry::entry& own)
{
    asio::error_code ignored;
    if (settings_.keep_alive)
        socket.set_option(asio::socket_base::keep_alive(true), ignored);
    connection_settings settings = settings_of_connection();
    settings.strand = std::make_shared<strand>(executor_);
    auto c = std::make_shared<stream_connection<any_socket>>(std::move(socket), settings, socket_address(peer));
    own.set(c);
    return c;
}

/// What comes before the handler.
UPGRADEABLE_STREAMS_DECL asio::awaitable<void> listener::begin(connection& c) const
{
    bool is_tls = settings_.connection.tls_at_once;
    if (settings_.is_proxy && settings_.is_proxy(c.peername().value_or(socket_address())))
        co_await read_proxy_header(c, c.settings().handshake_timeout);
    if (settings_.detect_timeout)
        is_tls = co_await detect_tls(c, *settings_.detect_timeout);
    if (is_tls)
        co_await c.upgrade(std::make_unique<upgrade_request>(c.settings(), tls_options{}, true));
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void>
listener::session(std::shared_ptr<listener> self, std::shared_ptr<connection> c, client_registry::entry own)
{
    std::exception_ptr failure;
    try
    {
        const listener_settings& given = self->settings_;
        if (given.connection.tls_at_once || given.is_proxy || given.detect_timeout)
        {
            co_await self->begin(*c);
            c->set_operation_timeout(given.connection.operation_timeout);
        }
        auto [reader, writer] = make_handles(c, c->epoch());
        own.serve();
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
    if (failure && !(own.closed_by_server() && tells_closed(failure)))
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

#endif

} // namespace upgradeable_streams::detail

#endif
