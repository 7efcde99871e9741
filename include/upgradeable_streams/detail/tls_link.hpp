/// @file
/// A TLS layer over a socket.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TLS_LINK_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TLS_LINK_HPP

#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/detail/record_framing.hpp>
#include <upgradeable_streams/detail/write_queue.hpp>
#include <upgradeable_streams/tls_stream.hpp>


#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace upgradeable_streams::detail
{

/// Any layer with the interface of asio::ssl::stream, made right in full duplex by a queue under it.
template <typename Socket, template <typename> class TlsLayer>
class queued_tls_link
{
public:
    /// When this throws, the socket is where it was.
    queued_tls_link(Socket&& socket, openssl_ptr<SSL> ssl, std::weak_ptr<void> owner)
        : queue_(std::move(socket), std::move(owner))
    {
        try
        {
            layer_.emplace(queue_, ssl.release()); // owns it, also when it throws
        }
        catch (...)
        {
            socket = std::move(queue_.next_layer());
            throw;
        }
        queue_.keep_first_bytes();
    }

    TlsLayer<write_queue<Socket>&>& layer() { return *layer_; }
    Socket& socket() { return queue_.next_layer(); }
    Socket release_socket() { return std::move(queue_.next_layer()); }
    std::string take_first_bytes() { return queue_.take_first_bytes(); }

    /// Tells of bytes that the handshake is given beside what is read.
    void skip(std::string_view received) { queue_.skip(received); }

    /// Nothing is sent behind the close_notify.
    void end_output() { queue_.end_output(); }

    /// The records that TLS was given, and the plain text that came with the last.
    const record_framing& framing() const { return queue_.framing(); }
    std::string take_plain_text() { return queue_.take_plain_text(); }

    /// Whether a write, or the end of TLS, may begin.
    bool try_begin() const { return queue_.idle(); }

    /// Whether all was handed to the socket.
    bool is_sent() const { return queue_.sent(); }

    /// The first error of sending.
    const asio::error_code& error() const { return queue_.error(); }

    /// Completes when one of these may have changed.
    template <typename Handler>
    void async_wait_change(Handler&& handler)
    {
        queue_.async_wait_change(std::forward<Handler>(handler));
    }

private:
    write_queue<Socket> queue_;
    std::optional<TlsLayer<write_queue<Socket>&>> layer_;
};

/// A tls_stream, which is right by itself and able to do without waiting what it can.
template <typename Socket>
class direct_tls_link
{
public:
    direct_tls_link(Socket&& socket, openssl_ptr<SSL> ssl, const std::weak_ptr<void>&)
        : layer_(std::move(socket), ssl.release())
    {
    }

    tls_stream<Socket>& layer() { return layer_; }
    Socket& socket() { return layer_.next_layer(); }

    /// And leaves a layer that closes nothing when it goes.
    Socket release_socket()
    {
        Socket released = std::move(layer_.next_layer());
        layer_.core_.reset();
        return released;
    }

    std::string take_first_bytes() { return core().take_first_bytes(); }

    void skip(std::string_view) {}
    void end_output() {} // the engine knows
    const record_framing& framing() const { return core().engine.framing(); }
    std::string take_plain_text() { return std::string(core().engine.fed()); }

    bool try_begin() { return core().finish_message(); }
    bool is_sent() const { return core().is_flushed(); }
    const asio::error_code& error() const { return core().write_error(); }

    template <typename Handler>
    void async_wait_change(Handler&& handler)
    {
        core().async_writable(std::forward<Handler>(handler));
    }

    tls_core<Socket>& core() { return *layer_.core_; }
    const tls_core<Socket>& core() const { return *layer_.core_; }

private:
    tls_stream<Socket> layer_;
};

/// Chosen by the type of the layer, for an alias of tls_stream is not the same template to every compiler.
template <typename Socket, template <typename> class TlsLayer>
using tls_link = std::conditional_t<std::is_same_v<TlsLayer<Socket>, tls_stream<Socket>>, direct_tls_link<Socket>,
                                    queued_tls_link<Socket, TlsLayer>>;

} // namespace upgradeable_streams::detail

#endif
