/// @file
/// Whether a protocol that can go over to TLS does.
#ifndef UPGRADEABLE_STREAMS_STARTTLS_POLICY_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_POLICY_HPP

#include <upgradeable_streams/error.hpp>

#include <system_error>

namespace upgradeable_streams
{

/// Whether TLS is to be used where plain text comes first.
enum class starttls_policy
{
    never,   ///< In plain text, whatever the peer offers.
    attempt, ///< TLS where it is offered: an attacker who hides the offer is not noticed (RFC 7435).
    require  ///< TLS or no connection.
};

/// Whether to ask for TLS. Once it was asked for and granted, no policy goes back: a start_tls that fails closes the
/// connection.
///
/// Errors: errc::tls_not_offered where it is required.
inline bool wants_tls(starttls_policy policy, bool is_offered)
{
    if (policy == starttls_policy::require && !is_offered)
        throw std::system_error(errc::tls_not_offered);
    return policy != starttls_policy::never && is_offered;
}

} // namespace upgradeable_streams

#endif
