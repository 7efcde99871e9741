/// @file
/// Which sessions are resumed.
#ifndef UPGRADEABLE_STREAMS_DETAIL_RESUMPTION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_RESUMPTION_HPP

#include <upgradeable_streams/detail/context_data.hpp>
#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/detail/pins.hpp>
#include <upgradeable_streams/detail/text.hpp>

#include <openssl/ssl.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <ctime>
#include <mutex>
#include <new>
#include <ranges>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace upgradeable_streams::detail
{

/// The sessions that a client's context keeps, by the name of the server.
///
/// Each is for one connection: of TLS 1.3 so that nobody who listens can tell that two are of one client (RFC 8446
/// appendix C.4), of TLS 1.2 lest one with which handshakes fail is tried for ever.
///
/// Concurrency: one thread at a time gets in.
class session_cache
{
public:
    explicit session_cache(std::size_t capacity) : capacity_(capacity) {}

    /// When there is no room, or the name has its share, its own oldest session goes, else the oldest of all.
    void put(std::string name, openssl_ptr<SSL_SESSION> session)
    {
        const auto expiry = clock::from_time_t(made_at(session.get())) + lifetime(session.get());
        const std::lock_guard lock(mutex_);
        const bool is_full = entries_.size() >= capacity_;
        if (is_full || std::ranges::count(entries_, name, &entry::name) >= most_per_name)
        {
            const auto own = std::ranges::find(entries_, name, &entry::name);
            entries_.erase(own != entries_.end() ? own : entries_.begin());
        }
        entries_.push_back({std::move(name), std::move(session), expiry});
    }

    /// Takes out the newest session that has not expired; null when there is none.
    openssl_ptr<SSL_SESSION> take(std::string_view name)
    {
        const std::lock_guard lock(mutex_);
        std::erase_if(entries_, [now = clock::now()](const entry& e) { return e.expiry <= now; });
        const auto backwards = std::views::reverse(entries_);
        const auto found = std::ranges::find(backwards, name, &entry::name);
        if (found == backwards.end())
            return nullptr;
        auto session = std::move(found->session);
        entries_.erase(found.base() - 1);
        return session;
    }

private:
    using clock = std::chrono::system_clock;

    static constexpr int most_per_name = 8;

    struct entry
    {
        std::string name;
        openssl_ptr<SSL_SESSION> session;
        clock::time_point expiry;
    };

    static std::time_t made_at(const SSL_SESSION* session)
    {
#if OPENSSL_VERSION_NUMBER >= 0x30300000L
        return SSL_SESSION_get_time_ex(session);
#else
        return SSL_SESSION_get_time(session);
#endif
    }

    static std::chrono::seconds lifetime(const SSL_SESSION* session)
    {
        constexpr std::chrono::seconds longest = std::chrono::days(7); // RFC 8446 section 4.6.1
        const std::chrono::seconds own(SSL_SESSION_get_timeout(session));
        const std::chrono::seconds hint(SSL_SESSION_get_ticket_lifetime_hint(session));
        const bool is_hint = hint.count() > 0 || SSL_SESSION_get_protocol_version(session) >= TLS1_3_VERSION;
        return std::min({longest, own, is_hint ? hint : longest});
    }

    std::mutex mutex_;
    std::vector<entry> entries_; ///< In the order in which they came.
    std::size_t capacity_;
};

/// The name, in lower case, or address that the certificate of an SSL object's peer must be for; empty when there is
/// none.
inline std::string expected_name(SSL* ssl)
{
    X509_VERIFY_PARAM* const param = SSL_get0_param(ssl);
    if (const char* host = X509_VERIFY_PARAM_get0_host(param, 0))
        return lower_case(host);
    const openssl_ptr<char> address(X509_VERIFY_PARAM_get1_ip_asc(param));
    return address ? address.get() : "";
}

/// A session of its own for another connection: OpenSSL marks those of connections that fail. Null when it cannot be
/// resumed.
inline openssl_ptr<SSL_SESSION> copy_session(const SSL_SESSION* session)
{
    const bool is_resumable = session && SSL_SESSION_is_resumable(session);
    return openssl_ptr<SSL_SESSION>(is_resumable ? SSL_SESSION_dup(session) : nullptr);
}

inline int size_of(STACK_OF(X509) * certificates)
{
    int size = 0;
    for (int i = 0; i < sk_X509_num(certificates); ++i)
        size += i2d_X509(sk_X509_value(certificates, i), nullptr);
    return size;
}

/// Puts a client's session into the cache of its context, where there is one, unless it or the certificates that it
/// holds beside are larger than any should be.
inline int keep_session(SSL* ssl, SSL_SESSION* session)
try
{
    constexpr int largest = 16 * 1024;
    auto* const cache = context_data<session_cache>(SSL_get_SSL_CTX(ssl));
    std::string name = cache ? expected_name(ssl) : std::string();
    const bool is_small =
        i2d_SSL_SESSION(session, nullptr) <= largest && size_of(SSL_get_peer_cert_chain(ssl)) <= largest;
    if (!name.empty() && is_small)
        if (auto copy = copy_session(session))
            cache->put(std::move(name), std::move(copy));
    return 0;
}
catch (...) // OpenSSL cannot be thrown through
{
    return 0;
}

inline void keep_sessions(SSL_CTX* context, std::size_t most)
{
    emplace_context_data<session_cache>(context, most);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, keep_session);
}

/// Puts back a session of TLS 1.2, for which the server sent no new one, after a handshake that went well.
inline void put_back_session(SSL* ssl)
{
    if (SSL_session_reused(ssl) && SSL_version(ssl) < TLS1_3_VERSION)
        keep_session(ssl, SSL_get_session(ssl));
}

/// Whether an SSL object would accept the certificate of a session's peer now. Sets its verify result.
inline bool is_trusted(SSL* ssl, X509* peer, STACK_OF(X509)* chain)
{
    if (!(SSL_get_verify_mode(ssl) & SSL_VERIFY_PEER))
        return true;
    SSL_CTX* const context = SSL_get_SSL_CTX(ssl);
    X509_STORE* store = nullptr;
    SSL_CTX_get0_verify_cert_store(context, &store);
    const openssl_ptr<X509_STORE_CTX> certificates(X509_STORE_CTX_new());
    if (!peer || !certificates ||
        !X509_STORE_CTX_init(certificates.get(), store ? store : SSL_CTX_get_cert_store(context), peer, chain) ||
        !X509_STORE_CTX_set_ex_data(certificates.get(), SSL_get_ex_data_X509_STORE_CTX_idx(), ssl) ||
        !X509_STORE_CTX_set_default(certificates.get(), SSL_is_server(ssl) ? "ssl_client" : "ssl_server"))
        return false;
    X509_VERIFY_PARAM* const param = X509_STORE_CTX_get0_param(certificates.get());
    X509_VERIFY_PARAM_set_auth_level(param, SSL_get_security_level(ssl));
    if (!X509_VERIFY_PARAM_set1(param, SSL_get0_param(ssl)))
        return false;
    if (const auto callback = SSL_get_verify_callback(ssl))
        X509_STORE_CTX_set_verify_cb(certificates.get(), callback);
    X509_STORE_CTX_set0_dane(certificates.get(), SSL_get0_dane(ssl));
    const auto* const pins = context_data<public_key_pins>(context);
    const int result = pins ? pins->verify(certificates.get()) : X509_verify_cert(certificates.get());
    SSL_set_verify_result(ssl, X509_STORE_CTX_get_error(certificates.get()));
    return result > 0;
}

/// Offers a session to the server with which a new SSL object is to speak.
inline void offer_session(SSL* ssl, SSL_SESSION* session)
{
    if (!SSL_set_session(ssl, session))
        throw std::bad_alloc();
    if (is_trusted(ssl, SSL_get0_peer_certificate(ssl), SSL_get_peer_cert_chain(ssl)))
        return;
    SSL_set_session(ssl, nullptr);
    SSL_set_verify_result(ssl, X509_V_OK);
}

/// Refuses a ticket without the client certificate that is demanded, or with one that has expired or no longer
/// verifies. A ticket holds no chain: where an intermediate certificate is missing, a full handshake follows.
inline SSL_TICKET_RETURN judge_ticket(SSL* ssl, SSL_SESSION* session, const unsigned char*, std::size_t,
                                      SSL_TICKET_STATUS status, void*)
{
    if (status != SSL_TICKET_SUCCESS && status != SSL_TICKET_SUCCESS_RENEW)
        return SSL_TICKET_RETURN_IGNORE_RENEW;
    X509* const peer = SSL_SESSION_get0_peer(session);
    const long before = SSL_get_verify_result(ssl);
    const bool is_refused =
        peer ? ASN1_TIME_cmp_time_t(X509_get0_notAfter(peer), std::time(nullptr)) <= 0 ||
                   !is_trusted(ssl, peer, nullptr)
             : (SSL_get_verify_mode(ssl) & SSL_VERIFY_FAIL_IF_NO_PEER_CERT) != 0;
    SSL_set_verify_result(ssl, before);
    return is_refused                           ? SSL_TICKET_RETURN_IGNORE_RENEW
           : status == SSL_TICKET_SUCCESS_RENEW ? SSL_TICKET_RETURN_USE_RENEW
                                                : SSL_TICKET_RETURN_USE;
}

/// Sessions are resumed from tickets alone; the server stores none.
inline void resume_from_tickets(SSL_CTX* context)
{
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_session_ticket_cb(context, nullptr, judge_ticket, nullptr);
}

} // namespace upgradeable_streams::detail

#endif
