/// @file
/// What an upgrade that failed tells.
#ifndef UPGRADEABLE_STREAMS_DETAIL_UPGRADE_ERROR_HPP
#define UPGRADEABLE_STREAMS_DETAIL_UPGRADE_ERROR_HPP

#include <upgradeable_streams/certificate.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/pins.hpp>
#include <upgradeable_streams/detail/text.hpp>
#include <upgradeable_streams/detail/tls_settings.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/error_code.hpp>
#include <asio/ssl/error.hpp>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace upgradeable_streams::detail
{

/// What failed, for an error.
std::string name_of_upgrade(const tls_settings& settings);

/// The exception of an upgrade that failed with `error`. `ssl` is null where there was none, `not_tls` what the peer
/// sent in place of TLS.
tls_error describe_upgrade(const asio::error_code& error, SSL* ssl, const tls_settings& settings,
                           const std::string& not_tls);

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL std::string name_of_upgrade(const tls_settings& settings)
{
    return "TLS upgrade" + (settings.server_hostname.empty() ? "" : " with " + settings.server_hostname);
}

/// The certificate that the peer has shown, whether or not it was accepted.
inline std::optional<certificate> shown_certificate(SSL* ssl)
{
    const STACK_OF(X509)* const chain = SSL_get0_verified_chain(ssl); // also of a chain that was not accepted
    if (!chain || sk_X509_num(chain) == 0)
        return std::nullopt;
    return certificate(sk_X509_value(chain, 0));
}

/// Whose certificate was not accepted, for whom, and why.
inline std::string refusal_of_certificate(SSL* ssl, const tls_settings& settings)
{
    const long reason = SSL_get_verify_result(ssl);
    std::string text = "the peer's certificate";
    const std::optional<certificate> given = shown_certificate(ssl);
    if (given)
        text += " (" + printable(given->subject()) + ")";
    text += " is not accepted";
    if (settings.role == tls_role::client)
        text += " for \"" + settings.server_hostname + "\"";
    text += std::string(" (") + verify_result_text(ssl, reason) + ")";
    if (given && (reason == X509_V_ERR_HOSTNAME_MISMATCH || reason == X509_V_ERR_IP_ADDRESS_MISMATCH))
    {
        constexpr std::size_t most = 5;
        const std::vector<std::string> names = given->subject_alt_names();
        text += names.empty() ? "; it names no host" : "; it is for";
        for (std::size_t i = 0; i < std::min(names.size(), most); ++i)
            text += (i ? ", " : " ") + printable(names[i]);
        if (names.size() > most)
            text += " and " + std::to_string(names.size() - most) + " more";
    }
    return text;
}

UPGRADEABLE_STREAMS_DECL tls_error describe_upgrade(const asio::error_code& error, SSL* ssl,
                                                    const tls_settings& settings, const std::string& not_tls)
{
    const int reason = error.category() == asio::error::get_ssl_category()
                           ? ERR_GET_REASON(static_cast<unsigned long>(error.value()))
                           : 0;
    if (ssl && reason == SSL_R_CERTIFICATE_VERIFY_FAILED)
        return {error,
                "TLS upgrade: " + refusal_of_certificate(ssl, settings),
                SSL_get_verify_result(ssl),
                {},
                shown_certificate(ssl)};
    std::string what = name_of_upgrade(settings);
    if (reason > SSL_AD_REASON_OFFSET) // an alert was received
        what += ", refused by the peer";
    if (error == asio::ssl::error::stream_truncated)
        what += ", during which the peer closed the connection";
    if (!not_tls.empty())
        what += ", answered with \"" + printable(not_tls) + "\"";
    return {error, what, X509_V_OK, not_tls};
}

#endif

} // namespace upgradeable_streams::detail

#endif
