#ifndef TEST_SUPPORT_TLS_SETTINGS_HPP
#define TEST_SUPPORT_TLS_SETTINGS_HPP

#include "openssl.hpp"

#include <openssl/ssl.h>

#include <functional>
#include <string>

namespace test
{

/// What a raw peer brings to a handshake; all of it may be left out.
struct tls_settings
{
    std::string certificate_file{};
    std::string key_file{};
    std::string ca_file{};     ///< Verify the other side with it; a server then demands a certificate.
    std::string server_name{}; ///< Of a client: sent as SNI, and checked where there is a `ca_file`.
    int min_version = TLS1_2_VERSION;
    int max_version = TLS1_3_VERSION;
    std::string send_before{};              ///< Plain bytes that share a send with the first TLS bytes, before them.
    std::string send_after{};               ///< The same, behind them.
    std::function<void(SSL_CTX*)> adjust{}; ///< For everything else; called last.
};

/// A server with `localhost_certificate()`.
tls_settings localhost_server();

/// A client that verifies against `authority()` and the name "localhost".
tls_settings localhost_client();

using context_ptr = openssl_ptr<SSL_CTX, SSL_CTX_free>;

/// An OpenSSL context of its own, with security level 0 so that old protocol versions can be tried.
context_ptr make_context(const tls_settings& settings, bool is_server);

} // namespace test

#endif
