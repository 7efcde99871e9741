#ifndef TEST_SUPPORT_STEPPED_PEER_HPP
#define TEST_SUPPORT_STEPPED_PEER_HPP

#include "openssl.hpp"
#include "pattern.hpp"
#include "tls_settings.hpp"

#include <asio/local/stream_protocol.hpp>
#include <openssl/ssl.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace test
{

/// The other end of a connection, in the same thread: OpenSSL, which does nothing but in steps, and whose bytes wait in
/// memory until they are delivered. What is sent and received is a function of its position.
///
/// Errors: `failure` when other bytes came, or bytes behind the close_notify.
class stepped_peer
{
public:
    using socket_type = asio::local::stream_protocol::socket; // takes and gives at once, or not at all

    stepped_peer(socket_type socket, bool is_server, int version = TLS1_3_VERSION);

    bool is_open() const { return SSL_is_init_finished(ssl_.get()); } ///< Whether the handshake is done.
    bool has_ended() const { return (SSL_get_shutdown(ssl_.get()) & SSL_SENT_SHUTDOWN) != 0; }
    bool was_ended() const { return (SSL_get_shutdown(ssl_.get()) & SSL_RECEIVED_SHUTDOWN) != 0; }
    std::uint64_t sent() const { return sent_; }
    std::uint64_t received() const { return received_; }

    // Nothing of this comes before it is delivered.

    void write(std::size_t size);
    void update_keys(bool both); ///< TLS 1.3.
    void send_ticket();          ///< Of a server: in records of at most 512 bytes, as all from then on (TLS 1.3).
    void end();                  ///< With a close_notify.

    /// So many bytes at most. Returns: whether there were any.
    bool deliver(std::size_t most);
    bool receive(std::size_t most);

    static constexpr pattern outgoing{1};
    static constexpr pattern incoming{2};

private:
    context_ptr context_;
    socket_type socket_;
    openssl_ptr<SSL, SSL_free> ssl_;
    BIO* input_;
    BIO* output_;
    std::string wire_;
    std::uint64_t sent_ = 0;
    std::uint64_t received_ = 0;
};

} // namespace test

#endif
