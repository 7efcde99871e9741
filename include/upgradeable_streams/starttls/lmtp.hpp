/// @file
/// STARTTLS in LMTP (RFC 2033, RFC 3207).
#ifndef UPGRADEABLE_STREAMS_STARTTLS_LMTP_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_LMTP_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/starttls/smtp.hpp>

namespace upgradeable_streams::starttls
{

/// As `smtp`, with LHLO in place of EHLO. Its servers answer with `answer_smtp`.
asio::awaitable<negotiated> lmtp(const stream_reader& reader, const stream_writer& writer,
                                 const starttls_options& options = {});

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> lmtp(const stream_reader& reader, const stream_writer& writer,
                                                          const starttls_options& options)
{
    return detail::negotiate_smtp("LMTP", "LHLO", reader, writer, options);
}

#endif

} // namespace upgradeable_streams::starttls

#endif
