#ifndef TEST_SUPPORT_TLSA_RECORDS_HPP
#define TEST_SUPPORT_TLSA_RECORDS_HPP

// What DNS would say of a certificate.

#include "openssl.hpp"

#include <upgradeable_streams/certificate.hpp>
#include <upgradeable_streams/tlsa_record.hpp>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace test
{

namespace tlsa
{

enum usage : std::uint8_t
{
    pkix_ta,
    pkix_ee,
    dane_ta,
    dane_ee
};

enum selector : std::uint8_t
{
    cert,
    spki
};

enum matching_type : std::uint8_t
{
    full,
    sha2_256,
    sha2_512
};

} // namespace tlsa

/// The certificates of a PEM file, a server's own first.
inline std::vector<upgradeable_streams::certificate> certificates_in(const std::string& file)
{
    std::vector<upgradeable_streams::certificate> all;
    const openssl_ptr<BIO, BIO_free_all> in(BIO_new_file(file.c_str(), "r"));
    while (const auto x509 = openssl_ptr<X509, X509_free>(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr)))
        all.emplace_back(x509.get());
    ERR_clear_error();
    return all;
}

inline upgradeable_streams::tlsa_record record_of(const upgradeable_streams::certificate& certificate, tlsa::usage u,
                                                  tlsa::selector s = tlsa::spki, tlsa::matching_type m = tlsa::sha2_256)
{
    X509* const x509 = certificate.native_handle();
    unsigned char* der = nullptr;
    const int size = s == tlsa::cert ? i2d_X509(x509, &der) : i2d_X509_PUBKEY(X509_get_X509_PUBKEY(x509), &der);
    std::string data(reinterpret_cast<const char*>(der), std::size_t(size));
    OPENSSL_free(der);
    if (m != tlsa::full)
    {
        unsigned char hash[EVP_MAX_MD_SIZE];
        unsigned hash_size = 0;
        EVP_Digest(data.data(), data.size(), hash, &hash_size, m == tlsa::sha2_256 ? EVP_sha256() : EVP_sha512(),
                   nullptr);
        data.assign(reinterpret_cast<const char*>(hash), hash_size);
    }
    return {u, s, m, data};
}

} // namespace test

#endif
