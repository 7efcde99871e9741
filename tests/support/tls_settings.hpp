#ifndef TEST_SUPPORT_TLS_SETTINGS_HPP
#define TEST_SUPPORT_TLS_SETTINGS_HPP

#include "openssl.hpp"

#include <openssl/ssl.h>

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace test
{

struct issued;

/// Given all that a peer has to say before it listens for the first time, and what sends bytes. Must not throw.
using flight_sender = std::function<void(std::string_view flight, const std::function<void(std::string_view)>& send)>;

/// What a raw peer brings to a handshake; all of it may be left out.
struct tls_settings
{
    std::string certificate_file{};
    std::string key_file{};
    std::string ca_file{};     ///< Verify the other side with it; a server then demands a certificate.
    std::string server_name{}; ///< Of a client: sent as SNI, and checked where there is a `ca_file`.
    int min_version = TLS1_2_VERSION;
    int max_version = TLS1_3_VERSION;
    std::size_t padding = 0; ///< Of a client: makes its ClientHello so much longer, by an extension that nobody knows.
    std::string send_before{};              ///< Plain bytes that share a send with the first flight, before it.
    std::string send_after{};               ///< The same, behind it.
    flight_sender send_flight{};            ///< Sends the first flight, in place of the peer and of these two.
    std::function<void(SSL_CTX*)> adjust{}; ///< For everything else; called last.
};

/// A server with `localhost_certificate()`.
tls_settings localhost_server();

/// A client that verifies against `authority()` and the name "localhost".
tls_settings localhost_client();

/// The same with a certificate, for a server that asks for one.
tls_settings localhost_client(const issued& own);

using context_ptr = openssl_ptr<SSL_CTX, SSL_CTX_free>;

/// An OpenSSL context of its own, with security level 0 so that old protocol versions can be tried.
context_ptr make_context(const tls_settings& settings, bool is_server);

/// The session tickets of a server then have more than 2,000 bytes.
void enlarge_session_tickets(SSL_CTX* context);

} // namespace test

#endif
