/// @file
/// STARTTLS in IRC (IRCv3's extension `tls`).
#ifndef UPGRADEABLE_STREAMS_STARTTLS_IRC_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_IRC_HPP

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

#include <stdexcept>
#include <string>
#include <string_view>

namespace upgradeable_streams
{
namespace starttls
{

/// Upgrades, before the client registers; what the server says meanwhile is skipped, but for PING, which is answered
/// once plain text is to go on: before, the answer could reach the server where TLS has to begin.
///
/// IRC offers nothing beforehand: a server that answers 421, 451 or 691 is one that `attempt` uses in plain text. Where
/// TLS is required, 421 and 451 (the command is not known) are errc::tls_not_offered, and 691 (STARTTLS failed) is
/// request_refused. Servers that ignore what they do not know are errc::negotiation_timeout.
///
/// Returns: no `capabilities`; CAP LS begins the registration.
asio::awaitable<negotiated> irc(const stream_reader& reader, const stream_writer& writer,
                                const starttls_options& options = {});

/// Whether a client's line is STARTTLS, with or without parameters.
inline bool is_irc_request(std::string_view line)
{
    return detail::take_word(line) == "starttls";
}

/// Answers a client's STARTTLS with 670 and upgrades, or with 691 says why not: parameters, no context, TLS already.
///
/// Errors: std::invalid_argument for a `server_name`, by which the server calls itself, that is not a word.
asio::awaitable<stream_pair> answer_irc(const stream_reader& reader, const stream_writer& writer, std::string_view line,
                                        std::string_view server_name, const tls_options& options = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

/// What formats text, in the banners of some servers too.
inline constexpr std::string_view irc_formats = "\t\x01\x02\x03\x04\x0f\x11\x16\x1d\x1e\x1f";

inline asio::awaitable<void> talk_irc(starttls_dialogue& dialogue)
{
    if (!dialogue.wants_tls(true))
        co_return;
    dialogue.ask("STARTTLS", "STARTTLS\r\n");
    std::string pong;
    for (bool is_decided = false; !is_decided;)
    {
        const std::string line = co_await dialogue.read_line(irc_formats);
        dialogue.explain(line);
        std::string_view parameters = line;
        std::string command = take_word(parameters);
        for (const char mark : {'@', ':'}) // tags and prefix
            if (command.starts_with(mark))
                command = take_word(parameters);
        const bool is_refused = command == "421" || command == "451" || command == "691";
        is_decided = is_refused || command == "670";
        if (command == "670")
            co_await dialogue.start_tls();
        else if (is_refused)
            dialogue.refused(command == "691" ? errc::request_refused : errc::tls_not_offered);
        else if (command == "error")
            dialogue.fail(errc::request_refused);
        else if (command == "ping")
            pong += "PONG " + std::string(parameters) + "\r\n";
    }
    if (!dialogue.writer().is_tls())
        dialogue.writer().write(pong);
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> irc(const stream_reader& reader, const stream_writer& writer,
                                                         const starttls_options& options)
{
    return detail::starttls_dialogue::run("IRC", reader, writer, options, detail::talk_irc);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair> answer_irc(const stream_reader& reader,
                                                                 const stream_writer& writer, std::string_view line,
                                                                 std::string_view server_name,
                                                                 const tls_options& options)
{
    detail::require_request(is_irc_request(line), "answer_irc", "STARTTLS");
    if (!detail::is_word(server_name))
        throw std::invalid_argument("server_name must be the name that the server sends before its replies");
    const std::string failed = ":" + std::string(server_name) + " 691 * :STARTTLS failed: ";
    const std::string granted = ":" + std::string(server_name) + " 670 * :STARTTLS successful, go ahead with TLS\r\n";
    const std::string unavailable = failed + "TLS is not available\r\n";
    const std::string encrypted = failed + "TLS is active\r\n";
    const std::string parameters = failed + "it has no parameters\r\n";
    return detail::answer_starttls_line(
        reader, writer, line, options,
        {.granted = granted, .unavailable = unavailable, .encrypted = encrypted, .parameters = parameters});
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
