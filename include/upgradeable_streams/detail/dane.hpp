/// @file
/// Servers that are known by what DNS says of them.
#ifndef UPGRADEABLE_STREAMS_DETAIL_DANE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_DANE_HPP

#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/tlsa_record.hpp>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace upgradeable_streams::detail
{

/// Lets the SSL objects of a context have TLSA records.
inline void allow_dane(SSL_CTX* context)
{
    if (SSL_CTX_dane_enable(context) <= 0)
        throw std::bad_alloc();
}

/// Adds a record to those of which one must hold. Returns: whether OpenSSL can use it.
inline bool add_tlsa_record(SSL* ssl, const tlsa_record& record)
{
    const int result =
        SSL_dane_tlsa_add(ssl, record.usage, record.selector, record.matching_type,
                          reinterpret_cast<const unsigned char*>(record.data.data()), record.data.size());
    ERR_clear_error();
    if (result < 0)
        throw std::bad_alloc();
    return result > 0;
}

/// Has a client accept the server that one of the records is of, and no other.
inline void expect_tlsa_records(SSL* ssl, const std::string& base_domain, const std::vector<tlsa_record>& records)
{
    const int enabled = SSL_dane_enable(ssl, base_domain.c_str());
    ERR_clear_error();
    if (enabled < 0)
        throw std::bad_alloc();
    if (enabled == 0)
        throw std::invalid_argument("tlsa_records need a context of create_client_context, or one of which "
                                    "SSL_CTX_dane_enable was called");
    SSL_dane_set_flags(ssl, DANE_FLAG_NO_DANE_EE_NAMECHECKS); // RFC 7671 section 5.1
    if (std::ranges::count_if(records, [ssl](const tlsa_record& each) { return add_tlsa_record(ssl, each); }) == 0)
        throw std::system_error(errc::tlsa_records_unusable);
    SSL_set_verify(ssl, SSL_get_verify_mode(ssl) | SSL_VERIFY_PEER, SSL_get_verify_callback(ssl));
}

} // namespace upgradeable_streams::detail

#endif
