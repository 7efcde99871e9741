// The reads of a stream_reader against a model, over a real socket: the model knows what each receive brings, for the
// next chunk is sent when a read waits for it, and is no more than what a read that waits has room for.

#include "input.hpp"
#include "support/socket_pair.hpp"
#include "support/task.hpp"

#include <upgradeable_streams/open_connection.hpp>

#include <asio/awaitable.hpp>
#include <asio/io_context.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/write.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;

namespace
{

using separators = std::vector<std::string_view>;

const std::array<separators, 9> separator_lists = {{{"\n"},
                                                    {"\r\n"},
                                                    {"aab"},
                                                    {"abab"},
                                                    {"\n", "\r\n"},
                                                    {"\r\n", "\n"},
                                                    {"abc", "b"},
                                                    {"a", "ab", "abc"},
                                                    {std::string_view("\0", 1), "xyxyx"}}};

struct operation
{
    enum
    {
        read,
        read_to_end,
        readexactly,
        readline,
        readuntil,
        count
    } what;
    std::size_t size;
    const separators* ends;
    bool cancel; ///< Where the read waits.
};

struct outcome
{
    enum
    {
        data,
        incomplete,
        overrun,
        cancelled
    } what = data;
    std::string text{};     ///< Of data, and the partial of incomplete.
    std::size_t number = 0; ///< What was expected or consumed.

    bool operator==(const outcome&) const = default;
};

/// What a reader is to do, by the plainest means.
class model
{
public:
    model(std::size_t limit, std::vector<std::string> chunks) : limit_(limit), chunks_(std::move(chunks)) {}

    outcome run(const operation& o)
    {
        switch (o.what)
        {
        case operation::read: return read(o);
        case operation::read_to_end: return read_to_end(o);
        case operation::readexactly: return readexactly(o);
        case operation::readline: return find(o, separator_lists[0], true);
        default: return find(o, *o.ends, false);
        }
    }

    bool at_eof() const { return ended_ && buffer_.empty(); }

    /// Empty for the end.
    static std::string_view chunk(const std::vector<std::string>& chunks, std::size_t index)
    {
        return index < chunks.size() ? chunks[index] : std::string_view();
    }

private:
    /// False where the read is cancelled instead.
    bool receive(const operation& o)
    {
        if (o.cancel)
            return false;
        const std::string_view next = chunk(chunks_, received_++);
        buffer_ += next;
        ended_ = next.empty();
        return true;
    }

    outcome take(std::size_t size)
    {
        outcome made{outcome::data, buffer_.substr(0, size)};
        buffer_.erase(0, size);
        amid_dropped_line_ = amid_dropped_line_ && made.text.empty();
        return made;
    }

    outcome incomplete(std::size_t wanted = 0) { return {outcome::incomplete, take(buffer_.size()).text, wanted}; }

    outcome read(const operation& o)
    {
        if (o.size > 0 && buffer_.empty() && !ended_ && !receive(o))
            return {outcome::cancelled};
        return take(o.size);
    }

    outcome read_to_end(const operation& o)
    {
        while (!ended_)
            if (!receive(o))
                return {outcome::cancelled};
        return take(buffer_.size());
    }

    outcome readexactly(const operation& o)
    {
        while (buffer_.size() < o.size && !ended_)
            if (!receive(o))
                return {outcome::cancelled};
        if (buffer_.size() >= o.size)
            return take(o.size);
        return incomplete(o.size);
    }

    /// Where the first match ends, and the separator that it is of, the first in order when several end there.
    std::optional<std::pair<std::size_t, std::string_view>> first_match(const separators& ends) const
    {
        for (std::size_t end = 1; end <= buffer_.size(); ++end)
            for (const std::string_view separator : ends)
                if (std::string_view(buffer_).substr(0, end).ends_with(separator))
                    return std::pair(end, separator);
        return std::nullopt;
    }

    outcome find(const operation& o, const separators& ends, bool line)
    {
        std::size_t longest = 0;
        for (const std::string_view separator : ends)
            longest = std::max(longest, separator.size());
        for (;;)
        {
            const auto match = first_match(ends);
            if (line && amid_dropped_line_ && !buffer_.empty())
            {
                buffer_.erase(0, match ? match->first : buffer_.size());
                amid_dropped_line_ = !match;
                continue;
            }
            if (match)
            {
                const std::size_t begin = match->first - match->second.size();
                if (begin <= limit_)
                    return take(match->first);
                if (line)
                    buffer_.erase(0, match->first);
                return {outcome::overrun, {}, begin};
            }
            if (buffer_.size() + 1 > limit_ + longest)
            {
                const std::size_t consumed = buffer_.size() + 1 - longest;
                if (line)
                    buffer_.clear();
                amid_dropped_line_ = amid_dropped_line_ || line;
                return {outcome::overrun, {}, consumed};
            }
            if (ended_ && line)
                return take(buffer_.size());
            if (ended_)
                return incomplete();
            if (!receive(o))
                return {outcome::cancelled};
        }
    }

    std::size_t limit_;
    std::vector<std::string> chunks_;
    std::size_t received_ = 0;
    std::string buffer_;
    bool amid_dropped_line_ = false;
    bool ended_ = false;
};

asio::awaitable<std::string> start(us::stream_reader& reader, const operation& o)
{
    switch (o.what)
    {
    case operation::read: return reader.read(o.size);
    case operation::read_to_end: return reader.read();
    case operation::readexactly: return reader.readexactly(o.size);
    case operation::readline: return reader.readline();
    default: return reader.readuntil(std::span<const std::string_view>(*o.ends));
    }
}

outcome outcome_of(const test::task<std::string>& read)
try
{
    return {outcome::data, read.result()};
}
catch (const us::incomplete_read_error& error)
{
    return {outcome::incomplete, error.partial(), error.expected().value_or(0)};
}
catch (const us::limit_overrun_error& error)
{
    return {outcome::overrun, {}, error.consumed()};
}
catch (const std::system_error& error)
{
    fuzz::require(error.code() == asio::error::operation_aborted, "a read fails in one of four ways");
    return {outcome::cancelled};
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    fuzz::input input(data, size);
    const std::size_t limit = 1 + input.below(64);
    std::vector<operation> operations(1 + input.below(16));
    for (operation& o : operations)
    {
        const std::uint8_t what = input.byte();
        o.what = static_cast<decltype(o.what)>(what % operation::count);
        o.cancel = what >= 192;
        o.ends = &separator_lists[input.below(separator_lists.size())];
        o.size = input.below(300);
    }
    std::vector<std::string> chunks;
    while (!input.empty())
        if (const auto bytes = input.bytes(1 + input.below(512)); !bytes.empty())
            chunks.emplace_back(bytes);

    asio::io_context io;
    auto [socket, peer] = test::local_pair(io.get_executor());
    auto opened = test::spawn(io.get_executor(),
                              [&, own = &socket] { return us::open_connection(std::move(*own), {.limit = limit}); });
    io.poll();
    auto [reader, writer] = opened.result();
    model expected(limit, chunks);
    std::size_t sent = 0;
    for (const operation& o : operations)
    {
        const auto read = test::spawn(io.get_executor(), [&] { return start(reader, o); });
        bool cancelled = false;
        while (io.restart(), io.poll(), !read.done())
        {
            fuzz::require(sent <= chunks.size(), "a read does not wait after the end");
            if (o.cancel && !std::exchange(cancelled, true))
                read.cancel();
            else if (const std::string_view chunk = model::chunk(chunks, sent++); !chunk.empty())
                asio::write(peer, asio::buffer(chunk));
            else
                peer.shutdown(asio::socket_base::shutdown_send);
        }
        fuzz::require(outcome_of(read) == expected.run(o), "a read gives what the model does");
        fuzz::require(reader.at_eof() == expected.at_eof(), "at_eof tells what the model does");
    }
    return 0;
}
