#ifndef TEST_SUPPORT_CONTEXTS_HPP
#define TEST_SUPPORT_CONTEXTS_HPP

#include "certificates.hpp"

#include <upgradeable_streams/tls_context.hpp>

#include <asio/ssl/context.hpp>

#include <string>

namespace test
{

/// The library's context of a client that trusts `authority()`.
inline asio::ssl::context make_client_context()
{
    const std::string ca_file = authority().ca_file();
    return upgradeable_streams::create_client_context({.ca_file = ca_file});
}

/// The library's context of a server, by default with `localhost_certificate()`.
inline asio::ssl::context make_server_context(const issued& identity = localhost_certificate())
{
    return upgradeable_streams::create_server_context(
        {.identity = {.certificate_chain_file = identity.certificate_file, .private_key_file = identity.key_file}});
}

inline asio::ssl::context& client_context()
{
    static asio::ssl::context shared = make_client_context();
    return shared;
}

inline asio::ssl::context& server_context()
{
    static asio::ssl::context shared = make_server_context();
    return shared;
}

/// As `client_context`, with TLS 1.2 at most.
inline asio::ssl::context& tls12_client_context()
{
    static asio::ssl::context shared = []
    {
        asio::ssl::context made = make_client_context();
        SSL_CTX_set_max_proto_version(made.native_handle(), TLS1_2_VERSION);
        return made;
    }();
    return shared;
}

} // namespace test

#endif
