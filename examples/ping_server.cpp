// A server that starts in plain text and is upgraded to TLS in place when a client says STARTTLS.
//
//   c++ -std=c++20 -DASIO_STANDALONE ping_server.cpp -o ping_server -lssl -lcrypto -pthread

#include <asio.hpp>
#include <upgradeable_streams.hpp>

#include <chrono>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

namespace us = upgradeable_streams;

struct settings
{
    std::string home = std::getenv("HOME") ? std::getenv("HOME") : ".";
    std::string host = "localhost";
    std::string port = "10001";
    std::string certificate = home + "/.keys/server.crt";
    std::string key = home + "/.keys/server.key";
    std::string handshake_timeout = "60";
};

constexpr std::string_view usage =
    "usage: ping_server [--host H] [--port P] [--cert FILE] [--key FILE] [--handshake-timeout SECONDS]\n"
    "Answers PING with PONG, upgrades to TLS at STARTTLS, and closes at QUIT.\n"
    "Defaults: localhost, 10001, ~/.keys/server.crt, ~/.keys/server.key, 60. Port 0 picks one.\n";

std::optional<settings> parse(int argc, char** argv)
{
    settings parsed;
    const std::map<std::string_view, std::string*> options = {{"--host", &parsed.host},
                                                              {"--port", &parsed.port},
                                                              {"--cert", &parsed.certificate},
                                                              {"--key", &parsed.key},
                                                              {"--handshake-timeout", &parsed.handshake_timeout}};
    for (int i = 1; i < argc; i += 2)
    {
        if (std::string_view(argv[i]) == "--help")
            return std::nullopt;
        const auto option = options.find(argv[i]);
        if (option == options.end() || i + 1 == argc)
            throw std::invalid_argument(std::string(argv[i]) + " is unknown or lacks a value; see --help");
        *option->second = argv[i + 1];
    }
    if (parsed.handshake_timeout.find_first_not_of("0123456789") != std::string::npos)
        throw std::invalid_argument("--handshake-timeout takes a number of seconds; see --help");
    return parsed;
}

asio::awaitable<void> handle(us::stream_reader reader, us::stream_writer writer)
{
    const std::string peer = writer.get_extra_info<"peername">()->to_string();
    std::cout << peer << " connected in plain text" << std::endl;
    for (;;)
    {
        const std::string line = co_await reader.readline();
        if (line == "PING\n")
            writer.write("PONG\n");
        else if (line == "STARTTLS\n")
        {
            std::tie(reader, writer) = co_await writer.start_tls();
            std::cout << peer << " upgraded to " << *writer.get_extra_info<"version">() << std::endl;
        }
        else if (line == "QUIT\n" || line.empty())
            break;
        else
            writer.write("ERROR unknown command\n");
        co_await writer.drain();
    }
    std::cout << peer << " left" << std::endl;
}

asio::awaitable<void> serve(const settings& given, asio::ssl::context& ssl, asio::signal_set& signals)
{
    const us::server_options options = {.ssl = &ssl,
                                        .upgradeable = true,
                                        .ssl_handshake_timeout =
                                            std::chrono::seconds(std::atol(given.handshake_timeout.c_str()))};
    us::server server = co_await us::start_server(handle, given.host, given.port, options);
    const std::string host = given.host.find(':') == given.host.npos ? given.host : "[" + given.host + "]";
    std::cout << "listening on " << host << ":" << server.sockets().front().port << std::endl;
    co_await signals.async_wait(asio::use_awaitable);
    co_await server.shutdown(std::chrono::seconds(5));
}

int main(int argc, char** argv)
try
{
    const std::optional<settings> given = parse(argc, argv);
    if (!given)
        return (std::cout << usage), EXIT_SUCCESS;
    asio::io_context io;
    asio::signal_set signals(io, SIGINT, SIGTERM);
    asio::ssl::context ssl = us::create_server_context(
        {.identity = {.certificate_chain_file = given->certificate, .private_key_file = given->key}});
    asio::co_spawn(io, serve(*given, ssl, signals),
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
    std::cerr << "ping_server: " << e.what() << "\n";
    return EXIT_FAILURE;
}
