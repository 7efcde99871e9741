/// @file
/// The keys of a server's session tickets.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TICKET_KEYS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TICKET_KEYS_HPP

#include <upgradeable_streams/detail/compilation.hpp>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <optional>
#include <span>

namespace upgradeable_streams::detail
{

/// Keys that change (RFC 9325 section 3.4), for whoever has one reads all that TLS 1.2 has encrypted in the sessions of
/// its tickets; OpenSSL's own are those of the SSL_CTX for good. A ticket says whose session it is (the session id
/// context), so that all contexts may share them. Safe to share between threads.
class ticket_keys
{
public:
    using clock = std::chrono::steady_clock;

    /// How long a key is used for new tickets; after that, as long again, for those that it is in. Handshakes see to
    /// it.
    static constexpr std::chrono::hours lifetime{24};

    ticket_keys() = default;
    ticket_keys(const ticket_keys&) = delete;
    ticket_keys& operator=(const ticket_keys&) = delete;

    /// Never destroyed: threads may shake hands to the end of the process.
    static ticket_keys& of_process()
    {
        static ticket_keys& keys = *new ticket_keys;
        return keys;
    }

    // As SSL_CTX_set_tlsext_ticket_key_evp_cb has them:

    static constexpr int failed = -1, unknown = 0, known = 1, known_to_be_renewed = 2;

    /// Sets up what makes a new ticket. Returns: `known` or `failed`.
    int encrypt(unsigned char* name, unsigned char* iv, EVP_CIPHER_CTX* cipher, EVP_MAC_CTX* mac,
                clock::time_point now);

    /// Sets up what opens a ticket of this name.
    int decrypt(const unsigned char* name, const unsigned char* iv, EVP_CIPHER_CTX* cipher, EVP_MAC_CTX* mac,
                clock::time_point now);

private:
    struct key
    {
        clock::time_point made;
        std::array<unsigned char, 16> name;
        std::array<unsigned char, 32> cipher;
        std::array<unsigned char, 32> mac;

        ~key() { OPENSSL_cleanse(this, sizeof *this); }
    };

    bool renew(clock::time_point now);

    std::mutex mutex_;
    std::array<std::optional<key>, 2> keys_; ///< The one that is used for new tickets first.
};

/// Has the context's tickets encrypted so.
void renew_ticket_keys(SSL_CTX* context);

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

/// Makes a new key when it is time, and drops an old one. Returns: whether there is one for new tickets.
UPGRADEABLE_STREAMS_DECL bool ticket_keys::renew(clock::time_point now)
{
    const auto is_younger = [now](const std::optional<key>& k, clock::duration age)
    { return k && now - k->made < age; };
    if (!is_younger(keys_[1], 2 * lifetime))
        keys_[1].reset();
    if (is_younger(keys_[0], lifetime))
        return true;
    key made = {now, {}, {}, {}};
    if (RAND_bytes(made.name.data(), int(made.name.size())) != 1 ||
        RAND_priv_bytes(made.cipher.data(), int(made.cipher.size())) != 1 ||
        RAND_priv_bytes(made.mac.data(), int(made.mac.size())) != 1)
        return false;
    keys_[1] = is_younger(keys_[0], 2 * lifetime) ? keys_[0] : std::nullopt;
    keys_[0] = made;
    return true;
}

inline bool use_ticket_mac(EVP_MAC_CTX* mac, std::array<unsigned char, 32>& key)
{
    char digest[] = "SHA256";
    std::array<OSSL_PARAM, 3> params = {OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, key.data(), key.size()),
                                        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
                                        OSSL_PARAM_construct_end()};
    return EVP_MAC_CTX_set_params(mac, params.data()) == 1;
}

UPGRADEABLE_STREAMS_DECL int ticket_keys::encrypt(unsigned char* name, unsigned char* iv, EVP_CIPHER_CTX* cipher,
                                                  EVP_MAC_CTX* mac, clock::time_point now)
{
    const std::lock_guard lock(mutex_);
    if (!renew(now))
        return failed;
    key& current = *keys_[0];
    std::ranges::copy(current.name, name);
    const bool is_set = RAND_bytes(iv, EVP_CIPHER_get_iv_length(EVP_aes_256_cbc())) == 1 &&
                        EVP_EncryptInit_ex(cipher, EVP_aes_256_cbc(), nullptr, current.cipher.data(), iv) == 1 &&
                        use_ticket_mac(mac, current.mac);
    return is_set ? known : failed;
}

UPGRADEABLE_STREAMS_DECL int ticket_keys::decrypt(const unsigned char* name, const unsigned char* iv,
                                                  EVP_CIPHER_CTX* cipher, EVP_MAC_CTX* mac, clock::time_point now)
{
    const std::lock_guard lock(mutex_);
    if (!renew(now))
        return failed;
    for (std::optional<key>& each : keys_)
        if (each && std::ranges::equal(each->name, std::span(name, each->name.size())))
        {
            const bool is_set = use_ticket_mac(mac, each->mac) &&
                                EVP_DecryptInit_ex(cipher, EVP_aes_256_cbc(), nullptr, each->cipher.data(), iv) == 1;
            return !is_set ? failed : &each == keys_.data() ? known : known_to_be_renewed;
        }
    return unknown;
}

UPGRADEABLE_STREAMS_DECL void renew_ticket_keys(SSL_CTX* context)
{
    const auto set_up =
        [](SSL* ssl, unsigned char* name, unsigned char* iv, EVP_CIPHER_CTX* cipher, EVP_MAC_CTX* mac, int is_new)
    {
        const auto now = ticket_keys::clock::now();
        if (is_new)
            return ticket_keys::of_process().encrypt(name, iv, cipher, mac, now);
        const int result = ticket_keys::of_process().decrypt(name, iv, cipher, mac, now);
        const bool is_used_up = SSL_version(ssl) >= TLS1_3_VERSION; // one of TLS 1.3 is for one connection
        return result == ticket_keys::known && is_used_up ? ticket_keys::known_to_be_renewed : result;
    };
    SSL_CTX_set_tlsext_ticket_key_evp_cb(context, set_up);
}

#endif

} // namespace upgradeable_streams::detail

#endif
