/// @file
/// STARTTLS in NNTP (RFC 4642).
#ifndef UPGRADEABLE_STREAMS_STARTTLS_NNTP_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_NNTP_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/starttls_answer.hpp>
#include <upgradeable_streams/detail/starttls_code.hpp>
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

/// Reads the greeting and says CAPABILITIES, upgrades, and says CAPABILITIES again. A server that does not know that,
/// and says 500 to 503, does not offer TLS; one that speaks with other servers first is told MODE READER (RFC 3977
/// section 5.3).
///
/// Returns: `capabilities` are the lines of the last answer, as `VERSION 2`, `READER`, `AUTHINFO USER`.
asio::awaitable<negotiated> nntp(const stream_reader& reader, const stream_writer& writer,
                                 const starttls_options& options = {});

/// Whether a client's line is STARTTLS, with or without parameters.
inline bool is_nntp_request(std::string_view line)
{
    return detail::take_word(line) == "starttls";
}

/// Answers a client's STARTTLS with 382 and upgrades, or says why not: 501 to parameters, 580 without a context, 502 in
/// TLS. After TLS all is as behind the greeting, the current group and article forgotten, but that MODE READER still
/// holds (RFC 4642 section 2.2.2).
asio::awaitable<stream_pair> answer_nntp(const stream_reader& reader, const stream_writer& writer,
                                         std::string_view line, const tls_options& options = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

/// Reads a response, which has one line. Returns: its code (RFC 3977 section 3.2).
inline asio::awaitable<std::string> read_nntp(starttls_dialogue& dialogue)
{
    const std::string line = co_await dialogue.read_line();
    co_return reply_code(dialogue, line);
}

inline asio::awaitable<void> expect_nntp_greeting(starttls_dialogue& dialogue)
{
    const std::string code = co_await read_nntp(dialogue);
    if (code != "200" && code != "201")
        dialogue.fail(errc::request_refused);
}

inline asio::awaitable<std::vector<std::string>> ask_nntp_capabilities(starttls_dialogue& dialogue)
{
    dialogue.ask("CAPABILITIES", "CAPABILITIES\r\n");
    const std::string code = co_await read_nntp(dialogue);
    std::vector<std::string> capabilities;
    if (code == "101")
        capabilities = co_await dialogue.read_lines_to_dot();
    else if (code < "500" || code > "503")
        dialogue.fail(is_negative(code) ? errc::request_refused : errc::reply_malformed);
    co_return capabilities;
}

inline asio::awaitable<void> talk_nntp(starttls_dialogue& dialogue)
{
    co_await expect_nntp_greeting(dialogue);
    dialogue.capabilities = co_await ask_nntp_capabilities(dialogue);
    const auto is_mode_reader = [](const std::string& capability) { return lower_case(capability) == "mode-reader"; };
    if (std::ranges::any_of(dialogue.capabilities, is_mode_reader))
    {
        dialogue.ask("MODE READER", "MODE READER\r\n");
        co_await expect_nntp_greeting(dialogue);
        dialogue.capabilities = co_await ask_nntp_capabilities(dialogue);
    }
    if (!dialogue.wants_tls(std::ranges::any_of(dialogue.capabilities, starttls::is_nntp_request)))
        co_return;
    dialogue.ask("STARTTLS", "STARTTLS\r\n");
    const std::string go_ahead = co_await read_nntp(dialogue);
    if (go_ahead != "382")
        dialogue.fail(errc::request_refused);
    co_await dialogue.start_tls();
    dialogue.capabilities = co_await ask_nntp_capabilities(dialogue);
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> nntp(const stream_reader& reader, const stream_writer& writer,
                                                          const starttls_options& options)
{
    return detail::starttls_dialogue::run("NNTP", reader, writer, options, detail::talk_nntp);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair>
answer_nntp(const stream_reader& reader, const stream_writer& writer, std::string_view line, const tls_options& options)
{
    detail::require_request(is_nntp_request(line), "answer_nntp", "STARTTLS");
    return detail::answer_starttls_line(reader, writer, line, options,
                                        {.granted = "382 Continue with TLS negotiation\r\n",
                                         .unavailable = "580 Can not initiate TLS negotiation\r\n",
                                         .encrypted = "502 TLS is active\r\n",
                                         .parameters = "501 STARTTLS has no parameters\r\n"});
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
