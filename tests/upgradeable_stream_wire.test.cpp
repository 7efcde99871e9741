#include "support/upgrade_rig.hpp"

using namespace test::rig;

// Lifetime

TEMPLATE_TEST_CASE("upgradeable_stream: destroying it closes the socket, and pending operations are operation_aborted",
                   "", with_ssl_stream, with_tls_stream)
{
    const bool encrypted = GENERATE(false, true);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            std::promise<void> destroyed;
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 if (encrypted)
                                     handshake(p, tls_role::client);
                                 destroyed.get_future().get();
                                 hold_open(p);
                             });
            auto stream = std::make_unique<chunked_stream<TestType>>(test::chunked_stream(std::move(socket), 1000),
                                                                     options_of(tls_role::client));
            if (encrypted)
                co_await stream->start_tls();
            std::array<char, 16> bytes;
            outcome read, written;
            stream->async_read_some(asio::buffer(bytes), into(read));
            asio::async_write(*stream, asio::buffer(flood()), into(written));
            co_await stuck(*stream);
            CHECK((!read.done && !written.done));
            stream.reset();
            CHECK((!read.done && !written.done));
            co_await finished(read);
            co_await finished(written);
            CHECK(read.error == asio::error::operation_aborted);
            CHECK(written.error == asio::error::operation_aborted);
            destroyed.set_value();
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: destroying it with an upgrade or a shutdown pending is operation_aborted", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            for (const auto role : {tls_role::client, tls_role::server})
            {
                auto [socket, raw] = connect(executor);
                outcome upgraded;
                {
                    tcp_stream<TestType> stream(std::move(socket), options_of(role));
                    stream.async_start_tls({}, into(upgraded));
                    co_await asio::post(executor, use_awaitable);
                }
                co_await finished(upgraded);
                CHECK(upgraded.error == asio::error::operation_aborted);
                raw.recv_all();
            }
            auto [socket, raw] = connect(executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 hold_open(p);
                             });
            outcome shut;
            {
                tcp_stream<TestType> stream(std::move(socket), options_of(tls_role::client));
                co_await stream.start_tls();
                stream.async_shutdown({}, into(shut));
                co_await asio::post(executor, use_awaitable);
            }
            co_await finished(shut);
            CHECK(shut.error == asio::error::operation_aborted);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a stream that is moved while operations are pending completes them", "",
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
                                 encrypted ? p.tls_write(p.tls_read_exactly(4)) : p.send_all(p.recv_exactly(4));
                                 if (encrypted)
                                     p.tls_shutdown();
                             });
            tcp_stream<TestType> first(std::move(socket), options_of(tls_role::client));
            outcome upgraded;
            std::optional<tcp_stream<TestType>> second;
            if (encrypted)
            {
                first.async_start_tls({}, into(upgraded));
                second.emplace(std::move(first));
                co_await finished(upgraded);
                CHECK(!upgraded.error);
                CHECK(second->is_tls());
            }
            else
                second.emplace(std::move(first));
            std::array<char, 16> bytes;
            outcome read, written;
            second->async_read_some(asio::buffer(bytes), into(read));
            second->async_write_some(asio::buffer("data", 4), into(written));
            tcp_stream<TestType> third = std::move(*second);
            second.reset();
            co_await finished(read);
            CHECK(std::string_view(bytes.data(), read.size) == "data");
            co_await finished(written);
            CHECK(written.size == 4);
            co_await shut_down(third);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: a stream that is assigned over closes, and what is assigned goes on", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [old_socket, old_raw] = connect(executor);
            auto [new_socket, new_raw] = connect(executor);
            tcp_stream<TestType> stream(std::move(old_socket));
            tcp_stream<TestType> other(std::move(new_socket));
            std::array<char, 16> old_bytes, new_bytes;
            outcome old_read, new_read;
            stream.async_read_some(asio::buffer(old_bytes), into(old_read));
            other.async_read_some(asio::buffer(new_bytes), into(new_read));
            stream = std::move(other);
            co_await finished(old_read);
            CHECK(old_read.error == asio::error::operation_aborted);
            CHECK(old_raw.recv_all().empty());
            new_raw.send_all("data");
            co_await finished(new_read);
            CHECK(std::string_view(new_bytes.data(), new_read.size) == "data");
            co_await write(stream, "answer\n");
            const std::string line = new_raw.recv_line();
            CHECK(line == "answer\n");
        });
}

TEMPLATE_TEST_CASE("upgradeable_stream: an io_context that goes away with operations pending leaks nothing", "",
                   with_ssl_stream, with_tls_stream)
{
    std::array<char, 16> bytes;
    outcome read, upgraded;
    {
        asio::io_context io;
        auto [first_socket, first_raw] = connect(io.get_executor());
        auto [second_socket, second_raw] = connect(io.get_executor());
        tcp_stream<TestType> first(std::move(first_socket), options_of(tls_role::client));
        tcp_stream<TestType> second(std::move(second_socket));
        first.async_start_tls({}, into(upgraded));
        second.async_read_some(asio::buffer(bytes), into(read));
        io.poll();
    }
    CHECK((!read.done && !upgraded.done));
}

// Verification of the server

namespace
{

/// What the upgrade of a client to `name` gives when the server has a certificate for these names.
template <typename Layer>
std::optional<us::tls_error> verify(const std::string& name, const test::issued& certificate,
                                    std::optional<std::string>* sni = nullptr)
{
    return test::run(
        [&]() -> asio::awaitable<std::optional<us::tls_error>>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 test::tls_settings settings;
                                 settings.certificate_file = certificate.certificate_file;
                                 settings.key_file = certificate.key_file;
                                 std::optional<std::string> seen;
                                 try
                                 {
                                     p.tls_accept(settings);
                                     if (const char* given = SSL_get_servername(p.ssl(), TLSEXT_NAMETYPE_host_name))
                                         seen = given;
                                     p.tls_shutdown();
                                 }
                                 catch (const std::exception&)
                                 {
                                 }
                                 return seen;
                             });
            std::optional<us::tls_error> result;
            {
                tcp_stream<Layer> stream(std::move(socket), {.ssl = &test::client_context(), .server_hostname = name});
                try
                {
                    co_await stream.start_tls();
                    co_await shut_down(stream);
                }
                catch (const us::tls_error& error)
                {
                    result = error;
                }
            }
            auto seen = co_await test::joined(std::move(peer));
            if (sni)
                *sni = seen;
            co_return result;
        });
}

test::issued certificate_for(const std::vector<std::string>& dns_names, const std::vector<std::string>& addresses = {},
                             const std::string& common_name = "test")
{
    return test::authority().issue({.common_name = common_name, .dns_names = dns_names, .ip_addresses = addresses});
}

} // namespace

TEMPLATE_TEST_CASE("start_tls: a server's DNS names and IP addresses are accepted, in each form of the name asked for",
                   "", with_ssl_stream, with_tls_stream)
{
    const auto certificate = certificate_for({"host.test", "*.wild.test", "xn--bcher-kva.test"}, {"127.0.0.1", "::1"});
    for (const char* name : {"host.test", "HOST.test", "host.test.", "a.wild.test", "xn--bcher-kva.test", "127.0.0.1",
                             "::1", "[::1]", "0:0:0:0:0:0:0:1"})
    {
        CAPTURE(name);
        const auto error = verify<TestType>(name, certificate);
        CHECK(!error);
    }
}

TEMPLATE_TEST_CASE("start_tls: names that a certificate is not for are refused, and tls_error says which and why", "",
                   with_ssl_stream, with_tls_stream)
{
    const auto certificate =
        certificate_for({"host.test", "*.wild.test", "f*.partial.test", "10.0.0.1", "nul.test\0.evil.test"s},
                        {"127.0.0.1", "::1"}, "common.test");
    for (const char* name : {"other.test", "sub.host.test", "test", "common.test", "wild.test", "a.b.wild.test",
                             "foo.partial.test", "nul.test"})
    {
        CAPTURE(name);
        const auto error = verify<TestType>(name, certificate);
        REQUIRE(error);
        CHECK(error->verify_result() == X509_V_ERR_HOSTNAME_MISMATCH);
        CHECK(error->code().category() == asio::error::get_ssl_category());
        CHECK_THAT(error->what(), test::contains(std::string("\"") + name + "\""));
        CHECK_THAT(error->what(), test::contains("CN=common.test"));
        CHECK_THAT(error->what(), test::contains("it is for DNS:host.test, DNS:*.wild.test"));
        CHECK_THAT(error->what(), test::contains("DNS:nul.test\\x00.evil.test and 2 more"));
        CHECK_THAT(error->what(), test::contains(X509_verify_cert_error_string(X509_V_ERR_HOSTNAME_MISMATCH)));
        CHECK(error->received().empty());
    }
    for (const char* name : {"127.0.0.2", "10.0.0.1", "::2", "[::2]", "::ffff:127.0.0.1"})
    {
        CAPTURE(name);
        const auto error = verify<TestType>(name, certificate);
        REQUIRE(error);
        CHECK(error->verify_result() == X509_V_ERR_IP_ADDRESS_MISMATCH);
    }
}

TEMPLATE_TEST_CASE("start_tls: an expired, a future or an untrusted certificate is refused, and tls_error says which",
                   "", with_ssl_stream, with_tls_stream)
{
    using std::chrono::days;
    const auto verify_request = [](test::certificate_authority& issuer, days from, days until, bool client_auth = false,
                                   bool by_intermediate = false)
    {
        return verify<TestType>("host.test", issuer.issue({.common_name = "test",
                                                           .dns_names = {"host.test"},
                                                           .valid_from = from,
                                                           .valid_until = until,
                                                           .client_auth = client_auth,
                                                           .by_intermediate = by_intermediate}));
    };
    auto error = verify_request(test::authority(), days(-3), days(-1));
    REQUIRE(error);
    CHECK(error->verify_result() == X509_V_ERR_CERT_HAS_EXPIRED);
    CHECK_THAT(error->what(), test::contains("certificate has expired"));
    CHECK_THAT(error->what(), test::contains("CN=test"));

    error = verify_request(test::authority(), days(1), days(2));
    REQUIRE(error);
    CHECK(error->verify_result() == X509_V_ERR_CERT_NOT_YET_VALID);

    error = verify_request(test::unrelated_authority(), days(-1), days(1));
    REQUIRE(error);
    CHECK(error->verify_result() == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY);
    CHECK_THAT(error->what(), test::contains("unable to get local issuer certificate"));

    error = verify_request(test::authority(), days(-1), days(1), true);
    REQUIRE(error);
    CHECK(error->verify_result() == X509_V_ERR_INVALID_PURPOSE);

    error = verify_request(test::authority(), days(-1), days(1), false, true);
    CHECK(!error);
}

TEMPLATE_TEST_CASE("start_tls: SNI is sent for names, without the trailing dot, and never for IP addresses", "",
                   with_ssl_stream, with_tls_stream)
{
    const auto certificate = certificate_for({"host.test"}, {"127.0.0.1", "::1"});
    std::optional<std::string> sni;
    for (const char* name : {"host.test", "host.test."})
    {
        verify<TestType>(name, certificate, &sni);
        CHECK(sni == "host.test");
    }
    for (const char* address : {"127.0.0.1", "127.0.0.1.", "::1", "[::1]", "::1%lo"})
    {
        CAPTURE(address);
        verify<TestType>(address, certificate, &sni);
        CHECK(!sni);
    }
}

TEMPLATE_TEST_CASE(
    "start_tls: names that OpenSSL would match too liberally are std::invalid_argument, before a byte is sent", "",
    with_ssl_stream, with_tls_stream)
{
    const auto name = GENERATE("."s, ".host.test"s, "*"s, "*.host.test"s, "h*st.test"s, "host\0.test"s, "localhost\0"s,
                               "127.0.0.1\0"s,
                               "b\xc3\xbc"
                               "cher.test"s,
                               "host test"s, "host.test\n"s, " "s, std::string(300, 'a'));
    CAPTURE(name);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            tcp_stream<TestType> stream(std::move(socket), {.ssl = &test::client_context()});
            outcome result;
            CHECK_THROWS_AS(stream.start_tls({.server_hostname = name}), std::invalid_argument);
            CHECK_THROWS_AS(stream.async_start_tls({.server_hostname = name}, into(result)), std::invalid_argument);
            CHECK_THROWS_AS(tcp_stream<TestType>(tcp::socket(stream.get_executor()), {.server_hostname = name}),
                            std::invalid_argument);
            co_await write(stream, "plain\n");
            const std::string first_sent = raw.recv_line();
            CHECK(first_sent == "plain\n");
            CHECK(!result.done);
        });
}

TEMPLATE_TEST_CASE("start_tls: a client that verifies needs a server_hostname, one that does not verify needs none", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_server();
                                 p.tls_accept(settings);
                                 p.tls_shutdown();
                             });
            auto trusting = us::create_client_context({.verify_peer = false});
            tcp_stream<TestType> stream(std::move(socket), {.ssl = &test::client_context()});
            CHECK_THROWS_AS(stream.start_tls(), std::invalid_argument);
            CHECK_THROWS_AS(stream.start_tls({.server_hostname = ""}), std::invalid_argument);
            co_await stream.start_tls({.ssl = &trusting});
            CHECK(!stream.session()->server_name);
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE(
    "start_tls: a client that does not verify accepts any certificate, and the session tells why it was not trusted",
    "", with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            const auto untrusted =
                test::unrelated_authority().issue({.common_name = "test", .dns_names = {"other.test"}});
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 test::tls_settings settings;
                                 settings.certificate_file = untrusted.certificate_file;
                                 settings.key_file = untrusted.key_file;
                                 p.tls_accept(settings);
                                 p.tls_shutdown();
                             });
            auto trusting = us::create_client_context({.verify_peer = false});
            tcp_stream<TestType> stream(std::move(socket), {.ssl = &trusting, .server_hostname = "host.test"});
            co_await stream.start_tls();
            const auto session = stream.session();
            REQUIRE(session->peer_certificate);
            CHECK(session->verify_result != X509_V_OK);
            CHECK(session->server_name == "host.test");
            co_await shut_down(stream);
            co_await test::joined(std::move(peer));
        });
}

TEMPLATE_TEST_CASE("start_tls: in TLS 1.3 a client whose certificate is refused learns it at its first read", "",
                   with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [](test::raw_peer& p)
                             {
                                 auto settings = test::localhost_server();
                                 settings.ca_file = test::authority().ca_file();
                                 try
                                 {
                                     p.tls_accept(settings);
                                 }
                                 catch (const test::failure&)
                                 {
                                     p.send_fin();
                                     hold_open(p);
                                 }
                             });
            std::optional<tcp_stream<TestType>> stream(std::in_place, std::move(socket), options_of(tls_role::client));
            co_await stream->start_tls();
            const std::error_code error = co_await read_error(*stream);
            CHECK(error.category() == asio::error::get_ssl_category());
            CHECK_THAT(error.message(), test::contains("alert certificate required"));
            const std::error_code again = co_await read_error(*stream);
            CHECK(again == error);
            stream.reset();
            co_await test::joined(std::move(peer));
        });
}

// The wire

TEMPLATE_TEST_CASE("start_tls: after STARTTLS nothing but TLS records is on the wire, in either direction", "",
                   with_ssl_stream, with_tls_stream)
{
    const auto split = GENERATE(std::size_t(0), std::size_t(1), std::size_t(64));
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            tcp::acceptor acceptor(executor, test::loopback());
            test::wire_tap tap(executor, acceptor.local_endpoint(), split);
            tcp::socket left(executor);
            co_await left.async_connect(tap.endpoint(), use_awaitable);
            tcp::socket right = co_await acceptor.async_accept(use_awaitable);
            tcp_stream<TestType> client(std::move(left), options_of(tls_role::client));
            tcp_stream<TestType> server(std::move(right), options_of(tls_role::server));
            const auto serving =
                test::spawn(executor,
                            [&]() -> asio::awaitable<void>
                            {
                                std::string buffer;
                                const std::size_t size = co_await asio::async_read_until(
                                    server, asio::dynamic_buffer(buffer), '\n', use_awaitable);
                                co_await server.start_tls({.received = std::string_view(buffer).substr(size)});
                                co_await write(server, "secret answer\n");
                                co_await shut_down(server);
                            });
            co_await write(client, "STARTTLS\n");
            co_await client.start_tls();
            co_await write(client, "secret question\n");
            const std::string answer = co_await read_line(client);
            CHECK(answer == "secret answer\n");
            co_await shut_down(client);
            co_await serving.join();

            const std::string sent = tap.client_to_server();
            REQUIRE(sent.starts_with("STARTTLS\n"));
            CHECK(test::tls_records(std::string_view(sent).substr(9)).all_tls);
            CHECK(test::tls_records(tap.server_to_client()).all_tls);
            CHECK(sent.find("secret") == sent.npos);
            CHECK(tap.server_to_client().find("secret") == sent.npos);
            tap.close();
        });
}

// Full duplex

namespace
{

/// How much can be sent with each chunk size in a time that a test may take.
std::uint64_t volume(std::size_t chunk)
{
    const std::uint64_t whole = test::under_sanitizer ? 1 << 20 : 4 << 20;
    return chunk == 1 ? whole / 128 : chunk == 5 ? whole / 32 : chunk == 64 ? whole / 8 : whole;
}

} // namespace

TEMPLATE_TEST_CASE(
    "upgradeable_stream: KeyUpdates in the middle of transfers in both directions lose and corrupt nothing", "",
    with_ssl_stream, with_tls_stream)
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    const bool request = GENERATE(true, false);
    CAPTURE(int(role), chunk, request);
    const std::uint64_t size = volume(chunk);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 auto settings =
                                     role == tls_role::client ? test::localhost_server() : test::localhost_client();
                                 settings.min_version = TLS1_3_VERSION;
                                 role == tls_role::client ? p.tls_accept(settings) : p.tls_connect(settings);
                                 return renew_keys(p, size, request);
                             });
            {
                chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), chunk), options_of(role));
                co_await stream.start_tls();
                co_await talk(stream, size);
                co_await shut_down(stream);
            }
            const auto result = co_await test::joined(std::move(peer));
            CHECK(result.error == "");
            CHECK(!result.mismatch);
            CHECK(result.sent == size);
            CHECK(result.received == size);
            CHECK(result.key_updates >= 60);
        });
}

TEMPLATE_TEST_CASE(
    "upgradeable_stream: a KeyUpdate that is answered while a write is stuck does not let the write succeed unsent", "",
    with_ssl_stream, with_tls_stream)
{
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            std::promise<void> may_read;
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 handshake(p, tls_role::client);
                                 p.key_update(true);
                                 p.tls_write("look\n");
                                 may_read.get_future().get();
                                 const bool whole = p.tls_read_exactly(flood().size()) == flood();
                                 const std::string line = p.tls_read_line();
                                 p.tls_shutdown();
                                 return whole && line == "last\n";
                             });
            chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), 50'000),
                                            options_of(tls_role::client));
            co_await stream.start_tls();
            outcome written;
            asio::async_write(stream, asio::buffer(flood()), into(written));
            co_await stuck(stream);
            const std::string line = co_await read_line(stream);
            CHECK(line == "look\n");
            CHECK(!written.done);
            may_read.set_value();
            co_await finished(written);
            CHECK(!written.error);
            co_await write(stream, "last\n");
            co_await shut_down(stream);
            const bool whole = co_await test::joined(std::move(peer));
            CHECK(whole);
        });
}

TEMPLATE_TEST_CASE(
    "upgradeable_stream: large transfers in both directions at once are whole over TLS 1.2 and in plain text", "",
    with_ssl_stream, with_tls_stream)
{
    const bool encrypted = GENERATE(false, true);
    const auto chunk = GENERATE(from_range(test::chunk_sizes));
    CAPTURE(encrypted, chunk);
    const std::uint64_t size = volume(chunk);
    test::run(
        [&]() -> asio::awaitable<void>
        {
            const auto executor = co_await asio::this_coro::executor;
            auto [socket, raw] = connect(executor);
            auto peer = play(std::move(raw),
                             [&](test::raw_peer& p)
                             {
                                 if (!encrypted)
                                 {
                                     auto sending =
                                         test::run_in_thread([&] { p.send_all(test::pattern(2).bytes(0, size)); });
                                     const bool whole = p.recv_exactly(size) == test::pattern(1).bytes(0, size);
                                     sending.get();
                                     return whole;
                                 }
                                 auto settings = test::localhost_server();
                                 settings.max_version = TLS1_2_VERSION;
                                 p.tls_accept(settings);
                                 const auto result = test::exchange(p, plan_of(size, 0, false));
                                 p.tls_shutdown();
                                 return result.ok();
                             });
            {
                chunked_stream<TestType> stream(test::chunked_stream(std::move(socket), chunk),
                                                options_of(tls_role::client));
                if (encrypted)
                    co_await stream.start_tls();
                co_await talk(stream, size);
                co_await shut_down(stream);
            }
            const bool whole = co_await test::joined(std::move(peer));
            CHECK(whole);
        });
}
