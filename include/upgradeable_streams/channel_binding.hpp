/// @file
/// Secrets that only the two ends of a TLS session can compute, for protocols that run inside it.
///
/// The SSL object is that of `upgradeable_stream::native_handle()`, `tls_stream::native_handle()` or
/// `get_extra_info<"ssl_object">()`. All functions throw std::invalid_argument when its handshake is not complete.
#ifndef UPGRADEABLE_STREAMS_CHANNEL_BINDING_HPP
#define UPGRADEABLE_STREAMS_CHANNEL_BINDING_HPP

#include <upgradeable_streams/certificate.hpp>
#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/detail/text.hpp>
#include <upgradeable_streams/tls.hpp>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <cstddef>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace upgradeable_streams
{

/// Returns: `size` bytes, the same at both ends (RFC 5705; RFC 8446 section 7.5).
///
/// `label` says what they are for, as registered with IANA or beginning with `EXPERIMENTAL`. In TLS 1.2 no context and
/// an empty one give different bytes, in TLS 1.3 the same.
///
/// Errors: std::system_error with OpenSSL's reason, as for a label that TLS itself uses.
inline std::string export_keying_material(SSL* ssl, std::string_view label, std::size_t size,
                                          std::optional<std::string_view> context = {})
{
    detail::require_session(ssl);
    std::string bytes(size, '\0');
    const std::string_view given = context.value_or("");
    ERR_clear_error();
    if (SSL_export_keying_material(ssl, reinterpret_cast<unsigned char*>(bytes.data()), size, label.data(),
                                   label.size(), reinterpret_cast<const unsigned char*>(given.data()), given.size(),
                                   context.has_value()) != 1)
        throw std::system_error(detail::take_openssl_error(), "export_keying_material");
    return bytes;
}

/// Returns: the 32 bytes of the channel binding `tls-exporter` (RFC 9266), as SCRAM-SHA-256-PLUS wants them in TLS 1.3.
///
/// Errors: std::runtime_error in TLS 1.2 without the extended master secret, where they would not be unique to the
/// session (RFC 9266 section 4.2).
inline std::string tls_exporter(SSL* ssl)
{
    detail::require_session(ssl);
    if (SSL_version(ssl) < TLS1_3_VERSION && SSL_get_extms_support(ssl) != 1)
        throw std::runtime_error("tls-exporter needs TLS 1.3, or TLS 1.2 with the extended master secret");
    return export_keying_material(ssl, "EXPORTER-Channel-Binding", 32, "");
}

/// Returns: the channel binding `tls-server-end-point` (RFC 5929 section 4), the hash of the server's certificate.
///
/// A server that has several certificates learns that of this session, unless the session is a resumed one.
///
/// Errors: std::runtime_error when the server has no certificate, or one whose signature has no hash function of its
/// own, as Ed25519's, for which the RFC defines nothing.
inline std::string tls_server_end_point(SSL* ssl)
{
    detail::require_session(ssl);
    X509* const x509 = SSL_is_server(ssl) ? SSL_get_certificate(ssl) : SSL_get0_peer_certificate(ssl);
    if (!x509)
        throw std::runtime_error("tls-server-end-point: the server has no certificate");
    int hash = NID_undef;
    if (X509_get_signature_info(x509, &hash, nullptr, nullptr, nullptr) != 1 || hash == NID_undef)
        throw std::runtime_error("tls-server-end-point is not defined for the signature of " +
                                 detail::printable(certificate(x509).subject()));
    const bool is_weak = hash == NID_md5 || hash == NID_sha1;
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    if (X509_digest(x509, is_weak ? EVP_sha256() : EVP_get_digestbynid(hash), bytes, &size) != 1)
        throw std::bad_alloc();
    return {reinterpret_cast<const char*>(bytes), size};
}

} // namespace upgradeable_streams

#endif
