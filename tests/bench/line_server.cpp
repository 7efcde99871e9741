// A server of the line protocol PING, STARTTLS, ECHO n, SINK n, SOURCE n, QUIT on 127.0.0.1.
//
//   line_server PORT CERTIFICATE KEY

#include <asio.hpp>
#include <upgradeable_streams.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <string_view>
#include <tuple>

namespace us = upgradeable_streams;

namespace
{

std::size_t number(std::string_view text)
{
    std::size_t value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value);
    return value;
}

asio::awaitable<void> handle(us::stream_reader reader, us::stream_writer writer)
{
    static const std::string source(1 << 20, 's');
    for (;;)
    {
        const std::string line = co_await reader.readline();
        const std::string_view text = line;
        if (text == "PING\n")
            writer.write("PONG\n");
        else if (text == "STARTTLS\n")
            std::tie(reader, writer) = co_await writer.start_tls();
        else if (text.starts_with("ECHO "))
        {
            for (std::size_t left = number(text.substr(5)); left > 0;)
            {
                const std::string piece = co_await reader.read(left);
                if (piece.empty())
                    co_return;
                left -= piece.size();
                writer.write(piece);
                co_await writer.drain();
            }
        }
        else if (text.starts_with("SINK "))
        {
            for (std::size_t left = number(text.substr(5)); left > 0;)
            {
                const std::string piece = co_await reader.read(left);
                if (piece.empty())
                    co_return;
                left -= piece.size();
            }
            writer.write("OK\n");
        }
        else if (text.starts_with("SOURCE "))
        {
            for (std::size_t left = number(text.substr(7)); left > 0;)
            {
                const std::string_view piece = std::string_view(source).substr(0, left);
                left -= piece.size();
                writer.write(piece);
                co_await writer.drain();
            }
        }
        else
            co_return;
    }
}

} // namespace

int main(int argc, char** argv)
try
{
    if (argc != 4)
        throw std::invalid_argument("usage: line_server PORT CERTIFICATE KEY");
    asio::io_context io(1);
    asio::ssl::context ssl = us::create_server_context(
        {.identity = {.certificate_chain_file = argv[2], .private_key_file = argv[3], .allow_readable_private_key = true}});
    const auto serve = [&]() -> asio::awaitable<void>
    {
        const us::server_options options = {.ssl = &ssl, .upgradeable = true, .backlog = 4096};
        us::server server = co_await us::start_server(handle, "127.0.0.1", argv[1], options);
        co_await server.serve_forever();
    };
    asio::co_spawn(io, serve, [](std::exception_ptr e) { if (e) std::rethrow_exception(e); });
    io.run();
    return EXIT_SUCCESS;
}
catch (const std::exception& e)
{
    std::cerr << "line_server: " << e.what() << "\n";
    return EXIT_FAILURE;
}
