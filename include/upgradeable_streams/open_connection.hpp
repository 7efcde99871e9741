/// @file
/// Connections to a server: resolve, connect, pair.
#ifndef UPGRADEABLE_STREAMS_OPEN_CONNECTION_HPP
#define UPGRADEABLE_STREAMS_OPEN_CONNECTION_HPP

#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/port_number.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>
#include <asio/generic/stream_protocol.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace upgradeable_streams
{

enum class ip_family
{
    any,
    v4,
    v6
};

/// A host and port to bind to before connecting.
struct local_address
{
    std::string_view host = {};
    port_number port = 0;
};

struct connection_options
{
    /// TLS from the first byte, or with `upgradeable` when start_tls is called. Ownership of the SSL_CTX is shared.
    asio::ssl::context* ssl = nullptr;
    bool upgradeable = false;

    /// The name that the server's certificate must be for; the host unless given.
    std::string_view server_hostname = {};

    /// The reader's limit on a line or record, in bytes.
    std::size_t limit = 64 * 1024;

    std::optional<std::chrono::steady_clock::duration> ssl_handshake_timeout = {}; ///< 60 s unless given.
    std::optional<std::chrono::steady_clock::duration> ssl_shutdown_timeout = {};  ///< 30 s unless given.
    bool suppress_ragged_eofs = false;                                            ///< As in tls_options.

    /// The side that an adopted socket takes in TLS; others are the client.
    tls_role role = tls_role::client;

    // Of TCP connections only:
    std::optional<local_address> local_addr = {};
    ip_family family = ip_family::any;

    /// The time between the starts of two attempts (RFC 8305 section 5); without it one address is tried after the
    /// other.
    std::optional<std::chrono::steady_clock::duration> happy_eyeballs_delay = std::chrono::milliseconds(250);

    /// How many addresses of the first family are tried before families alternate (RFC 8305 section 4); 0 keeps the
    /// resolver's order. 1 unless given, 0 without happy_eyeballs_delay.
    std::optional<std::size_t> interleave = {};

    /// The deadline of resolving and connecting, all addresses together.
    std::chrono::steady_clock::duration connect_timeout = std::chrono::seconds(60);
};

static_assert(std::is_trivially_destructible_v<connection_options>);

/// Connects to a host over TCP (asyncio.open_connection).
///
/// Effects: TCP_NODELAY is set. With `ssl` and not `upgradeable` the TLS handshake is done too.
///
/// Errors: std::invalid_argument at the call for options that make no sense, `upgradeable` without `ssl` among them;
/// connect_error with every address that was tried and its reason; the resolver's own; as stream_writer::start_tls.
///
/// Cancellation: throws asio::error::operation_aborted and leaves nothing open.
///
/// Concurrency: the connection belongs to the executor of the coroutine that awaits; with an io_context that runs on
/// several threads that must be a strand.
asio::awaitable<std::pair<stream_reader, stream_writer>>
open_connection(std::string_view host, port_number port, const connection_options& options = {});

/// Makes a pair of a connected socket, or of any AsyncStream with a lowest_layer; it belongs to the socket's executor.
///
/// Errors: std::invalid_argument for a socket that is not open, or options of connecting.
template <typename Socket>
    requires requires { typename Socket::lowest_layer_type; }
asio::awaitable<std::pair<stream_reader, stream_writer>> open_connection(Socket socket,
                                                                         const connection_options& options = {});

/// Connects to a Unix domain socket (asyncio.open_unix_connection); errors as open_connection.
asio::awaitable<std::pair<stream_reader, stream_writer>> open_unix_connection(std::string_view path,
                                                                              const connection_options& options = {});

namespace detail
{

inline connection_settings make_settings(const connection_options& options, std::string_view default_hostname)
{
    if (options.upgradeable && !options.ssl)
        throw std::invalid_argument("upgradeable needs ssl: the context to upgrade with");
    if (options.limit == 0)
        throw std::invalid_argument("limit must be greater than zero");
    connection_settings made;
    made.limit = options.limit;
    made.tls.server_hostname = default_hostname;
    tls_options tls;
    tls.ssl = options.ssl;
    tls.role = options.role;
    tls.server_hostname = options.server_hostname;
    tls.handshake_timeout = options.ssl_handshake_timeout;
    tls.shutdown_timeout = options.ssl_shutdown_timeout;
    tls.suppress_ragged_eofs = options.suppress_ragged_eofs;
    made.tls.apply(tls);
    if (options.ssl)
        made.tls.make_ssl();
    return made;
}

inline void refuse_tcp_options(const connection_options& options)
{
    if (options.local_addr || options.family != ip_family::any || options.interleave)
        throw std::invalid_argument("local_addr, family and interleave are for connecting to a host over TCP");
}

/// Makes a pair of a socket, after the handshake when TLS is to begin at once.
template <typename Socket>
asio::awaitable<std::pair<stream_reader, stream_writer>> pair_up(Socket socket, connection_settings settings, bool tls)
{
    const auto c = std::make_shared<stream_connection<Socket>>(std::move(socket), settings);
    if (tls)
        co_await c->upgrade(std::make_unique<upgrade_request>(settings.tls, tls_options{}, true));
    co_return make_pair(c);
}

/// Connects to the first of several addresses that answers (RFC 8305). Used by one coroutine, which it outlives while
/// the resolver runs.
class tcp_connector : public std::enable_shared_from_this<tcp_connector>
{
public:
    tcp_connector(std::string_view host, port_number port, const connection_options& options)
        : host_(host.starts_with('[') && host.ends_with(']') ? host.substr(1, host.size() - 2) : host),
          service_(port.to_string()), target_(std::string(host) + ":" + service_), family_(options.family),
          delay_(options.happy_eyeballs_delay), interleave_(options.interleave.value_or(delay_ ? 1 : 0)),
          timeout_(options.connect_timeout)
    {
        if (host.empty())
            throw std::invalid_argument("host must not be empty");
        require_positive(timeout_, "connect_timeout");
        if (delay_)
            require_positive(*delay_, "happy_eyeballs_delay");
        if (options.local_addr)
            local_.emplace(options.local_addr->host, options.local_addr->port.to_string());
    }

    asio::awaitable<asio::ip::tcp::socket> connect();

private:
    using tcp = asio::ip::tcp;
    using endpoints = std::vector<tcp::endpoint>;

    struct attempt
    {
        tcp::socket socket;
        tcp::endpoint endpoint;
    };

    asio::awaitable<endpoints> resolve(tcp::resolver& resolver, std::string host, std::string service);
    asio::awaitable<void> wait_until(std::chrono::steady_clock::time_point time);
    endpoints interleaved(const endpoints& given) const;
    void start(const tcp::endpoint& endpoint, const endpoints& local);
    void failed(const tcp::endpoint& endpoint, std::error_code error);
    [[noreturn]] void give_up(std::error_code error);

    std::string host_;
    std::string service_;
    std::string target_;
    ip_family family_;
    std::optional<std::chrono::steady_clock::duration> delay_;
    std::size_t interleave_;
    std::chrono::steady_clock::duration timeout_;
    std::optional<std::pair<std::string, std::string>> local_;

    std::optional<asio::steady_timer> changed_;
    std::chrono::steady_clock::time_point deadline_;
    std::list<attempt> running_;
    std::optional<tcp::socket> connected_;
    std::vector<connect_error::attempt> failed_;
};

inline asio::awaitable<void> tcp_connector::wait_until(std::chrono::steady_clock::time_point time)
{
    changed_->expires_at(std::min(time, deadline_));
    asio::error_code ignored;
    co_await changed_->async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    const auto cancellation = co_await asio::this_coro::cancellation_state;
    if (cancellation.cancelled() != asio::cancellation_type::none)
        throw std::system_error(asio::error::operation_aborted);
    if (!connected_ && std::chrono::steady_clock::now() >= deadline_)
    {
        for (const attempt& still : running_)
            failed(still.endpoint, errc::connect_timeout);
        give_up(errc::connect_timeout);
    }
}

/// The resolver cannot be interrupted, so a result that comes too late is dropped.
inline asio::awaitable<tcp_connector::endpoints> tcp_connector::resolve(tcp::resolver& resolver, std::string host,
                                                                        std::string service)
{
    struct outcome
    {
        std::optional<asio::error_code> error;
        tcp::resolver::results_type results;
    };
    const auto answer = std::make_shared<outcome>();
    const auto receive = [answer, weak = weak_from_this()](asio::error_code error, tcp::resolver::results_type results)
    {
        answer->error = error;
        answer->results = std::move(results);
        if (const auto self = weak.lock())
            self->changed_->cancel();
    };
    if (family_ == ip_family::any)
        resolver.async_resolve(host, service, tcp::resolver::flags(), receive);
    else
        resolver.async_resolve(family_ == ip_family::v4 ? tcp::v4() : tcp::v6(), host, service, tcp::resolver::flags(),
                               receive);
    while (!answer->error)
        co_await wait_until(deadline_);
    if (*answer->error)
        throw std::system_error(*answer->error, "cannot resolve " + host);
    co_return endpoints(answer->results.begin(), answer->results.end());
}

inline tcp_connector::endpoints tcp_connector::interleaved(const endpoints& given) const
{
    if (interleave_ == 0 || given.empty())
        return given;
    endpoints first;
    endpoints second;
    for (const tcp::endpoint& endpoint : given)
        (endpoint.protocol() == given.front().protocol() ? first : second).push_back(endpoint);
    const std::size_t lead = std::min(interleave_ - 1, first.size());
    endpoints order(first.begin(), first.begin() + std::ptrdiff_t(lead));
    for (std::size_t i = 0; lead + i < first.size() || i < second.size(); ++i)
    {
        if (lead + i < first.size())
            order.push_back(first[lead + i]);
        if (i < second.size())
            order.push_back(second[i]);
    }
    return order;
}

inline void tcp_connector::failed(const tcp::endpoint& endpoint, std::error_code error)
{
    failed_.push_back({socket_address(endpoint).to_string(), error});
}

/// When every address failed for the same reason, that is the reason.
inline void tcp_connector::give_up(std::error_code error)
{
    if (!error)
    {
        const auto differs = [this](const auto& a) { return a.error != failed_.front().error; };
        error = failed_.empty() || std::ranges::any_of(failed_, differs) ? make_error_code(errc::connect_failed)
                                                                         : failed_.front().error;
    }
    throw connect_error(error, target_, std::move(failed_));
}

inline void tcp_connector::start(const tcp::endpoint& endpoint, const endpoints& local)
{
    tcp::socket socket(changed_->get_executor());
    asio::error_code error;
    socket.open(endpoint.protocol(), error);
    if (!error && local_)
    {
        const auto same = std::ranges::find(local, endpoint.protocol(), &tcp::endpoint::protocol);
        if (same == local.end())
            error = asio::error::address_family_not_supported;
        else
            socket.bind(*same, error);
    }
    if (error)
        return failed(endpoint, error);

    const auto self = running_.insert(running_.end(), {std::move(socket), endpoint});
    self->socket.async_connect(endpoint,
                               [self, weak = weak_from_this()](const asio::error_code& result)
                               {
                                   const auto connector = weak.lock();
                                   if (!connector || result == asio::error::operation_aborted)
                                       return;
                                   if (result)
                                       connector->failed(self->endpoint, result);
                                   else if (!connector->connected_)
                                       connector->connected_.emplace(std::move(self->socket));
                                   connector->running_.erase(self);
                                   connector->changed_->cancel();
                               });
}

inline asio::awaitable<asio::ip::tcp::socket> tcp_connector::connect()
{
    const auto keep = shared_from_this();
    changed_.emplace(co_await asio::this_coro::executor);
    deadline_ = std::chrono::steady_clock::now() + std::min<std::chrono::steady_clock::duration>(timeout_, std::chrono::hours(24));
    tcp::resolver resolver(changed_->get_executor());
    endpoints local;
    if (local_)
        local = co_await resolve(resolver, local_->first, local_->second);
    const endpoints remote = co_await resolve(resolver, host_, service_);
    const endpoints order = interleaved(remote);

    auto next = order.begin();
    auto next_start = std::chrono::steady_clock::time_point::max();
    while (!connected_)
    {
        if (next == order.end() && running_.empty())
            give_up({});
        const auto now = std::chrono::steady_clock::now();
        if (next != order.end() && (running_.empty() || now >= next_start))
        {
            start(*next++, local);
            next_start = delay_ ? now + *delay_ : std::chrono::steady_clock::time_point::max();
            continue;
        }
        co_await wait_until(next == order.end() ? deadline_ : next_start);
    }
    connected_->set_option(tcp::no_delay(true));
    co_return std::move(*connected_);
}

inline asio::awaitable<std::pair<stream_reader, stream_writer>>
open_tcp_connection(std::shared_ptr<tcp_connector> connector, connection_settings settings, bool tls)
{
    asio::ip::tcp::socket socket = co_await connector->connect();
    connector.reset();
    auto pair = co_await pair_up(asio::generic::stream_protocol::socket(std::move(socket)), std::move(settings), tls);
    co_return pair;
}

inline asio::awaitable<std::pair<stream_reader, stream_writer>>
open_unix_connection(std::string path, connection_settings settings, bool tls)
{
    asio::local::stream_protocol::socket socket(co_await asio::this_coro::executor);
    asio::error_code error;
    co_await socket.async_connect(asio::local::stream_protocol::endpoint(path),
                                  asio::redirect_error(asio::use_awaitable, error));
    if (error)
        throw connect_error(error, path, {{path, error}});
    auto pair = co_await pair_up(asio::generic::stream_protocol::socket(std::move(socket)), std::move(settings), tls);
    co_return pair;
}

} // namespace detail

inline asio::awaitable<std::pair<stream_reader, stream_writer>>
open_connection(std::string_view host, port_number port, const connection_options& options)
{
    if (options.role == tls_role::server)
        throw std::invalid_argument("role is for adopted sockets; who connects is the client");
    auto connector = std::make_shared<detail::tcp_connector>(host, port, options);
    return detail::open_tcp_connection(std::move(connector), detail::make_settings(options, host),
                                       options.ssl && !options.upgradeable);
}

template <typename Socket>
    requires requires { typename Socket::lowest_layer_type; }
asio::awaitable<std::pair<stream_reader, stream_writer>> open_connection(Socket socket,
                                                                         const connection_options& options)
{
    using any_socket = asio::generic::stream_protocol::socket;
    detail::refuse_tcp_options(options);
    if (!socket.lowest_layer().is_open())
        throw std::invalid_argument("open_connection adopts a socket that is connected; this one is not open");
    auto settings = detail::make_settings(options, {});
    const bool tls = options.ssl && !options.upgradeable;
    if constexpr (std::is_convertible_v<Socket, any_socket>)
        return detail::pair_up<any_socket>(std::move(socket), std::move(settings), tls);
    else
        return detail::pair_up<Socket>(std::move(socket), std::move(settings), tls);
}

inline asio::awaitable<std::pair<stream_reader, stream_writer>>
open_unix_connection(std::string_view path, const connection_options& options)
{
    detail::refuse_tcp_options(options);
    if (options.role == tls_role::server)
        throw std::invalid_argument("role is for adopted sockets; who connects is the client");
    return detail::open_unix_connection(std::string(path), detail::make_settings(options, {}),
                                        options.ssl && !options.upgradeable);
}

} // namespace upgradeable_streams

#endif
