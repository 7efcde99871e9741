/// @file
/// The sockets that a server listens on.
#ifndef UPGRADEABLE_STREAMS_DETAIL_BOUND_SOCKETS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_BOUND_SOCKETS_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/resolve.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/text.hpp>
#include <upgradeable_streams/socket_address.hpp>
#ifndef _WIN32
#include <upgradeable_streams/detail/unix_socket_file.hpp>
#endif

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/basic_socket_acceptor.hpp>
#include <asio/error.hpp>
#include <asio/generic/stream_protocol.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/ip/v6_only.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace upgradeable_streams::detail
{

struct listening_options
{
    int backlog;
    bool reuse_address;
    bool reuse_port;
};

using any_acceptor = asio::basic_socket_acceptor<asio::generic::stream_protocol>;

struct bound_socket
{
    any_acceptor acceptor;
    socket_address address;
    asio::steady_timer pause; ///< What the accept loop waits on when it may not accept.
};

/// The sockets of all addresses of a server, or that of a path.
///
/// Concurrency: bound before anything else, after which the addresses do not change; what acts on a socket or its pause
/// belongs to the executor.
class bound_sockets
{
public:
    bound_sockets(asio::any_io_executor executor, const listening_options& options)
        : executor_(std::move(executor)), options_(options)
    {
    }

    bound_sockets(const bound_sockets&) = delete;
    bound_sockets& operator=(const bound_sockets&) = delete;

    /// Binds every address of every host; an address that this machine does not have is passed over while there is
    /// another.
    asio::awaitable<void> bind(std::vector<std::string> hosts, std::string service, ip_family family);
#ifndef _WIN32
    void bind_unix(const std::string& path);
#endif

    /// A socket that its owner has bound; a file of its stays.
    void adopt(any_acceptor acceptor);

    void listen();

    /// Ends what waits on a socket.
    void close();

    /// Ends each pause.
    void wake();

    std::vector<socket_address> addresses() const;
    auto begin() { return sockets_.begin(); }
    auto end() { return sockets_.end(); }

private:
    asio::error_code bind(const asio::generic::stream_protocol::endpoint& endpoint);
    asio::error_code bind_all(std::vector<asio::ip::tcp::endpoint> endpoints, asio::ip::tcp::endpoint& failed);

    asio::any_io_executor executor_;
    const listening_options options_;
    std::vector<bound_socket> sockets_; ///< Stays where it is once bound.
#ifndef _WIN32
    std::optional<unix_socket_file> file_; ///< Behind the sockets: it goes while they are open.
#endif
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL asio::error_code bound_sockets::bind(const asio::generic::stream_protocol::endpoint& endpoint)
{
    asio::error_code error;
    any_acceptor acceptor(executor_);
    const int family = endpoint.protocol().family();
    acceptor.open(endpoint.protocol(), error);
    if (error)
        return error;
    if (family == AF_INET6)
        acceptor.set_option(asio::ip::v6_only(true), error);
    const auto set = [&](int option)
    {
        const int on = 1;
        if (!error && ::setsockopt(acceptor.native_handle(), SOL_SOCKET, option, reinterpret_cast<const char*>(&on),
                                   sizeof on) != 0)
            error = last_error();
    };
#ifdef _WIN32 // where SO_REUSEADDR is what SO_REUSEPORT is elsewhere, and others may set it
    set(SO_EXCLUSIVEADDRUSE);
#else
    if (options_.reuse_address && family != AF_UNIX)
        set(SO_REUSEADDR);
    if (options_.reuse_port)
        set(SO_REUSEPORT);
#endif
    if (!error)
        acceptor.bind(endpoint, error);
    if (!error)
        adopt(std::move(acceptor));
    return error;
}

UPGRADEABLE_STREAMS_DECL void bound_sockets::adopt(any_acceptor acceptor)
{
    socket_address address(acceptor.local_endpoint());
    sockets_.push_back({std::move(acceptor), std::move(address), asio::steady_timer(executor_)});
}

/// With port 0 the first address picks the port of all. `failed` is the endpoint that an error is about.
UPGRADEABLE_STREAMS_DECL asio::error_code bound_sockets::bind_all(std::vector<asio::ip::tcp::endpoint> endpoints,
                                                                  asio::ip::tcp::endpoint& failed)
{
    asio::error_code first_error;
    for (auto& endpoint : endpoints)
    {
        if (endpoint.port() == 0 && !sockets_.empty())
            endpoint.port(sockets_.front().address.port);
        const asio::error_code error = bind(endpoint);
        const bool missing =
            error.value() == address_not_available || error == asio::error::address_family_not_supported;
        if (!error || (missing && first_error))
            continue;
        failed = endpoint;
        if (!missing)
            return error;
        first_error = error;
    }
    return sockets_.empty() ? first_error : asio::error_code();
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> bound_sockets::bind(std::vector<std::string> hosts, std::string service,
                                                                   ip_family family)
{
    using asio::ip::tcp;
    std::vector<tcp::endpoint> endpoints;
    tcp::resolver resolver(co_await asio::this_coro::executor);
    for (const std::string& host : hosts)
    {
        asio::error_code error;
        const resolve_query query = {host, service, family, tcp::resolver::passive};
        tcp::resolver::results_type found = query.numbers(resolver);
        if (found.empty())
            found = co_await query.async_resolve(resolver, asio::redirect_error(asio::use_awaitable, error));
        if (error)
            throw std::system_error(error, "cannot resolve " + join_host_port(printable(host), service));
        for (const auto& entry : found)
            if (std::ranges::find(endpoints, entry.endpoint()) == endpoints.end())
                endpoints.push_back(entry.endpoint());
    }

    asio::error_code error;
    tcp::endpoint failed;
    for (int attempts = 0; attempts < 16; ++attempts)
    {
        sockets_.clear();
        error = bind_all(endpoints, failed);
        const bool port_taken =
            error == asio::error::address_in_use && !endpoints.empty() && endpoints.front().port() == 0;
        if (!port_taken)
            break;
    }
    if (error)
        throw std::system_error(error, "cannot listen on " + socket_address(failed).to_string());
}

#ifndef _WIN32
UPGRADEABLE_STREAMS_DECL void bound_sockets::bind_unix(const std::string& path)
{
    asio::error_code error;
    if (path.size() >= sizeof(sockaddr_un::sun_path))
        error = asio::error::name_too_long;
    else if (error = unix_socket_file::remove_stale(path, executor_); !error)
        error = bind(asio::local::stream_protocol::endpoint(path));
    if (error)
        throw std::system_error(error, "cannot listen on " + path);
    file_.emplace(path);
}
#endif

UPGRADEABLE_STREAMS_DECL void bound_sockets::listen()
{
    for (bound_socket& each : sockets_)
    {
        asio::error_code error;
        each.acceptor.listen(options_.backlog, error);
        if (error)
            throw std::system_error(error, "cannot listen on " + each.address.to_string());
    }
}

UPGRADEABLE_STREAMS_DECL void bound_sockets::close()
{
#ifndef _WIN32
    file_.reset();
#endif
    asio::error_code ignored;
    for (bound_socket& each : sockets_)
        each.acceptor.close(ignored);
    wake();
}

UPGRADEABLE_STREAMS_DECL void bound_sockets::wake()
{
    for (bound_socket& each : sockets_)
        each.pause.cancel();
}

UPGRADEABLE_STREAMS_DECL std::vector<socket_address> bound_sockets::addresses() const
{
    std::vector<socket_address> made;
    for (const bound_socket& each : sockets_)
        made.push_back(each.address);
    return made;
}

#endif

} // namespace upgradeable_streams::detail

#endif
