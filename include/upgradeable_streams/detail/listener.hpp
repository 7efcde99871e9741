/// @file
/// The working half of a server: bound sockets, accept loops, the connections that are open.
#ifndef UPGRADEABLE_STREAMS_DETAIL_LISTENER_HPP
#define UPGRADEABLE_STREAMS_DETAIL_LISTENER_HPP

#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/detail/first_bytes.hpp>
#include <upgradeable_streams/detail/stream_connection.hpp>
#include <upgradeable_streams/detail/wait.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/socket_address.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/basic_socket_acceptor.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/generic/stream_protocol.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/ip/v6_only.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iostream>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
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
    int backlog;
    bool reuse_address;
    bool reuse_port;
    bool keep_alive;
    std::size_t max_connections;
};

/// Concurrency: accept loops and waiters run on a strand; what other threads look at is behind a mutex.
class listener : public std::enable_shared_from_this<listener>
{
public:
    listener(asio::any_io_executor executor, listener_settings settings)
        : executor_(executor), strand_(asio::make_strand(executor)), settings_(std::move(settings)),
          changed_(strand_, asio::steady_timer::time_point::max())
    {
    }

    /// Binds every address of every host; an address that this machine does not have is passed over while there is
    /// another.
    asio::awaitable<void> bind(std::vector<std::string> hosts, std::string service, ip_family family);
    void bind_unix(const std::string& path);

    void start_serving();
    void close();
    bool is_serving() const;
    std::vector<socket_address> sockets() const;
    void set_ssl_context(asio::ssl::context& ssl);
    void for_each_connection(void (connection::*action)());

    /// Waits until the server is closed, and its connections too.
    asio::awaitable<void> wait(bool connections_too);

private:
    using any_acceptor = asio::basic_socket_acceptor<asio::generic::stream_protocol>;
    using any_socket = asio::generic::stream_protocol::socket;

    struct bound_socket
    {
        any_acceptor acceptor;
        asio::steady_timer pause; ///< What the accept loop waits on when it may not accept.
    };

    /// A Unix domain socket's file, told apart from another's that may have taken its place.
    struct socket_file
    {
        std::string path;
        dev_t device;
        ino_t inode;
    };

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

    asio::error_code bind(const asio::generic::stream_protocol::endpoint& endpoint);
    asio::error_code bind_all(std::vector<asio::ip::tcp::endpoint> endpoints, asio::ip::tcp::endpoint& failed);
    void notify();
    bool is_closed() const;
    bool has_room() const;
    connection_settings settings_of_connection() const;
    void report(std::exception_ptr error, const socket_address& peer) const noexcept;
    void remove_socket_file();

    bool start_session(any_socket socket);
    static asio::awaitable<void> accept_loop(std::shared_ptr<listener> self, std::shared_ptr<bound_socket> bound);
    std::shared_ptr<connection> adopt(any_socket socket, const place& p);
    static asio::awaitable<void> session(std::shared_ptr<listener> self, std::shared_ptr<connection> c, place p);

    asio::any_io_executor executor_;
    asio::any_io_executor strand_;
    const listener_settings settings_;
    std::vector<std::shared_ptr<bound_socket>> bound_;
    std::optional<socket_file> file_;
    asio::steady_timer changed_;

    mutable std::mutex mutex_;
    std::shared_ptr<SSL_CTX> swapped_context_;
    std::vector<socket_address> sockets_;
    std::list<client> clients_;
    bool serving_ = false;
    bool closed_ = false;
};

inline asio::error_code listener::bind(const asio::generic::stream_protocol::endpoint& endpoint)
{
    asio::error_code error;
    any_acceptor acceptor(strand_);
    const int family = endpoint.protocol().family();
    if (acceptor.open(endpoint.protocol(), error))
        return error;
    if (family != AF_UNIX)
        acceptor.set_option(asio::socket_base::reuse_address(settings_.reuse_address), error);
    if (family == AF_INET6 && !error)
        acceptor.set_option(asio::ip::v6_only(true), error);
    if (const int on = 1; settings_.reuse_port && !error &&
                          ::setsockopt(acceptor.native_handle(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) != 0)
        error.assign(errno, asio::error::get_system_category());
    if (error || acceptor.bind(endpoint, error))
        return error;
    const auto local = acceptor.local_endpoint(error);
    if (error)
        return error;
    bound_.push_back(std::make_shared<bound_socket>(bound_socket{std::move(acceptor), asio::steady_timer(strand_)}));
    const std::lock_guard lock(mutex_);
    sockets_.emplace_back(local);
    return {};
}

/// With port 0 the first address picks the port of all. `failed` is the endpoint that an error is about.
inline asio::error_code listener::bind_all(std::vector<asio::ip::tcp::endpoint> endpoints,
                                           asio::ip::tcp::endpoint& failed)
{
    asio::error_code first_error;
    for (auto& endpoint : endpoints)
    {
        if (endpoint.port() == 0 && !sockets_.empty())
            endpoint.port(sockets_.front().port);
        const asio::error_code error = bind(endpoint);
        const bool missing = error.value() == EADDRNOTAVAIL || error == asio::error::address_family_not_supported;
        if (!error || (missing && first_error))
            continue;
        failed = endpoint;
        if (!missing)
            return error;
        first_error = error;
    }
    return bound_.empty() ? first_error : asio::error_code();
}

inline asio::awaitable<void> listener::bind(std::vector<std::string> hosts, std::string service, ip_family family)
{
    using asio::ip::tcp;
    std::vector<tcp::endpoint> endpoints;
    tcp::resolver resolver(co_await asio::this_coro::executor);
    for (const std::string& host : hosts)
    {
        if (host.find('\0') != host.npos)
            throw std::invalid_argument("a host must not hold a NUL");
        asio::error_code error;
        tcp::resolver::results_type found;
        if (family == ip_family::any)
            found = co_await resolver.async_resolve(host, service, tcp::resolver::passive,
                                                    asio::redirect_error(asio::use_awaitable, error));
        else
            found = co_await resolver.async_resolve(family == ip_family::v4 ? tcp::v4() : tcp::v6(), host, service,
                                                    tcp::resolver::passive,
                                                    asio::redirect_error(asio::use_awaitable, error));
        if (error)
            throw std::system_error(error, "cannot resolve " + host + ":" + service);
        for (const auto& entry : found)
            if (std::ranges::find(endpoints, entry.endpoint()) == endpoints.end())
                endpoints.push_back(entry.endpoint());
    }

    asio::error_code error;
    tcp::endpoint failed;
    for (int attempts = 0; attempts < 16; ++attempts)
    {
        bound_.clear();
        sockets_.clear();
        error = bind_all(endpoints, failed);
        const bool port_taken = error == asio::error::address_in_use && !endpoints.empty() && endpoints.front().port() == 0;
        if (!port_taken)
            break;
    }
    if (error)
        throw std::system_error(error, "cannot listen on " + socket_address(failed).to_string());
}

inline void listener::bind_unix(const std::string& path)
{
    if (path.size() >= sizeof(sockaddr_un::sun_path))
        throw std::system_error(asio::error::name_too_long, "cannot listen on " + path);
    const asio::local::stream_protocol::endpoint endpoint(path);
    asio::error_code error;
    struct stat status;
    if (::lstat(path.c_str(), &status) == 0)
    {
        asio::local::stream_protocol::socket probe(strand_);
        probe.open();
        probe.non_blocking(true);
        probe.connect(endpoint, error);
        if (!S_ISSOCK(status.st_mode) || error != asio::error::connection_refused)
            throw std::system_error(std::make_error_code(std::errc::address_in_use), "cannot listen on " + path);
        ::unlink(path.c_str());
    }
    error = bind(endpoint);
    if (error)
        throw std::system_error(error, "cannot listen on " + path);
    if (::lstat(path.c_str(), &status) == 0)
        file_ = socket_file{path, status.st_dev, status.st_ino};
}

inline void listener::start_serving()
{
    {
        const std::lock_guard lock(mutex_);
        throw_if(closed_, errc::connection_closed);
        if (serving_)
            return;
        for (std::size_t i = 0; i < bound_.size(); ++i)
        {
            asio::error_code error;
            bound_[i]->acceptor.listen(settings_.backlog, error);
            if (error)
                throw std::system_error(error, "cannot listen on " + sockets_[i].to_string());
        }
        serving_ = true;
    }
    for (const auto& bound : bound_)
        asio::co_spawn(strand_, accept_loop(shared_from_this(), bound), asio::detached);
}

inline void listener::close()
{
    {
        const std::lock_guard lock(mutex_);
        if (std::exchange(closed_, true))
            return;
        serving_ = false;
        sockets_.clear();
    }
    asio::post(strand_,
               [self = shared_from_this()]
               {
                   // While the socket is open no other file can have its inode.
                   self->remove_socket_file();
                   asio::error_code ignored;
                   for (const auto& bound : self->bound_)
                   {
                       bound->acceptor.close(ignored);
                       bound->pause.cancel();
                   }
                   self->changed_.cancel();
               });
}

inline void listener::remove_socket_file()
{
    struct stat status;
    if (file_ && ::lstat(file_->path.c_str(), &status) == 0 && status.st_dev == file_->device &&
        status.st_ino == file_->inode)
        ::unlink(file_->path.c_str());
}

inline bool listener::is_serving() const
{
    const std::lock_guard lock(mutex_);
    return serving_;
}

inline std::vector<socket_address> listener::sockets() const
{
    const std::lock_guard lock(mutex_);
    return sockets_;
}

inline void listener::set_ssl_context(asio::ssl::context& ssl)
{
    throw_if(!settings_.connection.tls.context, errc::not_upgradeable);
    auto shared = share(ssl);
    const std::lock_guard lock(mutex_);
    swapped_context_.swap(shared);
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
                   for (const auto& bound : self->bound_)
                       bound->pause.cancel();
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

inline void listener::report(std::exception_ptr error, const socket_address& peer) const noexcept
try
{
    if (settings_.error_handler)
        return settings_.error_handler(error, peer);
    std::rethrow_exception(error);
}
catch (const std::exception& e)
{
    if (!settings_.error_handler)
        std::clog << "upgradeable_streams: connection from " + peer.to_string() + ": " + e.what() + "\n";
}
catch (...)
{
    if (!settings_.error_handler)
        std::clog << "upgradeable_streams: connection from " + peer.to_string() + ": unknown exception\n";
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

inline asio::awaitable<void> listener::accept_loop(std::shared_ptr<listener> self, std::shared_ptr<bound_socket> bound)
{
    std::optional<any_socket> accepted;
    while (!self->is_closed())
    try
    {
        asio::error_code error;
        if (!self->has_room())
        {
            bound->pause.expires_at(asio::steady_timer::time_point::max());
            co_await bound->pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
            continue;
        }
        if (!accepted)
        {
            accepted.emplace(co_await bound->acceptor.async_accept(
                self->executor_, asio::redirect_error(asio::use_awaitable, error)));
            if (!error)
                continue;
            accepted.reset();
        }
        else if (!self->start_session(*std::exchange(accepted, std::nullopt)))
            error = asio::error::no_memory;
        if (error && error != asio::error::operation_aborted && error != asio::error::connection_aborted)
        {
            self->report(std::make_exception_ptr(std::system_error(error, "accept")), {});
            bound->pause.expires_after(accept_retry_delay);
            co_await bound->pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
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
        auto [reader, writer] = make_handles(c, c->epoch());
        co_await given.handler(std::move(reader), std::move(writer));
    }
    catch (...)
    {
        if (!p.closed_by_server())
            self->report(std::current_exception(), c->peername().value_or(socket_address()));
    }
    c->close();
    co_await c->wait_closed();
}

} // namespace upgradeable_streams::detail

#endif
