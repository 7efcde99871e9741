/// @file
/// The application protocols of a context (RFC 7301).
#ifndef UPGRADEABLE_STREAMS_DETAIL_ALPN_HPP
#define UPGRADEABLE_STREAMS_DETAIL_ALPN_HPP

#include <upgradeable_streams/detail/context_data.hpp>
#include <upgradeable_streams/string_list.hpp>

#include <openssl/ssl.h>

#include <cstddef>
#include <new>
#include <stdexcept>
#include <string>

namespace upgradeable_streams::detail
{

/// Kept in the SSL_CTX, in wire format: each name with its length in front (RFC 7301 section 3.1).
struct alpn_protocols
{
    explicit alpn_protocols(const string_list& protocols)
    {
        for (std::size_t i = 0; i < protocols.size(); ++i)
        {
            if (protocols[i].empty() || protocols[i].size() > 255)
                throw std::invalid_argument("an ALPN protocol has 1 to 255 bytes");
            wire.push_back(static_cast<char>(protocols[i].size()));
            wire.append(protocols[i]);
        }
    }

    const unsigned char* data() const { return reinterpret_cast<const unsigned char*>(wire.data()); }
    unsigned size() const { return static_cast<unsigned>(wire.size()); }

    std::string wire;
};

inline bool has_alpn_protocols(SSL* ssl)
{
    return context_data<alpn_protocols>(SSL_get_SSL_CTX(ssl)) != nullptr;
}

inline int select_alpn_protocol(SSL* ssl, const unsigned char** out, unsigned char* size, const unsigned char* offered,
                                unsigned offered_size, void*)
{
    const auto& own = *context_data<alpn_protocols>(SSL_get_SSL_CTX(ssl));
    unsigned char* chosen = nullptr;
    const int result = SSL_select_next_proto(&chosen, size, own.data(), own.size(), offered, offered_size);
    *out = chosen;
    return result == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

/// A client offers them; a server refuses a client that offers others alone.
inline void set_alpn_protocols(SSL_CTX* context, const string_list& protocols)
{
    if (protocols.empty())
        return;
    const auto& kept = emplace_context_data<alpn_protocols>(context, protocols);
    if (SSL_CTX_set_alpn_protos(context, kept.data(), kept.size()) != 0)
        throw std::bad_alloc();
    SSL_CTX_set_alpn_select_cb(context, select_alpn_protocol, nullptr);
}

} // namespace upgradeable_streams::detail

#endif
