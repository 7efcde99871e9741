#include <upgradeable_streams/stream_reader.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/chunked_stream.hpp"
#include "support/flood.hpp"
#include "support/pattern.hpp"
#include "support/run.hpp"
#include "support/stream_links.hpp"
#include "support/thread.hpp"

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/error.hpp>
#include <asio/post.hpp>
#include <asio/ssl/error.hpp>
#include <asio/strand.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/write.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

namespace us = upgradeable_streams;
using namespace std::chrono_literals;
using namespace std::string_literals;
using asio::awaitable;
using test::error_of;
using test::exception_of;
using test::link_over_socket;
using test::link_with_raw_peer;
using test::options_of;
using test::raw_link;

namespace
{

struct receive_counts
{
    int calls = 0;
    int in_vain = 0;
};

thread_local receive_counts receives;

} // namespace

/// In place of the C library's, whose calls it counts.
extern "C" ssize_t recv(int descriptor, void* memory, std::size_t size, int flags)
{
    static const auto next = reinterpret_cast<decltype(&recv)>(dlsym(RTLD_NEXT, "recv"));
    const ssize_t result = next(descriptor, memory, size, flags);
    ++receives.calls;
    receives.in_vain += result < 0;
    return result;
}

namespace
{

/// A link to a peer that sent `bytes` and then, unless told otherwise, its end.
awaitable<raw_link> link_that_sent(std::string_view bytes, std::size_t chunk, bool tls = false,
                                   std::size_t limit = 64 * 1024, bool end = true)
{
    const std::string owned(bytes);
    raw_link link = co_await link_with_raw_peer(options_of(tls, limit), chunk);
    link.send(owned, chunk);
    if (end)
        link.end();
    co_return link;
}

using read_kind = std::function<awaitable<std::string>(us::stream_reader&)>;

/// As read(size), by readinto.
awaitable<std::string> read_into(us::stream_reader& reader, std::size_t size)
{
    std::string memory(size, '\0');
    const std::size_t filled = co_await reader.readinto(memory);
    memory.resize(filled);
    co_return memory;
}

/// Each kind of read; first those that any byte completes.
const std::vector<std::pair<std::string, read_kind>>& read_kinds()
{
    static const std::vector<std::pair<std::string, read_kind>> kinds = {
        {"read(n)", [](us::stream_reader& r) { return r.read(3); }},
        {"readinto", [](us::stream_reader& r) { return read_into(r, 3); }},
        {"read()", [](us::stream_reader& r) { return r.read(); }},
        {"readexactly", [](us::stream_reader& r) { return r.readexactly(7); }},
        {"readuntil", [](us::stream_reader& r) { return r.readuntil("9\n"); }},
        {"readuntil, several",
         [](us::stream_reader& r) {
             return r.readuntil({"56", "9\n"});
         }},
        {"readline", [](us::stream_reader& r) { return r.readline(); }},
    };
    return kinds;
}

/// Begins to read a line; nothing else has had its turn since.
awaitable<test::task<std::string>> begin_readline(us::stream_reader& reader)
{
    const auto executor = co_await asio::this_coro::executor;
    const auto begun = std::make_shared<bool>(false);
    auto pending = test::spawn(executor,
                               [begun, &reader]() -> awaitable<std::string>
                               {
                                   co_await asio::this_coro::throw_if_cancelled(false);
                                   *begun = true;
                                   std::string line = co_await reader.readline();
                                   co_return line;
                               });
    while (!*begun)
        co_await test::turns(1);
    co_return pending;
}

/// Reads lines, each of which comes when others have had a number of turns.
awaitable<void> read_lines(raw_link& link, int count, int turns)
{
    for (int i = 0; i < count; ++i)
    {
        auto pending = co_await begin_readline(link.reader);
        co_await test::turns(turns);
        link.send("line\n");
        const std::string line = co_await pending.join();
        CHECK(line == "line\n");
    }
}

std::string lines(int count)
{
    std::string text;
    for (int i = 0; i < count; ++i)
        text += "0123456789\n";
    return text;
}

} // namespace

TEST_CASE("read: at least one byte and at most n, in order")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    CAPTURE(chunk, tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("hello, world", chunk, tls);
            std::string all;
            while (all.size() < 12)
            {
                const std::string piece = co_await link.reader.read(5);
                CHECK(!piece.empty());
                CHECK(piece.size() <= 5);
                all += piece;
            }
            CHECK(all == "hello, world");
        });
}

TEST_CASE("read: without a size everything up to the end, more than the limit")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    CAPTURE(chunk, tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const std::string sent = test::pattern(1).bytes(0, 5000);
            raw_link link = co_await link_that_sent(sent, chunk, tls, 100);
            const std::string all = co_await link.reader.read();
            CHECK(all == sent);
            CHECK(link.reader.at_eof());
        });
}

TEST_CASE("read: a size of 0 is empty, waits for nothing and is no end")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            const std::string nothing = co_await link.reader.read(0);
            CHECK(nothing.empty());
            CHECK(!link.reader.at_eof());
        });
}

TEST_CASE("read: the end is empty, again and again")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("", 0, tls);
            for (int i = 0; i < 3; ++i)
            {
                const std::string some = co_await link.reader.read(10);
                const std::string all = co_await link.reader.read();
                const std::string line = co_await link.reader.readline();
                CHECK(some.empty());
                CHECK(all.empty());
                CHECK(line.empty());
                CHECK(link.reader.at_eof());
            }
        });
}

TEST_CASE("at_eof: false until a read has found the end and all was read")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("ab", chunk);
            CHECK(!link.reader.at_eof());
            const std::string both = co_await link.reader.readexactly(2);
            CHECK(both == "ab");
            CHECK(!link.reader.at_eof());
            const std::string end = co_await link.reader.read(1);
            CHECK(end.empty());
            CHECK(link.reader.at_eof());
        });
}

TEST_CASE("at_eof: false while bytes that came before the end are unread")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("partial", 0, false, 5);
            const std::error_code overrun = co_await error_of(link.reader.readuntil("\n"));
            CHECK(overrun == us::errc::limit_overrun);
            CHECK(!link.reader.at_eof());
            const std::string rest = co_await link.reader.read();
            CHECK(rest == "partial");
            CHECK(link.reader.at_eof());
        });
}

TEST_CASE("poll: tells without waiting what a peer has sent, its end and its failure, and of an idle one nothing")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const us::connection_options how = test::options_of(tls);
            raw_link link = co_await test::link_over_socket(how);
            CHECK_FALSE(link.reader.poll());
            link.send("line\n");
            CHECK(link.reader.poll());
            CHECK(link.reader.poll());
            const std::string line = co_await link.reader.readline();
            CHECK(line == "line\n");
            CHECK_FALSE(link.reader.poll());
            link.writer.write("and on\n");
            for (int i = 0; i < 25'000; ++i) // more than a turn's share, if each cost of it
                REQUIRE_FALSE(link.reader.poll());
            CHECK_FALSE(link.reader.at_eof());
            auto ending = test::run_in_thread([&] { tls ? link.peer.tls_shutdown() : link.peer.send_fin(); });
            co_await test::eventually([&] { return link.reader.poll(); });
            CHECK(link.reader.at_eof());
            link.writer.close();
            CHECK_THROWS_MATCHES(link.reader.poll(), std::system_error,
                                 test::message_contains(std::error_code(us::errc::connection_closed).message()));
            co_await link.writer.wait_closed();
            co_await test::joined(std::move(ending));

            raw_link cut = co_await test::link_over_socket(how);
            const auto executor = co_await asio::this_coro::executor;
            const auto reading = test::spawn(executor, [&] { return cut.reader.readline(); });
            co_await test::turns();
            CHECK_THROWS_MATCHES(cut.reader.poll(), std::system_error,
                                 test::message_contains(std::error_code(us::errc::operation_in_progress).message()));
            cut.send("last\n");
            const std::string last = co_await reading.join();
            CHECK(last == "last\n");
            tls ? cut.peer.send_fin() : cut.peer.reset();
            std::error_code error;
            const auto fails = [&]
            {
                try
                {
                    return cut.reader.poll();
                }
                catch (const std::system_error& e)
                {
                    error = e.code();
                    return true;
                }
            };
            co_await test::eventually(fails);
            CHECK(error == (tls ? std::error_code(asio::ssl::error::stream_truncated)
                                : std::error_code(asio::error::connection_reset)));
        });
}

TEST_CASE("poll: what comes behind session tickets and new keys is found at the first look")
{
    enum ending
    {
        cut_off,
        unasked,
        after_new_keys
    };
    const auto how = GENERATE(cut_off, unasked, after_new_keys);
    CAPTURE(int(how));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await test::link_over_socket(test::options_of(true)); // nobody has read the tickets
            int before = 0;
            ::ioctl(*link.writer.get_extra_info<"socket">(), FIONREAD, &before);
            REQUIRE(before > 0);
            for (int i = 0; how == after_new_keys && i < 800; ++i) // more than one turn takes
                link.peer.key_update(false);
            if (how == cut_off)
                link.peer.send_fin();
            else
                link.send(std::string(how == unasked ? 60'000 : 1, 'x'));
            const auto has_come = [&]
            {
                const int socket = *link.writer.get_extra_info<"socket">();
                int bytes = 0;
                ::ioctl(socket, FIONREAD, &bytes);
                pollfd end{socket, POLLRDHUP, 0};
                return how == cut_off   ? ::poll(&end, 1, 0) == 1
                       : how == unasked ? bytes > before + 60'000
                                        : bytes >= before + 800 * 27 + 23;
            };
            co_await test::eventually(has_come);
            if (how == cut_off)
                CHECK_THROWS_MATCHES(
                    link.reader.poll(), std::system_error,
                    test::message_contains(std::error_code(asio::ssl::error::stream_truncated).message()));
            else
                CHECK(link.reader.poll());
            link.writer.abort();
        });
}

TEST_CASE("poll: over a stream that is no socket it is refused, unless bytes have come already")
{
    const bool tls = GENERATE(false, true);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await test::link_with_raw_peer(test::options_of(tls));
            CHECK_THROWS_MATCHES(link.reader.poll(), std::system_error,
                                 test::message_contains("only a socket, or TLS over one, tells without waiting"));
            link.send("line\nrest");
            co_await link.reader.readline();
            CHECK(link.reader.poll());
            const std::string rest = co_await link.reader.readexactly(4);
            CHECK(rest == "rest");
        });
}

TEST_CASE("readinto: at least one byte and at most as many as there is memory, in order")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    const std::size_t size = GENERATE(as<std::size_t>{}, 1, 3, 1000, 100'000);
    CAPTURE(chunk, tls, size);
    test::run(
        [=]() -> awaitable<void>
        {
            const std::string sent = test::pattern(5).bytes(0, 1500);
            raw_link link = co_await link_that_sent(sent, chunk, tls);
            std::string all;
            while (all.size() < sent.size())
            {
                const std::string piece = co_await read_into(link.reader, size);
                REQUIRE(!piece.empty());
                all += piece;
            }
            CHECK(all == sent);
            CHECK(!link.reader.at_eof());
            const std::string end = co_await read_into(link.reader, size);
            CHECK(end.empty());
            CHECK(link.reader.at_eof());
        });
}

TEST_CASE("readinto: takes no more than a turn's share at once, however much there is")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            constexpr std::size_t size = 32 << 20;
            auto link = co_await test::link_over_socket(options_of(tls));
            auto sending = test::run_in_thread([&link] { link.send(std::string(size, 'x')); });
            std::vector<char> memory(size);
            std::size_t largest = 0;
            for (std::size_t received = 0; received < size;)
            {
                const std::size_t more = co_await link.reader.readinto(std::span(memory).subspan(received));
                REQUIRE(more > 0);
                received += more;
                largest = std::max(largest, more);
            }
            CHECK(largest <= 1280 * 1024);
            co_await test::joined(std::move(sending));
        });
}

TEMPLATE_TEST_CASE("readinto, write: take memory of any type of bytes", "", std::byte, unsigned char, char)
{
    test::run(
        []() -> awaitable<void>
        {
            auto link = co_await link_with_raw_peer();
            link.send("bytes");
            std::vector<TestType> memory(5);
            const std::size_t read = co_await link.reader.readinto(memory);
            CHECK(read == 5);
            const std::vector<TestType> given = memory;
            link.writer.write(given);
            link.writer.write(std::span(given).first(2));
            link.writer.close();
            co_await link.writer.wait_closed();
            const std::string echoed = link.peer.recv_all();
            CHECK(echoed == "bytesby");
        });
}

TEST_CASE("readinto: touches no memory beyond what it says")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    CAPTURE(chunk, tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("hello", chunk, tls, 100, false);
            std::string memory(1000, '.');
            std::size_t size = 0;
            while (size < 5)
            {
                const std::span<char> rest = std::span(memory).subspan(size);
                const std::size_t more = co_await link.reader.readinto(rest);
                size += more;
            }
            CHECK(memory == "hello" + std::string(995, '.'));
        });
}

TEST_CASE("readinto: no memory is 0, waits for nothing and is no end")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            const std::size_t nothing = co_await link.reader.readinto({});
            CHECK(nothing == 0);
            CHECK(!link.reader.at_eof());
        });
}

TEST_CASE("readinto: the end is 0, again and again")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("", 0, tls);
            char memory[4];
            for (int i = 0; i < 3; ++i)
            {
                const std::size_t size = co_await link.reader.readinto(memory);
                CHECK(size == 0);
                CHECK(link.reader.at_eof());
            }
        });
}

TEST_CASE("readinto: what other reads have received and left comes first, and alone")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("line\nabcdef", 0, tls, 100, false);
            const std::string line = co_await link.reader.readline();
            link.send("ghi");
            const std::string first = co_await read_into(link.reader, 2);
            const std::string second = co_await read_into(link.reader, 100);
            const std::string third = co_await read_into(link.reader, 100);
            CHECK(line == "line\n");
            CHECK(first == "ab");
            CHECK(second == "cdef");
            CHECK(third == "ghi");
        });
}

TEST_CASE("readinto: after the upgrade of the connection, and after close, it is refused")
{
    test::run(
        []() -> awaitable<void>
        {
            us::connection_options options = options_of(true);
            options.upgradeable = true;
            auto link = co_await test::link_of_streams(options);
            const auto executor = co_await asio::this_coro::executor;
            char memory[4];
            auto server = test::spawn(executor, [&] { return link.peer_writer.start_tls(); });
            auto client = test::spawn(executor, [&] { return link.writer.start_tls(); });
            co_await asio::post(asio::use_awaitable);
            const std::error_code during = co_await error_of(link.reader.readinto(memory));
            CHECK(during == us::errc::upgrade_in_progress);
            auto [reader, writer] = co_await client.join();
            auto other = co_await server.join();
            const std::error_code upgraded = co_await error_of(link.reader.readinto(memory));
            CHECK(upgraded == us::errc::connection_upgraded);
            auto pending = test::spawn(executor, [&] { return reader.readinto(memory); });
            co_await test::turns();
            writer.close();
            const std::error_code closing = co_await error_of(pending.join());
            const std::error_code closed = co_await error_of(reader.readinto(memory));
            CHECK(closing == us::errc::connection_closed);
            CHECK(closed == us::errc::connection_closed);
        });
}

TEST_CASE("readinto: allocates nothing, whether bytes are there or have to come")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_over_socket(options_of(tls));
            auto answering = test::run_in_thread(
                [&]
                {
                    for (int i = 0; i < 10; ++i)
                    {
                        tls ? link.peer.tls_read_exactly(1) : link.peer.recv_exactly(1);
                        link.send("answer");
                    }
                });
            char memory[4];
            for (std::size_t i = 0; i < 10; ++i)
            {
                link.writer.write("?"); // sent when the read begins to wait
                std::size_t first = 0;
                std::size_t second = 0;
                bool allocated = false;
                {
                    const test::allocation_failure failure(i == 0 ? 0 : 1);
                    first = co_await link.reader.readinto(memory);
                    second = co_await link.reader.readinto(memory);
                    allocated = failure.happened();
                }
                CHECK(first == 4);
                CHECK(second == 2);
                CHECK((i == 0 || !allocated));
            }
            co_await test::joined(std::move(answering));
        });
}

TEST_CASE("readline: lines that came together are read without a trip through the event loop or an allocation")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    int trips = 0;
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            std::string sent;
            for (int i = 0; i < 100; ++i)
                sent += "line\n";
            raw_link link = co_await link_over_socket(options_of(tls));
            link.send(sent);
            const std::string first = co_await link.reader.readline();
            CHECK(first == "line\n");
            asio::post(executor, [&] { ++trips; });
            int right = 0;
            bool allocated = false;
            {
                const test::allocation_failure failure(1);
                for (int i = 1; i < 100; ++i)
                {
                    const std::string line = co_await link.reader.readline();
                    right += line == "line\n";
                }
                allocated = failure.happened();
            }
            CHECK(right == 99);
            CHECK(trips == 0);
            CHECK(!allocated);
        });
}

TEST_CASE("reader: after much was received a connection that waits holds no buffer for it")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_over_socket(options_of(tls));
            co_await test::allocated_while_waiting(link);
            const std::ptrdiff_t before = co_await test::allocated_while_waiting(link);
            {
                auto sending = test::run_in_thread([&] { link.send(std::string(1'000'000, 'x')); });
                const std::string all = co_await link.reader.readexactly(1'000'000);
                CHECK(all.size() == 1'000'000);
                co_await test::joined(std::move(sending));
            }
            const std::ptrdiff_t after = co_await test::allocated_while_waiting(link);
            CHECK(after - before < 2000);
        });
}

TEST_CASE("readexactly: exactly so many bytes, not bounded by the limit")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    CAPTURE(chunk, tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const std::string sent = test::pattern(2).bytes(0, 3000);
            raw_link link = co_await link_that_sent(sent, chunk, tls, 10);
            const std::string first = co_await link.reader.readexactly(1);
            const std::string second = co_await link.reader.readexactly(2500);
            const std::string none = co_await link.reader.readexactly(0);
            const std::string third = co_await link.reader.readexactly(499);
            CHECK(none.empty());
            CHECK(first + second + third == sent);
        });
}

TEST_CASE("readexactly: at the end incomplete_read_error tells what came and what was expected")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("abc", chunk);
            const auto error = co_await exception_of<us::incomplete_read_error>(link.reader.readexactly(10));
            CHECK(error.code() == us::errc::incomplete_read);
            CHECK(error.partial() == "abc");
            CHECK(error.expected() == 10);
            CHECK(link.reader.at_eof());
            const auto again = co_await exception_of<us::incomplete_read_error>(link.reader.readexactly(1));
            CHECK(again.partial().empty());
            CHECK(again.expected() == 1);
            const std::string none = co_await link.reader.readexactly(0);
            CHECK(none.empty());
        });
}

TEST_CASE("readuntil: up to and with the separator, and no byte further")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    CAPTURE(chunk, tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("one\r\n\r\ntwo\r\n.\r\nthree", chunk, tls);
            const std::string first = co_await link.reader.readuntil("\r\n");
            const std::string empty = co_await link.reader.readuntil("\r\n");
            const std::string second = co_await link.reader.readuntil("\r\n.\r\n");
            const std::string third = co_await link.reader.readuntil("e");
            CHECK(first == "one\r\n");
            CHECK(empty == "\r\n");
            CHECK(second == "two\r\n.\r\n");
            CHECK(third == "thre");
        });
}

TEST_CASE("readuntil: a separator that begins within a false start of itself is found")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("\r\n.\r\r\n..\r\n\r\n.\r\n|aaaab|ababac|", chunk);
            const std::string dot = co_await link.reader.readuntil("\r\n.\r\n");
            const std::string bar = co_await link.reader.readuntil("|");
            const std::string aab = co_await link.reader.readuntil("aab");
            const std::string bar_again = co_await link.reader.readuntil("|");
            const std::string abac = co_await link.reader.readuntil("abac");
            CHECK(dot == "\r\n.\r\r\n..\r\n\r\n.\r\n");
            CHECK(bar == "|");
            CHECK(aab == "aaaab");
            CHECK(bar_again == "|");
            CHECK(abac == "ababac");
        });
}

TEST_CASE("readuntil: of several separators that one whose match ends first")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("a;b,c\nxabcd!xbcd!end", chunk);
            const std::string first = co_await link.reader.readuntil({"\n", ",", ";"});
            const std::string second = co_await link.reader.readuntil({"\n", ",", ";"});
            const std::string third = co_await link.reader.readuntil({"\n", ",", ";"});
            const std::string inner = co_await link.reader.readuntil({"abcd!", "bc"});
            const std::string rest = co_await link.reader.readuntil("!");
            const std::string longer = co_await link.reader.readuntil({"bcd!", "abcd!"});
            const std::string same_end = co_await link.reader.readuntil({"nd", "end", "d"});
            CHECK(first == "a;");
            CHECK(second == "b,");
            CHECK(third == "c\n");
            CHECK(inner == "xabc");
            CHECK(rest == "d!");
            CHECK(longer == "xbcd!");
            CHECK(same_end == "end");
        });
}

TEST_CASE("readuntil: separators hold any byte, NUL too")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            const std::string nul(1, '\0');
            raw_link link = co_await link_that_sent("a\xff" + nul + "b" + nul, chunk);
            const std::string first = co_await link.reader.readuntil(std::string_view("\xff\0", 2));
            const std::string second = co_await link.reader.readuntil(nul);
            CHECK(first == "a\xff" + nul);
            CHECK(second == "b" + nul);
        });
}

TEST_CASE("readuntil: at the end incomplete_read_error has the partial record, which is read then")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("abc\r", chunk);
            const auto error = co_await exception_of<us::incomplete_read_error>(link.reader.readuntil("\r\n"));
            CHECK(error.partial() == "abc\r");
            CHECK(!error.expected());
            CHECK(link.reader.at_eof());
        });
}

TEST_CASE("readuntil: no separator or an empty one is std::invalid_argument at the call")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            CHECK_THROWS_AS(link.reader.readuntil(""), std::invalid_argument);
            CHECK_THROWS_AS(link.reader.readuntil({}), std::invalid_argument);
            CHECK_THROWS_AS(link.reader.readuntil({"\n", ""}), std::invalid_argument);
        });
}

TEST_CASE("readuntil: the separators may be gone once it was called")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer();
            std::optional<std::string> separator("end of record, longer than a small string");
            auto pending = link.reader.readuntil(*separator);
            separator.reset();
            link.send("x end of record, longer than a small string y");
            const std::string record = co_await std::move(pending);
            CHECK(record == "x end of record, longer than a small string");
        });
}

TEST_CASE("readuntil: a record of exactly limit bytes plus its separator is accepted")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("0123456789\r\n0123456789;rest", chunk, false, 10);
            const std::string first = co_await link.reader.readuntil("\r\n");
            const std::string second = co_await link.reader.readuntil({";", "\r\n"});
            CHECK(first == "0123456789\r\n");
            CHECK(second == "0123456789;");
        });
}

TEST_CASE("readuntil: one byte more than the limit is limit_overrun_error, and the data stays")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("0123456789a\r\nnext", chunk, false, 10);
            const auto error = co_await exception_of<us::limit_overrun_error>(link.reader.readuntil("\r\n"));
            CHECK(error.code() == us::errc::limit_overrun);
            CHECK(error.consumed() == 11);
            const auto again = co_await exception_of<us::limit_overrun_error>(link.reader.readuntil("\r\n"));
            CHECK(again.consumed() == 11);
            const std::string skipped = co_await link.reader.readexactly(again.consumed());
            const std::string end = co_await link.reader.readuntil("\r\n");
            const std::string rest = co_await link.reader.read();
            CHECK(skipped == "0123456789a");
            CHECK(end == "\r\n");
            CHECK(rest == "next");
        });
}

TEST_CASE("readuntil: what limit_overrun_error says was consumed holds no part of a separator")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            const std::string body(200, 'x');
            raw_link link = co_await link_that_sent(body + "\r\n.\r\nrest", chunk, false, 10);
            std::string record;
            for (;;)
            {
                std::optional<std::size_t> consumed;
                try
                {
                    record += co_await link.reader.readuntil("\r\n.\r\n");
                }
                catch (const us::limit_overrun_error& error)
                {
                    consumed = error.consumed();
                }
                if (!consumed)
                    break;
                CHECK(*consumed > 10);
                CHECK(*consumed <= body.size());
                record += co_await link.reader.readexactly(*consumed);
            }
            CHECK(record == body + "\r\n.\r\n");
        });
}

TEST_CASE("readuntil: limit bytes without a separator are no overrun yet")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("0123456789", chunk, false, 10);
            const auto error = co_await exception_of<us::incomplete_read_error>(link.reader.readuntil("\n"));
            CHECK(error.partial() == "0123456789");
        });
}

TEST_CASE("readline: lines with their newlines, the partial one at the end, then empty")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    CAPTURE(chunk, tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("first\r\n\nthird\nlast", chunk, tls);
            for (const std::string& expected : std::vector<std::string>{"first\r\n", "\n", "third\n", "last", "", ""})
            {
                const std::string line = co_await link.reader.readline();
                CHECK(line == expected);
            }
            CHECK(link.reader.at_eof());
        });
}

TEST_CASE("readline: a line of exactly limit bytes plus its newline is accepted")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    CAPTURE(chunk, tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("0123456789\nnext\n", chunk, tls, 10);
            const std::string line = co_await link.reader.readline();
            const std::string next = co_await link.reader.readline();
            CHECK(line == "0123456789\n");
            CHECK(next == "next\n");
        });
}

TEST_CASE("readline: a line of 64 KiB is accepted unless told otherwise, and one byte more is not")
{
    test::run(
        []() -> awaitable<void>
        {
            const std::string longest(64 * 1024, 'x');
            raw_link link = co_await link_that_sent(longest + "\n" + longest + "x\n", 0);
            const std::string line = co_await link.reader.readline();
            CHECK(line == longest + "\n");
            const std::error_code error = co_await error_of(link.reader.readline());
            CHECK(error == us::errc::limit_overrun);
        });
}

TEST_CASE("readline: a line longer than the limit is dropped with its newline")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("0123456789a\nnext\n", 0, false, 10);
            const auto error = co_await exception_of<us::limit_overrun_error>(link.reader.readline());
            CHECK(error.consumed() == 11);
            const std::string next = co_await link.reader.readline();
            CHECK(next == "next\n");
        });
}

TEST_CASE("readline: of a line longer than the limit what comes later is dropped too, and is no line of its own")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    const std::string next = GENERATE("next\n", "", "\n");
    CAPTURE(chunk, tls, next);
    test::run(
        [=]() -> awaitable<void>
        {
            const std::string sent = std::string(3000, 'x') + "RCPT TO:<tail>\n" + next;
            raw_link link = co_await link_that_sent(sent, chunk, tls, 10);
            const auto error = co_await exception_of<us::limit_overrun_error>(link.reader.readline());
            CHECK(error.consumed() > 10);
            const std::string line = co_await link.reader.readline();
            CHECK(line == next);
            const std::string end = co_await link.reader.readline();
            CHECK(end.empty());
        });
}

TEST_CASE("readline: the rest of a line that was too long is dropped also after reads that took nothing")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_that_sent("0123456789abcde", 0, false, 10, false);
            const auto error = co_await exception_of<us::limit_overrun_error>(link.reader.readline());
            CHECK(error.consumed() > 10);
            const auto cancelled = test::spawn(executor, [&] { return link.reader.readline(); });
            link.send("fgh");
            co_await test::turns();
            cancelled.cancel();
            const std::error_code outcome = co_await error_of(cancelled.join());
            CHECK(outcome == asio::error::operation_aborted);
            const auto until = test::spawn(executor, [&] { return link.reader.readuntil(";"); });
            co_await test::turns();
            until.cancel();
            const std::error_code of_another = co_await error_of(until.join());
            CHECK(of_another == asio::error::operation_aborted);
            const std::string nothing = co_await link.reader.read(0);
            CHECK(nothing.empty());
            link.send("ijk\nnext\n");
            const std::string next = co_await link.reader.readline();
            CHECK(next == "next\n");
        });
}

TEST_CASE(
    "readline: of a line that was too long a readinto takes the rest from the socket itself, and the line goes on")
{
    const bool tls = GENERATE(false, true);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await test::link_over_socket(test::options_of(tls, 10));
            link.send(std::string(512, 'x') + "f;\ngh\n"); // of which the first receive takes 512
            const auto overrun = co_await test::exception_of<us::limit_overrun_error>(link.reader.readline());
            CHECK(overrun.consumed() == 512);
            std::string next(2, ' ');
            co_await link.reader.readinto(next);
            CHECK(next == "f;");
            const std::string rest = co_await link.reader.readline();
            CHECK(rest == "\n");
        });
}

TEST_CASE("readline: another read after a line that was too long goes on where that was dropped")
{
    const std::string which = GENERATE("read", "readinto", "readexactly", "readuntil");
    CAPTURE(which);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("0123456789abcde", 0, false, 10, false);
            const auto error = co_await exception_of<us::limit_overrun_error>(link.reader.readline());
            CHECK(error.consumed() == 15);
            link.send("f;\ngh\n");
            std::string next(2, ' ');
            if (which == "read")
                next = co_await link.reader.read(2);
            else if (which == "readexactly")
                next = co_await link.reader.readexactly(2);
            else if (which == "readuntil")
                next = co_await link.reader.readuntil(";");
            else
                co_await link.reader.readinto(next);
            CHECK(next == "f;");
            const std::string rest = co_await link.reader.readline();
            CHECK(rest == "\n");
        });
}

TEST_CASE("reader: a second read while one is pending is errc::operation_in_progress, and the first goes on")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(options_of(tls));
            auto pending = test::spawn(executor, [&] { return link.reader.readline(); });
            co_await test::turns();
            for (const auto& [name, read] : read_kinds())
            {
                CAPTURE(name);
                const std::error_code error = co_await error_of(read(link.reader));
                CHECK(error == us::errc::operation_in_progress);
            }
            link.send("line\n");
            const std::string line = co_await pending.join();
            CHECK(line == "line\n");
        });
}

TEST_CASE("reader: what came before a reset is delivered first, and the reset is repeated")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("abc", chunk, false, 100, false);
            link.peer.reset();
            std::string all;
            while (all.size() < 3)
            {
                const std::string piece = co_await link.reader.read(10);
                REQUIRE(!piece.empty());
                all += piece;
            }
            CHECK(all == "abc");
            for (const auto& [name, read] : read_kinds())
            {
                CAPTURE(name);
                const std::error_code error = co_await error_of(read(link.reader));
                CHECK(error == asio::error::connection_reset);
            }
            CHECK(!link.reader.at_eof());
        });
}

TEST_CASE("reader: a reset that a write was told of is no end, unless the peer had ended before")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool over_socket = GENERATE(false, true);
    const bool tls = GENERATE(false, true);
    const bool ended = GENERATE(false, true);
    CAPTURE(chunk, over_socket, tls, ended);
    us::connection_options options = options_of(tls);
    options.suppress_ragged_eofs = true;
    test::run(
        [=]() -> awaitable<void>
        {
            auto linking = over_socket ? link_over_socket(options) : link_with_raw_peer(options, chunk);
            raw_link link = co_await std::move(linking);
            link.send("abc");
            if (ended)
                link.end();
            link.peer.reset();
            link.writer.set_write_buffer_limits({.high = 0});
            link.writer.write("request\n");
            const std::error_code lost = co_await error_of(link.writer.drain());
            CHECK(lost == (ended ? std::error_code(asio::error::broken_pipe) : asio::error::connection_reset));
            std::string all = co_await link.reader.read(3);
            while (all.size() < 3)
                all += co_await link.reader.read(3);
            CHECK(all == "abc");
            if (ended)
            {
                const std::string end = co_await link.reader.read(3);
                CHECK(end.empty());
                CHECK(link.reader.at_eof());
            }
            for (int i = 0; i < 2 && !ended; ++i)
            {
                const std::error_code error = co_await error_of(link.reader.read(3));
                CHECK(error == asio::error::connection_reset);
                CHECK(!link.reader.at_eof());
            }
        });
}

TEST_CASE("reader: a read that a reset cuts short leaves what came to read(n)")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            for (std::size_t kind = 2; kind < read_kinds().size(); ++kind)
            {
                CAPTURE(read_kinds()[kind].first);
                raw_link link = co_await link_that_sent("abc", chunk, false, 100, false);
                link.peer.reset();
                const std::error_code error = co_await error_of(read_kinds()[kind].second(link.reader));
                CHECK(error == asio::error::connection_reset);
                const std::string rest = co_await link.reader.read(10);
                CHECK(rest == "abc");
                const std::error_code again = co_await error_of(link.reader.read(10));
                CHECK(again == asio::error::connection_reset);
            }
        });
}

TEST_CASE("reader: TLS that ends without close_notify is stream_truncated, after what came before it")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("abc", chunk, true, 100, false);
            link.peer.send_fin();
            const std::error_code cut = co_await error_of(link.reader.readline());
            CHECK(cut == asio::ssl::error::stream_truncated);
            const std::string rest = co_await link.reader.read(10);
            CHECK(rest == "abc");
            for (const auto& [name, read] : read_kinds())
            {
                CAPTURE(name);
                const std::error_code error = co_await error_of(read(link.reader));
                CHECK(error == asio::ssl::error::stream_truncated);
            }
            CHECK(!link.reader.at_eof());
        });
}

TEST_CASE("reader: with suppress_ragged_eofs TLS that ends without close_notify is the end")
{
    test::run(
        []() -> awaitable<void>
        {
            us::connection_options options = options_of(true);
            options.suppress_ragged_eofs = true;
            raw_link link = co_await link_with_raw_peer(options);
            link.send("abc");
            link.peer.send_fin();
            const std::string all = co_await link.reader.read();
            CHECK(all == "abc");
            CHECK(link.reader.at_eof());
        });
}

TEST_CASE("reader: a reset under TLS is an error that is repeated")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("abc", 0, true, 100, false);
            const std::string came = co_await link.reader.read(10);
            CHECK(came == "abc");
            link.peer.reset();
            for (int i = 0; i < 3; ++i)
            {
                const std::error_code error = co_await error_of(link.reader.read(10));
                CHECK(error == asio::error::connection_reset);
            }
        });
}

TEST_CASE("reader: a read cancelled at any moment loses nothing")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    const bool is_limited = GENERATE(false, true);
    CAPTURE(chunk, tls, is_limited);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            const std::string sent = lines(20);
            int cancelled = 0;
            for (const auto& kind : read_kinds())
            {
                CAPTURE(kind.first);
                raw_link link = co_await link_that_sent(sent, chunk, tls);
                if (is_limited)
                    link.writer.set_operation_timeout(1h);
                std::string all;
                for (int moment = 0; all.size() < sent.size(); ++moment)
                {
                    auto pending = test::spawn(executor, [&] { return kind.second(link.reader); });
                    co_await test::turns(moment % 23);
                    pending.cancel();
                    std::error_code error;
                    try
                    {
                        all += co_await pending.join();
                    }
                    catch (const us::incomplete_read_error& end)
                    {
                        all += end.partial();
                    }
                    catch (const std::system_error& failed)
                    {
                        error = failed.code();
                    }
                    if (error)
                    {
                        REQUIRE(error == asio::error::operation_aborted);
                        ++cancelled;
                    }
                }
                CHECK(all == sent);
            }
            if (chunk == 1)
                CHECK(cancelled > 0);
        });
}

TEST_CASE("reader: a read cancelled while nothing comes is operation_aborted, and the next read goes on")
{
    const bool tls = GENERATE(false, true);
    const bool is_limited = GENERATE(false, true);
    CAPTURE(tls, is_limited);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            raw_link link = co_await link_with_raw_peer(options_of(tls));
            if (is_limited)
                link.writer.set_operation_timeout(1h);
            for (const auto& kind : read_kinds())
            {
                CAPTURE(kind.first);
                auto pending = test::spawn(executor, [&] { return kind.second(link.reader); });
                co_await test::turns();
                pending.cancel();
                const std::error_code error = co_await error_of(pending.join());
                CHECK(error == asio::error::operation_aborted);
            }
            link.send("still here\n");
            const std::string line = co_await link.reader.readline();
            CHECK(line == "still here\n");
        });
}

TEST_CASE("reader: a read that takes longer than operation_timeout ends, and the next goes on with what came")
{
    const bool tls = GENERATE(false, true);
    const bool over_socket = GENERATE(false, true);
    CAPTURE(tls, over_socket);
    test::run(
        [=]() -> awaitable<void>
        {
            us::connection_options options = options_of(tls);
            options.operation_timeout = 5ms;
            for (const auto& kind : read_kinds())
            {
                CAPTURE(kind.first);
                auto linking = over_socket ? link_over_socket(options) : link_with_raw_peer(options);
                raw_link link = co_await std::move(linking);
                const bool any_byte_will_do = kind.first == "read(n)" || kind.first == "readinto";
                for (const char* next : {"1", "2", "3"})
                {
                    const std::error_code error = co_await error_of(kind.second(link.reader));
                    CHECK(error == us::errc::operation_timeout);
                    CHECK(error == std::errc::timed_out);
                    if (!any_byte_will_do)
                        link.send(next);
                }
                link.writer.set_operation_timeout(1h);
                link.send("456789\n");
                link.end();
                const std::string all = co_await link.reader.read();
                CHECK(all == (any_byte_will_do ? "" : "123"s) + "456789\n");
            }
        });
}

TEST_CASE("reader: a peer that drips does not put operation_timeout off")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options = options_of(tls, 1 << 30);
            options.operation_timeout = 30ms;
            raw_link link = co_await link_over_socket(options);
            auto pending = test::spawn(executor, [&] { return link.reader.readline(); });
            while (!pending.done())
            {
                link.send("x");
                co_await test::turns(1);
            }
            const std::error_code error = co_await error_of(pending.join());
            CHECK(error == us::errc::operation_timeout);
        });
}

TEST_CASE("reader: a read that takes too long does not disturb what is being sent")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            us::connection_options options = options_of(tls);
            options.operation_timeout = 5ms;
            raw_link link = co_await link_over_socket(options);
            const std::string sent = test::pattern(7).bytes(0, 16 * 1024 * 1024);
            link.writer.write(sent);
            for (int i = 0; i < 3; ++i)
            {
                const std::error_code error = co_await error_of(link.reader.readline());
                CHECK(error == us::errc::operation_timeout);
            }
            auto receiving = test::run_in_thread([&] { return link.receive(sent.size()); });
            const std::string received = co_await test::joined(std::move(receiving));
            CHECK(received == sent);
        });
}

TEST_CASE("reader: operation_timeout and cancellation end a read while the other direction writes and drains")
{
    const bool tls = GENERATE(false, true);
    const bool cancelled = GENERATE(false, true);
    CAPTURE(tls, cancelled);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options = options_of(tls);
            options.operation_timeout = cancelled ? 1h : 200ms;
            raw_link link = co_await link_over_socket(options);
            const std::string sent = test::pattern(9).bytes(0, 16 * 1024 * 1024);
            auto receiving = test::run_in_thread([&] { return link.receive(sent.size()); });
            const auto pending = test::spawn(executor, [&] { return link.reader.readline(); });
            for (std::size_t at = 0; at < sent.size(); at += sent.size() / 32)
            {
                link.writer.write(std::string_view(sent).substr(at, sent.size() / 32));
                co_await link.writer.drain();
            }
            if (cancelled)
                pending.cancel();
            const std::error_code error = co_await error_of(pending.join());
            CHECK(error == (cancelled ? std::error_code(asio::error::operation_aborted)
                                      : make_error_code(us::errc::operation_timeout)));
            const std::string received = co_await test::joined(std::move(receiving));
            CHECK(received == sent);
        });
}

TEST_CASE("reader: operation_timeout ends a read also when a drain's ends just before it")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options;
            options.operation_timeout = 200us;
            raw_link link = co_await link_over_socket(options);
            link.writer.write(std::string(16 * 1024 * 1024, 'x')); // the peer takes none of it
            for (int i = 0; i < 2000; ++i)
            {
                const auto draining = test::spawn(executor, [&] { return link.writer.drain(); });
                co_await test::turns(1);
                const auto begin = std::chrono::steady_clock::now() + std::chrono::microseconds(i % 80);
                while (std::chrono::steady_clock::now() < begin)
                {
                }
                const std::error_code read = co_await error_of(link.reader.read(1));
                const std::error_code drained = co_await error_of(draining.join());
                REQUIRE(read == us::errc::operation_timeout);
                REQUIRE(drained == us::errc::operation_timeout);
            }
        });
}

TEST_CASE("reader: what came before a reset is read, then the reset, though a reply to a KeyUpdate was told of it")
{
    us::connection_options options = options_of(true);
    options.suppress_ragged_eofs = GENERATE(false, true);
    CAPTURE(options.suppress_ragged_eofs);
    test::run(
        [options]() -> awaitable<void>
        {
            auto linking = test::link_of(options,
                                         [](asio::ip::tcp::socket socket)
                                         {
                                             socket.set_option(asio::socket_base::send_buffer_size(1));
                                             socket.set_option(asio::socket_base::receive_buffer_size(1024 * 1024));
                                             return socket;
                                         });
            raw_link link = co_await std::move(linking);
            const std::string sent = link.peer.tls_unsent(
                [&]
                {
                    for (int i = 0; i < 3200; ++i)
                        link.peer.key_update(true);
                    link.peer.tls_write(std::string(40'000, 'd'));
                });
            link.writer.write(std::string(1'000'000, 'x')); // so that no reply leaves
            auto sending = test::run_in_thread([&] { link.peer.send_all(sent); });
            co_await test::joined(std::move(sending));
            const auto executor = co_await asio::this_coro::executor;
            const auto reading = test::spawn(executor, [&] { return link.reader.readexactly(40'000); });
            co_await test::turns(20);
            CHECK(!reading.done());
            int unsent = 1; // a reset would drop it; that is more where OpenSSL takes less at once, from 3.2 on
            co_await test::eventually(
                [&] { return ::ioctl(link.peer.descriptor(), TIOCOUTQ, &unsent) == 0 && unsent == 0; });
            link.peer.reset();
            const std::string received = co_await reading.join();
            CHECK(received == std::string(40'000, 'd'));
            const std::error_code end = co_await error_of(link.reader.read(1));
            CHECK(end == asio::error::connection_reset);
            CHECK(link.writer.is_closing());
        });
}

TEST_CASE("reader: no record is lost behind one that may be a close_notify, with which KeyUpdates end the turn")
{
    for (int updates = 590; updates <= 620; updates += 5) // of 27 bytes: somewhere here the turn's budget ends
        test::run(
            [updates]() -> awaitable<void>
            {
                raw_link link = co_await link_over_socket(options_of(true));
                const std::string sent = link.peer.tls_unsent(
                    [&]
                    {
                        for (int i = 0; i < updates; ++i)
                            link.peer.key_update(false);
                        for (const std::string_view record : {"ab", "cd", "efgh"})
                            link.peer.tls_write(record);
                    });
                auto sending = test::run_in_thread([&] { link.peer.send_all(sent); });
                co_await test::joined(std::move(sending));
                CAPTURE(updates);
                std::string received(8, '\0');
                std::size_t size = co_await link.reader.readinto(std::span(received).first(2));
                link.peer.tls_write("ij");
                while (size < received.size())
                    size += co_await link.reader.readinto(std::span(received).subspan(size, 2));
                CHECK(received == "abcdefgh");
            });
}

TEST_CASE("reader: a peer that talks while it is streamed to is heard, with an operation_timeout too")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options = options_of(tls);
            options.operation_timeout = 30s;
            raw_link link = co_await link_over_socket(options);
            const std::string sent = test::pattern(9).bytes(0, 32 * 1024 * 1024);
            constexpr int lines = 64;
            auto talking = test::run_in_thread(
                [&]
                {
                    std::string received;
                    for (int i = 0; i < lines; ++i)
                    {
                        received += link.receive(sent.size() / lines);
                        link.send("line\n");
                    }
                    return received;
                });
            int heard = 0;
            const auto listening = test::spawn(executor,
                                               [&]() -> awaitable<void>
                                               {
                                                   for (; heard < lines; ++heard)
                                                   {
                                                       const std::string line = co_await link.reader.readline();
                                                       CHECK(line == "line\n");
                                                   }
                                               });
            for (std::size_t at = 0; at < sent.size(); at += sent.size() / 64)
            {
                link.writer.write(std::string_view(sent).substr(at, sent.size() / 64));
                co_await link.writer.drain();
            }
            const std::string received = co_await test::joined(std::move(talking));
            CHECK(received == sent);
            co_await listening.join();
            CHECK(heard == lines);
        });
}

TEST_CASE("reader: what comes while others have their turn is received without a call in vain")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_over_socket(options_of(tls));
            co_await read_lines(link, 10, 0);
            receives = {};
            co_await read_lines(link, 100, 0);
            CHECK(receives.in_vain == 0);
            CHECK(receives.calls == 100);
        });
}

TEST_CASE("reader: a coroutine on a strand goes on there, whatever its reads waited for")
{
    test::run(
        []() -> awaitable<void>
        {
            const asio::any_io_executor executor = co_await asio::this_coro::executor;
            const asio::strand<asio::any_io_executor> strand(executor);
            const auto talk = [&]() -> awaitable<void>
            {
                auto sockets = test::tcp_pair(strand);
                auto [reader, writer] = co_await us::open_connection(std::move(sockets.first));
                for (int i = 0; i < 20; ++i)
                {
                    asio::post(executor, [&] { asio::write(sockets.second, asio::buffer("line\n", 5)); });
                    const std::string line = co_await reader.readline();
                    CHECK(line == "line\n");
                    CHECK(strand.running_in_this_thread());
                }
            };
            const auto talking = test::spawn(strand, talk);
            co_await talking.join();
        });
}

TEST_CASE("reader: where nothing comes meanwhile, few reads do more than to wait")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_over_socket(options_of(tls));
            co_await read_lines(link, 200, 10);
            receives = {};
            co_await read_lines(link, 200, 10);
#ifdef ASIO_HAS_EPOLL // without it a wait makes no call
            CHECK(receives.in_vain >= 200);
#endif
            CHECK(receives.in_vain <= 205);
        });
}

TEST_CASE("reader: a read that lets others have their turn can be cancelled, and its connection closed")
{
    const bool tls = GENERATE(false, true);
    const std::string what = GENERATE("cancel", "close", "abort");
    const bool is_limited = GENERATE(false, true);
    CAPTURE(tls, what, is_limited);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_over_socket(options_of(tls));
            if (is_limited)
                link.writer.set_operation_timeout(1h);
            co_await read_lines(link, 10, 0);
            receives = {};
            auto pending = co_await begin_readline(link.reader);
            REQUIRE(receives.calls == 0); // it does not wait yet
            if (what == "cancel")
                pending.cancel();
            else if (what == "close")
                link.writer.close();
            else
                link.writer.abort();
            const std::error_code error = co_await error_of(pending.join());
            if (what == "cancel")
            {
                CHECK(error == asio::error::operation_aborted);
                co_await read_lines(link, 3, 0);
                co_return;
            }
            CHECK(error == us::errc::connection_closed);
            if (what == "close")
                link.end();
            co_await link.writer.wait_closed();
        });
}

TEST_CASE("is_tls: of a reader and a writer, false in plain text, true after the upgrade")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link plain = co_await link_with_raw_peer();
            CHECK(!plain.reader.is_tls());
            CHECK(!plain.writer.is_tls());
            raw_link tls = co_await link_with_raw_peer(options_of(true));
            CHECK(tls.reader.is_tls());
            CHECK(tls.writer.is_tls());
        });
}

TEST_CASE("reader: a copy reads from the same connection")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_that_sent("one\ntwo\n", 0);
            us::stream_reader copy = link.reader;
            const std::string one = co_await copy.readline();
            const std::string two = co_await link.reader.readline();
            CHECK(one == "one\n");
            CHECK(two == "two\n");
        });
}

TEST_CASE("reader: while nobody reads, a peer that floods is stopped by the kernel's buffers")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [=]() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(options_of(tls, 1000));
            const int size = 64 * 1024;
            ::setsockopt(*link.writer.get_extra_info<"socket">(), SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
            ::setsockopt(link.peer.descriptor(), SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
            const std::string junk(8 * 1024 * 1024, 'x');
            const std::size_t sent = co_await test::flood(link.peer, junk);
            CHECK(sent < junk.size());
            CHECK(sent > 0);
            link.peer.reset();
        });
}

TEST_CASE("reader: a record without end takes no more memory than the limit and one receive")
{
    test::run(
        []() -> awaitable<void>
        {
            raw_link link = co_await link_with_raw_peer(options_of(false, 1000));
            link.send(std::string(200'000, 'x'));
            const auto error = co_await exception_of<us::limit_overrun_error>(link.reader.readuntil("\r\n"));
            CHECK(error.consumed() > 1000);
            CHECK(error.consumed() <= 1000 + 64 * 1024);
            const auto again = co_await exception_of<us::limit_overrun_error>(link.reader.readuntil("\r\n"));
            CHECK(again.consumed() == error.consumed());
        });
}

namespace
{

/// What a reader must do with the rest of what a peer sent and ended.
struct reader_model
{
    std::string_view rest;
    std::size_t limit;

    struct match
    {
        std::size_t begin;
        std::size_t end;
    };

    std::optional<match> find(const std::vector<std::string_view>& separators) const
    {
        for (std::size_t end = 1; end <= rest.size(); ++end)
            for (const std::string_view separator : separators)
                if (rest.substr(0, end).ends_with(separator))
                    return match{end - separator.size(), end};
        return std::nullopt;
    }
};

awaitable<void> compare_with_model(unsigned seed, std::size_t chunk, bool tls)
{
    std::mt19937 random(seed);
    const auto below = [&random](std::size_t n) { return std::size_t(random() % n); };
    std::string sent;
    while (sent.size() < 1500)
    {
        // Never two newlines in a row, so that it can be told whether one was dropped.
        const char next = "aab;\r\n"[below(6)];
        sent += next == '\n' && sent.ends_with('\n') ? 'a' : next;
    }
    const std::size_t limit = 1 + below(12);
    raw_link link = co_await link_with_raw_peer(options_of(tls, limit), chunk);
    if (tls)
        for (std::string_view left = sent; !left.empty();)
        {
            const std::size_t size = std::min(left.size(), 1 + below(100));
            link.send(left.substr(0, size));
            left.remove_prefix(size);
        }
    else
        link.send(sent);
    link.end();

    reader_model model{sent, limit};
    us::stream_reader& reader = link.reader;
    while (!model.rest.empty())
    {
        const std::size_t offset = sent.size() - model.rest.size();
        CAPTURE(offset);
        const std::size_t choice = below(6);
        if (choice == 0)
        {
            const std::size_t size = 1 + below(20);
            const std::string got = co_await reader.read(size);
            REQUIRE(!got.empty());
            REQUIRE(got.size() <= size);
            REQUIRE(model.rest.starts_with(got));
            model.rest.remove_prefix(got.size());
            continue;
        }
        if (choice == 1)
        {
            const std::size_t size = below(40);
            std::string got;
            bool incomplete = false;
            try
            {
                got = co_await reader.readexactly(size);
            }
            catch (const us::incomplete_read_error& error)
            {
                incomplete = true;
                got = error.partial();
            }
            REQUIRE(incomplete == (size > model.rest.size()));
            REQUIRE(got == model.rest.substr(0, size));
            model.rest.remove_prefix(got.size());
            continue;
        }
        static const std::vector<std::vector<std::string_view>> choices = {
            {"\n"}, {"\n"}, {"\r\n"}, {";", "aab"}, {"ab", "a;b", "b\r"}};
        const bool line = choice == 2;
        const std::vector<std::string_view>& separators = choices[choice - 1];
        std::size_t longest = 0;
        for (const std::string_view separator : separators)
            longest = std::max(longest, separator.size());
        const auto match = model.find(separators);
        const bool overrun = match ? match->begin > limit : model.rest.size() + 1 > limit + longest;
        std::string got;
        std::optional<std::size_t> consumed;
        bool incomplete = false;
        try
        {
            if (line)
                got = co_await reader.readline();
            else
                got = co_await reader.readuntil(std::span(separators));
        }
        catch (const us::limit_overrun_error& error)
        {
            consumed = error.consumed();
        }
        catch (const us::incomplete_read_error& error)
        {
            incomplete = true;
            got = error.partial();
        }
        REQUIRE(consumed.has_value() == overrun);
        if (!overrun)
        {
            REQUIRE(incomplete == (!match && !line));
            REQUIRE(got == model.rest.substr(0, match ? match->end : model.rest.npos));
            model.rest.remove_prefix(got.size());
            continue;
        }
        REQUIRE(*consumed > limit);
        REQUIRE(*consumed <= (match ? match->begin : model.rest.size()));
        if (line)
        {
            model.rest.remove_prefix(*consumed);
            const std::string next = co_await reader.read(1);
            if (model.rest.starts_with('\n') && next != "\n")
                model.rest.remove_prefix(1);
            REQUIRE(next == model.rest.substr(0, 1));
            model.rest.remove_prefix(next.size());
        }
    }
    const std::string end = co_await reader.read();
    REQUIRE(end.empty());
    REQUIRE(reader.at_eof());
}

} // namespace

TEST_CASE("reader: random reads agree with a model, however the bytes arrive")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    for (unsigned seed = 1; seed <= (tls ? 4u : 20u); ++seed)
    {
        CAPTURE(chunk, tls, seed);
        test::run([=] { return compare_with_model(seed, chunk, tls); });
    }
}
