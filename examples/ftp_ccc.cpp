// An FTP client that logs in over TLS and then goes back to plain text with CCC (RFC 4217), as is asked for where a
// firewall has to read the commands that follow.
//
//   c++ -std=c++20 -DASIO_STANDALONE ftp_ccc.cpp -o ftp_ccc -lssl -lcrypto -pthread

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

constexpr std::string_view usage = "usage: ftp_ccc HOST PORT USER PASSWORD [CA_FILE]\n"
                                   "Logs in over TLS, goes back to plain text, and asks for the directory.\n";

/// Reads a reply, which ends with a line that begins with its code and a space (RFC 959 section 4.2).
asio::awaitable<void> expect(us::stream_reader& reader, std::string_view code)
{
    std::string line = co_await reader.readline();
    const std::string given = line.substr(0, 3);
    while (!line.empty() && line.compare(0, 4, given + " ") != 0)
    {
        std::cout << line;
        line = co_await reader.readline();
    }
    std::cout << line << std::flush;
    if (given != code || line.empty())
        throw std::runtime_error("the server answered \"" + line.substr(0, line.find('\r')) + "\"");
}

asio::awaitable<void> run(std::vector<std::string> arguments, asio::ssl::context& ssl)
{
    const std::string &host = arguments[0], &port = arguments[1], &user = arguments[2], &password = arguments[3];
    auto [reader, writer] = co_await us::open_connection(host, port, {.ssl = &ssl, .upgradeable = true});
    co_await expect(reader, "220");
    writer.write("AUTH TLS\r\n");
    co_await expect(reader, "234");
    std::tie(reader, writer) = co_await writer.start_tls();
    std::cout << "over " << writer.session()->version << std::endl;
    writer.write("USER " + user + "\r\n");
    co_await expect(reader, "331");
    writer.write("PASS " + password + "\r\n");
    co_await expect(reader, "230");

    writer.write("CCC\r\n");
    co_await expect(reader, "200");
    std::tie(reader, writer) = co_await writer.stop_tls();
    std::cout << "in plain text" << std::endl;
    writer.write("PWD\r\n");
    co_await expect(reader, "257");
    writer.write("QUIT\r\n");
    co_await expect(reader, "221");
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
    std::cerr << "ftp_ccc: " << e.what() << "\n";
    return EXIT_FAILURE;
}
