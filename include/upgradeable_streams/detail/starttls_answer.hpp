/// @file
/// What the servers of starttls/ have in common: a request's words, and the answer with what follows it.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STARTTLS_ANSWER_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STARTTLS_ANSWER_HPP

#include <upgradeable_streams/certificate.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace upgradeable_streams::detail
{

/// Takes the first word off a line, in lower case, and the blanks behind it.
inline std::string take_word(std::string_view& line)
{
    const std::string word = lower_case(line.substr(0, line.find_first_of(" \t\r\n")));
    line.remove_prefix(word.size());
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    return word;
}

/// Whether this is a word of printable ASCII.
inline bool is_word(std::string_view text)
{
    return !text.empty() && std::ranges::all_of(text, [](unsigned char c) { return c > ' ' && c < 0x7f; });
}

/// Whether no word is left.
inline bool is_line_end(std::string_view line)
{
    return line.find_first_not_of("\r\n") == line.npos;
}

inline void require_request(bool is_request, const char* function, const char* request)
{
    if (!is_request)
        throw std::invalid_argument(std::string(function) + " answers " + request + " and nothing else");
}

struct starttls_answers
{
    std::string_view granted;
    std::string_view unavailable; ///< There is no context.
    std::string_view encrypted;   ///< There is TLS already.
    bool closes = false;          ///< The connection, unless it is granted.
};

inline asio::awaitable<std::pair<stream_reader, stream_writer>>
answer_starttls(stream_reader reader, stream_writer writer, std::string answer,
                std::optional<asio::awaitable<std::pair<stream_reader, stream_writer>>> upgrade, bool closes)
{
    writer.write(answer);
    if (!upgrade && closes)
        writer.close();
    if (!upgrade)
        co_return std::pair(std::move(reader), std::move(writer));
    try
    {
        auto encrypted = co_await *std::move(upgrade);
        co_return encrypted;
    }
    catch (...)
    {
        writer.close(); // start_tls does not when a read is pending, and the client goes on with TLS
        throw;
    }
}

/// Answers with the one that applies, and upgrades where that is `granted`.
inline asio::awaitable<std::pair<stream_reader, stream_writer>>
answer_starttls(const stream_reader& reader, const stream_writer& writer, const tls_options& options,
                const starttls_answers& answers)
{
    std::optional<asio::awaitable<std::pair<stream_reader, stream_writer>>> upgrade;
    std::string_view answer = answers.encrypted;
    if (!reader.is_tls())
        answer = options.ssl || writer.is_upgradeable() ? answers.granted : answers.unavailable;
    if (answer == answers.granted)
        upgrade.emplace(stream_writer(writer).start_tls(options));
    return answer_starttls(reader, writer, std::string(answer), std::move(upgrade), answers.closes);
}

/// Answers no.
inline asio::awaitable<std::pair<stream_reader, stream_writer>>
refuse_starttls(const stream_reader& reader, const stream_writer& writer, std::string_view answer)
{
    return answer_starttls(reader, writer, std::string(answer), std::nullopt, false);
}

} // namespace upgradeable_streams::detail

#endif
