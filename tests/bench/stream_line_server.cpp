// A server of the line protocol on upgradeable_stream, without readers and writers.
//
//   stream_line_server [LAYER] PORT CERTIFICATE KEY
//
// LAYER is the stream that does TLS: asio, which is asio::ssl::stream, unless it is tls_stream.

#include "line_engine.hpp"
#include "line_protocol.hpp"

#include <asio.hpp>
#include <upgradeable_streams.hpp>

#include <cstdlib>
#include <iostream>
#include <span>
#include <string_view>
#include <utility>

namespace us = upgradeable_streams;
using asio::ip::tcp;

namespace
{

template <template <typename> typename TlsLayer>
asio::awaitable<void> converse(tcp::socket socket, asio::ssl::context& ssl)
{
    us::upgradeable_stream<tcp::socket, TlsLayer> stream(std::move(socket),
                                                         {.ssl = &ssl, .role = us::tls_role::server});
    bench::line_buffer input;
    while (co_await bench::answer(stream, input) == bench::verb::starttls)
    {
        const std::string_view received = input.received();
        co_await stream.start_tls({.received = received});
        input.consume(received.size());
    }
    asio::error_code ignored;
    if (stream.is_tls())
        co_await stream.async_shutdown({}, asio::redirect_error(asio::use_awaitable, ignored));
}

template <template <typename> typename TlsLayer>
asio::awaitable<void> serve(bench::arguments given)
{
    asio::ssl::context ssl = us::create_server_context({.identity = {.certificate_chain_file = given.certificate,
                                                                     .private_key_file = given.key,
                                                                     .allow_readable_private_key = true}});
    const auto accepted = [&ssl](tcp::socket socket) { return converse<TlsLayer>(std::move(socket), ssl); };
    co_await bench::listen(given.port, accepted);
}

} // namespace

int main(int argc, char** argv)
{
    std::span<char*> given(argv + 1, argv + argc);
    std::string_view layer = "asio";
    if (given.size() > 3)
    {
        layer = given.front();
        given = given.subspan(1);
    }
    if (layer == "asio")
        return bench::run_server("stream_line_server", given, serve<asio::ssl::stream>);
    if (layer == "tls_stream")
        return bench::run_server("stream_line_server", given, serve<us::tls_stream>);
    std::cerr << "stream_line_server: there is no TLS layer " << layer << "\n";
    return EXIT_FAILURE;
}
