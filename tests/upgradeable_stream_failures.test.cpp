#include "support/upgrade_rig.hpp"

using namespace test::rig;

// Upgrades that are refused, or that fail

TEMPLATE_TEST_CASE("start_tls: without a context it is not_upgradeable, and the plain stream goes on", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream<TestType> stream(std::move(socket));
            const std::error_code error = co_await test::error_of(stream.start_tls());
            CHECK(error == us::errc::not_upgradeable);
            CHECK(!stream.is_tls());
            co_await write(stream, "still plain\n");
            const std::string line = raw.recv_line();
            CHECK(line == "still plain\n");
        });
}

TEMPLATE_TEST_CASE("start_tls: a second upgrade is already_tls, and the encrypted stream goes on", "", with_ssl_stream,
                   with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer =
                play_tls(std::move(raw), tls_role::client, [](test::raw_peer& p) { p.tls_write(p.tls_read_line()); });
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            SSL* const before = stream.native_handle();
            const std::error_code error = co_await test::error_of(stream.start_tls());
            CHECK(error == us::errc::already_tls);
            CHECK(stream.native_handle() == before);
            co_await write(stream, "still fine\n");
            const std::string line = co_await read_line(stream);
            CHECK(line == "still fine\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE(
    "start_tls: while it runs, reads, writes, shutdowns and upgrades are upgrade_in_progress, and it goes on", "",
    with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream<TestType> stream(std::move(socket), options_of(role));
            outcome upgraded;
            stream.async_start_tls({}, into(upgraded));
            std::error_code error = co_await read_error(stream);
            CHECK(error == us::errc::upgrade_in_progress);
            error = co_await write_error(stream);
            CHECK(error == us::errc::upgrade_in_progress);
            error = co_await shutdown_error(stream);
            CHECK(error == us::errc::upgrade_in_progress);
            error = co_await test::error_of(stream.start_tls());
            CHECK(error == us::errc::upgrade_in_progress);
            CHECK(!stream.is_tls());
            CHECK(!stream.session());
            CHECK(!upgraded.done);
            auto peer = play_tls(std::move(raw), role, [](test::raw_peer& p) { p.tls_write(p.tls_read_line()); });
            co_await finished(upgraded);
            CHECK(!upgraded.error);
            co_await write(stream, "line\n");
            const std::string line = co_await read_line(stream);
            CHECK(line == "line\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("start_tls: an upgrade that fails closes the stream, which never goes on in plain text", "",
                   with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    CAPTURE(int(role));
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [role](test::raw_peer& p)
                             {
                                 std::string refusal;
                                 try
                                 {
                                     auto settings = test::localhost_client();
                                     settings.ca_file = test::unrelated_authority().ca_file();
                                     role == tls_role::client ? handshake(p, role) : p.tls_connect(settings);
                                     p.tls_read_all();
                                 }
                                 catch (const test::failure& error)
                                 {
                                     refusal = error.what();
                                 }
                                 return std::pair(refusal, p.recv_all());
                             });
            tcp_stream<TestType> stream(std::move(socket), options_of(role));
            std::error_code error = co_await test::error_of(stream.start_tls({.server_hostname = "elsewhere.test"}));
            CHECK(error);
            CHECK(!stream.is_tls());
            CHECK(!stream.session());
            CHECK(!stream.lowest_layer().is_open());
            const std::error_code first = error;
            error = co_await write_error(stream);
            CHECK(error == first);
            error = co_await read_error(stream);
            CHECK(error == first);
            error = co_await test::error_of(stream.start_tls({.server_hostname = "localhost"}));
            CHECK(error == first);
            const auto [refusal, rest] = co_await test::joined(std::move(peer));
            CHECK_THAT(refusal, test::contains(role == tls_role::client ? "alert" : "verify failed"));
            CHECK(test::tls_records(rest).all_tls);
        });
}

TEMPLATE_TEST_CASE("start_tls: a peer that hangs up during the handshake is an error, not a success", "",
                   with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream<TestType> stream(std::move(socket), options_of(role));
            raw.send_fin();
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls());
            CHECK((error.code() == asio::ssl::error::stream_truncated || error.code() == asio::error::eof));
            CHECK(error.received().empty());
            CHECK(!stream.lowest_layer().is_open());
        });
}

// Bytes that came before the handshake (DESIGN section 6)

TEMPLATE_TEST_CASE(
    "start_tls: a ClientHello in the same segment as STARTTLS is not lost, whatever part of it was read before", "",
    with_ssl_stream, with_tls_stream)
{
    const auto read_before = GENERATE(0, 1, 2, 5, 6, 100, -1, 20'000, 40'000);
    const std::size_t padding = read_before > 100 ? 40'000 : 0;
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(read_before, chunk);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_client();
                                 settings.padding = padding;
                                 settings.send_before = "STARTTLS\n";
                                 p.tls_connect(settings);
                                 p.tls_write(p.tls_read_line());
                                 p.tls_shutdown();
                             });
            chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), chunk),
                                            options_of(tls_role::server));
            const std::string line = co_await read_exactly(stream, 9);
            CHECK(line == "STARTTLS\n");
            std::string received;
            if (read_before > 0)
                received = co_await read_exactly(stream, std::size_t(read_before));
            if (read_before < 0)
            {
                received = co_await read_exactly(stream, 5);
                const auto size =
                    static_cast<unsigned char>(received[3]) * 256u + static_cast<unsigned char>(received[4]);
                received += co_await read_exactly(stream, size);
            }
            co_await stream.start_tls({.received = received});
            co_await write(stream, "220 now over TLS\r\n");
            const std::string echoed = co_await read_line(stream);
            CHECK(echoed == "220 now over TLS\r\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("start_tls: a ClientHello that async_read_until took beyond STARTTLS is not lost", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_client();
                                 settings.send_before = "STARTTLS\n";
                                 p.tls_connect(settings);
                                 p.tls_write(p.tls_read_line());
                                 p.tls_shutdown();
                             });
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::server));
            std::string buffer;
            const std::size_t size =
                co_await asio::async_read_until(stream, asio::dynamic_buffer(buffer), '\n', use_awaitable);
            CHECK(buffer.size() > size);
            co_await stream.start_tls({.received = std::string_view(buffer).substr(size)});
            co_await write(stream, "line\n");
            const std::string echoed = co_await read_line(stream);
            CHECK(echoed == "line\n");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("start_tls: plain text that a client appended to STARTTLS is plaintext_injection, and is told", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::server));
            auto error =
                co_await test::exception_of<us::tls_error>(stream.start_tls({.received = "RCPT TO:<evil>\r\n"}));
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == "RCPT TO:<evil>\r\n");
            CHECK(!stream.lowest_layer().is_open());
            CHECK(!stream.is_tls());
            CHECK(raw.recv_all().empty());
            const std::error_code later = co_await write_error(stream);
            CHECK(later);
        });
}

TEMPLATE_TEST_CASE("start_tls: bytes that only begin like a TLS handshake are plaintext_injection", "", with_ssl_stream,
                   with_tls_stream)
{
    const auto bytes = GENERATE("\x16"s + "\x02",
                                "\x16"
                                "A"s,
                                "\x17\x03"s, "\x15\x03\x03"s, "\x14\x03\x03"s, "\0"s, std::string(1, '\x80'));
    asio::io_context io;
    const std::error_code error =
        test::run_on(io,
                     [&]() -> asio::awaitable<std::error_code>
                     {
                         auto [socket, raw] = connect(co_await asio::this_coro::executor);
                         tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::server));
                         co_return co_await test::error_of(stream.start_tls({.received = bytes}));
                     });
    CHECK(error == us::errc::plaintext_injection);
}

TEMPLATE_TEST_CASE(
    "start_tls: plain text behind a ClientHello in the bytes received is plaintext_injection, and is told", "",
    with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_client();
                                 settings.send_after = "RCPT TO:<evil>\r\n";
                                 try
                                 {
                                     p.tls_connect(settings);
                                     p.tls_read_all();
                                 }
                                 catch (const std::exception&)
                                 {
                                     return true;
                                 }
                                 return false;
                             });
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::server));
            std::string received;
            co_await asio::async_read_until(stream, asio::dynamic_buffer(received), "<evil>\r\n", use_awaitable);
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls({.received = received}));
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == "RCPT TO:<evil>\r\n");
            CHECK(!stream.lowest_layer().is_open());
            const bool refused = co_await test::joined(std::move(peer));
            CHECK(refused);
        });
}

TEMPLATE_TEST_CASE("start_tls: plain text behind a ClientHello on the socket fails the handshake", "", with_ssl_stream,
                   with_tls_stream)
{
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_client();
                                 settings.send_after = "RCPT TO:<evil>\r\n";
                                 try
                                 {
                                     p.tls_connect(settings);
                                     p.tls_read_all();
                                 }
                                 catch (const std::exception&)
                                 {
                                     return true;
                                 }
                                 return false;
                             });
            chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), chunk),
                                            options_of(tls_role::server));
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls());
            CHECK(error.code());
            CHECK(!stream.lowest_layer().is_open());
            const bool refused = co_await test::joined(std::move(peer));
            CHECK(refused);
        });
}

TEMPLATE_TEST_CASE(
    "start_tls: any byte that a client received before is plaintext_injection, even if it looks like TLS", "",
    with_ssl_stream, with_tls_stream)
{
    const auto bytes = GENERATE("4"s, "454 TLS not available\r\n"s, "\x16\x03\x03"s);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls({.received = bytes}));
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == bytes);
            CHECK(!stream.lowest_layer().is_open());
            CHECK(raw.recv_all().empty());
        });
}

TEMPLATE_TEST_CASE(
    "start_tls: a peer's plain text in place of TLS is plaintext_injection, and is told to its end or a bound", "",
    with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const std::string text = "454 TLS not available\r\n";
    CAPTURE(int(role), chunk);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            raw.send_all(text);
            chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), chunk), options_of(role));
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls());
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received().size() >= 5);
            CHECK(text.starts_with(error.received()));
            CHECK_THAT(error.what(), test::contains("answered with \"454 T"));
            if (chunk == 0)
            {
                CHECK(error.received() == text);
                CHECK_THAT(error.what(), test::contains("answered with \"454 TLS not available\""));
            }
            CHECK(!stream.lowest_layer().is_open());
        });
}

TEMPLATE_TEST_CASE("start_tls: no more than 512 bytes of what came in place of TLS are told", "", with_ssl_stream,
                   with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const bool received = GENERATE(false, true);
    const std::string text = "454 " + std::string(5000, 'x');
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            if (!received)
                raw.send_all(text);
            tcp_stream<TestType> stream(std::move(socket), options_of(role));
            us::tls_options options;
            if (received)
                options.received = text;
            const auto error = co_await test::exception_of<us::tls_error>(stream.start_tls(options));
            CHECK(error.code() == us::errc::plaintext_injection);
            CHECK(error.received() == text.substr(0, 512));
        });
}

// Deadlines

TEMPLATE_TEST_CASE("start_tls: a peer that never answers is a handshake_timeout, which closes the stream", "",
                   with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream<TestType> stream(std::move(socket), options_of(role));
            std::error_code error = co_await test::error_of(stream.start_tls({.handshake_timeout = 5ms}));
            CHECK(error == us::errc::handshake_timeout);
            CHECK(error == std::errc::timed_out);
            CHECK(!stream.lowest_layer().is_open());
            error = co_await write_error(stream);
            CHECK(error == us::errc::handshake_timeout);
            raw.recv_all();
        });
}

TEMPLATE_TEST_CASE("start_tls: the handshake's deadline is one for all of it, so bytes that drip do not put it off", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [ours, theirs] = test::tcp_pair(executor);
            tcp_stream<TestType> stream(std::move(ours), options_of(tls_role::server));
            const auto dripping =
                test::spawn(executor,
                            [&socket = theirs]() -> asio::awaitable<void>
                            {
                                asio::steady_timer timer(socket.get_executor());
                                asio::error_code error;
                                co_await asio::async_write(
                                    socket, asio::buffer("\x16\x03\x01\x3f\xff\x01\x00\x3f\xfb", 9), use_awaitable);
                                while (!error)
                                {
                                    timer.expires_after(1ms);
                                    co_await timer.async_wait(use_awaitable);
                                    co_await socket.async_write_some(asio::buffer("\x03", 1),
                                                                     asio::redirect_error(use_awaitable, error));
                                }
                            });
            const std::error_code error = co_await test::error_of(stream.start_tls({.handshake_timeout = 30ms}));
            CHECK(error == us::errc::handshake_timeout);
            co_await dripping.join();
        });
}

TEMPLATE_TEST_CASE(
    "upgradeable_stream: a peer that never answers close_notify is a shutdown_timeout, which closes the stream", "",
    with_ssl_stream, with_tls_stream)
{
    const bool at_the_call = GENERATE(false, true);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 const std::string data = p.tls_read_all();
                                 hold_open(p);
                                 return data;
                             });
            auto options = options_of(tls_role::client);
            if (!at_the_call)
                options.shutdown_timeout = 5ms;
            tcp_stream<TestType> stream(std::move(socket), options);
            co_await stream.start_tls();
            us::shutdown_options shutdown;
            if (at_the_call)
                shutdown.timeout = 5ms;
            const std::error_code error = co_await test::error_of(stream.async_shutdown(shutdown, use_awaitable));
            CHECK(error == us::errc::shutdown_timeout);
            CHECK(error == std::errc::timed_out);
            CHECK(!stream.lowest_layer().is_open());
            const std::string data = co_await test::joined(std::move(peer));
            CHECK(data.empty());
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a peer that goes on sending does not put off the shutdown's deadline", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 try
                                 {
                                     while (true)
                                         p.tls_write("more");
                                 }
                                 catch (const std::exception&)
                                 {
                                 }
                             });
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            const std::error_code error =
                co_await test::error_of(stream.async_shutdown({.timeout = 20ms}, use_awaitable));
            CHECK(error == us::errc::shutdown_timeout);
            co_await test::joined(std::move(peer));
        });
}

// The end of a connection

TEMPLATE_TEST_CASE("upgradeable_stream: a plain shutdown sends a FIN, and reading goes on", "", with_ssl_stream,
                   with_tls_stream)
{
    const auto what = GENERATE(asio::socket_base::shutdown_send, asio::socket_base::shutdown_both);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw), [](test::raw_peer& p) { p.send_all(p.recv_all() + " to the end"); });
            tcp_stream<TestType> stream(std::move(socket));
            co_await write(stream, "read");
            co_await stream.async_shutdown({.what = what}, use_awaitable);
            const auto [data, error] = co_await read_to_error(stream);
            CHECK(data == "read to the end");
            CHECK(error == asio::error::eof);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: shutdown_send under TLS 1.3 sends close_notify while a read goes on", "",
                   with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(int(role), chunk);
    const std::string data = test::pattern(4).bytes(0, 40'000);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 handshake(p, role);
                                 const std::string request = p.tls_read_all();
                                 p.tls_write(data);
                                 p.tls_shutdown_send_only();
                                 return request;
                             });
            chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), chunk), options_of(role));
            co_await stream.start_tls();
            const auto reading = test::spawn(executor, [&] { return read_to_error(stream); });
            co_await write(stream, "request");
            co_await stream.async_shutdown({.what = asio::socket_base::shutdown_send}, use_awaitable);
            const auto [answer, error] = co_await reading.join();
            CHECK((answer == data));
            CHECK(error == asio::error::eof);
            const std::string request = co_await test::joined(std::move(peer));
            CHECK(request == "request");
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a write after shutdown_send is an error", "", with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::client, [](test::raw_peer&) {});
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            co_await stream.async_shutdown({.what = asio::socket_base::shutdown_send}, use_awaitable);
            const std::error_code error = co_await write_error(stream);
            CHECK(error);
            co_await stream.async_shutdown({}, use_awaitable);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: shutdown_both awaits the peer's close_notify, and drops what comes before it",
                   "", with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    CAPTURE(int(role), version);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 auto settings =
                                     role == tls_role::client ? test::localhost_server() : test::localhost_client();
                                 settings.max_version = version;
                                 role == tls_role::client ? p.tls_accept(settings) : p.tls_connect(settings);
                                 p.tls_write(std::string(100'000, 'x'));
                                 p.tls_shutdown();
                                 return p.recv_all();
                             });
            std::optional<tcp_stream<TestType>> stream(std::in_place, std::move(socket), options_of(role));
            co_await stream->start_tls();
            CHECK(stream->session()->version == (version == TLS1_2_VERSION ? "TLSv1.2" : "TLSv1.3"));
            co_await shut_down(*stream);
            co_await shut_down(*stream);
            stream.reset();
            const std::string rest = co_await test::joined(std::move(peer));
            CHECK(rest.empty());
        });
}

TEMPLATE_TEST_CASE(
    "upgradeable_stream: a shutdown that the peer answers by hanging up is stream_truncated, and so are later reads",
    "", with_ssl_stream, with_tls_stream)
{
    const bool suppress = GENERATE(false, true);
    CAPTURE(suppress);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_read_all();
                             });
            auto options = options_of(tls_role::client);
            options.suppress_ragged_eofs = suppress;
            tcp_stream<TestType> stream(std::move(socket), options);
            co_await stream.start_tls();
            asio::error_code error;
            co_await stream.async_shutdown({}, asio::redirect_error(use_awaitable, error));
            CHECK(error == (suppress ? asio::error_code() : asio::error_code(asio::ssl::error::stream_truncated)));
            const std::error_code read = co_await read_error(stream);
            CHECK(read == (suppress ? asio::error_code(asio::error::eof) : error));
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a plain stream that is destroyed with bytes unread is reset, not ended", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            std::optional<tcp_stream<TestType>> stream(std::in_place, std::move(socket));
            raw.send_all("unread");
            co_await test::eventually([&] { return stream->lowest_layer().available() > 0; });
            stream.reset();
            std::error_code error;
            try
            {
                raw.recv_all();
            }
            catch (const std::system_error& e)
            {
                error = e.code();
            }
            CHECK(error == std::errc::connection_reset);
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: close_notify is eof, for every later read too", "", with_ssl_stream,
                   with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play_tls(std::move(raw), tls_role::client, [](test::raw_peer& p) { p.tls_write("data"); });
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            const auto [data, error] = co_await read_to_error(stream);
            CHECK(data == "data");
            CHECK(error == asio::error::eof);
            const std::error_code again = co_await read_error(stream);
            CHECK(again == asio::error::eof);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE(
    "upgradeable_stream: an end without close_notify is stream_truncated, or eof with suppress_ragged_eofs", "",
    with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool suppress = GENERATE(false, true);
    CAPTURE(int(role), chunk, suppress);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 handshake(p, role);
                                 p.tls_write("data");
                                 p.send_fin();
                                 hold_open(p);
                             });
            auto options = options_of(role);
            options.suppress_ragged_eofs = suppress;
            std::optional<chunked_stream<TestType>> stream(std::in_place,
                                                           test::chunked_stream(std::move(socket), chunk), options);
            co_await stream->start_tls();
            const auto [data, error] = co_await read_to_error(*stream);
            const std::error_code expected =
                suppress ? asio::error_code(asio::error::eof) : asio::error_code(asio::ssl::error::stream_truncated);
            CHECK(data == "data");
            CHECK(error == expected);
            const std::error_code again = co_await read_error(*stream);
            CHECK(again == expected);
            stream.reset();
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: an end in the middle of a record is never eof without suppress_ragged_eofs", "",
                   with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    CAPTURE(int(role));
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [role](test::raw_peer& p)
                             {
                                 handshake(p, role);
                                 p.send_all("\x17\x03\x03\x01"sv);
                                 p.send_fin();
                                 hold_open(p);
                             });
            std::optional<tcp_stream<TestType>> stream(std::in_place, std::move(socket), options_of(role));
            co_await stream->start_tls();
            const std::error_code error = co_await read_error(*stream);
            CHECK(error == asio::ssl::error::stream_truncated);
            stream.reset();
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: plain text after the upgrade is an error, not data, and writes fail then too", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_write("data");
                                 p.send_all("plain text, and more of it\r\n");
                                 hold_open(p);
                             });
            std::optional<tcp_stream<TestType>> stream(std::in_place, std::move(socket), options_of(tls_role::client));
            co_await stream->start_tls();
            const auto [data, error] = co_await read_to_error(*stream);
            CHECK(data == "data");
            CHECK(error.category() == asio::error::get_ssl_category());
            const std::error_code again = co_await read_error(*stream);
            CHECK(again == error);
            asio::error_code written;
            co_await asio::async_write(*stream, asio::buffer("more", 4),
                                       asio::redirect_error(asio::use_awaitable, written));
            CHECK(written);
            stream.reset();
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a reset is told by the first read after it, and by all later ones", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_read_line();
                                 p.reset();
                             });
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            co_await write(stream, "reset\n");
            for (int i = 0; i < 3; ++i)
            {
                const std::error_code error = co_await read_error(stream);
                CHECK(error == asio::error::connection_reset);
            }
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: writes to a peer that is gone fail, now or later, and never for good succeed",
                   "", with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_read_line();
                                 p.reset();
                             });
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            co_await write(stream, "reset\n");
            co_await test::joined(std::move(peer));
            std::error_code error = co_await test::error_of(write(stream, flood()));
            CHECK((error == asio::error::broken_pipe || error == asio::error::connection_reset));
            error = co_await write_error(stream);
            CHECK(error);
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a shutdown with nothing left to do completes outside its initiating function",
                   "", with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.tls_shutdown();
                             });
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
            co_await stream.start_tls();
            co_await shut_down(stream);
            bool initiating = true;
            bool completed_inside = false;
            std::optional<asio::error_code> result;
            stream.async_shutdown({},
                                  [&](const asio::error_code& error)
                                  {
                                      completed_inside = initiating;
                                      result = error;
                                  });
            initiating = false;
            co_await test::eventually([&] { return result.has_value(); });
            CHECK_FALSE(completed_inside);
            CHECK(*result == asio::error_code());
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a shutdown after an end without close_notify sends its own and awaits nothing",
                   "", with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const bool suppress = GENERATE(false, true);
    CAPTURE(int(role), suppress);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 handshake(p, role);
                                 p.send_fin();
                                 return p.tls_read_all();
                             });
            auto options = options_of(role);
            options.suppress_ragged_eofs = suppress;
            std::optional<tcp_stream<TestType>> stream(std::in_place, std::move(socket), options);
            co_await stream->start_tls();
            co_await read_error(*stream);
            asio::error_code error;
            const us::shutdown_options within = {.timeout = std::chrono::seconds(3)};
            co_await stream->async_shutdown(within, asio::redirect_error(asio::use_awaitable, error));
            CHECK(error == (suppress ? asio::error_code() : asio::error_code(asio::ssl::error::stream_truncated)));
            stream.reset();
            const std::string rest = co_await test::joined(std::move(peer));
            CHECK(rest.empty());
        });
}

TEMPLATE_TEST_CASE("start_tls: the alert of an upgrade that fails is followed by FIN, though bytes are left unread", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            raw.send_all("\x16\x03\x01\x00\x04\x01\x00\x00\x00"s + std::string(100'000, 'x'));
            tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::server));
            const std::error_code error = co_await test::error_of(stream.start_tls());
            CHECK(error.category() == asio::error::get_ssl_category());
            const std::string answer = raw.recv_all();
            CHECK(answer.substr(0, 2) == "\x15\x03");
        });
}
