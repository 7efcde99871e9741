#include "echo_server.hpp"

#include <tuple>
#include <utility>

namespace test
{

asio::awaitable<void> echo(upgradeable_streams::stream_reader reader, upgradeable_streams::stream_writer writer)
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
    auto [reader, writer] = co_await upgradeable_streams::open_connection(host, port);
    writer.write(line);
    std::string answer = co_await reader.readline();
    writer.close();
    co_await writer.wait_closed();
    co_return answer;
}

asio::awaitable<std::string> ask(const upgradeable_streams::server& server, std::string line)
{
    return ask("127.0.0.1", server.sockets().front().port, std::move(line));
}

} // namespace test
