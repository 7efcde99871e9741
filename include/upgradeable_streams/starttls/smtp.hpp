/// @file
/// STARTTLS in SMTP and submission (RFC 3207), and in LMTP (RFC 2033).
#ifndef UPGRADEABLE_STREAMS_STARTTLS_SMTP_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_SMTP_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/starttls_answer.hpp>
#include <upgradeable_streams/detail/starttls_code.hpp>
#include <upgradeable_streams/detail/starttls_dialogue.hpp>
#include <upgradeable_streams/detail/text.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/socket_address.hpp>
#include <upgradeable_streams/starttls/negotiation.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace upgradeable_streams
{
namespace starttls
{

/// Reads the greeting and says EHLO, upgrades, and says EHLO again. A server that does not know EHLO, and says 500,
/// 502 or 504, does not offer TLS, and is told HELO (RFC 5321 section 3.2). That a greeting may take five minutes
/// (section 4.5.3.2) is for `timeout` to say.
///
/// Returns: `capabilities` are the lines of the server's last answer but its name, as `PIPELINING`, `AUTH PLAIN LOGIN`.
asio::awaitable<negotiated> smtp(const stream_reader& reader, const stream_writer& writer,
                                 const starttls_options& options = {});

/// As `smtp`, with LHLO in place of EHLO. Its servers answer with `answer_smtp`.
asio::awaitable<negotiated> lmtp(const stream_reader& reader, const stream_writer& writer,
                                 const starttls_options& options = {});

/// Whether a client's line is STARTTLS, with or without parameters.
inline bool is_smtp_request(std::string_view line)
{
    return detail::take_word(line) == "starttls";
}

/// Answers a client's STARTTLS with 220 and upgrades, or says why not: 501 to parameters, 454 without a context, 503 in
/// TLS. What the client said before TLS is to be forgotten (RFC 3207 section 4.2).
asio::awaitable<stream_pair> answer_smtp(const stream_reader& reader, const stream_writer& writer,
                                         std::string_view line, const tls_options& options = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

struct smtp_reply
{
    std::string code;
    std::vector<std::string> lines; ///< Without the code.
};

/// Reads a reply, each line of which has its code (RFC 5321 section 4.2).
inline asio::awaitable<smtp_reply> read_smtp(starttls_dialogue& dialogue)
{
    smtp_reply reply;
    for (bool is_last = false; !is_last;)
    {
        const std::string line = co_await dialogue.read_line();
        const std::string code = reply_code(dialogue, line, " -");
        if (reply.lines.empty())
            reply.code = code;
        if (code != reply.code)
            dialogue.fail(errc::reply_malformed);
        is_last = line.find('-') != 3;
        reply.lines.push_back(line.substr(std::min<std::size_t>(line.size(), 4)));
    }
    co_return reply;
}

inline asio::awaitable<smtp_reply> expect_smtp(starttls_dialogue& dialogue, std::string_view code)
{
    smtp_reply reply = co_await read_smtp(dialogue);
    if (reply.code != code)
        dialogue.fail(errc::request_refused);
    co_return reply;
}

/// Takes the answer to EHLO or LHLO, in which the server says what it is capable of.
inline void take_capabilities(starttls_dialogue& dialogue, smtp_reply answer)
{
    if (answer.code != "250")
        dialogue.fail(errc::request_refused);
    answer.lines.erase(answer.lines.begin());
    dialogue.capabilities = std::move(answer.lines);
}

inline asio::awaitable<void> talk_smtp(starttls_dialogue& dialogue, std::string hello)
{
    co_await expect_smtp(dialogue, "220");
    const std::string command = hello.substr(0, 4);
    dialogue.ask(command, hello);
    smtp_reply answer = co_await read_smtp(dialogue);
    const bool is_unknown = std::ranges::count(std::array{"500", "502", "504"}, answer.code) > 0;
    if (is_unknown && command == "EHLO")
    {
        dialogue.refused(errc::tls_not_offered);
        dialogue.ask("HELO", "HELO" + hello.substr(4));
        co_await expect_smtp(dialogue, "250");
        co_return;
    }
    take_capabilities(dialogue, std::move(answer));
    if (!dialogue.wants_tls(std::ranges::any_of(dialogue.capabilities, starttls::is_smtp_request)))
        co_return;
    dialogue.ask("STARTTLS", "STARTTLS\r\n");
    co_await expect_smtp(dialogue, "220");
    co_await dialogue.start_tls();
    dialogue.ask(command, hello);
    answer = co_await read_smtp(dialogue);
    take_capabilities(dialogue, std::move(answer));
}

/// What a client calls itself that has no other name.
inline std::string address_literal(const stream_writer& writer)
{
    const std::optional<socket_address> address = writer.get_extra_info<"sockname">();
    if (!address || address->is_unix)
        return "localhost";
    const std::string host = address->host.substr(0, address->host.find('%'));
    return (host.find(':') == host.npos ? "[" : "[IPv6:") + host + "]";
}

/// SMTP, or LMTP, which differs in its word for hello (RFC 2033 section 4.1).
inline asio::awaitable<starttls::negotiated> negotiate_smtp(std::string_view protocol, std::string_view hello,
                                                            const stream_reader& reader, const stream_writer& writer,
                                                            const starttls::starttls_options& options)
{
    const std::string name(options.client_name.empty() ? address_literal(writer) : options.client_name);
    if (!is_word(name))
        throw std::invalid_argument("client_name must be a domain, or an address in brackets");
    return starttls_dialogue::run(protocol, reader, writer, options, talk_smtp,
                                  std::string(hello) + " " + name + "\r\n");
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> smtp(const stream_reader& reader, const stream_writer& writer,
                                                          const starttls_options& options)
{
    return detail::negotiate_smtp("SMTP", "EHLO", reader, writer, options);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> lmtp(const stream_reader& reader, const stream_writer& writer,
                                                          const starttls_options& options)
{
    return detail::negotiate_smtp("LMTP", "LHLO", reader, writer, options);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair>
answer_smtp(const stream_reader& reader, const stream_writer& writer, std::string_view line, const tls_options& options)
{
    detail::require_request(is_smtp_request(line), "answer_smtp", "STARTTLS");
    return detail::answer_starttls_line(reader, writer, line, options,
                                        {.granted = "220 2.0.0 Ready to start TLS\r\n",
                                         .unavailable = "454 4.7.0 TLS not available\r\n",
                                         .encrypted = "503 5.5.1 TLS is active\r\n",
                                         .parameters = "501 5.5.4 STARTTLS has no parameters\r\n"});
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
