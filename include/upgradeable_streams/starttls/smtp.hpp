/// @file
/// STARTTLS in SMTP and submission (RFC 3207).
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

/// Reads the greeting and says EHLO, upgrades, and says EHLO again.
///
/// Returns: `capabilities` are the lines of the server's last answer but its name, as `PIPELINING`, `AUTH PLAIN LOGIN`.
asio::awaitable<negotiated> smtp(const stream_reader& reader, const stream_writer& writer,
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

/// Reads a reply, each line of which must have this code (RFC 5321 section 4.2). Returns: the lines without it.
inline asio::awaitable<std::vector<std::string>> expect_smtp(starttls_dialogue& dialogue, std::string_view code)
{
    std::vector<std::string> lines;
    std::string first;
    for (bool is_last = false; !is_last;)
    {
        const std::string line = co_await dialogue.read_line();
        const std::string line_code = reply_code(dialogue, line, " -");
        if (lines.empty())
            first = line_code;
        if (line_code != first)
            dialogue.fail(errc::reply_malformed);
        is_last = line.find('-') != 3;
        lines.push_back(line.substr(std::min<std::size_t>(line.size(), 4)));
    }
    if (first != code)
        dialogue.fail(errc::request_refused);
    co_return lines;
}

/// Says EHLO or LHLO. Returns: what the server is capable of.
inline asio::awaitable<std::vector<std::string>> say_hello(starttls_dialogue& dialogue, const std::string& hello)
{
    dialogue.ask(hello.substr(0, 4), hello);
    std::vector<std::string> lines = co_await expect_smtp(dialogue, "250");
    lines.erase(lines.begin());
    co_return lines;
}

inline asio::awaitable<std::vector<std::string>> talk_smtp(starttls_dialogue& dialogue, std::string hello)
{
    co_await expect_smtp(dialogue, "220");
    std::vector<std::string> capabilities = co_await say_hello(dialogue, hello);
    if (!dialogue.wants_tls(std::ranges::any_of(capabilities, starttls::is_smtp_request)))
        co_return capabilities;
    dialogue.ask("STARTTLS", "STARTTLS\r\n");
    co_await expect_smtp(dialogue, "220");
    co_await dialogue.start_tls();
    capabilities = co_await say_hello(dialogue, hello);
    co_return capabilities;
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
