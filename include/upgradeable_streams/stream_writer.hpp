/// @file
/// The writing half of a connection, with the names and semantics of asyncio.StreamWriter.
#ifndef UPGRADEABLE_STREAMS_STREAM_WRITER_HPP
#define UPGRADEABLE_STREAMS_STREAM_WRITER_HPP

#include <upgradeable_streams/detail/checked_ptr.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/detail/handle.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/socket_address.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

namespace upgradeable_streams
{

/// Water marks of the write queue in bytes; as in asyncio, a missing high is 4 x low or 64 KiB, a missing low high / 4.
struct write_buffer_limits
{
    std::optional<std::size_t> high = {};
    std::optional<std::size_t> low = {};
};

static_assert(std::is_trivially_destructible_v<write_buffer_limits>);

/// A string that is a template argument, as in `get_extra_info<"peername">()`.
template <std::size_t Size>
struct extra_info_name
{
    constexpr extra_info_name(const char (&text)[Size]) { std::copy_n(text, Size, text_); }
    constexpr bool operator==(std::string_view other) const { return std::string_view(text_, Size - 1) == other; }

    char text_[Size];
};

/// Where a TLS session begins.
enum class tls_place
{
    over_plain_text,
    within_tls ///< Inside the session that there is, as through an HTTPS proxy after CONNECT.
};

inline constexpr tls_place within_tls = tls_place::within_tls;

namespace detail
{
template <typename Stream>
asio::awaitable<stream_pair> start_inner_tls(checked_ptr<handle> outside, std::unique_ptr<upgrade_request> request);
class inner_stream;
class starttls_dialogue;
} // namespace detail

/// Writes to a connection and closes it.
///
/// Errors, of every operation that sends or changes something: errc::upgrade_in_progress while start_tls or stop_tls
/// runs, and errc::connection_upgraded afterwards, through a writer from before; errc::connection_closed after close,
/// but for drain, while what was queued is sent; the reason of a lost connection. close and abort end the connection
/// through a writer from before too, and end a start_tls or stop_tls that runs at once.
///
/// Concurrency and lifetime: as stream_reader.
class stream_writer
{
public:
    /// As a stream_reader's.
    stream_writer() = default;

    /// Queues bytes, which are sent in order without any further call; does not suspend. What is not sent at once is
    /// copied: the memory may be used again on return.
    ///
    /// What is queued before control goes back to the event loop leaves in one send.
    void write(std::string_view data)
    {
        handle_->connection()->check_write(handle_->epoch());
        handle_->connection()->write(data);
    }

    /// Queues bytes of another type, as of a `std::vector<std::byte>`; a u8 literal, which ends with a NUL, is none.
    template <detail::byte_range Bytes>
        requires(!std::convertible_to<const Bytes&, std::string_view> &&
                 !(std::is_array_v<Bytes> && std::same_as<std::ranges::range_value_t<Bytes>, char8_t>))
    void write(const Bytes& bytes)
    {
        write(std::string_view(reinterpret_cast<const char*>(std::ranges::data(bytes)), std::ranges::size(bytes)));
    }

    /// Queues several pieces as if joined.
    template <std::ranges::input_range Pieces = std::initializer_list<std::string_view>>
        requires std::convertible_to<std::ranges::range_reference_t<Pieces>, std::string_view>
    void writelines(Pieces&& pieces)
    {
        for (auto&& piece : pieces)
            write(piece);
    }

    /// Waits while more than the high mark is queued, until the low mark is reached.
    ///
    /// Errors: errc::operation_timeout, which leaves the connection as it is. Cancellation: changes nothing.
    asio::awaitable<void> drain() { return drain(handle_); }

    /// With a high mark of 0 a drain waits until all was handed to the socket.
    ///
    /// Errors: std::invalid_argument unless high >= low.
    void set_write_buffer_limits(const write_buffer_limits& limits)
    {
        detail::connection& c = handle_->current();
        const std::size_t high = limits.high ? *limits.high : limits.low ? 4 * *limits.low : 64 * 1024;
        const std::size_t low = limits.low.value_or(high / 4);
        if (high < low)
            throw std::invalid_argument("set_write_buffer_limits: high must not be less than low");
        c.set_write_buffer_limits(high, low);
    }

    /// How many bytes are queued and not yet handed to the socket (asyncio's transport.get_write_buffer_size); they are
    /// many where the peer does not read.
    std::size_t get_write_buffer_size() const { return handle_->current().queued(); }

    /// How long a read or a drain of this connection may take, each as a whole, from the next one on; for ever without.
    /// One that takes longer ends with errc::operation_timeout and loses nothing; the connection stays open. A timer
    /// goes on when an operation is done, and for that long, until the connection is closed, io_context::run has work.
    ///
    /// Errors: std::invalid_argument unless it is greater than zero.
    void set_operation_timeout(std::optional<std::chrono::steady_clock::duration> timeout)
    {
        detail::connection& c = handle_->current();
        if (timeout)
            detail::require_positive(*timeout, "operation_timeout");
        c.set_operation_timeout(timeout);
    }

    /// Ends writing after what is queued, while reading goes on: a FIN in plain text, a close_notify under TLS 1.3
    /// (RFC 8446 section 6.1). To write after it is std::errc::broken_pipe.
    ///
    /// Errors: std::errc::operation_not_supported unless can_write_eof.
    void write_eof()
    {
        handle_->connection()->check_write(handle_->epoch());
        if (!can_write_eof())
            throw std::system_error(std::make_error_code(std::errc::operation_not_supported),
                                    "TLS 1.2 cannot be closed in one direction");
        handle_->connection()->write_eof();
    }

    /// False for TLS 1.2, where the answer to a close_notify is to close (RFC 5246 section 7.2.1), and within it.
    bool can_write_eof() const { return handle_->current().can_write_eof(); }

    /// Sends what is queued, then a close_notify, then FIN, within the shutdown deadline; does not suspend. Pending
    /// reads end with errc::connection_closed. Closing twice does nothing.
    ///
    /// What has come and was not read is dropped, under TLS all that comes before the peer's close_notify: a socket
    /// closed with bytes unread would reset the connection, and take from the peer what it was sent. Who does not care
    /// for that peer calls abort.
    void close() { handle_->connection()->close(); }

    /// Closes at once: what is queued is lost (asyncio's transport.abort). Pending reads end with
    /// errc::connection_closed.
    ///
    /// Under TLS the peer is not told, and sees that it was cut off. In plain text it sees an end like any other,
    /// unless SO_LINGER with a time of 0 was set on `get_extra_info<"socket">()`. Neither happens before a child
    /// process that has the socket too has closed it.
    void abort() { handle_->connection()->abort(); }

    /// Where the connection's readers and writers are used. The handler of another hands work to it there, which does
    /// not throw while nobody calls write_eof: `asio::post(writer.get_executor(), [writer, line]() mutable {
    /// if (!writer.is_closing()) writer.write(line); })`. What comes while TLS is started the other keeps for the
    /// writer of after start_tls.
    ///
    /// Concurrency: may be called on any thread.
    asio::any_io_executor get_executor() const { return handle_->connection()->get_executor(); }

    /// Whether nothing more will be written through this writer: after close, when the connection was lost, and once
    /// start_tls or stop_tls has begun, for a writer from before. That the peer has ended an idle connection is not
    /// noticed before a read.
    bool is_closing() const { return handle_->connection()->is_closing(handle_->epoch()); }

    /// Waits until the connection is closed.
    ///
    /// Errors: the reason, when the connection was lost before all was sent. Cancellation: changes nothing.
    asio::awaitable<void> wait_closed() { return wait_closed(handle_); }

    /// As a stream_reader's.
    bool is_tls() const { return handle_->current().is_tls(); }

    /// Whether start_tls can begin: in plain text, and a TLS context was given.
    bool is_upgradeable() const
    {
        const detail::connection& c = handle_->current();
        return !c.is_tls() && c.settings().context;
    }

    /// What start_tls is in TLS, unless it is told otherwise.
    tls_role role() const { return handle_->current().settings().role; }

    /// Sends what is queued in plain text, then upgrades the connection to TLS.
    ///
    /// Options left out are those of open_connection or start_server. Bytes already received are never delivered to a
    /// reader: a server takes the beginning of a ClientHello for the handshake, anything else is
    /// errc::plaintext_injection (RFC 3207 section 4.2, CVE-2011-0411). `received` is not to be given.
    ///
    /// `start_tls<within_tls>` begins a second session inside the first, with a peer of its own, whose server_hostname
    /// a client has to give. Closing the inner pair closes the outer connection too; its stop_tls ends the inner
    /// session alone.
    ///
    /// Returns: a new reader and writer; the old ones throw errc::connection_upgraded from then on.
    ///
    /// Errors: at the call std::invalid_argument for options that make no sense, and errc::tlsa_records_unusable;
    /// errc::not_upgradeable, already_tls and not_tls leave the connection as it was, as does
    /// errc::operation_in_progress when a read is pending. Every other failure closes the connection, and is a
    /// tls_error, errc::handshake_timeout and a connection that is reset among them, or std::bad_alloc.
    ///
    /// Cancellation: closes the connection.
    template <tls_place Place = tls_place::over_plain_text>
    asio::awaitable<stream_pair> start_tls(const tls_options& options = {})
    {
        if (!options.received.empty())
            throw std::invalid_argument("start_tls of a stream_writer knows what was received; do not give it");
        const detail::connection& c = *handle_->connection();
        constexpr bool is_inner = Place == tls_place::within_tls;
        if (is_inner && options.server_hostname.empty() && options.role.value_or(c.settings().role) == tls_role::client)
            throw std::invalid_argument("start_tls<within_tls> needs server_hostname: the name of the inner server");
        detail::tls_settings defaults = c.settings();
        if (is_inner)
            defaults.turn_to({});
        auto request = std::make_unique<detail::upgrade_request>(std::move(defaults), options, is_inner || !c.ssl());
        if constexpr (is_inner) // a name that depends on Place: inner_stream is defined where pairs are made
        {
            using stream = std::conditional_t<is_inner, detail::inner_stream, void>;
            static_assert(requires { sizeof(stream); }, "start_tls<within_tls> needs <upgradeable_streams.hpp>");
            return detail::start_inner_tls<stream>(handle_, std::move(request));
        }
        else
            return start_tls(handle_, std::move(request));
    }

    /// Sends what is queued, then goes back to plain text, once both sides have agreed on it (FTP's CCC, RFC 4217;
    /// LDAP, RFC 4511 section 4.14.3): sends a close_notify and awaits the peer's, within the shutdown deadline.
    ///
    /// Returns: a new reader and writer; the old ones throw errc::connection_upgraded from then on. The reader goes on
    /// with what the peer sent before its close_notify and was not read, and with what came behind it in plain text:
    /// what has to be known to have come through TLS is read before. TLS can be started again.
    ///
    /// Errors: errc::not_tls leaves the connection as it was, as does errc::operation_in_progress when a read is
    /// pending. Every other failure closes it: asio::ssl::error::stream_truncated when the peer sent no close_notify,
    /// errc::shutdown_timeout, and as upgradeable_stream::async_stop_tls.
    ///
    /// Cancellation: closes the connection.
    asio::awaitable<stream_pair> stop_tls() { return stop_tls(handle_); }

    /// What the handshake negotiated, and with whom; empty in plain text.
    std::optional<tls_session> session() const
    {
        const detail::connection& c = handle_->current();
        return c.is_tls() ? std::optional<tls_session>(c.ssl()) : std::nullopt;
    }

    /// What is known of the connection, by asyncio's names; the type depends on the name.
    ///
    /// - peername, sockname: std::optional<socket_address>, as they were when the connection was made
    /// - socket: std::optional<int>, on Windows of SOCKET: the native handle, empty once closed
    /// - sslcontext: SSL_CTX*, ssl_object: SSL*; null in plain text, valid until TLS is stopped or the connection ends,
    ///   and longer for who takes part in owning it (SSL_up_ref), as for tls_options::resume_from after FTP's CCC
    /// - version, alpn_protocol: std::optional<std::string>; cipher: std::optional<cipher_info>; peercert:
    ///   std::optional<certificate>; session_reused: std::optional<bool>; empty before the upgrade
    template <extra_info_name Name>
    auto get_extra_info() const
    {
        detail::connection& c = handle_->current();
        if constexpr (Name == "peername")
            return c.peername();
        else if constexpr (Name == "sockname")
            return c.sockname();
        else if constexpr (Name == "socket")
            return c.native_socket();
        else if constexpr (Name == "sslcontext")
            return c.is_tls() ? SSL_get_SSL_CTX(c.ssl()) : nullptr;
        else if constexpr (Name == "ssl_object")
            return c.is_tls() ? c.ssl() : nullptr;
        else
        {
            const std::optional<tls_session> known = session();
            if constexpr (Name == "version")
                return known ? std::optional(known->version) : std::nullopt;
            else if constexpr (Name == "cipher")
                return known ? std::optional(known->cipher) : std::nullopt;
            else if constexpr (Name == "alpn_protocol")
                return known ? known->alpn_protocol : std::nullopt;
            else if constexpr (Name == "peercert")
                return known ? known->peer_certificate : std::nullopt;
            else
            {
                static_assert(Name == "session_reused",
                              "get_extra_info knows peername, sockname, socket, sslcontext, ssl_object, version, "
                              "cipher, alpn_protocol, peercert and session_reused");
                return known ? std::optional(known->session_reused) : std::nullopt;
            }
        }
    }

private:
    friend stream_pair detail::make_handles(std::shared_ptr<detail::connection>, unsigned);
    friend detail::starttls_dialogue;
    using shared_handle = detail::checked_ptr<detail::handle>;

    explicit stream_writer(shared_handle handle) : handle_(std::move(handle)) {}

    static asio::awaitable<void> drain(shared_handle handle);
    static asio::awaitable<void> wait_closed(shared_handle handle);
    static asio::awaitable<stream_pair> start_tls(shared_handle handle,
                                                  std::unique_ptr<detail::upgrade_request> request);
    static asio::awaitable<stream_pair> stop_tls(shared_handle handle);

    shared_handle handle_;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL stream_pair detail::make_handles(std::shared_ptr<connection> c, unsigned epoch)
{
    const auto shared = std::make_shared<handle>(std::move(c), epoch);
    return {stream_reader(shared), stream_writer(shared)};
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> stream_writer::drain(shared_handle handle)
{
    detail::connection& c = handle->current();
    if (!c.is_drained())
        co_await c.drain();
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> stream_writer::wait_closed(shared_handle handle)
{
    const std::error_code lost = co_await handle->current().wait_closed();
    if (lost)
        throw std::system_error(lost);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair>
stream_writer::start_tls(shared_handle handle, std::unique_ptr<detail::upgrade_request> request)
{
    handle->check_epoch();
    auto upgraded = detail::make_handles(handle->connection(), handle->epoch() + 1);
    co_await handle->connection()->upgrade(std::move(request));
    co_return upgraded;
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair> stream_writer::stop_tls(shared_handle handle)
{
    handle->check_epoch();
    auto plain = detail::make_handles(handle->connection(), handle->epoch() + 1);
    co_await handle->connection()->downgrade();
    co_return plain;
}

#endif

} // namespace upgradeable_streams

#endif
