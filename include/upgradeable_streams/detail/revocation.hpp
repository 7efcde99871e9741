/// @file
/// Certificates that were revoked.
#ifndef UPGRADEABLE_STREAMS_DETAIL_REVOCATION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_REVOCATION_HPP

#include <upgradeable_streams/detail/credentials.hpp>
#include <upgradeable_streams/detail/openssl.hpp>

#include <asio/buffer.hpp>
#include <asio/error_code.hpp>
#include <asio/ssl/context.hpp>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/objects.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <system_error>

namespace upgradeable_streams::detail
{

/// Whether a list tells a part of what is revoked. OpenSSL leaves it out of account, or all others for it.
inline bool is_partial(const X509_CRL* list)
{
    for (int i = 0; i < X509_CRL_get_ext_count(list); ++i)
    {
        auto* const extension = X509_CRL_get_ext(list, i); // const from OpenSSL 4 on
        const int kind = OBJ_obj2nid(X509_EXTENSION_get_object(extension));
        if (kind == NID_delta_crl || (X509_EXTENSION_get_critical(extension) && kind != NID_issuing_distribution_point))
            return true;
    }
    const openssl_ptr<ISSUING_DIST_POINT> scope(
        static_cast<ISSUING_DIST_POINT*>(X509_CRL_get_ext_d2i(list, NID_issuing_distribution_point, nullptr, nullptr)));
    return scope && (scope->indirectCRL > 0 || scope->onlysomereasons);
}

/// Has verification refuse certificates that were revoked, and those of whose authority there is no list (RFC 5280
/// section 5).
inline void refuse_revoked(asio::ssl::context& context, const pem_source& lists)
{
    X509_STORE* const store = SSL_CTX_get_cert_store(context.native_handle());
    bool is_complete = true;
    const auto add = [&](const openssl_ptr<BIO>& text)
    {
        const auto ask_nobody = [](char*, int, int, void*) { return -1; };
        for (int count = 0; text; ++count)
        {
            const openssl_ptr<X509_CRL> list(PEM_read_bio_X509_CRL(text.get(), nullptr, ask_nobody, nullptr));
            if (!list)
                return count > 0 && is_openssl_error(ERR_peek_last_error(), ERR_LIB_PEM, PEM_R_NO_START_LINE);
            is_complete = is_complete && !is_partial(list.get());
            if (!X509_STORE_add_crl(store, list.get()))
                break;
        }
        return false;
    };
    const asio::error_code error =
        lists.load([&](const char* path) { return add(openssl_ptr<BIO>(BIO_new_file(path, "r"))); },
                   [&](asio::const_buffer data, asio::error_code& e)
                   {
                       if (!add(openssl_ptr<BIO>(BIO_new_mem_buf(data.data(), int(data.size())))))
                           e = take_openssl_error();
                   });
    ERR_clear_error();
    if (error)
        lists.refuse(error);
    if (!is_complete)
        lists.refuse(std::make_error_code(std::errc::not_supported),
                     " holds a list that is a delta, indirect or partial; give complete ones");
    if (!X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL))
        throw_openssl_error(lists.describe());
}

} // namespace upgradeable_streams::detail

#endif
