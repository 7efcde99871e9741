/// @file
/// STARTTLS in LMTP (RFC 2033, RFC 3207).
#ifndef UPGRADEABLE_STREAMS_STARTTLS_LMTP_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_LMTP_HPP

#include <upgradeable_streams/starttls/smtp.hpp>

namespace upgradeable_streams::starttls
{

/// As `smtp`, with LHLO in place of EHLO. Its servers answer with `answer_smtp`.
inline asio::awaitable<negotiated> lmtp(const stream_reader& reader, const stream_writer& writer,
                                        const starttls_options& options = {})
{
    return detail::negotiate_smtp("LMTP", "LHLO", reader, writer, options);
}

} // namespace upgradeable_streams::starttls

#endif
