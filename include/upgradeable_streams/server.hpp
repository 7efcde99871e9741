/// @file
/// A server that listens.
#ifndef UPGRADEABLE_STREAMS_SERVER_HPP
#define UPGRADEABLE_STREAMS_SERVER_HPP

#include <upgradeable_streams/detail/checked_ptr.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/deadline.hpp>
#include <upgradeable_streams/detail/listener.hpp>
#include <upgradeable_streams/socket_address.hpp>

#include <asio/awaitable.hpp>
#include <asio/ssl/context.hpp>
#include <asio/this_coro.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace upgradeable_streams
{

class server;

namespace detail
{
/// `bind(bound_sockets&)` is a coroutine.
template <typename Bind>
asio::awaitable<server> start_server(listener_settings settings, Bind bind, bool serving);
} // namespace detail

/// Listens, and runs a handler for each connection (asyncio.Server). Copies are the same server; when the last one
/// goes, listening ends as if by close.
///
/// Concurrency: every member may be called from any thread, the handlers' included.
///
/// Lifetime: not beyond the io_context's, as of Asio's own objects.
class [[nodiscard]] server
{
public:
    /// None, as one that was moved from: to be assigned to. Any other use is errc::connection_closed.
    server() = default;

    /// Begins to listen and accept; does nothing when that was done.
    ///
    /// Errors: std::system_error; errc::connection_closed for a server that was closed.
    void start_serving() { listener_->start_serving(); }

    /// Begins to listen unless that was done, and serves until `close` is called.
    ///
    /// Errors: as start_serving. Cancellation: closes the server.
    asio::awaitable<void> serve_forever() { return serve_forever(listener_); }

    /// Stops listening; connections go on. The file of a Unix domain socket is removed. Where this is called on the
    /// server's own executor, and not in a handler of a connection, that is done on return; soon otherwise.
    void close() { listener_->close(); }

    /// Closes each connection as stream_writer::close does. A `farewell`, as "421 closing\r\n", is sent before to each
    /// that a handler has, behind what that has written, unless start_tls or stop_tls runs there.
    void close_clients(std::string_view farewell = {}) { listener_->clients().close_all(farewell); }

    /// Closes each connection at once; what was queued is lost.
    void abort_clients() { listener_->clients().abort_all(); }

    /// Waits until the server is closed and so is every connection; for ever in a handler of a connection, which waits
    /// for itself. Cancellation: changes nothing.
    asio::awaitable<void> wait_closed() { return wait_closed(listener_); }

    /// Ends the server in good order and in time: `close`, `close_clients(farewell)`, and when `grace` has passed
    /// `abort_clients` for those that are still open. Waits as wait_closed, for handlers too: one that awaits something
    /// else than its connection is not hurried, and needs a deadline of its own; one that ends the server spawns this
    /// as a coroutine of its own.
    ///
    /// Errors: std::invalid_argument for a `grace` that is not greater than zero. Cancellation: nothing is aborted.
    asio::awaitable<void> shutdown(std::chrono::steady_clock::duration grace, std::string_view farewell = {})
    {
        detail::require_positive(grace, "grace");
        return shutdown(listener_, grace, std::string(farewell));
    }

    /// Whether it listens.
    bool is_serving() const { return listener_->is_serving(); }

    /// How many connections are open: accepted, and not yet closed and done with by their handlers.
    std::size_t connection_count() const { return listener_->clients().size(); }

    /// The addresses bound, with the port that was picked; empty once closed.
    std::vector<socket_address> sockets() const { return listener_->sockets(); }

    /// Uses another context, shared as tls_options says, for connections accepted from now on.
    ///
    /// Errors: errc::not_upgradeable for a server that was started without one; std::invalid_argument for a client's.
    void set_ssl_context(asio::ssl::context& ssl) { listener_->set_ssl_context(ssl); }

private:
    template <typename Bind>
    friend asio::awaitable<server> detail::start_server(detail::listener_settings, Bind, bool);

    /// When the last copy goes.
    struct closer
    {
        std::shared_ptr<detail::listener> owned;

        void operator()(detail::listener* l) const noexcept
        try
        {
            l->close();
        }
        catch (...)
        {
        }
    };

    explicit server(std::shared_ptr<detail::listener> l)
        : listener_(std::shared_ptr<detail::listener>(l.get(), closer{l}))
    {
    }

    static asio::awaitable<void> serve_forever(detail::checked_ptr<detail::listener> l);
    static asio::awaitable<void> wait_closed(detail::checked_ptr<detail::listener> l);
    static asio::awaitable<void> shutdown(detail::checked_ptr<detail::listener> l,
                                          std::chrono::steady_clock::duration grace, std::string farewell);

    detail::checked_ptr<detail::listener> listener_;
};

template <typename Bind>
asio::awaitable<server> detail::start_server(listener_settings settings, Bind bind, bool serving)
{
    const auto executor = co_await asio::this_coro::executor;
    server made(std::make_shared<listener>(executor, std::move(settings)));
    co_await bind(made.listener_->bound());
    if (serving)
        made.start_serving();
    co_return made;
}

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> server::serve_forever(detail::checked_ptr<detail::listener> l)
{
    l->start_serving();
    try
    {
        co_await l->wait(false);
    }
    catch (...)
    {
        l->close();
        throw;
    }
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> server::wait_closed(detail::checked_ptr<detail::listener> l)
{
    co_await l->wait(true);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> server::shutdown(detail::checked_ptr<detail::listener> l,
                                                                std::chrono::steady_clock::duration grace,
                                                                std::string farewell)
{
    l->close();
    l->clients().close_all(farewell);
    const auto executor = co_await asio::this_coro::executor;
    const detail::deadline within(executor, grace, [l] { l->clients().abort_all(); });
    co_await l->wait(true);
}

#endif

} // namespace upgradeable_streams

#endif
