/// @file
/// TLS in FTP by AUTH TLS (RFC 4217).
#ifndef UPGRADEABLE_STREAMS_STARTTLS_FTP_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_FTP_HPP

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
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace upgradeable_streams
{
namespace starttls
{

/// Reads the greeting, upgrades, has data connections encrypted too (PBSZ 0, PROT P), as also where the connection
/// began with TLS (port 990), and says FEAT. A server that says 120, that it will be ready in some minutes, has as many
/// as `timeout` gives.
///
/// FTP offers nothing beforehand: a server that refuses AUTH TLS is one that `attempt` uses in plain text, unless it
/// says 421. Where TLS is required, 500, 502, 504 and 530 are errc::tls_not_offered, and other refusals
/// request_refused.
///
/// A server may want the login before PBSZ and PROT, as RFC 4217 allows, and answers them with 530: then data would not
/// be encrypted. A caller says both after the login, which is right with every server.
///
/// Returns: `capabilities` are the lines of FEAT, as `MLST type*;size*;`, `UTF8`; none where the server refuses it.
/// Each data connection begins with a handshake of its own, in which servers may demand `tls_options::resume_from`.
asio::awaitable<negotiated> ftp(const stream_reader& reader, const stream_writer& writer,
                                const starttls_options& options = {});

/// Whether a client's line is AUTH, with whatever parameters.
inline bool is_ftp_request(std::string_view line)
{
    return detail::take_word(line) == "auth";
}

/// Answers a client's AUTH TLS with 234 and upgrades, or says why not: 501 to no mechanism or to more than one, 504 to
/// another, 431 without a context, 503 in TLS. Who was logged in is not any more (RFC 2228 section 3).
///
/// TLS-C is another name of TLS (RFC 4217 section 17). SSL and TLS-P are not: they promise encrypted data connections.
asio::awaitable<stream_pair> answer_ftp(const stream_reader& reader, const stream_writer& writer, std::string_view line,
                                        const tls_options& options = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

struct ftp_reply
{
    std::string code;
    std::vector<std::string> lines; ///< Those between the first and the last.
};

/// Reads a reply, which is one line, or those from `211-` to `211 ` (RFC 959 section 4.2).
inline asio::awaitable<ftp_reply> read_ftp(starttls_dialogue& dialogue)
{
    std::string line = co_await dialogue.read_line();
    dialogue.explain(line);
    ftp_reply reply{reply_code(dialogue, line, " -"), {}};
    if (line.find('-') != 3)
        co_return reply;
    for (;;)
    {
        line = co_await dialogue.read_line();
        if (line.starts_with(reply.code + ' '))
            co_return reply;
        reply.lines.push_back(std::move(line));
    }
}

inline asio::awaitable<ftp_reply> ask_ftp(starttls_dialogue& dialogue, std::string_view command)
{
    dialogue.ask(command, std::string(command) + "\r\n");
    return read_ftp(dialogue);
}

inline asio::awaitable<void> start_ftp_tls(starttls_dialogue& dialogue)
{
    const ftp_reply answer = co_await ask_ftp(dialogue, "AUTH TLS");
    if (answer.code != "234")
    {
        if (!is_negative(answer.code) || answer.code == "421")
            dialogue.fail(errc::request_refused);
        const bool is_unknown = std::ranges::count(std::array{"500", "502", "504", "530"}, answer.code) > 0;
        dialogue.refused(is_unknown ? errc::tls_not_offered : errc::request_refused);
        co_return;
    }
    co_await dialogue.start_tls();
}

/// Has data connections encrypted too.
inline asio::awaitable<void> protect_ftp_data(starttls_dialogue& dialogue)
{
    const std::array<std::string_view, 2> commands = {"PBSZ 0", "PROT P"};
    for (const std::string_view command : commands)
    {
        const ftp_reply reply = co_await ask_ftp(dialogue, command);
        if (reply.code == "530")
            break; // PROT cannot come before PBSZ
        if (reply.code != "200")
            dialogue.fail(errc::request_refused);
    }
}

inline asio::awaitable<void> talk_ftp(starttls_dialogue& dialogue)
{
    ftp_reply reply = co_await read_ftp(dialogue);
    while (reply.code == "120")
        reply = co_await read_ftp(dialogue);
    if (reply.code != "220")
        dialogue.fail(errc::request_refused);
    if (dialogue.wants_tls(true))
        co_await start_ftp_tls(dialogue);
    if (dialogue.writer().is_tls())
        co_await protect_ftp_data(dialogue);
    reply = co_await ask_ftp(dialogue, "FEAT");
    if (reply.code == "421")
        dialogue.fail(errc::request_refused);
    if (is_negative(reply.code))
        co_return;
    if (reply.code != "211")
        dialogue.fail(errc::reply_malformed);
    for (std::string& line : reply.lines)
    {
        if (line.starts_with("211-"))
            line.erase(0, 4);
        line.erase(0, line.find_first_not_of(' '));
    }
    dialogue.capabilities = std::move(reply.lines);
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> ftp(const stream_reader& reader, const stream_writer& writer,
                                                         const starttls_options& options)
{
    return detail::starttls_dialogue::run("FTP", reader, writer, options, detail::talk_ftp);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair>
answer_ftp(const stream_reader& reader, const stream_writer& writer, std::string_view line, const tls_options& options)
{
    detail::require_request(is_ftp_request(line), "answer_ftp", "AUTH");
    detail::take_word(line);
    const std::string mechanism = detail::take_word(line);
    if (mechanism.empty() || !detail::is_line_end(line))
        return detail::refuse_starttls(reader, writer, "501 AUTH has one parameter\r\n");
    if (mechanism != "tls" && mechanism != "tls-c")
        return detail::refuse_starttls(reader, writer, "504 AUTH TLS is what there is\r\n");
    return detail::answer_starttls(reader, writer, options,
                                   {.granted = "234 Begin TLS negotiation\r\n",
                                    .unavailable = "431 TLS is not available\r\n",
                                    .encrypted = "503 TLS is active\r\n"});
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
