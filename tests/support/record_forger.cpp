#include "record_forger.hpp"

#include "failure.hpp"
#include "openssl.hpp"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <cstddef>

namespace test
{
namespace
{

/// Keeps the secret in the context's string. The line has a label, the client's random and the secret, in hexadecimal.
void keep_secret(const SSL* ssl, const char* line)
{
    const std::string_view text = line;
    if (!text.starts_with("SERVER_TRAFFIC_SECRET_0 "))
        return;
    long size = 0;
    unsigned char* const bytes = OPENSSL_hexstr2buf(line + text.rfind(' ') + 1, &size);
    auto& secret = *static_cast<std::string*>(SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl)));
    secret.assign(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
    OPENSSL_free(bytes);
}

} // namespace

tls_settings record_forger::server()
{
    tls_settings settings = localhost_server();
    settings.min_version = TLS1_3_VERSION;
    settings.adjust = [this](SSL_CTX* context)
    {
        openssl_check(SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256"), "ciphersuites");
        SSL_CTX_set_num_tickets(context, 0);
        SSL_CTX_set_app_data(context, &secret_);
        SSL_CTX_set_keylog_callback(context, keep_secret);
    };
    return settings;
}

/// HKDF-Expand-Label without a context, of one block (RFC 8446 section 7.1).
template <std::size_t Size>
std::array<unsigned char, Size> record_forger::derive(std::string_view label) const
{
    const std::string name = "tls13 " + std::string(label);
    const std::string info = std::string{'\0', char(Size), char(name.size())} + name + std::string{'\0', '\1'};
    std::array<unsigned char, EVP_MAX_MD_SIZE> block;
    if (!HMAC(EVP_sha256(), secret_.data(), int(secret_.size()), reinterpret_cast<const unsigned char*>(info.data()),
              info.size(), block.data(), nullptr))
        throw failure("HMAC: " + take_openssl_errors());
    std::array<unsigned char, Size> derived;
    std::copy_n(block.begin(), Size, derived.begin());
    return derived;
}

std::string record_forger::record(unsigned char type, std::string_view content)
{
    constexpr std::size_t tag_size = 16;
    if (secret_.empty())
        throw failure("no handshake has told a secret");
    const std::string inner = std::string(content) + char(type);
    const std::size_t size = inner.size() + tag_size;
    std::string made{'\x17', '\x03', '\x03', char(size / 256), char(size % 256)};
    const auto key = derive<16>("key");
    auto nonce = derive<12>("iv");
    for (std::size_t i = 0; i < 8; ++i)
        nonce[11 - i] ^= static_cast<unsigned char>(sequence_ >> (8 * i));
    ++sequence_;
    const openssl_ptr<EVP_CIPHER_CTX, EVP_CIPHER_CTX_free> cipher(EVP_CIPHER_CTX_new());
    const auto bytes = [](std::string& text) { return reinterpret_cast<unsigned char*>(text.data()); };
    std::string encrypted(inner.size(), '\0');
    std::string tag(tag_size, '\0');
    std::string text = inner;
    int count = 0;
    openssl_check(EVP_EncryptInit_ex(cipher.get(), EVP_aes_128_gcm(), nullptr, key.data(), nonce.data()), "key");
    openssl_check(EVP_EncryptUpdate(cipher.get(), nullptr, &count, bytes(made), int(made.size())), "header");
    openssl_check(EVP_EncryptUpdate(cipher.get(), bytes(encrypted), &count, bytes(text), int(text.size())), "record");
    openssl_check(EVP_EncryptFinal_ex(cipher.get(), nullptr, &count), "record");
    openssl_check(EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_GCM_GET_TAG, tag_size, tag.data()), "tag");
    return made + encrypted + tag;
}

} // namespace test
