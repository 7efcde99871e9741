/// @file
/// What can be told of an X.509 certificate.
#ifndef UPGRADEABLE_STREAMS_CERTIFICATE_HPP
#define UPGRADEABLE_STREAMS_CERTIFICATE_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/openssl.hpp>

#include <asio/ip/address.hpp>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace upgradeable_streams
{

/// An X.509 certificate; copies share it.
class certificate
{
public:
    /// Takes a reference of its own to `x509`, which must not be null.
    explicit certificate(X509* x509) : x509_((X509_up_ref(x509), x509), X509_free) {}

    /// Valid as long as a copy of this object is.
    X509* native_handle() const noexcept { return x509_.get(); }

    /// The distinguished name in the form of RFC 2253, as in `CN=localhost`. Errors: std::bad_alloc.
    std::string subject() const { return text(X509_get_subject_name(x509_.get())); }
    std::string issuer() const { return text(X509_get_issuer_name(x509_.get())); }

    /// Errors: std::runtime_error for a time that is none.
    std::chrono::sys_seconds not_before() const { return time(X509_get0_notBefore(x509_.get())); }
    std::chrono::sys_seconds not_after() const { return time(X509_get0_notAfter(x509_.get())); }

    /// What the certificate is for: `DNS:localhost`, `IP Address:127.0.0.1`, `email:me@example.org` and, as SPIFFE has
    /// it, `URI:spiffe://example.org/me`. What it is for otherwise is left out.
    std::vector<std::string> subject_alt_names() const;

    /// The SHA-256 hash of the public key in base64 (RFC 7469 section 2.4), for the `public_key_pins` of clients.
    std::string public_key_pin() const;

private:
    static std::string text(const X509_NAME* name);
    static std::chrono::sys_seconds time(const ASN1_TIME* value);

    std::shared_ptr<X509> x509_;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL std::vector<std::string> certificate::subject_alt_names() const
{
    std::vector<std::string> names;
    const detail::openssl_ptr<GENERAL_NAMES> all(
        static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(x509_.get(), NID_subject_alt_name, nullptr, nullptr)));
    for (int i = 0; all && i < sk_GENERAL_NAME_num(all.get()); ++i)
    {
        const GENERAL_NAME* name = sk_GENERAL_NAME_value(all.get(), i);
        if (name->type == GEN_DNS || name->type == GEN_EMAIL || name->type == GEN_URI)
        {
            const std::string kind = name->type == GEN_DNS ? "DNS:" : name->type == GEN_URI ? "URI:" : "email:";
            unsigned char* utf8 = nullptr;
            const int size = ASN1_STRING_to_UTF8(&utf8, name->d.ia5);
            const detail::openssl_ptr<unsigned char> owner(utf8);
            if (size >= 0)
                names.push_back(kind + std::string(reinterpret_cast<const char*>(utf8), std::size_t(size)));
        }
        else if (name->type == GEN_IPADD)
        {
            const unsigned char* bytes = ASN1_STRING_get0_data(name->d.iPAddress);
            const int size = ASN1_STRING_length(name->d.iPAddress);
            asio::ip::address_v4::bytes_type v4;
            asio::ip::address_v6::bytes_type v6;
            if (size == int(v4.size()))
            {
                std::copy_n(bytes, v4.size(), v4.begin());
                names.push_back("IP Address:" + asio::ip::address_v4(v4).to_string());
            }
            else if (size == int(v6.size()))
            {
                std::copy_n(bytes, v6.size(), v6.begin());
                names.push_back("IP Address:" + asio::ip::address_v6(v6).to_string());
            }
        }
    }
    return names;
}

UPGRADEABLE_STREAMS_DECL std::string certificate::public_key_pin() const
{
    unsigned char* der = nullptr;
    const int size = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(x509_.get()), &der);
    const detail::openssl_ptr<unsigned char> owner(der);
    if (size <= 0)
        throw std::bad_alloc();
    const detail::sha256_hash hash = detail::sha256(der, std::size_t(size));
    return detail::base64(hash.data(), hash.size());
}

UPGRADEABLE_STREAMS_DECL std::string certificate::text(const X509_NAME* name)
{
    const detail::openssl_ptr<BIO> out(BIO_new(BIO_s_mem()));
    char* data = nullptr;
    if (!out || X509_NAME_print_ex(out.get(), name, 0, XN_FLAG_RFC2253) < 0)
        throw std::bad_alloc();
    const long size = BIO_get_mem_data(out.get(), &data);
    return {data, std::size_t(size)};
}

UPGRADEABLE_STREAMS_DECL std::chrono::sys_seconds certificate::time(const ASN1_TIME* value)
{
    int days = 0;
    int seconds = 0;
    const detail::openssl_ptr<ASN1_TIME> zero(ASN1_TIME_set(nullptr, 0));
    if (!zero || !ASN1_TIME_diff(&days, &seconds, zero.get(), value))
        throw std::runtime_error("the certificate holds a time that is none");
    return std::chrono::sys_seconds(std::chrono::days(days) + std::chrono::seconds(seconds));
}

#endif

} // namespace upgradeable_streams

#endif
