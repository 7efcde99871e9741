#include "conversation.hpp"

#include "support/contexts.hpp"
#include "support/failure.hpp"
#include "support/memory.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/stream_links.hpp"
#include "support/thread.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <thread>

namespace us = upgradeable_streams;

namespace test
{

namespace
{

void say_on(raw_peer& peer, const std::string& bytes, outcome& result)
{
    constexpr std::size_t most = 64 * 1024 * 1024;
    std::string many;
    while (many.size() < 16 * 1024)
        many += bytes;
    const std::size_t live = live_bytes();
    for (std::size_t sent = 0; sent < most; sent += many.size())
    {
        peer.send_all(many);
        result.grown = std::max(result.grown, std::max(live_bytes(), live) - live);
    }
}

void hear_on(raw_peer& peer, outcome& result)
{
    for (std::string bytes; !(bytes = peer.recv_some()).empty();)
        result.heard += bytes;
}

/// A line goes both ways.
void echo_line(raw_peer& peer)
{
    if (peer.ssl())
    {
        const std::string line = peer.tls_read_line();
        peer.tls_write(line);
        peer.tls_shutdown();
    }
    else
        peer.send_all(peer.recv_line());
}

void play(raw_peer& peer, const std::vector<step>& steps, outcome& result)
{
    for (const auto& [what, bytes] : steps)
        switch (what)
        {
        case step::kind::say: peer.ssl() ? peer.tls_write(bytes) : peer.send_all(bytes); break;
        case step::kind::say_on: say_on(peer, bytes, result); break;
        case step::kind::hear:
        {
            const std::string heard =
                peer.ssl() ? peer.tls_read_exactly(bytes.size()) : peer.recv_exactly(bytes.size());
            if (!peer.ssl())
                result.heard += heard;
            if (heard != bytes)
            {
                result.trouble = "heard \"" + heard + "\" in place of \"" + bytes + '"';
                return hear_on(peer, result);
            }
            break;
        }
        case step::kind::dawdle: std::this_thread::sleep_for(std::chrono::milliseconds(1200)); break;
        case step::kind::tls: peer.tls_accept(localhost_server()); break;
        case step::kind::finish: peer.send_fin(); [[fallthrough]];
        case step::kind::stall: return hear_on(peer, result);
        }
    echo_line(peer);
}

asio::awaitable<void> talk(negotiator client, const us::starttls::starttls_options& options, us::stream_reader reader,
                           us::stream_writer writer, outcome& result)
try
{
    us::starttls::negotiated made = co_await client(reader, writer, options);
    result.is_tls = made.reader.is_tls();
    result.capabilities = std::move(made.capabilities);
    result.greeting = std::move(made.greeting);
    made.writer.write("and on\n");
    const std::string line = co_await made.reader.readline();
    result.goes_on = line == "and on\n";
    made.writer.close();
    co_await made.writer.wait_closed();
}
catch (const us::starttls_error& error)
{
    result.error = error.code();
    result.what = error.what();
    result.reply = error.reply();
}
catch (const us::tls_error& error)
{
    result.error = error.code();
    result.what = error.what();
    result.reply = error.received();
}
catch (const std::system_error& error)
{
    result.error = error.code();
    result.what = error.what();
}

} // namespace

outcome negotiate(negotiator client, const std::vector<step>& steps, const us::starttls::starttls_options& options,
                  std::size_t chunk)
{
    return run(
        [&]() -> asio::awaitable<outcome>
        {
            const us::connection_options how = test::upgradeable_options();
            raw_link link = co_await link_with_raw_peer(how, chunk);
            outcome of_server;
            auto playing = run_in_thread(
                [&]
                {
                    try
                    {
                        play(link.peer, steps, of_server);
                    }
                    catch (const std::system_error& error)
                    {
                        if (error.code() != std::errc::broken_pipe && error.code() != std::errc::connection_reset &&
                            error.code() != std::errc::not_connected)
                            of_server.trouble = error.what();
                    }
                    catch (const std::exception& error)
                    {
                        of_server.trouble = error.what();
                    }
                });
            outcome result;
            co_await talk(client, options, link.reader, link.writer, result);
            result.is_closed = result.error && link.writer.is_closing();
            co_await joined(std::move(playing));
            result.heard = std::move(of_server.heard);
            result.trouble = std::move(of_server.trouble);
            result.grown = of_server.grown;
            co_return result;
        });
}

const step& said(const std::vector<step>& steps, std::size_t nth)
{
    for (const step& each : steps)
        if (each.what == step::kind::say && nth-- == 0)
            return each;
    throw failure("so much is not said");
}

std::size_t count_said(const std::vector<step>& steps)
{
    const auto tls = std::ranges::find(steps, step::kind::tls, &step::what);
    return std::size_t(std::count_if(steps.begin(), tls, [](const step& s) { return s.what == step::kind::say; }));
}

std::vector<step> instead(const std::vector<step>& steps, std::size_t nth, const std::vector<step>& others)
{
    std::vector<step> made(steps.data(), &said(steps, nth));
    made.insert(made.end(), others.begin(), others.end());
    return made;
}

std::string heard_before(const std::vector<step>& steps, std::size_t nth)
{
    std::string heard;
    for (const step* each = steps.data(); each != &said(steps, nth); ++each)
        if (each->what == step::kind::hear)
            heard += each->bytes;
    return heard;
}

const conversation& conversation_of(std::string_view name)
{
    for (const conversation& each : conversations())
        if (each.name == name)
            return each;
    throw failure("there is no conversation of " + std::string(name));
}

} // namespace test
