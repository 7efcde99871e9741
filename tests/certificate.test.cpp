#include <upgradeable_streams/certificate.hpp>

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/openssl.hpp"

#include <openssl/evp.h>
#include <openssl/pem.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

namespace us = upgradeable_streams;

namespace
{

us::certificate load(const test::issued& issued)
{
    const test::openssl_ptr<BIO, BIO_free_all> file(BIO_new_file(issued.certificate_file.c_str(), "r"));
    const test::openssl_ptr<X509, X509_free> x509(PEM_read_bio_X509(file.get(), nullptr, nullptr, nullptr));
    test::openssl_check(x509.get(), "PEM_read_bio_X509");
    return us::certificate(x509.get());
}

using names = std::vector<std::string>;

} // namespace

TEST_CASE("certificate: subject and issuer are in the form of RFC 2253")
{
    const auto certificate = load(test::authority().issue({.common_name = "host.test"}));
    CHECK(certificate.subject() == "CN=host.test");
    CHECK(certificate.issuer() == "CN=upgradeable_streams test CA");
}

TEST_CASE("certificate: a subject with characters that RFC 2253 escapes has them escaped")
{
    const auto certificate = load(test::authority().issue({.common_name = "a,b+c"}));
    CHECK(certificate.subject() == "CN=a\\,b\\+c");
}

TEST_CASE("certificate: not_before and not_after are points in time")
{
    using std::chrono::days;
    const auto certificate =
        load(test::authority().issue({.common_name = "test", .valid_from = days(-10), .valid_until = days(20)}));
    CHECK(certificate.not_after() - certificate.not_before() == days(30));
    const auto now = std::chrono::system_clock::now();
    CHECK(certificate.not_before() < now - days(9));
    CHECK(certificate.not_after() > now + days(19));
    CHECK(certificate.not_after() < now + days(21));
}

TEST_CASE("certificate: times before 1970 and after 2038 are right")
{
    using namespace std::chrono;
    const auto start = system_clock::now();
    const auto certificate =
        load(test::authority().issue({.common_name = "test", .valid_from = days(-36500), .valid_until = days(36500)}));
    CHECK(certificate.not_before() < start - days(36499));
    CHECK(certificate.not_before() > start - days(36501));
    CHECK(certificate.not_after() > start + days(36499));
    CHECK(certificate.not_after() < start + days(36501));
}

TEST_CASE("certificate: subject_alt_names tells addresses for mail and URIs, by which clients are known")
{
    const auto certificate = load(test::authority().issue(
        {.common_name = "me", .emails = {"me@example.org"}, .uris = {"spiffe://example.org/me"}, .client_auth = true}));
    CHECK(certificate.subject_alt_names() ==
          std::vector<std::string>{"email:me@example.org", "URI:spiffe://example.org/me"});
}

TEST_CASE("certificate: subject_alt_names tells DNS names and IP addresses, in order")
{
    const auto certificate = load(test::authority().issue(
        {.common_name = "test", .dns_names = {"host.test", "*.host.test"}, .ip_addresses = {"127.0.0.1", "::1"}}));
    CHECK(certificate.subject_alt_names() ==
          names{"DNS:host.test", "DNS:*.host.test", "IP Address:127.0.0.1", "IP Address:::1"});
}

TEST_CASE("certificate: without subject alternative names the list is empty, whatever the common name")
{
    CHECK(load(test::authority().issue({.common_name = "host.test"})).subject_alt_names().empty());
}

TEST_CASE("certificate: a name with a NUL in it is told whole, not up to the NUL")
{
    const std::string name("good.test\0.evil.test", 20);
    const auto certificate = load(test::authority().issue({.common_name = "test", .dns_names = {name}}));
    CHECK(certificate.subject_alt_names() == names{"DNS:" + name});
}

TEST_CASE("certificate: public_key_pin is the base64 of the SHA-256 hash of the SubjectPublicKeyInfo")
{
    const auto issued = test::authority().issue({.common_name = "host.test"});
    const auto certificate = load(issued);
    unsigned char* der = nullptr;
    const int size = i2d_PUBKEY(X509_get0_pubkey(certificate.native_handle()), &der);
    const us::detail::openssl_ptr<unsigned char> owner(der);
    unsigned char hash[33] = {};
    REQUIRE(EVP_Digest(der, std::size_t(size), hash, nullptr, EVP_sha256(), nullptr));
    unsigned char decoded[33] = {};
    const std::string pin = certificate.public_key_pin();
    REQUIRE(pin.size() == 44);
    CHECK(EVP_DecodeBlock(decoded, reinterpret_cast<const unsigned char*>(pin.data()), 44) == 33);
    CHECK(std::equal(std::begin(hash), std::end(hash), std::begin(decoded)));
    CHECK(pin == load(issued).public_key_pin());
    CHECK(pin != load(test::localhost_certificate()).public_key_pin());
}

TEST_CASE("certificate: copies share the X509, which lasts as long as one of them")
{
    std::optional<us::certificate> first = load(test::authority().issue({.common_name = "host.test"}));
    const us::certificate second = *first;
    CHECK(first->native_handle() == second.native_handle());
    first.reset();
    CHECK(second.subject() == "CN=host.test");
}
