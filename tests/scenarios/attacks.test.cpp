// What must not happen, whatever a peer does: a server or a client of the library against a raw socket and OpenSSL.

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/chunked_stream.hpp"
#include "support/deadline.hpp"
#include "support/echo_server.hpp"
#include "support/flood.hpp"
#include "support/memory.hpp"
#include "support/openssl.hpp"
#include "support/operations.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/socket_pair.hpp"
#include "support/stream_links.hpp"
#include "support/task.hpp"
#include "support/thread.hpp"
#include "support/tls_records.hpp"
#include "support/wire_tap.hpp"

#include <asio/awaitable.hpp>
#include <asio/ssl/context.hpp>
#include <asio/ssl/error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <future>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <poll.h>
#include <sys/ioctl.h>

namespace us = upgradeable_streams;
using asio::awaitable;
using namespace std::string_literals;
using us::tls_role;

namespace
{

/// What a client says before it upgrades, or a server.
std::string lead_of(tls_role role)
{
    return role == tls_role::client ? "STARTTLS\n" : "220 go\n";
}

/// One side of a connection under attack: what it does, and what it went through.
struct victim
{
    tls_role role;

    /// What it does once it has upgraded; it sends lines back unless told otherwise.
    std::function<awaitable<void>(us::stream_reader, us::stream_writer)> talk = [this](auto reader, auto writer)
    { return echo(std::move(reader), std::move(writer)); };

    std::promise<void> upgrading{};
    std::vector<std::string> lines{}; ///< That any of its readers gave.
    std::error_code error{};          ///< What ended it.
    std::string sent{};               ///< On the wire, without its lead.

    tls_role attacker() const { return role == tls_role::client ? tls_role::server : tls_role::client; }

    awaitable<void> echo(us::stream_reader reader, us::stream_writer writer)
    {
        for (;;)
        {
            std::string line = co_await reader.readline();
            if (line.empty())
                co_return;
            writer.write(line);
            lines.push_back(std::move(line));
        }
    }

    awaitable<void> live(us::stream_reader reader, us::stream_writer writer)
    {
        if (role == tls_role::client)
            writer.write(lead_of(role));
        std::string line = co_await reader.readline();
        lines.push_back(std::move(line));
        us::stream_reader old_reader = reader;
        us::stream_writer old_writer = writer;
        upgrading.set_value();
        std::error_code failure;
        try
        {
            std::tie(reader, writer) = co_await writer.start_tls();
        }
        catch (const std::system_error& e)
        {
            failure = e.code();
        }
        const auto operations = test::operations_of(old_reader, old_writer);
        for (const auto& [name, operation] : operations)
            co_await test::error_of(operation());
        try
        {
            if (!failure)
                co_return co_await talk(reader, writer);
        }
        catch (const std::system_error& e)
        {
            failure = e.code();
        }
        CHECK(writer.is_closing());
        try
        {
            co_await writer.wait_closed();
        }
        catch (const std::system_error& e)
        {
            CHECK(e.code() == failure);
        }
        CHECK_FALSE(writer.get_extra_info<"socket">());
        throw std::system_error(failure);
    }
};

template <typename Attacker>
awaitable<void> attack_server(victim& one, std::size_t chunk, Attacker& attacker)
{
    const auto handle = [&one](us::stream_reader reader, us::stream_writer writer)
    { return one.live(std::move(reader), std::move(writer)); };
    const test::error_log errors;
    us::server server = co_await us::start_server(
        handle, "127.0.0.1", 0, {.ssl = &test::server_context(), .upgradeable = true, .error_handler = errors});
    test::wire_tap tap(co_await asio::this_coro::executor, test::endpoint_of(server), chunk);
    co_await test::joined(test::run_in_thread(
        [&attacker, endpoint = tap.endpoint()]
        {
            auto peer = test::raw_peer::connect(endpoint);
            attacker(peer);
        }));
    server.close();
    co_await server.wait_closed();
    if (errors.size() == 1)
        one.error = errors.entries()[0].code;
    one.sent = tap.server_to_client();
}

template <typename Attacker>
awaitable<void> attack_client(victim& one, std::size_t chunk, Attacker& attacker)
{
    test::raw_listener listener;
    test::wire_tap tap(co_await asio::this_coro::executor, test::loopback(listener.port()), chunk);
    auto attacking = test::run_in_thread(
        [&]
        {
            auto peer = listener.accept();
            attacker(peer);
        });
    auto [reader, writer] =
        co_await us::open_connection("127.0.0.1", tap.port(), {.ssl = &test::client_context(), .upgradeable = true});
    try
    {
        co_await one.live(std::move(reader), std::move(writer));
    }
    catch (const std::system_error& e)
    {
        one.error = e.code();
    }
    co_await test::joined(std::move(attacking));
    const std::string& sent = tap.client_to_server();
    REQUIRE(sent.starts_with(lead_of(one.role)));
    one.sent = sent.substr(lead_of(one.role).size());
}

/// Lets `attacker(peer)`, on a thread, have its way with a server or a client, with `chunk` bytes on the wire at a
/// time.
template <typename Attacker>
void attack(victim& one, std::size_t chunk, Attacker attacker)
{
    if (one.role == tls_role::server)
        test::run([&] { return attack_server(one, chunk, attacker); });
    else
        test::run([&] { return attack_client(one, chunk, attacker); });
}

/// Whether the other side sends something, or hangs up, within a time.
bool is_answered(const test::raw_peer& peer, std::chrono::milliseconds within = {})
{
    pollfd entry{peer.descriptor(), POLLIN, 0};
    return ::poll(&entry, 1, int(within.count())) == 1;
}

void handshake(test::raw_peer& peer, tls_role role, test::tls_settings settings)
{
    if (role == tls_role::server)
        peer.tls_accept(settings);
    else
        peer.tls_connect(settings);
}

test::tls_settings settings_of(tls_role role)
{
    return role == tls_role::server ? test::localhost_server() : test::localhost_client();
}

/// Says in plain text what is left to say, and waits to be thrown out.
void go_on_in_plain_text(test::raw_peer& peer)
try
{
    peer.send_all("PING\n");
    peer.recv_all();
}
catch (const std::system_error& error)
{
    if (error.code() == std::errc::timed_out)
        throw;
}

/// What an attacker sends: its lead (L), the first flight of its handshake (F) and what it injects (X), one segment
/// after the other.
using script = std::vector<std::string>;

/// A server's flight is an answer to what a client sends once it has read the lead.
bool is_possible(const script& segments, tls_role role)
{
    return role == tls_role::server || segments[0].find('F') == std::string::npos;
}

/// Plays a script and then goes on as if nothing had happened, until it is thrown out.
void inject(test::raw_peer& peer, victim& one, const script& segments, const std::string& injected, int version)
{
    const auto upgrading = one.upgrading.get_future();
    const auto send_segment = [&](const std::string& segment, std::string_view flight, const auto& send)
    {
        std::string bytes;
        for (const char part : segment)
            bytes += part == 'L' ? lead_of(one.attacker()) : part == 'F' ? std::string(flight) : injected;
        send(bytes);
        if (segment.find('L') != segment.npos)
            upgrading.wait_for(test::peer_deadline);
        if (segment.find('F') != segment.npos)
            is_answered(peer, test::peer_deadline);
    };
    if (one.attacker() == tls_role::server)
        peer.recv_line();
    auto next = segments.begin();
    for (; next->find('F') == next->npos; ++next)
        send_segment(*next, {}, [&peer](std::string_view bytes) { peer.send_all(bytes); });
    test::tls_settings settings = settings_of(one.attacker());
    settings.max_version = version;
    settings.send_flight = [&](std::string_view flight, const auto& send)
    {
        for (; next != segments.end(); ++next)
            send_segment(*next, flight, send);
    };
    try
    {
        handshake(peer, one.attacker(), settings);
        peer.tls_read_all();
    }
    catch (const std::exception&)
    {
    }
    go_on_in_plain_text(peer);
}

const std::string texts[] = {"PING\n", "half a command", "\x16\x03\x01\x00\x05PING\n"s};

} // namespace

TEST_CASE("attacks: plain text ahead of a peer's handshake is neither answered nor delivered")
{
    const tls_role role = GENERATE(tls_role::server, tls_role::client);
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    for (const script& segments : {script{"LX", "F"}, {"L", "X", "F"}, {"L", "XF"}, {"LXF"}})
        for (const std::string& text : texts)
        {
            if (!is_possible(segments, role))
                continue;
            CAPTURE(int(role), chunk, segments, text);
            victim one{role};
            attack(one, chunk, [&](test::raw_peer& peer) { inject(peer, one, segments, text, TLS1_3_VERSION); });
            if (text[0] == '\x16')
                CHECK(one.error);
            else
                CHECK(one.error == us::errc::plaintext_injection);
            CHECK(one.lines == std::vector{lead_of(one.attacker())});
            CHECK(test::only_tls(one.sent));
        }
}

TEST_CASE("attacks: plain text behind a peer's first flight is neither answered nor delivered")
{
    const tls_role role = GENERATE(tls_role::server, tls_role::client);
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    for (const script& segments : {script{"L", "FX"}, {"L", "F", "X"}, {"LFX"}, {"LF", "X"}})
        for (const std::string& text : texts)
        {
            if (!is_possible(segments, role))
                continue;
            CAPTURE(int(role), chunk, version, segments, text);
            victim one{role};
            attack(one, chunk, [&](test::raw_peer& peer) { inject(peer, one, segments, text, version); });
            CHECK((one.error == us::errc::plaintext_injection ||
                   one.error.category() == asio::error::get_ssl_category()));
            CHECK(one.lines == std::vector{lead_of(one.attacker())});
            CHECK(test::only_tls(one.sent));
        }
}

namespace
{

/// Has the victim's attention for a handshake.
void lead(test::raw_peer& peer, victim& one)
{
    if (one.attacker() == tls_role::server)
        peer.recv_line();
    peer.send_all(lead_of(one.attacker()));
    one.upgrading.get_future().wait_for(test::peer_deadline);
}

struct failing_handshake
{
    const char* name;
    const char* server_error; ///< A part of its message.
    const char* client_error;
    void (*play)(test::raw_peer&, tls_role own);
};

void fail_handshake(test::raw_peer& peer, tls_role own, const test::tls_settings& settings)
{
    try
    {
        handshake(peer, own, settings);
    }
    catch (const std::exception&)
    {
        return;
    }
    throw test::failure("the peer's handshake was to fail");
}

const failing_handshake failing_handshakes[] = {
    {"the peer hangs up", "truncated", "truncated",
     [](test::raw_peer& peer, tls_role)
     {
         peer.send_fin();
         peer.recv_all(); // for what is unread makes a RST of the end
     }},
    {"the peer resets", "reset", "reset", [](test::raw_peer& peer, tls_role) { peer.reset(); }},
    {"an alert", "unexpected message", "handshake failure",
     [](test::raw_peer& peer, tls_role) { peer.send_all("\x15\x03\x01\x00\x02\x02\x28"s); }},
    {"a record of nonsense", "unexpected message", "unexpected message",
     [](test::raw_peer& peer, tls_role) { peer.send_all("\x16\x03\x01\x00\x04oops"s); }},
    {"an old version", "unsupported protocol", "alert protocol version",
     [](test::raw_peer& peer, tls_role own)
     {
         test::tls_settings settings = settings_of(own);
         settings.min_version = settings.max_version = TLS1_1_VERSION;
         fail_handshake(peer, own, settings);
     }},
    {"a certificate that is not trusted", "alert unknown ca", "certificate verify failed",
     [](test::raw_peer& peer, tls_role own)
     {
         test::tls_settings settings = settings_of(own);
         test::certificate_authority& stranger = test::unrelated_authority();
         static const test::issued identity = stranger.issue({.common_name = "stranger", .dns_names = {"localhost"}});
         if (own == tls_role::client)
             settings.ca_file = stranger.ca_file();
         else
         {
             settings.certificate_file = identity.certificate_file;
             settings.key_file = identity.key_file;
         }
         fail_handshake(peer, own, settings);
     }},
};

} // namespace

TEST_CASE("attacks: a handshake that fails leaves nothing that could go on in plain text")
{
    const tls_role role = GENERATE(tls_role::server, tls_role::client);
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    for (const failing_handshake& failing : failing_handshakes)
    {
        CAPTURE(int(role), chunk, failing.name);
        victim one{role};
        const auto attacker = [&](test::raw_peer& peer)
        {
            lead(peer, one);
            failing.play(peer, one.attacker());
            go_on_in_plain_text(peer);
        };
        attack(one, chunk, attacker);
        CHECK_THAT(one.error.message(),
                   test::contains(role == tls_role::server ? failing.server_error : failing.client_error));
        CHECK(one.lines == std::vector{lead_of(one.attacker())});
        CHECK(test::only_tls(one.sent));
    }
}

TEST_CASE("attacks: TLS that is cut off, between records or within one, is not the end of the stream")
{
    const tls_role role = GENERATE(tls_role::server, tls_role::client);
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    for (const std::size_t part : {std::size_t(0), std::size_t(1), std::size_t(5), std::size_t(6), std::size_t(20)})
    {
        CAPTURE(int(role), chunk, version, part);
        victim one{role};
        std::string rest;
        bool ended = false;
        one.talk = [&](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
        {
            const std::error_code cut = co_await test::error_of(reader.readline());
            rest = co_await reader.read(100);
            const auto reads = test::reads_of(reader);
            for (const auto& [name, operation] : reads)
            {
                const std::error_code again = co_await test::error_of(operation());
                CHECK(again == cut);
            }
            ended = reader.at_eof();
            writer.write("cut off\n");
            writer.close();
            throw std::system_error(cut);
        };
        const auto attacker = [&](test::raw_peer& peer)
        {
            lead(peer, one);
            test::tls_settings settings = settings_of(one.attacker());
            settings.max_version = version;
            handshake(peer, one.attacker(), settings);
            peer.tls_write("half a line");
            peer.send_all(peer.tls_unsent([&] { peer.tls_write(", the other half\n"); }).substr(0, part));
            peer.send_fin();
            peer.tls_read_all();
            peer.recv_all();
        };
        attack(one, chunk, attacker);
        CHECK(one.error == asio::ssl::error::stream_truncated);
        CHECK(rest == "half a line");
        CHECK_FALSE(ended);
    }
}

namespace
{

/// How many bytes were received on a socket of this process and not yet read.
int unread(int descriptor)
{
    int size = 0;
    return ::ioctl(descriptor, FIONREAD, &size) == 0 ? size : 0;
}

/// Has a line sent back to a client, in TLS.
bool is_served(test::raw_peer& peer, const std::string& line)
{
    peer.tls_write(line);
    return peer.tls_read_line() == line;
}

} // namespace

TEST_CASE("attacks: a ClientHello that is split at any of its bytes is taken for the handshake")
{
    const bool with_the_line = GENERATE(false, true);
    CAPTURE(with_the_line);
    test::run(
        [with_the_line]() -> awaitable<void>
        {
            std::atomic<int> upgrading = -1;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                co_await reader.readline();
                upgrading = *writer.get_extra_info<"socket">();
                std::tie(reader, writer) = co_await writer.start_tls();
                co_await test::echo(reader, writer);
            };
            const test::error_log errors;
            us::server server = co_await us::start_server(
                handle, "127.0.0.1", 0, {.ssl = &test::server_context(), .upgradeable = true, .error_handler = errors});
            const auto until_read = [&upgrading]
            {
                const auto deadline = std::chrono::steady_clock::now() + test::peer_deadline;
                while ((upgrading < 0 || unread(upgrading) > 0) && std::chrono::steady_clock::now() < deadline)
                    std::this_thread::yield();
            };
            const auto split = [&, endpoint = test::endpoint_of(server)]
            {
                std::size_t at = 1;
                std::size_t size = 0;
                test::tls_settings settings = test::localhost_client();
                settings.send_flight = [&](std::string_view flight, const auto& send)
                {
                    size = flight.size();
                    send("STARTTLS\n" + std::string(with_the_line ? flight.substr(0, at) : ""));
                    until_read();
                    if (!with_the_line)
                        send(flight.substr(0, at));
                    until_read();
                    send(flight.substr(at));
                };
                do
                {
                    upgrading = -1;
                    auto peer = test::raw_peer::connect(endpoint);
                    peer.tls_connect(settings);
                    if (!is_served(peer, "PING\n"))
                        break;
                    peer.tls_shutdown();
                } while (++at < size);
                return std::pair(at, size);
            };
            const auto [done, size] = co_await test::joined(test::run_in_thread(split));
            CHECK(size > 100);
            CHECK(done == size);
            server.close();
            co_await server.wait_closed();
            CHECK(errors.size() == 0);
        });
}

TEST_CASE("attacks: a ClientHello of 40 KB is taken for the handshake, with STARTTLS or behind it")
{
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    const bool with_the_line = GENERATE(false, true);
    CAPTURE(chunk, with_the_line);
    test::run(
        [=]() -> awaitable<void>
        {
            const test::error_log errors;
            us::server server = co_await us::start_server(
                test::echo, "127.0.0.1", 0,
                {.ssl = &test::server_context(), .upgradeable = true, .error_handler = errors});
            test::wire_tap tap(co_await asio::this_coro::executor, test::endpoint_of(server), chunk);
            const auto client = [&, endpoint = tap.endpoint()]
            {
                auto peer = test::raw_peer::connect(endpoint);
                test::tls_settings settings = test::localhost_client();
                settings.padding = 40'000;
                settings.send_flight = [&](std::string_view flight, const auto& send)
                {
                    send("STARTTLS\n" + std::string(with_the_line ? flight : ""));
                    if (!with_the_line)
                        send(flight);
                };
                peer.tls_connect(settings);
                const bool served = is_served(peer, "PING\n");
                peer.tls_shutdown();
                return served;
            };
            const bool served = co_await test::joined(test::run_in_thread(client));
            CHECK(served);
            server.close();
            co_await server.wait_closed();
            CHECK(errors.size() == 0);
        });
}

TEST_CASE("attacks: a ClientHello that claims to be longer than OpenSSL takes is refused at once")
{
    const bool with_the_line = GENERATE(false, true);
    CAPTURE(with_the_line);
    victim one{tls_role::server};
    const auto attacker = [&](test::raw_peer& peer)
    {
        const std::string beginning = "\x16\x03\x01\x00\x04\x01\x02\x01\x45"s; // of 131,397 bytes
        peer.send_all("STARTTLS\n" + (with_the_line ? beginning : ""));
        one.upgrading.get_future().wait_for(test::peer_deadline);
        if (!with_the_line)
            peer.send_all(beginning);
        peer.recv_all();
    };
    attack(one, 0, attacker);
    CHECK(one.error.category() == asio::error::get_ssl_category());
    CHECK_THAT(one.error.message(), test::contains("excessive message size"));
    CHECK(test::only_tls(one.sent));
}

TEST_CASE("attacks: a ClientHello that drips is dropped at the handshake's deadline, and holds nobody else up")
{
    test::run(
        []() -> awaitable<void>
        {
            const std::chrono::milliseconds deadline(test::under_sanitizer ? 2000 : 600);
            const test::error_log errors;
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0,
                                                          {.ssl = &test::server_context(),
                                                           .upgradeable = true,
                                                           .ssl_handshake_timeout = deadline,
                                                           .error_handler = errors});
            const auto drip = [endpoint = test::endpoint_of(server)]
            {
                auto other = test::raw_peer::connect(endpoint);
                other.send_all("STARTTLS\n");
                other.tls_connect(test::localhost_client());
                auto slow = test::raw_peer::connect(endpoint);
                std::size_t served = 0;
                std::size_t left = 0;
                test::tls_settings settings = test::localhost_client();
                settings.padding = 60'000;
                settings.send_flight = [&](std::string_view flight, const auto& send)
                {
                    send("STARTTLS\n");
                    for (; !flight.empty() && !is_answered(slow); flight.remove_prefix(1))
                    {
                        send(flight.substr(0, 1));
                        served += is_served(other, "PING\n");
                    }
                    left = flight.size();
                };
                try
                {
                    slow.tls_connect(settings);
                }
                catch (const std::exception&)
                {
                }
                other.tls_shutdown();
                return std::pair(served, left);
            };
            const auto [served, left] = co_await test::joined(test::run_in_thread(drip));
            CHECK(served > 0);
            CHECK(left > 0);
            server.close();
            co_await server.wait_closed();
            REQUIRE(errors.size() == 1);
            CHECK(errors.entries()[0].code == us::errc::handshake_timeout);
        });
}

TEST_CASE("attacks: a peer that drips in plain text is dropped at the handler's own deadline, and holds nobody else up")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto handle = [](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                asio::steady_timer timer(co_await asio::this_coro::executor, std::chrono::milliseconds(300));
                timer.async_wait(
                    [writer](asio::error_code error) mutable
                    {
                        if (!error)
                            writer.close();
                    });
                for (std::string line = "not the end"; !line.empty();)
                {
                    line = co_await reader.readline();
                    timer.cancel();
                    writer.write(line);
                }
            };
            const test::error_log errors;
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.error_handler = errors});
            const auto drip = [endpoint = test::endpoint_of(server)]
            {
                auto other = test::raw_peer::connect(endpoint);
                auto slow = test::raw_peer::connect(endpoint);
                std::size_t served = 0;
                while (!is_answered(slow))
                {
                    slow.send_all("x");
                    other.send_all("PING\n");
                    served += other.recv_line() == "PING\n";
                }
                return std::pair(served, slow.recv_all());
            };
            const auto [served, answer] = co_await test::joined(test::run_in_thread(drip));
            CHECK(served > 0);
            CHECK(answer.empty());
            server.close();
            co_await server.wait_closed();
            REQUIRE(errors.size() == 1);
            CHECK(errors.entries()[0].code == us::errc::connection_closed);
        });
}

namespace
{

/// A client of `server` that is in TLS, or in plain text.
awaitable<test::raw_peer> connect(const us::server& server, bool tls)
{
    auto made = test::run_in_thread(
        [endpoint = test::endpoint_of(server), tls]
        {
            auto peer = test::raw_peer::connect(endpoint);
            if (tls)
                peer.tls_connect(test::localhost_client());
            return peer;
        });
    return test::joined(std::move(made));
}

} // namespace

TEST_CASE("attacks: a client that asks and never reads the answers is stopped, and memory stays bounded")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [tls]() -> awaitable<void>
        {
            std::size_t answers = 0;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                test::shrink_buffers(*writer.get_extra_info<"socket">());
                for (;;)
                {
                    const std::string line = co_await reader.readline();
                    if (line.empty())
                        co_return;
                    writer.write(std::string(1000, 'x'));
                    co_await writer.drain();
                    ++answers;
                }
            };
            const test::error_log errors;
            us::server server = co_await us::start_server(
                handle, "127.0.0.1", 0, {.ssl = tls ? &test::server_context() : nullptr, .error_handler = errors});
            test::raw_peer peer = co_await connect(server, tls);
            test::shrink_buffers(peer.descriptor());
            std::string questions;
            for (int i = 0; i < 10'000; ++i)
                questions += std::string(100, '?') + "\n";
            if (tls)
                questions = peer.tls_unsent([&] { peer.tls_write(questions); });
            const std::size_t before = test::live_bytes();
            const std::size_t sent = co_await test::flood(peer, questions);
            const std::size_t after = test::live_bytes();
            CHECK(sent < questions.size());
            CHECK(answers > 0);
            CHECK(after < before + 512 * 1024);
            peer.reset();
            server.close();
            co_await server.wait_closed();
            CHECK(errors.size() == 1);
        });
}

TEST_CASE("attacks: a peer cannot renegotiate, whatever context it meets")
{
    test::run(
        []() -> awaitable<void>
        {
            asio::ssl::context context(asio::ssl::context::tls_client); // in which OpenSSL allows it
            SSL_CTX_set_max_proto_version(context.native_handle(), TLS1_2_VERSION);
            us::connection_options options;
            options.ssl = &context;
            test::raw_link link = co_await test::link_over_socket(options);
            auto asking = test::run_in_thread(
                [&]
                {
                    ERR_clear_error();
                    try
                    {
                        test::openssl_check(SSL_renegotiate(link.peer.ssl()), "SSL_renegotiate");
                        test::openssl_check(SSL_do_handshake(link.peer.ssl()), "SSL_do_handshake");
                        link.peer.tls_write("x");
                        link.peer.tls_read_some();
                    }
                    catch (const std::exception& error)
                    {
                        return std::string(error.what());
                    }
                    return std::string();
                });
            const auto executor = co_await asio::this_coro::executor;
            const auto reading = test::spawn(executor, [&] { return link.reader.read(1); });
            const std::string refused = co_await test::joined(std::move(asking));
            CHECK_THAT(refused, test::contains("no renegotiation"));
            const std::string received = co_await reading.join();
            CHECK(received == "x");
            link.writer.abort();
        });
}

TEST_CASE("attacks: a client that asks for KeyUpdates and reads none is stopped, and memory stays bounded")
{
    const bool lines_between = GENERATE(false, true);
    CAPTURE(lines_between);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto handle = [](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                test::shrink_buffers(*writer.get_extra_info<"socket">());
                for (std::string line = "not the end"; !line.empty();)
                    line = co_await reader.readline();
            };
            const test::error_log errors;
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0,
                                                          {.ssl = &test::server_context(), .error_handler = errors});
            test::raw_peer peer = co_await connect(server, true);
            test::shrink_buffers(peer.descriptor());
            const std::string updates = peer.tls_unsent(
                [&]
                {
                    for (int i = 0; i < 40'000; ++i)
                    {
                        peer.key_update(true);
                        if (lines_between)
                            peer.tls_write("x\n");
                    }
                });
            REQUIRE(updates.size() > 1024 * 1024);
            const std::size_t before = test::live_bytes();
            const std::size_t sent = co_await test::flood(peer, updates, lines_between ? 1 : 10);
            const std::size_t after = test::live_bytes();
            CHECK(sent < updates.size());
            CHECK(after < before + 512 * 1024);
            peer.reset();
            server.close();
            co_await server.wait_closed();
            CHECK(errors.size() == 1);
        });
}

TEST_CASE("attacks: a line of 64 MB is one error at the limit, what follows it is read, and memory stays bounded")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    test::run(
        [tls]() -> awaitable<void>
        {
            constexpr std::size_t limit = 10'000;
            constexpr std::size_t line_size = 64 * 1024 * 1024;
            std::vector<std::size_t> overruns;
            std::vector<std::string> lines;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> awaitable<void>
            {
                do
                    try
                    {
                        lines.push_back(co_await reader.readline());
                        writer.write(lines.back());
                    }
                    catch (const us::limit_overrun_error& error)
                    {
                        overruns.push_back(error.consumed());
                    }
                while (lines.empty() || !lines.back().empty());
            };
            us::server server = co_await us::start_server(
                handle, "127.0.0.1", 0, {.ssl = tls ? &test::server_context() : nullptr, .limit = limit});
            test::raw_peer peer = co_await connect(server, tls);
            const std::string piece(1024 * 1024, 'x');
            const std::size_t before = test::live_bytes();
            std::size_t most = 0;
            const auto send = [&]
            {
                for (std::size_t sent = 0; sent < line_size; sent += piece.size())
                {
                    tls ? peer.tls_write(piece) : peer.send_all(piece);
                    most = std::max(most, test::live_bytes());
                }
                tls ? peer.tls_write("\nPING\n") : peer.send_all("\nPING\n");
                return tls ? peer.tls_read_line() : peer.recv_line();
            };
            const std::string answer = co_await test::joined(test::run_in_thread(send));
            CHECK(answer == "PING\n");
            REQUIRE(overruns.size() == 1);
            CHECK(overruns[0] > limit);
            CHECK(overruns[0] <= limit + 64 * 1024);
            CHECK(lines == std::vector<std::string>{"PING\n"});
            CHECK(most < before + 512 * 1024);
            tls ? peer.tls_shutdown_send_only() : peer.send_fin();
            server.close();
            co_await server.wait_closed();
        });
}
