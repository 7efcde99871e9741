/// @file
/// A stream that starts in plain text and is upgraded to TLS in place.
#ifndef UPGRADEABLE_STREAMS_UPGRADEABLE_STREAM_HPP
#define UPGRADEABLE_STREAMS_UPGRADEABLE_STREAM_HPP

#include <upgradeable_streams/detail/initiation.hpp>
#include <upgradeable_streams/detail/shutdown_operation.hpp>
#include <upgradeable_streams/detail/stream_operations.hpp>
#include <upgradeable_streams/detail/stream_state.hpp>
#include <upgradeable_streams/detail/tls_settings.hpp>
#include <upgradeable_streams/detail/upgrade_operation.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/async_result.hpp>
#include <asio/awaitable.hpp>
#include <asio/compose.hpp>
#include <asio/redirect_error.hpp>
#include <asio/socket_base.hpp>
#include <asio/ssl/stream.hpp>
#include <asio/use_awaitable.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <variant>

namespace upgradeable_streams
{

namespace detail
{
template <typename Socket>
class stream_connection;
}

/// Options of upgradeable_stream::async_shutdown.
struct shutdown_options
{
    /// shutdown_send ends only the own direction: with a FIN in plain text, with a close_notify under TLS, to which
    /// TLS 1.2 peers answer by closing altogether. shutdown_both also awaits the peer's close_notify, and drops what
    /// comes before it.
    asio::socket_base::shutdown_type what = asio::socket_base::shutdown_both;

    /// The deadline of the whole shutdown; the stream's own unless given.
    std::optional<std::chrono::steady_clock::duration> timeout = {};
};

/// Options of upgradeable_stream::async_stop_tls.
struct stop_tls_options
{
    /// The deadline of the whole exchange; the stream's own shutdown deadline unless given.
    std::optional<std::chrono::steady_clock::duration> timeout = {};
};

static_assert(std::is_trivially_destructible_v<shutdown_options>);
static_assert(std::is_trivially_destructible_v<stop_tls_options>);

/// An AsyncStream over `Socket` that can be upgraded to TLS in place.
///
/// `Socket` is an AsyncStream with a `lowest_layer()` that can be closed and shut down: any Asio socket, or a stream
/// over one. `TlsLayer` is a template with the interface of asio::ssl::stream.
///
/// Cancellation: a cancelled read leaves the stream as it was. A cancelled write or shutdown of an encrypted stream
/// may leave half a record behind, so every later operation reports errc::stream_unusable. A cancelled upgrade or stop
/// closes the stream. `lowest_layer().close()` ends whatever is pending with asio::error::operation_aborted.
///
/// Concurrency: one read and one write may be pending at a time, in either state, and nothing beside an upgrade or its
/// reverse. With an io_context that runs on several threads, all use of a stream belongs on one strand; a token with an
/// executor of its own, as asio::use_future, is bound to it: `asio::bind_executor(strand, asio::use_future)`.
///
/// Lifetime: destroying or moving the stream while operations are pending is safe; destroying it closes the socket,
/// and pending operations complete with asio::error::operation_aborted.
template <typename Socket, template <typename> class TlsLayer = asio::ssl::stream>
class upgradeable_stream
{
    using state = detail::stream_state<Socket, TlsLayer>;

public:
    using next_layer_type = Socket;
    using lowest_layer_type = typename Socket::lowest_layer_type;
    using executor_type = typename Socket::executor_type;

    /// Errors: std::invalid_argument for options that make no sense, `received` among them.
    explicit upgradeable_stream(Socket socket, const tls_options& options = {})
    {
        if (!options.received.empty())
            throw std::invalid_argument("received bytes are given to start_tls, not when the stream is made");
        state_ = std::make_shared<state>(std::move(socket), detail::tls_settings(options));
    }

    upgradeable_stream(upgradeable_stream&&) noexcept = default;

    upgradeable_stream& operator=(upgradeable_stream&& other) noexcept
    {
        upgradeable_stream(std::move(other)).state_.swap(state_);
        return *this;
    }

    ~upgradeable_stream()
    {
        if (state_)
            state_->close();
    }

    executor_type get_executor() { return state_->socket().get_executor(); }
    next_layer_type& next_layer() { return state_->socket(); }
    const next_layer_type& next_layer() const { return state_->socket(); }
    lowest_layer_type& lowest_layer() { return state_->socket().lowest_layer(); }
    const lowest_layer_type& lowest_layer() const { return state_->socket().lowest_layer(); }

    /// True from the moment at which the upgrade is complete, until TLS is stopped.
    bool is_tls() const { return std::holds_alternative<typename state::encrypted>(state_->stage); }

    /// Null while the stream is plain; an upgrade that failed leaves its own.
    SSL* native_handle() const { return state_->ssl(); }

    /// What the handshake negotiated; empty until the upgrade is complete.
    std::optional<tls_session> session() const
    {
        return is_tls() ? std::optional<tls_session>(native_handle()) : std::nullopt;
    }

    /// Reads at least one byte; the signature is void(asio::error_code, std::size_t).
    ///
    /// Errors: asio::error::eof at a clean end; asio::ssl::error::stream_truncated when TLS ended without a
    /// close_notify (RFC 8446 section 6.1); errc::upgrade_in_progress. Under TLS the first error is repeated by later
    /// reads.
    template <typename MutableBufferSequence, typename Token = asio::default_completion_token_t<executor_type>>
    auto async_read_some(const MutableBufferSequence& buffers, Token&& token = {})
    {
        return asio::async_initiate<Token, void(asio::error_code, std::size_t)>(
            detail::initiation(get_executor(),
                               [](auto handler, const std::shared_ptr<state>& s, const MutableBufferSequence& b)
                               {
                                   if (s->plain_to_read())
                                       return detail::begin_plain<Socket>(
                                           s, [b](Socket& plain, auto&& h) { plain.async_read_some(b, std::move(h)); },
                                           std::move(handler));
                                   asio::async_compose<decltype(handler), void(asio::error_code, std::size_t)>(
                                       detail::read_operation<state, MutableBufferSequence>{s, b}, handler,
                                       s->socket());
                               }),
            token, state_, buffers);
    }

    /// Writes at least one byte; the signature is void(asio::error_code, std::size_t).
    ///
    /// Completes when the bytes were handed to the socket. Errors: errc::upgrade_in_progress, stream_unusable; the
    /// socket's own.
    template <typename ConstBufferSequence, typename Token = asio::default_completion_token_t<executor_type>>
    auto async_write_some(const ConstBufferSequence& buffers, Token&& token = {})
    {
        return asio::async_initiate<Token, void(asio::error_code, std::size_t)>(
            detail::initiation(get_executor(),
                               [](auto handler, const std::shared_ptr<state>& s, const ConstBufferSequence& b)
                               {
                                   if (s->plain())
                                       return detail::begin_plain<Socket>(
                                           s, [b](Socket& plain, auto&& h) { plain.async_write_some(b, std::move(h)); },
                                           std::move(handler));
                                   asio::async_compose<decltype(handler), void(asio::error_code, std::size_t)>(
                                       detail::write_operation<state, ConstBufferSequence>{s, b}, handler, s->socket());
                               }),
            token, state_, buffers);
    }

    /// Upgrades the stream to TLS; the signature is void(asio::error_code).
    ///
    /// Effects: an upgrade that fails closes the stream; it never goes on in plain text.
    ///
    /// Errors: std::invalid_argument at the call for options that make no sense, among them a client that verifies and
    /// has no server_hostname; errc::not_upgradeable, already_tls, upgrade_in_progress, plaintext_injection,
    /// handshake_timeout, alpn_not_agreed; asio::error::no_memory; OpenSSL's own. `describe` tells more. In TLS 1.3 a
    /// server's refusal of the client's certificate reaches the client at its first read (RFC 8446 section 4.4.2.4).
    template <typename Token = asio::default_completion_token_t<executor_type>>
    auto async_start_tls(const tls_options& options = {}, Token&& token = {})
    {
        return initiate_upgrade(state_, request_upgrade(options), std::forward<Token>(token));
    }

    /// Upgrades the stream to TLS with the options that it was made with, and those given here over them.
    ///
    /// Errors: as async_start_tls, thrown as tls_error, which tells why a certificate was not accepted, or what a peer
    /// sent in place of TLS.
    asio::awaitable<void> start_tls(const tls_options& options = {})
    {
        return await_upgrade(state_, request_upgrade(options));
    }

    /// What an upgrade that ended with `error` tells: why a certificate was not accepted, or what a peer sent in place
    /// of TLS.
    tls_error describe(const asio::error_code& error) const { return state_->describe(error); }

    /// Goes back to plain text, once both sides have agreed on it (FTP's CCC, RFC 4217; LDAP, RFC 4511 section 4.14.3):
    /// sends a close_notify and awaits the peer's. The signature is void(asio::error_code).
    ///
    /// Effects: what the peer sent before its close_notify and was not read, 64 KiB at most, is read next, then what
    /// came with or after it, in plain text; what has to be known to have come through TLS is read before. The stream
    /// can be upgraded again. No read or write may be pending.
    ///
    /// Errors: std::invalid_argument at the call for a timeout that is not greater than zero; errc::not_tls and
    /// upgrade_in_progress leave the stream as it was. Every other failure closes it:
    /// asio::ssl::error::stream_truncated when the peer sent no close_notify, errc::shutdown_timeout,
    /// asio::error::no_buffer_space, std::errc::protocol_error, the error that a read met. Cancellation: closes it.
    template <typename Token = asio::default_completion_token_t<executor_type>>
    auto async_stop_tls(const stop_tls_options& options = {}, Token&& token = {})
    {
        return initiate_shutdown(asio::socket_base::shutdown_both, options.timeout, true, std::forward<Token>(token));
    }

    /// As async_stop_tls. Errors: thrown as std::system_error.
    asio::awaitable<void> stop_tls(const stop_tls_options& options = {})
    {
        return async_stop_tls(options, asio::use_awaitable_t<>());
    }

    /// Ends the conversation in order, before the stream is destroyed; the signature is void(asio::error_code).
    ///
    /// No read may be pending for shutdown_both. What a read has found already is not awaited again: the end of the
    /// peer's direction, or an error after which no close_notify can be sent.
    ///
    /// Errors: std::invalid_argument at the call for shutdown_receive, and for a timeout that is not greater than zero;
    /// errc::shutdown_timeout, after which the socket is closed; asio::ssl::error::stream_truncated when the
    /// peer closed without a close_notify of its own, unless suppress_ragged_eofs; the error that a read met.
    template <typename Token = asio::default_completion_token_t<executor_type>>
    auto async_shutdown(const shutdown_options& options = {}, Token&& token = {})
    {
        if (options.what == asio::socket_base::shutdown_receive)
            throw std::invalid_argument(
                "the receiving side cannot be shut down alone; use shutdown_send or shutdown_both");
        return initiate_shutdown(options.what, options.timeout, false, std::forward<Token>(token));
    }

private:
    template <typename>
    friend class detail::stream_connection;

    upgradeable_stream(Socket socket, detail::tls_settings settings)
        : state_(std::make_shared<state>(std::move(socket), std::move(settings)))
    {
    }

    std::unique_ptr<detail::upgrade_request> request_upgrade(const tls_options& options) const
    {
        return std::make_unique<detail::upgrade_request>(state_->settings, options,
                                                         std::holds_alternative<Socket>(state_->stage));
    }

    template <typename Token>
    auto initiate_shutdown(asio::socket_base::shutdown_type what,
                           std::optional<std::chrono::steady_clock::duration> given, bool to_plain_text, Token&& token)
    {
        const auto timeout = given.value_or(state_->settings.shutdown_timeout);
        detail::require_positive(timeout, "timeout");
        return detail::initiate<void(asio::error_code)>(
            get_executor(), detail::shutdown_operation<state>{state_, what, timeout, to_plain_text},
            std::forward<Token>(token));
    }

    template <typename Token>
    static auto initiate_upgrade(std::shared_ptr<state> s, std::unique_ptr<detail::upgrade_request> request,
                                 Token&& token)
    {
        const auto executor = s->socket().get_executor();
        return detail::initiate<void(asio::error_code)>(
            executor, detail::upgrade_operation<state>{std::move(s), std::move(request)}, std::forward<Token>(token));
    }

    static asio::awaitable<void> await_upgrade(std::shared_ptr<state> s,
                                               std::unique_ptr<detail::upgrade_request> request)
    {
        asio::error_code error;
        co_await initiate_upgrade(s, std::move(request), asio::redirect_error(asio::use_awaitable, error));
        if (error)
            throw s->describe(error);
    }

    std::shared_ptr<state> state_;
};

} // namespace upgradeable_streams

#endif
