#ifndef TEST_SUPPORT_TLSA_RECORDS_HPP
#define TEST_SUPPORT_TLSA_RECORDS_HPP

// What DNS would say of a certificate.

#include <upgradeable_streams/certificate.hpp>
#include <upgradeable_streams/tlsa_record.hpp>

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <cstddef>
#include <cstdint>
#include <string>

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
