#ifndef TEST_SUPPORT_CERTIFICATES_HPP
#define TEST_SUPPORT_CERTIFICATES_HPP

#include "openssl.hpp"
#include "temporary_directory.hpp"

#include <upgradeable_streams/certificate.hpp>

#include <openssl/x509.h>

#include <chrono>
#include <string>
#include <vector>

namespace test
{

struct certificate_request
{
    std::string common_name{};
    std::vector<std::string> dns_names{};    ///< Taken as they are, NULs and wildcards included.
    std::vector<std::string> ip_addresses{}; ///< Textual, IPv4 or IPv6.
    std::vector<std::string> emails{};
    std::vector<std::string> uris{};
    std::chrono::days valid_from{-1};        ///< Counted from now.
    std::chrono::days valid_until{30};       ///< Counted from now.
    bool client_auth = false;                ///< For TLS clients, instead of for servers.
    bool by_intermediate = false;            ///< Issued by an intermediate CA, whose certificate follows in the file.
};

/// Paths of PEM files; they last as long as the authority that issued them.
struct issued
{
    std::string certificate_file;
    std::string key_file;
};

struct crl_request
{
    std::vector<issued> revoked{};
    std::chrono::days valid_from{-10}; ///< Counted from now.
    std::chrono::days valid_until{30}; ///< Counted from now.
    bool by_intermediate = false;      ///< Of what the intermediate CA has issued.
    enum
    {
        complete,
        delta,
        indirect,
        by_reason,
        unknown
    } kind = complete;
};

/// A CA with a key of its own (P-256), made when constructed and gone with its files when destroyed.
class certificate_authority
{
public:
    explicit certificate_authority(const std::string& name);

    std::string ca_file() const { return directory_.file("ca.pem"); }
    const std::string& directory() const noexcept { return directory_.path(); }

    issued issue(const certificate_request& request);

    /// A revocation list in PEM.
    std::string revocation_list(const crl_request& request = {}) const;

private:
    struct identity
    {
        openssl_ptr<EVP_PKEY, EVP_PKEY_free> key;
        openssl_ptr<X509, X509_free> certificate;
    };

    static identity make_identity(const certificate_request& request, const identity* issuer, bool is_authority);

    temporary_directory directory_;
    identity root_;
    identity intermediate_;
    int issued_count_ = 0;
};

/// The certificates of a PEM file, a server's own first.
std::vector<upgradeable_streams::certificate> certificates_in(const std::string& file);

/// The CA that tests share.
certificate_authority& authority();

/// A CA that nobody trusts unless a test says so.
certificate_authority& unrelated_authority();

/// A server certificate of `authority()` for localhost, 127.0.0.1 and ::1.
const issued& localhost_certificate();

/// A client certificate of `authority()` with the common name "test client".
const issued& client_certificate();

} // namespace test

#endif
