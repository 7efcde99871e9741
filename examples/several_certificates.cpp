// A server with several names on one port, and a certificate for each.
//
//   c++ -std=c++20 -DASIO_STANDALONE several_certificates.cpp -o several_certificates -lssl -lcrypto -pthread

#include <asio.hpp>
#include <upgradeable_streams.hpp>

#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace us = upgradeable_streams;

constexpr std::string_view usage =
    "usage: several_certificates PORT CERT KEY [NAME CERT KEY]...\n"
    "Tells each client which name it has asked for, over TLS with the certificate of that name; the first\n"
    "certificate is for all other clients. A NAME may begin with a wildcard, as in *.example. Port 0 picks one.\n";

us::key_pair_options identity(const char* certificate, const char* key)
{
    return {.certificate_chain_file = certificate, .private_key_file = key};
}

asio::ssl::context make_context(std::span<char*> arguments)
{
    std::vector<asio::ssl::context> contexts;
    for (std::size_t i = 3; i < arguments.size(); i += 3)
        contexts.push_back(us::create_server_context({.identity = identity(arguments[i + 1], arguments[i + 2])}));
    std::vector<us::named_context> names;
    for (std::size_t i = 0; i < contexts.size(); ++i)
        names.push_back({.name = arguments[3 + 3 * i], .ssl = &contexts[i]});
    return us::create_server_context({.identity = identity(arguments[1], arguments[2]), .contexts_by_name = names});
}

asio::awaitable<void> handle(us::stream_reader, us::stream_writer writer)
{
    writer.write("You have asked for " + writer.session()->server_name.value_or("no name") + "\n");
    co_return;
}

asio::awaitable<void> serve(std::string port, asio::ssl::context& ssl, asio::signal_set& signals)
{
    us::server server = co_await us::start_server(handle, "localhost", port, {.ssl = &ssl});
    std::cout << "listening on localhost:" << server.sockets().front().port << std::endl;
    co_await signals.async_wait(asio::use_awaitable);
    co_await server.shutdown(std::chrono::seconds(5));
}

int main(int argc, char** argv)
try
{
    const std::span<char*> arguments(argv + 1, static_cast<std::size_t>(argc - 1));
    if (argc == 2 && arguments[0] == std::string_view("--help"))
        return (std::cout << usage), EXIT_SUCCESS;
    if (arguments.size() < 3 || arguments.size() % 3 != 0)
        throw std::invalid_argument("give a port, a certificate and a key, then threes of name, certificate and key");
    asio::io_context io;
    asio::signal_set signals(io, SIGINT, SIGTERM);
    asio::ssl::context ssl = make_context(arguments);
    asio::co_spawn(io, serve(arguments[0], ssl, signals),
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
    std::cerr << "several_certificates: " << e.what() << "\n";
    return EXIT_FAILURE;
}
