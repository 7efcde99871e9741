/// @file
/// STARTTLS in ManageSieve (RFC 5804 section 2.2).
#ifndef UPGRADEABLE_STREAMS_STARTTLS_SIEVE_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_SIEVE_HPP

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
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace upgradeable_streams
{
namespace starttls
{

/// Reads the greeting, upgrades, and reads the capabilities that the server then sends unasked.
///
/// Returns: `capabilities` are without quotes, as `SIEVE fileinto vacation`, `SASL PLAIN`.
asio::awaitable<negotiated> sieve(const stream_reader& reader, const stream_writer& writer,
                                  const starttls_options& options = {});

/// Whether a client's line is STARTTLS, with or without parameters.
inline bool is_sieve_request(std::string_view line)
{
    return detail::take_word(line) == "starttls";
}

/// Answers a client's STARTTLS with OK and upgrades, or with NO says why not: parameters, no context, TLS already.
///
/// After TLS it is for the caller to send the capabilities, unasked (RFC 5804 section 2.2).
asio::awaitable<stream_pair> answer_sieve(const stream_reader& reader, const stream_writer& writer,
                                          std::string_view line, const tls_options& options = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

/// Takes a quoted string off a line. Returns: what is quoted; nothing where the quote does not end.
inline std::optional<std::string> take_quoted(std::string_view& line)
{
    std::string text;
    for (std::size_t at = 1; at < line.size(); ++at)
    {
        if (line[at] == '"')
        {
            line.remove_prefix(at + 1);
            return text;
        }
        if (line[at] == '\\')
            ++at;
        text += line.substr(at, 1);
    }
    return std::nullopt;
}

/// Reads lines of strings up to OK, all with their literals (RFC 5804 section 4). Returns: the strings of each line.
inline asio::awaitable<std::vector<std::string>> expect_sieve(starttls_dialogue& dialogue)
{
    std::vector<std::string> lines;
    for (;;)
    {
        std::string line = co_await dialogue.read_line();
        std::string_view rest = line;
        const bool is_status = !rest.starts_with('"') && !rest.starts_with('{');
        const std::string status = is_status ? take_word(rest) : std::string();
        std::string strings;
        while (!rest.empty())
        {
            std::optional<std::string> text;
            if (const std::optional<std::size_t> size = literal_size(rest))
            {
                text = co_await dialogue.read(*size);
                if (!is_status)
                    dialogue.refuse_controls(*text);
                line = co_await dialogue.read_line();
                rest = line;
            }
            else if (rest.starts_with('"'))
                text = take_quoted(rest);
            else if (is_status)
                text = take_word(rest);
            if (!text)
                dialogue.fail(errc::reply_malformed);
            if (!strings.empty() && !text->empty())
                strings += ' ';
            strings += *text;
            rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
        }
        if (status == "ok")
            co_return lines;
        if (status == "no" || status == "bye")
            dialogue.fail(errc::request_refused);
        if (strings.empty() || is_status)
            dialogue.fail(errc::reply_malformed);
        lines.push_back(std::move(strings));
    }
}

inline asio::awaitable<void> talk_sieve(starttls_dialogue& dialogue)
{
    dialogue.capabilities = co_await expect_sieve(dialogue);
    if (!dialogue.wants_tls(std::ranges::any_of(dialogue.capabilities, starttls::is_sieve_request)))
        co_return;
    dialogue.ask("STARTTLS", "STARTTLS\r\n");
    co_await expect_sieve(dialogue);
    co_await dialogue.start_tls();
    dialogue.capabilities = co_await expect_sieve(dialogue);
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> sieve(const stream_reader& reader, const stream_writer& writer,
                                                           const starttls_options& options)
{
    return detail::starttls_dialogue::run("ManageSieve", reader, writer, options, detail::talk_sieve);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair> answer_sieve(const stream_reader& reader,
                                                                   const stream_writer& writer, std::string_view line,
                                                                   const tls_options& options)
{
    detail::require_request(is_sieve_request(line), "answer_sieve", "STARTTLS");
    return detail::answer_starttls_line(reader, writer, line, options,
                                        {.granted = "OK \"Begin TLS negotiation now\"\r\n",
                                         .unavailable = "NO \"TLS is not available\"\r\n",
                                         .encrypted = "NO \"TLS is active\"\r\n",
                                         .parameters = "NO \"STARTTLS has no parameters\"\r\n"});
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
