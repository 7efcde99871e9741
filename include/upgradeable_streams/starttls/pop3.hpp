/// @file
/// STARTTLS in POP3, whose word for it is STLS (RFC 2595 section 4).
#ifndef UPGRADEABLE_STREAMS_STARTTLS_POP3_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_POP3_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/starttls_answer.hpp>
#include <upgradeable_streams/detail/starttls_dialogue.hpp>
#include <upgradeable_streams/detail/text.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/starttls/negotiation.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace upgradeable_streams
{
namespace starttls
{

/// Reads the greeting and says CAPA, upgrades, and says CAPA again. A server that refuses CAPA does not offer TLS.
///
/// Returns: `capabilities` are the lines of the last answer, as `SASL PLAIN`, `UIDL`.
asio::awaitable<negotiated> pop3(const stream_reader& reader, const stream_writer& writer,
                                 const starttls_options& options = {});

/// Whether a client's line is STLS, with or without parameters.
inline bool is_pop3_request(std::string_view line)
{
    return detail::take_word(line) == "stls";
}

/// Answers a client's STLS with +OK and upgrades, or with -ERR says why not: parameters, no context, TLS already.
/// A name that USER gave before TLS is to be forgotten (RFC 2595 section 4).
asio::awaitable<stream_pair> answer_pop3(const stream_reader& reader, const stream_writer& writer,
                                         std::string_view line, const tls_options& options = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

/// Reads a status line (RFC 1939 section 3). Returns: whether it is +OK, not -ERR.
inline asio::awaitable<bool> read_pop3(starttls_dialogue& dialogue)
{
    const std::string line = co_await dialogue.read_line();
    std::string_view rest = line;
    const std::string status = take_word(rest);
    if (status != "+ok" && status != "-err")
        dialogue.fail(errc::reply_malformed);
    co_return status == "+ok";
}

inline asio::awaitable<void> expect_pop3(starttls_dialogue& dialogue)
{
    const bool is_ok = co_await read_pop3(dialogue);
    if (!is_ok)
        dialogue.fail(errc::request_refused);
}

inline asio::awaitable<std::vector<std::string>> ask_pop3_capabilities(starttls_dialogue& dialogue)
{
    dialogue.ask("CAPA", "CAPA\r\n");
    const bool is_known = co_await read_pop3(dialogue);
    std::vector<std::string> capabilities;
    if (is_known)
        capabilities = co_await dialogue.read_lines_to_dot();
    co_return capabilities;
}

inline asio::awaitable<void> talk_pop3(starttls_dialogue& dialogue)
{
    co_await expect_pop3(dialogue);
    dialogue.capabilities = co_await ask_pop3_capabilities(dialogue);
    if (!dialogue.wants_tls(std::ranges::any_of(dialogue.capabilities, starttls::is_pop3_request)))
        co_return;
    dialogue.ask("STLS", "STLS\r\n");
    co_await expect_pop3(dialogue);
    co_await dialogue.start_tls();
    dialogue.capabilities = co_await ask_pop3_capabilities(dialogue);
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> pop3(const stream_reader& reader, const stream_writer& writer,
                                                          const starttls_options& options)
{
    return detail::starttls_dialogue::run("POP3", reader, writer, options, detail::talk_pop3);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair>
answer_pop3(const stream_reader& reader, const stream_writer& writer, std::string_view line, const tls_options& options)
{
    detail::require_request(is_pop3_request(line), "answer_pop3", "STLS");
    return detail::answer_starttls_line(reader, writer, line, options,
                                        {.granted = "+OK Begin TLS negotiation\r\n",
                                         .unavailable = "-ERR TLS is not available\r\n",
                                         .encrypted = "-ERR TLS is active\r\n",
                                         .parameters = "-ERR STLS has no parameters\r\n"});
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
