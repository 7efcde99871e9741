/// @file
/// What OpenSSL allocates, owned; its errors; hashes and base64.
#ifndef UPGRADEABLE_STREAMS_DETAIL_OPENSSL_HPP
#define UPGRADEABLE_STREAMS_DETAIL_OPENSSL_HPP

#include <asio/error_code.hpp>
#include <asio/ssl/error.hpp>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <array>
#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <system_error>

namespace upgradeable_streams::detail
{

struct openssl_delete
{
    void operator()(SSL* p) const noexcept { SSL_free(p); }
    void operator()(SSL_CTX* p) const noexcept { SSL_CTX_free(p); }
    void operator()(SSL_SESSION* p) const noexcept { SSL_SESSION_free(p); }
    void operator()(X509_STORE_CTX* p) const noexcept { X509_STORE_CTX_free(p); }
    void operator()(X509_CRL* p) const noexcept { X509_CRL_free(p); }
    void operator()(ISSUING_DIST_POINT* p) const noexcept { ISSUING_DIST_POINT_free(p); }
    void operator()(GENERAL_NAMES* p) const noexcept { GENERAL_NAMES_free(p); }
    void operator()(STACK_OF(X509_OBJECT)* p) const noexcept { sk_X509_OBJECT_pop_free(p, X509_OBJECT_free); }
    void operator()(ASN1_TIME* p) const noexcept { ASN1_TIME_free(p); }
    void operator()(BIO* p) const noexcept { BIO_free(p); }
    void operator()(unsigned char* p) const noexcept { OPENSSL_free(p); }
    void operator()(char* p) const noexcept { OPENSSL_free(p); }
};

template <class T>
using openssl_ptr = std::unique_ptr<T, openssl_delete>;

inline std::shared_ptr<SSL_CTX> share(SSL_CTX* context)
{
    SSL_CTX_up_ref(context);
    return {context, openssl_delete()};
}

using sha256_hash = std::array<unsigned char, 32>;

inline sha256_hash sha256(const void* data, std::size_t size)
{
    sha256_hash hash;
    if (!EVP_Digest(data, size, hash.data(), nullptr, EVP_sha256(), nullptr))
        throw std::bad_alloc();
    return hash;
}

inline std::string base64(const void* data, std::size_t size)
{
    std::string text((size + 2) / 3 * 4, '\0'); // and a NUL behind it
    EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()), static_cast<const unsigned char*>(data), int(size));
    return text;
}

/// The oldest error in OpenSSL's queue, which is the root of the others.
inline asio::error_code take_openssl_error()
{
    const unsigned long error = ERR_get_error();
    ERR_clear_error();
    if (ERR_SYSTEM_ERROR(error))
        return {ERR_GET_REASON(error), std::generic_category()};
    return {static_cast<int>(error), asio::error::get_ssl_category()};
}

} // namespace upgradeable_streams::detail

#endif
