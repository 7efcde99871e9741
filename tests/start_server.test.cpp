#include <upgradeable_streams/detail/client_registry.hpp>
#include <upgradeable_streams/detail/handshake_limit.hpp>
#include <upgradeable_streams/start_server.hpp>

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/chunked_stream.hpp"
#include "support/deadline.hpp"
#include "support/descriptors.hpp"
#include "support/echo_server.hpp"
#include "support/process.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/socket_pair.hpp"
#include "support/temporary_directory.hpp"
#include "support/thread.hpp"

#include <asio/awaitable.hpp>
#include <asio/bind_executor.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/error.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/multiple_exceptions.hpp>
#include <asio/post.hpp>
#include <asio/ssl/context.hpp>
#include <asio/ssl/error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_awaitable.hpp>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <future>
#include <iostream>
#include <iterator>
#include <list>
#include <memory>
#include <new>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using namespace std::chrono_literals;
using asio::ip::tcp;

namespace
{

/// Answers one line with the local address, and returns.
asio::awaitable<void> tell_address(us::stream_reader reader, us::stream_writer writer)
{
    co_await reader.readline();
    writer.write(writer.get_extra_info<"sockname">()->to_string() + "\n");
}

asio::awaitable<void> never_called(us::stream_reader, us::stream_writer)
{
    throw std::logic_error("this handler is not to be called");
}

bool have_ipv6()
{
    asio::io_context io;
    tcp::acceptor acceptor(io);
    asio::error_code error;
    acceptor.open(tcp::v6(), error);
    if (!error)
        acceptor.bind({asio::ip::address_v6::loopback(), 0}, error);
    if (error)
        WARN("this machine has no IPv6; a part of the test is left out");
    return !error;
}

std::optional<int> socket_option(int descriptor, int level, int name)
{
    int value = 0;
    socklen_t size = sizeof value;
    return ::getsockopt(descriptor, level, name, &value, &size) == 0 ? std::optional(value) : std::nullopt;
}

/// The descriptor of this process that is bound to a port of 127.0.0.1.
int descriptor_of(std::uint16_t port)
{
    for (int descriptor = 0; descriptor < 1024; ++descriptor)
    {
        sockaddr_in address{};
        socklen_t size = sizeof address;
        sockaddr* const any = reinterpret_cast<sockaddr*>(&address);
        const bool bound = ::getsockname(descriptor, any, &size) == 0 && address.sin_family == AF_INET;
        if (bound && ntohs(address.sin_port) == port && ::getpeername(descriptor, any, &size) != 0)
            return descriptor;
    }
    throw test::failure("no descriptor is bound to port " + std::to_string(port));
}

/// What a server on a Unix domain socket answers to one line.
asio::awaitable<std::string> ask_unix(std::string path, std::string line)
{
    auto [reader, writer] = co_await us::open_unix_connection(path);
    writer.write(line);
    std::string answer = co_await reader.readline();
    writer.close();
    co_await writer.wait_closed();
    co_return answer;
}

/// All that start_server is given is gone when this returns, but for the two that are shared.
asio::awaitable<std::pair<us::server, std::uint16_t>>
start_with_captures(std::shared_ptr<std::vector<std::string>> reported, std::shared_ptr<int> calls)
{
    const auto handle = [calls, answer = std::string("an answer that is longer than a short string holds\n")](
                            us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
    {
        co_await reader.readline();
        ++*calls;
        writer.write(answer);
        throw std::runtime_error("thrown by the handler");
    };
    const auto on_error = [reported, prefix = std::string("reported by the server's error handler: ")](
                              std::exception_ptr error, const us::socket_address&)
    {
        try
        {
            std::rethrow_exception(error);
        }
        catch (const std::exception& e)
        {
            reported->push_back(prefix + e.what());
        }
    };
    us::server server = co_await us::start_server(handle, {std::string("127.0.0.1"), std::string("127.0.0.2")},
                                                  std::string("0"), {.backlog = 10, .error_handler = on_error});
    const std::uint16_t port = server.sockets().at(0).port;
    co_return std::pair(std::move(server), port);
}

bool is_socket_file(const std::string& path)
{
    struct stat status;
    return ::lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode);
}

bool exists(const std::string& path)
{
    struct stat status;
    return ::lstat(path.c_str(), &status) == 0;
}

/// Makes a socket file that nobody listens on.
void make_stale_socket(const std::string& path)
{
    asio::io_context io;
    asio::local::stream_protocol::acceptor acceptor(io, asio::local::stream_protocol::endpoint(path));
}

/// Collects what is written to std::clog while it lives.
class captured_clog
{
public:
    captured_clog() : before_(std::clog.rdbuf(text_.rdbuf())) {}
    ~captured_clog() { std::clog.rdbuf(before_); }
    captured_clog(const captured_clog&) = delete;
    captured_clog& operator=(const captured_clog&) = delete;

    std::string text() const { return text_.str(); }

private:
    std::ostringstream text_;
    std::streambuf* before_;
};

} // namespace

TEST_CASE("start_server: port 0 picks a port, which the server tells")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0);
            const auto sockets = server.sockets();
            REQUIRE(sockets.size() == 1);
            CHECK(sockets[0].host == "127.0.0.1");
            CHECK(sockets[0].port != 0);
            CHECK(server.is_serving());
            const std::string answer = co_await test::ask(server, "hello\n");
            CHECK(answer == "hello\n");
        });
}

TEST_CASE("start_server: with several hosts port 0 picks one port for all, and each is served")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::server server =
                co_await us::start_server(tell_address, {"127.0.0.1", "127.0.0.2", "127.0.0.3"}, 0);
            const auto sockets = server.sockets();
            REQUIRE(sockets.size() == 3);
            std::set<std::string> hosts;
            for (const auto& socket : sockets)
            {
                hosts.insert(socket.host);
                CHECK(socket.port == sockets[0].port);
                const std::string answer = co_await test::ask(socket.host, socket.port, "?\n");
                CHECK(answer == socket.to_string() + "\n");
            }
            CHECK(hosts == std::set<std::string>{"127.0.0.1", "127.0.0.2", "127.0.0.3"});
        });
}

TEST_CASE("start_server: without a host it listens on all interfaces, IPv4 and IPv6 on the same port")
{
    const bool ipv6 = have_ipv6();
    test::run(
        [ipv6]() -> asio::awaitable<void>
        {
            const us::server server = co_await us::start_server(tell_address, {}, 0);
            const std::uint16_t port = server.sockets().front().port;
            for (const auto& socket : server.sockets())
            {
                CHECK(socket.port == port);
                CHECK((socket.host == "0.0.0.0" || socket.host == "::"));
            }
            const std::string v4 = co_await test::ask("127.0.0.1", port, "?\n");
            CHECK(v4 == "127.0.0.1:" + std::to_string(port) + "\n");
            if (!ipv6)
                co_return;
            CHECK(server.sockets().size() == 2);
            const std::string v6 = co_await test::ask("::1", port, "?\n");
            CHECK(v6 == "[::1]:" + std::to_string(port) + "\n");
        });
}

TEST_CASE("start_server: family restricts what a host is resolved to")
{
    const bool ipv6 = have_ipv6();
    test::run(
        [ipv6]() -> asio::awaitable<void>
        {
            const us::server v4 = co_await us::start_server(test::echo, {}, 0, {.family = us::ip_family::v4});
            REQUIRE(v4.sockets().size() == 1);
            CHECK(v4.sockets()[0].host == "0.0.0.0");
            if (!ipv6)
                co_return;
            const us::server v6 = co_await us::start_server(test::echo, {}, 0, {.family = us::ip_family::v6});
            REQUIRE(v6.sockets().size() == 1);
            CHECK(v6.sockets()[0].host == "::");
        });
}

TEST_CASE("start_server: where no thread can be started to resolve a name on, that is the error")
{
    const int status = test::run_forked(
        []
        {
            test::forbid_threads();
            const auto error = test::run([] { return error_of(us::start_server(test::echo, "localhost", 0)); });
            return error.value();
        });
    CHECK(status == EAGAIN);
}

TEST_CASE("start_server: an address that is given twice is bound once")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::server server = co_await us::start_server(test::echo, {"127.0.0.1", "127.0.0.1"}, 0);
            CHECK(server.sockets().size() == 1);
        });
}

TEST_CASE("start_server: an address that this machine does not have is passed over only while there is another")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::server server = co_await us::start_server(test::echo, {"192.0.2.1", "127.0.0.1"}, 0);
            REQUIRE(server.sockets().size() == 1);
            CHECK(server.sockets()[0].host == "127.0.0.1");

            const auto error =
                co_await test::exception_of<std::system_error>(us::start_server(never_called, "192.0.2.1", 0));
            CHECK(error.code().value() == EADDRNOTAVAIL);
            CHECK_THAT(error.what(), test::contains("192.0.2.1"));
        });
}

TEST_CASE("start_server: a host or a service that is unknown is named in the error")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto host =
                co_await test::exception_of<std::system_error>(us::start_server(never_called, "no such host", 0));
            CHECK_THAT(host.what(), test::contains("no such host"));
            const auto service = co_await test::exception_of<std::system_error>(
                us::start_server(never_called, "127.0.0.1", "no-such-service"));
            CHECK_THAT(service.what(), test::contains("no-such-service"));
        });
}

TEST_CASE("start_server: an address in use is named in the error, also after one that was passed over")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::server first = co_await us::start_server(test::echo, "127.0.0.1", 0);
            const std::uint16_t port = first.sockets()[0].port;
            const auto error =
                co_await test::exception_of<std::system_error>(us::start_server(never_called, "127.0.0.1", port));
            CHECK(error.code() == asio::error::address_in_use);
            CHECK_THAT(error.what(), test::contains("127.0.0.1:" + std::to_string(port)));

            const auto second = co_await test::exception_of<std::system_error>(
                us::start_server(never_called, {"192.0.2.1", "127.0.0.1"}, port));
            CHECK(second.code() == asio::error::address_in_use);
            CHECK_THAT(second.what(), test::contains("127.0.0.1:" + std::to_string(port)));
            const std::string answer = co_await test::ask(first, "still here\n");
            CHECK(answer == "still here\n");
        });
}

TEST_CASE("start_server: options that make no sense are std::invalid_argument at the call")
{
    const auto refused = [](const us::server_options& options)
    { CHECK_THROWS_AS(us::start_server(never_called, "127.0.0.1", 0, options), std::invalid_argument); };

    refused({.upgradeable = true});
    refused({.limit = 0});
    refused({.operation_timeout = 0s});
    refused({.ssl_handshake_timeout = 0s});
    refused({.ssl_handshake_timeout = -1s});
    refused({.ssl_shutdown_timeout = 0s});
    refused({.backlog = 0});
    refused({.backlog = -1});
    refused({.max_connections = 0});
    refused({.max_handshakes = 0});
    refused({.ssl = &test::client_context()});
    refused({.detect_tls = true});
    refused({.ssl = &test::server_context(), .detect_tls = true});
    for (const auto timeout : {0s, -1s})
        refused({.ssl = &test::server_context(), .upgradeable = true, .detect_tls = true, .detect_timeout = timeout});
    CHECK_THROWS_AS(us::start_server({}, "127.0.0.1", 0), std::invalid_argument);
    CHECK_THROWS_AS(us::start_server(never_called, "127.0.0.1", 65536), std::invalid_argument);
    CHECK_THROWS_AS(us::start_server(never_called, "127.0.0.1", -1), std::invalid_argument);
    CHECK_THROWS_AS(us::start_server(never_called, "127.0.0.1", ""), std::invalid_argument);
    CHECK_THROWS_AS(us::start_server(never_called, "127.0.0.1", std::string_view("80\0x", 4)), std::invalid_argument);
    CHECK_THROWS_AS(us::start_server(never_called, std::string_view("127.0.0.1\0x", 11), 0), std::invalid_argument);
}

TEST_CASE("start_server: strings, callables and what they capture need to live no longer than the call")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto reported = std::make_shared<std::vector<std::string>>();
            const auto calls = std::make_shared<int>(0);
            {
                auto [server, port] = co_await start_with_captures(reported, calls);
                for (int i = 1; i <= 3; ++i)
                {
                    const std::string answer = co_await test::ask("127.0.0.2", port, "?\n");
                    CHECK(answer == "an answer that is longer than a short string holds\n");
                    co_await test::eventually([&] { return reported->size() == std::size_t(i); });
                    CHECK(reported->back() == "reported by the server's error handler: thrown by the handler");
                }
                CHECK(*calls == 3);
            }
            co_await test::eventually([&] { return reported.use_count() == 1 && calls.use_count() == 1; });
        });
}

TEST_CASE("start_server: lambdas that capture references may be temporaries")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            int calls = 0;
            int reports = 0;
            const us::server server = co_await us::start_server(
                [&calls](us::stream_reader, us::stream_writer) -> asio::awaitable<void>
                {
                    ++calls;
                    throw std::runtime_error("thrown by the handler");
                    co_return;
                },
                "127.0.0.1", 0,
                {.error_handler = [&reports](std::exception_ptr, const us::socket_address&) { ++reports; }});
            for (int i = 1; i <= 2; ++i)
            {
                co_await test::ask(server, "");
                co_await test::eventually([&] { return reports == i; });
            }
            CHECK(calls == 2);
        });
}

TEST_CASE("start_server: ssl without upgradeable is TLS from the first byte")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            asio::ssl::context client_ssl = test::make_client_context();
            const auto handle = [](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const std::string line = co_await reader.readline();
                writer.write(reader.is_tls() ? "secure " + line : "plain " + line);
            };
            const us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.ssl = &server_ssl});
            const auto [certificate, answer] = co_await test::ask_tls(server.sockets()[0].port, client_ssl, "hello\n");
            CHECK(answer == "secure hello\n");
        });
}

TEST_CASE("start_server: with ssl at once the handler is called only after the handshake, and never without")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context ssl = test::make_server_context();
            const test::error_log errors;
            const us::server server =
                co_await us::start_server(never_called, "127.0.0.1", 0, {.ssl = &ssl, .error_handler = errors});
            const auto reply = test::run_in_thread(
                [endpoint = test::endpoint_of(server)]
                {
                    auto peer = test::raw_peer::connect(endpoint);
                    peer.send_all("EHLO example.org\r\n");
                    peer.recv_all();
                });
            co_await test::eventually([&] { return errors.size() == 1; });
            CHECK(errors.entries()[0].code == us::errc::plaintext_injection);
            CHECK(errors.entries()[0].peer.host == "127.0.0.1");
        });
}

TEST_CASE("start_server: upgradeable connections begin in plain text and the handler upgrades them")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            asio::ssl::context client_ssl = test::make_client_context();
            const us::server server =
                co_await us::start_server(test::echo, "127.0.0.1", 0, {.ssl = &server_ssl, .upgradeable = true});
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port,
                                                                 {.ssl = &client_ssl, .upgradeable = true});
            writer.write("plain\n");
            const std::string plain = co_await reader.readline();
            CHECK(plain == "plain\n");
            CHECK_FALSE(reader.is_tls());
            writer.write("STARTTLS\n");
            std::tie(reader, writer) = co_await writer.start_tls();
            CHECK(reader.is_tls());
            writer.write("secure\n");
            const std::string secure = co_await reader.readline();
            CHECK(secure == "secure\n");
        });
}

TEST_CASE("start_server: without ssl a handler's start_tls is not_upgradeable, and the connection goes on")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto handle = [](us::stream_reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const auto error = co_await test::error_of(writer.start_tls());
                writer.write(error == us::errc::not_upgradeable ? "not upgradeable\n" : "another error\n");
            };
            const us::server server = co_await us::start_server(handle, "127.0.0.1", 0);
            const std::string answer = co_await test::ask(server, "");
            CHECK(answer == "not upgradeable\n");
        });
}

TEST_CASE("start_server: limit bounds the lines of the handler's reader")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const test::error_log errors;
            const us::server server =
                co_await us::start_server(test::echo, "127.0.0.1", 0, {.limit = 8, .error_handler = errors});
            const std::string exact = co_await test::ask(server, "12345678\n");
            CHECK(exact == "12345678\n");
            const std::string longer = co_await test::ask(server, "123456789\n");
            CHECK(longer.empty());
            co_await test::eventually([&] { return errors.size() == 1; });
            CHECK(errors.entries()[0].code == us::errc::limit_overrun);
        });
}

TEST_CASE("start_server: operation_timeout ends what a handler waits for, which may still answer")
{
    const bool upgradeable = GENERATE(false, true);
    CAPTURE(upgradeable);
    test::run(
        [=]() -> asio::awaitable<void>
        {
            const auto handler = [](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const auto late = co_await test::error_of(reader.readline());
                writer.write(late == us::errc::operation_timeout ? "421 timeout\n" : "no timeout\n");
            };
            us::server server = co_await us::start_server(handler, "127.0.0.1", 0,
                                                          {.ssl = upgradeable ? &test::server_context() : nullptr,
                                                           .upgradeable = upgradeable,
                                                           .detect_tls = upgradeable,
                                                           .detect_timeout = upgradeable ? std::optional(1ms)
                                                                                         : std::nullopt,
                                                           .operation_timeout = 5ms});
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            const std::string answer = co_await reader.read();
            CHECK(answer == "421 timeout\n");
        });
}

TEST_CASE("start_server: the time in which a beginning is awaited bounds no read of the handler")
{
    const bool by_proxy = GENERATE(false, true);
    test::run(
        [=]() -> asio::awaitable<void>
        {
            us::server_options options = {.ssl = &test::server_context(), .upgradeable = true};
            const auto everyone = [](const us::socket_address&) { return true; };
            if (by_proxy)
                options.proxy_protocol = everyone;
            else
                options.detect_tls = true;
            options.ssl_handshake_timeout = 300ms;
            const us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, options);
            auto peer = test::raw_peer::connect(test::endpoint_of(server));
            peer.send_all(by_proxy ? "PROXY UNKNOWN\r\nsl" : "sl");
            asio::steady_timer longer(co_await asio::this_coro::executor, 450ms);
            co_await longer.async_wait(asio::use_awaitable);
            peer.send_all("ow\n");
            const std::string line = co_await test::joined(test::run_in_thread([&] { return peer.recv_line(); }));
            CHECK(line == "slow\n");
        });
}

TEST_CASE("start_server: backlog and reuse_address are those of the listening socket")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, {.backlog = 7});
            const int descriptor = descriptor_of(server.sockets()[0].port);
            tcp_info info{};
            socklen_t size = sizeof info;
            REQUIRE(::getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &size) == 0);
            CHECK(info.tcpi_sacked == 7); // of a listening socket, Linux tells its backlog here
            CHECK(socket_option(descriptor, SOL_SOCKET, SO_REUSEADDR) == 1);
            CHECK(socket_option(descriptor, SOL_SOCKET, SO_REUSEPORT) == 0);

            const us::server other = co_await us::start_server(test::echo, "127.0.0.1", 0, {.reuse_address = false});
            CHECK(socket_option(descriptor_of(other.sockets()[0].port), SOL_SOCKET, SO_REUSEADDR) == 0);
        });
}

TEST_CASE("start_server: a port that connections still use can be bound again with reuse_address only")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::server first = co_await us::start_server(test::echo, "127.0.0.1", 0);
            const std::uint16_t port = first.sockets()[0].port;
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", port);
            writer.write("a connection\n");
            co_await reader.readline();
            first.close();
            co_await test::until_refused(port);

            const auto error =
                co_await test::error_of(us::start_server(never_called, "127.0.0.1", port, {.reuse_address = false}));
            CHECK(error == asio::error::address_in_use);
            const us::server second = co_await us::start_server(test::echo, "127.0.0.1", port);
            const std::string answer = co_await test::ask(second, "the second\n");
            CHECK(answer == "the second\n");
        });
}

TEST_CASE("start_server: with reuse_port two servers share one port, and the second takes over from the first")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::server first = co_await us::start_server(test::echo, "127.0.0.1", 0, {.reuse_port = true});
            const std::uint16_t port = first.sockets()[0].port;
            const us::server second = co_await us::start_server(test::echo, "127.0.0.1", port, {.reuse_port = true});
            CHECK(second.sockets()[0].port == port);
            first.close();
            co_await first.wait_closed();
            const std::string answer = co_await test::ask(second, "hello\n");
            CHECK(answer == "hello\n");
        });
}

TEST_CASE("start_server: keep_alive is set on connections when asked for, TCP_NODELAY always")
{
    const bool keep_alive = GENERATE(false, true);
    test::run(
        [keep_alive]() -> asio::awaitable<void>
        {
            std::optional<int> seen_keep_alive;
            std::optional<int> seen_no_delay;
            const auto handle = [&](us::stream_reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const int descriptor = writer.get_extra_info<"socket">().value();
                seen_keep_alive = socket_option(descriptor, SOL_SOCKET, SO_KEEPALIVE);
                seen_no_delay = socket_option(descriptor, IPPROTO_TCP, TCP_NODELAY);
                co_return;
            };
            const us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.keep_alive = keep_alive});
            co_await test::ask(server, "");
            CHECK(seen_keep_alive == int(keep_alive));
            CHECK(seen_no_delay == 1);
        });
}

TEST_CASE("start_server: with start_serving = false connections are refused until server::start_serving")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, {.start_serving = false});
            const std::uint16_t port = server.sockets().at(0).port;
            CHECK_FALSE(server.is_serving());
            const auto refused = co_await test::error_of(us::open_connection("127.0.0.1", port));
            CHECK(refused == asio::error::connection_refused);

            server.start_serving();
            server.start_serving();
            CHECK(server.is_serving());
            CHECK(server.sockets().at(0).port == port);
            const std::string answer = co_await test::ask(server, "hello\n");
            CHECK(answer == "hello\n");
        });
}

TEST_CASE("start_server: start_serving names an address that another has begun to listen on")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, {.start_serving = false});
            const auto address = server.sockets().at(0);
            const us::server other = co_await us::start_server(test::echo, "127.0.0.1", address.port);
            CHECK_THROWS_MATCHES(server.start_serving(), std::system_error,
                                 test::message_contains(address.to_string()));
            CHECK_FALSE(server.is_serving());
        });
}

TEST_CASE("start_server: a handler that returns closes its connection after what it wrote was sent")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const std::size_t size = 4 * 1024 * 1024;
            const auto handle = [](us::stream_reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                writer.write(std::string(size, 'x'));
                co_return;
            };
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0);
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            const std::string received = co_await reader.read();
            CHECK(received.size() == size);
            server.close();
            co_await server.wait_closed();
        });
}

TEST_CASE("start_server: a handler that returns closes its connection, whoever still holds the reader and writer")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            std::optional<std::pair<us::stream_reader, us::stream_writer>> kept;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                writer.write("goodbye\n");
                kept.emplace(std::move(reader), std::move(writer));
                co_return;
            };
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0);
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            const std::string received = co_await reader.read();
            CHECK(received == "goodbye\n");
            server.close();
            co_await server.wait_closed();
            CHECK(kept->second.is_closing());
            const auto error = co_await test::error_of(kept->first.readline());
            CHECK(error == us::errc::connection_closed);
        });
}

TEST_CASE("start_server: a handler that throws is reported and the server goes on")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto handle = [](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const std::string line = co_await reader.readline();
                if (line == "throw\n")
                    throw std::runtime_error("as asked for");
                writer.write(line);
            };
            const test::error_log errors;
            const us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.error_handler = errors});
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            const auto client = writer.get_extra_info<"sockname">();
            writer.write("throw\n");
            const std::string rest = co_await reader.read();
            CHECK(rest.empty());
            co_await test::eventually([&] { return errors.size() == 1; });
            CHECK(errors.entries()[0].what == "as asked for");
            CHECK(errors.entries()[0].peer == client);
            const std::string answer = co_await test::ask(server, "hello\n");
            CHECK(answer == "hello\n");
            CHECK(errors.size() == 1);
        });
}

TEST_CASE("start_server: a handler that has ended on another executor is reported and closed where its connection is used")
{
    asio::thread_pool pool(1);
    std::thread::id reported;
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto handle = [&](us::stream_reader reader, us::stream_writer) -> asio::awaitable<void>
            {
                auto elsewhere = asio::bind_executor(pool.get_executor(), asio::use_awaitable);
                co_await reader.readline();
                co_await asio::post(std::move(elsewhere));
                throw std::runtime_error("thrown on another executor");
            };
            us::server_options options;
            options.error_handler = [&](std::exception_ptr, const us::socket_address&)
            { reported = std::this_thread::get_id(); };
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0, options);
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets().front().port);
            writer.write("line\n");
            const std::string rest = co_await reader.read();
            CHECK(rest.empty());
            server.close();
            co_await server.wait_closed();
        });
    pool.join();
    CHECK(reported == std::this_thread::get_id());
}

TEST_CASE("start_server: a handler that throws loses its connection even when its reader and writer live on")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            std::optional<std::pair<us::stream_reader, us::stream_writer>> kept;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                kept.emplace(reader, writer);
                writer.write("goodbye\n");
                throw std::runtime_error("as asked for");
                co_return;
            };
            const test::error_log errors;
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.error_handler = errors});
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            const std::string received = co_await reader.read();
            CHECK(received == "goodbye\n");
            CHECK(errors.size() == 1);
            server.close();
            co_await server.wait_closed();
        });
}

TEST_CASE("start_server: a handler that throws at the call, before it is a coroutine, is reported too")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto handle = [](us::stream_reader, us::stream_writer) -> asio::awaitable<void>
            { throw std::runtime_error("no coroutine"); };
            const test::error_log errors;
            const us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.error_handler = errors});
            const std::string answer = co_await test::ask(server, "hello\n");
            CHECK(answer.empty());
            co_await test::eventually([&] { return errors.size() == 1; });
            CHECK(errors.entries()[0].what == "no coroutine");
        });
}

TEST_CASE("start_server: a failed handshake is reported with its reason and the server goes on")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            asio::ssl::context client_ssl = test::make_client_context();
            const test::error_log errors;
            const us::server server =
                co_await us::start_server(test::echo, "127.0.0.1", 0, {.ssl = &server_ssl, .error_handler = errors});
            const auto client = [endpoint = test::endpoint_of(server)]
            {
                test::tls_settings settings = test::localhost_client();
                settings.ca_file = test::unrelated_authority().ca_file();
                auto peer = test::raw_peer::connect(endpoint);
                CHECK_THROWS_AS(peer.tls_connect(settings), test::failure);
            };
            co_await test::joined(test::run_in_thread(client));
            co_await test::eventually([&] { return errors.size() == 1; });
            CHECK(errors.entries()[0].code.category() == asio::error::get_ssl_category());
            const auto [certificate, answer] = co_await test::ask_tls(server.sockets()[0].port, client_ssl, "hello\n");
            CHECK(answer == "hello\n");
        });
}

TEST_CASE("start_server: what an error handler throws is dropped")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            int calls = 0;
            const auto handle = [](us::stream_reader, us::stream_writer) -> asio::awaitable<void>
            {
                throw std::runtime_error("by the handler");
                co_return;
            };
            const auto on_error = [&](std::exception_ptr, const us::socket_address&)
            {
                if (++calls == 1)
                    throw std::runtime_error("by the error handler");
                throw 42;
            };
            const us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.error_handler = on_error});
            for (int i = 1; i <= 3; ++i)
            {
                co_await test::ask(server, "");
                co_await test::eventually([&] { return calls == i; });
            }
        });
}

TEST_CASE("start_server: an error handler may be a plain function")
{
    static int calls = 0;
    calls = 0;
    struct plain
    {
        static void report(std::exception_ptr, const us::socket_address&) { ++calls; }
    };
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::server server =
                co_await us::start_server(never_called, "127.0.0.1", 0, {.error_handler = plain::report});
            co_await test::ask(server, "");
            co_await test::eventually([] { return calls == 1; });
        });
}

TEST_CASE("start_server: without an error handler errors are lines on std::clog")
{
    const captured_clog clog;
    test::run(
        [&clog]() -> asio::awaitable<void>
        {
            const auto handle = [](us::stream_reader reader, us::stream_writer) -> asio::awaitable<void>
            {
                const std::string line = co_await reader.readline();
                if (line == "int\n")
                    throw 42;
                const std::exception_ptr error = std::make_exception_ptr(std::runtime_error("thrown by the handler"));
                if (line == "several\n")
                    throw asio::multiple_exceptions(error);
                std::rethrow_exception(error);
            };
            const us::server server = co_await us::start_server(handle, "127.0.0.1", 0);
            co_await test::ask(server, "exception\n");
            co_await test::eventually([&] { return clog.text().ends_with("\n"); });
            CHECK_THAT(clog.text(), test::contains("127.0.0.1:"));
            CHECK_THAT(clog.text(), test::contains(": thrown by the handler\n"));
            const auto lines = [&clog]
            {
                const std::string text = clog.text();
                return std::ranges::count(text, '\n');
            };
            co_await test::ask(server, "several\n");
            co_await test::eventually([&] { return lines() == 2; });
            CHECK_THAT(clog.text(), test::ends_with(": thrown by the handler\n"));
            co_await test::ask(server, "int\n");
            co_await test::eventually([&] { return lines() == 3; });

            std::optional<test::descriptor_limit> limit(std::in_place, 1);
            const auto waiting = test::raw_peer::connect(test::endpoint_of(server)); // takes the last descriptor
            co_await test::eventually([&] { return lines() == 4; });
            limit.reset();
            CHECK_THAT(clog.text(), test::contains("\nupgradeable_streams: accept: "));
        });
}

TEST_CASE("start_server: what a proxy tells of a client forges no line of the log")
{
    const captured_clog clog;
    test::run(
        [&clog]() -> asio::awaitable<void>
        {
            const auto handle = [](us::stream_reader, us::stream_writer) -> asio::awaitable<void>
            {
                throw std::runtime_error("thrown");
                co_return;
            };
            const auto everyone = [](const us::socket_address&) { return true; };
            const us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.proxy_protocol = everyone});
            auto peer = test::raw_peer::connect(test::endpoint_of(server));
            std::string path = "/run/x\nupgradeable_streams: a lie";
            path.resize(108);
            const std::string head("\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd8", 16); // version 2, of Unix domain sockets
            peer.send_all(head + path + std::string(108, '\0'));
            co_await test::eventually([&] { return clog.text().ends_with(": thrown\n"); });
            const std::string text = clog.text();
            CHECK(std::ranges::count(text, '\n') == 1);
            CHECK_THAT(text, test::contains("/run/x\\x0aupgradeable_streams: a lie"));
        });
}

TEST_CASE("start_server: a peer that connects and says nothing is dropped, and holds nobody else up")
{
    const bool upgradeable = GENERATE(false, true);
    test::run(
        [upgradeable]() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            const test::error_log errors;
            const us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0,
                                                                {.ssl = &server_ssl,
                                                                 .upgradeable = upgradeable,
                                                                 .ssl_handshake_timeout = 500ms,
                                                                 .error_handler = errors});
            const std::string_view greeting = upgradeable ? "STARTTLS\n" : "";
            auto silent = test::raw_peer::connect(test::endpoint_of(server));
            silent.send_all(greeting);
            const auto talk = [endpoint = test::endpoint_of(server), greeting]
            {
                auto peer = test::raw_peer::connect(endpoint);
                peer.send_all(greeting);
                peer.tls_connect(test::localhost_client());
                peer.tls_write("hello\n");
                return peer.tls_read_line();
            };
            const std::string line = co_await test::joined(test::run_in_thread(talk));
            CHECK(line == "hello\n");
            const std::string rest = co_await test::joined(test::run_in_thread([&] { return silent.recv_all(); }));
            CHECK(rest.empty());
            const auto timed_out = [&]
            {
                return std::ranges::count(errors.entries(), make_error_code(us::errc::handshake_timeout),
                                          &test::error_log::entry::code) == 1;
            };
            co_await test::eventually(timed_out);
        });
}

TEST_CASE("start_server: max_connections are served at once, the next waits until one leaves")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            int handlers = 0;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                ++handlers;
                co_await test::echo(std::move(reader), std::move(writer));
            };
            const us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.max_connections = 2});
            const std::uint16_t port = server.sockets()[0].port;
            auto [reader1, writer1] = co_await us::open_connection("127.0.0.1", port);
            auto [reader2, writer2] = co_await us::open_connection("127.0.0.1", port);
            auto [reader3, writer3] = co_await us::open_connection("127.0.0.1", port);
            writer3.write("third\n");
            for (int i = 0; i < 10; ++i)
            {
                writer1.write("first\n");
                co_await reader1.readline();
                writer2.write("second\n");
                co_await reader2.readline();
            }
            CHECK(handlers == 2);
            writer2.close();
            const std::string line = co_await reader3.readline();
            CHECK(line == "third\n");
            CHECK(handlers == 3);
        });
}

TEST_CASE("start_server: of a connection that goes are told those that asked, and of the next if that failed")
{
    int told = 0;
    const auto tell = [&]
    {
        if (++told == 1)
            throw std::bad_alloc();
    };
    const auto registry = std::make_shared<us::detail::client_registry>(2, tell);
    std::vector<us::detail::client_registry::entry> entries;
    for (int i = 0; i < 2; ++i)
        entries.emplace_back(registry);
    CHECK(!registry->has_room());
    entries.pop_back();
    CHECK(told == 1);
    entries.pop_back();
    CHECK(told == 2);
    CHECK(registry->has_room());
    entries.emplace_back(registry);
    entries.pop_back();
    CHECK(told == 2);
}

TEST_CASE("start_server: who has asked to be told is told, though the next that asks has no need")
{
    int told = 0;
    const auto registry = std::make_shared<us::detail::client_registry>(2, [&] { ++told; });
    std::optional<us::detail::client_registry::entry> entry(std::in_place, registry);
    registry->ask();
    CHECK(registry->has_room());
    entry.reset();
    CHECK(told == 1);
}

TEST_CASE("start_server: a connection that is accepted while the server ends its clients is ended too")
{
    const auto registry = std::make_shared<us::detail::client_registry>(2, [] {});
    const us::detail::client_registry::entry entry(registry);
    registry->abort_all();
    CHECK_THROWS_AS(entry.set(nullptr), std::system_error);
}

TEST_CASE("start_server: max_connections counts the connections of all addresses")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            int now = 0;
            int most = 0;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                most = std::max(most, ++now);
                co_await test::echo(std::move(reader), std::move(writer));
                --now;
            };
            us::server server =
                co_await us::start_server(handle, {"127.0.0.1", "127.0.0.2", "127.0.0.3"}, 0, {.max_connections = 2});
            const auto executor = co_await asio::this_coro::executor;
            std::vector<test::task<std::string>> clients;
            for (int i = 0; i < 24; ++i)
            {
                const auto address = server.sockets()[std::size_t(i % 3)];
                clients.push_back(
                    test::spawn(executor, [address] { return test::ask(address.host, address.port, "hello\n"); }));
            }
            for (const auto& client : clients)
            {
                const std::string line = co_await client.join();
                CHECK(line == "hello\n");
            }
            CHECK(most == 2);
            server.close();
            co_await server.wait_closed();
        });
}

TEST_CASE("start_server: max_handshakes run at once, and the next has its turn when one has failed")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            const test::error_log errors;
            int handlers = 0;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                ++handlers;
                co_await test::echo(std::move(reader), std::move(writer));
            };
            const us::server server = co_await us::start_server(
                handle, "127.0.0.1", 0, {.ssl = &server_ssl, .max_handshakes = 1, .error_handler = errors});
            const us::server unlimited = co_await us::start_server(test::echo, "127.0.0.1", 0, {.ssl = &server_ssl});
            const auto talk = [](tcp::endpoint endpoint)
            {
                auto peer = test::raw_peer::connect(endpoint);
                peer.tls_connect(test::localhost_client());
                peer.tls_write("hello\n");
                const std::string line = peer.tls_read_line();
                peer.tls_shutdown();
                return line;
            };

            auto silent = test::raw_peer::connect(test::endpoint_of(server));
            auto waiting = test::run_in_thread([=, to = test::endpoint_of(server)] { return talk(to); });
            for (int i = 0; i < 3; ++i)
            {
                auto other = test::run_in_thread([=, to = test::endpoint_of(unlimited)] { return talk(to); });
                const std::string line = co_await test::joined(std::move(other));
                CHECK(line == "hello\n");
            }
            CHECK(handlers == 0);
            silent.close();
            const std::string line = co_await test::joined(std::move(waiting));
            CHECK(line == "hello\n");
            CHECK(handlers == 1);
            co_await test::eventually([&] { return errors.size() == 1; });
        });
}

namespace
{

/// Waits for its turn to shake hands.
struct waiter
{
    explicit waiter(asio::io_context& io)
        : timer(std::make_shared<asio::steady_timer>(io, asio::steady_timer::time_point::max()))
    {
        timer->async_wait([this](const asio::error_code&) { is_woken = true; });
    }

    waiter(const waiter&) = delete;
    waiter& operator=(const waiter&) = delete;

    std::shared_ptr<asio::steady_timer> timer;
    bool is_woken = false;
};

} // namespace

TEST_CASE("start_server: of the handshakes that wait the first has its turn, not one that comes between")
{
    using us::detail::handshake_limit;
    asio::io_context io;
    const auto limit = std::make_shared<handshake_limit>(1);
    waiter waiters[] = {waiter(io), waiter(io), waiter(io)};
    std::optional<handshake_limit::place> first(std::in_place, limit, io.get_executor(), waiters[0].timer);
    CHECK(first->try_enter());
    handshake_limit::place second(limit, io.get_executor(), waiters[1].timer);
    CHECK_FALSE(second.try_enter());
    first.reset();
    handshake_limit::place third(limit, io.get_executor(), waiters[2].timer);
    CHECK_FALSE(third.try_enter());
    CHECK(second.try_enter());
    for (waiter& each : waiters)
        each.timer->cancel();
    io.run();
}

TEST_CASE("start_server: two handshakes that end at once make way for two that wait")
{
    using us::detail::handshake_limit;
    asio::io_context io;
    const auto limit = std::make_shared<handshake_limit>(2);
    std::list<waiter> waiters;
    std::list<handshake_limit::place> places;
    for (int i = 0; i < 4; ++i)
    {
        places.emplace_back(limit, io.get_executor(), waiters.emplace_back(io).timer);
        CHECK(places.back().try_enter() == (i < 2));
    }
    places.pop_front();
    places.pop_front(); // before the first that waits was told
    io.poll();
    CHECK(std::next(waiters.begin(), 2)->is_woken);
    CHECK(places.front().try_enter());
    io.poll();
    CHECK(waiters.back().is_woken);
    CHECK(places.back().try_enter());
    for (waiter& each : waiters)
        each.timer->cancel();
    io.run();
}

TEST_CASE("start_server: a handshake that waits for its turn past its deadline fails")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            const test::error_log errors;
            const auto handle = [](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const std::string line = co_await reader.readline();
                us::tls_options options;
                if (line == "in a hurry\n")
                    options.handshake_timeout = 50ms;
                std::tie(reader, writer) = co_await writer.start_tls(options);
                co_await test::echo(std::move(reader), std::move(writer));
            };
            us::server server = co_await us::start_server(
                handle, "127.0.0.1", 0,
                {.ssl = &server_ssl, .upgradeable = true, .max_handshakes = 1, .error_handler = errors});
            auto silent = test::raw_peer::connect(test::endpoint_of(server));
            silent.send_all("has time\n");
            const auto hurry = [to = test::endpoint_of(server)]
            {
                auto peer = test::raw_peer::connect(to);
                peer.send_all("in a hurry\n");
                CHECK_THROWS(peer.tls_connect(test::localhost_client()));
            };
            co_await test::joined(test::run_in_thread(hurry));
            co_await test::eventually([&] { return errors.size() == 1; });
            CHECK(errors.entries()[0].code == us::errc::handshake_timeout);

            silent.close();
            const auto patient = [to = test::endpoint_of(server)]
            {
                auto peer = test::raw_peer::connect(to);
                peer.send_all("has time\n");
                peer.tls_connect(test::localhost_client());
                peer.tls_write("hello\n");
                return peer.tls_read_line();
            };
            const std::string line = co_await test::joined(test::run_in_thread(patient));
            CHECK(line == "hello\n");
        });
}

TEST_CASE("start_server: while others wait for their turn a handshake gets a sixth of its time at most")
{
    const std::string_view begun = GENERATE("", "\x16\x03\x01\x01");
    test::run(
        [begun]() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            const test::error_log errors;
            const auto handle = [](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const std::string line = co_await reader.readline();
                us::tls_options options;
                options.handshake_timeout = line == "silent\n" ? 6s : 3s;
                std::tie(reader, writer) = co_await writer.start_tls(options);
                co_await test::echo(std::move(reader), std::move(writer));
            };
            us::server server = co_await us::start_server(
                handle, "127.0.0.1", 0,
                {.ssl = &server_ssl, .upgradeable = true, .max_handshakes = 1, .error_handler = errors});
            auto silent = test::raw_peer::connect(test::endpoint_of(server));
            silent.send_all("silent\n");
            silent.send_all(begun);
            const auto talk = [to = test::endpoint_of(server)]
            {
                auto peer = test::raw_peer::connect(to);
                peer.send_all("talks\n");
                peer.tls_connect(test::localhost_client());
                peer.tls_write("hello\n");
                return peer.tls_read_line();
            };
            for (int i = 0; i < 2; ++i)
            {
                const std::string line = co_await test::joined(test::run_in_thread(talk));
                CHECK(line == "hello\n");
            }
            const auto entries = errors.entries();
            CHECK(std::ranges::count(entries, make_error_code(us::errc::handshake_timeout),
                                     &test::error_log::entry::code) == 1);
        });
}

TEST_CASE("start_server: while no other waits for its turn a handshake has its whole time")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            const test::error_log errors;
            const us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0,
                                                                {.ssl = &server_ssl,
                                                                 .ssl_handshake_timeout = 240ms,
                                                                 .max_handshakes = 1,
                                                                 .error_handler = errors});
            const auto start = std::chrono::steady_clock::now();
            auto silent = test::raw_peer::connect(test::endpoint_of(server));
            co_await test::eventually([&] { return errors.size() == 1; });
            CHECK(std::chrono::steady_clock::now() - start >= 240ms);
            CHECK(errors.entries()[0].code == us::errc::handshake_timeout);
        });
}

TEST_CASE("start_server: abort_clients ends handshakes that run and those that wait for their turn")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            const test::error_log errors;
            std::size_t upgrading = 0;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                co_await reader.readline();
                ++upgrading;
                std::tie(reader, writer) = co_await writer.start_tls();
            };
            us::server server = co_await us::start_server(
                handle, "127.0.0.1", 0,
                {.ssl = &server_ssl, .upgradeable = true, .max_handshakes = 1, .error_handler = errors});
            std::vector<test::raw_peer> silent;
            for (int i = 0; i < 4; ++i)
            {
                silent.push_back(test::raw_peer::connect(test::endpoint_of(server)));
                silent.back().send_all("STARTTLS\n");
            }
            co_await test::eventually([&] { return upgrading == silent.size(); });
            server.close();
            server.abort_clients();
            co_await server.wait_closed();
            CHECK(errors.size() == 0);
        });
}

TEST_CASE("start_server: what close_clients and abort_clients end is not reported as an error")
{
    const bool abort = GENERATE(false, true);
    test::run(
        [abort]() -> asio::awaitable<void>
        {
            const test::error_log errors;
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, {.error_handler = errors});
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            writer.write("hello\n");
            co_await reader.readline(); // the handler waits in its next read
            if (abort)
                server.abort_clients();
            else
                server.close_clients();
            const std::string rest = co_await reader.read();
            CHECK(rest.empty());
            server.close();
            co_await server.wait_closed();
            CHECK(errors.size() == 0);
        });
}

TEST_CASE("start_server: what a handler throws of its own is reported, also while the server ends its clients")
{
    const bool abort = GENERATE(false, true);
    test::run(
        [abort]() -> asio::awaitable<void>
        {
            const auto handle = [](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                writer.write("hello\n");
                try
                {
                    co_await reader.readline();
                }
                catch (const std::system_error&)
                {
                }
                throw std::runtime_error("the disk is full");
            };
            const test::error_log errors;
            us::server server = co_await us::start_server(handle, "127.0.0.1", 0, {.error_handler = errors});
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            co_await reader.readline(); // the handler waits in its next read
            abort ? server.abort_clients() : server.close_clients();
            server.close();
            co_await server.wait_closed();
            REQUIRE(errors.size() == 1);
            CHECK(errors.entries()[0].what == "the disk is full");
        });
}

TEST_CASE("start_server: ssl_shutdown_timeout bounds the wait for a peer that does not answer close_notify")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            const auto handle = [](us::stream_reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                writer.write("goodbye\n");
                co_return;
            };
            us::server server =
                co_await us::start_server(handle, "127.0.0.1", 0, {.ssl = &server_ssl, .ssl_shutdown_timeout = 50ms});
            const auto talk = [endpoint = test::endpoint_of(server)]
            {
                auto peer = test::raw_peer::connect(endpoint);
                peer.tls_connect(test::localhost_client());
                std::string received = peer.tls_read_all();
                return std::pair(std::move(peer), std::move(received));
            };
            const auto [peer, received] = co_await test::joined(test::run_in_thread(talk));
            CHECK(received == "goodbye\n");
            server.close();
            co_await server.wait_closed(); // while the peer keeps its connection
        });
}

TEST_CASE("start_server: TLS cut off without close_notify is an error unless suppress_ragged_eofs")
{
    const bool suppress = GENERATE(false, true);
    test::run(
        [suppress]() -> asio::awaitable<void>
        {
            asio::ssl::context server_ssl = test::make_server_context();
            const test::error_log errors;
            us::server server = co_await us::start_server(
                test::echo, "127.0.0.1", 0,
                {.ssl = &server_ssl, .suppress_ragged_eofs = suppress, .error_handler = errors});
            const auto talk = [endpoint = test::endpoint_of(server)]
            {
                auto peer = test::raw_peer::connect(endpoint);
                peer.tls_connect(test::localhost_client());
                peer.tls_write("hello\n");
                const std::string line = peer.tls_read_line();
                peer.send_fin();
                return line;
            };
            const std::string line = co_await test::joined(test::run_in_thread(talk));
            CHECK(line == "hello\n");
            server.close();
            co_await server.wait_closed();
            if (suppress)
                CHECK(errors.size() == 0);
            else
            {
                REQUIRE(errors.size() == 1);
                CHECK(errors.entries()[0].code == asio::ssl::error::stream_truncated);
            }
        });
}

TEST_CASE("start_server: out of descriptors it reports, keeps its connections, and recovers")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const test::error_log errors;
            const us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, {.error_handler = errors});
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets()[0].port);
            writer.write("before\n");
            co_await reader.readline();

            std::optional<test::descriptor_limit> limit(std::in_place, 1);
            auto waiting = test::raw_peer::connect(test::endpoint_of(server)); // takes the last descriptor
            co_await test::eventually([&] { return errors.size() > 0; });
            writer.write("meanwhile\n");
            const std::string meanwhile = co_await reader.readline();
            limit.reset();
            CHECK(meanwhile == "meanwhile\n");
            CHECK(server.is_serving());
            CHECK(errors.entries()[0].code == asio::error::no_descriptors);
            CHECK(errors.entries()[0].peer == us::socket_address());

            waiting.send_all("hello\n");
            const std::string line = co_await test::joined(test::run_in_thread([&] { return waiting.recv_line(); }));
            CHECK(line == "hello\n");
            const std::string next = co_await test::ask(server, "next\n");
            CHECK(next == "next\n");
        });
}

TEST_CASE("start_server: out of descriptors a connection that leaves makes room for the next")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const test::error_log errors;
            const us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, {.error_handler = errors});
            auto first = test::raw_peer::connect(test::endpoint_of(server));
            first.send_all("first\n");
            co_await test::joined(test::run_in_thread([&] { return first.recv_line(); }));

            std::optional<test::descriptor_limit> limit(std::in_place, 1);
            auto waiting = test::raw_peer::connect(test::endpoint_of(server));
            co_await test::eventually([&] { return errors.size() > 0; });
            first.close();
            waiting.send_all("second\n");
            const std::string line = co_await test::joined(test::run_in_thread([&] { return waiting.recv_line(); }));
            limit.reset();
            CHECK(line == "second\n");
        });
}

TEST_CASE("start_server: close while accepting is paused ends it")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const test::error_log errors;
            us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, {.error_handler = errors});
            const test::descriptor_limit limit(1);
            const auto waiting = test::raw_peer::connect(test::endpoint_of(server));
            co_await test::eventually([&] { return errors.size() > 0; });
            server.close();
            co_await server.wait_closed();
        });
}

TEST_CASE("start_server: peers that reset between connect and accept do not end it")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const test::error_log errors;
            const us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0, {.error_handler = errors});
            for (int i = 0; i < 20; ++i) // nothing is accepted meanwhile: this thread is the server's
                test::raw_peer::connect(test::endpoint_of(server)).reset();
            const std::string line = co_await test::ask(server, "hello\n");
            CHECK(line == "hello\n");
            for (const auto& entry : errors.entries())
                CHECK(entry.code == asio::error::connection_reset);
        });
}

TEST_CASE("start_server: a peer that resets before it is accepted is known by its address")
{
    const bool behind_proxy = GENERATE(false, true);
    CAPTURE(behind_proxy);
    test::run(
        [=]() -> asio::awaitable<void>
        {
            std::vector<std::string> named;
            std::vector<std::string> asked;
            const auto handle = [&](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
            {
                const auto peername = writer.get_extra_info<"peername">();
                named.push_back(peername ? peername->host : "");
                co_await reader.readline();
            };
            const auto is_proxy = [&](const us::socket_address& peer)
            {
                asked.push_back(peer.host);
                return behind_proxy;
            };
            const test::error_log errors;
            const us::server server = co_await us::start_server(handle, "127.0.0.1", 0,
                                                                {.error_handler = errors, .proxy_protocol = is_proxy});
            const std::size_t count = 20;
            for (std::size_t i = 0; i < count; ++i) // nothing is accepted meanwhile: this thread is the server's
                test::raw_peer::connect(test::endpoint_of(server)).reset();
            co_await test::eventually([&] { return asked.size() == count && server.connection_count() == 0; });
            CHECK(asked == std::vector<std::string>(count, "127.0.0.1"));
            CHECK(named == std::vector<std::string>(behind_proxy ? 0 : count, "127.0.0.1"));
            CHECK(errors.size() == count);
            for (const auto& entry : errors.entries())
                CHECK(entry.peer.host == "127.0.0.1");
        });
}

namespace
{

/// Sends each line back with how it came and between which addresses, and upgrades the connection at STARTTLS.
asio::awaitable<void> tell(us::stream_reader reader, us::stream_writer writer)
{
    for (std::string line; !(line = co_await reader.readline()).empty();)
        if (line == "STARTTLS\n")
            std::tie(reader, writer) = co_await writer.start_tls();
        else
        {
            const std::string peer = writer.get_extra_info<"peername">()->to_string();
            const std::string own = writer.get_extra_info<"sockname">()->to_string();
            writer.write((reader.is_tls() ? "TLS " : "plain ") + peer + " > " + own + " " + line);
        }
}

/// What `tell` answers to a client on 127.0.0.1 that no proxy speaks for.
std::string told(const test::raw_peer& peer, const std::string& line, const std::string& how = "plain")
{
    sockaddr_in own{};
    sockaddr_in other{};
    socklen_t size = sizeof own;
    if (::getsockname(peer.descriptor(), reinterpret_cast<sockaddr*>(&own), &size) != 0 ||
        ::getpeername(peer.descriptor(), reinterpret_cast<sockaddr*>(&other), &size) != 0)
        throw std::system_error(errno, std::system_category(), "addresses of a peer");
    return how + " 127.0.0.1:" + std::to_string(ntohs(own.sin_port)) +
           " > 127.0.0.1:" + std::to_string(ntohs(other.sin_port)) + " " + line;
}

/// The descriptor of this process at the other end of a connection within it; empty while there is none.
std::optional<int> other_end(int descriptor)
{
    sockaddr_in own{};
    socklen_t size = sizeof own;
    ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&own), &size);
    for (int candidate = 0; candidate < 1024; ++candidate)
    {
        sockaddr_in peer{};
        size = sizeof peer;
        if (::getpeername(candidate, reinterpret_cast<sockaddr*>(&peer), &size) == 0 && peer.sin_family == AF_INET &&
            peer.sin_port == own.sin_port)
            return candidate;
    }
    return std::nullopt;
}

bool is_closed(const test::raw_peer& peer)
{
    pollfd end{peer.descriptor(), POLLRDHUP, 0}; // behind an alert too
    return ::poll(&end, 1, 0) > 0;
}

/// Whether the server, in this process, has accepted a connection and received all that was sent on it, or closed it.
bool is_received(const test::raw_peer& peer)
{
    int unread = 0;
    const auto server = other_end(peer.descriptor());
    return is_closed(peer) || (server && ::ioctl(*server, FIONREAD, &unread) == 0 && unread == 0);
}

/// Sends so many bytes at a time, each when the server has received those before, until it closes the connection. Not
/// for the server's own thread.
void send_split(test::raw_peer& peer, std::string_view bytes, std::size_t chunk)
{
    const auto until = std::chrono::steady_clock::now() + test::peer_deadline;
    for (; !bytes.empty() && !is_closed(peer); bytes.remove_prefix(std::min(chunk, bytes.size())))
    {
        chunk = chunk == 0 ? bytes.size() : chunk;
        peer.send_all(bytes.substr(0, chunk));
        while (!is_received(peer) && std::chrono::steady_clock::now() < until)
            std::this_thread::yield();
    }
}

/// What comes before the end, or a reset.
std::string received_to_end(test::raw_peer& peer)
try
{
    return peer.recv_all();
}
catch (const std::system_error&)
{
    return {};
}

/// A handshake whose first flight, with what goes before it, is sent in such pieces.
void tls_connect_split(test::raw_peer& peer, const std::string& before, std::size_t chunk)
{
    test::tls_settings settings = test::localhost_client();
    settings.send_flight = [&](std::string_view flight, const auto&)
    { send_split(peer, before + std::string(flight), chunk); };
    peer.tls_connect(settings);
}

std::string exchange(test::raw_peer& peer, std::string_view line)
{
    peer.tls_write(line);
    return peer.tls_read_line();
}

us::server_options detecting()
{
    return {.ssl = &test::server_context(), .upgradeable = true, .detect_tls = true};
}

/// Runs a server on a thread of its own, and `client` with its endpoint. Returns: what was reported.
template <typename Client>
std::vector<test::error_log::entry> serve(us::connection_handler handler, us::server_options options, Client client)
{
    std::promise<tcp::endpoint> started;
    std::promise<void> finished;
    auto run = [&, is_finished = finished.get_future()]() mutable
        -> asio::awaitable<std::vector<test::error_log::entry>>
    {
        const test::error_log errors;
        options.error_handler = errors;
        us::server server = co_await us::start_server(handler, "127.0.0.1", 0, options);
        started.set_value(test::endpoint_of(server));
        co_await test::joined(std::move(is_finished));
        server.close();
        co_await server.wait_closed();
        co_return errors.entries();
    };
    auto serving = test::run_in_thread([&run] { return test::run([&run] { return run(); }); });
    try
    {
        client(started.get_future().get());
    }
    catch (...)
    {
        finished.set_value();
        throw;
    }
    finished.set_value();
    return serving.get();
}

} // namespace

TEST_CASE("start_server: with detect_tls one port serves TLS and plain text, however the bytes are split")
{
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    const auto errors = serve(tell, detecting(),
                              [chunk](tcp::endpoint server)
                              {
                                  auto secure = test::raw_peer::connect(server);
                                  tls_connect_split(secure, "", chunk);
                                  CHECK(exchange(secure, "hello\n") == told(secure, "hello\n", "TLS"));
                                  secure.tls_shutdown();

                                  for (const std::string line : {"hello\n", "\n", "\x16x\n", "\x03\n", "\x17\x03\n"})
                                  {
                                      auto plain = test::raw_peer::connect(server);
                                      send_split(plain, line + "again\n", chunk);
                                      CHECK(plain.recv_line() == told(plain, line));
                                      CHECK(plain.recv_line() == told(plain, "again\n"));
                                  }
                              });
    CHECK(errors.empty());
}

TEST_CASE("start_server: a client that detect_tls found in plain text may upgrade, its ClientHello behind STARTTLS")
{
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    const auto errors = serve(tell, detecting(),
                              [chunk](tcp::endpoint server)
                              {
                                  auto peer = test::raw_peer::connect(server);
                                  peer.send_all("hello\n");
                                  CHECK(peer.recv_line() == told(peer, "hello\n"));
                                  tls_connect_split(peer, "STARTTLS\n", chunk);
                                  CHECK(exchange(peer, "hello\n") == told(peer, "hello\n", "TLS"));
                                  peer.tls_shutdown();
                              });
    CHECK(errors.empty());
}

TEST_CASE("start_server: detect_tls finds the ClientHello of openssl s_client")
{
    for (const std::string version : {"1.2", "1.3"})
    {
        const auto errors = serve(
            tell, detecting(),
            [&version](tcp::endpoint server)
            {
                const std::string port = std::to_string(server.port());
                test::process client(test::words("openssl s_client -quiet -no_ign_eof -verify_return_error -CAfile " +
                                                 test::authority().ca_file() + " -min_protocol TLSv" + version +
                                                 " -max_protocol TLSv" + version + " -connect 127.0.0.1:" + port));
                client.write("hello\n");
                CHECK_THAT(client.read_line(), test::starts_with("TLS 127.0.0.1:"));
                CHECK(client.wait().status == 0);
            });
        CHECK(errors.empty());
    }
}

TEST_CASE("start_server: with detect_tls a client that waits is greeted after detect_timeout, and may upgrade then")
{
    const auto greet = [](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
    {
        writer.write("220 ready\n");
        co_await tell(std::move(reader), std::move(writer));
    };
    us::server_options options = detecting();
    options.detect_timeout = 50ms;
    const auto errors = serve(greet, options,
                              [](tcp::endpoint server)
                              {
                                  auto peer = test::raw_peer::connect(server);
                                  CHECK(peer.recv_line() == "220 ready\n");
                                  peer.send_all("hello\n");
                                  CHECK(peer.recv_line() == told(peer, "hello\n"));
                                  tls_connect_split(peer, "STARTTLS\n", 0);
                                  CHECK(exchange(peer, "hello\n") == told(peer, "hello\n", "TLS"));
                                  peer.tls_shutdown();
                              });
    CHECK(errors.empty());
}

TEST_CASE("start_server: the first byte of a ClientHello alone leads to the handshake after detect_timeout")
{
    us::server_options options = detecting();
    options.detect_timeout = 50ms;
    options.ssl_handshake_timeout = 10s;
    const auto greet = [](us::stream_reader, us::stream_writer writer) -> asio::awaitable<void>
    {
        writer.write("220 ready\n");
        co_return;
    };
    auto errors = serve(greet, options,
                        [](tcp::endpoint server)
                        {
                            auto slow = test::raw_peer::connect(server);
                            test::tls_settings settings = test::localhost_client();
                            settings.send_flight = [&](std::string_view flight, const auto& send)
                            {
                                send_split(slow, flight.substr(0, 1), 1);
                                auto silent = test::raw_peer::connect(server); // its time is up later
                                silent.recv_line();
                                send(flight.substr(1));
                            };
                            slow.tls_connect(settings);
                            CHECK(slow.tls_read_line() == "220 ready\n");
                            slow.tls_shutdown();
                        });
    CHECK(errors.empty());

    options.ssl_handshake_timeout = 50ms;
    errors = serve(never_called, options,
                   [](tcp::endpoint server)
                   {
                       auto peer = test::raw_peer::connect(server);
                       peer.send_all("\x16");
                       peer.recv_all();
                   });
    REQUIRE(errors.size() == 1);
    CHECK(errors[0].code == us::errc::handshake_timeout);
}

TEST_CASE("start_server: with detect_tls a client that ends before it says anything ends in plain text")
{
    const auto handle = [](us::stream_reader reader, us::stream_writer writer) -> asio::awaitable<void>
    {
        const std::string everything = co_await reader.read();
        writer.write("[" + everything + "]");
    };
    const auto errors = serve(handle, detecting(),
                              [](tcp::endpoint server)
                              {
                                  auto peer = test::raw_peer::connect(server);
                                  peer.send_fin();
                                  CHECK(peer.recv_all() == "[]");
                              });
    CHECK(errors.empty());
}

TEST_CASE("start_server: with detect_tls a client that ends or resets where TLS may begin is reported")
{
    const bool reset = GENERATE(false, true);
    const auto errors = serve(never_called, detecting(),
                              [reset](tcp::endpoint server)
                              {
                                  auto peer = test::raw_peer::connect(server);
                                  send_split(peer, "\x16", 1);
                                  if (reset)
                                      return peer.reset();
                                  peer.send_fin();
                                  peer.recv_all();
                              });
    REQUIRE(errors.size() == 1);
    CHECK(errors[0].code == (reset ? asio::error::connection_reset : asio::error_code(asio::error::eof)));
}

TEST_CASE("start_server: clients that detect_tls waits for take no place among max_handshakes")
{
    us::server_options options = detecting();
    options.max_handshakes = 1;
    const auto errors = serve(tell, options,
                              [](tcp::endpoint server)
                              {
                                  std::vector<test::raw_peer> silent;
                                  for (const std::string bytes : {"", "", "\x16", "\x16"})
                                  {
                                      silent.push_back(test::raw_peer::connect(server));
                                      send_split(silent.back(), bytes, 1);
                                  }
                                  auto peer = test::raw_peer::connect(server);
                                  tls_connect_split(peer, "", 0);
                                  CHECK(exchange(peer, "hello\n") == told(peer, "hello\n", "TLS"));
                                  peer.tls_shutdown();
                              });
    CHECK(errors.size() == 2); // that begin with TLS and end
}

TEST_CASE("start_server: close_clients and abort_clients end a client whose first bytes are awaited, without an error")
{
    const bool abort = GENERATE(false, true);
    const bool proxy = GENERATE(false, true);
    test::run(
        [abort, proxy]() -> asio::awaitable<void>
        {
            const test::error_log errors;
            us::server_options options = detecting();
            options.error_handler = errors;
            const auto is_proxy = [proxy](const us::socket_address&) { return proxy; };
            options.proxy_protocol = is_proxy;
            us::server server = co_await us::start_server(never_called, "127.0.0.1", 0, options);
            std::vector<test::raw_peer> peers;
            for (const std::string_view bytes : {"", proxy ? "PROXY TCP4 127.0.0" : "\x16", ""})
            {
                peers.push_back(test::raw_peer::connect(test::endpoint_of(server)));
                peers.back().send_all(bytes);
                co_await test::eventually([&] { return is_received(peers.back()); });
            }
            co_await test::turns();
            server.close();
            if (abort)
                server.abort_clients();
            else
                server.close_clients();
            co_await server.wait_closed();
            CHECK(errors.size() == 0);
        });
}

namespace
{

const std::string proxied = "192.0.2.1:56324 > 198.51.100.2:25 ";

const std::array<std::string, 2> proxy_headers = {
    "PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n",
    std::string("\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0f", 16) +
        std::string("\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x00\x19\x04\x00\x00", 15)};

bool is_local_proxy(const us::socket_address& peer)
{
    return peer.host == "127.0.0.1";
}

us::server_options behind_proxy(us::server_options options = {})
{
    options.proxy_protocol = is_local_proxy;
    return options;
}

} // namespace

TEST_CASE("start_server: a proxy's header comes before plain text, and names the real ends of the connection")
{
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    const bool detect = GENERATE(false, true);
    const auto errors = serve(tell, behind_proxy(detect ? detecting() : us::server_options()),
                              [chunk](tcp::endpoint server)
                              {
                                  const std::string second = "PROXY UNKNOWN\r\n"; // is data
                                  for (const std::string& header : proxy_headers)
                                  {
                                      auto peer = test::raw_peer::connect(server);
                                      send_split(peer, header + "hello\n" + second, chunk);
                                      CHECK(peer.recv_line() == "plain " + proxied + "hello\n");
                                      CHECK(peer.recv_line() == "plain " + proxied + second);
                                  }
                              });
    CHECK(errors.empty());
}

TEST_CASE("start_server: a proxy's header comes before TLS, at once, detected or by STARTTLS")
{
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    const std::string how = GENERATE(as<std::string>(), "at once", "detected", "STARTTLS", "STARTTLS, not detected");
    us::server_options options = detecting();
    options.upgradeable = how != "at once";
    options.detect_tls = how == "detected" || how == "STARTTLS";
    const auto errors = serve(tell, behind_proxy(options),
                              [&](tcp::endpoint server)
                              {
                                  for (const std::string& header : proxy_headers)
                                  {
                                      auto peer = test::raw_peer::connect(server);
                                      const bool asks = how.starts_with("STARTTLS");
                                      tls_connect_split(peer, header + (asks ? "STARTTLS\n" : ""), chunk);
                                      CHECK(exchange(peer, "hello\n") == "TLS " + proxied + "hello\n");
                                      peer.tls_shutdown();
                                  }
                              });
    CHECK(errors.empty());
}

TEST_CASE("start_server: behind a header that tells no address the connection's own hold")
{
    const auto errors = serve(tell, behind_proxy(),
                              [](tcp::endpoint server)
                              {
                                  const std::string local("\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00", 16);
                                  for (const std::string& header : {std::string("PROXY UNKNOWN\r\n"), local})
                                  {
                                      auto peer = test::raw_peer::connect(server);
                                      peer.send_all(header + "hello\n");
                                      CHECK(peer.recv_line() == told(peer, "hello\n"));
                                  }
                              });
    CHECK(errors.empty());
}

TEST_CASE("start_server: a header of the greatest length is read")
{
    std::string header = proxy_headers[1].substr(0, 28) + "\x04\xff\xf0";
    header[14] = header[15] = '\xff';
    header.resize(16 + 65535);
    const auto errors = serve(tell, behind_proxy(),
                              [&](tcp::endpoint server)
                              {
                                  auto peer = test::raw_peer::connect(server);
                                  peer.send_all(header + "hello\n");
                                  CHECK(peer.recv_line() == "plain " + proxied + "hello\n");
                              });
    CHECK(errors.empty());
}

TEST_CASE("start_server: the header of a peer that is no proxy is data, and it needs none")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto is_proxy = [](const us::socket_address& peer) { return peer.host == "127.0.0.2"; };
            const us::server server =
                co_await us::start_server(tell, "127.0.0.1", 0, {.proxy_protocol = is_proxy});
            const std::uint16_t port = server.sockets()[0].port;
            for (const std::string from : {"127.0.0.1", "127.0.0.2"})
            {
                auto [reader, writer] = co_await us::open_connection(
                    "127.0.0.1", port, {.local_addr = us::local_address{.host = from}});
                writer.write(proxy_headers[0] + "hello\n");
                const std::string first = co_await reader.readline();
                if (from == "127.0.0.2")
                    CHECK(first == "plain " + proxied + "hello\n");
                else
                    CHECK_THAT(first, test::starts_with("plain 127.0.0.1:") && test::ends_with(" " + proxy_headers[0]));
            }
        });
}

TEST_CASE("start_server: a proxy without a header, or with a wrong one, is closed and reported by its own address")
{
    struct wrong_beginning
    {
        std::string bytes;
        std::string reason;
    };
    const std::vector<wrong_beginning> beginnings = {
        {"hello\n", "it begins with something else"},
        {"\x16\x03\x01\x02", "it begins with something else"},
        {"PROXY TCP4 192.0.2.1 198.51.100.2 56324 x", "the line is malformed"},
        {std::string("\r\n\r\n\0\r\nQUIT\n\x22", 13), "the version or the command is unknown"},
        {"", "the connection ended"},
        {proxy_headers[0].substr(0, 40), "the connection ended"},
        {proxy_headers[1].substr(0, 30), "the connection ended"},
    };
    const std::string mode = GENERATE(as<std::string>(), "plain", "TLS", "detecting");
    us::server_options options = mode == "plain" ? us::server_options() : detecting();
    options.upgradeable = options.detect_tls = mode == "detecting";
    us::socket_address own;
    const auto is_proxy = [&own](const us::socket_address& peer)
    {
        own = peer;
        return true;
    };
    options.proxy_protocol = is_proxy;
    for (const wrong_beginning& wrong : beginnings)
    {
        const auto errors = serve(never_called, options,
                                  [&wrong](tcp::endpoint server)
                                  {
                                      auto peer = test::raw_peer::connect(server);
                                      peer.send_all(wrong.bytes);
                                      if (wrong.reason == "the connection ended")
                                          peer.send_fin();
                                      CHECK(peer.recv_all().empty());
                                  });
        REQUIRE(errors.size() == 1);
        CHECK(errors[0].code == us::errc::proxy_header_invalid);
        CHECK_THAT(errors[0].what, test::contains(wrong.reason));
        CHECK(errors[0].peer == own);
    }
}

TEST_CASE("start_server: a header that comes too late, or drips, is reported as that")
{
    const std::string how = GENERATE(as<std::string>(), "silent", "half", "dripping");
    us::server_options options = behind_proxy(detecting());
    options.ssl_handshake_timeout = 100ms;
    std::size_t sent = 0;
    const auto errors =
        serve(never_called, options,
              [&](tcp::endpoint server)
              {
                  auto peer = test::raw_peer::connect(server);
                  if (how == "half")
                      peer.send_all(proxy_headers[0].substr(0, 20));
                  std::string header("\r\n\r\n\0\r\nQUIT\n\x20\x00\xff\xff", 16);
                  header.resize(16 + 65535);
                  for (; how == "dripping" && sent < header.size() && !is_closed(peer); ++sent)
                      send_split(peer, header.substr(sent, 1), 1);
                  CHECK(received_to_end(peer).empty());
              });
    CHECK(sent < 65535);
    REQUIRE(errors.size() == 1);
    CHECK(errors[0].code == us::errc::proxy_header_timeout);
    CHECK(errors[0].code == std::errc::timed_out);
    CHECK(errors[0].peer.host == "127.0.0.1");
}

TEST_CASE("start_server: plain text behind a proxy's header where TLS had to begin is refused, and the client is named")
{
    const std::size_t chunk = GENERATE(from_range(test::chunk_sizes));
    const auto errors = serve(never_called, behind_proxy({.ssl = &test::server_context()}),
                              [chunk](tcp::endpoint server)
                              {
                                  auto peer = test::raw_peer::connect(server);
                                  send_split(peer, proxy_headers[0] + "EHLO ", chunk);
                                  try
                                  {
                                      send_split(peer, "example.org\r\n", chunk);
                                  }
                                  catch (const std::system_error&) // it has been refused before all was sent
                                  {
                                  }
                                  received_to_end(peer);
                              });
    REQUIRE(errors.size() == 1);
    CHECK(errors[0].code == us::errc::plaintext_injection);
    CHECK(errors[0].peer.to_string() == "192.0.2.1:56324");
}

TEST_CASE("start_server: what a handler throws behind a proxy is reported with the real client")
{
    const auto errors = serve(
        [](us::stream_reader, us::stream_writer) -> asio::awaitable<void>
        { throw std::runtime_error("thrown by the handler"); },
        behind_proxy(),
        [](tcp::endpoint server)
        {
            auto peer = test::raw_peer::connect(server);
            peer.send_all(proxy_headers[1]);
            peer.recv_all();
        });
    REQUIRE(errors.size() == 1);
    CHECK(errors[0].what == "thrown by the handler");
    CHECK(errors[0].peer.to_string() == "192.0.2.1:56324");
}

TEST_CASE("start_server: what the proxy_protocol function throws is reported, and closes the connection")
{
    us::server_options options;
    const auto is_proxy = [](const us::socket_address&) -> bool { throw std::runtime_error("cannot tell"); };
    options.proxy_protocol = is_proxy;
    const auto errors = serve(never_called, options,
                              [](tcp::endpoint server)
                              {
                                  auto peer = test::raw_peer::connect(server);
                                  CHECK(peer.recv_all().empty());
                              });
    REQUIRE(errors.size() == 1);
    CHECK(errors[0].what == "cannot tell");
}

TEST_CASE("start_unix_server: serves, tells its path, and removes its file when it closes")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const test::temporary_directory directory;
            const std::string path = directory.file("socket");
            us::server server = co_await us::start_unix_server(tell_address, path);
            CHECK(is_socket_file(path));
            CHECK(server.is_serving());
            REQUIRE(server.sockets().size() == 1);
            CHECK(server.sockets()[0].is_unix);
            CHECK(server.sockets()[0].host == path);
            const std::string answer = co_await ask_unix(path, "?\n");
            CHECK(answer == path + "\n");
            server.close();
            co_await server.wait_closed();
            CHECK_FALSE(exists(path));
        });
}

TEST_CASE("start_unix_server: the last handle that goes removes the file, also of a server that never served")
{
    const bool serving = GENERATE(false, true);
    const test::temporary_directory directory;
    const std::string path = directory.file("socket");
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const us::server server = co_await us::start_unix_server(test::echo, path, {.start_serving = serving});
            CHECK(server.is_serving() == serving);
            CHECK(is_socket_file(path));
        });
    CHECK_FALSE(exists(path));
}

TEST_CASE("start_unix_server: the file is removed when the server goes with its io_context")
{
    const test::temporary_directory directory;
    const std::string path = directory.file("socket");
    {
        asio::io_context io;
        const auto serve = [&]() -> asio::awaitable<void>
        {
            us::server server = co_await us::start_unix_server(test::echo, path);
            CHECK(is_socket_file(path));
            io.stop();
            co_await server.serve_forever();
        };
        asio::co_spawn(io, serve, asio::detached);
        io.run_for(test::run_deadline);
    }
    CHECK_FALSE(exists(path));
}

TEST_CASE("start_server: takes over an acceptor, bound or listening already, and closes it")
{
    const bool listens = GENERATE(false, true);
    const bool inherited = GENERATE(false, true);
    CAPTURE(listens, inherited);
    test::run(
        [=]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            tcp::acceptor acceptor(executor, tcp::v4());
            acceptor.bind(test::loopback());
            const auto port = acceptor.local_endpoint().port();
            if (listens)
                acceptor.listen();
            if (inherited)
                acceptor = tcp::acceptor(executor, tcp::v4(), acceptor.release());
            us::server server = co_await us::start_server(
                test::echo, std::move(acceptor), {.ssl = &test::server_context(), .upgradeable = true, .backlog = 7});
            const auto sockets = server.sockets();
            REQUIRE(sockets.size() == 1);
            CHECK(sockets[0].host == "127.0.0.1");
            CHECK(sockets[0].port == port);
            CHECK(server.is_serving());
            const std::string answer = co_await test::ask(server, "hello\n");
            CHECK(answer == "hello\n");
            server.close();
            co_await server.wait_closed();
            co_await test::until_refused(port);
        });
}

TEST_CASE("start_server: over an acceptor it begins to serve when it is told to")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            tcp::acceptor acceptor(executor, tcp::v4());
            acceptor.bind(test::loopback());
            us::server server = co_await us::start_server(test::echo, std::move(acceptor), {.start_serving = false});
            CHECK_FALSE(server.is_serving());
            co_await test::until_refused(server.sockets()[0].port);
            server.start_serving();
            const std::string answer = co_await test::ask(server, "hello\n");
            CHECK(answer == "hello\n");
        });
}

TEST_CASE("start_server: takes over an acceptor on a path, whose file stays")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            test::temporary_directory directory;
            const std::string path = directory.file("socket");
            const auto executor = co_await asio::this_coro::executor;
            asio::local::stream_protocol::acceptor acceptor(executor, path);
            us::server server = co_await us::start_server(tell_address, std::move(acceptor));
            CHECK(server.sockets()[0].is_unix);
            const std::string answer = co_await ask_unix(path, "?\n");
            CHECK(answer == path + "\n");
            server.close();
            co_await server.wait_closed();
            CHECK(std::filesystem::exists(path));
        });
}

TEST_CASE("start_server: an acceptor that is not open, and options of binding with one, are std::invalid_argument")
{
    asio::io_context io;
    CHECK_THROWS_AS(us::start_server(never_called, tcp::acceptor(io)), std::invalid_argument);
    const auto refused = [&](const us::server_options& options)
    {
        CHECK_THROWS_AS(us::start_server(never_called, tcp::acceptor(io, test::loopback()), options),
                        std::invalid_argument);
    };
    refused({.family = us::ip_family::v4});
    refused({.reuse_address = false});
    refused({.reuse_port = true});
    refused({.backlog = 0});
    refused({.upgradeable = true});
    CHECK_THROWS_AS(us::start_server({}, tcp::acceptor(io, test::loopback())), std::invalid_argument);
}

TEST_CASE("start_unix_server: upgrades, and is TLS at once where asked to")
{
    const bool upgradeable = GENERATE(true, false);
    test::run(
        [upgradeable]() -> asio::awaitable<void>
        {
            const test::temporary_directory directory;
            const std::string path = directory.file("socket");
            asio::ssl::context server_ssl = test::make_server_context();
            asio::ssl::context client_ssl = test::make_client_context();
            const us::server server =
                co_await us::start_unix_server(test::echo, path, {.ssl = &server_ssl, .upgradeable = upgradeable});
            auto [reader, writer] = co_await us::open_unix_connection(
                path, {.ssl = &client_ssl, .upgradeable = upgradeable, .server_hostname = "localhost"});
            if (upgradeable)
            {
                writer.write("STARTTLS\n");
                std::tie(reader, writer) = co_await writer.start_tls();
            }
            CHECK(reader.is_tls());
            writer.write("hello\n");
            const std::string line = co_await reader.readline();
            CHECK(line == "hello\n");
        });
}

TEST_CASE("start_unix_server: refuses a path that another listens on, even one that accepts nothing")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const test::temporary_directory directory;
            const std::string path = directory.file("socket");
            us::server first = co_await us::start_unix_server(test::echo, path);
            const auto error =
                co_await test::exception_of<std::system_error>(us::start_unix_server(never_called, path));
            CHECK(error.code() == std::errc::address_in_use);
            CHECK_THAT(error.what(), test::contains(path));
            const std::string answer = co_await ask_unix(path, "still here\n");
            CHECK(answer == "still here\n");

            const std::string busy = directory.file("busy");
            asio::local::stream_protocol::acceptor acceptor(co_await asio::this_coro::executor,
                                                            asio::local::stream_protocol::endpoint(busy));
            acceptor.listen(0);
            const auto queued = test::raw_peer::connect(asio::local::stream_protocol::endpoint(busy));
            const auto full = co_await test::error_of(us::start_unix_server(never_called, busy));
            CHECK(full == std::errc::address_in_use);
            CHECK(is_socket_file(busy));
        });
}

TEST_CASE("start_unix_server: replaces a socket file that nobody listens on any more")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const test::temporary_directory directory;
            const std::string path = directory.file("socket");
            make_stale_socket(path);
            REQUIRE(is_socket_file(path));
            const us::server server = co_await us::start_unix_server(test::echo, path);
            const std::string answer = co_await ask_unix(path, "hello\n");
            CHECK(answer == "hello\n");
        });
}

TEST_CASE("start_unix_server: refuses a file that is no socket, and leaves it alone")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const test::temporary_directory directory;
            const std::string path = directory.write("file", "precious");
            const auto error =
                co_await test::exception_of<std::system_error>(us::start_unix_server(never_called, path));
            CHECK(error.code() == std::errc::address_in_use);
            CHECK_THAT(error.what(), test::contains(path));
            std::ifstream file(path);
            const std::string content{std::istreambuf_iterator<char>(file), {}};
            CHECK(content == "precious");

            const std::string stale = directory.file("stale");
            make_stale_socket(stale);
            const std::string link = directory.file("link");
            REQUIRE(::symlink(stale.c_str(), link.c_str()) == 0);
            const auto refused = co_await test::error_of(us::start_unix_server(never_called, link));
            CHECK(refused == std::errc::address_in_use);
            CHECK(is_socket_file(stale));
            CHECK(exists(link));
        });
}

TEST_CASE("start_unix_server: does not remove a file that is not its own any more")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const test::temporary_directory directory;
            const std::string path = directory.file("socket");
            us::server first = co_await us::start_unix_server(test::echo, path);
            REQUIRE(::unlink(path.c_str()) == 0);
            const us::server second = co_await us::start_unix_server(test::echo, path);
            first.close();
            co_await first.wait_closed();
            REQUIRE(is_socket_file(path));
            const std::string answer = co_await ask_unix(path, "the second\n");
            CHECK(answer == "the second\n");
        });
}

TEST_CASE("start_unix_server: a path that cannot be bound is named in the error")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const test::temporary_directory directory;
            const std::string missing = directory.file("no-such-directory/socket");
            const auto error =
                co_await test::exception_of<std::system_error>(us::start_unix_server(never_called, missing));
            CHECK(error.code().value() == ENOENT);
            CHECK_THAT(error.what(), test::contains(missing));

            const std::string longer = directory.file(std::string(200, 'x'));
            const auto too_long =
                co_await test::exception_of<std::system_error>(us::start_unix_server(never_called, longer));
            CHECK(too_long.code() == asio::error::name_too_long);
            CHECK_THAT(too_long.what(), test::contains(longer));
        });
}

TEST_CASE("start_unix_server: a proxy's header is read and TLS is detected")
{
    const test::temporary_directory directory;
    const std::string path = directory.file("socket");
    test::run(
        [&]() -> asio::awaitable<void>
        {
            us::server_options options = detecting();
            const auto is_proxy = [](const us::socket_address& peer) { return peer.is_unix; };
            options.proxy_protocol = is_proxy;
            const us::server server = co_await us::start_unix_server(tell, path, options);
            const auto talk = [&]
            {
                auto plain = test::raw_peer::connect(asio::local::stream_protocol::endpoint(path));
                plain.send_all(proxy_headers[1] + "hello\n");
                auto secure = test::raw_peer::connect(asio::local::stream_protocol::endpoint(path));
                test::tls_settings settings = test::localhost_client();
                settings.send_before = proxy_headers[0];
                secure.tls_connect(settings);
                secure.tls_write("hello\n");
                std::string lines = plain.recv_line() + secure.tls_read_line();
                secure.tls_shutdown();
                return lines;
            };
            const std::string lines = co_await test::joined(test::run_in_thread(talk));
            CHECK(lines == "plain " + proxied + "hello\nTLS " + proxied + "hello\n");
        });
}

TEST_CASE("start_unix_server: options that make no sense are std::invalid_argument at the call")
{
    const auto refused = [](const us::server_options& options)
    { CHECK_THROWS_AS(us::start_unix_server(never_called, "/nowhere/socket", options), std::invalid_argument); };

    refused({.upgradeable = true});
    refused({.limit = 0});
    refused({.family = us::ip_family::v4});
    refused({.backlog = 0});
    refused({.reuse_port = true});
    refused({.keep_alive = true});
    refused({.max_connections = 0});
    refused({.max_handshakes = 0});
    CHECK_THROWS_AS(us::start_unix_server(never_called, ""), std::invalid_argument);
    const std::string_view cut("/nowhere/a\0b", 12);
    CHECK_THROWS_AS(us::start_unix_server(never_called, cut), std::invalid_argument);
    CHECK_THROWS_AS(us::open_unix_connection(cut), std::invalid_argument);
    CHECK_THROWS_AS(us::start_unix_server({}, "/nowhere/socket"), std::invalid_argument);
}
