// A server of the line protocol written by hand on Asio alone, without this library: what the others are compared with.
//
//   reference_line_server PORT CERTIFICATE KEY

#include "line_engine.hpp"
#include "line_protocol.hpp"

#include <asio.hpp>
#include <asio/ssl.hpp>

#include <string_view>
#include <utility>

using asio::ip::tcp;

namespace
{

asio::awaitable<void> converse(tcp::socket socket, asio::ssl::context& ssl)
{
    bench::line_buffer input;
    if (co_await bench::answer(socket, input) != bench::verb::starttls)
        co_return;
    asio::ssl::stream<tcp::socket> stream(std::move(socket), ssl);
    asio::error_code error;
    auto token = asio::redirect_error(asio::use_awaitable, error);
    const std::string_view received = input.received();
    co_await stream.async_handshake(asio::ssl::stream_base::server, asio::buffer(received), token);
    if (error)
        co_return;
    input.consume(received.size());
    co_await bench::answer(stream, input);
    co_await stream.async_shutdown(token);
}

asio::awaitable<void> serve(bench::arguments given)
{
    asio::ssl::context ssl(asio::ssl::context::tls_server);
    ssl.set_options(asio::ssl::context::no_tlsv1 | asio::ssl::context::no_tlsv1_1);
    ssl.use_certificate_chain_file(given.certificate);
    ssl.use_private_key_file(given.key, asio::ssl::context::pem);
    const auto accepted = [&ssl](tcp::socket socket) { return converse(std::move(socket), ssl); };
    co_await bench::listen(given.port, accepted);
}

} // namespace

int main(int argc, char** argv)
{
    return bench::run_server("reference_line_server", {argv + 1, argv + argc}, serve);
}
