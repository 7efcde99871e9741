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
class queued_tls_link : public write_queue<Socket>
{
public:
    /// When this throws, the socket is where it was.
    queued_tls_link(Socket&& socket, openssl_ptr<SSL> ssl, std::weak_ptr<void> owner)
        : write_queue<Socket>(std::move(socket), std::move(owner))
    {
        try
        {
            layer_.emplace(*this, ssl.release()); // owns it, also when it throws
            this->keep_first_bytes();
        }
        catch (...)
        {
            socket = std::move(this->next_layer());
            throw;
        }
    }

    TlsLayer<write_queue<Socket>&>& layer() { return *layer_; }
    Socket& socket() { return this->next_layer(); }
    Socket release_socket() { return std::move(this->next_layer()); }

private:
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

    bool can_write() { return core().finish_message(); }
    bool is_sent() const { return core().is_flushed(); }
    const asio::error_code& error() const { return core().write_error(); }

    template <typename Handler>
    void async_wait_output(Handler&& handler)
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
