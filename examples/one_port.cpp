// A server with one port for clients that begin with TLS, that upgrade to it at STARTTLS, and that stay in plain text.
//
//   c++ -std=c++20 -DASIO_STANDALONE one_port.cpp -o one_port -lssl -lcrypto -pthread

#include <asio.hpp>
#include <upgradeable_streams.hpp>

#include <chrono>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>

namespace us = upgradeable_streams;

constexpr std::string_view usage =
    "usage: one_port [--host H] [--port P] [--cert FILE] [--key FILE]\n"
    "Answers PING with PONG and how it was asked, upgrades to TLS at STARTTLS, and closes at QUIT.\n"
    "Defaults: localhost, 10001, ~/.keys/server.crt, ~/.keys/server.key. Port 0 picks one.\n";

asio::awaitable<void> handle(us::stream_reader reader, us::stream_writer writer)
{
    std::string_view how = reader.is_tls() ? "TLS from the first byte" : "plain text";
    for (;;)
    {
        const std::string line = co_await reader.readline();
        if (line == "PING\n")
            writer.writelines({"PONG in ", how, "\n"});
        else if (line == "STARTTLS\n" && !reader.is_tls())
        {
            std::tie(reader, writer) = co_await writer.start_tls();
            how = "TLS after an upgrade";
        }
        else if (line == "QUIT\n" || line.empty())
            co_return;
        else
            writer.write("ERROR unknown command\n");
        co_await writer.drain();
    }
}

asio::awaitable<void> serve(const std::string& host, const std::string& port, asio::ssl::context& ssl)
{
    asio::signal_set signals(co_await asio::this_coro::executor, SIGINT, SIGTERM);
    us::server server =
        co_await us::start_server(handle, host, port, {.ssl = &ssl, .upgradeable = true, .detect_tls = true});
    std::cout << "listening on " << server.sockets().front().to_string() << std::endl;
    co_await signals.async_wait(asio::use_awaitable);
    co_await server.shutdown(std::chrono::seconds(5));
}

int main(int argc, char** argv)
try
{
    const std::string keys = std::string(std::getenv("HOME") ? std::getenv("HOME") : ".") + "/.keys/server.";
    std::map<std::string_view, std::string> options = {
        {"--host", "localhost"}, {"--port", "10001"}, {"--cert", keys + "crt"}, {"--key", keys + "key"}};
    for (int i = 1; i < argc; i += 2)
    {
        if (std::string_view(argv[i]) == "--help")
            return (std::cout << usage), EXIT_SUCCESS;
        if (!options.contains(argv[i]) || i + 1 == argc)
            throw std::invalid_argument(std::string(argv[i]) + " is unknown or lacks a value; see --help");
        options[argv[i]] = argv[i + 1];
    }
    asio::io_context io;
    asio::ssl::context ssl = us::create_server_context(
        {.identity = {.certificate_chain_file = options["--cert"], .private_key_file = options["--key"]}});
    asio::co_spawn(io, serve(options["--host"], options["--port"], ssl),
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
    std::cerr << "one_port: " << e.what() << "\n";
    return EXIT_FAILURE;
}
