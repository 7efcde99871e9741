#include "echo_server.hpp"

#include "run.hpp"

#include <asio/error.hpp>
#include <asio/io_context.hpp>

#include <tuple>
#include <utility>

namespace us = upgradeable_streams;

namespace test
{

asio::awaitable<void> echo(us::stream_reader reader, us::stream_writer writer)
{
    for (;;)
    {
        const std::string line = co_await reader.readline();
        if (line.empty())
            co_return;
        if (line == "STARTTLS\n")
            std::tie(reader, writer) = co_await writer.start_tls();
        else
            writer.write(line);
        co_await writer.drain();
    }
}

asio::awaitable<std::string> ask(std::string host, std::uint16_t port, std::string line)
{
    auto [reader, writer] = co_await us::open_connection(host, port);
    writer.write(line);
    std::string answer = co_await reader.readline();
    writer.close();
    co_await writer.wait_closed();
    co_return answer;
}

asio::awaitable<std::string> ask(const us::server& server, std::string line)
{
    return ask("127.0.0.1", server.sockets().front().port, std::move(line));
}

asio::awaitable<std::pair<std::string, std::string>> ask_tls(std::uint16_t port, asio::ssl::context& ssl,
                                                             std::string line)
{
    auto [reader, writer] = co_await us::open_connection("localhost", port, {.ssl = &ssl, .family = us::ip_family::v4});
    writer.write(line);
    std::string answer = co_await reader.readline();
    std::string subject = writer.get_extra_info<"peercert">()->subject();
    writer.close();
    co_await writer.wait_closed();
    co_return std::pair(std::move(subject), std::move(answer));
}

asio::awaitable<void> until_refused(std::uint16_t port)
{
    const auto refused = [port]
    {
        asio::io_context io;
        asio::ip::tcp::socket socket(io);
        asio::error_code error;
        socket.connect(loopback(port), error);
        return error == asio::error::connection_refused;
    };
    co_await eventually(refused);
}

} // namespace test
