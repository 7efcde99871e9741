// A client that connects in plain text and upgrades the connection to TLS in place.
//
//   c++ -std=c++20 -DASIO_STANDALONE ping_client.cpp -o ping_client -lssl -lcrypto -pthread

#include <asio.hpp>
#include <upgradeable_streams.hpp>

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
    std::string host = "localhost";
    std::string port = "10001";
    std::string ca; // The system's trust store unless given.
};

constexpr std::string_view usage = "usage: ping_client [--host H] [--port P] [--ca FILE]\n"
                                   "Pings in plain text, upgrades to TLS, and pings again.\n"
                                   "Defaults: localhost, 10001, the system's trust store.\n";

std::optional<settings> parse(int argc, char** argv)
{
    settings parsed;
    const std::map<std::string_view, std::string*> options = {
        {"--host", &parsed.host}, {"--port", &parsed.port}, {"--ca", &parsed.ca}};
    for (int i = 1; i < argc; i += 2)
    {
        if (std::string_view(argv[i]) == "--help")
            return std::nullopt;
        const auto option = options.find(argv[i]);
        if (option == options.end() || i + 1 == argc)
            throw std::invalid_argument(std::string(argv[i]) + " is unknown or lacks a value; see --help");
        *option->second = argv[i + 1];
    }
    return parsed;
}

asio::awaitable<void> ping(us::stream_reader& reader, us::stream_writer& writer)
{
    std::cout << "Sending PING" << std::endl;
    writer.write("PING\n");
    const std::string reply = co_await reader.readline();
    if (reply != "PONG\n")
        throw std::runtime_error("the server answered PING with \"" + reply.substr(0, reply.find('\n')) + "\"");
    std::cout << "Received PONG" << std::endl;
}

asio::awaitable<void> run(const settings& given, asio::ssl::context& ssl)
{
    std::cout << "Connecting to " << given.host << ":" << given.port << " in plain text" << std::endl;
    auto [reader, writer] = co_await us::open_connection(given.host, given.port, {.ssl = &ssl, .upgradeable = true});
    std::cout << "TLS version: " << writer.get_extra_info<"version">().value_or("none yet") << std::endl;
    co_await ping(reader, writer);

    std::cout << "Sending STARTTLS and upgrading the connection" << std::endl;
    writer.write("STARTTLS\n");
    std::tie(reader, writer) = co_await writer.start_tls();
    std::cout << "TLS version: " << writer.get_extra_info<"version">().value() << "\n"
              << "Cipher: " << writer.get_extra_info<"cipher">()->name << "\n"
              << "Peer certificate: " << writer.get_extra_info<"peercert">()->subject() << std::endl;
    co_await ping(reader, writer);

    std::cout << "Sending QUIT and closing" << std::endl;
    writer.write("QUIT\n");
    writer.close();
    co_await writer.wait_closed();
    std::cout << "Closed" << std::endl;
}

int main(int argc, char** argv)
try
{
    const std::optional<settings> given = parse(argc, argv);
    if (!given)
        return (std::cout << usage), EXIT_SUCCESS;
    asio::io_context io;
    asio::ssl::context ssl = us::create_client_context({.ca_file = given->ca});
    asio::co_spawn(io, run(*given, ssl),
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
    std::cerr << "ping_client: " << e.what() << "\n";
    return EXIT_FAILURE;
}
