/// @file
/// Certificates and keys in PEM, loaded into a context from files or from memory.
#ifndef UPGRADEABLE_STREAMS_DETAIL_CREDENTIALS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_CREDENTIALS_HPP

#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/detail/text.hpp>

#include <asio/buffer.hpp>
#include <asio/error_code.hpp>
#include <asio/ssl/context.hpp>
#include <asio/ssl/error.hpp>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <cstddef>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace upgradeable_streams::detail
{

inline bool is_openssl_error(unsigned long error, int library, int reason)
{
    return ERR_GET_LIB(error) == library && ERR_GET_REASON(error) == reason;
}

[[noreturn]] inline void throw_openssl_error(const std::string& what)
{
    throw std::system_error(take_openssl_error(), what);
}

/// What one of two options gives, a path or the text itself, or neither.
class pem_source
{
public:
    pem_source(std::string_view role, std::string_view file, std::string_view data)
        : role_(role), file_(file), data_(data)
    {
        if (!file.empty() && !data.empty())
            throw std::invalid_argument(role_ + " as a file and as data; give one of them");
        if (file.find("-----BEGIN") != file.npos)
            throw std::invalid_argument(role_ + " file is PEM text, not a path; give it as data");
        refuse_nul(file, role_ + " file");
        if (std::error_code ignored; std::filesystem::is_directory(file_, ignored))
            throw std::system_error(std::make_error_code(std::errc::is_a_directory), describe());
    }

    bool empty() const { return file_.empty() && data_.empty(); }

    /// For what nobody would miss. A view of no string at all was not given.
    void refuse_empty_data() const
    {
        if (data_.data() && data_.empty())
            throw std::invalid_argument(role_ + " data is empty; leave it out where none is wanted");
    }

    bool is_file() const { return !file_.empty(); }
    const std::string& file() const { return file_; }

    /// Calls `from_file(path)`, a function of OpenSSL's, or `from_data(buffer, error)`, one of Asio's.
    template <typename FromFile, typename FromData>
    asio::error_code load(FromFile from_file, FromData from_data) const
    {
        ERR_clear_error();
        asio::error_code error;
        if (!is_file())
            from_data(asio::buffer(data_), error);
        else if (!from_file(file_.c_str()))
            error = take_openssl_error();
        return error;
    }

    std::string describe() const { return is_file() ? role_ + " file \"" + file_ + "\"" : role_ + " data"; }

    /// Throws why it could not be loaded `purpose`.
    [[noreturn]] void refuse(const asio::error_code& error, const std::string& purpose = {}) const
    {
        const auto code = static_cast<unsigned long>(error.value());
        const bool is_no_pem = error.category() == asio::error::get_ssl_category() &&
                               (is_openssl_error(code, ERR_LIB_PEM, PEM_R_NO_START_LINE) ||
                                is_openssl_error(code, ERR_LIB_X509, X509_R_NO_CERTIFICATE_OR_CRL_FOUND) ||
                                is_openssl_error(code, ERR_LIB_OSSL_DECODER, ERR_R_UNSUPPORTED));
        throw std::system_error(error, describe() + (is_no_pem ? " holds no " + role_ + " in PEM" : purpose));
    }

private:
    std::string role_;
    std::string file_;
    std::string_view data_;
};

inline void load_certificate_chain(asio::ssl::context& context, const pem_source& chain)
{
    const asio::error_code error = chain.load(
        [&](const char* path) { return SSL_CTX_use_certificate_chain_file(context.native_handle(), path); },
        [&](asio::const_buffer data, asio::error_code& e) { context.use_certificate_chain(data, e); });
    if (error)
        chain.refuse(error);
}

/// On Windows nothing: there it is the folder that says who can read a file.
inline void refuse_readable([[maybe_unused]] const pem_source& key)
{
#ifndef _WIN32
    using std::filesystem::perms;
    std::error_code error;
    const auto status = std::filesystem::status(key.file(), error);
    if (error)
        throw std::system_error(error, key.describe());
    if ((status.permissions() & (perms::group_read | perms::others_read)) != perms::none)
        throw std::system_error(std::make_error_code(std::errc::operation_not_permitted),
                                key.describe() +
                                    " can be read by others; chmod 600 it, or set allow_readable_private_key");
#endif
}

/// The key of the certificate that `chain` gave.
inline void load_private_key(asio::ssl::context& context, const pem_source& key, const pem_source& chain,
                             std::string_view password)
{
    struct question
    {
        std::string_view password;
        bool asked = false;
    } q = {password};
    SSL_CTX* const handle = context.native_handle();
    SSL_CTX_set_default_passwd_cb_userdata(handle, &q);
    SSL_CTX_set_default_passwd_cb(handle,
                                  [](char* out, int size, int, void* user) -> int
                                  {
                                      auto& [given, asked] = *static_cast<question*>(user);
                                      asked = true;
                                      if (given.empty() || given.size() > std::size_t(size))
                                          return -1;
                                      return int(given.copy(out, given.size()));
                                  });
    asio::error_code error = key.load(
        [&](const char* path) { return SSL_CTX_use_PrivateKey_file(handle, path, SSL_FILETYPE_PEM); },
        [&](asio::const_buffer data, asio::error_code& e)
        { context.use_private_key(data, asio::ssl::context::pem, e); });
    SSL_CTX_set_default_passwd_cb(handle, nullptr);
    SSL_CTX_set_default_passwd_cb_userdata(handle, nullptr);
    const bool is_other_key = ERR_GET_LIB(static_cast<unsigned long>(error.value())) == ERR_LIB_X509;
    if (error && q.asked && !is_other_key)
        throw std::system_error(error, key.describe() + (password.empty()
                                                             ? " is encrypted; give private_key_password"
                                                             : ": private_key_password does not open it"));
    if (!error && !SSL_CTX_check_private_key(handle))
        error = take_openssl_error();
    if (error)
        key.refuse(error, " for " + chain.describe());
}

template <typename Function>
void for_each_trust_anchor(SSL_CTX* context, Function function)
{
    X509_STORE* const store = SSL_CTX_get_cert_store(context);
#if OPENSSL_VERSION_NUMBER >= 0x30300000L
    const openssl_ptr<STACK_OF(X509_OBJECT)> owned(X509_STORE_get1_objects(store));
    if (!owned)
        throw std::bad_alloc();
    const STACK_OF(X509_OBJECT)* const trusted = owned.get();
#else
    const STACK_OF(X509_OBJECT)* const trusted = X509_STORE_get0_objects(store);
#endif
    for (int i = 0; i < sk_X509_OBJECT_num(trusted); ++i)
        if (X509* const authority = X509_OBJECT_get0_X509(sk_X509_OBJECT_value(trusted, i)))
            function(authority);
}

/// Adds certificates to those that verification ends at.
///
/// Has OpenSSL read their extensions, which else the first handshakes do, on several threads: rightly, but by atomics
/// that ThreadSanitizer does not see.
inline void add_trust_anchors(asio::ssl::context& context, const pem_source& authorities)
{
    const asio::error_code error = authorities.load(
        [&](const char* path) { return SSL_CTX_load_verify_locations(context.native_handle(), path, nullptr); },
        [&](asio::const_buffer data, asio::error_code& e) { context.add_certificate_authority(data, e); });
    if (error)
        authorities.refuse(error);
    for_each_trust_anchor(context.native_handle(), [](X509* authority) { X509_check_purpose(authority, -1, 0); });
    ERR_clear_error();
}

/// Those of the system, which OpenSSL reads on Windows from 3.2 on.
inline void add_system_trust_anchors(SSL_CTX* context)
{
    bool is_done = SSL_CTX_set_default_verify_paths(context);
#ifdef _WIN32
    is_done = is_done && SSL_CTX_load_verify_store(context, "org.openssl.winstore://");
#endif
    if (!is_done)
        throw_openssl_error("the system's trust store");
}

/// Tells clients whose certificates are accepted.
inline void set_client_ca_list(SSL_CTX* context)
{
    for_each_trust_anchor(context,
                          [context](X509* authority)
                          {
                              if (!SSL_CTX_add_client_CA(context, authority))
                                  throw_openssl_error("client CA");
                          });
}

} // namespace upgradeable_streams::detail

#endif
