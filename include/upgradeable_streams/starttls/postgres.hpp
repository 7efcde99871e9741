/// @file
/// The SSLRequest of PostgreSQL (its documentation's section "SSL Session Encryption").
#ifndef UPGRADEABLE_STREAMS_STARTTLS_POSTGRES_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_POSTGRES_HPP

#include <upgradeable_streams/detail/byte_order.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/starttls_answer.hpp>
#include <upgradeable_streams/detail/starttls_dialogue.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/starttls/negotiation.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

namespace upgradeable_streams
{
namespace detail
{

/// The length and the code 1234.5679 in the place of a protocol version.
inline constexpr std::string_view postgres_ssl_request("\0\0\0\x08\x04\xd2\x16\x2f", 8);

} // namespace detail

namespace starttls
{

/// Sends an SSLRequest and upgrades when the server answers S: the StartupMessage is next.
///
/// A server that answers N does not offer TLS, and one that answers with an error message refuses
/// (errc::request_refused) whatever the policy, for it closes the connection.
asio::awaitable<negotiated> postgres(const stream_reader& reader, const stream_writer& writer,
                                     const starttls_options& options = {});

/// Whether a client's first 8 bytes are an SSLRequest.
inline bool is_postgres_request(std::string_view bytes)
{
    return bytes == detail::postgres_ssl_request;
}

/// Answers an SSLRequest with S and upgrades, or with N without a context and in TLS.
asio::awaitable<stream_pair> answer_postgres(const stream_reader& reader, const stream_writer& writer,
                                             std::string_view bytes, const tls_options& options = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

/// Reads an error message: fields with their size before them, of which M is for people, or before protocol 3 a string.
inline asio::awaitable<void> hear_postgres_error(starttls_dialogue& dialogue)
{
    constexpr std::string_view end("\0", 1);
    constexpr std::size_t largest = 30000; // beyond it, as libpq takes it, these bytes begin a string
    std::string message = co_await dialogue.read(4);
    const std::size_t size = parse_big_endian(message);
    const bool has_fields = size >= 4 && size <= largest;
    std::string rest;
    if (has_fields)
        rest = co_await dialogue.read(size - 4);
    else if (message.find('\0') == message.npos)
        rest = co_await dialogue.read_until(end);
    std::string_view words = has_fields ? std::string_view() : message += rest;
    for (std::size_t at = 0; has_fields && at < rest.size(); at = std::min(rest.find('\0', at), rest.size() - 1) + 1)
        if (rest[at] == 'M')
            words = std::string_view(rest).substr(at + 1);
    dialogue.explain(std::string(words.substr(0, words.find('\0'))));
}

inline asio::awaitable<void> talk_postgres(starttls_dialogue& dialogue)
{
    if (!dialogue.wants_tls(true))
        co_return;
    dialogue.ask("SSLRequest", postgres_ssl_request);
    const std::string answer = co_await dialogue.read(1); // CVE-2021-23222: no more than that
    if (answer == "E")
    {
        co_await hear_postgres_error(dialogue);
        dialogue.fail(errc::request_refused);
    }
    if (answer != "S" && answer != "N")
        dialogue.fail(errc::reply_malformed);
    if (dialogue.wants_tls(answer == "S"))
        co_await dialogue.start_tls();
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> postgres(const stream_reader& reader, const stream_writer& writer,
                                                              const starttls_options& options)
{
    return detail::starttls_dialogue::run("PostgreSQL", reader, writer, options, detail::talk_postgres);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair> answer_postgres(const stream_reader& reader,
                                                                      const stream_writer& writer,
                                                                      std::string_view bytes,
                                                                      const tls_options& options)
{
    detail::require_request(is_postgres_request(bytes), "answer_postgres", "an SSLRequest");
    return detail::answer_starttls(reader, writer, options, {.granted = "S", .unavailable = "N", .encrypted = "N"});
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
