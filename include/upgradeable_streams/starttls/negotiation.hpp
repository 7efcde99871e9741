/// @file
/// What the negotiators of starttls/ take and give.
#ifndef UPGRADEABLE_STREAMS_STARTTLS_NEGOTIATION_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_NEGOTIATION_HPP

#include <upgradeable_streams/starttls/policy.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/tls.hpp>

#include <chrono>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

/// Negotiators: of each protocol the client, which leads a connection from its first byte to TLS, and the server's
/// answer to a client that asks for TLS.
///
/// Errors, of every client: at the call, with nothing sent, std::invalid_argument for options that make no sense, and
/// unless the policy is `never` errc::already_tls, not_upgradeable and tlsa_records_unusable. Every other failure
/// closes the connection at once: a starttls_error, which shows the server's words, with errc::tls_not_offered,
/// request_refused, reply_malformed, reply_too_long (64 KiB in all, of which a last line may have as much as the
/// reader's limit), negotiation_timeout, or incomplete_read or asio::error::connection_reset where the server ended the
/// connection; and as stream_writer::start_tls, errc::plaintext_injection for whatever follows the go-ahead. Nothing
/// but the protocol's own commands is ever sent in plain text.
///
/// Errors, of every answer: at the call std::invalid_argument for another request, and for a pair that is the client in
/// TLS; as stream_writer::start_tls: what the client sent behind its request is the beginning of TLS, or
/// errc::plaintext_injection; behind a ClientHello it is whatever the handshake fails with. Whatever fails once TLS was
/// granted closes the connection. Answers return the pair to go on with, in plain text after a refusal, which they
/// drain, with the errors of stream_writer::drain. A client that has logged in (in irc, begun to register) may not ask
/// for TLS any more in imap, pop3, sieve, nntp and irc; that is for the caller to say.
///
/// Cancellation: closes the connection; that of the drain after a refusal changes nothing.
///
/// Concurrency and lifetime: of the pair; views and pointers in arguments are used in the call only.
namespace upgradeable_streams::starttls
{

/// Options of the clients.
struct starttls_options
{
    /// `attempt` goes on in plain text where the server does not offer TLS; one that offers it and then refuses is an
    /// error, and where there are tlsa_records it is as `require`. `never` does the same dialogue without asking for
    /// it, as over a connection that began with TLS (ports 465, 993, 995).
    starttls_policy policy = starttls_policy::require;

    /// As for stream_writer::start_tls.
    tls_options tls = {};

    /// The deadline of what is said before the handshake, and again of what is said after it.
    std::chrono::steady_clock::duration timeout = std::chrono::seconds(60);

    /// What the client calls itself in smtp and lmtp, by default its address (RFC 5321 section 4.1.3); in xmpp_server
    /// the domain for which it speaks.
    std::string_view client_name = {};

    /// Of xmpp and xmpp_server: the domain that is asked for, and that the certificate must be for unless
    /// `tls.server_hostname` says otherwise (RFC 6120 section 13.7.2.1). With tlsa_records that is the host which has
    /// them, and the domain is one of `tls.other_hostnames` (RFC 7673 section 4).
    std::string_view domain = {};
};

static_assert(std::is_trivially_destructible_v<starttls_options>);

/// A connection with which its protocol can begin.
struct negotiated
{
    /// Encrypted, unless the policy allowed otherwise: `reader.is_tls()` tells.
    stream_reader reader;
    stream_writer writer;

    /// What the server said that it can do, one element for each line, over the connection as it is now: what it said
    /// before TLS is forgotten (RFC 3207 section 4.2).
    std::vector<std::string> capabilities;

    /// Of mysql: the server's first packet, without which there is no login. Of nbd: what it sent first, which ends in
    /// its flags. Of imap: the line of a server that says PREAUTH. These came in plain text. Of xmpp and xmpp_server:
    /// the tag that opened the stream which is open now.
    std::string greeting;
};

} // namespace upgradeable_streams::starttls

#endif
