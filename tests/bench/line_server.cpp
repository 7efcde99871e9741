// A server of the line protocol on readers and writers.
//
//   line_server PORT CERTIFICATE KEY

#include "line_protocol.hpp"

#include <asio.hpp>
#include <upgradeable_streams.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <tuple>

namespace us = upgradeable_streams;

namespace
{

asio::awaitable<void> handle(us::stream_reader reader, us::stream_writer writer)
{
    static std::string scratch(256 * 1024, '\0'); // in use between a read and what follows at once
    for (;;)
    {
        const std::string line = co_await reader.readline();
        const bench::request asked(std::string_view(line).substr(0, line.find('\n')));
        std::size_t left = asked.size;
        switch (asked.what)
        {
        case bench::verb::quit: co_return;
        case bench::verb::ping: writer.write("PONG\n"); break;
        case bench::verb::starttls: std::tie(reader, writer) = co_await writer.start_tls(); break;
        case bench::verb::echo:
            while (left > 0)
            {
                const std::size_t size = co_await reader.readinto({scratch.data(), std::min(left, scratch.size())});
                if (size == 0)
                    co_return;
                left -= size;
                writer.write({scratch.data(), size});
                co_await writer.drain();
            }
            break;
        case bench::verb::sink:
            while (left > 0)
            {
                const std::size_t size = co_await reader.readinto({scratch.data(), std::min(left, scratch.size())});
                if (size == 0)
                    co_return;
                left -= size;
            }
            writer.write("OK\n");
            break;
        case bench::verb::source:
            while (left > 0)
            {
                const std::string_view all = bench::source_bytes;
                const std::string_view piece = all.substr(0, std::min(left, asked.piece));
                left -= piece.size();
                writer.write(piece);
                co_await writer.drain();
            }
        }
    }
}

asio::awaitable<void> serve(bench::arguments given)
{
    asio::ssl::context ssl = us::create_server_context({.identity = {.certificate_chain_file = given.certificate,
                                                                     .private_key_file = given.key,
                                                                     .allow_readable_private_key = true}});
    const us::server_options options = {.ssl = &ssl, .upgradeable = true, .backlog = 4096};
    us::server server = co_await us::start_server(handle, "127.0.0.1", given.port, options);
    bench::announce(server.sockets().front().port);
    co_await server.serve_forever();
}

} // namespace

int main(int argc, char** argv)
{
    return bench::run_server("line_server", {argv + 1, argv + argc}, serve);
}
