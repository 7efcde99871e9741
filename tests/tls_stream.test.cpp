#include "support/allocations.hpp"
#include "support/flood.hpp"
#include "support/memory.hpp"
#include "support/record_forger.hpp"
#include "support/upgrade_rig.hpp"

#include <openssl/err.h>
#include <openssl/sslerr.h>

#include <sys/socket.h>

#include <csignal>

using namespace test::rig;

namespace
{

using socket_layer = us::tls_stream<tcp::socket>;
using reference_layer = us::tls_stream<tcp::socket&>;
using chunked_layer = us::tls_stream<test::chunked_stream<tcp::socket>>;
using asio_layer = asio::ssl::stream<tcp::socket>;

asio::ssl::context& context_of(tls_role role)
{
    return role == tls_role::client ? test::client_context() : test::server_context();
}

auto type_of(tls_role role)
{
    return role == tls_role::client ? asio::ssl::stream_base::client : asio::ssl::stream_base::server;
}

/// A layer in the client's role, and its handshake with a peer that does then what `function(peer)` does.
template <typename Layer, typename... Chunk>
struct tls_end
{
    template <typename Function>
    tls_end(connection&& ends, Function function, Chunk... chunk)
        : peer(play(std::move(ends.peer),
                    [function](test::raw_peer& p)
                    {
                        handshake(p, tls_role::client);
                        return function(p);
                    })),
          layer(typename Layer::next_layer_type(std::move(ends.socket), chunk...), context_of(tls_role::client))
    {
    }

    asio::awaitable<void> shake_hands()
    {
        co_await layer.async_handshake(asio::ssl::stream_base::client, use_awaitable);
    }

    std::future<void> peer;
    Layer layer;
};

template <typename Layer>
struct layer_and_peer
{
    test::raw_peer peer;
    Layer layer;
};

/// A layer in the client's role and a raw peer, with the handshake done.
template <typename Layer, typename... Chunk>
layer_and_peer<Layer> shake_hands(connection&& ends, Chunk... chunk)
{
    auto shaking = test::run_in_thread([&] { handshake(ends.peer, tls_role::client); });
    Layer layer(typename Layer::next_layer_type(std::move(ends.socket), chunk...), context_of(tls_role::client));
    layer.handshake(Layer::client);
    shaking.get();
    return {std::move(ends.peer), std::move(layer)};
}

template <typename Layer>
asio::awaitable<std::error_code> handshake_error(Layer& layer, tls_role role)
{
    co_return co_await test::error_of(layer.async_handshake(type_of(role), use_awaitable));
}

template <typename Layer>
asio::awaitable<std::error_code> layer_shutdown_error(Layer& layer)
{
    co_return co_await test::error_of(layer.async_shutdown(use_awaitable));
}

/// Waits until a write stands still, because nobody reads at the other end.
template <typename Layer>
asio::awaitable<void> blocked(Layer& layer)
{
    co_await test::eventually([&] { return !is_writable(layer.lowest_layer().native_handle()); });
    co_await test::turns(50);
}

template <typename Layer>
asio::awaitable<void> expect_unusable(Layer& layer)
{
    std::error_code error = co_await write_error(layer);
    CHECK(error == us::errc::stream_unusable);
    error = co_await read_error(layer);
    CHECK(error == us::errc::stream_unusable);
    error = co_await layer_shutdown_error(layer);
    CHECK(error == us::errc::stream_unusable);
    error = co_await handshake_error(layer, tls_role::client);
    CHECK(error == us::errc::stream_unusable);
}

// The interface of asio::ssl::stream

template <typename Layer>
asio::awaitable<void> echo_a_line(Layer& layer)
{
    co_await layer.async_handshake(Layer::server, use_awaitable);
    const std::string line = co_await read_line(layer);
    co_await write(layer, line);
    co_await layer.async_shutdown(use_awaitable);
}

template <typename Layer>
asio::awaitable<std::string> ask(Layer& layer, int version)
{
    SSL_set_max_proto_version(layer.native_handle(), version);
    layer.set_verify_mode(asio::ssl::verify_peer);
    co_await layer.async_handshake(Layer::client, use_awaitable);
    CHECK(SSL_version(layer.native_handle()) == version);
    co_await write(layer, "a line\n");
    std::string line = co_await read_line(layer);
    co_await layer.async_shutdown(use_awaitable);
    co_return line;
}

template <typename Client, typename Server, typename ClientSocket, typename ServerSocket>
void converse(asio::io_context& io, ClientSocket&& client_socket, ServerSocket&& server_socket, int version)
{
    Client client(std::forward<ClientSocket>(client_socket), context_of(tls_role::client));
    Server server(std::forward<ServerSocket>(server_socket), context_of(tls_role::server));
    test::run_on(io,
                 [&]() -> asio::awaitable<void>
                 {
                     const auto executor = co_await asio::this_coro::executor;
                     const auto echo = test::spawn(executor, [&] { return echo_a_line(server); });
                     const std::string line = co_await ask(client, version);
                     CHECK(line == "a line\n");
                     co_await echo.join();
                 });
}

} // namespace

TEST_CASE("tls_stream: it takes the place of asio::ssl::stream at either end, over a socket or a reference to one")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    CAPTURE(version);
    asio::io_context io;
    auto one = test::tcp_pair(io.get_executor());
    converse<socket_layer, asio_layer>(io, std::move(one.first), std::move(one.second), version);
    auto two = test::tcp_pair(io.get_executor());
    converse<asio_layer, socket_layer>(io, std::move(two.first), std::move(two.second), version);
    auto three = test::tcp_pair(io.get_executor());
    converse<reference_layer, reference_layer>(io, three.first, three.second, version);
    CHECK(three.first.is_open());
}

TEST_CASE("tls_stream: it tells its layers, its executor and its SSL object")
{
    asio::io_context io;
    tcp::socket socket(io);
    reference_layer layer(socket, context_of(tls_role::client));
    CHECK(&layer.next_layer() == &socket);
    CHECK(&std::as_const(layer).lowest_layer() == &socket.lowest_layer());
    CHECK(layer.get_executor() == socket.get_executor());
    CHECK(SSL_get_SSL_CTX(layer.native_handle()) == context_of(tls_role::client).native_handle());
    layer.set_verify_mode(asio::ssl::verify_none);
    layer.set_verify_depth(3);
    CHECK(SSL_get_verify_mode(layer.native_handle()) == SSL_VERIFY_NONE);
    CHECK(SSL_get_verify_depth(layer.native_handle()) == 3);
    CHECK_THROWS_AS(reference_layer(socket, nullptr), std::bad_alloc);
}

TEST_CASE("tls_stream: TLS within TLS")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [left, right] = test::tcp_pair(executor);
            using layer = us::tls_stream<socket_layer>;
            layer client(socket_layer(std::move(left), context_of(tls_role::client)), context_of(tls_role::client));
            layer server(socket_layer(std::move(right), context_of(tls_role::server)), context_of(tls_role::server));
            const std::string data = test::pattern(1).bytes(0, 1'000'000);
            const auto serving =
                test::spawn(executor,
                            [&]() -> asio::awaitable<void>
                            {
                                co_await server.next_layer().async_handshake(layer::server, use_awaitable);
                                co_await server.async_handshake(layer::server, use_awaitable);
                                const std::string received = co_await read_exactly(server, data.size());
                                co_await write(server, received);
                                co_await server.async_shutdown(use_awaitable);
                            });
            co_await client.next_layer().async_handshake(layer::client, use_awaitable);
            co_await client.async_handshake(layer::client, use_awaitable);
            const auto writing = test::spawn(executor, [&] { return write(client, data); });
            const std::string received = co_await read_exactly(client, data.size());
            CHECK((received == data));
            co_await writing.join();
            co_await client.async_shutdown(use_awaitable);
            co_await serving.join();
        });
}

TEST_CASE("tls_stream: data arrives whole in either role, however the next layer splits it")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(int(role), chunk);
    const std::string data = test::pattern(3).bytes(0, test::much_in_chunks_of(chunk, 200'000));
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), role,
                                 [&](test::raw_peer& p) { p.tls_write(p.tls_read_exactly(data.size())); });
            chunked_layer layer(test::chunked_stream(std::move(socket), chunk), context_of(role));
            co_await layer.async_handshake(type_of(role), use_awaitable);
            co_await write(layer, data);
            const std::string echoed = co_await read_exactly(layer, data.size());
            CHECK((echoed == data));
            co_await layer.async_shutdown(use_awaitable);
            co_await test::joined(std::move(peer));
        });
}

// Blocking

TEST_CASE("tls_stream: blocking, data arrives whole in either role, however the next layer splits it")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(int(role), chunk);
    const std::string data = test::pattern(3).bytes(0, test::much_in_chunks_of(chunk, 600'000));
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = play_tls(std::move(raw), role,
                         [&](test::raw_peer& p)
                         {
                             const std::string received = p.tls_read_exactly(data.size());
                             p.key_update(true);
                             p.tls_write(received);
                             if (p.tls_read_line() != "end\n")
                                 throw test::failure("another line was expected");
                         });
    chunked_layer layer(test::chunked_stream(std::move(socket), chunk), context_of(role));
    layer.handshake(type_of(role));
    const std::array<asio::const_buffer, 3> parts{asio::buffer(data, 3), asio::const_buffer(), asio::buffer(data) + 3};
    CHECK(asio::write(layer, parts) == data.size());
    std::string echoed(data.size(), '\0');
    CHECK(asio::read(layer, asio::buffer(echoed)) == data.size());
    CHECK((echoed == data));
    CHECK(layer.read_some(asio::mutable_buffer()) == 0);
    CHECK(layer.write_some(asio::const_buffer()) == 0);
    asio::write(layer, asio::buffer("end\n", 4));
    layer.shutdown();
    peer.get();
    CHECK(io.run() == 0);
}

TEST_CASE("tls_stream: blocking, over a socket, and a conversation that goes on with coroutines")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = play_tls(std::move(raw), tls_role::server,
                         [](test::raw_peer& p)
                         {
                             for (int i = 0; i < 4; ++i)
                                 p.tls_write(p.tls_read_line());
                         });
    socket_layer layer(std::move(socket), context_of(tls_role::server));
    layer.handshake(socket_layer::server);
    std::string answer(5, '\0');
    asio::write(layer, asio::buffer("one.\n", 5));
    asio::read(layer, asio::buffer(answer));
    CHECK(answer == "one.\n");
    test::run_on(io,
                 [&]() -> asio::awaitable<void>
                 {
                     co_await write(layer, "two.\n");
                     const std::string line = co_await read_line(layer);
                     CHECK(line == "two.\n");
                 });
    asio::write(layer, asio::buffer("three\nfour.\n", 12));
    answer.resize(12);
    asio::read(layer, asio::buffer(answer));
    CHECK(answer == "three\nfour.\n");
    asio::error_code error;
    layer.shutdown(error);
    CHECK(!error);
    peer.get();
}

TEST_CASE("tls_stream: blocking, a handshake takes what was received before")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    std::promise<std::size_t> size_of_hello;
    auto peer = play(std::move(raw),
                     [&](test::raw_peer& p)
                     {
                         auto settings = test::localhost_client();
                         settings.send_flight = [&](std::string_view flight, const auto& send)
                         {
                             size_of_hello.set_value(flight.size());
                             send(flight);
                         };
                         p.tls_connect(settings);
                         p.tls_shutdown();
                     });
    std::string received(size_of_hello.get_future().get(), '\0');
    asio::read(socket, asio::buffer(received));
    socket_layer layer(std::move(socket), context_of(tls_role::server));
    layer.handshake(socket_layer::server, asio::buffer(received));
    char byte = 0;
    asio::error_code error;
    CHECK(layer.read_some(asio::buffer(&byte, 1), error) == 0);
    CHECK(error == asio::error::eof);
    layer.shutdown();
    peer.get();
}

TEST_CASE("tls_stream: blocking, an error is thrown as std::system_error or put into the error_code")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = play(std::move(raw), [](test::raw_peer& p) { p.send_all("421 no\r\n"); });
    socket_layer layer(std::move(socket), context_of(tls_role::client));
    char byte = 0;
    asio::error_code error;
    CHECK(layer.read_some(asio::buffer(&byte, 1), error) == 0);
    CHECK(error == asio::error::not_connected);
    CHECK(layer.write_some(asio::buffer("x", 1), error) == 0);
    CHECK(error == asio::error::not_connected);
    CHECK_THROWS_AS(layer.handshake(socket_layer::client), std::system_error);
    layer.handshake(socket_layer::client, error);
    CHECK(error.category() == asio::error::get_ssl_category());
    CHECK_THROWS_AS(layer.read_some(asio::buffer(&byte, 1)), std::system_error);
    CHECK_THROWS_AS(layer.write_some(asio::buffer("x", 1)), std::system_error);
    CHECK_THROWS_AS(layer.shutdown(), std::system_error);
    peer.get();
}

TEST_CASE("tls_stream: over a socket that does not block, would_block is no failure and nothing is lost")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    test::shrink_buffers(socket.native_handle());
    test::shrink_buffers(raw.descriptor());
    std::promise<void> read_on;
    const std::string data = test::pattern(3).bytes(0, 4'000'000);
    auto peer = play_tls(std::move(raw), tls_role::client,
                         [&](test::raw_peer& p)
                         {
                             read_on.get_future().wait();
                             if (p.tls_read_exactly(data.size()) != data)
                                 throw test::failure("other bytes were expected");
                             p.tls_write("end\n");
                         });
    socket_layer layer(std::move(socket), context_of(tls_role::client));
    layer.lowest_layer().non_blocking(true);
    const auto again = [&](short events, auto function)
    {
        asio::error_code error;
        for (function(error); error == asio::error::would_block; function(error))
        {
            pollfd entry{layer.lowest_layer().native_handle(), events, 0};
            REQUIRE(::poll(&entry, 1, 60'000) == 1);
        }
        CHECK(error == asio::error_code());
    };
    again(POLLIN, [&](asio::error_code& error) { layer.handshake(socket_layer::client, error); });
    std::size_t sent = 0;
    asio::error_code error;
    const auto write_more = [&](asio::error_code& e) { sent += layer.write_some(asio::buffer(data) + sent, e); };
    while (!error)
        write_more(error);
    CHECK(error == asio::error::would_block);
    CHECK(sent < data.size());
    read_on.set_value();
    while (sent < data.size())
        again(POLLOUT, write_more);
    std::string line(4, '\0');
    std::size_t received = 0;
    while (received < line.size())
        again(POLLIN, [&](asio::error_code& e) { received += layer.read_some(asio::buffer(line) + received, e); });
    CHECK(line == "end\n");
    again(POLLIN, [&](asio::error_code& e) { layer.shutdown(e); });
    peer.get();
}

// Verification

TEST_CASE("tls_stream: a verify callback has the last word on the peer's certificate")
{
    enum class word
    {
        accepts,
        refuses,
        throws
    };
    const auto said = GENERATE(word::accepts, word::refuses, word::throws);
    const bool trusted = GENERATE(true, false);
    CAPTURE(int(said), trusted);
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = play(std::move(raw),
                     [](test::raw_peer& p)
                     {
                         try
                         {
                             handshake(p, tls_role::client);
                             p.tls_shutdown();
                         }
                         catch (const std::exception&) // of a server that was refused
                         {
                         }
                     });
    asio::ssl::context nobody(asio::ssl::context::tls_client);
    socket_layer layer(std::move(socket), trusted ? context_of(tls_role::client) : nobody);
    layer.set_verify_mode(asio::ssl::verify_peer);
    bool was_trusted = true;
    int asked = 0;
    layer.set_verify_callback(
        [&](bool preverified, asio::ssl::verify_context& context)
        {
            ++asked;
            CHECK(X509_STORE_CTX_get_current_cert(context.native_handle()) != nullptr);
            was_trusted = was_trusted && preverified;
            if (said == word::throws)
                throw std::runtime_error("no opinion");
            return said == word::accepts;
        });
    asio::error_code error;
    layer.handshake(socket_layer::client, error);
    CHECK(asked > 0);
    CHECK(was_trusted == trusted);
    if (said == word::accepts)
    {
        CHECK(!error);
        layer.shutdown();
    }
    else
        CHECK(ERR_GET_REASON(static_cast<unsigned long>(error.value())) == SSL_R_CERTIFICATE_VERIFY_FAILED);
    peer.get();
}

// The handshake

TEST_CASE("tls_stream: a handshake takes all of a ClientHello that was received before, and tells so")
{
    const std::size_t padding = GENERATE(std::size_t(0), std::size_t(60'000));
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(padding, chunk);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            std::promise<std::size_t> size_of_hello;
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_client();
                                 settings.padding = padding;
                                 settings.send_flight = [&](std::string_view flight, const auto& send)
                                 {
                                     size_of_hello.set_value(flight.size());
                                     send(flight);
                                 };
                                 p.tls_connect(settings);
                                 p.tls_write(p.tls_read_line());
                                 p.tls_shutdown();
                             });
            const std::size_t size = size_of_hello.get_future().get();
            CHECK(size > padding);
            std::string received(size, '\0');
            co_await asio::async_read(socket, asio::buffer(received), use_awaitable);
            chunked_layer layer(test::chunked_stream(std::move(socket), chunk), context_of(tls_role::server));
            const std::array<asio::const_buffer, 3> parts{asio::buffer(received, 3), asio::const_buffer(),
                                                          asio::buffer(received) + 3};
            const std::size_t taken = co_await layer.async_handshake(chunked_layer::server, parts, use_awaitable);
            CHECK(taken == size);
            co_await write(layer, "line\n");
            const std::string line = co_await read_line(layer);
            CHECK(line == "line\n");
            co_await layer.async_shutdown(use_awaitable);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("tls_stream: what stands behind a ClientHello in the bytes received fails the handshake, and is not taken")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            std::promise<std::string> hello;
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_client();
                                 settings.send_flight = [&](std::string_view flight, const auto&)
                                 { hello.set_value(std::string(flight)); };
                                 std::string refusal;
                                 try
                                 {
                                     p.tls_connect(settings);
                                     p.tls_read_all();
                                 }
                                 catch (const std::exception& error)
                                 {
                                     refusal = error.what();
                                 }
                                 return refusal;
                             });
            std::string received = hello.get_future().get();
            const std::size_t size = received.size();
            received += std::string(100'000, 'x');
            std::optional<socket_layer> layer(std::in_place, std::move(socket), context_of(tls_role::server));
            const auto [error, taken] = co_await layer->async_handshake(
                socket_layer::server, asio::buffer(std::as_const(received)), as_tuple(use_awaitable));
            CHECK(error.category() == asio::error::get_ssl_category());
            CHECK(taken >= size);
            CHECK(taken <= size + SSL3_RT_HEADER_LENGTH);
            received.assign(received.size(), 'y');
            std::error_code again = co_await read_error(*layer);
            CHECK(again == error);
            again = co_await write_error(*layer);
            CHECK(again == error);
            again = co_await handshake_error(*layer, tls_role::server);
            CHECK(again == error);
            layer.reset();
            const std::string refusal = co_await test::joined(std::move(peer));
            CHECK_THAT(refusal, test::contains("alert"));
        });
}

TEST_CASE("tls_stream: reads and writes before the handshake are errors, and it can still be done")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto ends = connect(co_await asio::this_coro::executor);
            tls_end<socket_layer> tls(std::move(ends), [](test::raw_peer& p) { p.tls_shutdown(); });
            std::error_code error = co_await read_error(tls.layer);
            CHECK(error == asio::error::not_connected);
            error = co_await write_error(tls.layer);
            CHECK(error == asio::error::not_connected);
            co_await tls.shake_hands();
            co_await tls.layer.async_shutdown(use_awaitable);
            co_await test::joined(std::move(tls.peer));
        });
}

TEST_CASE("tls_stream: an error that others have left in OpenSSL's queue is not taken for the stream's own")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto leave_an_error = [] { ERR_raise(ERR_LIB_USER, ERR_R_INTERNAL_ERROR); };
            auto ends = connect(co_await asio::this_coro::executor);
            tls_end<chunked_layer, std::size_t> tls(
                std::move(ends),
                [](test::raw_peer& p)
                {
                    p.tls_write(p.tls_read_line());
                    p.tls_shutdown();
                },
                1); // OpenSSL is asked again and again before it has a record
            leave_an_error();
            co_await tls.shake_hands();
            leave_an_error();
            co_await write(tls.layer, "echoed\n");
            leave_an_error();
            const std::string line = co_await read_line(tls.layer);
            CHECK(line == "echoed\n");
            leave_an_error();
            co_await tls.layer.async_shutdown(use_awaitable);
            co_await test::joined(std::move(tls.peer));
        });
}

// Full duplex

TEST_CASE("tls_stream: several MiB both ways at once are whole while the peer renews its keys")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const bool request = GENERATE(true, false);
    CAPTURE(int(role), request);
    const std::uint64_t size = test::under_sanitizer ? 2 << 20 : 8 << 20;
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 handshake(p, role);
                                 return renew_keys(p, size, request);
                             });
            socket_layer layer(std::move(socket), context_of(role));
            co_await layer.async_handshake(type_of(role), use_awaitable);
            co_await talk(layer, size);
            co_await layer.async_shutdown(use_awaitable);
            const auto result = co_await test::joined(std::move(peer));
            CHECK(result.error == "");
            CHECK(!result.mismatch);
            CHECK(result.sent == size);
            CHECK(result.received == size);
            CHECK(result.key_updates >= 60);
        });
}

TEST_CASE("tls_stream: a write that is blocked does not stop reads, though the peer asks for KeyUpdates")
{
    const std::string data = test::pattern(6).bytes(0, 1 << 20);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto ends = connect(co_await asio::this_coro::executor);
            std::promise<void> may_send, may_read;
            tls_end<socket_layer> tls(std::move(ends),
                                      [&](test::raw_peer& p)
                                      {
                                          may_send.get_future().get();
                                          for (std::size_t i = 0; i < data.size(); i += data.size() / 16)
                                          {
                                              p.key_update(true);
                                              p.tls_write(data.substr(i, data.size() / 16));
                                          }
                                          may_read.get_future().get();
                                          p.tls_write(p.tls_read_exactly(flood().size()) == flood() ? "whole"
                                                                                                    : "wrong");
                                          p.tls_shutdown();
                                      });
            co_await tls.shake_hands();
            outcome written;
            asio::async_write(tls.layer, asio::buffer(flood()), into(written));
            co_await blocked(tls.layer);
            may_send.set_value();
            const std::string received = co_await read_exactly(tls.layer, data.size());
            CHECK((received == data));
            CHECK(!written.done);
            may_read.set_value();
            co_await finished(written);
            CHECK(!written.error);
            const std::string verdict = co_await read_exactly(tls.layer, 5);
            CHECK(verdict == "whole");
            co_await tls.layer.async_shutdown(use_awaitable);
            co_await test::joined(std::move(tls.peer));
        });
}

TEST_CASE("tls_stream: a peer that asks for KeyUpdates and reads none of the replies is stopped, in bounded memory")
{
    asio::io_context io;
    auto ends = connect(io.get_executor());
    test::shrink_buffers(ends.socket.native_handle());
    test::shrink_buffers(ends.peer.descriptor());
    auto [raw, layer] = shake_hands<socket_layer>(std::move(ends));
    test::run_on(io,
                 [&]() -> asio::awaitable<void>
                 {
                     const std::string updates = raw.tls_unsent(
                         [&]
                         {
                             for (int i = 0; i < 40'000; ++i)
                                 raw.key_update(true);
                         });
                     std::array<char, 16> bytes;
                     outcome read;
                     layer.async_read_some(asio::buffer(bytes), into(read));
                     const std::size_t before = test::live_bytes();
                     const std::size_t sent = co_await test::flood(raw, updates);
                     CHECK(sent < updates.size());
                     CHECK(test::live_bytes() < before + 256 * 1024);
                     CHECK(!read.done);
                     layer.lowest_layer().close();
                     co_await finished(read);
                 });
}

TEST_CASE("tls_stream: a read that waits for replies to leave goes on when the peer takes them")
{
    asio::io_context io;
    auto ends = connect(io.get_executor());
    test::shrink_buffers(ends.socket.native_handle());
    test::shrink_buffers(ends.peer.descriptor());
    auto [raw, layer] = shake_hands<socket_layer>(std::move(ends));
    test::run_on(io,
                 [&]() -> asio::awaitable<void>
                 {
                     const std::string updates = raw.tls_unsent(
                         [&]
                         {
                             for (int i = 0; i < 20'000; ++i)
                                 raw.key_update(true);
                             raw.tls_write("x");
                         });
                     std::array<char, 16> bytes;
                     outcome read;
                     layer.async_read_some(asio::buffer(bytes), into(read));
                     const std::size_t sent = co_await test::flood(raw, updates);
                     CHECK(sent < updates.size());
                     CHECK(!read.done);
                     auto sending = test::run_in_thread([&] { raw.send_all(std::string_view(updates).substr(sent)); });
                     std::array<char, 4096> replies;
                     while (!read.done)
                     {
                         ::recv(raw.descriptor(), replies.data(), replies.size(), MSG_DONTWAIT);
                         co_await test::turns(1);
                     }
                     co_await test::joined(std::move(sending));
                     CHECK(!read.error);
                     CHECK(std::string_view(bytes.data(), read.size) == "x");
                     layer.lowest_layer().close(); // with replies that nobody takes
                 });
}

TEST_CASE("tls_stream: blocking, a read behind one that left replies unsent has what came with that")
{
    constexpr std::size_t record = 27;   // a KeyUpdate, or a reply to one
    constexpr std::size_t taken = 16000; // of the replies in the first turn, which ends after 607 KeyUpdates
    const int updates = GENERATE(1050, 1100, 1200);
    CAPTURE(updates);
    asio::io_context io;
    test::raw_listener listener;
    const int least = 1;
    ::setsockopt(listener.descriptor(), SOL_SOCKET, SO_RCVBUF, &least, sizeof least);
    auto ends = connect(io.get_executor(), std::move(listener));
    ends.socket.set_option(asio::socket_base::send_buffer_size(1));
    auto [raw, layer] = shake_hands<socket_layer>(std::move(ends));
    const std::string sent = raw.tls_unsent(
        [&]
        {
            for (int i = 0; i < updates; ++i)
                raw.key_update(true);
            raw.tls_write("x");
            raw.tls_write("y");
        });
    std::size_t replies = 0;
    auto talking = test::run_in_thread(
        [&]
        {
            raw.send_all(sent);
            while (replies < taken)
                replies += raw.recv_some(taken - replies).size();
        });
    char byte = ' ';
    asio::error_code error;
    CHECK(layer.read_some(asio::buffer(&byte, 1), error) == 1);
    CHECK(!error);
    CHECK(byte == 'x');
    talking.get();
    std::array<char, 4096> rest;
    for (ssize_t size; (size = ::recv(raw.descriptor(), rest.data(), rest.size(), MSG_DONTWAIT)) > 0;)
        replies += static_cast<std::size_t>(size);
    CHECK(replies < static_cast<std::size_t>(updates) * record);
    CHECK(layer.read_some(asio::buffer(&byte, 1), error) == 1);
    CHECK(!error);
    CHECK(byte == 'y');
}

// A message after the handshake that has come in part: OpenSSL writes nothing before it has the rest

TEST_CASE("tls_stream: a write while a session ticket has come in part waits for its rest, whoever receives that")
{
    enum class reading
    {
        pending,
        cancelled,
        begun_later
    };
    const auto how = GENERATE(reading::pending, reading::cancelled, reading::begun_later);
    for (const std::size_t chunk : test::chunk_sizes)
        test::run(
            [chunk, how]() -> asio::awaitable<void>
            {
                CAPTURE(chunk, how);
                auto ends = connect(co_await asio::this_coro::executor);
                auto [raw, layer] = shake_hands<chunked_layer>(std::move(ends), chunk);
                const std::string ticket = raw.tls_unsent([&p = raw] { p.session_ticket(); });
                CHECK(test::tls_records(ticket).records.size() > 4);

                std::array<char, 16> bytes;
                outcome read;
                asio::cancellation_signal signal;
                layer.async_read_some(asio::buffer(bytes), asio::bind_cancellation_slot(signal.slot(), into(read)));
                raw.send_all(std::string_view(ticket).substr(0, 700));
                co_await test::eventually([&] { return SSL_in_init(layer.native_handle()) != 0; });
                if (how != reading::pending)
                {
                    signal.emit(asio::cancellation_type::terminal);
                    co_await finished(read);
                    CHECK(read.error == asio::error::operation_aborted);
                    read = {};
                }
                outcome written;
                asio::async_write(layer, asio::buffer("to the peer", 11), into(written));
                co_await test::turns(20);
                CHECK_FALSE(written.done);
                if (how == reading::begun_later)
                    layer.async_read_some(asio::buffer(bytes), into(read));
                co_await test::turns(20);
                raw.send_all(std::string_view(ticket).substr(700));
                co_await finished(written);
                CHECK(!written.error);
                auto answering = test::run_in_thread(
                    [&p = raw]
                    {
                        const std::string received = p.tls_read_exactly(11);
                        p.tls_write("from it");
                        return received;
                    });
                const std::string received = co_await test::joined(std::move(answering));
                CHECK(received == "to the peer");
                if (how == reading::cancelled)
                    layer.async_read_some(asio::buffer(bytes), into(read));
                co_await finished(read);
                CHECK(std::string_view(bytes.data(), read.size) == "from it");
            });
}

TEST_CASE("tls_stream: a write that receives a session ticket's rest and a read that begins then keep the order")
{
    for (int shift = 0; shift < 40; ++shift) // a KeyUpdate more each time: where the first read ends is left to chance
    {
        CAPTURE(shift);
        asio::io_context io;
        auto ends = connect(io.get_executor());
        ends.socket.set_option(asio::socket_base::receive_buffer_size(1024 * 1024));
        auto [raw, layer] = shake_hands<socket_layer>(std::move(ends));
        const std::string sent = raw.tls_unsent(
            [&]
            {
                for (int i = 0; i < shift; ++i)
                    raw.key_update(false);
                for (int i = 0; i < 90; ++i)
                    raw.session_ticket();
                raw.tls_write("x");
            });
        raw.send_all(sent);
        asio::cancellation_signal signal;
        outcome first, second, written;
        std::array<char, 16> bytes;
        const auto go_on = [&](asio::error_code error, std::size_t size)
        {
            first = {true, error, size};
            layer.async_write_some(asio::buffer("w", 1), into(written));
            layer.async_read_some(asio::buffer(bytes), into(second));
        };
        layer.async_read_some(asio::buffer(bytes), asio::bind_cancellation_slot(signal.slot(), go_on));
        signal.emit(asio::cancellation_type::terminal);
        run_until_done(io, second);
        run_until_done(io, written);
        CHECK(first.error == asio::error::operation_aborted);
        CHECK(!written.error);
        CHECK(!second.error);
        CHECK(std::string_view(bytes.data(), second.size) == "x");
    }
}

TEMPLATE_TEST_CASE("tls_stream: a write and a read that wait for a session ticket's rest end as aborted with their socket", "",
                   socket_layer, chunked_layer)
{
    const bool reads_first = GENERATE(true, false);
    CAPTURE(reads_first);
    test::run(
        [=]() -> asio::awaitable<void>
        {
            auto ends = connect(co_await asio::this_coro::executor);
            auto [raw, layer] = shake_hands<TestType>(std::move(ends));
            const std::string ticket = raw.tls_unsent([&p = raw] { p.session_ticket(); });
            raw.send_all(std::string_view(ticket).substr(0, 700));
            std::array<char, 16> bytes;
            outcome read, written;
            asio::cancellation_signal signal;
            layer.async_read_some(asio::buffer(bytes), asio::bind_cancellation_slot(signal.slot(), into(read)));
            co_await test::eventually([&] { return SSL_in_init(layer.native_handle()) != 0; });
            if (!reads_first)
            {
                signal.emit(asio::cancellation_type::terminal);
                co_await finished(read);
                read = {};
            }
            layer.async_write_some(asio::buffer("w", 1), into(written));
            if (!reads_first)
                layer.async_read_some(asio::buffer(bytes), into(read));
            co_await test::turns(5);
            layer.lowest_layer().close();
            co_await finished(read);
            co_await finished(written);
            CHECK(read.error == asio::error::operation_aborted);
            CHECK(written.error == asio::error::operation_aborted);
        });
}

TEST_CASE("tls_stream: a message that the peer's close_notify cuts short is not waited for")
{
    enum class order
    {
        ended_before,
        ended_meanwhile
    };
    const auto when = GENERATE(order::ended_before, order::ended_meanwhile);
    const bool writes = GENERATE(true, false);
    CAPTURE(when, writes);
    test::run(
        [=]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            test::record_forger forger;
            const auto settings = forger.server();
            auto shaking = test::run_in_thread([&p = raw, &settings] { p.tls_accept(settings); });
            socket_layer layer(std::move(socket), context_of(tls_role::client));
            co_await layer.async_handshake(socket_layer::client, use_awaitable);
            co_await test::joined(std::move(shaking));
            const std::string half = forger.record(test::record_forger::handshake, "\x18\x00\x00\x01"sv);
            const std::string end = forger.record(test::record_forger::alert, "\x01\x00"sv);
            std::array<char, 16> bytes;
            outcome read, done;
            layer.async_read_some(asio::buffer(bytes), into(read));
            raw.send_all(half);
            co_await test::eventually([&] { return SSL_in_init(layer.native_handle()) != 0; });
            if (when == order::ended_before)
            {
                raw.send_all(end);
                co_await finished(read);
            }
            if (writes)
                layer.async_write_some(asio::buffer("w", 1), into(done));
            else
                layer.async_shutdown(into(done));
            co_await test::turns(5);
            if (when == order::ended_meanwhile)
                raw.send_all(end);
            co_await finished(read);
            co_await finished(done);
            CHECK(read.error == asio::error::eof);
            CHECK(done.error == asio::error::eof);
        });
}

/// Of the lowest layer nothing is asked but that it can be closed.
struct layer_of_ones_own : test::chunked_stream<tcp::socket>
{
    struct lowest_layer_type
    {
        layer_of_ones_own* owner;
        void close(asio::error_code& error) { owner->next_layer().close(error); }
    };

    using test::chunked_stream<tcp::socket>::chunked_stream;
    lowest_layer_type& lowest_layer() { return lowest_ = {this}, lowest_; }

private:
    lowest_layer_type lowest_{};
};

TEST_CASE("tls_stream: the next layer may be any that can be closed")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::client, [](test::raw_peer& p) { p.tls_write(p.tls_read_some()); });
            us::tls_stream<layer_of_ones_own> layer(layer_of_ones_own(std::move(socket)), context_of(tls_role::client));
            co_await layer.async_handshake(socket_layer::client, use_awaitable);
            co_await layer.async_write_some(asio::buffer("echo", 4), use_awaitable);
            std::array<char, 16> bytes;
            const std::size_t size = co_await layer.async_read_some(asio::buffer(bytes), use_awaitable);
            CHECK(std::string_view(bytes.data(), size) == "echo");
            co_await layer.async_shutdown(use_awaitable);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("tls_stream: after a fatal error in one direction the other tells it too")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto ends = connect(co_await asio::this_coro::executor);
            auto [raw, layer] = shake_hands<socket_layer>(std::move(ends));
            raw.send_all(std::string_view("\x17\x03\x03\x00\x12 no record of TLS ", 23));
            std::array<char, 16> bytes;
            asio::error_code read, written, ended;
            co_await layer.async_read_some(asio::buffer(bytes), asio::redirect_error(use_awaitable, read));
            co_await layer.async_write_some(asio::buffer("w", 1), asio::redirect_error(use_awaitable, written));
            co_await layer.async_shutdown(asio::redirect_error(use_awaitable, ended));
            CHECK(read.category() == asio::error::get_ssl_category());
            CHECK(written == read);
            CHECK(ended == read);
        });
}

TEMPLATE_TEST_CASE("tls_stream: a shutdown and a read that are pending at once end with the peer's close_notify", "",
                   socket_layer, chunked_layer)
{
    const bool reads_first = GENERATE(true, false);
    CAPTURE(reads_first);
    test::run(
        [=]() -> asio::awaitable<void>
        {
            auto ends = connect(co_await asio::this_coro::executor);
            auto [raw, layer] = shake_hands<TestType>(std::move(ends));
            char byte = 0;
            outcome read, ended;
            if (reads_first)
                layer.async_read_some(asio::buffer(&byte, 1), into(read));
            co_await test::turns(5);
            layer.async_shutdown(into(ended));
            co_await test::turns(5);
            if (!reads_first)
                layer.async_read_some(asio::buffer(&byte, 1), into(read));
            co_await test::joined(test::run_in_thread([&p = raw] { p.tls_shutdown(); }));
            co_await finished(read);
            co_await finished(ended);
            CHECK(read.error == asio::error::eof);
            CHECK(!ended.error);
        });
}

TEST_CASE("tls_stream: a shutdown while a session ticket has come in part awaits its rest")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto ends = connect(co_await asio::this_coro::executor);
            auto [raw, layer] = shake_hands<socket_layer>(std::move(ends));
            const std::string ticket = raw.tls_unsent([&p = raw] { p.session_ticket(); });
            std::array<char, 16> bytes;
            outcome read;
            asio::cancellation_signal signal;
            layer.async_read_some(asio::buffer(bytes), asio::bind_cancellation_slot(signal.slot(), into(read)));
            raw.send_all(std::string_view(ticket).substr(0, 700));
            co_await test::eventually([&] { return SSL_in_init(layer.native_handle()) != 0; });
            signal.emit(asio::cancellation_type::terminal);
            co_await finished(read);
            outcome ended;
            layer.async_shutdown(into(ended));
            co_await test::turns(20);
            CHECK_FALSE(ended.done);
            raw.send_all(std::string_view(ticket).substr(700));
            co_await test::joined(test::run_in_thread([&p = raw] { p.tls_shutdown(); }));
            co_await finished(ended);
            CHECK(!ended.error);
        });
}

TEST_CASE("tls_stream: blocking, a write while a session ticket has come in part receives its rest")
{
    asio::io_context io;
    auto ends = connect(io.get_executor());
    auto [raw, layer] = shake_hands<socket_layer>(std::move(ends));
    const std::string ticket = raw.tls_unsent([&p = raw] { p.session_ticket(); });
    raw.send_all(std::string_view(ticket).substr(0, 700));
    layer.lowest_layer().non_blocking(true);
    char byte = 0;
    asio::error_code error;
    while (!SSL_in_init(layer.native_handle()))
        CHECK(layer.read_some(asio::buffer(&byte, 1), error) == 0);
    CHECK(error == asio::error::would_block);
    CHECK(layer.write_some(asio::buffer("x", 1), error) == 0);
    CHECK(error == asio::error::would_block);
    layer.lowest_layer().non_blocking(false);
    auto answering = test::run_in_thread(
        [&]
        {
            raw.send_all(std::string_view(ticket).substr(700));
            const std::string received = raw.tls_read_exactly(1);
            raw.tls_write("y");
            return received;
        });
    CHECK(layer.write_some(asio::buffer("x", 1)) == 1);
    CHECK(layer.read_some(asio::buffer(&byte, 1)) == 1);
    CHECK(byte == 'y');
    CHECK(answering.get() == "x");
}

// Cancellation

TEST_CASE("tls_stream: reads that are cancelled again and again lose nothing")
{
    const auto chunk = GENERATE(std::size_t(7), std::size_t(0));
    CAPTURE(chunk);
    const std::string data = test::pattern(5).bytes(0, 100'000);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto ends = connect(co_await asio::this_coro::executor);
            auto [raw, layer] = shake_hands<chunked_layer>(std::move(ends), chunk);
            const std::string records = raw.tls_unsent(
                [&]
                {
                    for (std::size_t i = 0; i < data.size(); i += 777)
                        raw.tls_write(std::string_view(data).substr(i, 777));
                });
            std::string received;
            std::array<char, 1000> bytes;
            int cancelled = 0;
            for (std::size_t sent = 0; received.size() < data.size();)
            {
                asio::cancellation_signal signal;
                outcome read;
                layer.async_read_some(asio::buffer(bytes), asio::bind_cancellation_slot(signal.slot(), into(read)));
                co_await test::turns(int(sent % 3)); // with what was sent before on its way, or taken
                if (!read.done)
                    signal.emit(asio::cancellation_type::terminal);
                co_await finished(read);
                CHECK((!read.error || read.error == asio::error::operation_aborted));
                cancelled += read.error == asio::error::operation_aborted;
                received.append(bytes.data(), read.size);
                const std::string_view next = std::string_view(records).substr(sent, 500);
                raw.send_all(next);
                sent += next.size();
            }
            CHECK((received == data));
            CHECK(cancelled > 0);
        });
}

TEST_CASE("tls_stream: after a cancelled write, handshake or shutdown every operation is stream_unusable")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            for (const bool writing : {true, false})
            {
                auto ends = connect(executor);
                std::promise<void> may_end;
                tls_end<socket_layer> tls(std::move(ends),
                                          [&](test::raw_peer& p)
                                          {
                                              p.tls_write("data that came before");
                                              may_end.get_future().get();
                                          });
                co_await tls.shake_hands();
                asio::cancellation_signal signal;
                outcome done;
                auto handler = asio::bind_cancellation_slot(signal.slot(), into(done));
                if (writing)
                    asio::async_write(tls.layer, asio::buffer(flood()), std::move(handler));
                else
                {
                    const std::string data = co_await read_exactly(tls.layer, 21);
                    CHECK(data == "data that came before");
                    tls.layer.async_shutdown(std::move(handler));
                }
                writing ? co_await blocked(tls.layer) : co_await test::turns();
                CHECK(!done.done);
                signal.emit(asio::cancellation_type::terminal);
                co_await finished(done);
                CHECK(done.error == asio::error::operation_aborted);
                co_await expect_unusable(tls.layer);
                may_end.set_value();
                co_await test::joined(std::move(tls.peer));
            }

            auto [socket, raw] = connect(executor);
            socket_layer layer(std::move(socket), context_of(tls_role::client));
            asio::cancellation_signal signal;
            outcome done;
            layer.async_handshake(socket_layer::client, asio::bind_cancellation_slot(signal.slot(), into(done)));
            co_await test::turns();
            signal.emit(asio::cancellation_type::terminal);
            co_await finished(done);
            CHECK(done.error == asio::error::operation_aborted);
            co_await expect_unusable(layer);
        });
}

// Lifetime

TEST_CASE("tls_stream: destroyed with operations pending it closes the socket, and they are operation_aborted")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            const auto held = [](test::raw_peer& p)
            {
                try
                {
                    hold_open(p);
                }
                catch (const std::system_error&) // of a peer that waits for its turn to write
                {
                }
            };
            for (const bool writing : {true, false})
            {
                std::promise<void> destroyed;
                auto ends = connect(executor);
                std::optional<tls_end<socket_layer>> tls(std::in_place, std::move(ends),
                                                         [&](test::raw_peer& p)
                                                         {
                                                             destroyed.get_future().get();
                                                             held(p);
                                                         });
                co_await tls->shake_hands();
                std::array<char, 16> bytes;
                outcome one, other;
                if (writing)
                {
                    tls->layer.async_read_some(asio::buffer(bytes), into(one));
                    asio::async_write(tls->layer, asio::buffer(flood()), into(other));
                    co_await blocked(tls->layer);
                }
                else
                {
                    tls->layer.async_shutdown(into(one));
                    co_await test::turns();
                    other = {true, asio::error::operation_aborted, 0};
                }
                CHECK(!one.done);
                auto peer = std::move(tls->peer);
                tls.reset();
                CHECK(!one.done);
                co_await finished(one);
                co_await finished(other);
                CHECK(one.error == asio::error::operation_aborted);
                CHECK(other.error == asio::error::operation_aborted);
                destroyed.set_value();
                co_await test::joined(std::move(peer));
            }
            auto [socket, raw] = connect(executor);
            outcome shaken;
            {
                socket_layer layer(std::move(socket), context_of(tls_role::client));
                layer.async_handshake(socket_layer::client, into(shaken));
                co_await test::turns();
            }
            co_await finished(shaken);
            CHECK(shaken.error == asio::error::operation_aborted);
            raw.recv_all();
        });
}

TEST_CASE("tls_stream: over a reference it may be destroyed with operations pending, which end with the socket's")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 hold_open(p);
                             });
            std::optional<reference_layer> layer(std::in_place, socket, context_of(tls_role::client));
            co_await layer->async_handshake(reference_layer::client, use_awaitable);
            std::array<char, 16> bytes;
            outcome read;
            layer->async_read_some(asio::buffer(bytes), into(read));
            layer.reset();
            CHECK(socket.is_open());
            socket.close();
            co_await finished(read);
            CHECK(read.error == asio::error::operation_aborted);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("tls_stream: moved or assigned with operations pending it completes them, and one assigned over is closed")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto ends = connect(executor);
            tls_end<socket_layer> tls(std::move(ends),
                                      [](test::raw_peer& p)
                                      {
                                          p.tls_write(p.tls_read_exactly(4));
                                          p.tls_shutdown();
                                      });
            auto [other_socket, other_raw] = connect(executor);
            std::array<char, 16> bytes;
            outcome shaken, read, written, other_read;
            tls.layer.async_handshake(socket_layer::client, into(shaken));
            socket_layer second(std::move(tls.layer));
            co_await finished(shaken);
            CHECK(!shaken.error);
            second.async_read_some(asio::buffer(bytes), into(read));
            second.async_write_some(asio::buffer("data", 4), into(written));
            socket_layer third(std::move(other_socket), context_of(tls_role::client));
            third.async_handshake(socket_layer::client, into(other_read));
            third = std::move(second);
            co_await finished(read);
            CHECK(std::string_view(bytes.data(), read.size) == "data");
            co_await finished(written);
            CHECK(written.size == 4);
            co_await finished(other_read);
            CHECK(other_read.error == asio::error::operation_aborted);
            CHECK(test::only_tls(other_raw.recv_all()));
            co_await third.async_shutdown(use_awaitable);
            co_await test::joined(std::move(tls.peer));
        });
}

TEST_CASE("tls_stream: an io_context that goes away with operations pending leaks nothing")
{
    outcome shaken;
    {
        asio::io_context io;
        auto [socket, raw] = connect(io.get_executor());
        socket_layer layer(std::move(socket), context_of(tls_role::client));
        layer.async_handshake(socket_layer::client, into(shaken));
        io.poll();
    }
    CHECK(!shaken.done);
}

// The end, and errors

TEST_CASE("tls_stream: an end without close_notify is stream_truncated, between records or within one, repeatedly")
{
    const auto rest = GENERATE(""s, "\x17\x03\x03\x01"s, "\x17\x03\x03\x01\x00xyz"s);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(rest.size(), chunk);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto ends = connect(co_await asio::this_coro::executor);
            tls_end<chunked_layer, std::size_t> tls(
                std::move(ends),
                [&](test::raw_peer& p)
                {
                    p.tls_write("data");
                    p.send_all(rest);
                    p.send_fin();
                    p.tls_read_all();
                },
                chunk);
            co_await tls.shake_hands();
            const auto [data, error] = co_await read_to_error(tls.layer);
            CHECK(data == "data");
            CHECK(error == asio::ssl::error::stream_truncated);
            const std::error_code again = co_await read_error(tls.layer);
            CHECK(again == asio::ssl::error::stream_truncated);
            const std::error_code shut = co_await layer_shutdown_error(tls.layer); // sends its own all the same
            CHECK(shut == asio::ssl::error::stream_truncated);
            co_await test::joined(std::move(tls.peer));
        });
}

TEST_CASE("tls_stream: close_notify is eof, repeatedly, and so is the peer's while a write can still be made")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto ends = connect(co_await asio::this_coro::executor);
            tls_end<socket_layer> tls(std::move(ends),
                                      [](test::raw_peer& p)
                                      {
                                          p.tls_write("data");
                                          p.tls_shutdown_send_only();
                                          if (p.tls_read_all() != "answer")
                                              throw test::failure("no answer");
                                      });
            co_await tls.shake_hands();
            const auto [data, error] = co_await read_to_error(tls.layer);
            CHECK(data == "data");
            CHECK(error == asio::error::eof);
            const std::error_code again = co_await read_error(tls.layer);
            CHECK(again == asio::error::eof);
            co_await write(tls.layer, "answer");
            co_await tls.layer.async_shutdown(use_awaitable);
            const std::error_code late = co_await write_error(tls.layer);
            CHECK(late.category() == asio::error::get_ssl_category());
            co_await test::joined(std::move(tls.peer));
        });
}

TEST_CASE("tls_stream: a record that was changed on the way is an error, repeatedly, and the peer gets an alert")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_write("good");
                                 std::string record = p.tls_unsent([&] { p.tls_write("changed"); });
                                 record.back() = static_cast<char>(record.back() ^ 1);
                                 p.send_all(record);
                                 try
                                 {
                                     p.tls_read_all();
                                 }
                                 catch (const test::failure& error)
                                 {
                                     return std::string(error.what());
                                 }
                                 return ""s;
                             });
            socket_layer layer(std::move(socket), context_of(tls_role::client));
            co_await layer.async_handshake(socket_layer::client, use_awaitable);
            const auto [data, error] = co_await read_to_error(layer);
            CHECK(data == "good");
            CHECK(ERR_GET_REASON(static_cast<unsigned long>(error.value())) ==
                  SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC);
            const std::error_code again = co_await read_error(layer);
            CHECK(again == error);
            const std::string refusal = co_await test::joined(std::move(peer));
            CHECK_THAT(refusal, test::contains("alert bad record mac"));
        });
}

TEST_CASE("tls_stream: reads and writes of nothing complete with 0 bytes")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto ends = connect(co_await asio::this_coro::executor);
            tls_end<socket_layer> tls(std::move(ends), [](test::raw_peer& p) { p.tls_shutdown(); });
            co_await tls.shake_hands();
            std::size_t size = co_await tls.layer.async_read_some(asio::mutable_buffer(), use_awaitable);
            CHECK(size == 0);
            const std::array<asio::const_buffer, 2> nothing;
            size = co_await tls.layer.async_write_some(nothing, use_awaitable);
            CHECK(size == 0);
            co_await tls.layer.async_shutdown(use_awaitable);
            co_await test::joined(std::move(tls.peer));
        });
}

// Buffers

namespace
{

/// Writes fragments of these sizes, all at once, through a tap.
///
/// Returns: the sizes of the application data in the records that they became, in TLS 1.3.
std::vector<std::size_t> records_of(const std::vector<std::size_t>& sizes)
{
    std::size_t total = 0;
    for (const std::size_t size : sizes)
        total += size;
    const std::string data = test::pattern(9).bytes(0, total);
    std::vector<asio::const_buffer> fragments;
    std::size_t offset = 0;
    for (const std::size_t size : sizes)
    {
        fragments.push_back(asio::buffer(data) + offset);
        fragments.back() = asio::buffer(fragments.back(), size);
        offset += size;
    }
    std::vector<std::size_t> records;
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            test::raw_listener listener;
            test::wire_tap tap(executor, test::loopback(listener.port()));
            auto peer = test::run_in_thread(
                [&]
                {
                    test::raw_peer p = listener.accept();
                    handshake(p, tls_role::client);
                    p.tls_write("!");
                    const bool whole = p.tls_read_exactly(data.size()) == data;
                    p.tls_write(whole ? "!" : "?");
                    p.tls_shutdown();
                });
            tcp::socket socket(executor);
            co_await socket.async_connect(tap.endpoint(), use_awaitable);
            socket_layer layer(std::move(socket), context_of(tls_role::client));
            co_await layer.async_handshake(socket_layer::client, use_awaitable);
            std::string answer = co_await read_exactly(layer, 1);
            const std::size_t before = tap.client_to_server().size();
            for (std::size_t written = 0; written < data.size();)
            {
                // asio::async_write would give 16 fragments at a time.
                const std::size_t size = co_await layer.async_write_some(fragments, use_awaitable);
                CHECK(size <= 256 * 1024);
                written += size;
                for (std::size_t rest = size; rest > 0;)
                {
                    const std::size_t taken = std::min(rest, fragments.front().size());
                    fragments.front() += taken;
                    rest -= taken;
                    if (fragments.front().size() == 0)
                        fragments.erase(fragments.begin());
                }
            }
            answer = co_await read_exactly(layer, 1);
            CHECK(answer == "!");
            const auto scan = test::tls_records(std::string_view(tap.client_to_server()).substr(before));
            CHECK(scan.all_tls);
            for (const auto& record : scan.records)
                records.push_back(record.length - 17u);
            co_await layer.async_shutdown(use_awaitable);
            co_await test::joined(std::move(peer));
            tap.close();
        });
    return records;
}

} // namespace

TEST_CASE("tls_stream: small fragments are joined to full records")
{
    const auto records = records_of(std::vector<std::size_t>(10'000, 10));
    REQUIRE(records.size() == 7);
    for (std::size_t i = 0; i < 6; ++i)
        CHECK(records[i] > 16'384 - 10);
}

TEST_CASE("tls_stream: fragments of all sizes arrive whole and in order, in few records")
{
    const auto sizes =
        GENERATE(std::vector<std::size_t>{300'000}, std::vector<std::size_t>{0, 1'000'000, 0, 1, 600'000},
                 std::vector<std::size_t>{1, 16'384, 5, 0, 40'000, 300'000, 3, 3, 16'383, 2, 262'144, 16'385, 7},
                 std::vector<std::size_t>{262'143, 1, 262'144, 262'145, 16'383, 1},
                 std::vector<std::size_t>{16'383, 16'383, 16'383, 2, 2, 2}, std::vector<std::size_t>(64, 9'000));
    std::size_t total = 0;
    for (const std::size_t size : sizes)
        total += size;
    CHECK(records_of(sizes).size() <= 2 * total / 16'384 + 4);
}

TEST_CASE("tls_stream: the records of a write leave in one send, and no write takes more than 256 KiB")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto ends = connect(co_await asio::this_coro::executor);
            tls_end<chunked_layer, std::size_t> tls(
                std::move(ends),
                [](test::raw_peer& p)
                {
                    p.tls_read_exactly(100'000 + 256 * 1024);
                    p.tls_shutdown();
                },
                0);
            co_await tls.shake_hands();
            const std::size_t before = tls.layer.next_layer().writes();
            std::size_t size = co_await tls.layer.async_write_some(asio::buffer(flood(), 100'000), use_awaitable);
            CHECK(size == 100'000);
            CHECK(tls.layer.next_layer().writes() == before + 1);
            size = co_await tls.layer.async_write_some(asio::buffer(flood()), use_awaitable);
            CHECK(size == 256 * 1024);
            co_await tls.layer.async_shutdown(use_awaitable);
            co_await test::joined(std::move(tls.peer));
        });
}

TEST_CASE("tls_stream: a read fills several buffers with all that has come")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            std::promise<std::size_t> sent;
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_server();
                                 settings.adjust = [](SSL_CTX* c) { SSL_CTX_set_num_tickets(c, 0); };
                                 p.tls_accept(settings);
                                 const std::string records = p.tls_unsent(
                                     [&]
                                     {
                                         for (const char* text : {"abc", "def", "ghi"})
                                             p.tls_write(text);
                                     });
                                 p.send_all(records);
                                 sent.set_value(records.size());
                                 p.tls_shutdown();
                             });
            socket_layer layer(std::move(socket), context_of(tls_role::client));
            co_await layer.async_handshake(socket_layer::client, use_awaitable);
            const std::size_t size = sent.get_future().get();
            co_await test::eventually([&] { return layer.lowest_layer().available() >= size; });
            std::string one(2, '\0');
            std::string two(5, '\0');
            const std::array<asio::mutable_buffer, 3> buffers{asio::buffer(one), asio::mutable_buffer(),
                                                              asio::buffer(two)};
            std::size_t read = co_await layer.async_read_some(buffers, use_awaitable);
            CHECK(read == 7);
            CHECK(one + two == "abcdefg");
            read = co_await layer.async_read_some(buffers, use_awaitable);
            CHECK(read == 2);
            CHECK(one == "hi");
            co_await layer.async_shutdown(use_awaitable);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("tls_stream: what comes with two KeyUpdates behind a large transfer that had one is read whole")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            std::promise<void> large_read, small_read;
            const std::string large(4'000'000, 'l');
            const auto small = [](test::raw_peer& p)
            {
                p.tls_write(std::string(490, '1'));
                p.tls_write(std::string(1000, '2'));
            };
            const auto renewing = [](test::raw_peer& p)
            {
                p.tls_write(std::string(490, '1'));
                p.key_update(false);
                p.tls_write(std::string(10'000, '2'));
                p.key_update(false);
                p.tls_write(std::string(12'000, '3'));
                p.tls_write(std::string(13'000, '4'));
            };
            tls_end<socket_layer> end(connect(executor),
                                      [&](test::raw_peer& p)
                                      {
                                          p.tls_write(large);
                                          p.key_update(false);
                                          p.tls_write(large);
                                          large_read.get_future().get();
                                          p.send_all(p.tls_unsent([&] { small(p); }));
                                          small_read.get_future().get();
                                          p.send_all(p.tls_unsent([&] { renewing(p); }));
                                          hold_open(p);
                                      });
            co_await end.shake_hands();
            std::string bytes(2 * large.size(), '\0');
            co_await asio::async_read(end.layer, asio::buffer(bytes), use_awaitable);
            CHECK(bytes == large + large);
            large_read.set_value();
            co_await asio::async_read(end.layer, asio::buffer(bytes, 1490), use_awaitable);
            small_read.set_value();
            co_await test::eventually([&] { return end.layer.lowest_layer().available() > 35'490; });
            bytes.assign(35'490, '\0');
            co_await asio::async_read(end.layer, asio::buffer(bytes), use_awaitable);
            CHECK(bytes == std::string(490, '1') + std::string(10'000, '2') + std::string(12'000, '3') +
                               std::string(13'000, '4'));
            end.layer.lowest_layer().close();
            co_await test::joined(std::move(end.peer));
        });
}

// Memory

namespace
{

struct memory
{
    std::ptrdiff_t after_handshake;
    std::ptrdiff_t after_transfers;
};

/// What an idle pair of a client of this kind and a server takes.
template <typename Client>
asio::awaitable<memory> memory_of_idle_pair()
{
    const auto executor = co_await asio::this_coro::executor;
    constexpr std::ptrdiff_t count = 20;
    std::vector<std::pair<Client, socket_layer>> pairs;
    pairs.reserve(count + 1);
    std::string received(1'000'000, '\0');
    const auto shake_hands = [&]() -> asio::awaitable<void>
    {
        auto [left, right] = test::tcp_pair(executor);
        Client client(typename Client::next_layer_type(std::move(left)), context_of(tls_role::client));
        socket_layer server(std::move(right), context_of(tls_role::server));
        const auto serving =
            test::spawn(executor, [&] { return server.async_handshake(socket_layer::server, use_awaitable); });
        co_await client.async_handshake(Client::client, use_awaitable);
        co_await serving.join();
        co_await write(server, "!"); // behind the session tickets
        co_await read_exactly(client, 1);
        co_await write(client, "!"); // OpenSSL 3.0 keeps a buffer for writes from the tickets to this
        co_await read_exactly(server, 1);
        pairs.emplace_back(std::move(client), std::move(server));
    };
    const auto transfer = [&](auto& from, auto& to) -> asio::awaitable<void>
    {
        const auto writing =
            test::spawn(executor, [&] { return write(from, std::string_view(flood()).substr(0, received.size())); });
        co_await asio::async_read(to, asio::buffer(received), use_awaitable);
        co_await writing.join();
    };
    co_await shake_hands();
    co_await transfer(pairs[0].first, pairs[0].second); // what the thread and the libraries keep for good
    co_await transfer(pairs[0].second, pairs[0].first);
    const auto before = static_cast<std::ptrdiff_t>(test::live_bytes());
    for (std::ptrdiff_t i = 0; i < count; ++i)
        co_await shake_hands();
    const auto between = static_cast<std::ptrdiff_t>(test::live_bytes());
    for (std::size_t i = 1; i < pairs.size(); ++i)
    {
        co_await transfer(pairs[i].first, pairs[i].second);
        co_await transfer(pairs[i].second, pairs[i].first);
    }
    const auto after = static_cast<std::ptrdiff_t>(test::live_bytes());
    co_return memory{(between - before) / count, (after - before) / count};
}

} // namespace

TEST_CASE("tls_stream: an idle stream holds no large buffer, over a socket or another stream")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const memory over_socket = co_await memory_of_idle_pair<socket_layer>();
            const memory over_other = co_await memory_of_idle_pair<chunked_layer>();
            CHECK(over_socket.after_transfers <= over_socket.after_handshake + 1024);
            CHECK(over_other.after_transfers <= over_other.after_handshake + 1024);
            CHECK(over_other.after_handshake <= over_socket.after_handshake + 1024);
        });
}

// What a peer cannot do

namespace
{

/// Counts the turns of the event loop until `done`.
asio::awaitable<std::size_t> turns_until(const bool& done)
{
    std::size_t turns = 0;
    const auto executor = co_await asio::this_coro::executor;
    while (!done)
    {
        co_await asio::post(executor, use_awaitable);
        ++turns;
    }
    co_return turns;
}

constexpr std::size_t flood_size = 100'000;

/// KeyUpdates of so many bytes in all, sent before anything else.
std::string key_updates(test::raw_peer& peer)
{
    return peer.tls_unsent(
        [&]
        {
            for (std::size_t i = 0; i < flood_size / 27; ++i)
                if (SSL_key_update(peer.ssl(), SSL_KEY_UPDATE_NOT_REQUESTED) != 1 || SSL_do_handshake(peer.ssl()) != 1)
                    throw test::failure("no KeyUpdate");
        });
}

} // namespace

TEST_CASE("tls_stream: while a peer's KeyUpdates are read, or dropped by a shutdown, others have their turn")
{
    const bool shuts_down = GENERATE(false, true);
    CAPTURE(shuts_down);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            std::promise<void> sent;
            tls_end<socket_layer> end(connect(executor),
                                      [&](test::raw_peer& p)
                                      {
                                          p.send_all(key_updates(p));
                                          if (!shuts_down)
                                              p.tls_write("x");
                                          else
                                              p.tls_shutdown_send_only();
                                          sent.set_value();
                                          hold_open(p);
                                      });
            co_await end.shake_hands();
            auto all_sent = test::run_in_thread([&] { sent.get_future().wait(); });
            co_await test::joined(std::move(all_sent));
            bool done = false;
            const auto counting = test::spawn(executor, [&] { return turns_until(done); });
            char byte = 0;
            if (shuts_down)
                co_await end.layer.async_shutdown(use_awaitable);
            else
                co_await end.layer.async_read_some(asio::buffer(&byte, 1), use_awaitable);
            done = true;
            const std::size_t turns = co_await counting.join();
            CHECK(turns >= flood_size / (32 * 1024));
            end.layer.lowest_layer().close();
            co_await test::joined(std::move(end.peer));
        });
}

TEST_CASE("tls_stream: replies that can no longer be sent are not kept")
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            std::promise<void> sent, measured; // the peer allocates nothing meanwhile
            tls_end<socket_layer> end(connect(executor),
                                      [&](test::raw_peer& p)
                                      {
                                          for (int i = 0; i < 4'000; ++i)
                                              p.key_update(true);
                                          p.tls_write("x");
                                          sent.set_value();
                                          measured.get_future().wait_for(test::run_deadline);
                                          hold_open(p);
                                      });
            co_await end.shake_hands();
            end.layer.lowest_layer().shutdown(tcp::socket::shutdown_send);
            auto all_sent = test::run_in_thread([&] { sent.get_future().wait(); });
            co_await test::joined(std::move(all_sent));
            const test::memory_use before = test::allocated();
            char byte = 0;
            co_await end.layer.async_read_some(asio::buffer(&byte, 1), use_awaitable);
            CHECK(test::allocated().bytes < before.bytes + 20'000);
            measured.set_value();
            end.layer.lowest_layer().close();
            co_await test::joined(std::move(end.peer));
        });
}

// Blocking, once more

TEST_CASE("tls_stream: a blocking call that a signal interrupts may be made again, and nothing is lost")
{
    asio::io_context io;
    std::promise<void> interrupted;
    struct sigaction ignoring = {};
    struct sigaction before = {};
    ignoring.sa_handler = [](int) {};
    ::sigaction(SIGUSR1, &ignoring, &before);
    tls_end<socket_layer> end(connect(io.get_executor()),
                              [&](test::raw_peer& p)
                              {
                                  interrupted.get_future().wait();
                                  p.tls_write("line\n");
                                  p.tls_shutdown();
                              });
    end.layer.handshake(socket_layer::client);
    std::atomic<bool> seen = false;
    auto signals = test::run_in_thread(
        [&seen, reader = ::pthread_self()]
        {
            while (!seen)
            {
                ::pthread_kill(reader, SIGUSR1);
                std::this_thread::yield();
            }
        });
    std::string line(5, '\0');
    asio::error_code error;
    CHECK(end.layer.read_some(asio::buffer(line), error) == 0);
    CHECK(error == asio::error::interrupted);
    seen = true;
    signals.get();
    interrupted.set_value();
    CHECK(end.layer.read_some(asio::buffer(line)) == 5);
    CHECK(line == "line\n");
    end.layer.shutdown();
    end.peer.get();
    ::sigaction(SIGUSR1, &before, nullptr);
}

TEST_CASE("tls_stream: a blocking shutdown that cannot send yet is would_block, and sends all when made again")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    test::shrink_buffers(socket.native_handle());
    test::shrink_buffers(raw.descriptor());
    std::promise<void> read_on;
    const std::string data(200'000, 'd');
    auto peer = play(std::move(raw),
                     [&](test::raw_peer& p)
                     {
                         handshake(p, tls_role::client);
                         p.tls_shutdown_send_only();
                         read_on.get_future().wait();
                         return p.tls_read_all();
                     });
    socket_layer layer(std::move(socket), context_of(tls_role::client));
    layer.handshake(socket_layer::client);
    layer.lowest_layer().non_blocking(true);
    asio::error_code error;
    CHECK(layer.write_some(asio::buffer(data), error) == 0);
    CHECK(error == asio::error::would_block);
    CHECK(layer.write_some(asio::const_buffer(), error) == 0);
    CHECK(layer.write_some(asio::buffer(data), error) == 0);
    CHECK(error == asio::error::would_block);
    layer.shutdown(error);
    CHECK(error == asio::error::would_block);
    read_on.set_value();
    while (error == asio::error::would_block)
    {
        pollfd entry{layer.lowest_layer().native_handle(), POLLOUT, 0};
        REQUIRE(::poll(&entry, 1, 60'000) == 1);
        layer.shutdown(error);
    }
    CHECK(!error);
    CHECK((peer.get() == data));
}

TEST_CASE("tls_stream: a write that is made again for less tells no more than that")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    test::shrink_buffers(socket.native_handle());
    test::shrink_buffers(raw.descriptor());
    std::promise<void> read_on;
    const std::string data = test::pattern(3).bytes(0, 200'000);
    auto peer = play_tls(std::move(raw), tls_role::client,
                         [&](test::raw_peer& p)
                         {
                             read_on.get_future().wait();
                             if (p.tls_read_exactly(data.size()) != data)
                                 throw test::failure("other bytes were expected");
                         });
    socket_layer layer(std::move(socket), context_of(tls_role::client));
    layer.handshake(socket_layer::client);
    layer.lowest_layer().non_blocking(true);
    asio::error_code error;
    layer.write_some(asio::buffer(data), error);
    CHECK(error == asio::error::would_block);
    read_on.set_value();
    layer.lowest_layer().non_blocking(false);
    CHECK(layer.write_some(asio::buffer(data, 10), error) == 10);
    CHECK(asio::write(layer, asio::buffer(data) + 10) == data.size() - 10);
    layer.shutdown();
    peer.get();
}

TEST_CASE("tls_stream: blocking calls while an asynchronous reply is under way are in_progress, until it was sent")
{
    asio::io_context io;
    std::promise<void> reading;
    tls_end<chunked_layer> end(connect(io.get_executor()),
                               [&reading](test::raw_peer& p)
                               {
                                   reading.get_future().wait();
                                   p.send_all(p.tls_unsent(
                                       [&p]
                                       {
                                           for (int i = 0; i < 3; ++i)
                                               p.key_update(true);
                                           p.tls_write("x");
                                       }));
                                   p.tls_shutdown();
                               });
    end.layer.handshake(chunked_layer::client);
    char byte = 0;
    outcome read;
    asio::error_code written;
    asio::error_code shut_down;
    end.layer.async_read_some(asio::buffer(&byte, 1),
                              [&](const asio::error_code& error, std::size_t size)
                              {
                                  read = {true, error, size};
                                  end.layer.write_some(asio::buffer("line\n", 5), written);
                                  end.layer.shutdown(shut_down);
                              });
    io.poll();
    reading.set_value();
    run_until_done(io, read);
    CHECK(read.size == 1);
    CHECK(written == asio::error::in_progress);
    CHECK(shut_down == asio::error::in_progress);
    io.restart();
    io.run();
    end.layer.shutdown(); // was begun
    end.peer.get();
}

namespace
{

/// A buffer sequence whose second element throws.
struct throwing_buffers
{
    using value_type = asio::const_buffer;

    struct const_iterator
    {
        using iterator_category = std::bidirectional_iterator_tag;
        using value_type = asio::const_buffer;
        using difference_type = std::ptrdiff_t;
        using pointer = const asio::const_buffer*;
        using reference = asio::const_buffer;

        asio::const_buffer operator*() const
        {
            if (at == 1 && owner->armed && --owner->armed == 0)
                throw std::runtime_error("no second buffer");
            return asio::buffer(owner->bytes);
        }
        const_iterator& operator++() { return ++at, *this; }
        const_iterator operator++(int) { return {owner, at++}; }
        const_iterator& operator--() { return --at, *this; }
        const_iterator operator--(int) { return {owner, at--}; }
        bool operator==(const const_iterator& other) const { return at == other.at; }

        const throwing_buffers* owner;
        int at;
    };

    const_iterator begin() const { return {this, 0}; }
    const_iterator end() const { return {this, 2}; }

    std::string bytes = std::string(20'000, 'b');
    mutable int armed = 0;
};

} // namespace

TEST_CASE("tls_stream: a buffer sequence that throws while it is encrypted ends the stream")
{
    asio::io_context io;
    tls_end<socket_layer> end(connect(io.get_executor()), [](test::raw_peer& p) { hold_open(p); });
    end.layer.handshake(socket_layer::client);
    throwing_buffers buffers;
    buffers.armed = 3; // asio::buffer_size, which may not throw, comes first
    asio::error_code error;
    bool threw = false;
    try
    {
        end.layer.write_some(buffers, error);
    }
    catch (const std::runtime_error&)
    {
        threw = true;
    }
    CHECK(threw);
    char byte = 0;
    end.layer.read_some(asio::buffer(&byte, 1), error);
    CHECK(error == us::errc::stream_unusable);
    end.layer.lowest_layer().close();
    end.peer.get();
}

TEST_CASE("tls_stream: it makes its next layer of an executor or an io_context")
{
    asio::io_context io;
    socket_layer of_context(io, context_of(tls_role::client));
    socket_layer of_executor(io.get_executor(), context_of(tls_role::client));
    us::tls_stream<asio::basic_stream_socket<tcp, asio::strand<asio::io_context::executor_type>>> of_strand(
        asio::make_strand(io), context_of(tls_role::client));
    CHECK(of_context.get_executor() == io.get_executor());
    CHECK(of_executor.get_executor() == io.get_executor());
    CHECK(!of_strand.lowest_layer().is_open());
}
