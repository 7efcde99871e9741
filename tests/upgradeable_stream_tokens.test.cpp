#include "support/upgrade_rig.hpp"

#if __has_include(<asio/cancel_after.hpp>)
#include <asio/cancel_after.hpp>
#endif

using namespace test::rig;

// Completion tokens. Those that only wrap a handler are tried with one TLS layer, which never sees the token.

namespace
{

/// The other end of the tests of completion tokens.
auto token_peer(test::raw_peer&& raw)
{
    return play(std::move(raw),
                [](test::raw_peer& p)
                {
                    p.send_all(p.recv_exactly(5));
                    handshake(p, tls_role::client);
                    p.tls_write(p.tls_read_exactly(6));
                    p.tls_shutdown();
                });
}

/// Gives the executor that the initiation has, as tokens ask it that make something of their own there.
struct executor_of_initiation
{
};

} // namespace

template <typename... Results>
class asio::async_result<executor_of_initiation, void(Results...)>
{
public:
    template <typename Initiation, typename... Arguments>
    static auto initiate(Initiation&& initiation, executor_of_initiation, Arguments&&...)
    {
        return initiation.get_executor();
    }
};

TEMPLATE_TEST_CASE("upgradeable_stream: what begins an operation has the stream's executor", "", with_ssl_stream,
                   with_tls_stream)
{
    asio::io_context io;
    stream_over<TestType, tcp::socket> stream(tcp::socket(io), options_of(tls_role::client));
    std::array<char, 16> bytes;
    CHECK(stream.async_read_some(asio::buffer(bytes), executor_of_initiation()) == stream.get_executor());
    CHECK(stream.async_write_some(asio::buffer(bytes), executor_of_initiation()) == stream.get_executor());
    CHECK(stream.async_start_tls({}, executor_of_initiation()) == stream.get_executor());
    CHECK(stream.async_shutdown({}, executor_of_initiation()) == stream.get_executor());
}

TEST_CASE("tls_stream: what begins an operation has the stream's executor")
{
    asio::io_context io;
    us::tls_stream<tcp::socket> stream(tcp::socket(io), test::client_context());
    std::array<char, 16> bytes;
    CHECK(stream.async_read_some(asio::buffer(bytes), executor_of_initiation()) == stream.get_executor());
    CHECK(stream.async_write_some(asio::buffer(bytes), executor_of_initiation()) == stream.get_executor());
    CHECK(stream.async_handshake(stream.client, executor_of_initiation()) == stream.get_executor());
    CHECK(stream.async_shutdown(executor_of_initiation()) == stream.get_executor());
}

#if __has_include(<asio/cancel_after.hpp>)
TEST_CASE("upgradeable_stream: every operation takes cancel_after")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    stream_over<with_tls_stream, tcp::socket> stream(std::move(socket), options_of(tls_role::client));
    std::array<char, 16> bytes;
    outcome read, upgraded;
    stream.async_read_some(asio::buffer(bytes), asio::cancel_after(std::chrono::milliseconds(1), into(read)));
    run_until_done(io, read);
    CHECK(read.error == asio::error::operation_aborted);
    stream.async_start_tls({}, asio::cancel_after(std::chrono::milliseconds(1), into(upgraded)));
    run_until_done(io, upgraded);
    CHECK(upgraded.error == asio::error::operation_aborted);
}
#endif

TEST_CASE("upgradeable_stream: every operation takes a callback, one that can only be moved too")
{
    const auto into = [](outcome& result)
    {
        return [told = test::rig::into(result), only_moved = std::unique_ptr<int>()](auto... given) { told(given...); };
    };
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    stream_over<with_ssl_stream, tcp::socket> stream(std::move(socket), options_of(tls_role::client));
    std::array<char, 16> bytes;
    outcome wrote, read, upgraded, shut;

    stream.async_write_some(asio::buffer("plain", 5), into(wrote));
    run_until_done(io, wrote);
    stream.async_read_some(asio::buffer(bytes), into(read));
    run_until_done(io, read);
    CHECK(std::string_view(bytes.data(), read.size) == "plain");
    stream.async_start_tls({}, into(upgraded));
    run_until_done(io, upgraded);
    CHECK(!upgraded.error);
    stream.async_write_some(asio::buffer("secret", 6), into(wrote = {}));
    run_until_done(io, wrote);
    CHECK(wrote.size == 6);
    stream.async_read_some(asio::buffer(bytes), into(read = {}));
    run_until_done(io, read);
    CHECK(std::string_view(bytes.data(), read.size) == "secret");
    stream.async_shutdown({}, into(shut));
    run_until_done(io, shut);
    CHECK(!shut.error);
    peer.get();
}

TEST_CASE("upgradeable_stream: every operation takes use_awaitable")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = token_peer(std::move(raw));
            stream_over<with_tls_stream, tcp::socket> stream(std::move(socket), options_of(tls_role::client));
            std::array<char, 16> bytes;
            std::size_t size = co_await stream.async_write_some(asio::buffer("plain", 5), use_awaitable);
            CHECK(size == 5);
            size = co_await stream.async_read_some(asio::buffer(bytes), use_awaitable);
            CHECK(std::string_view(bytes.data(), size) == "plain");
            co_await stream.async_start_tls({}, use_awaitable);
            size = co_await stream.async_write_some(asio::buffer("secret", 6), use_awaitable);
            CHECK(size == 6);
            size = co_await stream.async_read_some(asio::buffer(bytes), use_awaitable);
            CHECK(std::string_view(bytes.data(), size) == "secret");
            co_await stream.async_shutdown({}, use_awaitable);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: every operation takes use_future")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    stream_over<with_tls_stream, tcp::socket> stream(std::move(socket), options_of(tls_role::client));
    std::array<char, 16> bytes;
    CHECK(wait_for(io, stream.async_write_some(asio::buffer("plain", 5), asio::use_future)) == 5);
    std::size_t size = wait_for(io, stream.async_read_some(asio::buffer(bytes), asio::use_future));
    CHECK(std::string_view(bytes.data(), size) == "plain");
    wait_for(io, stream.async_start_tls({}, asio::use_future));
    CHECK(stream.is_tls());
    CHECK(wait_for(io, stream.async_write_some(asio::buffer("secret", 6), asio::use_future)) == 6);
    size = wait_for(io, stream.async_read_some(asio::buffer(bytes), asio::use_future));
    CHECK(std::string_view(bytes.data(), size) == "secret");
    wait_for(io, stream.async_shutdown({}, asio::use_future));
    peer.get();
    CHECK_THROWS_AS(wait_for(io, stream.async_start_tls({}, asio::use_future)), std::system_error);
}

namespace
{

/// Notes whether it was used on another thread than the one that made it.
class home_stream : public test::chunked_stream<tcp::socket>
{
public:
    using test::chunked_stream<tcp::socket>::chunked_stream;

    template <typename Buffers, typename Token>
    auto async_read_some(const Buffers& buffers, Token&& token)
    {
        note();
        return test::chunked_stream<tcp::socket>::async_read_some(buffers, std::forward<Token>(token));
    }

    template <typename Buffers, typename Token>
    auto async_write_some(const Buffers& buffers, Token&& token)
    {
        note();
        return test::chunked_stream<tcp::socket>::async_write_some(buffers, std::forward<Token>(token));
    }

    bool left_home() const { return *left_home_; }

private:
    void note()
    {
        if (std::this_thread::get_id() != home_)
            *left_home_ = true;
    }

    std::thread::id home_ = std::this_thread::get_id();
    std::shared_ptr<std::atomic<bool>> left_home_ = std::make_shared<std::atomic<bool>>(false);
};

} // namespace

TEMPLATE_TEST_CASE(
    "upgradeable_stream: with use_future, whose executor is the system's, the work stays on the socket's thread", "",
    with_ssl_stream, with_tls_stream)
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    stream_over<TestType, home_stream> stream(home_stream(std::move(socket)), options_of(tls_role::client));
    std::array<char, 16> bytes;
    const auto home = std::this_thread::get_id();
    const auto thread = asio::use_future([](const auto&...) { return std::this_thread::get_id(); });
    CHECK(wait_for(io, stream.async_write_some(asio::buffer("plain", 5), thread)) == home);
    CHECK(wait_for(io, stream.async_read_some(asio::buffer(bytes), thread)) == home);
    CHECK(wait_for(io, stream.async_stop_tls({}, thread)) == home);
    CHECK(wait_for(io, stream.async_start_tls({}, thread)) == home);
    CHECK(wait_for(io, stream.async_start_tls({}, thread)) == home);
    CHECK(wait_for(io, stream.async_write_some(asio::buffer("secret", 6), thread)) == home);
    CHECK(wait_for(io, stream.async_read_some(asio::buffer(bytes), thread)) == home);
    CHECK(wait_for(io, stream.async_shutdown({}, thread)) == home);
    CHECK(!stream.next_layer().left_home());
    peer.get();
}

TEMPLATE_TEST_CASE("upgradeable_stream: with use_future, operations begin on another thread than the io_context's", "",
                   with_ssl_stream, with_tls_stream)
{
    constexpr int rounds = 20;
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = play(std::move(raw),
                     [](test::raw_peer& p)
                     {
                         for (int i = 0; i < rounds; ++i)
                         {
                             handshake(p, tls_role::client);
                             p.tls_write(p.tls_read_exactly(6));
                             p.tls_shutdown();
                         }
                     });
    std::future<void> running;
    auto work = asio::make_work_guard(io);
    stream_over<TestType, tcp::socket> stream(std::move(socket), options_of(tls_role::client));
    running = test::run_in_thread([&] { io.run_for(test::run_deadline); });
    std::array<char, 6> bytes;
    for (int i = 0; i < rounds; ++i)
    {
        stream.async_start_tls({}, asio::use_future).get();
        CHECK(asio::async_write(stream, asio::buffer("secret", 6), asio::use_future).get() == 6);
        CHECK(asio::async_read(stream, asio::buffer(bytes), asio::use_future).get() == 6);
        stream.async_stop_tls({}, asio::use_future).get();
        CHECK(!stream.is_tls());
    }
    peer.get();
}

TEST_CASE("upgradeable_stream: every operation takes as_tuple")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = token_peer(std::move(raw));
            stream_over<with_tls_stream, tcp::socket> stream(std::move(socket), options_of(tls_role::client));
            std::array<char, 16> bytes;
            auto [error, size] = co_await stream.async_write_some(asio::buffer("plain", 5), as_tuple(use_awaitable));
            CHECK(!error);
            CHECK(size == 5);
            std::tie(error, size) = co_await stream.async_read_some(asio::buffer(bytes), as_tuple(use_awaitable));
            CHECK(!error);
            CHECK(std::string_view(bytes.data(), size) == "plain");
            std::tie(error) = co_await stream.async_start_tls({}, as_tuple(use_awaitable));
            CHECK(!error);
            std::tie(error, size) =
                co_await stream.async_write_some(asio::buffer("secret", 6), as_tuple(use_awaitable));
            CHECK(!error);
            CHECK(size == 6);
            std::tie(error, size) = co_await stream.async_read_some(asio::buffer(bytes), as_tuple(use_awaitable));
            CHECK(!error);
            CHECK(std::string_view(bytes.data(), size) == "secret");
            std::tie(error) = co_await stream.async_start_tls({}, as_tuple(use_awaitable));
            CHECK(error == us::errc::already_tls);
            std::tie(error) = co_await stream.async_shutdown({}, as_tuple(use_awaitable));
            CHECK(!error);
            co_await test::joined(std::move(peer));
        });
}

TEST_CASE("upgradeable_stream: every operation takes deferred, and starts when what that gives is called")
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    stream_over<with_tls_stream, tcp::socket> stream(std::move(socket), options_of(tls_role::client));
    std::array<char, 16> bytes;
    outcome wrote, read, upgraded, shut;

    auto write_plain = stream.async_write_some(asio::buffer("plain", 5), deferred);
    io.run();
    std::move(write_plain)(into(wrote));
    run_until_done(io, wrote);
    stream.async_read_some(asio::buffer(bytes), deferred)(into(read));
    run_until_done(io, read);
    CHECK(std::string_view(bytes.data(), read.size) == "plain");
    auto upgrade = stream.async_start_tls({}, deferred);
    io.poll();
    CHECK(stream.native_handle() == nullptr);
    std::move(upgrade)(into(upgraded));
    run_until_done(io, upgraded);
    CHECK(stream.is_tls());
    stream.async_write_some(asio::buffer("secret", 6), deferred)(into(wrote = {}));
    run_until_done(io, wrote);
    CHECK(wrote.size == 6);
    stream.async_read_some(asio::buffer(bytes), deferred)(into(read = {}));
    run_until_done(io, read);
    CHECK(std::string_view(bytes.data(), read.size) == "secret");
    stream.async_shutdown({}, deferred)(into(shut));
    run_until_done(io, shut);
    CHECK(!shut.error);
    peer.get();
}

TEST_CASE("upgradeable_stream: the socket's default completion token is the stream's")
{
    using socket_type = asio::use_awaitable_t<>::as_default_on_t<tcp::socket>;
    test::run(
        []() -> asio::awaitable<void>
        {
            auto [socket, raw] = connect(co_await asio::this_coro::executor);
            auto peer = token_peer(std::move(raw));
            stream_over<with_ssl_stream, socket_type> stream(socket_type(std::move(socket)), options_of(tls_role::client));
            std::array<char, 16> bytes;
            co_await stream.async_write_some(asio::buffer("plain", 5));
            co_await stream.async_read_some(asio::buffer(bytes));
            co_await stream.async_start_tls();
            co_await stream.async_write_some(asio::buffer("secret", 6));
            const std::size_t size = co_await stream.async_read_some(asio::buffer(bytes));
            CHECK(std::string_view(bytes.data(), size) == "secret");
            co_await stream.async_shutdown();
            co_await test::joined(std::move(peer));
        });
}

// Associated executor and allocator

TEMPLATE_TEST_CASE("upgradeable_stream: a handler bound to a strand is called on that strand", "", with_ssl_stream,
                   with_tls_stream)
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    stream_over<TestType, tcp::socket> stream(std::move(socket), options_of(tls_role::client));
    auto strand = asio::make_strand(io);
    int calls = 0;
    std::array<char, 16> bytes;
    outcome result;
    const auto bound = asio::bind_executor(strand,
                                           [&](asio::error_code error, std::size_t size = 0)
                                           {
                                               calls += strand.running_in_this_thread();
                                               result = {true, error, size};
                                           });
    const auto run = [&](auto&& start)
    {
        result = {};
        start(bound);
        run_until_done(io, result);
        return result.error;
    };
    run([&](auto handler) { stream.async_write_some(asio::buffer("plain", 5), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(!run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }));
    run([&](auto handler) { stream.async_write_some(asio::buffer("secret", 6), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }) == us::errc::already_tls);
    CHECK(!run([&](auto handler) { stream.async_shutdown({}, std::move(handler)); }));
    CHECK(calls == 7);
    peer.get();
}

TEMPLATE_TEST_CASE("upgradeable_stream: a handler bound to another io_context's executor is called there", "",
                   with_ssl_stream, with_tls_stream)
{
    asio::io_context other;
    asio::io_context io; // Goes first: what is queued in it when the test ends holds executors of the other.
    auto [socket, raw] = connect(io.get_executor());
    auto peer = token_peer(std::move(raw));
    stream_over<TestType, tcp::socket> stream(std::move(socket), options_of(tls_role::client));
    std::array<char, 16> bytes;
    bool elsewhere = false;
    bool was_elsewhere = false;
    outcome result;
    const auto bound = asio::bind_executor(other.get_executor(),
                                           [&](asio::error_code error, std::size_t size = 0)
                                           {
                                               was_elsewhere = elsewhere;
                                               result = {true, error, size};
                                           });
    const auto run = [&](auto&& start)
    {
        was_elsewhere = false;
        result = {};
        start(bound);
        while (!result.done)
        {
            io.restart();
            io.run_one_for(1ms);
            other.restart();
            elsewhere = true;
            other.poll();
            elsewhere = false;
        }
        CHECK(was_elsewhere);
        return result.error;
    };
    run([&](auto handler) { stream.async_write_some(asio::buffer("plain", 5), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(!run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }));
    run([&](auto handler) { stream.async_write_some(asio::buffer("secret", 6), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }) == us::errc::already_tls);
    CHECK(!run([&](auto handler) { stream.async_shutdown({}, std::move(handler)); }));
    peer.get();
}

namespace
{

struct allocation_count
{
    std::size_t made = 0;
    std::size_t live = 0;
};

template <typename T>
struct counting_allocator
{
    using value_type = T;

    explicit counting_allocator(allocation_count& c) : count(&c) {}
    template <typename U>
    counting_allocator(const counting_allocator<U>& other) : count(other.count)
    {
    }

    T* allocate(std::size_t n)
    {
        ++count->made;
        ++count->live;
        return std::allocator<T>().allocate(n);
    }

    void deallocate(T* p, std::size_t n)
    {
        --count->live;
        std::allocator<T>().deallocate(p, n);
    }

    template <typename U>
    bool operator==(const counting_allocator<U>& other) const
    {
        return count == other.count;
    }

    allocation_count* count;
};

} // namespace

TEMPLATE_TEST_CASE(
    "upgradeable_stream: a handler's allocator is used by each operation, and all is given back before the call", "",
    with_ssl_stream, with_tls_stream)
{
    // The executor is a concrete one, because any_io_executor passes no allocator on when asio::post goes through it.
    using socket_type = asio::basic_stream_socket<tcp, asio::io_context::executor_type>;
    asio::io_context io;
    test::raw_listener listener;
    socket_type socket(io);
    socket.connect(test::loopback(listener.port()));
    auto peer = token_peer(listener.accept());
    stream_over<TestType, socket_type> stream(std::move(socket), options_of(tls_role::client));
    std::array<char, 16> bytes;
    allocation_count count;
    outcome result;
    std::size_t live_at_call = 1;
    const auto bound = asio::bind_allocator(counting_allocator<char>(count),
                                            [&](asio::error_code error, std::size_t size = 0)
                                            {
                                                live_at_call = count.live;
                                                result = {true, error, size};
                                            });
    const auto run = [&](auto&& start)
    {
        count = {};
        result = {};
        live_at_call = 1;
        start(bound);
        run_until_done(io, result);
        CHECK(count.made > 0);
        CHECK(live_at_call == 0);
        CHECK(count.live == 0);
        return result.error;
    };
    run([&](auto handler) { stream.async_write_some(asio::buffer("plain", 5), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(!run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }));
    run([&](auto handler) { stream.async_write_some(asio::buffer("secret", 6), std::move(handler)); });
    run([&](auto handler) { stream.async_read_some(asio::buffer(bytes), std::move(handler)); });
    CHECK(run([&](auto handler) { stream.async_start_tls({}, std::move(handler)); }) == us::errc::already_tls);
    CHECK(!run([&](auto handler) { stream.async_shutdown({}, std::move(handler)); }));
    peer.get();
}

TEMPLATE_TEST_CASE("describe: tells of an upgrade that was begun with any token what start_tls would have thrown", "",
                   with_ssl_stream, with_tls_stream)
{
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = play(std::move(raw),
                     [](test::raw_peer& p)
                     {
                         p.send_all("454 TLS not available\r\n");
                         hold_open(p);
                     });
    stream_over<TestType, tcp::socket> stream(std::move(socket), options_of(tls_role::client));
    outcome upgraded;
    stream.async_start_tls({}, into(upgraded));
    run_until_done(io, upgraded);
    const us::tls_error told = stream.describe(upgraded.error);
    CHECK(upgraded.error);
    CHECK(told.code() == upgraded.error);
    CHECK(told.received() == "454 TLS not available\r\n");
    CHECK_THAT(told.what(), test::starts_with("TLS upgrade with localhost, answered with \"454 TLS not available"));
    peer.get();
}

TEMPLATE_TEST_CASE("describe: names the server that the upgrade was with, not the one that the stream was made for", "",
                   with_ssl_stream, with_tls_stream)
{
    const std::string_view received = GENERATE("", "454 no\r\n"); // before the handshake is refused, and amid it
    CAPTURE(received);
    asio::io_context io;
    auto [socket, raw] = connect(io.get_executor());
    auto peer = play(std::move(raw),
                     [](test::raw_peer& p)
                     {
                         p.send_all("454 no\r\n");
                         hold_open(p);
                     });
    stream_over<TestType, tcp::socket> stream(std::move(socket), options_of(tls_role::client));
    outcome upgraded;
    stream.async_start_tls({.server_hostname = "other.example", .received = received}, into(upgraded));
    run_until_done(io, upgraded);
    const us::tls_error told = stream.describe(upgraded.error);
    CHECK_THAT(told.what(), test::starts_with("TLS upgrade with other.example, answered with \"454 no"));
    peer.get();
}
