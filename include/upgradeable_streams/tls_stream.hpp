/// @file
/// A TLS stream with the interface of asio::ssl::stream, for more speed in less memory.
#ifndef UPGRADEABLE_STREAMS_TLS_STREAM_HPP
#define UPGRADEABLE_STREAMS_TLS_STREAM_HPP

#include <upgradeable_streams/detail/initiation.hpp>
#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/detail/tls_core.hpp>
#include <upgradeable_streams/detail/tls_operations.hpp>

#include <asio/async_result.hpp>
#include <asio/buffer.hpp>
#include <asio/ssl/context.hpp>
#include <asio/ssl/stream_base.hpp>

#include <cstddef>
#include <memory>
#include <new>
#include <system_error>
#include <type_traits>
#include <utility>

namespace upgradeable_streams
{

namespace detail
{
template <typename Socket>
class direct_tls_link;
}

/// An AsyncStream that speaks TLS over another, as asio::ssl::stream does.
///
/// `NextLayer` is an AsyncStream with a `lowest_layer()` that can be closed, or a reference to one; over an Asio
/// socket, system calls are made directly. The blocking functions want a SyncStream. What differs from
/// asio::ssl::stream:
/// - Up to 256 KiB are encrypted and sent at once, and as much is received as has come. While nothing is under way no
///   buffer is held beyond 512 bytes for the record to come.
/// - Reads and writes are right in full duplex, when the peer renews its keys too (RFC 8446 section 4.6.3).
/// - Before the handshake any number of bytes may have been received. It has to be asked for: a read or write before it
///   is done is asio::error::not_connected.
/// - One object is one connection: after SSL_clear it cannot be used again.
/// - It may be moved or destroyed while operations are pending. They end then with asio::error::operation_aborted;
///   over a reference, once the next layer is closed.
/// - An end without a close_notify is asio::ssl::error::stream_truncated; the first error of reading is repeated.
///   A read of a socket that was closed on this side is asio::error::operation_aborted, whenever that was.
/// - It does not renegotiate (RFC 9325 section 3.5).
///
/// Cancellation: a cancelled read loses nothing. After a cancelled write, handshake or shutdown half a record may have
/// been sent, so every later operation reports errc::stream_unusable.
///
/// Blocking: a function without `async_` in its name blocks as the next layer's read_some and write_some do, and is not
/// to be called while an operation is pending. One without an error_code throws std::system_error. Over a next layer
/// that does not block, asio::error::would_block is no failure: the same call is to be made again, as SSL_write's; so
/// is asio::error::interrupted. asio::error::in_progress says that a reply to a KeyUpdate, which an asynchronous read
/// has met, is still being sent: run the io_context first.
///
/// Concurrency: one read and one write may be pending at a time, and neither beside a handshake or a shutdown, on one
/// thread or strand.
template <typename NextLayer>
class tls_stream : public asio::ssl::stream_base
{
    using core = detail::tls_core<NextLayer>;

public:
    using next_layer_type = std::remove_reference_t<NextLayer>;
    using lowest_layer_type = typename next_layer_type::lowest_layer_type;
    using executor_type = typename next_layer_type::executor_type;
    using native_handle_type = SSL*;

    /// The stream shares ownership of the context's SSL_CTX.
    template <typename Arg>
    tls_stream(Arg&& next, asio::ssl::context& context)
        : tls_stream(std::forward<Arg>(next), SSL_new(context.native_handle()))
    {
    }

    /// Takes ownership of the SSL object, also when this throws.
    template <typename Arg>
    tls_stream(Arg&& next, SSL* ssl)
    {
        detail::openssl_ptr<SSL> owned(ssl);
        if (!ssl)
            throw std::bad_alloc();
        core_ = std::make_shared<core>(std::forward<Arg>(next), std::move(owned));
    }

    tls_stream(tls_stream&&) noexcept = default;

    tls_stream& operator=(tls_stream&& other) noexcept
    {
        tls_stream(std::move(other)).core_.swap(core_);
        return *this;
    }

    ~tls_stream()
    {
        if (!core_ || std::is_reference_v<NextLayer>)
            return;
        asio::error_code ignored;
        core_->abandon();
        lowest_layer().close(ignored);
    }

    executor_type get_executor() { return next_layer().get_executor(); }
    SSL* native_handle() { return core_->engine.native_handle(); }
    next_layer_type& next_layer() { return core_->next(); }
    const next_layer_type& next_layer() const { return core_->next(); }
    lowest_layer_type& lowest_layer() { return next_layer().lowest_layer(); }
    const lowest_layer_type& lowest_layer() const { return next_layer().lowest_layer(); }

    void set_verify_mode(asio::ssl::verify_mode mode)
    {
        SSL_set_verify(native_handle(), mode, SSL_get_verify_callback(native_handle()));
    }

    void set_verify_mode(asio::ssl::verify_mode mode, asio::error_code& error)
    {
        set_verify_mode(mode);
        error.clear();
    }

    void set_verify_depth(int depth) { SSL_set_verify_depth(native_handle(), depth); }

    void set_verify_depth(int depth, asio::error_code& error)
    {
        set_verify_depth(depth);
        error.clear();
    }

    /// What has the last word on each of the peer's certificates: bool(bool preverified, asio::ssl::verify_context&).
    /// To throw is to refuse.
    template <typename VerifyCallback>
    void set_verify_callback(VerifyCallback callback)
    {
        core_->engine.set_verify_callback(std::move(callback));
    }

    template <typename VerifyCallback>
    void set_verify_callback(VerifyCallback callback, asio::error_code& error)
    {
        set_verify_callback(std::move(callback));
        error.clear();
    }

    /// Sends and receives what the handshake needs; the signature is void(asio::error_code).
    template <typename Token = asio::default_completion_token_t<executor_type>>
    auto async_handshake(handshake_type type, Token&& token = {})
    {
        return exchange<void(asio::error_code)>(detail::tls_handshake<false, asio::const_buffer>{type == server, {}},
                                                std::forward<Token>(token));
    }

    /// As async_handshake, when the caller has received bytes already. The signature is void(asio::error_code,
    /// std::size_t), with how many of them the handshake took; nothing else is to be done with them.
    template <typename ConstBufferSequence, typename Token = asio::default_completion_token_t<executor_type>>
        requires asio::is_const_buffer_sequence<ConstBufferSequence>::value
    auto async_handshake(handshake_type type, const ConstBufferSequence& received, Token&& token = {})
    {
        return exchange<void(asio::error_code, std::size_t)>(
            detail::tls_handshake<true, ConstBufferSequence>{type == server, received}, std::forward<Token>(token));
    }

    /// Sends a close_notify and awaits the peer's; the signature is void(asio::error_code).
    template <typename Token = asio::default_completion_token_t<executor_type>>
    auto async_shutdown(Token&& token = {})
    {
        return exchange<void(asio::error_code)>(detail::tls_shutdown(), std::forward<Token>(token));
    }

    /// Reads at least one byte; the signature is void(asio::error_code, std::size_t).
    template <typename MutableBufferSequence, typename Token = asio::default_completion_token_t<executor_type>>
    auto async_read_some(const MutableBufferSequence& buffers, Token&& token = {})
    {
        return detail::initiate<void(asio::error_code, std::size_t)>(
            get_executor(), detail::tls_read_operation<core, MutableBufferSequence>{core_, buffers},
            std::forward<Token>(token));
    }

    /// Writes at least one byte, at most 256 KiB; the signature is void(asio::error_code, std::size_t).
    ///
    /// Fragments of less than 16 KiB are joined to records. Completes when all was handed to the next layer.
    template <typename ConstBufferSequence, typename Token = asio::default_completion_token_t<executor_type>>
    auto async_write_some(const ConstBufferSequence& buffers, Token&& token = {})
    {
        return detail::initiate<void(asio::error_code, std::size_t)>(
            get_executor(), detail::tls_write_operation<core, ConstBufferSequence>{core_, buffers},
            std::forward<Token>(token));
    }

    void handshake(handshake_type type)
    {
        asio::error_code error;
        handshake(type, error);
        throw_if(error);
    }

    void handshake(handshake_type type, asio::error_code& error) { handshake(type, asio::const_buffer(), error); }

    /// When the caller has received bytes already, all of which are the handshake's.
    template <typename ConstBufferSequence>
        requires asio::is_const_buffer_sequence<ConstBufferSequence>::value
    void handshake(handshake_type type, const ConstBufferSequence& received)
    {
        asio::error_code error;
        handshake(type, received, error);
        throw_if(error);
    }

    template <typename ConstBufferSequence>
    void handshake(handshake_type type, const ConstBufferSequence& received, asio::error_code& error)
    {
        using action = detail::tls_handshake<false, ConstBufferSequence>;
        block(detail::tls_exchange_operation<core, action>{core_, action{type == server, received}}, error);
    }

    void shutdown()
    {
        asio::error_code error;
        shutdown(error);
        throw_if(error);
    }

    void shutdown(asio::error_code& error)
    {
        block(detail::tls_exchange_operation<core, detail::tls_shutdown>{core_, {}}, error);
    }

    template <typename MutableBufferSequence>
    std::size_t read_some(const MutableBufferSequence& buffers)
    {
        asio::error_code error;
        const std::size_t size = read_some(buffers, error);
        throw_if(error);
        return size;
    }

    template <typename MutableBufferSequence>
    std::size_t read_some(const MutableBufferSequence& buffers, asio::error_code& error)
    {
        return block(detail::tls_read_operation<core, MutableBufferSequence>{core_, buffers}, error);
    }

    template <typename ConstBufferSequence>
    std::size_t write_some(const ConstBufferSequence& buffers)
    {
        asio::error_code error;
        const std::size_t size = write_some(buffers, error);
        throw_if(error);
        return size;
    }

    template <typename ConstBufferSequence>
    std::size_t write_some(const ConstBufferSequence& buffers, asio::error_code& error)
    {
        return block(detail::tls_write_operation<core, ConstBufferSequence>{core_, buffers}, error);
    }

private:
    template <typename Socket>
    friend class detail::direct_tls_link;

    template <typename Signature, typename Action, typename Token>
    auto exchange(Action action, Token&& token)
    {
        return detail::initiate<Signature>(get_executor(),
                                           detail::tls_exchange_operation<core, Action>{core_, std::move(action)},
                                           std::forward<Token>(token));
    }

    template <typename Operation>
    std::size_t block(Operation operation, asio::error_code& error)
    {
        return detail::blocking_call().run(*core_, std::move(operation), error);
    }

    static void throw_if(const asio::error_code& error)
    {
        if (error)
            throw std::system_error(error);
    }

    std::shared_ptr<core> core_;
};

} // namespace upgradeable_streams

#endif
