/// @file
/// What a TLS session is begun with: options that were checked, and the SSL object that they make.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TLS_SETTINGS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TLS_SETTINGS_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/context_data.hpp>
#include <upgradeable_streams/detail/dane.hpp>
#include <upgradeable_streams/detail/deadline.hpp>
#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/detail/pins.hpp>
#include <upgradeable_streams/detail/resumption.hpp>
#include <upgradeable_streams/detail/server_identity.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/ssl/context.hpp>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace upgradeable_streams::detail
{

/// The owned form of tls_options.
struct tls_settings
{
    std::shared_ptr<SSL_CTX> context;
    tls_role role = tls_role::client;
    std::string server_hostname;
    std::shared_ptr<SSL_SESSION> session; ///< Of resume_from, until it is offered.
    std::vector<tlsa_record> tlsa_records;
    std::vector<std::string> other_hostnames;
    std::chrono::steady_clock::duration handshake_timeout = std::chrono::seconds(60);
    std::chrono::steady_clock::duration shutdown_timeout = std::chrono::seconds(30);
    bool suppress_ragged_eofs = false;

    tls_settings() = default;
    explicit tls_settings(const tls_options& options) { apply(options); }

    /// Throws std::invalid_argument when an option makes no sense.
    void apply(const tls_options& options);

    /// An SSL object that verifies the peer as the context demands. The context must not be null.
    openssl_ptr<SSL> make_ssl() const;

    /// Takes the session of another connection of the same client, for the next handshake.
    void resume(SSL* from);

    /// Whether the settings were made for the server of this name.
    bool is_for(std::string_view name) const
    {
        return !server_hostname.empty() && server_identity::parse(server_hostname).is_same(name);
    }

    /// Whether a connection in TLS is known to be with the server of this name, as far as anything was verified.
    bool was_verified_for(std::string_view name, SSL* ssl) const
    {
        const auto is_it = [&](const std::string& other) { return server_identity::parse(other).is_same(name); };
        const bool verifies_name = (SSL_get_verify_mode(ssl) & SSL_VERIFY_PEER) && !is_known_by_key(context.get());
        return role != tls_role::client || !verifies_name || is_for(name) ||
               std::ranges::any_of(other_hostnames, is_it);
    }

    /// The settings are to be for another server, which is not known yet where the name is empty.
    void turn_to(std::string_view server)
    {
        server_hostname = server;
        session.reset();
        tlsa_records.clear();
        other_hostnames.clear();
    }

    /// For the handshake that begins: a session of an earlier connection, which is used up by this.
    void offer_known_session(SSL* ssl);

private:
    void check_tlsa_records() const;
};

/// What an upgrade was asked for, checked when the call was made.
struct upgrade_request
{
    upgrade_request(tls_settings defaults, const tls_options& options, bool plain)
        : settings(std::move(defaults)), received(options.received)
    {
        settings.apply(options);
        if (plain && settings.context)
            ssl = settings.make_ssl();
    }

    tls_settings settings;
    openssl_ptr<SSL> ssl;
    std::string received;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL void tls_settings::apply(const tls_options& options)
{
    if (options.ssl || options.role || !options.server_hostname.empty())
        session.reset();
    if (options.ssl)
        context = share(options.ssl->native_handle());
    if (options.role)
        role = *options.role;
    if (!options.server_hostname.empty())
    {
        server_identity::parse(options.server_hostname);
        const bool is_known_otherwise = !tlsa_records.empty() || !other_hostnames.empty();
        if (is_known_otherwise && !server_hostname.empty() && !is_for(options.server_hostname))
        {
            if (!tlsa_records.empty() && options.tlsa_records.empty())
                throw std::invalid_argument("tlsa_records were given for \"" + server_hostname +
                                            "\"; give those for \"" + std::string(options.server_hostname) +
                                            "\" with it");
            other_hostnames.clear();
        }
        server_hostname = options.server_hostname;
    }
    if (!options.tlsa_records.empty())
        tlsa_records.assign(options.tlsa_records.begin(), options.tlsa_records.end());
    if (!options.other_hostnames.empty())
        other_hostnames = options.other_hostnames.copy();
    if (options.resume_from)
        resume(options.resume_from);
    if (options.handshake_timeout)
    {
        require_positive(*options.handshake_timeout, "handshake_timeout");
        handshake_timeout = *options.handshake_timeout;
    }
    if (options.shutdown_timeout)
    {
        require_positive(*options.shutdown_timeout, "shutdown_timeout");
        shutdown_timeout = *options.shutdown_timeout;
    }
    if (options.suppress_ragged_eofs)
        suppress_ragged_eofs = *options.suppress_ragged_eofs;
}

UPGRADEABLE_STREAMS_DECL void tls_settings::check_tlsa_records() const
{
    if (tlsa_records.empty())
        return;
    const char* const problem =
        role == tls_role::server ? "are for clients: they say how a server is known"
        : server_hostname.empty() || server_identity::parse(server_hostname).is_address
            ? "need a server_hostname that is a DNS name: what they are for"
        : is_known_by_key(context.get())
            ? "and the pins of a context that verifies nothing else both say how the server is known; give one of them"
            : nullptr;
    if (problem)
        throw std::invalid_argument(std::string("tlsa_records ") + problem);
}

UPGRADEABLE_STREAMS_DECL openssl_ptr<SSL> tls_settings::make_ssl() const
{
    check_tlsa_records();
    openssl_ptr<SSL> ssl(SSL_new(context.get()));
    if (!ssl)
        throw std::bad_alloc();
    if (role == tls_role::server)
    {
        if (!SSL_is_server(ssl.get())) // what an SSL object is until it is told, unless its context is a client's
            throw std::invalid_argument("the TLS context is a client's; a server needs one of create_server_context");
        return ssl;
    }
    if (SSL_CTX_get_ssl_method(context.get()) == TLS_server_method())
        throw std::invalid_argument("the TLS context is a server's; a client needs one of create_client_context");
    if (server_hostname.empty())
    {
        if (!other_hostnames.empty())
            throw std::invalid_argument("other_hostnames need server_hostname: the name that they are beside");
        if (SSL_get_verify_mode(ssl.get()) & SSL_VERIFY_PEER && !is_known_by_key(context.get()))
            throw std::invalid_argument("server_hostname is required to verify the server's certificate; give it, or "
                                        "give a context that does not verify the peer");
        return ssl;
    }
    const server_identity identity = server_identity::parse(server_hostname);
    X509_VERIFY_PARAM* param = SSL_get0_param(ssl.get());
    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
    const bool done = identity.is_address
                          ? X509_VERIFY_PARAM_set1_ip_asc(param, identity.name.c_str())
                          : X509_VERIFY_PARAM_set1_host(param, identity.name.data(), identity.name.size()) &&
                                SSL_set_tlsext_host_name(ssl.get(), identity.name.c_str());
    if (!done)
        throw std::bad_alloc();
    if (!tlsa_records.empty())
        expect_tlsa_records(ssl.get(), identity.name, tlsa_records); // which sets the one name anew
    for (const std::string& each : other_hostnames)
    {
        const server_identity other = server_identity::parse(each);
        if (other.is_address || identity.is_address)
            throw std::invalid_argument(
                "server_hostname and other_hostnames must be DNS names, where there are several");
        if (!X509_VERIFY_PARAM_add1_host(param, other.name.data(), other.name.size()))
            throw std::bad_alloc();
    }
    return ssl;
}

UPGRADEABLE_STREAMS_DECL void tls_settings::resume(SSL* from)
{
    const auto refuse_unless = [](bool condition, const char* what)
    {
        if (!condition)
            throw std::invalid_argument(std::string("resume_from ") + what);
    };
    refuse_unless(role == tls_role::client, "is for clients; a server's client decides what is resumed");
    refuse_unless(!SSL_is_server(from) && has_session(from), "must be a client's connection in TLS");
    refuse_unless(SSL_get_SSL_CTX(from) == context.get(), "must be a connection of the same context");
    const std::string name = expected_name(from);
    refuse_unless(!name.empty() && is_for(name), "must be a connection with the same server_hostname");
    refuse_unless(!tlsa_records.empty() || SSL_get0_dane_authority(from, nullptr, nullptr) < 0,
                  "was known by tlsa_records; give them here too");
    session = copy_session(SSL_get_session(from));
}

UPGRADEABLE_STREAMS_DECL void tls_settings::offer_known_session(SSL* ssl)
{
    const std::shared_ptr<SSL_SESSION> given = std::move(session);
    openssl_ptr<SSL_SESSION> kept;
    if (auto* const cache = context_data<session_cache>(context.get()); cache && !given)
        kept = cache->take(expected_name(ssl));
    if (given || kept)
        offer_session(ssl, given ? given.get() : kept.get());
}

#endif

} // namespace upgradeable_streams::detail

#endif
