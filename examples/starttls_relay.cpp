// A relay for mail: clients upgrade to TLS in place, with the relay's certificate, and are led to the server behind it,
// over STARTTLS, TLS or plain text. What is cut short on one side never looks whole on the other.
//
//   c++ -std=c++20 -DASIO_STANDALONE starttls_relay.cpp -o starttls_relay -lssl -lcrypto -pthread

#include <asio.hpp>
#include <asio/experimental/awaitable_operators.hpp>
#include <upgradeable_streams.hpp>
#include <upgradeable_streams/starttls/smtp.hpp>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>

#include <sys/socket.h>

namespace us = upgradeable_streams;
using namespace std::chrono_literals;
using text_options = std::map<std::string_view, std::string>;
constexpr auto idle = 5min; ///< How long neither side has to say anything before the relay gives up.

constexpr std::string_view usage =
    "usage: starttls_relay --backend-port P [--backend-host H] [--backend-tls starttls|implicit|none]\n"
    "                      [--backend-ca FILE] [--host H] [--port P] [--cert FILE] [--key FILE] [--grace SECONDS]\n"
    "Demands STARTTLS of SMTP clients and relays them to a server. At SIGTERM they have some seconds to end.\n"
    "Defaults: localhost, starttls, the system's trust store, localhost, 10001, ~/.keys/server.crt,\n"
    "~/.keys/server.key, 10. Port 0 picks one.\n";

/// Returns: what is said to a request in plain text; empty to end.
std::string reply(std::string line)
{
    std::ranges::transform(line, line.begin(), [](unsigned char c) { return char(std::toupper(c)); });
    if (line.starts_with("EHLO"))
        return "250-relay\r\n250 STARTTLS\r\n";
    if (line.starts_with("HELO") || line.starts_with("NOOP"))
        return "250 relay\r\n";
    return line.empty() || line.starts_with("QUIT") ? "" : "530 5.7.0 Must issue a STARTTLS command first\r\n";
}

asio::awaitable<us::starttls::negotiated> connect(text_options& options, asio::ssl::context& ssl)
{
    const std::string& tls = options.at("--backend-tls");
    auto [reader, writer] = co_await us::open_connection(options.at("--backend-host"), options.at("--backend-port"),
                                                         {.ssl = tls == "none" ? nullptr : &ssl,
                                                          .upgradeable = tls == "starttls",
                                                          .operation_timeout = idle,
                                                          .ssl_handshake_timeout = 10s,
                                                          .connect_timeout = 10s});
    const auto policy = tls == "starttls" ? us::starttls_policy::require : us::starttls_policy::never;
    co_return co_await us::starttls::smtp(reader, writer, {.policy = policy, .timeout = 10s});
}

struct session
{
    us::stream_writer client, backend;
    std::chrono::steady_clock::time_point active = std::chrono::steady_clock::now();
    std::exception_ptr failure = nullptr;
};

/// Ends a connection so that it does not look whole: without a close_notify, or in plain text with a reset.
void cut(us::stream_writer& writer)
{
    if (writer.is_closing())
        return;
    const linger reset = {.l_onoff = 1, .l_linger = 0};
    if (!writer.is_tls())
        ::setsockopt(writer.get_extra_info<"socket">().value(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    writer.abort();
}

/// Relays one direction up to its end. A failure, whoever's, ends both sides.
asio::awaitable<void> pump(session& both, us::stream_reader& from, us::stream_writer& to, const char* whose)
try
{
    to.set_write_buffer_limits({.high = 0}); // so that what came before a failure has been sent when it is met
    for (std::string data = "-"; !data.empty();)
    {
        try
        {
            data = co_await from.read(64 * 1024);
        }
        catch (const std::system_error& e)
        {
            if (e.code() == us::errc::operation_timeout && std::chrono::steady_clock::now() - both.active < idle)
                continue; // the other direction is busy
            throw std::system_error(e.code(), whose);
        }
        both.active = std::chrono::steady_clock::now();
        to.write(data);
        co_await to.drain();
    }
    to.can_write_eof() ? to.write_eof() : to.close(); // in TLS 1.2 both directions end, and the other looks cut
}
catch (const std::system_error& e)
{
    if (!both.failure && e.code() != us::errc::connection_closed) // by the relay itself
        both.failure = std::current_exception();
    cut(both.client);
    cut(both.backend);
}

asio::awaitable<void> serve(text_options& options, asio::ssl::context& backend_ssl, us::stream_reader reader,
                            us::stream_writer writer)
{
    writer.write("220 relay ESMTP\r\n");
    for (int most = 20; !reader.is_tls(); --most)
    {
        const std::string line = co_await reader.readline();
        const std::string answer = reply(line);
        if (most == 0 || answer.empty())
            co_return;
        if (us::starttls::is_smtp_request(line))
            std::tie(reader, writer) = co_await us::starttls::answer_smtp(reader, writer, line);
        else
            writer.write(answer);
    }
    us::starttls::negotiated backend;
    try
    {
        backend = co_await connect(options, backend_ssl);
    }
    catch (...)
    {
        writer.write("421 4.3.2 The server behind the relay is not available\r\n");
        throw;
    }
    session both = {writer, backend.writer};
    using namespace asio::experimental::awaitable_operators;
    co_await (pump(both, reader, both.backend, "client") && pump(both, backend.reader, both.client, "backend"));
    if (both.failure)
        std::rethrow_exception(both.failure);
    both.backend.close();
    co_await both.backend.wait_closed(); // within the server's grace
}

asio::awaitable<void> run(asio::io_context& io, text_options& options, asio::ssl::context& ssl,
                          asio::ssl::context& backend_ssl)
{
    asio::signal_set signals(io, SIGINT, SIGTERM);
    const std::chrono::seconds grace(std::stoi(options.at("--grace")));
    const auto handler = std::bind_front(serve, std::ref(options), std::ref(backend_ssl));
    us::server server = co_await us::start_server(handler, options.at("--host"), options.at("--port"),
                                                  {.ssl = &ssl, .upgradeable = true, .operation_timeout = idle});
    std::cout << "listening on " << server.sockets().front().to_string() << std::endl;
    co_await signals.async_wait(asio::use_awaitable);
    server.close();
    asio::steady_timer cutting(io, grace), stopping(io, grace + 1s);
    cutting.async_wait([server](asio::error_code e) mutable { e ? void() : server.abort_clients(); });
    stopping.async_wait([&io](asio::error_code e) { e ? void() : io.stop(); }); // where one still awaits the backend
    co_await server.wait_closed();
}

int main(int argc, char** argv)
try
{
    const std::string keys = std::string(std::getenv("HOME") ? std::getenv("HOME") : ".") + "/.keys/server.";
    text_options options = {{"--host", "localhost"}, {"--port", "10001"},           {"--cert", keys + "crt"},
                            {"--key", keys + "key"}, {"--backend-port", ""},        {"--backend-host", "localhost"},
                            {"--backend-ca", ""},    {"--backend-tls", "starttls"}, {"--grace", "10"}};
    for (int i = 1; i < argc; i += 2)
    {
        if (std::string_view(argv[i]) == "--help")
            return (std::cout << usage), EXIT_SUCCESS;
        if (!options.contains(argv[i]) || i + 1 == argc)
            throw std::invalid_argument(std::string(argv[i]) + " is unknown or lacks a value; see --help");
        options[argv[i]] = argv[i + 1];
    }
    const std::string& tls = options["--backend-tls"];
    if (options["--backend-port"].empty() || (tls != "starttls" && tls != "implicit" && tls != "none"))
        throw std::invalid_argument("--backend-port is missing, or --backend-tls is unknown; see --help");
    if (options["--grace"].empty() || options["--grace"].find_first_not_of("0123456789") != std::string::npos)
        throw std::invalid_argument("--grace takes a number of seconds; see --help");
    asio::io_context io;
    asio::ssl::context ssl = us::create_server_context(
        {.identity = {.certificate_chain_file = options["--cert"], .private_key_file = options["--key"]}});
    asio::ssl::context backend_ssl = us::create_client_context({.ca_file = options["--backend-ca"]});
    asio::co_spawn(io, run(io, options, ssl, backend_ssl),
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
    std::cerr << "starttls_relay: " << e.what() << "\n";
    return EXIT_FAILURE;
}
