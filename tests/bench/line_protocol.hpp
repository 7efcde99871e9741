/// @file
/// What the servers here have in common: their requests, their arguments and how they run.
///
/// Lines on one port of 127.0.0.1, before and after the upgrade:
///
///     PING          is answered with PONG
///     STARTTLS      has no answer; the TLS handshake begins at once
///     ECHO n        is answered with the n bytes that follow
///     SINK n        is answered with OK when the n bytes that follow were read
///     SOURCE n [m]  is answered with n bytes, written m at a time, 1 MiB unless given
///     QUIT          ends the connection, as does any other line
#ifndef BENCH_LINE_PROTOCOL_HPP
#define BENCH_LINE_PROTOCOL_HPP

#include <asio/awaitable.hpp>
#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace bench
{

/// What SOURCE sends.
inline const std::string source_bytes(1 << 20, 's');

enum class verb
{
    ping,
    starttls,
    echo,
    sink,
    source,
    quit
};

struct request
{
    verb what = verb::quit;
    std::size_t size = 0;
    std::size_t piece = source_bytes.size();

    /// Of a line without its newline.
    explicit request(std::string_view line)
    {
        const std::string_view name = line.substr(0, line.find(' '));
        if (line == "PING")
            what = verb::ping;
        else if (line == "STARTTLS")
            what = verb::starttls;
        else if (name == "ECHO")
            what = verb::echo;
        else if (name == "SINK")
            what = verb::sink;
        else if (name == "SOURCE")
            what = verb::source;
        const char* const end = line.data() + line.size();
        const auto number = [&](const char* begin, std::size_t& value)
        { return std::from_chars(std::min(begin + 1, end), end, value).ptr; };
        number(number(line.data() + name.size(), size), piece);
        piece = std::clamp<std::size_t>(piece, 1, source_bytes.size());
    }
};

struct arguments
{
    std::uint16_t port = 0;
    std::string certificate;
    std::string key;
};

inline arguments parse(std::span<char*> given)
{
    arguments parsed;
    if (given.size() != 3)
        throw std::invalid_argument("the arguments are PORT CERTIFICATE KEY");
    const std::string_view port = given[0];
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), parsed.port);
    if (error != std::errc() || end != port.data() + port.size())
        throw std::invalid_argument("a port is a number from 0 to 65535, where 0 picks one");
    parsed.certificate = given[1];
    parsed.key = given[2];
    return parsed;
}

/// Tells whoever started the server that it can be connected to.
inline void announce(std::uint16_t port)
{
    std::cout << "listening on " << port << std::endl;
}

/// Runs a server on this thread until it fails. Returns: the exit status.
inline int run_server(std::string_view name, std::span<char*> given, asio::awaitable<void> (*serve)(arguments))
try
{
    asio::io_context io(1);
    asio::co_spawn(io, serve(parse(given)),
                   [](std::exception_ptr e)
                   {
                       if (e)
                           std::rethrow_exception(e);
                   });
    io.run();
    return EXIT_SUCCESS;
}
catch (const std::exception& e)
{
    std::cerr << name << ": " << e.what() << "\n";
    return EXIT_FAILURE;
}

} // namespace bench

#endif
