#include <upgradeable_streams/open_connection.hpp>

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/chunked_stream.hpp"
#include "support/descriptors.hpp"
#include "support/process.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/stream_links.hpp"
#include "support/temporary_directory.hpp"
#include "support/thread.hpp"
#include "support/tls_records.hpp"

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/co_spawn.hpp>
#include <asio/error.hpp>
#include <asio/execution/outstanding_work.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/require.hpp>
#include <asio/strand.hpp>
#include <asio/system_executor.hpp>
#include <asio/this_coro.hpp>
#include <asio/thread_pool.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/use_future.hpp>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <future>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <netdb.h>

namespace us = upgradeable_streams;
using asio::awaitable;
using asio::ip::tcp;
using test::error_of;
using test::exception_of;
using test::joined;
using test::run_in_thread;
using test::soon;

namespace
{

/// Names that the resolver below knows, whatever the machine's hosts file says.
const std::map<std::string, std::vector<const char*>> known_names = {
    {"one.test", {"127.0.0.1"}},
    {"both.test", {"127.0.0.1", "::1"}},
    {"two.test", {"127.0.0.2", "127.0.0.3"}},
    {"many.test", {"127.0.0.2", "127.0.0.3", "127.0.0.4", "::1"}},
    {"slow.test", {"127.0.0.1"}},
};

std::atomic<std::uint16_t> line_service_port{0}; ///< Of the service named line-test.
std::atomic<int> searches{0};                    ///< How often a name was searched for.
std::shared_future<void> slow_answer;            ///< What slow.test waits for.

std::ptrdiff_t threads()
{
    const std::filesystem::directory_iterator tasks("/proc/self/task");
    return std::distance(begin(tasks), end(tasks));
}

const std::ptrdiff_t threads_at_first = threads();

} // namespace

/// In place of the C library's, for the names ending in .test and the service line-test.
extern "C" int getaddrinfo(const char* host, const char* service, const addrinfo* hints, addrinfo** result)
{
    static const auto next = reinterpret_cast<decltype(&getaddrinfo)>(dlsym(RTLD_NEXT, "getaddrinfo"));
    if (hints->ai_flags & AI_NUMERICHOST)
        return next(host, service, hints, result);
    ++searches;
    std::string port = service ? service : "";
    if (port == "line-test")
        port = std::to_string(line_service_port);
    const auto found = known_names.find(host ? host : "");
    if (found == known_names.end())
        return next(host, port.c_str(), hints, result);
    if (found->first == "slow.test")
        slow_answer.wait();
    *result = nullptr;
    addrinfo** end = result;
    for (const char* address : found->second)
        if (next(address, port.c_str(), hints, end) == 0)
            while (*end)
                end = &(*end)->ai_next;
    return *result ? 0 : EAI_NONAME;
}

namespace
{

using pair_type = std::pair<us::stream_reader, us::stream_writer>;

/// Listens on an address of its own, and lets tests see who came.
struct listener
{
    explicit listener(const asio::any_io_executor& executor, const tcp::endpoint& endpoint = test::loopback())
        : acceptor(executor, endpoint)
    {
    }

    std::uint16_t port() const { return acceptor.local_endpoint().port(); }

    test::raw_peer accept() { return test::raw_peer(acceptor.accept().release()); }

    tcp::acceptor acceptor;
};

/// An address that refuses connections for as long as this lives.
struct refusing
{
    explicit refusing(const asio::any_io_executor& executor) : socket(executor, test::loopback()) {}

    std::uint16_t port() const { return socket.local_endpoint().port(); }

    tcp::socket socket; // bound, and not listening
};

/// An address that never answers: its queue of connections is full.
struct black_hole
{
    explicit black_hole(const asio::any_io_executor& executor, const char* address = "127.0.0.2")
        : acceptor(executor), filler(executor)
    {
        acceptor.open(tcp::v4());
        acceptor.bind({asio::ip::make_address(address), 0});
        acceptor.listen(0);
        filler.connect(acceptor.local_endpoint());
    }

    std::uint16_t port() const { return acceptor.local_endpoint().port(); }

    tcp::acceptor acceptor;
    tcp::socket filler;
};

bool has_ipv6()
{
    asio::io_context io;
    tcp::acceptor acceptor(io);
    std::error_code error;
    acceptor.open(tcp::v6(), error);
    if (!error)
        acceptor.bind({asio::ip::address_v6::loopback(), 0}, error);
    return !error;
}

/// Lines go both ways over a connection to a raw peer.
awaitable<void> check_lines(pair_type& pair, test::raw_peer& peer)
{
    const bool tls = peer.ssl() != nullptr;
    pair.second.write("PING\n");
    const std::string ping =
        co_await joined(run_in_thread([&] { return tls ? peer.tls_read_line() : peer.recv_line(); }));
    CHECK(ping == "PING\n");
    if (tls)
        peer.tls_write("PONG\n");
    else
        peer.send_all("PONG\n");
    const std::string pong = co_await pair.first.readline();
    CHECK(pong == "PONG\n");
    if (tls)
        peer.tls_shutdown_send_only();
}

us::connection_options with_tls()
{
    us::connection_options options;
    options.ssl = &test::client_context();
    return options;
}

std::vector<std::string> addresses(const us::connect_error& error)
{
    std::vector<std::string> result;
    for (const auto& attempt : error.attempts())
        result.push_back(attempt.address);
    return result;
}

/// Runs a test twice, the second time with a count of the descriptors that it leaves.
template <typename Factory>
void leaves_nothing_open(Factory factory)
{
    test::run(factory);
    const std::size_t before = test::open_descriptors();
    test::run(factory);
    CHECK(test::open_descriptors() == before);
}

} // namespace

TEST_CASE("open_connection: connects in plain text, to a name or an address")
{
    const std::string host = GENERATE("127.0.0.1", "localhost", "one.test");
    CAPTURE(host);
    leaves_nothing_open(
        [=]() -> awaitable<void>
        {
            us::connection_options options;
            options.family = us::ip_family::v4;
            listener server(co_await asio::this_coro::executor);
            auto pair = co_await us::open_connection(host, server.port(), options);
            CHECK(!pair.first.is_tls());
            CHECK(pair.second.get_extra_info<"peername">()->to_string() ==
                  "127.0.0.1:" + std::to_string(server.port()));
            test::raw_peer peer = server.accept();
            co_await check_lines(pair, peer);
        });
}

TEST_CASE("open_connection: addresses and ports that are numbers are searched for nowhere, and need no thread")
{
    test::run(
        []() -> awaitable<void>
        {
            co_await test::eventually([] { return threads() == threads_at_first; }); // one that was joined leaves later
            us::connection_options options;
            options.local_addr = us::local_address{"127.0.0.2"};
            listener server(co_await asio::this_coro::executor);
            const int searches_before = searches;
            auto pair = co_await us::open_connection("127.0.0.1", server.port(), options);
            CHECK(searches == searches_before);
            CHECK(threads() == threads_at_first);
            auto named = co_await us::open_connection("one.test", server.port(), options);
            CHECK(searches == searches_before + 1);
            CHECK(threads() == threads_at_first + 1);
        });
}

TEST_CASE("open_connection: a host's control characters are escaped in errors")
{
    const std::string host = "\x1b[2J\r\nforged";
    us::connection_options options;
    options.ssl = &test::client_context();
    CHECK_THROWS_MATCHES(us::open_connection(host, 25, options), std::invalid_argument,
                         test::message_contains("\\x1b[2J\\x0d\\x0aforged"));
    test::run(
        [=]() -> awaitable<void>
        {
            const auto error = co_await exception_of<std::system_error>(us::open_connection(host, 25));
            CHECK_THAT(error.what(), test::contains("cannot resolve \\x1b[2J\\x0d\\x0aforged:25"));
        });
}

TEST_CASE("open_connection: an IPv6 address, with or without brackets")
{
    if (!has_ipv6())
        return;
    const std::string host = GENERATE("::1", "[::1]");
    const bool tls = GENERATE(false, true);
    CAPTURE(host, tls);
    test::run(
        [=]() -> awaitable<void>
        {
            listener server(co_await asio::this_coro::executor, {asio::ip::address_v6::loopback(), 0});
            auto accepted = run_in_thread(
                [&]
                {
                    test::raw_peer peer = server.accept();
                    if (tls)
                        peer.tls_accept(test::localhost_server());
                    return peer;
                });
            auto pair = co_await us::open_connection(host, server.port(), tls ? with_tls() : us::connection_options());
            test::raw_peer peer = co_await joined(std::move(accepted));
            CHECK(pair.second.get_extra_info<"peername">()->to_string() == "[::1]:" + std::to_string(server.port()));
            co_await check_lines(pair, peer);
        });
}

TEST_CASE("open_connection: the port may be a service name")
{
    test::run(
        []() -> awaitable<void>
        {
            listener server(co_await asio::this_coro::executor);
            line_service_port = server.port();
            auto pair = co_await us::open_connection("127.0.0.1", "line-test");
            test::raw_peer peer = server.accept();
            co_await check_lines(pair, peer);
        });
}

TEST_CASE("open_connection: a number that is no port, an empty service and an empty host are std::invalid_argument")
{
    using namespace std::string_view_literals;
    CHECK_THROWS_AS(us::open_connection("localhost", 65536), std::invalid_argument);
    CHECK_THROWS_AS(us::open_connection("localhost", -1), std::invalid_argument);
    CHECK_THROWS_AS(us::open_connection("localhost", ""), std::invalid_argument);
    CHECK_THROWS_AS(us::open_connection("", 25), std::invalid_argument);
    CHECK_THROWS_AS(us::open_connection("[]", 25), std::invalid_argument);
    CHECK_THROWS_AS(us::open_connection("localhost\0.example"sv, 25), std::invalid_argument);
    CHECK_THROWS_AS(us::open_connection("localhost", "smtp\0x"sv), std::invalid_argument);
    for (const us::port_number none : {us::port_number(0), us::port_number("00")})
        CHECK_THROWS_MATCHES(us::open_connection("localhost", none), std::invalid_argument,
                             test::message_contains("port 0 is for servers"));
}

TEST_CASE("open_connection: an unknown service or host is the resolver's error, which names the host")
{
    test::run(
        []() -> awaitable<void>
        {
            const std::error_code service = co_await error_of(us::open_connection("127.0.0.1", "no-such-service-test"));
            CHECK((service == asio::error::service_not_found || service == asio::error::host_not_found));
            us::connection_options options;
            options.family = us::ip_family::v6;
            const auto host = co_await exception_of<std::system_error>(us::open_connection("one.test", 25, options));
            CHECK(host.code() == asio::error::host_not_found);
            CHECK(std::string(host.what()).find("one.test") != std::string::npos);
        });
}

TEST_CASE("open_connection: where no thread can be started to resolve a name on, that is the error")
{
    const int status = test::run_forked(
        []
        {
            test::forbid_threads();
            const auto error = test::run([] { return error_of(us::open_connection("localhost", 25)); });
            return error.value();
        });
    CHECK(status == EAGAIN);
}

TEST_CASE("open_connection: options that make no sense are std::invalid_argument at the call")
{
    const auto refused = [](auto change)
    {
        us::connection_options options;
        change(options);
        CHECK_THROWS_AS(us::open_connection("localhost", 25, options), std::invalid_argument);
    };
    using std::chrono::seconds;
    refused([](auto& o) { o.upgradeable = true; });
    refused([](auto& o) { o.limit = 0; });
    refused([](auto& o) { o.operation_timeout = seconds(0); });
    refused([](auto& o) { o.server_hostname = "localhost"; });
    refused([](auto& o) { o.connect_timeout = seconds(0); });
    refused([](auto& o) { o.connect_timeout = seconds(-1); });
    refused([](auto& o) { o.happy_eyeballs_delay = seconds(0); });
    refused([](auto& o) { o.role = us::tls_role::server; });
    refused(
        [](auto& o)
        {
            o.ssl = &test::client_context();
            o.ssl_handshake_timeout = seconds(0);
        });
    refused(
        [](auto& o)
        {
            o.ssl = &test::client_context();
            o.ssl_shutdown_timeout = seconds(-1);
        });
    refused([](auto& o) { o.ssl = &test::server_context(); });
}

TEST_CASE("open_connection: a name that cannot be verified is std::invalid_argument at the call")
{
    using namespace std::string_view_literals;
    const bool upgradeable = GENERATE(false, true);
    const auto name =
        GENERATE("*.example.org"sv, ".example.org"sv, "example.org\0.evil.test"sv,
                 "b\xc3\xbc"
                 "cher.example"sv,
                 "two words"sv, "."sv, "127.0.0.1%lo"sv, "[127.0.0.1]"sv, "[localhost]"sv, "localhost%lo"sv);
    CAPTURE(upgradeable, name);
    us::connection_options options = with_tls();
    options.upgradeable = upgradeable;
    CHECK_THROWS_AS(us::open_connection(name, 25, options), std::invalid_argument);
    options.server_hostname = name;
    CHECK_THROWS_AS(us::open_connection("localhost", 25, options), std::invalid_argument);
}

TEST_CASE("open_connection: what it was given may be gone once it was called")
{
    test::run(
        []() -> awaitable<void>
        {
            listener server(co_await asio::this_coro::executor);
            auto accepted = run_in_thread(
                [&]
                {
                    test::raw_peer peer = server.accept();
                    peer.tls_accept(test::localhost_server());
                    return peer;
                });
            auto host = std::make_unique<std::string>("127.0.0.1");
            auto port = std::make_unique<std::string>(std::to_string(server.port()));
            auto name = std::make_unique<std::string>("localhost");
            auto context = std::make_unique<asio::ssl::context>(test::make_client_context());
            auto options = std::make_unique<us::connection_options>();
            options->ssl = context.get();
            options->server_hostname = *name;
            auto pending = us::open_connection(*host, *port, *options);
            host.reset();
            port.reset();
            name.reset();
            context.reset();
            options.reset();
            auto pair = co_await std::move(pending);
            test::raw_peer peer = co_await joined(std::move(accepted));
            co_await check_lines(pair, peer);
        });
}

TEST_CASE("open_connection: with ssl and not upgradeable it is TLS from the first byte")
{
    test::run(
        []() -> awaitable<void>
        {
            auto tapped = co_await test::link_through_tap(with_tls());
            test::stream_link& link = tapped.link;
            CHECK(link.reader.is_tls());
            link.writer.write("a secret\n");
            const std::string secret = co_await link.peer_reader.readline();
            CHECK(secret == "a secret\n");
            link.writer.close();
            link.peer_writer.close();
            co_await link.writer.wait_closed();
            co_await link.peer_writer.wait_closed();
            const std::string_view up = tapped.tap->client_to_server();
            const auto scan = test::tls_records(up);
            CHECK(scan.all_tls);
            REQUIRE(!scan.records.empty());
            CHECK(scan.records[0].type == test::tls_record::handshake);
            CHECK(test::tls_records(tapped.tap->server_to_client()).all_tls);
            CHECK(up.find("secret") == up.npos);
        });
}

TEST_CASE("open_connection: the host is the name that is verified, and sent as SNI unless it is an address")
{
    const bool upgradeable = GENERATE(false, true);
    const std::string host = GENERATE("127.0.0.1", "localhost");
    CAPTURE(upgradeable, host);
    test::run(
        [=]() -> awaitable<void>
        {
            listener server(co_await asio::this_coro::executor);
            std::string seen;
            auto accepted = run_in_thread(
                [&]
                {
                    test::raw_peer peer = server.accept();
                    test::tls_settings settings = test::localhost_server();
                    settings.adjust = [&](SSL_CTX* context)
                    {
                        SSL_CTX_set_tlsext_servername_arg(context, &seen);
                        SSL_CTX_set_tlsext_servername_callback(
                            context,
                            +[](SSL* ssl, int*, void* to) -> int
                            {
                                if (const char* name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name))
                                    *static_cast<std::string*>(to) = name;
                                return SSL_TLSEXT_ERR_OK;
                            });
                    };
                    peer.tls_accept(settings);
                    return peer;
                });
            us::connection_options options = with_tls();
            options.upgradeable = upgradeable;
            options.family = us::ip_family::v4;
            auto pair = co_await us::open_connection(host, server.port(), options);
            CHECK(pair.first.is_tls() == !upgradeable);
            if (upgradeable)
                pair = co_await pair.second.start_tls();
            test::raw_peer peer = co_await joined(std::move(accepted));
            CHECK(seen == (host == "localhost" ? "localhost" : ""));
            co_await check_lines(pair, peer);
        });
}

TEST_CASE("open_connection: a certificate for another name is refused, and server_hostname says which name it is")
{
    const bool upgradeable = GENERATE(false, true);
    const bool overridden = GENERATE(false, true);
    CAPTURE(upgradeable, overridden);
    leaves_nothing_open(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            listener server(executor);
            auto accepted = run_in_thread(
                [&]() -> std::optional<test::raw_peer>
                {
                    test::raw_peer peer = server.accept();
                    try
                    {
                        peer.tls_accept(test::localhost_server());
                    }
                    catch (const test::failure&)
                    {
                        return std::nullopt;
                    }
                    return peer;
                });
            us::connection_options options = with_tls();
            options.upgradeable = upgradeable;
            options.server_hostname = overridden ? "localhost" : "";
            auto connected = test::spawn(executor,
                                         [&]() -> awaitable<pair_type>
                                         {
                                             auto pair =
                                                 co_await us::open_connection("one.test", server.port(), options);
                                             if (upgradeable)
                                                 pair = co_await pair.second.start_tls();
                                             co_return pair;
                                         });
            if (overridden)
            {
                auto pair = co_await connected.join();
                std::optional<test::raw_peer> peer = co_await joined(std::move(accepted));
                REQUIRE(peer);
                co_await check_lines(pair, *peer);
                co_return;
            }
            const auto error = co_await exception_of<us::tls_error>(connected.join());
            CHECK(error.verify_result() == X509_V_ERR_HOSTNAME_MISMATCH);
            CHECK(std::string(error.what()).find("one.test") != std::string::npos);
            co_await joined(std::move(accepted));
        });
}

TEST_CASE("open_connection: a server that does not speak TLS is errc::plaintext_injection, with what it said")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            listener server(co_await asio::this_coro::executor);
            auto accepted = run_in_thread(
                [&]
                {
                    test::raw_peer peer = server.accept();
                    peer.send_all("220 mail.example ready\r\n");
                    return peer;
                });
            const auto error =
                co_await exception_of<us::tls_error>(us::open_connection("127.0.0.1", server.port(), with_tls()));
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == "220 mail.example ready\r\n");
            co_await joined(std::move(accepted));
        });
}

TEST_CASE("open_connection: limit is the reader's")
{
    test::run(
        []() -> awaitable<void>
        {
            listener server(co_await asio::this_coro::executor);
            us::connection_options options;
            options.limit = 4;
            auto pair = co_await us::open_connection("127.0.0.1", server.port(), options);
            test::raw_peer peer = server.accept();
            peer.send_all("1234\n12345\n");
            const std::string line = co_await pair.first.readline();
            CHECK(line == "1234\n");
            const std::error_code error = co_await error_of(pair.first.readline());
            CHECK(error == us::errc::limit_overrun);
        });
}

TEST_CASE("open_connection: a host that never answers is errc::connect_timeout, and the error tells which address")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            black_hole silent(co_await asio::this_coro::executor);
            us::connection_options options;
            options.connect_timeout = soon;
            const auto error =
                co_await exception_of<us::connect_error>(us::open_connection("127.0.0.2", silent.port(), options));
            CHECK(error.code() == us::errc::connect_timeout);
            CHECK(error.code() == std::errc::timed_out);
            REQUIRE(error.attempts().size() == 1);
            CHECK(error.attempts()[0].address == "127.0.0.2:" + std::to_string(silent.port()));
            CHECK(error.attempts()[0].error == us::errc::connect_timeout);
        });
}

TEST_CASE("open_connection: connect_timeout covers the resolver")
{
    test::run(
        []() -> awaitable<void>
        {
            std::promise<void> answer;
            slow_answer = answer.get_future().share();
            us::connection_options options;
            options.connect_timeout = soon;
            const std::error_code error = co_await error_of(us::open_connection("slow.test", 25, options));
            CHECK(error == us::errc::connect_timeout);
            answer.set_value();
        });
}

TEST_CASE("open_connection: a server that is silent in the handshake is errc::handshake_timeout, and the error names it")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            listener server(co_await asio::this_coro::executor);
            us::connection_options options = with_tls();
            options.ssl_handshake_timeout = soon;
            options.server_hostname = "mail.example";
            const auto error =
                co_await exception_of<us::tls_error>(us::open_connection("127.0.0.1", server.port(), options));
            CHECK(error.code() == us::errc::handshake_timeout);
            CHECK_THAT(error.what(), test::starts_with("TLS upgrade with mail.example: "));
        });
}

TEST_CASE("open_connection: local_addr is what the connection comes from")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            listener server(executor);
            std::uint16_t port = 0;
            {
                const refusing reserved(executor);
                port = reserved.port();
            }
            us::connection_options options;
            options.local_addr = us::local_address{.host = "127.0.0.5", .port = port};
            auto pair = co_await us::open_connection("127.0.0.1", server.port(), options);
            CHECK(pair.second.get_extra_info<"sockname">()->to_string() == "127.0.0.5:" + std::to_string(port));
            tcp::endpoint from;
            tcp::socket accepted = server.acceptor.accept(from);
            CHECK(from == tcp::endpoint(asio::ip::make_address("127.0.0.5"), port));

            options.local_addr->port = 0;
            auto any_port = co_await us::open_connection("127.0.0.1", server.port(), options);
            CHECK(any_port.second.get_extra_info<"sockname">()->host == "127.0.0.5");
        });
}

TEST_CASE("open_connection: a local_addr that cannot be bound is the reason of each attempt")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            listener server(co_await asio::this_coro::executor);
            us::connection_options options;
            options.local_addr = us::local_address{.host = "127.0.0.1", .port = server.port()};
            const auto in_use =
                co_await exception_of<us::connect_error>(us::open_connection("127.0.0.1", server.port(), options));
            CHECK(in_use.code() == asio::error::address_in_use);

            options.local_addr = us::local_address{.host = "::1"};
            const auto family =
                co_await exception_of<us::connect_error>(us::open_connection("127.0.0.1", server.port(), options));
            CHECK(family.code() == asio::error::address_family_not_supported);
            REQUIRE(family.attempts().size() == 1);
        });
}

TEST_CASE("open_connection: out of descriptors it is no_descriptors for each address, and connects once there are some")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            listener server(co_await asio::this_coro::executor);
            const refusing nobody(co_await asio::this_coro::executor);
            co_await exception_of<us::connect_error>(
                us::open_connection("127.0.0.1", nobody.port())); // makes the resolver's thread
            std::optional<test::descriptor_limit> limit(std::in_place, 0);
            const auto error =
                co_await exception_of<us::connect_error>(us::open_connection("127.0.0.1", server.port()));
            limit.reset();
            CHECK(error.code() == asio::error::no_descriptors);
            REQUIRE(error.attempts().size() == 1);
            auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.port());
            CHECK_FALSE(writer.is_closing());
        });
}

TEST_CASE("open_connection: family chooses among a host's addresses")
{
    test::run(
        []() -> awaitable<void>
        {
            const refusing nobody(co_await asio::this_coro::executor);
            const std::string port = ":" + std::to_string(nobody.port());
            us::connection_options options;
            options.family = us::ip_family::v4;
            const auto v4 =
                co_await exception_of<us::connect_error>(us::open_connection("both.test", nobody.port(), options));
            CHECK(addresses(v4) == std::vector<std::string>{"127.0.0.1" + port});
            options.family = us::ip_family::v6;
            const auto v6 =
                co_await exception_of<us::connect_error>(us::open_connection("both.test", nobody.port(), options));
            CHECK(addresses(v6) == std::vector<std::string>{"[::1]" + port});
            const std::error_code none = co_await error_of(us::open_connection("127.0.0.1", nobody.port(), options));
            CHECK(none);
        });
}

TEST_CASE("open_connection: while the first address is silent the second is tried (RFC 8305)")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            black_hole silent(executor, "127.0.0.2");
            listener server(executor, {asio::ip::make_address("127.0.0.3"), silent.port()});
            us::connection_options options;
            options.happy_eyeballs_delay = soon;
            auto pair = co_await us::open_connection("two.test", silent.port(), options);
            CHECK(pair.second.get_extra_info<"peername">()->host == "127.0.0.3");
            test::raw_peer peer = server.accept();
            co_await check_lines(pair, peer);
        });
}

TEST_CASE("open_connection: without happy_eyeballs_delay an address is tried once the one before it has failed")
{
    using duration = std::chrono::steady_clock::duration;
    const std::optional<duration> none_or_endless =
        GENERATE(std::optional<duration>(), std::optional<duration>(duration::max()));
    leaves_nothing_open(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options;
            options.happy_eyeballs_delay = none_or_endless;
            {
                black_hole silent(executor, "127.0.0.2");
                const listener server(executor, {asio::ip::make_address("127.0.0.3"), silent.port()});
                options.connect_timeout = soon;
                const auto error =
                    co_await exception_of<us::connect_error>(us::open_connection("two.test", silent.port(), options));
                CHECK(error.code() == us::errc::connect_timeout);
                CHECK(addresses(error) == std::vector<std::string>{"127.0.0.2:" + std::to_string(silent.port())});
            }
            options.connect_timeout = std::chrono::seconds(10);
            listener server(executor, {asio::ip::make_address("127.0.0.3"), 0});
            auto pair = co_await us::open_connection("two.test", server.port(), options);
            CHECK(pair.second.get_extra_info<"peername">()->host == "127.0.0.3");
        });
}

TEST_CASE("open_connection: an address that refuses makes the next start before the delay has passed")
{
    test::run(
        []() -> awaitable<void>
        {
            listener server(co_await asio::this_coro::executor, {asio::ip::make_address("127.0.0.3"), 0});
            us::connection_options options;
            options.happy_eyeballs_delay = std::chrono::hours(1);
            auto pair = co_await us::open_connection("two.test", server.port(), options);
            CHECK(pair.second.get_extra_info<"peername">()->host == "127.0.0.3");
        });
}

TEST_CASE("open_connection: interleave says how the families alternate (RFC 8305)")
{
    using order = std::vector<std::string>;
    using delay = std::optional<std::chrono::steady_clock::duration>;
    const std::string a = "127.0.0.2", b = "127.0.0.3", c = "127.0.0.4", six = "[::1]";
    const delay given = std::chrono::hours(1);
    const auto [happy, interleave, expected] = GENERATE_COPY(table<delay, std::optional<std::size_t>, order>({
        {given, std::nullopt, {a, six, b, c}},
        {given, 1, {a, six, b, c}},
        {given, 2, {a, b, six, c}},
        {given, 3, {a, b, c, six}},
        {given, 9, {a, b, c, six}},
        {given, 0, {a, b, c, six}},
        {delay(), std::nullopt, {a, b, c, six}},
        {delay(), 1, {a, six, b, c}},
    }));
    const order wanted = expected;
    us::connection_options options;
    options.happy_eyeballs_delay = happy;
    options.interleave = interleave;
    test::run(
        [&]() -> awaitable<void>
        {
            const refusing nobody(co_await asio::this_coro::executor);
            const auto error =
                co_await exception_of<us::connect_error>(us::open_connection("many.test", nobody.port(), options));
            order tried;
            for (const std::string& address : addresses(error))
                tried.push_back(address.substr(0, address.rfind(':')));
            CHECK(tried == wanted);
        });
}

TEST_CASE("open_connection: when every address fails, the error tells each address and its reason")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            const refusing nobody(co_await asio::this_coro::executor);
            const std::string port = ":" + std::to_string(nobody.port());
            const auto error = co_await exception_of<us::connect_error>(us::open_connection("two.test", nobody.port()));
            CHECK(error.code() == asio::error::connection_refused);
            CHECK(addresses(error) == std::vector<std::string>{"127.0.0.2" + port, "127.0.0.3" + port});
            for (const auto& attempt : error.attempts())
            {
                CHECK(attempt.error == asio::error::connection_refused);
                CHECK(std::string(error.what()).find(attempt.address) != std::string::npos);
            }
            CHECK(std::string(error.what()).find("two.test" + port) != std::string::npos);

            us::connection_options options;
            options.local_addr = us::local_address{.host = "127.0.0.1"};
            const auto mixed =
                co_await exception_of<us::connect_error>(us::open_connection("both.test", nobody.port(), options));
            CHECK(mixed.code() == us::errc::connect_failed);
            REQUIRE(mixed.attempts().size() == 2);
            CHECK(mixed.attempts()[0].error == asio::error::connection_refused);
            CHECK(mixed.attempts()[1].error == asio::error::address_family_not_supported);
        });
}

TEST_CASE("open_connection: a connection that is refused while another is silent is told with it")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            black_hole silent(co_await asio::this_coro::executor, "127.0.0.3");
            us::connection_options options;
            options.connect_timeout = soon;
            const auto error =
                co_await exception_of<us::connect_error>(us::open_connection("two.test", silent.port(), options));
            CHECK(error.code() == us::errc::connect_timeout);
            REQUIRE(error.attempts().size() == 2);
            CHECK(error.attempts()[0].error == asio::error::connection_refused);
            CHECK(error.attempts()[1].error == us::errc::connect_timeout);
        });
}

TEST_CASE("open_connection: cancelled while it connects or shakes hands, it leaves nothing open")
{
    const bool handshake = GENERATE(false, true);
    const int moment = GENERATE(0, 1, 2, 5, 20, 100);
    CAPTURE(handshake, moment);
    leaves_nothing_open(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            const std::size_t before = test::open_descriptors();
            {
                black_hole silent(executor);
                listener server(executor);
                us::connection_options options = with_tls();
                options.server_hostname = "localhost";
                auto pending =
                    test::spawn(executor,
                                [&]
                                {
                                    return us::open_connection(handshake ? "127.0.0.1" : "127.0.0.2",
                                                               handshake ? server.port() : silent.port(), options);
                                });
                co_await test::turns(moment);
                pending.cancel();
                const std::error_code error = co_await error_of(pending.join());
                CHECK(error == asio::error::operation_aborted);
            }
            co_await test::eventually([before] { return test::open_descriptors() == before; });
        });
}

TEST_CASE("open_connection: cancelled while the resolver runs, it does not wait for it")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            std::promise<void> answer;
            slow_answer = answer.get_future().share();
            auto pending = test::spawn(executor, [] { return us::open_connection("slow.test", 25); });
            co_await test::turns();
            pending.cancel();
            const std::error_code error = co_await error_of(pending.join());
            CHECK(error == asio::error::operation_aborted);
            answer.set_value();
        });
}

TEST_CASE("open_connection: not awaited, it does nothing")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            listener server(co_await asio::this_coro::executor);
            {
                const auto unused = us::open_connection("127.0.0.1", server.port());
            }
            co_await test::turns();
            server.acceptor.non_blocking(true);
            std::error_code error;
            server.acceptor.accept(error);
            CHECK(error == asio::error::would_block);
        });
}

TEST_CASE("open_connection: many at once")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            listener server(executor);
            std::vector<test::task<pair_type>> pending;
            for (int i = 0; i < 64; ++i)
                pending.push_back(
                    test::spawn(executor, [&] { return us::open_connection("one.test", server.port()); }));
            for (int i = 0; i < 64; ++i)
                co_await server.acceptor.async_accept(asio::use_awaitable);
            std::vector<pair_type> pairs;
            for (const auto& connected : pending)
            {
                auto pair = co_await connected.join();
                pairs.push_back(std::move(pair));
            }
            CHECK(pairs.size() == 64);
        });
}

TEST_CASE("open_connection: adopts a TCP socket")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto sockets = test::tcp_pair(executor);
            test::raw_peer peer(sockets.second.release());
            auto pair = co_await us::open_connection(std::move(sockets.first));
            CHECK(pair.second.get_extra_info<"peername">()->host == "127.0.0.1");
            co_await check_lines(pair, peer);
        });
}

TEST_CASE("open_connection: adopts a Unix domain socket")
{
    test::run(
        []() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto sockets = test::local_pair(executor);
            test::raw_peer peer(sockets.second.release());
            auto pair = co_await us::open_connection(std::move(sockets.first));
            CHECK(pair.second.get_extra_info<"peername">()->is_unix);
            co_await check_lines(pair, peer);
        });
}

TEST_CASE("open_connection: adopts a socket with a concrete executor, in either role")
{
    const bool is_client = GENERATE(false, true);
    asio::io_context io;
    test::run_on(io,
                 [&]() -> awaitable<void>
                 {
                     auto sockets = test::tcp_pair<asio::io_context::executor_type>(io.get_executor());
                     test::raw_peer peer(sockets.second.release());
                     auto handshake = run_in_thread(
                         [&] {
                             is_client ? peer.tls_accept(test::localhost_server())
                                       : peer.tls_connect(test::localhost_client());
                         });
                     us::connection_options options;
                     options.ssl = is_client ? &test::client_context() : &test::server_context();
                     options.role = is_client ? us::tls_role::client : us::tls_role::server;
                     options.server_hostname = "localhost";
                     auto pair = co_await us::open_connection(std::move(sockets.first), options);
                     co_await joined(std::move(handshake));
                     CHECK(pair.first.is_tls());
                     co_await check_lines(pair, peer);
                 });
}

TEST_CASE("open_connection: adopts any stream over a socket, in plain text and TLS")
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool tls = GENERATE(false, true);
    const bool local = GENERATE(false, true);
    CAPTURE(chunk, tls, local);
    test::run(
        [=]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options = tls ? with_tls() : us::connection_options();
            if (tls)
                options.server_hostname = "localhost";
            const auto adopt = [&](auto sockets) -> awaitable<void>
            {
                test::raw_peer peer(sockets.second.release());
                std::future<void> handshake;
                if (tls)
                    handshake = run_in_thread([&] { peer.tls_accept(test::localhost_server()); });
                auto pair = co_await us::open_connection(
                    test::chunked_stream<decltype(sockets.first)>(std::move(sockets.first), chunk), options);
                if (tls)
                    co_await joined(std::move(handshake));
                co_await check_lines(pair, peer);
            };
            if (local)
                co_await adopt(test::local_pair(executor));
            else
                co_await adopt(test::tcp_pair(executor));
        });
}

namespace
{

struct counting_socket : tcp::socket
{
    counting_socket(tcp::socket&& socket, int& reads) : tcp::socket(std::move(socket)), reads_(&reads) {}

    template <typename Buffers, typename Token>
    auto async_read_some(const Buffers& buffers, Token&& token)
    {
        ++*reads_;
        return tcp::socket::async_read_some(buffers, std::forward<Token>(token));
    }

private:
    int* reads_;
};

} // namespace

TEST_CASE("open_connection: reads of a class derived from a socket go through that class")
{
    int reads = 0;
    test::run(
        [&]() -> awaitable<void>
        {
            auto sockets = test::tcp_pair(co_await asio::this_coro::executor);
            test::raw_peer peer(sockets.second.release());
            auto pair = co_await us::open_connection(counting_socket(std::move(sockets.first), reads));
            co_await check_lines(pair, peer);
        });
    CHECK(reads > 0);
}

TEST_CASE("open_connection: a socket that is not open, or options of connecting with one, are std::invalid_argument")
{
    asio::io_context io;
    CHECK_THROWS_AS(us::open_connection(tcp::socket(io)), std::invalid_argument);
    const auto refused = [&](auto change)
    {
        us::connection_options options;
        change(options);
        auto sockets = test::tcp_pair(io.get_executor());
        CHECK_THROWS_AS(us::open_connection(std::move(sockets.first), options), std::invalid_argument);
    };
    refused([](auto& o) { o.local_addr = us::local_address{.host = "127.0.0.1"}; });
    refused([](auto& o) { o.family = us::ip_family::v4; });
    refused([](auto& o) { o.interleave = 1; });
    refused([](auto& o) { o.upgradeable = true; });
    refused([](auto& o) { o.limit = 0; });
    refused([](auto& o) { o.ssl = &test::client_context(); }); // which verifies, and has no name
}

TEST_CASE("open_connection: a thread_pool or the system_executor is refused, and a strand is not")
{
    const std::string where = GENERATE("strand", "pool", "pool that tracks work", "system");
    const bool is_strand = where == "strand";
    const std::string how = GENERATE("tcp", "unix", "adopted");
    CAPTURE(where, how);
    test::temporary_directory directory;
    const std::string path = directory.file("socket");
    asio::io_context io;
    tcp::acceptor listening(io, {asio::ip::address_v4::loopback(), 0});
    asio::local::stream_protocol::acceptor listening_at_path(io, path);
    asio::thread_pool pool(2);
    asio::any_io_executor executor = pool.get_executor();
    if (where == "strand")
        executor = asio::make_strand(pool);
    else if (where == "pool that tracks work")
        executor = asio::require(pool.get_executor(), asio::execution::outstanding_work.tracked);
    else if (where == "system")
        executor = asio::system_executor();
    const auto open = [&]() -> awaitable<void>
    {
        if (how == "tcp")
            co_await us::open_connection("127.0.0.1", listening.local_endpoint().port());
        else if (how == "unix")
            co_await us::open_unix_connection(path);
        else
        {
            tcp::socket socket(executor);
            co_await socket.async_connect(listening.local_endpoint(), asio::use_awaitable);
            co_await us::open_connection(std::move(socket));
        }
    };
    auto opened = asio::co_spawn(executor, open, asio::use_future);
    if (is_strand)
        CHECK_NOTHROW(opened.get());
    else
        CHECK_THROWS_WITH(opened.get(), test::contains("make_strand"));
    executor = {}; // or the pool has work for ever
    pool.join();
}

TEST_CASE("open_unix_connection: connects, in plain text and TLS")
{
    const bool tls = GENERATE(false, true);
    CAPTURE(tls);
    leaves_nothing_open(
        [=]() -> awaitable<void>
        {
            const test::temporary_directory directory;
            const std::string path = directory.file("socket");
            test::raw_listener server{asio::local::stream_protocol::endpoint(path)};
            us::connection_options options = tls ? with_tls() : us::connection_options();
            if (tls)
                options.server_hostname = "localhost";
            auto accepted = run_in_thread(
                [&]
                {
                    test::raw_peer peer = server.accept();
                    if (tls)
                        peer.tls_accept(test::localhost_server());
                    return peer;
                });
            auto pair = co_await us::open_unix_connection(path, options);
            test::raw_peer peer = co_await joined(std::move(accepted));
            CHECK(pair.first.is_tls() == tls);
            CHECK(pair.second.get_extra_info<"peername">()->to_string() == path);
            CHECK(pair.second.get_extra_info<"peername">()->is_unix);
            co_await check_lines(pair, peer);
        });
}

TEST_CASE("open_unix_connection: where nobody listens the error tells the path and the reason")
{
    leaves_nothing_open(
        []() -> awaitable<void>
        {
            const test::temporary_directory directory;
            const std::string path = directory.file("socket");
            const auto error = co_await exception_of<us::connect_error>(us::open_unix_connection(path));
            CHECK(error.code() == std::error_code(ENOENT, asio::error::get_system_category()));
            CHECK(addresses(error) == std::vector<std::string>{path});
            CHECK(std::string(error.what()).find(path) != std::string::npos);
        });
}

TEST_CASE("open_unix_connection: options that make no sense are std::invalid_argument at the call")
{
    const auto refused = [](auto change)
    {
        us::connection_options options;
        change(options);
        CHECK_THROWS_AS(us::open_unix_connection("/tmp/socket", options), std::invalid_argument);
    };
    refused([](auto& o) { o.local_addr = us::local_address{.host = "127.0.0.1"}; });
    refused([](auto& o) { o.family = us::ip_family::v4; });
    refused([](auto& o) { o.interleave = 1; });
    refused([](auto& o) { o.upgradeable = true; });
    refused([](auto& o) { o.limit = 0; });
    refused([](auto& o) { o.role = us::tls_role::server; });
    refused([](auto& o) { o.ssl = &test::client_context(); }); // which verifies, and has no name
}
