#include "support/upgrade_rig.hpp"

using namespace test::rig;

// Reading and writing

TEMPLATE_TEST_CASE(
    "upgradeable_stream: lines and larger data arrive whole before and after the upgrade, however they are split", "",
    with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(int(role), chunk);
    const std::string data = test::pattern(3).bytes(0, chunk == 1 ? 20'000 : 200'000);

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
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::server));
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
