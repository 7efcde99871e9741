/// @file
/// Servers: listen, accept, pair.
#ifndef UPGRADEABLE_STREAMS_START_SERVER_HPP
#define UPGRADEABLE_STREAMS_START_SERVER_HPP

#include <upgradeable_streams/callable_view.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/deadline.hpp>
#include <upgradeable_streams/detail/inner_stream.hpp>
#include <upgradeable_streams/detail/listener.hpp>
#include <upgradeable_streams/detail/text.hpp>
#include <upgradeable_streams/port_number.hpp>
#include <upgradeable_streams/server.hpp>
#include <upgradeable_streams/socket_address.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/string_list.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>
#include <asio/basic_socket_acceptor.hpp>
#include <asio/socket_base.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
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

/// What a server runs for each connection, on the connection's own strand; called from several threads at once when
/// the io_context has several.
///
/// Lifetime: kept while there is a handle of the server or a connection. One that owns a handle of its own server keeps
/// both for good; it takes a reference, or a std::weak_ptr.
using connection_handler = callable_view<asio::awaitable<void>(stream_reader, stream_writer)>;

/// What a server calls with what a handler, a handshake (a tls_error) or an accept threw, and the peer's address, which
/// is empty for an accept. A handler whose connection is closed from elsewhere in the program, as by a watchdog, throws
/// errc::connection_closed, which is not reported where the server has closed it. What a handler had written when it
/// returned, and the peer did not take, is nobody's error: who has to know closes and awaits wait_closed. Called from
/// several threads at once when the io_context has several; what it throws is dropped.
using server_error_handler = callable_view<void(std::exception_ptr, const socket_address&)>;

/// What a server asks of a peer's address: is it a proxy? Called from several threads at once when the io_context has
/// several; what it throws closes the connection and is reported.
using proxy_filter = callable_view<bool(const socket_address&)>;

/// Options of start_server and start_unix_server.
struct server_options
{
    /// TLS from the first byte, or with `upgradeable` when the handler calls start_tls. Shared as tls_options says.
    asio::ssl::context* ssl = nullptr;
    bool upgradeable = false;

    /// With `upgradeable`: a client that begins with a TLS handshake has it at once, and any other is the handler's in
    /// plain text, with every byte that came. One port then serves both.
    bool detect_tls = false;

    /// How long a client may say nothing before it is handed over in plain text, as one that waits for a greeting
    /// (SMTP, IMAP): as late as a greeting may be, and later than a ClientHello may come. ssl_handshake_timeout unless
    /// given, which the handshake then has once more.
    std::optional<std::chrono::steady_clock::duration> detect_timeout = {};

    std::size_t limit = 64 * 1024; ///< The readers' limit on a line or record, in bytes, as in connection_options.

    /// How long a read or a drain of a handler's may take, as in connection_options: a client that is idle for longer,
    /// or drips, need not be kept. For ever unless given.
    std::optional<std::chrono::steady_clock::duration> operation_timeout = {};

    std::optional<std::chrono::steady_clock::duration> ssl_handshake_timeout = {}; ///< 60 s unless given.
    std::optional<std::chrono::steady_clock::duration> ssl_shutdown_timeout = {};  ///< 30 s unless given.
    bool suppress_ragged_eofs = false;                                            ///< As in tls_options.

    ip_family family = ip_family::any;                       ///< Of the addresses that are bound.
    int backlog = asio::socket_base::max_listen_connections; ///< Of connections that wait to be accepted.
    bool reuse_address = true; ///< Bind in spite of earlier connections that linger (SO_REUSEADDR); of TCP. On Windows
                               ///< without effect: the port is nobody else's (SO_EXCLUSIVEADDRUSE).
    bool reuse_port = false;   ///< Share the port with other processes that do (SO_REUSEPORT); of TCP, not on Windows.
    bool keep_alive = false;   ///< Of each connection (SO_KEEPALIVE); of TCP.

    /// False only binds; server::start_serving or serve_forever begins to listen.
    bool start_serving = true;

    /// Connections open at once; more wait in the backlog.
    std::size_t max_connections = 10'000;

    /// TLS handshakes at once; more wait for their turn, within their deadline. While any do, a handshake gets a sixth
    /// of its time at most, and then errc::handshake_timeout: who connects and says nothing does not keep others out.
    std::size_t max_handshakes = 1'000;

    /// Writes a line to std::clog unless given.
    server_error_handler error_handler = {};

    /// The peers that are proxies; none unless given. Each has to begin with a header of the PROXY protocol, version 1
    /// or 2, within ssl_handshake_timeout, before TLS and before anything else; peername and sockname are then what it
    /// tells. From other peers such a header is data like any other: they are not believed.
    proxy_filter proxy_protocol = {};
};

static_assert(std::is_trivially_destructible_v<server_options>);

namespace detail
{
listener_settings make_server_settings(connection_handler handler, const server_options& options);
}

/// Listens on a host, several, or for `{}` or "" on all interfaces (asyncio.start_server); port 0 picks one port for
/// all.
///
/// Returns: the server, which is to be kept: with the last copy listening ends.
///
/// Effects: when a handler returns, its connection is closed as stream_writer::close does, whoever still holds the
/// reader or writer; one that throws is reported to the error handler too. Errors of accepting, EMFILE among them, are
/// reported, and accepting goes on within a second. TCP_NODELAY is set. With `detect_tls` or `proxy_protocol` the
/// handler is called when the first bytes, or a deadline, have decided; a proxy that fails to begin with a header is
/// reported.
///
/// Errors: std::invalid_argument at the call for options that make no sense, `upgradeable` without `ssl` and
/// `detect_tls` without `upgradeable` among them; std::system_error that names the address that cannot be bound.
///
/// Concurrency: connections run on the executor of the coroutine that awaits, each on a strand of its own; where that
/// executor is a strand itself, one handler runs at a time.
asio::awaitable<server> start_server(connection_handler handler, string_list hosts, port_number port,
                                     const server_options& options = {});

#ifndef _WIN32
/// Listens on a Unix domain socket (asyncio.start_unix_server). Not on Windows.
///
/// Effects: a socket file that nobody listens on any more is replaced; the file is removed when the server closes.
///
/// Errors: as start_server; std::errc::address_in_use when another process listens, or the file is no socket.
asio::awaitable<server> start_unix_server(connection_handler handler, std::string_view path,
                                          const server_options& options = {});
#endif

/// Listens on a socket that is bound already, and may listen (asyncio's `sock`), as one that a service manager opened.
///
/// Effects: the server takes it over and closes it. `backlog` holds for it; the file of a Unix domain socket stays.
///
/// Errors: as start_server; std::invalid_argument for an acceptor that is not open, and for options of binding.
template <typename Protocol, typename Executor>
asio::awaitable<server> start_server(connection_handler handler,
                                     asio::basic_socket_acceptor<Protocol, Executor> acceptor,
                                     const server_options& options = {})
{
    if (options.family != ip_family::any || !options.reuse_address || options.reuse_port)
        throw std::invalid_argument("family, reuse_address and reuse_port are for binding, which the acceptor is");
    if (!acceptor.is_open())
        throw std::invalid_argument("start_server takes over an acceptor that is bound; this one is not open");
    auto bind = [a = detail::any_acceptor(std::move(acceptor))](
                    detail::bound_sockets& bound) mutable -> asio::awaitable<void>
    {
        bound.adopt(std::move(a));
        co_return;
    };
    return detail::start_server(detail::make_server_settings(handler, options), std::move(bind), options.start_serving);
}

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL detail::listener_settings detail::make_server_settings(connection_handler handler,
                                                                                const server_options& options)
{
    auto copied_handler = handler.copy();
    if (!copied_handler)
        throw std::invalid_argument("a server needs a handler");
    if (options.backlog <= 0)
        throw std::invalid_argument("backlog must be greater than zero");
    if (options.max_connections == 0 || options.max_handshakes == 0)
        throw std::invalid_argument("max_connections and max_handshakes must be greater than zero");
    if (options.detect_tls && !options.upgradeable)
        throw std::invalid_argument("detect_tls needs ssl and upgradeable; ssl alone is TLS for every client");
    if (options.detect_timeout && !options.detect_tls)
        throw std::invalid_argument("detect_timeout needs detect_tls");
    if (options.detect_timeout)
        require_positive(*options.detect_timeout, "detect_timeout");
#ifdef _WIN32
    if (options.reuse_port)
        throw std::invalid_argument("Windows has no reuse_port");
#endif
    auto connection = make_settings(options, tls_role::server, {});
    const auto detect_timeout = options.detect_timeout.value_or(connection.tls.handshake_timeout);
    connection.handshakes = std::make_shared<handshake_limit>(options.max_handshakes);
    return {.handler = std::move(copied_handler),
            .error_handler = options.error_handler.copy(),
            .connection = std::move(connection),
            .detect_timeout = options.detect_tls ? std::optional(detect_timeout) : std::nullopt,
            .is_proxy = options.proxy_protocol.copy(),
            .listening = {.backlog = options.backlog,
                          .reuse_address = options.reuse_address,
                          .reuse_port = options.reuse_port},
            .keep_alive = options.keep_alive,
            .max_connections = options.max_connections};
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<server> start_server(connection_handler handler, string_list hosts,
                                                              port_number port, const server_options& options)
{
    std::vector<std::string> owned = hosts.copy();
    for (const std::string& host : owned)
        detail::refuse_nul(host, "host");
    if (owned.empty())
        owned.emplace_back();
    const auto bind = [hosts = std::move(owned), service = port.to_string(), family = options.family](
                          detail::bound_sockets& bound) { return bound.bind(hosts, service, family); };
    return detail::start_server(detail::make_server_settings(handler, options), bind, options.start_serving);
}

#ifndef _WIN32
UPGRADEABLE_STREAMS_DECL asio::awaitable<server> start_unix_server(connection_handler handler, std::string_view path,
                                                                   const server_options& options)
{
    if (options.family != ip_family::any || options.reuse_port || options.keep_alive)
        throw std::invalid_argument("family, reuse_port and keep_alive are for TCP");
    if (path.empty())
        throw std::invalid_argument("the path of a Unix domain socket must not be empty");
    detail::refuse_nul_in_path(path);
    const auto bind = [path = std::string(path)](detail::bound_sockets& bound) -> asio::awaitable<void>
    {
        bound.bind_unix(path);
        co_return;
    };
    return detail::start_server(detail::make_server_settings(handler, options), bind, options.start_serving);
}
#endif

#endif

} // namespace upgradeable_streams

#endif
