#ifndef TEST_SUPPORT_RAW_PEER_HPP
#define TEST_SUPPORT_RAW_PEER_HPP

#include "openssl.hpp"
#include "socket_pair.hpp"
#include "tls_settings.hpp"

#include <asio/generic/stream_protocol.hpp>
#include <openssl/ssl.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace test
{

/// The address of any stream socket: a `tcp::endpoint` and a `local::stream_protocol::endpoint` convert to it.
using any_endpoint = asio::generic::stream_protocol::endpoint;

/// The other end of a connection: a blocking socket with OpenSSL over it, and nothing of the library under test.
///
/// Every wait is bounded by `peer_deadline`. Errors: `std::system_error` of the socket (ETIMEDOUT included);
/// `failure` with OpenSSL's text for errors of TLS.
class raw_peer
{
public:
    /// Takes ownership of a connected socket.
    explicit raw_peer(int descriptor);
    static raw_peer connect(const any_endpoint& endpoint);
    raw_peer(raw_peer&&) noexcept;
    raw_peer& operator=(raw_peer&&) noexcept;
    ~raw_peer();

    int descriptor() const noexcept;

    /// Null before the handshake.
    SSL* ssl() const noexcept { return ssl_.get(); }

    void send_all(std::string_view bytes);
    std::string recv_some(std::size_t most = 65536); ///< Empty at the end.
    std::string recv_exactly(std::size_t size);      ///< Shorter at the end.
    std::string recv_line();                         ///< To and with '\n', and no byte further; less at the end.
    std::string recv_all();                          ///< To the end.
    void send_fin();

    void tls_accept(const tls_settings& settings);
    void tls_connect(const tls_settings& settings);
    void tls_write(std::string_view bytes);
    std::string tls_read_some(std::size_t most = 65536); ///< Empty after close_notify; without one the end is an error.
    std::string tls_read_exactly(std::size_t size);
    std::string tls_read_line();
    std::string tls_read_all();

    /// Sends a KeyUpdate at once (TLS 1.3), and asks for one where `request_peer` is true.
    void key_update(bool request_peer);

    /// Sends a session ticket of more than 2,000 bytes in records of at most 512, as all that it writes from then on
    /// (TLS 1.3, server).
    void session_ticket();

    /// Returns: the TLS bytes that `action` would have sent.
    std::string tls_unsent(const std::function<void()>& action);

    /// Sends close_notify, and reads, dropping data, until the other side's has come.
    void tls_shutdown();
    void tls_shutdown_send_only();

    void close();

    /// Closes with a RST.
    void reset();

private:
    struct transport;

    void start_tls(const tls_settings& settings, bool is_server);
    void tls_check(int result, const char* what);

    std::unique_ptr<transport> transport_;
    openssl_ptr<SSL, SSL_free> ssl_;
};

/// Has the socket close with a RST (SO_LINGER with a time of 0).
void reset_on_close(int descriptor);

/// A listening socket for raw peers, on a free port of 127.0.0.1 unless told otherwise.
class raw_listener
{
public:
    explicit raw_listener(const any_endpoint& endpoint = loopback());
    ~raw_listener();
    raw_listener(const raw_listener&) = delete;
    raw_listener& operator=(const raw_listener&) = delete;

    int descriptor() const noexcept { return descriptor_; }
    any_endpoint endpoint() const;
    std::uint16_t port() const; ///< Of TCP.

    raw_peer accept();

private:
    int descriptor_;
};

} // namespace test

#endif
