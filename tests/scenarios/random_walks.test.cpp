// Random walks of a client's reader and writer against OpenSSL itself, which renews its keys, sends session tickets in
// many records and has its bytes delivered in pieces. What came and went is a function of its position, so that no byte
// can be lost, repeated or reordered unnoticed; nothing may hang, nor run on when there is nothing to do.

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/chunked_stream.hpp"
#include "support/contexts.hpp"
#include "support/deadline.hpp"
#include "support/failure.hpp"
#include "support/openssl.hpp"
#include "support/pattern.hpp"
#include "support/socket_pair.hpp"
#include "support/task.hpp"

#include <upgradeable_streams/separate_compilation.hpp>

#include <asio/awaitable.hpp>
#include <asio/io_context.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/socket_base.hpp>
#include <openssl/ssl.h>

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace us = upgradeable_streams;
using namespace std::chrono_literals;
using socket_type = asio::local::stream_protocol::socket; // takes and gives at once, or not at all

namespace
{

/// The same on every platform, as std::uniform_int_distribution is not.
class dice
{
public:
    explicit dice(std::uint64_t seed) : engine_(seed) {}

    std::size_t below(std::size_t end) { return static_cast<std::size_t>(engine_() % end); }
    bool one_in(std::size_t count) { return below(count) == 0; }

    /// Small ones as often as large ones.
    std::size_t size(std::size_t most) { return 1 + below(std::min(most, std::size_t(2) << below(17))); }

private:
    std::mt19937_64 engine_;
};

void check(bool condition, const char* what)
{
    if (!condition)
        throw test::failure(what);
}

/// A server in the same thread: what it sends waits in memory until it is delivered.
class tls_server
{
public:
    explicit tls_server(socket_type socket) : socket_(std::move(socket))
    {
        static SSL_CTX* const context = make_context();
        ssl_.reset(test::openssl_check(SSL_new(context), "SSL_new"));
        input_ = test::openssl_check(BIO_new(BIO_s_mem()), "BIO_new");
        output_ = test::openssl_check(BIO_new(BIO_s_mem()), "BIO_new");
        SSL_set_bio(ssl_.get(), input_, output_);
        SSL_set_accept_state(ssl_.get());
    }

    bool is_open() const { return SSL_is_init_finished(ssl_.get()); }
    bool has_ended() const { return (SSL_get_shutdown(ssl_.get()) & SSL_SENT_SHUTDOWN) != 0; }
    bool was_ended() const { return (SSL_get_shutdown(ssl_.get()) & SSL_RECEIVED_SHUTDOWN) != 0; }
    bool is_delivered() const { return BIO_ctrl_pending(output_) == 0 && wire_.empty(); }
    std::uint64_t sent() const { return sent_; }
    std::uint64_t received() const { return received_; }

    void write(std::size_t size)
    {
        const std::string bytes = to_client.bytes(std::exchange(sent_, sent_ + size), size);
        test::openssl_check(SSL_write(ssl_.get(), bytes.data(), static_cast<int>(size)), "SSL_write");
    }

    void update_keys(bool both)
    {
        SSL_key_update(ssl_.get(), both ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
        test::openssl_check(SSL_do_handshake(ssl_.get()), "KeyUpdate");
    }

    void send_ticket()
    {
        SSL_set_max_send_fragment(ssl_.get(), 512);
        test::openssl_check(SSL_new_session_ticket(ssl_.get()), "SSL_new_session_ticket");
        test::openssl_check(SSL_do_handshake(ssl_.get()), "NewSessionTicket");
    }

    void end() { SSL_shutdown(ssl_.get()); }

    /// Returns: whether something went.
    bool deliver(std::size_t most)
    {
        std::array<char, 4096> bytes;
        for (int size = 0; (size = BIO_read(output_, bytes.data(), bytes.size())) > 0;)
            wire_.append(bytes.data(), static_cast<std::size_t>(size));
        const auto sent =
            ::send(socket_.native_handle(), wire_.data(), std::min(most, wire_.size()), MSG_DONTWAIT | MSG_NOSIGNAL);
        wire_.erase(0, static_cast<std::size_t>(std::max<ssize_t>(sent, 0)));
        return sent > 0;
    }

    bool receive(std::size_t most)
    {
        std::array<char, 16 * 1024> bytes;
        const auto size = ::recv(socket_.native_handle(), bytes.data(), std::min(most, bytes.size()), MSG_DONTWAIT);
        if (size <= 0)
            return false;
        check(!was_ended(), "something was sent behind the close_notify");
        BIO_write(input_, bytes.data(), static_cast<int>(size));
        ERR_clear_error();
        if (!is_open() && SSL_do_handshake(ssl_.get()) <= 0)
            return true;
        int result = 0;
        while ((result = SSL_read(ssl_.get(), bytes.data(), bytes.size())) > 0)
        {
            const std::string_view read(bytes.data(), static_cast<std::size_t>(result));
            check(!from_client.check(received_, read), "the server received other bytes");
            received_ += read.size();
        }
        const int reason = SSL_get_error(ssl_.get(), result);
        check(reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_ZERO_RETURN, "the server received no TLS");
        return true;
    }

    static constexpr test::pattern to_client{1};
    static constexpr test::pattern from_client{2};

private:
    static SSL_CTX* make_context()
    {
        static asio::ssl::context context = test::make_server_context();
        SSL_CTX* const made = context.native_handle();
        SSL_CTX_set_num_tickets(made, 1);
        const auto enlarge = [](SSL* ssl, void*)
        {
            const std::string data(2000, 't');
            return SSL_SESSION_set1_ticket_appdata(SSL_get_session(ssl), data.data(), data.size());
        };
        SSL_CTX_set_session_ticket_cb(made, enlarge, nullptr, nullptr);
        return made;
    }

    socket_type socket_;
    test::openssl_ptr<SSL, SSL_free> ssl_;
    BIO* input_;
    BIO* output_;
    std::string wire_;
    std::uint64_t sent_ = 0;
    std::uint64_t received_ = 0;
};

class walk
{
public:
    explicit walk(std::uint64_t seed) : random_(seed) {}

    void run()
    {
        open();
        const std::size_t steps = 20 + random_.below(100);
        for (std::size_t i = 0; i < steps; ++i)
        {
            step(2 * i > steps);
            if (random_.one_in(3))
                run_handlers();
            else
                run_handlers(random_.below(6));
        }
        conclude();
    }

private:
    void open()
    {
        auto sockets = test::local_pair(io_.get_executor());
        if (random_.one_in(2))
            for (auto* const each : {&sockets.first, &sockets.second})
                each->set_option(asio::socket_base::send_buffer_size(4096));
        server_.emplace(std::move(sockets.second));
        us::connection_options options;
        options.ssl = &test::client_context();
        options.server_hostname = "localhost";
        options.ssl_shutdown_timeout = 20ms;
        if (random_.one_in(3))
            options.operation_timeout = std::chrono::microseconds(100 + random_.below(1000));
        const std::size_t chunk = random_.one_in(2) ? 0 : std::size_t(1) << (4 + random_.below(8));
        writes_ = !random_.one_in(3);
        largest_ = chunk == 0 ? 100'000 : 100 * chunk;
        const auto connect = [&, socket = &sockets.first]
        { return us::open_connection(test::chunked_stream(std::move(*socket), chunk), options); };
        auto opened = test::spawn(io_.get_executor(), connect);
        for (int i = 0; i < 1000 && !(opened.done() && server_->is_open()); ++i)
        {
            run_handlers();
            server_->receive(100'000);
            server_->deliver(random_.size(5'000));
        }
        check(opened.done(), "no handshake");
        std::tie(reader_, writer_) = opened.result();
    }

    void step(bool may_end)
    {
        const bool is_usable = !closing_ && !ended_;
        switch (random_.below(may_end ? 15 : 13))
        {
        case 0: return server_->has_ended() ? void() : server_->write(random_.size(largest_));
        case 1: return server_->has_ended() ? void() : server_->update_keys(random_.one_in(2));
        case 2: return server_->has_ended() ? void() : server_->send_ticket();
        case 3:
        case 4:
        case 5:
            return is_silent_ ? void()
                              : void(server_->deliver(random_.one_in(2) ? random_.size(100) : random_.size(10'000)));
        case 6: return is_silent_ ? void() : void(server_->receive(random_.size(16 * 1024)));
        case 7:
        case 8: return !reading_ && is_usable ? read() : void();
        case 9: return reading_ ? reading_->cancel() : void();
        case 10:
        case 11:
            if (const std::size_t size = random_.size(largest_); is_usable && writes_ && !write_ended_)
                writer_.write(tls_server::from_client.bytes(std::exchange(written_, written_ + size), size));
            return;
        case 12:
            if (draining_)
                draining_->cancel();
            else if (is_usable)
                draining_.emplace(io_.get_executor(), [this] { return writer_.drain(); });
            return;
        case 13:
            if (is_usable && random_.one_in(4) && !std::exchange(write_ended_, true))
                writer_.write_eof();
            return;
        default:
            if (!random_.one_in(3) || std::exchange(closing_, true))
                return;
            writer_.close();
            is_silent_ = random_.one_in(2);
        }
    }

    void read();
    void conclude();
    void forget_ended(std::optional<test::task<void>>& operation);

    /// Until nothing is left to do at once, or so many.
    void run_handlers(std::size_t most = 100'000)
    {
        std::size_t count = 0;
        for (io_.restart(); count < most && io_.poll_one() != 0; io_.restart())
            ++count;
        check(count < 100'000, "handlers run on and on");
        forget_ended(reading_);
        forget_ended(draining_);
    }

    dice random_;
    asio::io_context io_;
    std::optional<tls_server> server_;
    us::stream_reader reader_;
    us::stream_writer writer_;
    std::size_t largest_ = 0;
    std::uint64_t read_ = 0;
    std::uint64_t written_ = 0;
    std::optional<test::task<void>> reading_;
    std::optional<test::task<void>> draining_;
    bool ended_ = false; ///< The server's end was read.
    bool writes_ = true;
    bool write_ended_ = false;
    bool closing_ = false;
    bool is_silent_ = false; ///< The server sends and reads nothing any more.
};

/// Forgets an operation that has ended as it may.
void walk::forget_ended(std::optional<test::task<void>>& operation)
{
    if (!operation || !operation->done())
        return;
    try
    {
        operation->result();
    }
    catch (const std::system_error& error)
    {
        if (error.code() != asio::error::operation_aborted && error.code() != us::errc::operation_timeout &&
            !(closing_ && (error.code() == us::errc::connection_closed || error.code() == us::errc::shutdown_timeout)))
            throw;
    }
    operation.reset();
}

void walk::read()
{
    const auto once = [this, kind = random_.below(3), size = random_.size(largest_)]() -> asio::awaitable<void>
    {
        std::string bytes(kind == 0 ? size : 0, '\0');
        try
        {
            if (kind == 0)
                bytes.resize(co_await reader_.readinto(bytes));
            else if (kind == 1)
                bytes = co_await reader_.readline();
            else
                bytes = co_await reader_.readexactly(size);
            ended_ = bytes.empty();
        }
        catch (const us::incomplete_read_error& end)
        {
            bytes = end.partial();
            ended_ = true;
        }
        check(!tls_server::to_client.check(read_, bytes), "the client received other bytes");
        read_ += bytes.size();
    };
    reading_.emplace(io_.get_executor(), once);
}

/// The server reads and sends all, unless it is silent.
void walk::conclude()
{
    if (!is_silent_ && !server_->has_ended())
    {
        server_->write(100);
        server_->end();
    }
    std::optional<test::task<void>> closed;
    for (auto idle_since = std::chrono::steady_clock::now(); !closed || !closed->done();)
    {
        const bool delivers = !is_silent_ && server_->deliver(100'000);
        const bool receives = !is_silent_ && server_->receive(100'000);
        if (delivers || receives)
            idle_since = std::chrono::steady_clock::now();
        else
        {
            io_.restart();
            io_.run_one_for(100us);
        }
        check(std::chrono::steady_clock::now() < idle_since + 2s, "something hangs");
        if (!reading_ && !closing_ && !ended_)
            read();
        closing_ = closing_ || (ended_ && !reading_);
        if (closing_ && !closed)
        {
            writer_.close();
            closed.emplace(io_.get_executor(), [this] { return writer_.wait_closed(); });
        }
        run_handlers();
    }
    while (server_->receive(100'000))
    {
    }
    run_handlers();
    check(io_.stopped(), "work was left behind");
    check(!reading_ && !draining_, "an operation outlasts its connection");
    check(!ended_ || read_ == server_->sent(), "the client has not received all");
    check(closed->failed() || server_->received() == written_, "the server has not received all");
}

} // namespace

TEST_CASE("random walks: no byte is lost, repeated or reordered, and nothing hangs or runs on")
{
    const std::uint64_t first = 1;
    const auto end = std::chrono::steady_clock::now() + 4s;
    for (std::uint64_t seed = first; seed < first + 400 && std::chrono::steady_clock::now() < end; ++seed)
    {
        CAPTURE(seed);
        REQUIRE_NOTHROW(walk(seed).run());
    }
}
