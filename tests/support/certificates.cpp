#include "certificates.hpp"

#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <cstdint>
#include <initializer_list>

namespace test
{
namespace
{

using general_names = openssl_ptr<GENERAL_NAMES, GENERAL_NAMES_free>;

void set_serial_number(X509* certificate)
{
    std::uint64_t serial = 0;
    openssl_check(RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof serial), "RAND_bytes");
    openssl_check(ASN1_INTEGER_set_uint64(X509_get_serialNumber(certificate), serial >> 1 | 1), "serial number");
}

void set_common_name(X509* certificate, const std::string& name)
{
    const auto* bytes = reinterpret_cast<const unsigned char*>(name.data());
    const openssl_ptr<X509_NAME, X509_NAME_free> subject(X509_NAME_new());
    openssl_check(X509_NAME_add_entry_by_NID(subject.get(), NID_commonName, MBSTRING_UTF8, bytes,
                                             static_cast<int>(name.size()), -1, 0) &&
                      X509_set_subject_name(certificate, subject.get()),
                  "common name");
}

void set_time(ASN1_TIME* time, std::chrono::days from_now)
{
    openssl_check(X509_time_adj_ex(time, static_cast<int>(from_now.count()), 0, nullptr), "validity");
}

void add_extension(X509* certificate, X509* issuer, int nid, const char* value)
{
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
    const openssl_ptr<X509_EXTENSION, X509_EXTENSION_free> extension(
        openssl_check(X509V3_EXT_conf_nid(nullptr, &context, nid, value), value));
    openssl_check(X509_add_ext(certificate, extension.get(), -1), value);
}

void push_name(GENERAL_NAMES* names, int type, ASN1_STRING* value)
{
    GENERAL_NAME* name = openssl_check(GENERAL_NAME_new(), "GENERAL_NAME_new");
    GENERAL_NAME_set0_value(name, type, value);
    openssl_check(sk_GENERAL_NAME_push(names, name), "subject alternative name");
}

void add_alternative_names(X509* certificate, const certificate_request& request)
{
    const general_names names(openssl_check(GENERAL_NAMES_new(), "GENERAL_NAMES_new"));
    const auto add = [&](const std::vector<std::string>& given, int type)
    {
        for (const std::string& name : given)
        {
            ASN1_STRING* text = openssl_check(ASN1_IA5STRING_new(), "ASN1_IA5STRING_new");
            openssl_check(ASN1_STRING_set(text, name.data(), static_cast<int>(name.size())), "name");
            push_name(names.get(), type, text);
        }
    };
    add(request.dns_names, GEN_DNS);
    add(request.emails, GEN_EMAIL);
    add(request.uris, GEN_URI);
    for (const std::string& ip : request.ip_addresses)
        push_name(names.get(), GEN_IPADD, openssl_check(a2i_IPADDRESS(ip.c_str()), "IP address"));
    if (sk_GENERAL_NAME_num(names.get()) > 0)
        openssl_check(X509_add1_ext_i2d(certificate, NID_subject_alt_name, names.get(), 0, 0),
                      "subject alternative names");
}

openssl_ptr<BIO, BIO_free_all> memory_bio()
{
    return openssl_ptr<BIO, BIO_free_all>(openssl_check(BIO_new(BIO_s_mem()), "BIO_new"));
}

std::string content_of(BIO* bio)
{
    char* data = nullptr;
    const long size = BIO_get_mem_data(bio, &data);
    return std::string(data, static_cast<std::size_t>(size));
}

std::string certificates_as_pem(std::initializer_list<X509*> certificates)
{
    const auto bio = memory_bio();
    for (X509* certificate : certificates)
        openssl_check(PEM_write_bio_X509(bio.get(), certificate), "PEM_write_bio_X509");
    return content_of(bio.get());
}

std::string key_as_pem(EVP_PKEY* key)
{
    const auto bio = memory_bio();
    openssl_check(PEM_write_bio_PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr),
                  "PEM_write_bio_PrivateKey");
    return content_of(bio.get());
}

void add_kind(X509_CRL* list, const crl_request& request)
{
    const auto add = [list](int extension, void* value)
    { openssl_check(X509_CRL_add1_ext_i2d(list, extension, value, 1, 0), "extension of a CRL"); };
    const openssl_ptr<ASN1_INTEGER, ASN1_INTEGER_free> one(openssl_check(ASN1_INTEGER_new(), "ASN1_INTEGER_new"));
    openssl_check(ASN1_INTEGER_set_uint64(one.get(), 1), "ASN1_INTEGER_set_uint64");
    const openssl_ptr<ISSUING_DIST_POINT, ISSUING_DIST_POINT_free> scope(
        openssl_check(ISSUING_DIST_POINT_new(), "ISSUING_DIST_POINT_new"));
    switch (request.kind)
    {
    case crl_request::complete: return;
    case crl_request::delta: return add(NID_delta_crl, one.get());
    case crl_request::unknown: return add(NID_inhibit_any_policy, one.get());
    case crl_request::indirect: scope->indirectCRL = 0xff; break;
    case crl_request::by_reason:
        scope->onlysomereasons = openssl_check(ASN1_BIT_STRING_new(), "ASN1_BIT_STRING_new");
        openssl_check(ASN1_BIT_STRING_set_bit(scope->onlysomereasons, 1, 1), "ASN1_BIT_STRING_set_bit");
        break;
    }
    add(NID_issuing_distribution_point, scope.get());
}

certificate_request authority_request(const std::string& name)
{
    certificate_request request;
    request.common_name = name;
    request.valid_from = std::chrono::days(-3650);
    request.valid_until = std::chrono::days(3650);
    return request;
}

} // namespace

certificate_authority::identity certificate_authority::make_identity(const certificate_request& request,
                                                                     const identity* issuer, bool is_authority)
{
    identity made;
    made.key.reset(openssl_check(EVP_EC_gen("P-256"), "EVP_EC_gen"));
    made.certificate.reset(openssl_check(X509_new(), "X509_new"));
    X509* certificate = made.certificate.get();
    X509* signer = issuer != nullptr ? issuer->certificate.get() : certificate;

    openssl_check(X509_set_version(certificate, 2), "X509_set_version");
    set_serial_number(certificate);
    set_common_name(certificate, request.common_name);
    openssl_check(X509_set_issuer_name(certificate, X509_get_subject_name(signer)), "issuer");
    set_time(X509_getm_notBefore(certificate), request.valid_from);
    set_time(X509_getm_notAfter(certificate), request.valid_until);
    openssl_check(X509_set_pubkey(certificate, made.key.get()), "X509_set_pubkey");

    add_extension(certificate, signer, NID_subject_key_identifier, "hash");
    add_extension(certificate, signer, NID_authority_key_identifier, "keyid:always");
    add_extension(certificate, signer, NID_basic_constraints, is_authority ? "critical,CA:TRUE" : "critical,CA:FALSE");
    add_extension(certificate, signer, NID_key_usage,
                  is_authority ? "critical,keyCertSign,cRLSign" : "critical,digitalSignature");
    if (!is_authority)
        add_extension(certificate, signer, NID_ext_key_usage, request.client_auth ? "clientAuth" : "serverAuth");
    add_alternative_names(certificate, request);

    EVP_PKEY* signing_key = issuer != nullptr ? issuer->key.get() : made.key.get();
    openssl_check(X509_sign(certificate, signing_key, EVP_sha256()), "X509_sign");
    return made;
}

certificate_authority::certificate_authority(const std::string& name)
    : root_(make_identity(authority_request(name), nullptr, true)),
      intermediate_(make_identity(authority_request(name + " intermediate"), &root_, true))
{
    directory_.write("ca.pem", certificates_as_pem({root_.certificate.get()}), 0644);
}

issued certificate_authority::issue(const certificate_request& request)
{
    const identity made = make_identity(request, request.by_intermediate ? &intermediate_ : &root_, false);
    const std::string stem = std::to_string(++issued_count_);
    const std::string chain = request.by_intermediate
                                  ? certificates_as_pem({made.certificate.get(), intermediate_.certificate.get()})
                                  : certificates_as_pem({made.certificate.get()});
    return {directory_.write(stem + ".crt", chain, 0644), directory_.write(stem + ".key", key_as_pem(made.key.get()))};
}

std::string certificate_authority::revocation_list(const crl_request& request) const
{
    const identity& issuer = request.by_intermediate ? intermediate_ : root_;
    const openssl_ptr<X509_CRL, X509_CRL_free> list(openssl_check(X509_CRL_new(), "X509_CRL_new"));
    openssl_check(X509_CRL_set_version(list.get(), 1), "X509_CRL_set_version");
    openssl_check(X509_CRL_set_issuer_name(list.get(), X509_get_subject_name(issuer.certificate.get())), "issuer");
    const openssl_ptr<ASN1_TIME, ASN1_TIME_free> time(openssl_check(ASN1_TIME_new(), "ASN1_TIME_new"));
    set_time(time.get(), request.valid_until);
    openssl_check(X509_CRL_set1_nextUpdate(list.get(), time.get()), "X509_CRL_set1_nextUpdate");
    set_time(time.get(), request.valid_from);
    openssl_check(X509_CRL_set1_lastUpdate(list.get(), time.get()), "X509_CRL_set1_lastUpdate");
    for (const issued& each : request.revoked)
    {
        const auto certificate = certificates_in(each.certificate_file).at(0);
        openssl_ptr<X509_REVOKED, X509_REVOKED_free> entry(openssl_check(X509_REVOKED_new(), "X509_REVOKED_new"));
        openssl_check(X509_REVOKED_set_serialNumber(entry.get(), X509_get_serialNumber(certificate.native_handle())) &&
                          X509_REVOKED_set_revocationDate(entry.get(), time.get()) &&
                          X509_CRL_add0_revoked(list.get(), entry.get()),
                      "revoked certificate");
        entry.release();
    }
    add_kind(list.get(), request);
    openssl_check(X509_CRL_sign(list.get(), issuer.key.get(), EVP_sha256()), "X509_CRL_sign");
    const auto bio = memory_bio();
    openssl_check(PEM_write_bio_X509_CRL(bio.get(), list.get()), "PEM_write_bio_X509_CRL");
    return content_of(bio.get());
}

std::vector<upgradeable_streams::certificate> certificates_in(const std::string& file)
{
    std::vector<upgradeable_streams::certificate> all;
    const openssl_ptr<BIO, BIO_free_all> in(BIO_new_file(file.c_str(), "r"));
    while (const auto x509 = openssl_ptr<X509, X509_free>(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr)))
        all.emplace_back(x509.get());
    ERR_clear_error();
    return all;
}

certificate_authority& authority()
{
    static certificate_authority shared("upgradeable_streams test CA");
    return shared;
}

certificate_authority& unrelated_authority()
{
    static certificate_authority shared("unrelated test CA");
    return shared;
}

const issued& localhost_certificate()
{
    static const issued shared = authority().issue(
        {.common_name = "localhost", .dns_names = {"localhost"}, .ip_addresses = {"127.0.0.1", "::1"}});
    return shared;
}

const issued& client_certificate()
{
    static const issued shared = authority().issue({.common_name = "test client", .client_auth = true});
    return shared;
}

} // namespace test
