// A server that demands a certificate of its clients, and such a client.
//
//   c++ -std=c++20 -DASIO_STANDALONE mutual_tls.cpp -o mutual_tls -lssl -lcrypto -pthread

#include <asio.hpp>
#include <upgradeable_streams.hpp>

#include <chrono>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace us = upgradeable_streams;

constexpr std::string_view usage =
    "usage: mutual_tls server PORT CA CERT KEY\n"
    "       mutual_tls client PORT CA [CERT KEY]\n"
    "The server greets each client by the subject of its certificate. CA is the file of the authority that the other\n"
    "side's certificate must be of; a client without one is refused. Both use localhost. Port 0 picks one.\n";

asio::awaitable<void> greet(us::stream_reader, us::stream_writer writer)
{
    writer.write("Hello, " + writer.session()->peer_certificate.value().subject() + "\n");
    co_return;
}

asio::awaitable<void> serve(std::string port, asio::ssl::context& ssl, asio::signal_set& signals)
{
    us::server server = co_await us::start_server(greet, "localhost", port, {.ssl = &ssl});
    std::cout << "listening on localhost:" << server.sockets().front().port << std::endl;
    co_await signals.async_wait(asio::use_awaitable);
    co_await server.shutdown(std::chrono::seconds(5));
}

asio::awaitable<void> ask(std::string port, asio::ssl::context& ssl)
{
    auto [reader, writer] = co_await us::open_connection("localhost", port, {.ssl = &ssl});
    const std::string greeting = co_await reader.readline(); // in TLS 1.3 a refusal comes here
    std::cout << greeting;
    writer.close();
    co_await writer.wait_closed();
}

int main(int argc, char** argv)
try
{
    const std::string_view role = argc > 1 ? argv[1] : "";
    if (role == "--help")
        return (std::cout << usage), EXIT_SUCCESS;
    const bool is_server = role == "server";
    if ((!is_server && role != "client") || (argc != 6 && (is_server || argc != 4)))
        throw std::invalid_argument("give server or client, a port and files; see --help");
    us::key_pair_options identity;
    if (argc == 6)
        identity = {.certificate_chain_file = argv[4], .private_key_file = argv[5]};

    asio::io_context io;
    asio::signal_set signals(io, SIGINT, SIGTERM);
    asio::ssl::context ssl = is_server ? us::create_server_context({.identity = identity, .client_ca_file = argv[3]})
                                       : us::create_client_context({.ca_file = argv[3], .identity = identity});
    asio::co_spawn(io, is_server ? serve(argv[2], ssl, signals) : ask(argv[2], ssl),
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
    std::cerr << "mutual_tls: " << e.what() << "\n";
    return EXIT_FAILURE;
}
