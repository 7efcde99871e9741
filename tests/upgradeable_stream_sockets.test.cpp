#include "support/upgrade_rig.hpp"

using namespace test::rig;

// Socket types and TLS layers

namespace
{

template <typename Socket>
Socket convert(tcp::socket socket, asio::io_context& io)
{
    return Socket(io.get_executor(), tcp::v4(), socket.release());
}

/// Upgrades both ends, which are streams of the same type, and sends a line each way.
template <typename Stream>
void ping(asio::io_context& io, Stream client, Stream server)
{
    test::run_on(io,
                 [&]() -> asio::awaitable<void>
                 {
                     const auto executor = co_await asio::this_coro::executor;
                     const auto serving = test::spawn(executor,
                                                      [&]() -> asio::awaitable<void>
                                                      {
                                                          const std::string line = co_await read_exactly(server, 9);
                                                          CHECK(line == "STARTTLS\n");
                                                          co_await server.start_tls();
                                                          co_await write(server, "220 ready\n");
                                                          const std::string ping = co_await read_exactly(server, 5);
                                                          CHECK(ping == "PING\n");
                                                          co_await shut_down(server);
                                                      });
                     co_await write(client, "STARTTLS\n");
                     co_await client.start_tls();
                     const std::string line = co_await read_exactly(client, 10);
                     CHECK(line == "220 ready\n");
                     co_await write(client, "PING\n");
                     co_await shut_down(client);
                     co_await serving.join();
                     CHECK(client.is_tls());
                     CHECK(client.session()->version == "TLSv1.3");
                 });
}

} // namespace

TEMPLATE_TEST_CASE("upgradeable_stream: the socket may be a tcp::socket", "", with_ssl_stream, with_tls_stream)
{
    asio::io_context io;
    auto [left, right] = test::tcp_pair(io.get_executor());
    using stream = stream_over<TestType, tcp::socket>;
    ping(io, stream(std::move(left), options_of(tls_role::client)),
         stream(std::move(right), options_of(tls_role::server)));
}

TEMPLATE_TEST_CASE("upgradeable_stream: the socket may be a local::stream_protocol::socket", "", with_ssl_stream,
                   with_tls_stream)
{
    asio::io_context io;
    auto [left, right] = test::local_pair(io.get_executor());
    using stream = stream_over<TestType, asio::local::stream_protocol::socket>;
    ping(io, stream(std::move(left), options_of(tls_role::client)),
         stream(std::move(right), options_of(tls_role::server)));
}

TEMPLATE_TEST_CASE("upgradeable_stream: the socket may have a concrete executor", "", with_ssl_stream, with_tls_stream)
{
    asio::io_context io;
    using executor = asio::io_context::executor_type;
    auto [left, right] = test::tcp_pair<executor>(io.get_executor());
    using stream = stream_over<TestType, asio::basic_stream_socket<tcp, executor>>;
    ping(io, stream(std::move(left), options_of(tls_role::client)),
         stream(std::move(right), options_of(tls_role::server)));
}

TEMPLATE_TEST_CASE("upgradeable_stream: the socket's executor may be a strand, on which all intermediate work is done",
                   "", with_ssl_stream, with_tls_stream)
{
    asio::io_context io;
    using executor = asio::strand<asio::io_context::executor_type>;
    auto [left, right] = test::tcp_pair<executor>(asio::make_strand(io));
    using stream = stream_over<TestType, asio::basic_stream_socket<tcp, executor>>;
    ping(io, stream(std::move(left), options_of(tls_role::client)),
         stream(std::move(right), options_of(tls_role::server)));
}

TEMPLATE_TEST_CASE("upgradeable_stream: the socket may be an upgradeable_stream, for TLS within TLS", "",
                   with_ssl_stream, with_tls_stream)
{
    asio::io_context io;
    auto [left, right] = test::tcp_pair(io.get_executor());
    using outer_stream = typename nested_stream<TestType>::next_layer_type;
    outer_stream client(std::move(left), options_of(tls_role::client));
    outer_stream server(std::move(right), options_of(tls_role::server));
    outcome client_done, server_done;
    client.async_start_tls({}, into(client_done));
    server.async_start_tls({}, into(server_done));
    io.run();
    REQUIRE((!client_done.error && !server_done.error));
    using stream = nested_stream<TestType>;
    ping(io, stream(std::move(client), options_of(tls_role::client)),
         stream(std::move(server), options_of(tls_role::server)));
}

namespace
{

/// A stream whose operations need it to their end.
class needed_stream : public test::chunked_stream<tcp::socket>
{
public:
    using base = test::chunked_stream<tcp::socket>;

    needed_stream(tcp::socket socket, int& used_after_end) : base(std::move(socket)), used_after_end_(&used_after_end)
    {
    }

    needed_stream(needed_stream&& other) : base(std::move(other)), used_after_end_(other.used_after_end_) {}
    ~needed_stream() { *lives_ = false; }

    template <typename Buffers, typename Token>
    auto async_read_some(const Buffers& buffers, Token&& token)
    {
        auto read = [this, buffers, lives = lives_, used = used_after_end_,
                     begun = false](auto& self, asio::error_code error = {}, std::size_t size = 0) mutable
        {
            if (std::exchange(begun, true))
            {
                *used += !*lives;
                return self.complete(error, size);
            }
            const auto copy = buffers;
            this->base::async_read_some(copy, std::move(self));
        };
        return asio::async_compose<Token, void(asio::error_code, std::size_t)>(std::move(read), token, *this);
    }

private:
    int* used_after_end_;
    std::shared_ptr<bool> lives_ = std::make_shared<bool>(true);
};

} // namespace

TEST_CASE("upgradeable_stream: one that goes while it reads in plain text keeps the stream that it is over for that")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    int used_after_end = 0;
    std::array<char, 16> bytes;
    outcome read;
    {
        us::upgradeable_stream<needed_stream> stream(needed_stream(std::move(socket), used_after_end),
                                                     options_of(tls_role::client));
        stream.async_read_some(asio::buffer(bytes), into(read));
        io.poll();
    }
    run_until_done(io, read);
    CHECK(read.error == asio::error::operation_aborted);
    CHECK(used_after_end == 0);
}

namespace
{

/// A TLS layer that counts how it is used.
template <typename NextLayer>
class counting_layer : public asio::ssl::stream<NextLayer>
{
public:
    using asio::ssl::stream<NextLayer>::stream;

    template <typename Buffers, typename Token>
    auto async_read_some(const Buffers& buffers, Token&& token)
    {
        ++reads;
        return asio::ssl::stream<NextLayer>::async_read_some(buffers, std::forward<Token>(token));
    }

    static inline int reads = 0;
};

template <typename NextLayer>
using aliased_layer = asio::ssl::stream<NextLayer>;

/// Throws when it is made.
template <typename NextLayer>
class broken_layer : public asio::ssl::stream<NextLayer>
{
public:
    template <typename Next>
    broken_layer(Next&& next, SSL* ssl) : asio::ssl::stream<NextLayer>(next, ssl)
    {
        throw std::runtime_error("broken");
    }
};

} // namespace

TEST_CASE("upgradeable_stream: another TLS layer can stand in the place of asio::ssl::stream")
{
    asio::io_context io;
    auto [left, right] = test::tcp_pair(io.get_executor());
    using stream = us::upgradeable_stream<tcp::socket, counting_layer>;
    ping(io, stream(std::move(left), options_of(tls_role::client)),
         stream(std::move(right), options_of(tls_role::server)));
    CHECK(counting_layer<us::detail::write_queue<tcp::socket>&>::reads >= 2);
}

TEST_CASE("upgradeable_stream: the TLS layer may be an alias template")
{
    asio::io_context io;
    auto [left, right] = test::tcp_pair(io.get_executor());
    using stream = us::upgradeable_stream<tcp::socket, aliased_layer>;
    ping(io, stream(std::move(left), options_of(tls_role::client)),
         stream(std::move(right), options_of(tls_role::server)));
}

TEST_CASE("start_tls: a TLS layer that cannot be made leaves the plain socket in its place")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            us::upgradeable_stream<tcp::socket, broken_layer> stream(std::move(socket), options_of(tls_role::client));
            outcome result;
            CHECK_THROWS_AS(stream.async_start_tls({}, into(result)), std::runtime_error);
            CHECK(!result.done);
            CHECK(!stream.is_tls());
            CHECK(stream.native_handle() == nullptr);
            co_await write(stream, "plain\n");
            const std::string line = raw.recv_line();
            CHECK(line == "plain\n");
        });
}
