/// @file
/// Servers that are known by their public keys.
#ifndef UPGRADEABLE_STREAMS_DETAIL_PINS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_PINS_HPP

#include <upgradeable_streams/certificate.hpp>
#include <upgradeable_streams/detail/context_data.hpp>
#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/string_list.hpp>

#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace upgradeable_streams::detail
{

/// Kept in the SSL_CTX of a client: the keys of which one must be in a server's chain, or be the server's own.
class public_key_pins
{
public:
    public_key_pins(const string_list& pins, bool with_chain) : is_with_chain_(with_chain)
    {
        for (std::size_t i = 0; i < pins.size(); ++i)
            pins_.push_back(checked(pins[i]));
    }

    /// Whether the chain and the name are verified too.
    bool is_with_chain() const { return is_with_chain_; }

    /// As X509_verify_cert. A verify callback can refuse what is pinned, and not accept what is not.
    int verify(X509_STORE_CTX* certificates) const
    {
        if (is_with_chain_)
            if (const int result = X509_verify_cert(certificates); result <= 0)
                return result;
        if (!has_pinned_key(certificates))
        {
            X509_STORE_CTX_set_error(certificates, X509_V_ERR_APPLICATION_VERIFICATION);
            return 0;
        }
        if (is_with_chain_)
            return 1;
        X509_STORE_CTX_set_current_cert(certificates, X509_STORE_CTX_get0_cert(certificates));
        X509_STORE_CTX_set_error_depth(certificates, 0);
        return X509_STORE_CTX_get_verify_cb(certificates)(1, certificates);
    }

private:
    static std::string checked(std::string_view pin)
    {
        std::array<unsigned char, 33> bytes;
        sha256_hash hash;
        if (pin.size() == 44 &&
            EVP_DecodeBlock(bytes.data(), reinterpret_cast<const unsigned char*>(pin.data()), 44) == 33)
        {
            std::copy_n(bytes.begin(), hash.size(), hash.begin());
            if (base64(hash.data(), hash.size()) == pin)
                return std::string(pin);
        }
        throw std::invalid_argument("\"" + std::string(pin) +
                                    "\" is no public key pin; give the base64 of a SHA-256 hash, 44 characters, as "
                                    "certificate::public_key_pin tells it");
    }

    /// A chain with an error that a callback has tolerated proves nothing but that the server has its own key.
    bool has_pinned_key(X509_STORE_CTX* certificates) const
    try
    {
        const auto is_pinned = [this](X509* x509)
        { return std::ranges::find(pins_, certificate(x509).public_key_pin()) != pins_.end(); };
        if (!is_with_chain_ || X509_STORE_CTX_get_error(certificates) != X509_V_OK)
            return is_pinned(X509_STORE_CTX_get0_cert(certificates));
        const STACK_OF(X509)* const chain = X509_STORE_CTX_get0_chain(certificates);
        for (int i = 0; i < sk_X509_num(chain); ++i)
            if (is_pinned(sk_X509_value(chain, i)))
                return true;
        return false;
    }
    catch (...) // OpenSSL cannot be thrown through
    {
        return false;
    }

    std::vector<std::string> pins_;
    bool is_with_chain_;
};

inline int verify_with_pins(X509_STORE_CTX* certificates, void* pins)
{
    return static_cast<const public_key_pins*>(pins)->verify(certificates);
}

inline void pin_public_keys(SSL_CTX* context, const string_list& pins, bool with_chain)
{
    auto& kept = emplace_context_data<public_key_pins>(context, pins, with_chain);
    SSL_CTX_set_cert_verify_callback(context, verify_with_pins, &kept);
}

/// Whether a peer is known by its key alone.
inline bool is_known_by_key(const SSL_CTX* context)
{
    const auto* const pins = context_data<public_key_pins>(context);
    return pins && !pins->is_with_chain();
}

/// Why the certificate of an SSL object's peer was not accepted, in words.
inline const char* verify_result_text(SSL* ssl, long result)
{
    if (result == X509_V_ERR_APPLICATION_VERIFICATION && context_data<public_key_pins>(SSL_get_SSL_CTX(ssl)))
        return "its public key is not a pinned one";
    return X509_verify_cert_error_string(result);
}

} // namespace upgradeable_streams::detail

#endif
