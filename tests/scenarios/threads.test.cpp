// One io_context, run by several threads. Meant for ThreadSanitizer.

#include "support/catch.hpp"
#include "support/contexts.hpp"
#include "support/deadline.hpp"
#include "support/descriptors.hpp"
#include "support/dice.hpp"
#include "support/echo_server.hpp"
#include "support/failure.hpp"
#include "support/flood.hpp"
#include "support/pattern.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/temporary_directory.hpp"
#include "support/thread.hpp"

#include <asio/awaitable.hpp>
#include <asio/bind_executor.hpp>
#include <asio/co_spawn.hpp>
#include <asio/error.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <asio/ssl/context.hpp>
#include <asio/strand.hpp>
#include <asio/this_coro.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <future>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

namespace us = upgradeable_streams;
using namespace std::chrono_literals;
using test::dice;

namespace
{

constexpr int thread_count = 4;
constexpr int client_count = 64;
constexpr std::size_t walk_count = 24; ///< At once.
constexpr int lines = test::under_sanitizer ? 20 : 100;

/// The io_context behind the executor of a coroutine.
asio::awaitable<asio::io_context*> this_io_context()
{
    const auto executor = co_await asio::this_coro::executor;
    co_return &static_cast<asio::io_context&>(asio::query(executor, asio::execution::context));
}

/// Starts a server whose handlers run at the same time; that of a coroutine on a strand has one run at a time.
asio::awaitable<us::server> start_on_threads(us::connection_handler handler, us::server_options options = {})
{
    asio::io_context& io = *co_await this_io_context();
    us::server made =
        co_await asio::co_spawn(io, us::start_server(handler, "127.0.0.1", 0, options), asio::use_awaitable);
    co_return made;
}

/// Exchanges lines in plain text, upgrades, and exchanges lines in TLS.
asio::awaitable<int> talk(std::uint16_t port, asio::ssl::context& ssl)
{
    int answers = 0;
    auto [reader, writer] = co_await us::open_connection(
        "127.0.0.1", port, {.ssl = &ssl, .upgradeable = true, .server_hostname = "localhost"});
    for (const bool secure : {false, true})
    {
        if (secure)
        {
            writer.write("STARTTLS\n");
            std::tie(reader, writer) = co_await writer.start_tls();
        }
        for (int i = 0; i < lines; ++i)
        {
            const std::string line = std::string(std::size_t(i * 37), 'x') + "\n";
            writer.write(line);
            const std::string answer = co_await reader.readline();
            answers += answer == line;
        }
    }
    writer.close();
    co_await writer.wait_closed();
    co_return answers;
}

} // namespace

TEST_CASE("threads: clients on strands of their own upgrade and talk while certificates change")
{
    test::run_threads(
        thread_count,
        []() -> asio::awaitable<void>
        {
            asio::ssl::context ssl[] = {test::make_server_context(), test::make_server_context()};
            asio::ssl::context client_ssl = test::make_client_context();
            const test::error_log errors;
            us::server server = co_await start_on_threads(
                test::echo, {.ssl = &ssl[0], .upgradeable = true, .max_handshakes = 8, .error_handler = errors});
            const std::uint16_t port = server.sockets().at(0).port;
            asio::io_context& io = *co_await this_io_context();

            std::vector<test::task<int>> clients;
            for (int i = 0; i < client_count; ++i)
            {
                clients.push_back(test::spawn(asio::make_strand(io), [&, port] { return talk(port, client_ssl); }));
                server.set_ssl_context(ssl[i % 2]);
            }
            const auto serving = test::spawn(asio::make_strand(io), [&] { return server.serve_forever(); });
            const auto watching = test::spawn(asio::make_strand(io),
                                              [&]() -> asio::awaitable<int>
                                              {
                                                  int seen = 0;
                                                  const auto look = [&]
                                                  {
                                                      seen += int(server.sockets().size());
                                                      server.set_ssl_context(ssl[seen % 2]);
                                                      return !server.is_serving();
                                                  };
                                                  co_await test::eventually(look);
                                                  co_return seen;
                                              });
            for (const auto& client : clients)
            {
                const int answers = co_await client.join();
                CHECK(answers == 2 * lines);
            }
            server.close();
            co_await serving.join();
            co_await server.wait_closed();
            const int seen = co_await watching.join();
            CHECK(seen > 0);
            CHECK(errors.size() == 0);
        });
}

TEST_CASE("threads: a server that closes under its clients' hands ends every one of them")
{
    const bool abort = GENERATE(false, true);
    test::run_threads(
        thread_count,
        [abort]() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            asio::ssl::context client_ssl = test::make_client_context();
            const test::error_log errors;
            us::server server = co_await start_on_threads(
                test::echo, {.ssl = &server_ssl, .upgradeable = true, .error_handler = errors});
            const std::uint16_t port = server.sockets().at(0).port;
            asio::io_context& io = *co_await this_io_context();

            std::atomic<int> talking = 0;
            const auto until_closed = [&]() -> asio::awaitable<void>
            {
                auto [reader, writer] = co_await us::open_connection(
                    "127.0.0.1", port, {.ssl = &client_ssl, .upgradeable = true, .server_hostname = "localhost"});
                writer.write("STARTTLS\n");
                std::tie(reader, writer) = co_await writer.start_tls();
                bool counted = false;
                for (;;)
                {
                    writer.write("hello\n");
                    const std::string line = co_await reader.readline();
                    if (line.empty())
                        co_return;
                    if (!std::exchange(counted, true))
                        ++talking;
                }
            };
            std::vector<test::task<void>> clients;
            for (int i = 0; i < client_count; ++i)
                clients.push_back(test::spawn(asio::make_strand(io), until_closed));
            co_await test::eventually([&] { return talking == client_count; });
            server.close();
            if (abort)
                server.abort_clients();
            else
                server.close_clients();
            co_await server.wait_closed();
            for (const auto& client : clients)
            {
                try
                {
                    co_await client.join();
                }
                catch (const std::system_error&) // a write may meet the closed connection first
                {
                }
            }
        });
}

TEST_CASE("threads: reads that are cancelled at any moment, those that let others have their turn too")
{
    test::run_threads(
        thread_count,
        []() -> asio::awaitable<void>
        {
            std::atomic<int> cancelled = 0;
            const auto cancel_reads = [&](us::stream_reader reader, us::stream_writer) -> asio::awaitable<void>
            {
                const auto executor = co_await asio::this_coro::executor;
                for (int i = 0; i < 1000; ++i)
                {
                    const auto reading = test::spawn(executor, [&] { return reader.readline(); });
                    co_await test::turns(i % 3);
                    reading.cancel();
                    const std::error_code error = co_await test::error_of(reading.join());
                    cancelled += error == asio::error::operation_aborted;
                }
            };
            us::server server = co_await start_on_threads(cancel_reads);
            const std::uint16_t port = server.sockets().at(0).port;
            asio::io_context& io = *co_await this_io_context();
            std::vector<test::task<std::string>> clients;
            for (int i = 0; i < thread_count; ++i)
                clients.push_back(test::spawn(asio::make_strand(io), [&] { return test::ask("127.0.0.1", port, ""); }));
            for (const auto& client : clients)
                co_await client.join();
            CHECK(cancelled == thread_count * 1000);
            server.close();
            co_await server.wait_closed();
        });
}

TEST_CASE("threads: connections that come and go while the server is closed from several threads")
{
    test::run_threads(thread_count,
                      []() -> asio::awaitable<void>
                      {
                          us::server server = co_await start_on_threads(test::echo, {.max_connections = 8});
                          const std::uint16_t port = server.sockets().at(0).port;
                          asio::io_context& io = *co_await this_io_context();
                          std::atomic<int> served = 0;
                          const auto ask_until_refused = [&]() -> asio::awaitable<void>
                          {
                              try
                              {
                                  for (;;)
                                  {
                                      const std::string answer = co_await test::ask("127.0.0.1", port, "hello\n");
                                      if (answer.empty())
                                          co_return;
                                      if (++served > 200)
                                          server.close();
                                  }
                              }
                              catch (const std::system_error&) // refused, or reset in the backlog
                              {
                              }
                          };
                          std::vector<test::task<void>> clients;
                          for (int i = 0; i < 2 * thread_count; ++i)
                              clients.push_back(test::spawn(asio::make_strand(io), ask_until_refused));
                          for (const auto& client : clients)
                              co_await client.join();
                          CHECK(served > 200);
                          CHECK_FALSE(server.is_serving());
                          co_await server.wait_closed();
                      });
}

TEST_CASE("threads: handlers write to each other's connections where those are used")
{
    constexpr int members = 8;
    test::run_threads(
        thread_count,
        []() -> asio::awaitable<void>
        {
            std::mutex mutex;
            std::vector<us::stream_writer> known;
            const auto chat = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                co_await reader.readline();
                std::tie(reader, writer) = co_await writer.start_tls();
                {
                    const std::lock_guard lock(mutex);
                    known.push_back(writer);
                }
                for (std::string line; !(line = co_await reader.readline()).empty();)
                {
                    const std::lock_guard lock(mutex);
                    for (const us::stream_writer& each : known)
                        asio::post(each.get_executor(),
                                   [to = each, line]() mutable
                                   {
                                       if (!to.is_closing())
                                           to.write(line);
                                   });
                }
            };
            us::server server = co_await start_on_threads(chat, {.ssl = &test::server_context(), .upgradeable = true});
            const std::uint16_t port = server.sockets().at(0).port;
            asio::io_context& io = *co_await this_io_context();
            const auto member = [port]() -> asio::awaitable<int>
            {
                auto [reader, writer] = co_await us::open_connection(
                    "127.0.0.1", port,
                    {.ssl = &test::client_context(), .upgradeable = true, .server_hostname = "localhost"});
                writer.write("STARTTLS\n");
                std::tie(reader, writer) = co_await writer.start_tls();
                int own = 0;
                for (int i = 0; i < lines; ++i)
                {
                    const std::string said = std::to_string(i) + "\n";
                    writer.write(said);
                    own += !(co_await reader.readline()).empty();
                }
                co_return own;
            };
            std::vector<test::task<int>> chatting;
            for (int i = 0; i < members; ++i)
                chatting.push_back(test::spawn(asio::make_strand(io), member));
            for (auto& each : chatting)
            {
                const int heard = co_await each.join();
                CHECK(heard == lines);
            }
            server.close();
            co_await server.wait_closed();
        });
}

TEST_CASE("threads: the last handle of a connection goes on any thread")
{
    test::run_threads(
        thread_count,
        []() -> asio::awaitable<void>
        {
            using pair = std::pair<us::stream_reader, us::stream_writer>;
            std::mutex mutex;
            std::vector<pair> kept;
            std::atomic<int> answers = 0;
            auto keep = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const std::string line = co_await reader.readline();
                writer.write(line);
                const std::lock_guard lock(mutex);
                kept.emplace_back(std::move(reader), std::move(writer));
            };
            us::server server = co_await start_on_threads(keep);
            const std::uint16_t port = server.sockets().at(0).port;
            asio::io_context& io = *co_await this_io_context();
            const auto forget = [&]() -> asio::awaitable<void>
            {
                for (int i = 0; i < client_count; ++i)
                {
                    const std::string answer = co_await test::ask("127.0.0.1", port, "hello\n");
                    answers += answer == "hello\n";
                    std::vector<pair> forgotten;
                    const std::lock_guard lock(mutex);
                    forgotten.swap(kept);
                }
            };
            std::vector<test::task<void>> clients;
            for (int i = 0; i < thread_count; ++i)
                clients.push_back(test::spawn(asio::make_strand(io), forget));
            for (const auto& client : clients)
                co_await client.join();
            CHECK(answers == thread_count * client_count);
            server.close();
            co_await server.wait_closed();
        });
}

TEST_CASE("threads: a read that is cancelled while its line comes leaves the line to the next")
{
    test::run_threads(
        thread_count,
        []() -> asio::awaitable<void>
        {
            constexpr int rounds = 20;
            std::optional<test::raw_peer> peer;
            std::atomic<bool> is_connected = false;
            std::vector<std::error_code> outcomes;
            std::vector<std::string> left;
            const auto is_taken = [](int descriptor)
            {
                int size = 0;
                return ::ioctl(descriptor, FIONREAD, &size) == 0 && size == 0;
            };
            const auto cancel_reads = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const auto executor = co_await asio::this_coro::executor;
                const int descriptor = *writer.get_extra_info<"socket">();
                co_await test::eventually([&] { return is_connected.load(); });
                for (int i = 0; i < rounds; ++i)
                {
                    const auto reading = test::spawn(executor, [&] { return reader.readline(); });
                    co_await test::turns();
                    // The line is received on another thread, and waits there for the strand on which this runs.
                    peer->send_all("line\n");
                    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
                    while (!is_taken(descriptor) && std::chrono::steady_clock::now() < end)
                    {
                    }
                    reading.cancel();
                    std::error_code outcome;
                    try
                    {
                        left.push_back(co_await reading.join());
                    }
                    catch (const std::system_error& error)
                    {
                        outcome = error.code();
                    }
                    outcomes.push_back(outcome);
                    if (outcome)
                        left.push_back(co_await reader.readline());
                }
            };
            us::server server = co_await start_on_threads(cancel_reads);
            peer.emplace(test::raw_peer::connect(test::endpoint_of(server)));
            is_connected = true;
            const std::string rest = co_await test::joined(test::run_in_thread([&] { return peer->recv_all(); }));
            server.close();
            co_await server.wait_closed();
            CHECK(rest.empty());
            const std::error_code aborted = asio::error::operation_aborted;
            CHECK(outcomes == std::vector<std::error_code>(rounds, aborted));
            CHECK(left == std::vector<std::string>(rounds, "line\n"));
        });
}

TEST_CASE("threads: peers that ask for KeyUpdates and read no more than they have to, while both sides write")
{
    test::run_threads(
        thread_count,
        []() -> asio::awaitable<void>
        {
            constexpr int updates = 24'000; // whose replies are more than the sockets hold, and than is kept of them
            std::atomic<int> heard = 0;
            const auto write_beside = [&heard](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const auto executor = co_await asio::this_coro::executor;
                test::shrink_buffers(*writer.get_extra_info<"socket">());
                const auto reading = test::spawn(executor, [&] { return reader.readline(); });
                while (!reading.done())
                {
                    writer.write("x");
                    co_await writer.drain();
                    co_await test::turns(1);
                }
                heard += co_await reading.join() == "bye\n";
                writer.abort();
            };
            asio::ssl::context ssl = test::make_server_context();
            us::server server = co_await start_on_threads(write_beside, {.ssl = &ssl});
            const auto talk = [endpoint = test::endpoint_of(server)]
            {
                test::raw_peer peer = test::raw_peer::connect(endpoint);
                test::shrink_buffers(peer.descriptor());
                peer.tls_connect(test::localhost_client());
                const std::string sent = peer.tls_unsent(
                    [&]
                    {
                        for (int i = 0; i < updates; ++i)
                            peer.key_update(true);
                        peer.tls_write("bye\n");
                    });
                int patience = 300; // until the server certainly reads no more
                for (std::string_view rest = sent; !rest.empty();)
                {
                    const ssize_t size =
                        ::send(peer.descriptor(), rest.data(), rest.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
                    rest.remove_prefix(size > 0 ? std::size_t(size) : 0);
                    pollfd writable = {peer.descriptor(), POLLOUT, 0};
                    if (size > 0 || ::poll(&writable, 1, patience) > 0)
                        continue;
                    patience = 1;
                    peer.recv_some(4096);
                }
                try
                {
                    while (!peer.recv_some(4096).empty())
                    {
                    }
                }
                catch (const std::system_error&) // reset
                {
                }
            };
            std::vector<std::future<void>> talking;
            for (int i = 0; i < thread_count; ++i)
                talking.push_back(test::run_in_thread(talk));
            for (auto& each : talking)
                co_await test::joined(std::move(each));
            server.close();
            co_await server.wait_closed();
            CHECK(heard == thread_count);
        });
}

// Random walks of many connections at once: from plain text to TLS, to TLS within TLS and back, with reads that are
// cancelled or late, and ends of many kinds, on other threads too. What came and went is a function of its position.

namespace
{

/// What a client (0) and a handler (1) do with a connection.
struct joint_walk
{
    explicit joint_walk(std::uint64_t s) : seed(s), ending(ends(dice(s).below(5))) {}

    std::size_t speaks_last() const { return ending == client_closes || ending == client_drops ? 0 : 1; }
    test::pattern pattern_of(std::size_t side) const { return test::pattern(2 * seed + side); }

    const std::uint64_t seed;
    const enum ends { client_closes, client_drops, handler_returns, handler_ends_elsewhere, aborted } ending;
    std::array<std::atomic<std::uint64_t>, 2> read{};
    std::array<std::atomic<std::uint64_t>, 2> written{};
    std::atomic<bool> is_cut = false;
};

asio::awaitable<void> send(joint_walk& w, std::size_t side, us::stream_writer writer, std::size_t size)
{
    dice random(3 * w.seed + size);
    while (size > 0)
    {
        const std::size_t part = random.size(size);
        const std::string bytes = w.pattern_of(side).bytes(w.written[side], part);
        writer.write(bytes);
        w.written[side] += part;
        size -= part;
        try
        {
            co_await writer.drain();
        }
        catch (const std::system_error& error)
        {
            if (error.code() != us::errc::operation_timeout)
                throw;
        }
    }
}

asio::awaitable<void> receive(joint_walk& w, std::size_t side, us::stream_reader reader, us::stream_writer writer,
                              std::size_t size)
{
    const auto executor = co_await asio::this_coro::executor;
    dice random(5 * w.seed + size);
    while (size > 0)
    {
        if (random.one_in(8))
            writer.set_operation_timeout(std::chrono::microseconds(100 + random.below(1000)));
        else if (random.one_in(4))
            writer.set_operation_timeout({});
        const auto read = [reader, part = random.size(size), exactly = random.one_in(2)]() mutable
        { return exactly ? reader.readexactly(part) : reader.read(part); };
        const auto reading = test::spawn(executor, read);
        if (random.one_in(3))
        {
            co_await test::turns(int(random.below(4)));
            reading.cancel();
        }
        std::string bytes;
        try
        {
            bytes = co_await reading.join();
        }
        catch (const std::system_error& error)
        {
            if (error.code() != asio::error::operation_aborted && error.code() != us::errc::operation_timeout)
                throw;
            continue;
        }
        if (bytes.empty())
            throw std::system_error(asio::error::eof);
        if (w.pattern_of(1 - side).check(w.read[side], bytes))
            throw test::failure("other bytes were received");
        w.read[side] += bytes.size();
        size -= bytes.size();
    }
    writer.set_operation_timeout({});
}

asio::awaitable<void> exchange(joint_walk& w, std::size_t side, us::stream_reader reader, us::stream_writer writer,
                               std::array<std::size_t, 2> sizes)
{
    const auto executor = co_await asio::this_coro::executor;
    const auto sending =
        test::spawn(executor, [&w, side, writer, sizes] { return send(w, side, writer, sizes[side]); });
    std::exception_ptr error;
    try
    {
        co_await receive(w, side, reader, writer, sizes[1 - side]);
    }
    catch (...)
    {
        error = std::current_exception();
        writer.abort();
    }
    co_await sending.join();
    if (error)
        std::rethrow_exception(error);
}

asio::awaitable<void> take(joint_walk& w, std::size_t side, us::stream_reader reader, us::stream_writer writer,
                           asio::thread_pool& elsewhere)
{
    dice random(w.seed); // the same on both sides
    bool is_inner = false;
    for (std::size_t i = random.below(4); i < 5; ++i)
    {
        const std::array<std::size_t, 2> sizes = {random.size(100'000), random.size(100'000)};
        const std::size_t aborts = random.below(2);
        if (w.ending == w.aborted && aborts == side && !w.is_cut.exchange(true))
        {
            const auto abort = [writer] { writer.is_closing() ? void() : us::stream_writer(writer).abort(); };
            asio::post(elsewhere, [abort, on = writer.get_executor()] { asio::post(on, abort); });
        }
        co_await exchange(w, side, reader, writer, sizes);
        const std::size_t next = random.below(4);
        const bool begins_inner = next == 1 && reader.is_tls() && !std::exchange(is_inner, true);
        if (begins_inner)
            std::tie(reader, writer) = co_await writer.start_tls<us::within_tls>({.server_hostname = "localhost"});
        else if (next > 0 && reader.is_tls())
            std::tie(reader, writer) = co_await writer.stop_tls();
        else if (next > 0)
            std::tie(reader, writer) = co_await writer.start_tls({.server_hostname = "localhost"});
    }
    const std::size_t last = random.size(200'000);
    if (w.speaks_last() != side)
    {
        co_await receive(w, side, reader, writer, last);
        const std::string rest = co_await reader.read();
        if (!rest.empty())
            throw test::failure("more was received than was sent");
        co_return;
    }
    co_await send(w, side, writer, last);
    if (w.ending == w.handler_ends_elsewhere)
    {
        auto there = asio::bind_executor(elsewhere.get_executor(), asio::use_awaitable);
        co_await asio::post(std::move(there));
    }
    else if (w.ending == w.client_drops)
        asio::post(elsewhere, [r = std::move(reader), held = std::move(writer)] {});
    else if (w.ending == w.client_closes)
    {
        writer.close();
        co_await writer.wait_closed();
    }
}

/// As `take`, where a walk that was cut may end with any error.
asio::awaitable<void> take_to_an_end(joint_walk& w, std::size_t side, us::stream_reader reader,
                                     us::stream_writer writer, asio::thread_pool& elsewhere)
{
    try
    {
        co_await take(w, side, std::move(reader), std::move(writer), elsewhere);
    }
    catch (const std::system_error&)
    {
        if (!w.is_cut)
            throw;
    }
}

asio::awaitable<void> run_walks(std::uint64_t seed, const std::string& path)
{
    dice random(seed);
    asio::thread_pool elsewhere(1);
    std::deque<joint_walk> walks;
    for (std::size_t i = 0; i < walk_count; ++i)
        walks.emplace_back(walk_count * seed + i);
    const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
    {
        const std::string line = co_await reader.readline();
        joint_walk& w = walks.at(std::stoul(line));
        co_await take_to_an_end(w, 1, std::move(reader), std::move(writer), elsewhere);
    };
    const test::error_log errors;
    const us::server_options options = {.ssl = &test::server_context(),
                                        .upgradeable = true,
                                        .detect_tls = random.one_in(2),
                                        .max_connections = 4 + random.below(30),
                                        .max_handshakes = 1 + random.below(4),
                                        .error_handler = errors};
    const bool is_unix = random.one_in(2);
    asio::io_context& io = *co_await this_io_context();
    auto starting =
        is_unix ? us::start_unix_server(handle, path, options) : us::start_server(handle, "127.0.0.1", 0, options);
    us::server server = co_await asio::co_spawn(io, std::move(starting), asio::use_awaitable);
    const std::uint16_t port = server.sockets().at(0).port;
    const auto connect = [&](joint_walk& w, std::size_t index) -> asio::awaitable<void>
    {
        const us::connection_options how = {
            .ssl = &test::client_context(), .upgradeable = true, .server_hostname = "localhost"};
        auto opening = is_unix ? us::open_unix_connection(path, how) : us::open_connection("127.0.0.1", port, how);
        auto [reader, writer] = co_await std::move(opening);
        const std::string line = std::to_string(index) + "\n";
        writer.write(line);
        co_await take_to_an_end(w, 0, std::move(reader), std::move(writer), elsewhere);
    };
    std::vector<test::task<void>> clients;
    for (std::size_t i = 0; i < walk_count; ++i)
    {
        clients.push_back(test::spawn(asio::make_strand(io), [&, i] { return connect(walks[i], i); }));
        server.set_ssl_context(test::server_context());
    }
    for (const auto& client : clients)
        co_await client.join();
    const auto is_read = [](const joint_walk& w)
    { return w.is_cut || (w.read[0] == w.written[1] && w.read[1] == w.written[0]); };
    co_await test::eventually([&] { return errors.size() > 0 || std::ranges::all_of(walks, is_read); });
    co_await server.shutdown(10s);
    elsewhere.join();
    if (errors.size() > 0)
        throw test::failure("a handler failed: " + errors.entries()[0].what);
}

} // namespace

TEST_CASE("threads: of many connections that walk at random no byte is lost, and nothing is left")
{
    const test::temporary_directory directory;
    const std::string path = directory.file("socket");
    const auto end = std::chrono::steady_clock::now() + 6s;
    std::optional<std::size_t> descriptors; // of the second walk on: the first has made what lasts
    for (std::uint64_t seed = 1; seed <= 40 && std::chrono::steady_clock::now() < end; ++seed)
    {
        CAPTURE(seed);
        REQUIRE_NOTHROW(test::run_threads(thread_count, [&] { return run_walks(seed, path); }));
        const std::size_t now = test::open_descriptors();
        REQUIRE(now == descriptors.value_or(now));
        descriptors = now;
    }
}
