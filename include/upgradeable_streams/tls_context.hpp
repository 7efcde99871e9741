/// @file
/// TLS contexts with safe defaults, in the spirit of Python's ssl.create_default_context.
#ifndef UPGRADEABLE_STREAMS_TLS_CONTEXT_HPP
#define UPGRADEABLE_STREAMS_TLS_CONTEXT_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/string_list.hpp>

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS
#include <upgradeable_streams/detail/alpn.hpp>
#include <upgradeable_streams/detail/contexts_by_name.hpp>
#include <upgradeable_streams/detail/credentials.hpp>
#include <upgradeable_streams/detail/dane.hpp>
#include <upgradeable_streams/detail/key_log.hpp>
#include <upgradeable_streams/detail/pins.hpp>
#include <upgradeable_streams/detail/resumption.hpp>
#include <upgradeable_streams/detail/revocation.hpp>
#include <upgradeable_streams/detail/ticket_keys.hpp>
#endif

#include <asio/ssl/context.hpp>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <stdexcept>
#include <string_view>
#include <type_traits>

namespace upgradeable_streams
{

/// Own certificate and private key, in PEM. Here and in the other options of contexts, an empty path is none.
///
/// Lifetime: views are used in the call only.
struct key_pair_options
{
    std::string_view certificate_chain_file = {}; ///< Own certificate first, then the intermediate ones.
    std::string_view private_key_file = {};
    std::string_view private_key_password = {}; ///< For an encrypted key; nobody is asked at the terminal.

    /// Accept a key file that the group or others can read; on Windows nobody looks.
    bool allow_readable_private_key = false;

    // In place of the files, what would be in them:
    std::string_view certificate_chain_data = {};
    std::string_view private_key_data = {};
};

/// Options of create_client_context.
///
/// Lifetime: views are used in the call only.
struct client_context_options
{
    std::string_view ca_file = {}; ///< PEM file of trusted certificates, in place of the system's.
    std::string_view ca_data = {}; ///< Or what would be in it; an empty text is an error.

    /// PEM file of certificate revocation lists (RFC 5280 section 5), for verify_peer. When given, a server is refused
    /// whose certificate was revoked, and one in whose chain is an authority of which there is no list that is in date:
    /// of several the newest such one counts. Lists are complete ones, neither deltas nor indirect. A server that is
    /// known by a TLSA record of its own certificate or key (DANE-EE) needs no chain, and is not looked for in them.
    std::string_view crl_file = {};
    std::string_view crl_data = {}; ///< Or what would be in it; an empty text is an error.
    bool verify_peer = true;       ///< False accepts any server: encryption without authentication.
    key_pair_options identity = {}; ///< The client's own, for servers that ask for one.
    string_list alpn_protocols = {};

    /// When given, some certificate of the server's verified chain must have one of these keys; with verify_peer =
    /// false the server's own certificate, of which nothing else is verified, neither chain nor name. Each is the
    /// base64 of a SHA-256 hash: certificate::public_key_pin, the value of a pin-sha256 (RFC 7469 section 2.4).
    string_list public_key_pins = {};

    /// How many sessions the context keeps for later connections to the same server_hostname, whatever the port, at
    /// most 8 for one, each for one of them. The server's certificate is verified anew before its session is offered.
    /// None unless asked for: by its session the server, and in TLS 1.2 whoever listens, can tell a client again.
    std::size_t max_sessions = 0;

    /// For Wireshark and the like: a file to which the secrets of each session are appended, in the format of
    /// SSLKEYLOGFILE. Whoever reads it reads the traffic: one that is another user's, or that others can read, is an
    /// error. On Windows nobody looks, and each context needs a file of its own.
    std::string_view key_log_file = {};
};

/// A context for the clients that ask for a name.
struct named_context
{
    /// As in `mail.example`, or `*.example` for every name with one label in the star's place; case does not matter.
    std::string_view name = {};

    /// Ownership of the SSL_CTX is shared, so the context object itself may go, unless it has a verify callback.
    asio::ssl::context* ssl = nullptr;
};

/// Options of create_server_context.
///
/// Lifetime: views are used in the call only.
struct server_context_options
{
    key_pair_options identity = {}; ///< Required.

    /// PEM file; when given, clients are asked for a certificate of these. Nobody is when it is empty, which is an
    /// error where `require_client_certificate` is set to true.
    std::string_view client_ca_file = {};
    std::string_view client_ca_data = {}; ///< Or what would be in it; an empty text is an error.

    /// With either: refuse clients without a certificate; true unless given.
    std::optional<bool> require_client_certificate = {};

    /// With either: lists by which clients are refused, as crl_file in client_context_options; contexts_by_name have
    /// their own. To clients one that is out of date looks as if their certificate were (RFC 8446 section 6.2).
    std::string_view client_crl_file = {};
    std::string_view client_crl_data = {}; ///< Or what would be in it; an empty text is an error.

    string_list alpn_protocols = {}; ///< In order of preference.

    /// Contexts for clients that ask for a name (SNI). What such a context demands holds in place of this one's
    /// demands: client certificates, ALPN, versions; only the groups of the key exchange are this one's. A session is
    /// resumed under no other name.
    std::span<const named_context> contexts_by_name = {};

    /// Refuse clients that ask for no name, or for one that is neither among contexts_by_name nor in the certificate of
    /// `identity`, which they are shown otherwise. So nobody can lead them here in another server's place (ALPACA).
    bool refuse_unknown_names = false;

    /// As in client_context_options; contexts_by_name have their own.
    std::string_view key_log_file = {};
};

static_assert(std::is_trivially_destructible_v<key_pair_options>);
static_assert(std::is_trivially_destructible_v<client_context_options>);
static_assert(std::is_trivially_destructible_v<named_context>);
static_assert(std::is_trivially_destructible_v<server_context_options>);

/// A context for clients: verifies the server's chain against the system's trust store or `ca_file`, and its name.
///
/// TLS 1.2 at least, or what OpenSSL's configuration demands (MinProtocol); ECDHE with AEAD ciphers; no finite fields,
/// renegotiation, compression or early data; OpenSSL's security level 2, for which an RSA key has 2048 bits and no
/// signature is SHA-1's. When ALPN protocols are offered and the server chooses none, start_tls fails with
/// errc::alpn_not_agreed.
///
/// Errors: std::system_error that names the file or the option, and the reason; std::invalid_argument for a wrong
/// option.
asio::ssl::context create_client_context(const client_context_options& options = {});

/// A context for servers.
///
/// As create_client_context, with the server's order of preference, and one session ticket for each connection, which
/// is good while the client's certificate is, and encrypted with a key of this process that changes daily (what
/// SSL_CTX_set_tlsext_ticket_keys sets is not used; SSL_CTX_set_tlsext_ticket_key_evp_cb is, for keys that several
/// machines share). A client that offers ALPN protocols of which none is in `alpn_protocols` is refused (RFC 7301
/// section 3.2).
///
/// Errors: as create_client_context, also when the private key does not fit the certificate or can be read by others.
asio::ssl::context create_server_context(const server_context_options& options);

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

inline void set_safe_defaults(SSL_CTX* context)
{
    if (SSL_CTX_get_min_proto_version(context) < TLS1_2_VERSION)
        SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_max_early_data(context, 0);
    SSL_CTX_set_security_level(context, std::max(SSL_CTX_get_security_level(context), 2)); // as from OpenSSL 3.2 on
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    if (!SSL_CTX_set_cipher_list(context, "ECDHE+AESGCM:ECDHE+CHACHA20"))
        throw_openssl_error("cipher list");
    // OpenSSL's default groups but those over finite fields, with which a client makes a server work hard for nothing
    // (CVE-2002-20001): from 3.5 on, before, and with a provider that lacks the others. 3.3 and 3.4 know "?" but not
    // "/", so that secp256r1 must not be optional: it is what they refuse the first list for.
    for (const char* groups : {"?*X25519MLKEM768/?*X25519:secp256r1/?X448:?secp384r1:?secp521r1",
                               "X25519:P-256:X448:P-521:P-384", "P-256:P-521:P-384"})
    {
        ERR_clear_error();
        if (SSL_CTX_set1_groups_list(context, groups))
            return ERR_clear_error();
    }
    throw_openssl_error("groups");
}

/// asio::ssl::context itself would lower what OpenSSL's configuration demands to TLS 1.0.
inline asio::ssl::context make_context(const SSL_METHOD* method)
{
    openssl_ptr<SSL_CTX> made(SSL_CTX_new(method));
    if (!made)
        throw_openssl_error("TLS context");
    set_safe_defaults(made.get());
    return asio::ssl::context(made.release());
}

/// Returns: false when none was given.
inline bool load_key_pair(asio::ssl::context& context, const key_pair_options& options)
{
    const pem_source chain("certificate", options.certificate_chain_file, options.certificate_chain_data);
    const pem_source key("private key", options.private_key_file, options.private_key_data);
    if (chain.empty() && key.empty())
        return false;
    if (chain.empty() || key.empty())
        throw std::invalid_argument("identity needs both a certificate chain and its private key");
    load_certificate_chain(context, chain);
    if (key.is_file() && !options.allow_readable_private_key)
        refuse_readable(key);
    load_private_key(context, key, chain, options.private_key_password);
    return true;
}

} // namespace detail

UPGRADEABLE_STREAMS_DECL asio::ssl::context create_client_context(const client_context_options& options)
{
    asio::ssl::context context = detail::make_context(TLS_client_method());
    SSL_CTX* const handle = context.native_handle();
    detail::allow_dane(handle);
    detail::load_key_pair(context, options.identity);

    const detail::pem_source authorities("CA", options.ca_file, options.ca_data);
    const detail::pem_source revoked("CRL", options.crl_file, options.crl_data);
    authorities.refuse_empty_data();
    revoked.refuse_empty_data();
    if (options.public_key_pins.is_given() && options.public_key_pins.empty())
        throw std::invalid_argument("public_key_pins hold no pin; leave them out where none is wanted");
    if (!options.verify_peer && !(authorities.empty() && revoked.empty()))
        throw std::invalid_argument("ca_file, ca_data, crl_file and crl_data make no sense with verify_peer = false");
    if (options.verify_peer)
    {
        ERR_clear_error();
        if (!authorities.empty())
            detail::add_trust_anchors(context, authorities);
        else
            detail::add_system_trust_anchors(handle);
        if (!revoked.empty())
            detail::refuse_revoked(context, revoked);
        context.set_verify_mode(asio::ssl::verify_peer);
    }
    if (!options.public_key_pins.empty())
    {
        detail::pin_public_keys(handle, options.public_key_pins, options.verify_peer);
        context.set_verify_mode(asio::ssl::verify_peer);
    }
    if (options.max_sessions > 0)
        detail::keep_sessions(handle, options.max_sessions);
    detail::set_alpn_protocols(handle, options.alpn_protocols);
    detail::log_keys(handle, options.key_log_file);
    return context;
}

UPGRADEABLE_STREAMS_DECL asio::ssl::context create_server_context(const server_context_options& options)
{
    asio::ssl::context context = detail::make_context(TLS_server_method());
    SSL_CTX* const handle = context.native_handle();
    if (!detail::load_key_pair(context, options.identity))
        throw std::invalid_argument("a server needs identity: its certificate chain and private key");

    detail::sha256_hash session_id_context;
    if (RAND_bytes(session_id_context.data(), int(session_id_context.size())) != 1)
        detail::throw_openssl_error("random number generator");
    SSL_CTX_set_session_id_context(handle, session_id_context.data(), unsigned(session_id_context.size()));
    SSL_CTX_set_num_tickets(handle, 1);
    detail::resume_from_tickets(handle);
    detail::renew_ticket_keys(handle);

    const detail::pem_source client_authorities("client CA", options.client_ca_file, options.client_ca_data);
    const detail::pem_source revoked("client CRL", options.client_crl_file, options.client_crl_data);
    client_authorities.refuse_empty_data();
    revoked.refuse_empty_data();
    if (!client_authorities.empty())
    {
        detail::add_trust_anchors(context, client_authorities);
        detail::set_client_ca_list(handle);
        if (!revoked.empty())
            detail::refuse_revoked(context, revoked);
        context.set_verify_mode(options.require_client_certificate.value_or(true)
                                    ? asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert
                                    : asio::ssl::verify_peer);
    }
    else if (options.require_client_certificate.value_or(false))
        throw std::invalid_argument("require_client_certificate needs client_ca_file or client_ca_data: whose "
                                    "certificates are accepted");
    else if (!revoked.empty())
        throw std::invalid_argument("client_crl_file and client_crl_data need client_ca_file or client_ca_data: whose "
                                    "certificates are accepted");

    detail::set_alpn_protocols(handle, options.alpn_protocols);
    if (!options.contexts_by_name.empty() || options.refuse_unknown_names)
    {
        auto& contexts = detail::choose_contexts_by_name(handle, session_id_context, options.refuse_unknown_names);
        for (const auto& [name, ssl] : options.contexts_by_name)
            contexts.add(name, ssl);
    }
    detail::log_keys(handle, options.key_log_file);
    return context;
}

#endif

} // namespace upgradeable_streams

#endif
