/// @file
/// What the servers of starttls/ have in common: the answer, and what follows it.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STARTTLS_ANSWER_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STARTTLS_ANSWER_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/text.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>

#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace upgradeable_streams::detail
{

inline void require_request(bool is_request, const char* function, const char* request)
{
    if (!is_request)
        throw std::invalid_argument(std::string(function) + " answers " + request + " and nothing else");
}

struct starttls_answers
{
    std::string_view granted;
    std::string_view unavailable;     ///< There is no context.
    std::string_view encrypted;       ///< There is TLS already.
    std::string_view parameters = {}; ///< The line has more than its word.
    bool closes = false;              ///< The connection, unless it is granted.
};

inline asio::awaitable<stream_pair> answer_starttls(stream_reader reader, stream_writer writer, std::string answer,
                                                    std::optional<asio::awaitable<stream_pair>> upgrade, bool closes)
{
    writer.write(answer);
    if (!upgrade)
    {
        if (closes)
            writer.close();
        else
            co_await writer.drain(); // who asks again and again, and does not read, is to wait
        co_return std::pair(std::move(reader), std::move(writer));
    }
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
inline asio::awaitable<stream_pair> answer_starttls(const stream_reader& reader, const stream_writer& writer,
                                                    const tls_options& options, const starttls_answers& answers)
{
    const bool is_granted = !reader.is_tls() && (options.ssl || writer.is_upgradeable());
    if (is_granted && options.role.value_or(writer.role()) != tls_role::server)
        throw std::invalid_argument("who answers STARTTLS is the server in TLS too: give tls_role::server");
    std::optional<asio::awaitable<stream_pair>> upgrade;
    if (is_granted)
        upgrade.emplace(stream_writer(writer).start_tls(options));
    const std::string_view answer = is_granted        ? answers.granted
                                    : reader.is_tls() ? answers.encrypted
                                                      : answers.unavailable;
    return answer_starttls(reader, writer, std::string(answer), std::move(upgrade), answers.closes);
}

/// Answers no.
inline asio::awaitable<stream_pair> refuse_starttls(const stream_reader& reader, const stream_writer& writer,
                                                    std::string_view answer)
{
    return answer_starttls(reader, writer, std::string(answer), std::nullopt, false);
}

/// As answer_starttls, to a line of a word that has no parameters.
inline asio::awaitable<stream_pair> answer_starttls_line(const stream_reader& reader, const stream_writer& writer,
                                                         std::string_view line, const tls_options& options,
                                                         const starttls_answers& answers)
{
    take_word(line);
    if (!is_line_end(line))
        return refuse_starttls(reader, writer, answers.parameters);
    return answer_starttls(reader, writer, options, answers);
}

} // namespace upgradeable_streams::detail

#endif

#endif
