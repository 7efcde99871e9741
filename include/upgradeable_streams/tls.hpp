/// @file
/// What an upgrade is asked for (role, options), and what can be told of it afterwards (session).
#ifndef UPGRADEABLE_STREAMS_TLS_HPP
#define UPGRADEABLE_STREAMS_TLS_HPP

#include <upgradeable_streams/certificate.hpp>
#include <upgradeable_streams/detail/record_framing.hpp>
#include <upgradeable_streams/string_list.hpp>
#include <upgradeable_streams/tlsa_record.hpp>

#include <asio/ssl/context.hpp>
#include <openssl/ssl.h>

#include <chrono>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace upgradeable_streams
{

/// Who sends the ClientHello, and who answers.
enum class tls_role
{
    client,
    server
};

/// What a TLS upgrade needs. Given when a stream is made, and at the upgrade to override that; what is left out
/// at the upgrade keeps its earlier value. Views are used in the call only.
struct tls_options
{
    /// The stream shares ownership of the underlying SSL_CTX, so the context object itself may go, unless it has a
    /// verify callback, which it owns.
    asio::ssl::context* ssl = nullptr;

    /// The client unless said otherwise.
    std::optional<tls_role> role = {};

    /// The name or address that the server's certificate must be for; required of a client whose context verifies it.
    std::string_view server_hostname = {};

    /// A connection of this client whose session is resumed if the server still knows it, as FTPS servers demand of
    /// data connections: `stream.native_handle()` or `get_extra_info<"ssl_object">()` of one with the same context and
    /// server_hostname; anything else is std::invalid_argument. In TLS 1.3 it has to have read something, for what can
    /// be resumed comes after the handshake (RFC 8446 section 4.6.1); without that the handshake is a full one.
    ///
    /// Concurrency and lifetime: used in the call only.
    SSL* resume_from = nullptr;

    /// What a resolver that validates DNSSEC has told of `_port._tcp.server_hostname` (DANE, RFC 7671). When given, the
    /// server is known by one of these, also with a context that does not verify: DANE-TA and DANE-EE stand in the
    /// place of trusted authorities, PKIX-TA and PKIX-EE are demanded beside them. With DANE-EE neither the names nor
    /// the dates of the certificate matter, nor whether it was revoked. A verify callback has the last word. No records
    /// are no DANE: a lookup that failed is not one that found none. Left out at the upgrade they are those from
    /// before, and another server_hostname needs its own.
    ///
    /// Errors: errc::tlsa_records_unusable at the call, where RFC 7672 section 2.2 has mail go over TLS all the same,
    /// with a context that does not verify.
    std::span<const tlsa_record> tlsa_records = {};

    /// Further DNS names, for one of which the certificate may be in the place of server_hostname: of a mail exchanger
    /// the domain of the mail (RFC 7672 section 3.2.2). They go when another server_hostname is given.
    string_list other_hostnames = {};

    /// Bytes that the caller has received from the peer already. A server hands the beginning of a ClientHello to
    /// the handshake; anything else is errc::plaintext_injection.
    std::string_view received = {};

    /// The deadline of the whole handshake; 60 s unless said otherwise (asyncio's default).
    std::optional<std::chrono::steady_clock::duration> handshake_timeout = {};

    /// The deadline of the whole shutdown; 30 s unless said otherwise (asyncio's default).
    std::optional<std::chrono::steady_clock::duration> shutdown_timeout = {};

    /// Take the end of the connection without a close_notify for a clean end (the name is from Python's ssl
    /// module). Only for peers that are known to do so: an attacker can cut such a connection unnoticed.
    std::optional<bool> suppress_ragged_eofs = {};
};

static_assert(std::is_trivially_destructible_v<tls_options>);

/// Whether the first bytes of a peer begin a TLS handshake record, as a ClientHello does (RFC 8446 section 5.1), as far
/// as they go: two decide, and of none the answer is yes.
///
/// A server with one port for TLS and plain text reads until it has two, or the answer is no. If it is yes, it goes on
/// with `start_tls({.received = bytes})`, and otherwise in plain text with the bytes that it has.
inline bool begins_tls_handshake(std::string_view bytes)
{
    return detail::begins_tls_record(bytes) && (bytes.empty() || bytes[0] == 0x16);
}

/// What encrypts (asyncio's `cipher`).
struct cipher_info
{
    std::string name;     ///< As in TLS_AES_256_GCM_SHA384.
    std::string protocol; ///< The TLS version that defined it, as in TLSv1.3.
    int secret_bits = 0;
};

/// What a completed handshake negotiated, read from an SSL object. Since nothing else gives one, a function that asks
/// for it, as `login(const tls_session&, ...)`, cannot be called before there was TLS: it is to be taken from the
/// stream or writer that is then used, for it outlives stop_tls.
struct tls_session
{
    /// Errors: std::invalid_argument when the handshake is not complete.
    explicit tls_session(SSL* ssl);

    std::string version; ///< As in TLSv1.3.
    cipher_info cipher;
    std::optional<std::string> alpn_protocol;
    std::optional<std::string> server_name; ///< The SNI, as it was sent or received, in whatever case.
    std::optional<certificate> peer_certificate;
    long verify_result; ///< X509_V_OK, or the reason for which a context that tolerates it did not trust the peer.
    bool peer_verified; ///< The context verifies, the peer has a certificate, and that was accepted.
    bool session_reused;
};

namespace detail
{

/// Whether the handshake is done, also while a ticket or new keys come or go in parts, for which SSL_is_init_finished
/// is false again. It is rightly so while a certificate that was asked for later is not proven yet (RFC 8446
/// section 4.6.2).
inline bool has_session(SSL* ssl)
{
    switch (SSL_get_state(ssl))
    {
    case TLS_ST_OK:
    case TLS_ST_CR_SESSION_TICKET:
    case TLS_ST_CR_KEY_UPDATE:
    case TLS_ST_CW_KEY_UPDATE:
    case TLS_ST_SR_KEY_UPDATE:
    case TLS_ST_SW_KEY_UPDATE:
    case TLS_ST_SW_SESSION_TICKET:
    case TLS_ST_SR_CLNT_HELLO: // which asks to renegotiate, in vain
    case TLS_ST_CR_CERT_REQ: return SSL_get_finished(ssl, nullptr, 0) > 0 && SSL_get_peer_finished(ssl, nullptr, 0) > 0;
    default: return false;
    }
}

inline SSL* require_session(SSL* ssl)
{
    if (!ssl || !has_session(ssl))
        throw std::invalid_argument("there is no TLS session yet: call this after start_tls");
    return ssl;
}

} // namespace detail

inline tls_session::tls_session(SSL* ssl)
    : version(SSL_get_version(detail::require_session(ssl))), verify_result(SSL_get_verify_result(ssl)),
      session_reused(SSL_session_reused(ssl) == 1)
{
    if (const SSL_CIPHER* current = SSL_get_current_cipher(ssl))
        cipher = {SSL_CIPHER_get_name(current), SSL_CIPHER_get_version(current),
                  SSL_CIPHER_get_bits(current, nullptr)};
    const unsigned char* protocol = nullptr;
    unsigned size = 0;
    SSL_get0_alpn_selected(ssl, &protocol, &size);
    if (size > 0)
        alpn_protocol.emplace(reinterpret_cast<const char*>(protocol), size);
    if (const char* name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name))
        server_name = name;
    if (X509* peer = SSL_get0_peer_certificate(ssl))
        peer_certificate.emplace(peer);
    peer_verified = peer_certificate && verify_result == X509_V_OK && (SSL_get_verify_mode(ssl) & SSL_VERIFY_PEER);
}

} // namespace upgradeable_streams

#endif
