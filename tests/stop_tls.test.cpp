// TLS that ends while the connection goes on: upgradeable_stream::stop_tls and stream_writer::stop_tls.

#include "support/stream_links.hpp"
#include "support/upgrade_rig.hpp"

using namespace test::rig;
using asio::awaitable;
using test::error_of;
using test::raw_peer;

namespace
{

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
                                    SSL_set_block_padding(raw.ssl(), padding);
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
             SSL_set_block_padding(raw.ssl(), 128);
             raw.send_all(close_notify(raw) + "\x17\x03"s);
         },
         [=](const std::error_code& e) // Asio's layer notices it itself
         { return e == std::errc::protocol_error || e == asio::ssl::error::stream_truncated; }},
        {"a record behind a close_notify that is as long as any",
         [](raw_peer& raw)
         {
             SSL_set_block_padding(raw.ssl(), 128);
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
    using outer_stream = tcp_stream<TestType>;
    using inner_stream = stream_over<TestType, outer_stream>;
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

TEST_CASE("stop_tls: a pair goes back to plain text and over to TLS again, and each time the old handles are void")
{
    const tls_role role = GENERATE(tls_role::client, tls_role::server);
    const std::size_t chunk = GENERATE(std::size_t(1), std::size_t(5), std::size_t(64), std::size_t(1024), std::size_t(0));
    CAPTURE(role, chunk);
    constexpr int rounds = 3;
    test::run(
        [&]() -> awaitable<void>
        {
            us::connection_options options;
            options.ssl = role == tls_role::client ? &test::client_context() : &test::server_context();
            options.upgradeable = true;
            options.role = role;
            test::raw_link link = co_await test::link_with_raw_peer(options, chunk);
            auto playing = play(std::move(link.peer),
                                [=](raw_peer& raw)
                                {
                                    for (int i = 0; i < rounds; ++i)
                                    {
                                        raw.send_all(raw.recv_line());
                                        handshake(raw, role);
                                        raw.tls_write(raw.tls_read_line() + "unread\n");
                                        if (raw.tls_read_all() != "queued\n")
                                            throw test::failure("what was queued did not come through TLS");
                                        raw.send_all(close_notify(raw) + "plain\n");
                                    }
                                    raw.send_all(raw.recv_line());
                                });
            for (int i = 0; i < rounds; ++i)
            {
                link.writer.write("go over\n");
                const std::string over = co_await link.reader.readline();
                CHECK(over == "go over\n");
                std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
                link.writer.write("encrypted\n");
                const std::string encrypted = co_await link.reader.readline();
                CHECK(encrypted == "encrypted\n");
                CHECK(link.writer.get_extra_info<"ssl_object">() != nullptr);
                us::stream_reader old_reader = link.reader;
                us::stream_writer old_writer = link.writer;
                link.writer.write("queued\n");
                std::tie(link.reader, link.writer) = co_await link.writer.stop_tls();
                CHECK_FALSE(link.reader.is_tls());
                CHECK(link.writer.get_extra_info<"ssl_object">() == nullptr);
                CHECK_FALSE(link.writer.get_extra_info<"version">());
                CHECK_THROWS_AS(old_writer.write("x"), std::system_error);
                const std::error_code old = co_await error_of(old_reader.readline());
                CHECK(old == us::errc::connection_upgraded);
                const std::string unread = co_await link.reader.readline();
                CHECK(unread == "unread\n");
                const std::string plain = co_await link.reader.readline();
                CHECK(plain == "plain\n");
            }
            link.writer.write("the end\n");
            const std::string last = co_await link.reader.readline();
            CHECK(last == "the end\n");
            co_await test::joined(std::move(playing));
            const std::string end = co_await link.reader.readline();
            CHECK(end.empty());
        });
}

TEST_CASE("stop_tls: both ends of a connection agree on it in either order")
{
    const bool answered_first = GENERATE(false, true);
    CAPTURE(answered_first);
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options;
            options.ssl = &test::client_context();
            test::stream_link link = co_await test::link_of_streams(options);
            for (int i = 0; i < 3; ++i)
            {
                auto other = test::spawn(executor,
                                         [&]() -> awaitable<void>
                                         {
                                             if (answered_first)
                                             {
                                                 const std::string end = co_await link.peer_reader.read();
                                                 if (!end.empty())
                                                     throw test::failure("data in place of a close_notify");
                                             }
                                             std::tie(link.peer_reader, link.peer_writer) =
                                                 co_await link.peer_writer.stop_tls();
                                         });
                std::tie(link.reader, link.writer) = co_await link.writer.stop_tls();
                co_await other.join();
                link.writer.write("plain\n");
                const std::string plain = co_await link.peer_reader.readline();
                CHECK(plain == "plain\n");
                other = test::spawn(executor,
                                    [&]() -> awaitable<void> {
                                        std::tie(link.peer_reader, link.peer_writer) =
                                            co_await link.peer_writer.start_tls();
                                    });
                std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
                co_await other.join();
                link.writer.write("encrypted\n");
                const std::string encrypted = co_await link.peer_reader.readline();
                CHECK(encrypted == "encrypted\n");
            }
        });
}

TEST_CASE("stop_tls: what a pair cannot do now leaves it as it was")
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options;
            options.ssl = &test::client_context();
            options.upgradeable = true;
            test::stream_link link = co_await test::link_of_streams(options);
            const std::error_code plain = co_await error_of(link.writer.stop_tls());
            CHECK(plain == us::errc::not_tls);
            auto other = test::spawn(
                executor, [&]() -> awaitable<void>
                { std::tie(link.peer_reader, link.peer_writer) = co_await link.peer_writer.start_tls(); });
            std::tie(link.reader, link.writer) = co_await link.writer.start_tls();
            co_await other.join();
            auto reading = test::spawn(executor, [&] { return link.reader.readline(); });
            co_await test::turns();
            const std::error_code busy = co_await error_of(link.writer.stop_tls());
            CHECK(busy == us::errc::operation_in_progress);
            link.peer_writer.write("still here\n");
            const std::string line = co_await reading.join();
            CHECK(line == "still here\n");
        });
}

TEST_CASE("stop_tls: while it runs nothing is read or written, and a peer that is silent is dropped in time")
{
    test::run(
        [&]() -> awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            us::connection_options options;
            options.ssl = &test::client_context();
            options.ssl_shutdown_timeout = 200ms;
            test::raw_link link = co_await test::link_with_raw_peer(options);
            auto stopping = test::spawn(executor, [&] { return link.writer.stop_tls(); });
            co_await test::turns();
            CHECK_THROWS_AS(link.writer.write("x"), std::system_error);
            const std::error_code reading = co_await error_of(link.reader.readline());
            CHECK(reading == us::errc::upgrade_in_progress);
            const std::error_code second = co_await error_of(link.writer.stop_tls());
            CHECK(second == us::errc::upgrade_in_progress);
            const std::error_code late = co_await error_of(stopping.join());
            CHECK(late == us::errc::shutdown_timeout);
            CHECK(link.writer.is_closing());
            CHECK_FALSE(link.writer.get_extra_info<"socket">());
        });
}
