/// @file
/// Several contexts on one port, chosen by the name that a client asks for (RFC 6066 section 3).
#ifndef UPGRADEABLE_STREAMS_DETAIL_CONTEXTS_BY_NAME_HPP
#define UPGRADEABLE_STREAMS_DETAIL_CONTEXTS_BY_NAME_HPP

#include <upgradeable_streams/certificate.hpp>
#include <upgradeable_streams/detail/byte_order.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/context_data.hpp>
#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/detail/server_identity.hpp>
#include <upgradeable_streams/detail/text.hpp>

#include <asio/ssl/context.hpp>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace upgradeable_streams::detail
{

/// A name in lower case and without the dot that may end it.
inline std::string normalized_name(std::string_view name)
{
    if (name.ends_with('.'))
        name.remove_suffix(1);
    return lower_case(name);
}

/// Labels of letters, digits, hyphens and underscores.
inline bool is_host_name(std::string_view name)
{
    const auto is_allowed = [](char c)
    { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.'; };
    return !name.empty() && name.size() <= 253 && std::ranges::all_of(name, is_allowed) && !name.starts_with('.') &&
           !name.ends_with('.') && name.find("..") == name.npos;
}

/// Kept in the SSL_CTX of a server: which SSL_CTX takes its place for which name.
///
/// OpenSSL asks for it before anything else that a ClientHello is for. A callback for the server name itself would come
/// after the decision to resume a session, which could then be one of another name (CVE-2025-23419).
class contexts_by_name
{
public:
    contexts_by_name(SSL_CTX* own, const sha256_hash& session_id_context, bool refuse_unknown)
        : own_(own), session_id_context_(session_id_context), is_unknown_refused_(refuse_unknown)
    {
    }

    /// Throws std::invalid_argument for a name that no client asks for, and for a context that is none for it.
    void add(std::string_view given, asio::ssl::context* ssl);

    /// The SSL_CTX for a name, or for none; null when that is refused.
    SSL_CTX* find(const std::optional<std::string>& name) const;

    /// Whether what was chosen is right for the last ClientHello too. There are two when the first offers no key share
    /// that will do, and OpenSSL does not compare them.
    bool is_right(SSL* ssl) const;

    /// Puts the SSL_CTX for the name that a ClientHello asks for in the place of the SSL object's. Returns: an alert,
    /// or nothing.
    std::optional<int> choose(SSL* ssl) const;

private:
    SSL_CTX* own_; ///< Which this is kept in.
    sha256_hash session_id_context_;
    std::map<std::string, std::shared_ptr<SSL_CTX>> contexts_;
    bool is_unknown_refused_;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL void contexts_by_name::add(std::string_view given, asio::ssl::context* ssl)
{
    const std::string name = normalized_name(given);
    const auto refuse = [&](const char* reason)
    { throw std::invalid_argument("contexts_by_name: \"" + std::string(given) + "\" " + reason); };
    const std::string_view labels = std::string_view(name).substr(name.starts_with("*.") ? 2 : 0);

    if (name.empty())
        refuse("is empty; the clients that ask for no name get the certificate of `identity`");
    if (labels.find('*') != labels.npos || labels.empty())
        refuse("is no wildcard that can be; the star stands for the whole first label, as in *.example");
    if (labels.starts_with('.') || labels.ends_with('.') || labels.find("..") != labels.npos)
        refuse("has an empty label");
    if (const char* const reason = why_no_dns_name(name))
        refuse(reason);
    if (parse_address(name))
        refuse("is an address; clients ask for DNS names only");
    if (!is_host_name(labels))
        refuse("holds a character that no client asks for");
    if (!ssl)
        refuse("has no context");
    if (context_data<contexts_by_name>(ssl->native_handle()))
        refuse("has a context that chooses by name itself");
    if (!SSL_CTX_get0_certificate(ssl->native_handle()))
        refuse("has a context without a certificate; make it with create_server_context");
    if (!contexts_.emplace(name, share(ssl->native_handle())).second)
        refuse("is named twice");
}

/// The name as it may stand in a certificate, or among contexts: itself, or with a star for its first label.
inline std::vector<std::string> patterns_of(const std::string& name)
{
    std::vector<std::string> patterns{name};
    if (const std::size_t dot = name.find('.'); dot != name.npos)
        patterns.push_back("*" + name.substr(dot));
    return patterns;
}

/// Whether a certificate is for one of these patterns.
inline bool is_certificate_for(X509* x509, const std::vector<std::string>& patterns)
{
    const std::vector<std::string> names = x509 ? certificate(x509).subject_alt_names() : std::vector<std::string>();
    return std::ranges::any_of(patterns, [&](const std::string& pattern)
                               { return std::ranges::count(names, "dns:" + pattern, lower_case) > 0; });
}

UPGRADEABLE_STREAMS_DECL SSL_CTX* contexts_by_name::find(const std::optional<std::string>& name) const
{
    const std::vector<std::string> patterns = name ? patterns_of(*name) : std::vector<std::string>();
    for (const std::string& pattern : patterns)
        if (const auto found = contexts_.find(pattern); found != contexts_.end())
            return found->second.get();
    if (is_unknown_refused_ && !is_certificate_for(SSL_CTX_get0_certificate(own_), patterns))
        return nullptr;
    return own_;
}

UPGRADEABLE_STREAMS_DECL bool contexts_by_name::is_right(SSL* ssl) const
{
    const char* const name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    return find(name ? std::optional(normalized_name(name)) : std::nullopt) == SSL_get_SSL_CTX(ssl);
}

/// The name that a ClientHello asks for, if it does. False when that is malformed (RFC 6066 section 3).
inline bool read_server_name(SSL* ssl, std::optional<std::string>& name)
{
    const unsigned char* data = nullptr;
    std::size_t size = 0;
    if (!SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_server_name, &data, &size))
        return true;
    const std::string_view list(reinterpret_cast<const char*>(data), size);
    constexpr std::size_t header = 5; // of the list its size, of the one entry its type and size
    if (size <= header || parse_big_endian(list.substr(0, 2)) != size - 2 || list[2] != TLSEXT_NAMETYPE_host_name ||
        parse_big_endian(list.substr(3, 2)) != size - header)
        return false;
    name = normalized_name(list.substr(header));
    return is_host_name(*name);
}

/// Puts `next` in the place of what came from `before`.
inline bool replace_verify_param(X509_VERIFY_PARAM* param, X509_VERIFY_PARAM* before, X509_VERIFY_PARAM* next)
{
    const int depth = X509_VERIFY_PARAM_get_depth(param);
    const bool is_own_depth = depth != X509_VERIFY_PARAM_get_depth(before);
    X509_VERIFY_PARAM_clear_flags(param, X509_VERIFY_PARAM_get_flags(before));
    const std::uint32_t inheritance = X509_VERIFY_PARAM_get_inh_flags(param);
    X509_VERIFY_PARAM_set_inh_flags(param, X509_VP_FLAG_OVERWRITE);
    const bool done = X509_VERIFY_PARAM_set1(param, next);
    X509_VERIFY_PARAM_set_inh_flags(param, inheritance);
    if (is_own_depth)
        X509_VERIFY_PARAM_set_depth(param, depth);
    return done;
}

/// Gives an SSL object another SSL_CTX before its handshake, and with it what SSL_set_SSL_CTX leaves behind. What was
/// set on the SSL object itself stays.
inline bool replace_context(SSL* ssl, SSL_CTX* next)
{
    SSL_CTX* const before = SSL_get_SSL_CTX(ssl);
    int mode = SSL_CTX_get_verify_mode(next);
    if (const int own = SSL_get_verify_mode(ssl); own != SSL_CTX_get_verify_mode(before))
        mode |= own;
    auto callback = SSL_get_verify_callback(ssl);
    if (callback == SSL_CTX_get_verify_callback(before))
        callback = SSL_CTX_get_verify_callback(next);
    if (!callback) // SSL_set_verify would keep the one that there is
        callback = [](int is_verified, X509_STORE_CTX*) { return is_verified; };

    SSL_set_verify(ssl, mode, callback);
    SSL_clear_options(ssl, SSL_CTX_get_options(before) & (SSL_OP_NO_SSL_MASK | SSL_OP_NO_TICKET));
    SSL_set_options(ssl, SSL_CTX_get_options(next));
    return replace_verify_param(SSL_get0_param(ssl), SSL_CTX_get0_param(before), SSL_CTX_get0_param(next)) &&
           SSL_set_min_proto_version(ssl, SSL_CTX_get_min_proto_version(next)) &&
           SSL_set_max_proto_version(ssl, SSL_CTX_get_max_proto_version(next)) &&
           SSL_set_num_tickets(ssl, SSL_CTX_get_num_tickets(next)) && SSL_set_SSL_CTX(ssl, next);
}

UPGRADEABLE_STREAMS_DECL std::optional<int> contexts_by_name::choose(SSL* ssl) const
{
    std::optional<std::string> name;
    if (!read_server_name(ssl, name))
    {
        ERR_raise(ERR_LIB_SSL, SSL_R_BAD_EXTENSION);
        return SSL_AD_DECODE_ERROR;
    }
    SSL_CTX* const chosen = find(name);
    if (!chosen)
    {
        ERR_raise(ERR_LIB_SSL, SSL_R_TLSV1_UNRECOGNIZED_NAME);
        return SSL_AD_UNRECOGNIZED_NAME;
    }
    if (chosen != own_ && !replace_context(ssl, chosen))
        return SSL_AD_INTERNAL_ERROR;
    if (!name)
        return std::nullopt;
    // What is resumed is a session of the same name (RFC 6066 section 3).
    name->append(session_id_context_.begin(), session_id_context_.end());
    const sha256_hash hash = sha256(name->data(), name->size());
    static_assert(sizeof hash <= SSL_MAX_SID_CTX_LENGTH);
    SSL_set_session_id_context(ssl, hash.data(), unsigned(hash.size()));
    return std::nullopt;
}

inline int choose_context(SSL* ssl, int* alert, void* contexts)
try
{
    const auto refused = static_cast<const contexts_by_name*>(contexts)->choose(ssl);
    *alert = refused.value_or(0);
    return refused ? SSL_CLIENT_HELLO_ERROR : SSL_CLIENT_HELLO_SUCCESS;
}
catch (...) // OpenSSL cannot be thrown through
{
    *alert = SSL_AD_INTERNAL_ERROR;
    return SSL_CLIENT_HELLO_ERROR;
}

/// Called once the ClientHello is read; to agree also keeps the name in the session, for TLS 1.2 to tell it again.
inline int confirm_context(SSL* ssl, int* alert, void* contexts)
try
{
    if (static_cast<const contexts_by_name*>(contexts)->is_right(ssl))
        return SSL_TLSEXT_ERR_OK;
    ERR_raise(ERR_LIB_SSL, SSL_R_BAD_EXTENSION);
    *alert = SSL_AD_ILLEGAL_PARAMETER;
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}
catch (...)
{
    *alert = SSL_AD_INTERNAL_ERROR;
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/// Names have sessions of their own in what is the SSL_CTX's `session_id_context` otherwise.
inline contexts_by_name& choose_contexts_by_name(SSL_CTX* context, const sha256_hash& session_id_context,
                                                 bool refuse_unknown)
{
    auto& kept = emplace_context_data<contexts_by_name>(context, context, session_id_context, refuse_unknown);
    SSL_CTX_set_client_hello_cb(context, choose_context, &kept);
    SSL_CTX_set_tlsext_servername_callback(context, confirm_context);
    SSL_CTX_set_tlsext_servername_arg(context, &kept);
    return kept;
}

#endif

} // namespace upgradeable_streams::detail

#endif
