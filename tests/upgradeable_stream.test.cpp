#include "support/upgrade_rig.hpp"

using namespace test::rig;
using asio::awaitable;
using test::error_of;
using test::raw_peer;

// Reading and writing

TEMPLATE_TEST_CASE(
    "upgradeable_stream: lines and larger data arrive whole before and after the upgrade, however they are split", "",
    with_ssl_stream, with_tls_stream)
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
                                 [&](test::raw_peer& p)
                                 {
                                     p.tls_write("220 ready\r\n");
                                     if (p.tls_read_exactly(data.size()) == data)
                                         p.tls_write(data);
                                 });
            chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), chunk), options_of(role));
            co_await stream.start_tls();
            const std::string greeting = co_await read_line(stream);
            CHECK(greeting == "220 ready\r\n");
            co_await write(stream, data);
            const std::string echoed = co_await read_exactly(stream, data.size());
            CHECK((echoed == data));
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });

    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 p.send_all(p.recv_line());
                                 p.send_all(p.recv_exactly(data.size()));
                                 handshake(p, role);
                                 p.tls_write(p.tls_read_line());
                                 p.tls_shutdown();
                             });
            chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), chunk), options_of(role));
            co_await write(stream, "plain\n");
            const std::string plain = co_await read_line(stream);
            CHECK(plain == "plain\n");
            co_await write(stream, data);
            const std::string echoed = co_await read_exactly(stream, data.size());
            CHECK((echoed == data));
            co_await stream.start_tls();
            co_await write(stream, "secret\n");
            const std::string secret = co_await read_line(stream);
            CHECK(secret == "secret\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: sequences of several buffers arrive in order, plain and encrypted", "",
                   with_ssl_stream, with_tls_stream)
{
    const bool encrypted = GENERATE(false, true);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 if (encrypted)
                                     handshake(p, tls_role::server);
                                 encrypted ? p.tls_write(p.tls_read_exactly(6)) : p.send_all(p.recv_exactly(6));
                                 if (encrypted)
                                     p.tls_shutdown();
                             });
            stream_over<TestType, tcp::socket> stream(std::move(socket), options_of(tls_role::server));
            if (encrypted)
                co_await stream.start_tls();
            const std::array<asio::const_buffer, 4> out{asio::buffer("ab", 2), asio::const_buffer(),
                                                        asio::buffer("c", 1), asio::buffer("def", 3)};
            co_await asio::async_write(stream, out, use_awaitable);
            std::string first(1, '\0');
            std::string rest(5, '\0');
            const std::array<asio::mutable_buffer, 3> in{asio::buffer(first), asio::mutable_buffer(),
                                                         asio::buffer(rest)};
            co_await asio::async_read(stream, in, use_awaitable);
            CHECK(first + rest == "abcdef");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: reads and writes of nothing complete with 0 bytes, plain and encrypted", "",
                   with_ssl_stream, with_tls_stream)
{
    const bool encrypted = GENERATE(false, true);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 if (encrypted)
                                     handshake(p, tls_role::client);
                                 encrypted ? p.tls_shutdown() : p.send_fin();
                             });
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            if (encrypted)
                co_await stream.start_tls();
            const std::size_t read = co_await stream.async_read_some(asio::mutable_buffer(), use_awaitable);
            CHECK(read == 0);
            const std::size_t written = co_await stream.async_write_some(asio::const_buffer(), use_awaitable);
            CHECK(written == 0);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a handler is never called from within the call that started its operation", "",
                   with_ssl_stream, with_tls_stream)
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::server));
    std::array<char, 8> bytes;
    outcome upgraded, read, written, again, shut;

    stream.async_start_tls({}, into(upgraded));
    CHECK(!upgraded.done);
    stream.async_read_some(asio::buffer(bytes), into(read));
    stream.async_write_some(asio::buffer("x", 1), into(written));
    stream.async_start_tls({}, into(again));
    stream.async_shutdown({}, into(shut));
    CHECK((!read.done && !written.done && !again.done && !shut.done));
    raw.close();
    io.run();
    CHECK((upgraded.done && read.done && written.done && again.done && shut.done));
}

// Cancellation

TEMPLATE_TEST_CASE("upgradeable_stream: a cancelled read leaves the stream as it was, plain and encrypted", "",
                   with_ssl_stream, with_tls_stream)
{
    const bool encrypted = GENERATE(false, true);
    const auto type =
        GENERATE(asio::cancellation_type::terminal, asio::cancellation_type::partial, asio::cancellation_type::total);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 if (encrypted)
                                     handshake(p, tls_role::client);
                                 encrypted ? p.tls_write(p.tls_read_line()) : p.send_all(p.recv_line());
                                 if (encrypted)
                                     p.tls_shutdown();
                             });
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            if (encrypted)
                co_await stream.start_tls();

            std::array<char, 16> bytes;
            asio::cancellation_signal signal;
            outcome read;
            stream.async_read_some(asio::buffer(bytes), asio::bind_cancellation_slot(signal.slot(), into(read)));
            CHECK(!read.done);
            signal.emit(type);
            co_await finished(read);
            CHECK(read.error == asio::error::operation_aborted);
            CHECK(read.size == 0);

            co_await write(stream, "still fine\n");
            const std::string line = co_await read_line(stream);
            CHECK(line == "still fine\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE(
    "upgradeable_stream: a write can go on while reads of an encrypted stream are cancelled again and again", "",
    with_ssl_stream, with_tls_stream)
{
    const std::string data = test::pattern(5).bytes(0, 400'000);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::client,
                                 [&](test::raw_peer& p)
                                 {
                                     if (p.tls_read_exactly(data.size()) == data)
                                         p.tls_write("whole\n");
                                 });
            chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), 1024),
                                            options_of(tls_role::client));
            co_await stream.start_tls();
            const auto executor = co_await asio::this_coro::executor;
            const auto writing =
                test::spawn(executor, [&]() -> asio::awaitable<void> { co_await write(stream, data); });
            char byte = 0;
            while (!writing.done())
            {
                asio::cancellation_signal signal;
                outcome read;
                stream.async_read_some(asio::buffer(&byte, 1), asio::bind_cancellation_slot(signal.slot(), into(read)));
                co_await asio::post(executor, use_awaitable);
                if (!read.done)
                    signal.emit(asio::cancellation_type::terminal);
                co_await finished(read);
                if (!read.error)
                    break;
                CHECK(read.error == asio::error::operation_aborted);
            }
            co_await writing.join();
            std::string line(byte == 'w' ? 1 : 0, 'w');
            line += co_await read_line(stream);
            CHECK(line == "whole\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a write of an encrypted stream that is cancelled half-way makes it unusable",
                   "", with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            std::promise<void> may_go_on;
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_write("data that came before");
                                 may_go_on.get_future().get();
                             });
            chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), 1000),
                                            options_of(tls_role::client));
            co_await stream.start_tls();
            asio::cancellation_signal signal;
            outcome written;
            asio::async_write(stream, asio::buffer(flood()),
                              asio::bind_cancellation_slot(signal.slot(), into(written)));
            co_await stuck(stream);
            CHECK(!written.done);
            signal.emit(asio::cancellation_type::terminal);
            co_await finished(written);
            CHECK(written.error == asio::error::operation_aborted);

            std::error_code error = co_await write_error(stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await read_error(stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await shutdown_error(stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await test::error_of(stream.start_tls());
            CHECK(error == us::errc::stream_unusable);
            may_go_on.set_value();
            stream.lowest_layer().close();
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a cancelled write of a plain stream leaves it as it was", "", with_ssl_stream,
                   with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), 1000),
                                            options_of(tls_role::client));
            asio::cancellation_signal signal;
            outcome written;
            asio::async_write(stream, asio::buffer(flood()),
                              asio::bind_cancellation_slot(signal.slot(), into(written)));
            co_await stuck(stream);
            signal.emit(asio::cancellation_type::terminal);
            co_await finished(written);
            CHECK(written.error == asio::error::operation_aborted);

            auto peer = play(std::move(raw),
                             [size = written.size](test::raw_peer& p)
                             {
                                 const bool whole = p.recv_exactly(size) == flood().substr(0, size);
                                 const std::string line = p.recv_line();
                                 handshake(p, tls_role::client);
                                 p.tls_write((whole ? "whole" : "damaged") + line);
                                 p.tls_shutdown();
                             });
            co_await write(stream, ", and more\n");
            co_await stream.start_tls();
            const std::string line = co_await read_line(stream);
            CHECK(line == "whole, and more\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE(
    "start_tls: a cancelled upgrade closes the stream, and every later operation says that it is unusable", "",
    with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    CAPTURE(int(role));
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            tcp_stream<TestType> stream(std::move(socket), options_of(role));
            const auto upgrade = test::spawn(executor, [&] { return stream.start_tls(); });
            co_await test::eventually([&] { return stream.native_handle() != nullptr; });
            upgrade.cancel();
            std::error_code error = co_await test::error_of(upgrade.join());
            CHECK(error == asio::error::operation_aborted);
            CHECK(!stream.is_tls());
            CHECK(!stream.lowest_layer().is_open());
            CHECK(!stream.session());

            error = co_await read_error(stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await write_error(stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await test::error_of(stream.start_tls());
            CHECK(error == us::errc::stream_unusable);
            error = co_await shutdown_error(stream);
            CHECK(error == us::errc::stream_unusable);
            const std::string sent = raw.recv_all();
            CHECK(sent.empty() == (role == tls_role::server));
            CHECK(test::tls_records(sent).end == sent.size());
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a cancelled shutdown of an encrypted stream makes it unusable", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 const std::string data = p.tls_read_all();
                                 hold_open(p);
                                 return data;
                             });
            std::optional<tcp_stream<TestType>> stream(std::in_place, std::move(socket), options_of(tls_role::client));
            co_await stream->start_tls();
            asio::cancellation_signal signal;
            outcome shut;
            stream->async_shutdown({}, asio::bind_cancellation_slot(signal.slot(), into(shut)));
            co_await asio::post(executor, use_awaitable);
            co_await asio::post(executor, use_awaitable);
            CHECK(!shut.done);
            signal.emit(asio::cancellation_type::terminal);
            co_await finished(shut);
            CHECK(shut.error == asio::error::operation_aborted);
            std::error_code error = co_await write_error(*stream);
            CHECK(error == us::errc::stream_unusable);
            error = co_await read_error(*stream);
            CHECK(error == us::errc::stream_unusable);
            stream.reset();
            co_await test::joined(std::move(peer));
        });
}

// Options, and what can be told

TEMPLATE_TEST_CASE(
    "upgradeable_stream: is_tls, session and native_handle tell nothing while plain, and all once encrypted", "",
    with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), role, [](test::raw_peer&) {});
            tcp_stream<TestType> stream(std::move(socket), options_of(role));
            CHECK(!stream.is_tls());
            CHECK(!stream.session());
            CHECK(stream.native_handle() == nullptr);
            co_await stream.start_tls();
            CHECK(stream.is_tls());
            REQUIRE(stream.native_handle() != nullptr);
            CHECK(SSL_is_server(stream.native_handle()) == (role == tls_role::server));
            const auto session = stream.session();
            REQUIRE(session);
            CHECK(session->version == "TLSv1.3");
            CHECK(session->cipher.protocol == "TLSv1.3");
            CHECK(session->cipher.secret_bits >= 128);
            CHECK(session->server_name == "localhost");
            CHECK(!session->alpn_protocol);
            CHECK(!session->session_reused);
            CHECK(session->verify_result == X509_V_OK);
            CHECK(session->peer_certificate.has_value() == (role == tls_role::client));
            if (session->peer_certificate)
                CHECK(session->peer_certificate->subject() == "CN=localhost");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE(
    "upgradeable_stream: get_executor, next_layer and lowest_layer are the socket's, before and after the upgrade", "",
    with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            const int descriptor = socket.native_handle();
            auto peer = play_tls(std::move(raw), tls_role::client, [](test::raw_peer&) {});
            chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), 64), options_of(tls_role::client));
            CHECK(stream.get_executor() == executor);
            CHECK(stream.lowest_layer().native_handle() == descriptor);
            CHECK(stream.next_layer().reads() == 0);
            co_await stream.start_tls();
            CHECK(stream.get_executor() == executor);
            CHECK(std::as_const(stream).lowest_layer().available() == stream.lowest_layer().available());
            CHECK(stream.lowest_layer().native_handle() == descriptor);
            CHECK(stream.next_layer().reads() > 0);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("start_tls: options at the call override those that the stream was made with", "", with_ssl_stream,
                   with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::client, [](test::raw_peer&) {});
            // Each of these would fail.
            tcp_stream<TestType> stream(std::move(socket), {.ssl = &test::server_context(),
                                                            .role = tls_role::server,
                                                            .server_hostname = "elsewhere.test",
                                                            .handshake_timeout = 1ns});
            co_await stream.start_tls({.ssl = &test::client_context(),
                                       .role = tls_role::client,
                                       .server_hostname = "localhost",
                                       .handshake_timeout = 60s});
            CHECK(stream.session()->server_name == "localhost");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("start_tls: options that are left out at the call keep the values that the stream was made with", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::server, [](test::raw_peer&) {});
            tcp_stream<TestType> stream(std::move(socket), {.role = tls_role::server});
            co_await stream.start_tls({.ssl = &test::server_context()});
            CHECK(SSL_is_server(stream.native_handle()) == 1);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("start_tls: options that were overridden at a call that was refused do not stay", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::server, [](test::raw_peer&) {});
            tcp_stream<TestType> stream(std::move(socket), {.role = tls_role::server});
            const std::error_code error =
                co_await test::error_of(stream.start_tls({.role = tls_role::client, .server_hostname = "localhost"}));
            CHECK(error == us::errc::not_upgradeable);
            co_await stream.start_tls({.ssl = &test::server_context()});
            CHECK(SSL_is_server(stream.native_handle()) == 1);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("start_tls: what the options view may go as soon as the call has returned, the context too", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::client, [](test::raw_peer&) {});
            std::optional<tcp_stream<TestType>> stream;
            asio::awaitable<void> upgrade;
            {
                const std::string ca_file = test::authority().ca_file();
                auto context = us::create_client_context({.ca_file = ca_file});
                std::string name = "localhost";
                stream.emplace(std::move(socket), us::tls_options{.ssl = &context});
                upgrade = stream->start_tls({.server_hostname = name});
                name.assign(name.size(), 'x');
            }
            co_await std::move(upgrade);
            CHECK(stream->session()->server_name == "localhost");
            co_await shut_down(*stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: options that make no sense are std::invalid_argument, at the call", "",
                   with_ssl_stream, with_tls_stream)
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    CHECK_THROWS_AS(tcp_stream<TestType>(tcp::socket(io), {.handshake_timeout = 0s}), std::invalid_argument);
    CHECK_THROWS_AS(tcp_stream<TestType>(tcp::socket(io), {.handshake_timeout = -1s}), std::invalid_argument);
    CHECK_THROWS_AS(tcp_stream<TestType>(tcp::socket(io), {.shutdown_timeout = 0s}), std::invalid_argument);
    CHECK_THROWS_AS(tcp_stream<TestType>(tcp::socket(io), {.received = "x"}), std::invalid_argument);
    CHECK_THROWS_AS(tcp_stream<TestType>(tcp::socket(io), {.server_hostname = "*.test"}), std::invalid_argument);

    tcp_stream<TestType> stream(std::move(socket), {.ssl = &test::client_context()});
    outcome result;
    CHECK_THROWS_AS(stream.start_tls({.server_hostname = "localhost", .handshake_timeout = 0s}), std::invalid_argument);
    CHECK_THROWS_AS(stream.start_tls({.server_hostname = "localhost", .shutdown_timeout = -1s}), std::invalid_argument);
    CHECK_THROWS_AS(stream.async_start_tls({.handshake_timeout = 0s}, into(result)), std::invalid_argument);
    CHECK_THROWS_AS(stream.async_shutdown({.timeout = 0s}, into(result)), std::invalid_argument);
    CHECK_THROWS_AS(stream.async_shutdown({.what = asio::socket_base::shutdown_receive}, into(result)),
                    std::invalid_argument);
    io.run();
    CHECK(!result.done);
    CHECK(stream.lowest_layer().is_open());
    stream.lowest_layer().close();
    CHECK(raw.recv_all().empty());
}

// stop_tls

namespace
{

/// Makes the length of records a multiple of `size`; OpenSSL 3.2 and later do so from the next keys on.
void pad(raw_peer& peer, std::size_t size)
{
    SSL_set_block_padding(peer.ssl(), size);
    if (SSL_version(peer.ssl()) == TLS1_3_VERSION && OpenSSL_version_num() >= 0x30200000L)
        peer.key_update(false);
}

/// What a raw peer sends to end TLS in its direction.
std::string close_notify(raw_peer& peer)
{
    return peer.tls_unsent([&] { peer.tls_shutdown_send_only(); });
}

std::string line_of(std::size_t size)
{
    return std::string(size - 1, 'p') + "\n";
}

/// Waits until all that the peer sends has come to the socket.
template <typename Stream>
awaitable<void> arrived(Stream& stream, std::size_t size)
{
    co_await test::eventually([&] { return stream.lowest_layer().available() >= size; });
}

} // namespace

TEMPLATE_TEST_CASE("stop_tls: a stream goes back to plain text and over to TLS again, any number of times", "",
                   with_ssl_stream, with_tls_stream)
{
    const tls_role role = GENERATE(tls_role::client, tls_role::server);
    const std::size_t chunk = GENERATE(std::size_t(1), std::size_t(5), std::size_t(64), std::size_t(1024), std::size_t(0));
    const bool peer_ends_first = GENERATE(false, true);
    CAPTURE(role, chunk, peer_ends_first);
    constexpr int rounds = 4;
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, peer] = connect(executor);
            auto playing = play(std::move(peer),
                                [=](raw_peer& raw)
                                {
                                    for (int i = 0; i < rounds; ++i)
                                    {
                                        raw.send_all(raw.recv_line());
                                        handshake(raw, role);
                                        raw.tls_write(raw.tls_read_line());
                                        if (!peer_ends_first && raw.tls_read_some() != "")
                                            throw test::failure("data in place of a close_notify");
                                        raw.tls_shutdown();
                                    }
                                    raw.send_all(raw.recv_line());
                                });
            chunked_stream<TestType> stream(test::chunked_stream<tcp::socket>(std::move(socket), chunk),
                                            options_of(role));
            for (int i = 0; i < rounds; ++i)
            {
                co_await write(stream, "plain\n");
                const std::string plain = co_await read_exactly(stream, 6);
                CHECK(plain == "plain\n");
                co_await stream.start_tls();
                CHECK(stream.is_tls());
                co_await write(stream, "encrypted\n");
                const std::string encrypted = co_await read_line(stream);
                CHECK(encrypted == "encrypted\n");
                if (peer_ends_first)
                {
                    const std::error_code end = co_await read_error(stream);
                    CHECK(end == asio::error::eof);
                }
                co_await stream.stop_tls();
                CHECK_FALSE(stream.is_tls());
                CHECK(stream.native_handle() == nullptr);
                CHECK_FALSE(stream.session());
            }
            co_await write(stream, "the end\n");
            const std::string last = co_await read_line(stream);
            CHECK(last == "the end\n");
            co_await test::joined(std::move(playing));
        });
}

TEMPLATE_TEST_CASE("stop_tls: plain text in the same segment as the close_notify is read next", "", with_ssl_stream,
                   with_tls_stream)
{
    const tls_role role = GENERATE(tls_role::client, tls_role::server);
    const bool tls12 = GENERATE(false, true);
    const std::size_t size = GENERATE(std::size_t(1), std::size_t(5), std::size_t(64), std::size_t(1024), std::size_t(40'000));
    const bool data_before = GENERATE(false, true);
    CAPTURE(role, tls12, size, data_before);
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, peer] = connect(executor);
            asio::ssl::context own = role == tls_role::client ? test::make_client_context() : test::make_server_context();
            if (tls12)
                SSL_CTX_set_max_proto_version(own.native_handle(), TLS1_2_VERSION);
            tcp_stream<TestType> stream(std::move(socket), {.ssl = &own, .role = role, .server_hostname = "localhost"});
            auto shaken = play(std::move(peer),
                               [=](raw_peer& raw)
                               {
                                   handshake(raw, role);
                                   raw.tls_write("ready\n");
                                   return std::move(raw);
                               });
            co_await stream.start_tls();
            const std::string ready = co_await read_line(stream);
            CHECK(ready == "ready\n");
            raw_peer raw = co_await test::joined(std::move(shaken));
            std::string segment;
            if (data_before)
                segment = raw.tls_unsent([&] { raw.tls_write("last\n"); });
            segment += close_notify(raw) + line_of(size);
            raw.send_all(segment);
            co_await arrived(stream, segment.size());
            if (data_before)
            {
                const std::string last = co_await read_exactly(stream, 5);
                CHECK(last == "last\n");
            }
            co_await stream.stop_tls();
            const std::string plain = co_await read_exactly(stream, size);
            CHECK(plain == line_of(size));
            raw.tls_shutdown();
            co_await write(stream, "after\n");
            CHECK(raw.recv_line() == "after\n");
        });
}

TEMPLATE_TEST_CASE("stop_tls: KeyUpdates that come after the own close_notify are not answered", "", with_ssl_stream,
                   with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 const std::string none = p.tls_read_all();
                                 const std::string ending = p.tls_unsent(
                                     [&]
                                     {
                                         for (int i = 0; i < 3; ++i)
                                             p.key_update(true);
                                         p.tls_shutdown_send_only();
                                     });
                                 p.send_all(ending);
                                 return none + p.recv_line();
                             });
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            co_await stream.stop_tls();
            co_await write(stream, "plain\n");
            const std::string line = co_await test::joined(std::move(peer));
            CHECK(line == "plain\n");
        });
}

TEMPLATE_TEST_CASE("stop_tls: a ClientHello in the same segment as the close_notify is not lost", "", with_ssl_stream,
                   with_tls_stream)
{
    const bool tls12 = GENERATE(false, true);
    const std::size_t padding = GENERATE(std::size_t(0), std::size_t(16), std::size_t(32)); // of records, in TLS 1.3
    CAPTURE(tls12, padding);
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, peer] = connect(executor);
            asio::ssl::context own = test::make_server_context();
            if (tls12)
                SSL_CTX_set_max_proto_version(own.native_handle(), TLS1_2_VERSION);
            tcp_stream<TestType> stream(std::move(socket), {.ssl = &own, .role = tls_role::server});
            auto playing = play(std::move(peer),
                                [=](raw_peer& raw)
                                {
                                    handshake(raw, tls_role::server);
                                    if (raw.tls_read_some() != "")
                                        throw test::failure("data in place of a close_notify");
                                    pad(raw, padding);
                                    test::tls_settings again = test::localhost_client();
                                    again.send_before = close_notify(raw);
                                    raw.tls_connect(again);
                                    raw.tls_write(raw.tls_read_line());
                                    raw.tls_shutdown();
                                });
            co_await stream.start_tls();
            co_await stream.stop_tls();
            co_await stream.start_tls();
            co_await write(stream, "again\n");
            const std::string line = co_await read_line(stream);
            CHECK(line == "again\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(playing));
        });
}

TEMPLATE_TEST_CASE("stop_tls: what came before the close_notify and was not read is read first", "", with_ssl_stream,
                   with_tls_stream)
{
    const std::size_t size = GENERATE(std::size_t(1), std::size_t(1000), std::size_t(64 * 1024));
    CAPTURE(size);
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, peer] = connect(executor);
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            const std::string unread = test::pattern(3).bytes(0, size);
            auto playing = play(std::move(peer),
                                [&](raw_peer& raw)
                                {
                                    handshake(raw, tls_role::client);
                                    raw.tls_write(unread);
                                    raw.tls_shutdown();
                                    raw.send_all("plain\n");
                                });
            co_await stream.start_tls();
            co_await stream.stop_tls();
            const auto [all, error] = co_await read_to_error(stream);
            CHECK(all == unread + "plain\n");
            CHECK(error == asio::error::eof);
            co_await test::joined(std::move(playing));
        });
}

TEMPLATE_TEST_CASE("stop_tls: plain text that was not read goes to the next start_tls, which refuses it", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, peer] = connect(executor);
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            auto playing = play(std::move(peer),
                                [](raw_peer& raw)
                                {
                                    handshake(raw, tls_role::client);
                                    if (raw.tls_read_some() != "")
                                        throw test::failure("data in place of a close_notify");
                                    raw.send_all(close_notify(raw) + "454 not now\n");
                                    hold_open(raw);
                                });
            co_await stream.start_tls();
            co_await stream.stop_tls();
            const us::tls_error error = co_await test::exception_of<us::tls_error>(stream.start_tls());
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == "454 not now\n");
            co_await test::joined(std::move(playing));
        });
}

TEMPLATE_TEST_CASE("stop_tls: a peer that does not end TLS in order gets its connection closed, and the error says why", "",
                   with_ssl_stream, with_tls_stream)
{
    struct misdeed
    {
        std::string name;
        std::function<void(raw_peer&)> commit;
        std::function<bool(const std::error_code&)> is_right;
    };
    const auto is = [](auto expected) { return [=](const std::error_code& e) { return e == expected; }; };
    const auto of_ssl = [](const std::error_code& e) { return e.category() == asio::error::get_ssl_category(); };
    const auto misdeeds = std::vector<misdeed>{
        {"a FIN", [](raw_peer& raw) { raw.send_fin(); }, is(asio::ssl::error::stream_truncated)},
        {"plain text", [](raw_peer& raw) { raw.send_all("plain text, not encrypted\n"); }, of_ssl},
        {"silence", [](raw_peer&) {}, is(us::errc::shutdown_timeout)},
        {"a drip", [](raw_peer& raw) { raw.send_all("\x17\x03\x03"s); }, is(us::errc::shutdown_timeout)},
        {"a record that was tampered with",
         [](raw_peer& raw)
         {
             std::string record = raw.tls_unsent([&] { raw.tls_write("x"); });
             record.back() = static_cast<char>(record.back() ^ 1);
             raw.send_all(record);
         },
         of_ssl},
        {"half a record behind a close_notify that is as long as any",
         [](raw_peer& raw)
         {
             pad(raw, 128);
             raw.send_all(close_notify(raw) + "\x17\x03"s);
         },
         [=](const std::error_code& e) // Asio's layer notices it itself
         { return e == std::errc::protocol_error || e == asio::ssl::error::stream_truncated; }},
        {"a record behind a close_notify that is as long as any",
         [](raw_peer& raw)
         {
             pad(raw, 128);
             raw.send_all(close_notify(raw) + "\x16\x03\x01\x00\x02xx"s);
         },
         [=](const std::error_code& e) // Asio's layer notices it itself
         { return e == std::errc::protocol_error || e == asio::ssl::error::stream_truncated; }},
        {"too much", [](raw_peer& raw) { raw.tls_write(std::string(64 * 1024 + 1, 'x')); },
         is(asio::error::no_buffer_space)},
        {"a reset", [](raw_peer& raw) { raw.reset(); }, is(asio::error::connection_reset)},
    };
    const bool tolerant = GENERATE(false, true);
    for (const misdeed& each : misdeeds)
    {
        CAPTURE(each.name, tolerant);
        test::run(
            [&]() -> awaitable<void>
            {
                const auto executor = co_await asio::this_coro::executor;
                auto [socket, peer] = connect(executor);
                us::tls_options options = options_of(tls_role::client);
                options.suppress_ragged_eofs = tolerant;
                tcp_stream<TestType> stream(std::move(socket), options);
                auto playing = play(std::move(peer),
                                    [&](raw_peer& raw)
                                    {
                                        handshake(raw, tls_role::client);
                                        if (raw.tls_read_some() != "")
                                            throw test::failure("data in place of a close_notify");
                                        each.commit(raw);
                                        if (raw.descriptor() >= 0)
                                            hold_open(raw);
                                    });
                co_await stream.start_tls();
                const std::error_code error = co_await error_of(stream.stop_tls({.timeout = 200ms}));
                INFO(error.message());
                CHECK(each.is_right(error));
                CHECK_FALSE(stream.lowest_layer().is_open());
                const std::error_code later = co_await read_error(stream);
                CHECK(later == error);
                const std::error_code written = co_await write_error(stream);
                CHECK(written == error);
                co_await test::joined(std::move(playing));
            });
    }
}

TEMPLATE_TEST_CASE("stop_tls: a stream that is plain, or being upgraded, is left as it was", "", with_ssl_stream,
                   with_tls_stream)
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, peer] = connect(executor);
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            const std::error_code plain = co_await error_of(stream.stop_tls());
            CHECK(plain == us::errc::not_tls);
            auto upgrading = test::spawn(executor, [&] { return stream.start_tls(); });
            co_await test::turns();
            const std::error_code early = co_await error_of(stream.stop_tls());
            CHECK(early == us::errc::upgrade_in_progress);
            auto playing = play_tls(std::move(peer), tls_role::client, [](raw_peer& raw) { raw.tls_write("here\n"); });
            co_await upgrading.join();
            const std::string line = co_await read_line(stream);
            CHECK(line == "here\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(playing));
        });
}

TEMPLATE_TEST_CASE("stop_tls: while it runs every other operation is upgrade_in_progress", "", with_ssl_stream,
                   with_tls_stream)
{
    const bool at_end = GENERATE(false, true); // a read has met the peer's close_notify
    CAPTURE(at_end);
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, peer] = connect(executor);
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            auto playing = play_tls(std::move(peer), tls_role::client,
                                    [=](raw_peer& raw)
                                    {
                                        if (!at_end && raw.tls_read_some() != "")
                                            throw test::failure("data in place of a close_notify");
                                    });
            co_await stream.start_tls();
            if (at_end)
            {
                const std::error_code end = co_await read_error(stream);
                CHECK(end == asio::error::eof);
            }
            outcome first, second, read, written, started, ended;
            char byte = 0;
            stream.async_stop_tls({}, into(first));
            stream.async_stop_tls({}, into(second));
            stream.async_read_some(asio::buffer(&byte, 1), into(read));
            stream.async_write_some(asio::buffer("x", 1), into(written));
            stream.async_start_tls({}, into(started));
            stream.async_shutdown({}, into(ended));
            co_await finished(first);
            CHECK(!first.error);
            for (const outcome* each : {&second, &read, &written, &started, &ended})
            {
                co_await finished(*each);
                CHECK(each->error == us::errc::upgrade_in_progress);
            }
            co_await test::joined(std::move(playing));
        });
}

TEMPLATE_TEST_CASE("stop_tls: of a stream that is destroyed meanwhile it is operation_aborted", "", with_ssl_stream,
                   with_tls_stream)
{
    const int turns = GENERATE(0, 1, 2, 3, 5, 10);
    CAPTURE(turns);
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, peer] = connect(executor);
            std::optional<tcp_stream<TestType>> stream(std::in_place, std::move(socket), options_of(tls_role::client));
            auto playing = play(std::move(peer),
                                [](raw_peer& raw)
                                {
                                    handshake(raw, tls_role::client);
                                    hold_open(raw);
                                });
            co_await stream->start_tls();
            outcome stopped;
            stream->async_stop_tls({}, into(stopped));
            co_await test::turns(turns);
            stream.reset();
            co_await finished(stopped);
            CHECK(stopped.error == asio::error::operation_aborted);
            co_await test::joined(std::move(playing));
        });
}

TEMPLATE_TEST_CASE("stop_tls: of TLS within TLS the inner session ends, and the outer one goes on", "", with_ssl_stream,
                   with_tls_stream)
{
    using inner_stream = nested_stream<TestType>;
    using outer_stream = typename inner_stream::next_layer_type;
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto sockets = test::tcp_pair(executor);
            const auto in_tls = [&](tcp::socket socket, tls_role role) -> awaitable<std::unique_ptr<inner_stream>>
            {
                outer_stream outer(std::move(socket), options_of(role));
                co_await outer.start_tls();
                auto inner = std::make_unique<inner_stream>(std::move(outer), options_of(role));
                co_await inner->start_tls();
                co_await write(*inner, "inside\n");
                const std::string line = co_await read_line(*inner);
                CHECK(line == "inside\n");
                co_await inner->stop_tls();
                CHECK(inner->next_layer().is_tls());
                co_await write(*inner, "between\n");
                const std::string between = co_await read_line(*inner);
                CHECK(between == "between\n");
                co_return inner;
            };
            auto other = test::spawn(executor, [&] { return in_tls(std::move(sockets.second), tls_role::server); });
            const auto inner = co_await in_tls(std::move(sockets.first), tls_role::client);
            co_await other.join();
        });
}

TEMPLATE_TEST_CASE("stop_tls: one that is cancelled closes the stream", "", with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, peer] = connect(executor);
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            auto playing = play(std::move(peer),
                                [](raw_peer& raw)
                                {
                                    handshake(raw, tls_role::client);
                                    hold_open(raw);
                                });
            co_await stream.start_tls();
            asio::cancellation_signal signal;
            outcome stopped;
            stream.async_stop_tls({}, asio::bind_cancellation_slot(signal.slot(), into(stopped)));
            co_await test::turns();
            CHECK_FALSE(stopped.done);
            signal.emit(asio::cancellation_type::terminal);
            co_await finished(stopped);
            CHECK(stopped.error == asio::error::operation_aborted);
            CHECK_FALSE(stream.lowest_layer().is_open());
            const std::error_code later = co_await read_error(stream);
            CHECK(later == us::errc::stream_unusable);
            co_await test::joined(std::move(playing));
        });
}
