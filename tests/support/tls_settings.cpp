#include "tls_settings.hpp"

#include "certificates.hpp"

#include <cstddef>
#include <cstdint>

namespace test
{
namespace
{

/// A ClientHello then has an extension of `size` bytes, with a type for private use.
void add_padding(SSL_CTX* context, std::size_t size)
{
    const auto add = [](SSL*, unsigned, unsigned, const unsigned char** data, std::size_t* length, X509*, std::size_t,
                        int*, void* bytes)
    {
        *length = reinterpret_cast<std::uintptr_t>(bytes);
        *data = static_cast<unsigned char*>(OPENSSL_zalloc(*length));
        return *data ? 1 : -1;
    };
    const auto free = [](SSL*, unsigned, unsigned, const unsigned char* data, void*)
    { OPENSSL_free(const_cast<unsigned char*>(data)); };
    openssl_check(SSL_CTX_add_custom_ext(context, 0xff00, SSL_EXT_CLIENT_HELLO, add, free,
                                         reinterpret_cast<void*>(size), nullptr, nullptr),
                  "padding");
}

} // namespace

tls_settings localhost_server()
{
    tls_settings settings;
    settings.certificate_file = localhost_certificate().certificate_file;
    settings.key_file = localhost_certificate().key_file;
    return settings;
}

tls_settings localhost_client()
{
    tls_settings settings;
    settings.ca_file = authority().ca_file();
    settings.server_name = "localhost";
    return settings;
}

tls_settings localhost_client(const issued& own)
{
    tls_settings settings = localhost_client();
    settings.certificate_file = own.certificate_file;
    settings.key_file = own.key_file;
    return settings;
}

context_ptr make_context(const tls_settings& settings, bool is_server)
{
    context_ptr context(
        openssl_check(SSL_CTX_new(is_server ? TLS_server_method() : TLS_client_method()), "SSL_CTX_new"));
    SSL_CTX_set_security_level(context.get(), 0);
    openssl_check(SSL_CTX_set_min_proto_version(context.get(), settings.min_version), "min_version");
    openssl_check(SSL_CTX_set_max_proto_version(context.get(), settings.max_version), "max_version");
    if (!settings.certificate_file.empty())
    {
        openssl_check(SSL_CTX_use_certificate_chain_file(context.get(), settings.certificate_file.c_str()),
                      "certificate_file");
        openssl_check(SSL_CTX_use_PrivateKey_file(context.get(), settings.key_file.c_str(), SSL_FILETYPE_PEM),
                      "key_file");
    }
    if (!settings.ca_file.empty())
    {
        openssl_check(SSL_CTX_load_verify_locations(context.get(), settings.ca_file.c_str(), nullptr), "ca_file");
        SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    }
    if (settings.padding > 0)
        add_padding(context.get(), settings.padding);
    if (settings.adjust)
        settings.adjust(context.get());
    return context;
}

void enlarge_session_tickets(SSL_CTX* context)
{
    const auto enlarge = [](SSL* ssl, void*)
    {
        const std::string data(2000, 't');
        return SSL_SESSION_set1_ticket_appdata(SSL_get_session(ssl), data.data(), data.size());
    };
    SSL_CTX_set_session_ticket_cb(context, enlarge, nullptr, nullptr);
}

} // namespace test
