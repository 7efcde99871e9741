/// @file
/// Connections to a server: resolve, connect, pair.
#ifndef UPGRADEABLE_STREAMS_OPEN_CONNECTION_HPP
#define UPGRADEABLE_STREAMS_OPEN_CONNECTION_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/detail/inner_stream.hpp>
#include <upgradeable_streams/detail/server_identity.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/stream_connection.hpp>
#include <upgradeable_streams/detail/tcp_connector.hpp>
#include <upgradeable_streams/detail/text.hpp>
#include <upgradeable_streams/detail/tls_settings.hpp>
#include <upgradeable_streams/detail/wait.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/port_number.hpp>
#include <upgradeable_streams/socket_address.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/string_list.hpp>
#include <upgradeable_streams/tls.hpp>
#include <upgradeable_streams/tlsa_record.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/execution/outstanding_work.hpp>
#include <asio/generic/stream_protocol.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/redirect_error.hpp>
#include <asio/require.hpp>
#include <asio/steady_timer.hpp>
#include <asio/system_executor.hpp>
#include <asio/this_coro.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_awaitable.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

namespace upgradeable_streams
{

/// A host and port to bind to before connecting.
struct local_address
{
    std::string_view host = {};
    port_number port = 0;
};

static_assert(std::is_trivially_destructible_v<local_address>);

/// Options of open_connection and open_unix_connection.
///
/// Lifetime: views and pointers are used in the call only, but for `ssl`, which is shared as tls_options says.
struct connection_options
{
    /// TLS from the first byte, or with `upgradeable` when start_tls is called. Shared as tls_options says.
    asio::ssl::context* ssl = nullptr;
    bool upgradeable = false;

    /// The name that the server's certificate must be for; the host unless given. With `ssl` only.
    std::string_view server_hostname = {};

    /// As in tls_options, for the FTPS client's data connections.
    SSL* resume_from = nullptr;

    // As in tls_options; with `ssl` only:
    std::span<const tlsa_record> tlsa_records = {};
    string_list other_hostnames = {};

    /// The reader's limit on a line or record, in bytes, without the separator: that of a line is its '\n' alone.
    std::size_t limit = 64 * 1024;

    /// How long a read or a drain may take, each as a whole; for ever unless given. See
    /// stream_writer::set_operation_timeout.
    std::optional<std::chrono::steady_clock::duration> operation_timeout = {};

    std::optional<std::chrono::steady_clock::duration> ssl_handshake_timeout = {}; ///< 60 s unless given.
    std::optional<std::chrono::steady_clock::duration> ssl_shutdown_timeout = {};  ///< 30 s unless given.
    bool suppress_ragged_eofs = false;                                             ///< As in tls_options.

    /// The side that an adopted socket takes in TLS; others are the client.
    tls_role role = tls_role::client;

    /// The deadline of resolving and connecting, all addresses together; a year at most.
    std::chrono::steady_clock::duration connect_timeout = std::chrono::seconds(60);

    // Of TCP connections only:
    std::optional<local_address> local_addr = {}; ///< Chosen by the system unless given.
    ip_family family = ip_family::any;            ///< Of the addresses that are tried.

    /// The time between the starts of two attempts (RFC 8305 section 5); without it one address is tried after the
    /// other.
    std::optional<std::chrono::steady_clock::duration> happy_eyeballs_delay = std::chrono::milliseconds(250);

    /// How many addresses of the first family are tried before families alternate (RFC 8305 section 4); 0 keeps the
    /// resolver's order. 1 unless given, 0 without happy_eyeballs_delay.
    std::optional<std::size_t> interleave = {};
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
/// Names are looked up by the system's resolver on Asio's one thread for each io_context, where one that is slow to be
/// found keeps the next waiting, within its `connect_timeout`.
///
/// Concurrency: the connection belongs to the executor of the coroutine that awaits. Where several threads run that, it
/// must be a strand; a thread_pool itself, or the system_executor, is refused with std::invalid_argument.
asio::awaitable<stream_pair> open_connection(std::string_view host, port_number port,
                                             const connection_options& options = {});

/// Makes a pair of a connected socket, or of an AsyncStream over one whose lowest_layer has an Asio socket's functions.
/// It belongs to the socket's executor.
///
/// Errors: std::invalid_argument for a socket that is not connected or belongs to a thread_pool or the
/// system_executor itself, and for local_addr, family and interleave; as stream_writer::start_tls.
template <typename Socket>
    requires requires { typename Socket::lowest_layer_type; }
asio::awaitable<stream_pair> open_connection(Socket socket, const connection_options& options = {});

#ifndef _WIN32
/// Connects to a Unix domain socket (asyncio.open_unix_connection); errors as open_connection. Not on Windows.
asio::awaitable<stream_pair> open_unix_connection(std::string_view path, const connection_options& options = {});
#endif

namespace detail
{

connection_settings make_client_settings(const connection_options& options, std::string_view default_hostname);

inline void refuse_tcp_options(const connection_options& options)
{
    if (options.local_addr || options.family != ip_family::any || options.interleave)
        throw std::invalid_argument("local_addr, family and interleave are for connecting to a host over TCP");
}

inline void refuse_role(const connection_options& options)
{
    if (options.role == tls_role::server)
        throw std::invalid_argument("role is for adopted sockets; who connects is the client");
}

/// On several threads the parts of one connection would run at the same time. Of an io_context nobody can tell how many
/// run it.
inline void refuse_thread_pool(const asio::any_io_executor& executor)
{
    using pool = asio::thread_pool::executor_type;
    using working_pool = asio::require_result<pool, asio::execution::outstanding_work_t::tracked_t>::type;
    if (target_of<pool>(executor) || target_of<working_pool>(executor) || target_of<asio::system_executor>(executor))
        throw std::invalid_argument("a connection on a thread_pool or the system_executor needs a strand; co_spawn the "
                                    "coroutine, or make the socket, with asio::make_strand(executor)");
}

/// Makes a pair of a socket, after the handshake when TLS is to begin at once.
template <typename Socket>
asio::awaitable<stream_pair> pair_up(Socket socket, socket_address peer, connection_settings settings)
{
    const auto c = std::make_shared<stream_connection<Socket>>(std::move(socket), settings, std::move(peer));
    if (settings.tls_at_once)
        co_await c->upgrade(std::make_unique<upgrade_request>(settings.tls, tls_options{}, true));
    co_return make_handles(c, c->epoch());
}

} // namespace detail

template <typename Socket>
    requires requires { typename Socket::lowest_layer_type; }
asio::awaitable<stream_pair> open_connection(Socket socket, const connection_options& options)
{
    using any_socket = asio::generic::stream_protocol::socket;
    detail::refuse_tcp_options(options);
    detail::refuse_thread_pool(socket.get_executor());
    asio::error_code not_connected;
    socket_address peer(socket.lowest_layer().remote_endpoint(not_connected));
    if (not_connected)
        throw std::invalid_argument("open_connection adopts a socket that is connected; this one is not: " +
                                    not_connected.message());
    auto settings = detail::make_client_settings(options, {});
    if constexpr (detail::is_socket<Socket> && std::is_convertible_v<Socket, any_socket>)
        return detail::pair_up<any_socket>(std::move(socket), std::move(peer), std::move(settings));
    else
        return detail::pair_up<Socket>(std::move(socket), std::move(peer), std::move(settings));
}

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

UPGRADEABLE_STREAMS_DECL connection_settings make_client_settings(const connection_options& options,
                                                                  std::string_view default_hostname)
{
    const bool expects_more = !options.tlsa_records.empty() || !options.other_hostnames.empty();
    if (!options.ssl && (expects_more || !options.server_hostname.empty()))
        throw std::invalid_argument("server_hostname, tlsa_records and other_hostnames need ssl: without it the "
                                    "connection is in plain text");
    if (!options.server_hostname.empty())
        server_identity::parse(options.server_hostname);
    auto made = make_settings(options, options.role,
                              options.server_hostname.empty() ? default_hostname : options.server_hostname);
    made.tls.apply({.resume_from = options.resume_from,
                    .tlsa_records = options.tlsa_records,
                    .other_hostnames = options.other_hostnames});
    if (expects_more)
        made.tls.make_ssl();
    return made;
}

inline asio::awaitable<stream_pair> open_tcp_connection(std::shared_ptr<tcp_connector> connector,
                                                        connection_settings settings)
{
    refuse_thread_pool(co_await asio::this_coro::executor);
    tcp_connector::attempt made = co_await connector->connect();
    connector.reset();
    asio::generic::stream_protocol::socket socket(std::move(made.socket));
    auto pairing = pair_up(std::move(socket), socket_address(made.endpoint), std::move(settings));
    auto pair = co_await std::move(pairing);
    co_return pair;
}

} // namespace detail

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair> open_connection(std::string_view host, port_number port,
                                                                      const connection_options& options)
{
    detail::refuse_role(options);
    auto connector = std::make_shared<detail::tcp_connector>(host, port, options);
    return detail::open_tcp_connection(std::move(connector), detail::make_client_settings(options, host));
}

#ifndef _WIN32

namespace detail
{

inline asio::awaitable<stream_pair> open_unix_connection(std::string path, std::chrono::steady_clock::duration timeout,
                                                         connection_settings settings)
{
    asio::error_code error;
    const auto executor = co_await asio::this_coro::executor;
    refuse_thread_pool(executor);
    asio::local::stream_protocol::endpoint server;
    asio::local::stream_protocol::socket socket(executor);
    asio::steady_timer retry(socket.get_executor());
    const auto deadline = time_after(timeout);
    do // a full backlog refuses at once, and says "no buffer space"
    {
        if (error)
        {
            retry.expires_after(std::chrono::milliseconds(10));
            co_await wait(retry);
        }
        socket.close();
        try
        {
            server.path(path);
            co_await socket.async_connect(server, asio::redirect_error(asio::use_awaitable, error));
        }
        catch (const std::system_error& e)
        {
            error = e.code();
        }
    } while (error == asio::error::no_buffer_space && std::chrono::steady_clock::now() < deadline);
    if (error == asio::error::no_buffer_space)
        error = errc::connect_timeout;
    if (error)
        throw connect_error(error, path, {{path, error}});
    asio::generic::stream_protocol::socket connected(std::move(socket));
    const auto seen = connected.remote_endpoint(error); // where a symbolic link led
    socket_address peer(error ? asio::generic::stream_protocol::endpoint(server) : seen);
    auto pairing = pair_up(std::move(connected), std::move(peer), std::move(settings));
    auto pair = co_await std::move(pairing);
    co_return pair;
}

} // namespace detail

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair> open_unix_connection(std::string_view path,
                                                                           const connection_options& options)
{
    detail::refuse_tcp_options(options);
    detail::refuse_role(options);
    detail::require_positive(options.connect_timeout, "connect_timeout");
    detail::refuse_nul_in_path(path);
    return detail::open_unix_connection(std::string(path), options.connect_timeout,
                                        detail::make_client_settings(options, {}));
}

#endif

#endif

} // namespace upgradeable_streams

#endif
