// Fetches a page through an HTTPS proxy: TLS to the proxy, CONNECT, and inside that TLS to the server behind it.
//
//   c++ -std=c++20 -DASIO_STANDALONE proxy_tunnel.cpp -o proxy_tunnel -lssl -lcrypto -pthread

#include <asio.hpp>
#include <upgradeable_streams.hpp>

#include <cstdlib>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace us = upgradeable_streams;

constexpr std::string_view usage = "usage: proxy_tunnel PROXY PORT HOST PORT [CA_FILE]\n"
                                   "Gets https://HOST:PORT/ through an HTTPS proxy.\n";

asio::awaitable<void> run(std::vector<std::string> arguments, asio::ssl::context& ssl)
{
    const std::string &proxy = arguments[0], &proxy_port = arguments[1], &host = arguments[2], &port = arguments[3];
    auto [reader, writer] = co_await us::open_connection(proxy, proxy_port, {.ssl = &ssl});
    std::cout << "The proxy is " << writer.session()->peer_certificate->subject() << std::endl;

    const std::string target = host + ":" + port;
    writer.write("CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n\r\n");
    const std::string answer = co_await reader.readuntil("\r\n\r\n");
    if (answer.size() < 12 || answer[9] != '2')
        throw std::runtime_error("the proxy answered \"" + answer.substr(0, answer.find('\r')) + "\"");

    std::tie(reader, writer) = co_await writer.start_tls<us::within_tls>({.server_hostname = host});
    std::cout << "The server is " << writer.session()->peer_certificate->subject() << std::endl;
    writer.write("GET / HTTP/1.0\r\nHost: " + target + "\r\n\r\n");
    const std::string page = co_await reader.read();
    std::cout << page << std::flush;
    writer.close();
    co_await writer.wait_closed();
}

int main(int argc, char** argv)
try
{
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() < 4 || arguments.size() > 5)
    {
        const bool asked = arguments == std::vector<std::string>{"--help"};
        (asked ? std::cout : std::cerr) << usage;
        return asked ? EXIT_SUCCESS : EXIT_FAILURE;
    }
    asio::io_context io;
    asio::ssl::context ssl = us::create_client_context({.ca_file = arguments.size() > 4 ? arguments[4] : ""});
    asio::co_spawn(io, run(arguments, ssl),
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
    std::cerr << "proxy_tunnel: " << e.what() << "\n";
    return EXIT_FAILURE;
}
