/// @file
/// STARTTLS in IMAP (RFC 9051 section 6.2.1, RFC 3501).
#ifndef UPGRADEABLE_STREAMS_STARTTLS_IMAP_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_IMAP_HPP

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

/// Reads the greeting, asks for the capabilities where it did not tell, upgrades, and asks for them again. Its tags are
/// `a1`, `a2` and `a3`.
///
/// A server that greets with PREAUTH cannot go over to TLS: where that is required, it is errc::tls_not_offered.
///
/// Returns: `capabilities` are words, as `IMAP4rev1`, `AUTH=PLAIN`; `greeting` is that of a server which says PREAUTH.
asio::awaitable<negotiated> imap(const stream_reader& reader, const stream_writer& writer,
                                 const starttls_options& options = {});

/// Whether a client's line is a tag and STARTTLS, with or without parameters.
bool is_imap_request(std::string_view line);

/// Answers a client's STARTTLS with OK and upgrades, or says why not: BAD to parameters and in TLS, NO without a
/// context. What the client said before TLS, as ID and ENABLE, is to be forgotten.
asio::awaitable<stream_pair> answer_imap(const stream_reader& reader, const stream_writer& writer,
                                         std::string_view line, const tls_options& options = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

/// Reads a line, in which there may be no literal: nothing that leads to TLS has one.
inline asio::awaitable<std::string> read_imap(starttls_dialogue& dialogue)
{
    std::string line = co_await dialogue.read_line();
    if (literal_size(std::string_view(line).substr(std::min(line.rfind('{'), line.size()))))
        dialogue.fail(errc::reply_malformed);
    co_return line;
}

inline std::vector<std::string> split_words(std::string_view line)
{
    std::vector<std::string> words;
    while (!line.empty())
        words.emplace_back(take_word_as_is(line));
    return words;
}

/// Says a command, and reads up to the reply that has its tag, which must be OK. Returns: the capabilities told before.
inline asio::awaitable<std::vector<std::string>> ask_imap(starttls_dialogue& dialogue, std::string_view tag,
                                                          std::string_view command)
{
    dialogue.ask(command, std::string(tag) + " " + std::string(command) + "\r\n");
    std::vector<std::string> capabilities;
    for (;;)
    {
        const std::string line = co_await read_imap(dialogue);
        std::string_view rest = line;
        const std::string line_tag = take_word(rest);
        const std::string status = take_word(rest);
        if (line_tag == tag && status == "ok")
            co_return capabilities;
        if (line_tag == tag ? status == "no" || status == "bad" : line_tag == "*" && status == "bye")
        {
            dialogue.explain(line);
            dialogue.fail(errc::request_refused);
        }
        if (line_tag != "*")
            dialogue.fail(errc::reply_malformed);
        if (status == "capability")
            capabilities = split_words(rest);
    }
}

/// What a greeting tells of capabilities (RFC 9051 section 7.1). Returns: empty where it tells none.
inline std::vector<std::string> capabilities_in(std::string_view greeting)
{
    std::string_view code = greeting.substr(0, greeting.find(']'));
    const bool is_told = take_word(code) == "[capability" && greeting.find(']') != greeting.npos;
    return split_words(is_told ? code : std::string_view());
}

inline asio::awaitable<void> talk_imap(starttls_dialogue& dialogue)
{
    const std::string greeting = co_await read_imap(dialogue);
    std::string_view rest = greeting;
    const std::string tag = take_word(rest);
    const std::string status = take_word(rest);
    const bool is_preauth = status == "preauth";
    if (tag != "*" || (status != "ok" && !is_preauth && status != "bye"))
        dialogue.fail(errc::reply_malformed);
    if (status == "bye")
        dialogue.fail(errc::request_refused);
    if (is_preauth)
    {
        dialogue.refused(errc::tls_not_offered);
        dialogue.greeting = greeting;
    }
    dialogue.capabilities = capabilities_in(rest);
    if (dialogue.capabilities.empty())
        dialogue.capabilities = co_await ask_imap(dialogue, "a1", "CAPABILITY");
    const bool is_offered = std::ranges::any_of(dialogue.capabilities,
                                                [](const std::string& word) { return lower_case(word) == "starttls"; });
    if (!dialogue.wants_tls(is_offered && !is_preauth))
        co_return;
    co_await ask_imap(dialogue, "a2", "STARTTLS");
    co_await dialogue.start_tls();
    dialogue.capabilities = co_await ask_imap(dialogue, "a3", "CAPABILITY");
}

/// Takes the tag off a client's line. Returns: empty where it has none (RFC 9051 section 9).
inline std::string_view take_tag(std::string_view& line)
{
    const std::string_view tag = take_word_as_is(line);
    return is_word(tag) && tag.find_first_of("(){%*\"\\+") == tag.npos ? tag : std::string_view();
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> imap(const stream_reader& reader, const stream_writer& writer,
                                                          const starttls_options& options)
{
    return detail::starttls_dialogue::run("IMAP", reader, writer, options, detail::talk_imap);
}

UPGRADEABLE_STREAMS_DECL bool is_imap_request(std::string_view line)
{
    return !detail::take_tag(line).empty() && detail::take_word(line) == "starttls";
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair>
answer_imap(const stream_reader& reader, const stream_writer& writer, std::string_view line, const tls_options& options)
{
    detail::require_request(is_imap_request(line), "answer_imap", "a tag and STARTTLS");
    const std::string tag(detail::take_tag(line));
    const std::string granted = tag + " OK Begin TLS negotiation now\r\n";
    const std::string unavailable = tag + " NO TLS is not available\r\n";
    const std::string encrypted = tag + " BAD TLS is active\r\n";
    const std::string parameters = tag + " BAD STARTTLS has no parameters\r\n";
    return detail::answer_starttls_line(
        reader, writer, line, options,
        {.granted = granted, .unavailable = unavailable, .encrypted = encrypted, .parameters = parameters});
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
