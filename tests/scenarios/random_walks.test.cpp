// Random walks against OpenSSL itself, which renews its keys, sends session tickets in many records and has its bytes
// delivered in pieces: of a client's reader and writer, and of streams in either role. What came and went is a function
// of its position, so that no byte can be lost, repeated or reordered unnoticed; nothing may hang, nor run on when there
// is nothing to do.

#include "support/catch.hpp"
#include "support/chunked_stream.hpp"
#include "support/contexts.hpp"
#include "support/deadline.hpp"
#include "support/dice.hpp"
#include "support/failure.hpp"
#include "support/socket_pair.hpp"
#include "support/stepped_peer.hpp"
#include "support/task.hpp"

#include <upgradeable_streams.hpp>

#include <asio/awaitable.hpp>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/buffer.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/error.hpp>
#include <asio/io_context.hpp>
#include <asio/socket_base.hpp>
#include <openssl/ssl.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace us = upgradeable_streams;
using test::dice;
using namespace std::chrono_literals;
using socket_type = test::stepped_peer::socket_type;

namespace
{

void check(bool condition, const char* what)
{
    if (!condition)
        throw test::failure(what);
}

/// What all walks have in common: the peer's steps, and the event loop's.
class walk
{
protected:
    explicit walk(std::uint64_t seed) : random_(seed) {}

    /// Returns: the socket of the other end.
    socket_type meet_peer(bool is_server, int version)
    {
        auto sockets = test::local_pair(io_.get_executor());
        if (random_.one_in(2))
            for (auto* const each : {&sockets.first, &sockets.second})
                each->set_option(asio::socket_base::send_buffer_size(4096));
        peer_.emplace(std::move(sockets.second), is_server, version);
        has_tickets_ = is_server && version == TLS1_3_VERSION;
        has_updates_ = version == TLS1_3_VERSION;
        return std::move(sockets.first);
    }

    template <typename Condition>
    void shake_hands(Condition is_done)
    {
        for (int i = 0; i < 1000 && !(is_done() && peer_->is_open()); ++i)
        {
            run_handlers();
            peer_->receive(100'000);
            peer_->deliver(random_.size(5'000));
        }
        check(is_done() && peer_->is_open(), "no handshake");
    }

    static constexpr std::size_t peer_steps = 7;

    void step_of_peer(std::size_t which)
    {
        if (which <= 2 && peer_->has_ended())
            return;
        if (which == 0)
            peer_->write(random_.size(largest_));
        else if (which == 1 && has_updates_)
            peer_->update_keys(random_.one_in(2));
        else if (which == 2 && has_tickets_)
            peer_->send_ticket();
        else if (which > 2 && which < 6 && !is_silent_)
            peer_->deliver(random_.one_in(2) ? random_.size(100) : random_.size(10'000));
        else if (which == 6 && !is_silent_)
            peer_->receive(random_.size(16 * 1024));
    }

    /// Until nothing is left to do at once, or so many.
    void run_handlers(std::size_t most = 100'000)
    {
        std::size_t count = 0;
        for (io_.restart(); count < most && io_.poll_one() != 0; io_.restart())
            ++count;
        check(count < 100'000, "handlers run on and on");
    }

    void run_some_handlers() { random_.one_in(3) ? run_handlers() : run_handlers(random_.below(6)); }

    /// The peer sends its last and reads all, unless it is silent, while `go_on` is called; until that is true.
    template <typename Function>
    void conclude(Function go_on)
    {
        if (!is_silent_ && !peer_->has_ended())
        {
            peer_->write(100);
            peer_->end();
        }
        for (auto idle_since = std::chrono::steady_clock::now(); !go_on();)
        {
            const bool delivers = !is_silent_ && peer_->deliver(100'000);
            const bool receives = !is_silent_ && peer_->receive(100'000);
            if (delivers || receives)
                idle_since = std::chrono::steady_clock::now();
            else
            {
                io_.restart();
                io_.run_one_for(100us);
            }
            check(std::chrono::steady_clock::now() < idle_since + 2s, "something hangs");
            run_handlers();
        }
        while (peer_->receive(100'000))
        {
        }
        run_handlers();
        check(io_.stopped(), "work was left behind");
    }

    dice random_;
    asio::io_context io_;
    std::optional<test::stepped_peer> peer_;
    std::size_t largest_ = 100'000;
    bool is_silent_ = false; ///< The peer sends and reads nothing any more.

private:
    bool has_tickets_ = false;
    bool has_updates_ = false;
};

/// Of a client's reader and writer.
class walk_of_pair : walk
{
public:
    explicit walk_of_pair(std::uint64_t seed) : walk(seed) {}

    void run()
    {
        open();
        const std::size_t steps = 20 + random_.below(100);
        for (std::size_t i = 0; i < steps; ++i)
        {
            step(2 * i > steps);
            run_some_handlers();
            forget_ended();
        }
        conclude();
    }

private:
    void open()
    {
        socket_type socket = meet_peer(true, TLS1_3_VERSION);
        us::connection_options options;
        options.ssl = &test::client_context();
        options.server_hostname = "localhost";
        options.ssl_shutdown_timeout = 20ms;
        if (random_.one_in(3))
            options.operation_timeout = std::chrono::microseconds(100 + random_.below(1000));
        const std::size_t chunk = random_.one_in(2) ? 0 : std::size_t(1) << (4 + random_.below(8));
        writes_ = !random_.one_in(3);
        if (chunk > 0)
            largest_ = 100 * chunk;
        const auto connect = [&]
        {
            return chunk == 0 ? us::open_connection(std::move(socket), options)
                              : us::open_connection(test::chunked_stream(std::move(socket), chunk), options);
        };
        auto opened = test::spawn(io_.get_executor(), connect);
        shake_hands([&] { return opened.done(); });
        std::tie(reader_, writer_) = opened.result();
    }

    void step(bool may_end)
    {
        const bool is_usable = !closing_ && !ended_;
        const std::size_t which = random_.below(may_end ? peer_steps + 8 : peer_steps + 6);
        if (which < peer_steps)
            return step_of_peer(which);
        switch (which - peer_steps)
        {
        case 0:
        case 1: return !reading_ && is_usable ? read() : void();
        case 2: return reading_ ? reading_->cancel() : void();
        case 3:
        case 4:
            if (const std::size_t size = random_.size(largest_); is_usable && writes_ && !write_ended_)
                writer_.write(test::stepped_peer::incoming.bytes(std::exchange(written_, written_ + size), size));
            return;
        case 5:
            if (draining_)
                draining_->cancel();
            else if (is_usable)
                draining_.emplace(io_.get_executor(), [this] { return writer_.drain(); });
            return;
        case 6:
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

    void forget_ended()
    {
        forget_ended(reading_);
        forget_ended(draining_);
    }

    void forget_ended(std::optional<test::task<void>>& operation);

    us::stream_reader reader_;
    us::stream_writer writer_;
    std::uint64_t read_ = 0;
    std::uint64_t written_ = 0;
    std::optional<test::task<void>> reading_;
    std::optional<test::task<void>> draining_;
    bool ended_ = false; ///< The peer's end was read.
    bool writes_ = true;
    bool write_ended_ = false;
    bool closing_ = false;
};

/// Forgets an operation that has ended as it may.
void walk_of_pair::forget_ended(std::optional<test::task<void>>& operation)
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

void walk_of_pair::read()
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
        check(!test::stepped_peer::outgoing.check(read_, bytes), "the client received other bytes");
        read_ += bytes.size();
    };
    reading_.emplace(io_.get_executor(), once);
}

void walk_of_pair::conclude()
{
    std::optional<test::task<void>> closed;
    walk::conclude(
        [&]
        {
            forget_ended();
            if (!reading_ && !closing_ && !ended_)
                read();
            closing_ = closing_ || (ended_ && !reading_);
            if (closing_ && !closed)
            {
                writer_.close();
                closed.emplace(io_.get_executor(), [this] { return writer_.wait_closed(); });
            }
            return closed && closed->done();
        });
    forget_ended();
    check(!reading_ && !draining_, "an operation outlasts its connection");
    check(!ended_ || read_ == peer_->sent(), "the client has not received all");
    check(closed->failed() || peer_->received() == written_, "the peer has not received all");
}

/// Of a stream's own operations, of which one read and one write are pending at most.
template <typename Stream>
class walk_of_stream : walk
{
public:
    explicit walk_of_stream(std::uint64_t seed) : walk(seed) {}

    void run()
    {
        open();
        const std::size_t steps = 20 + random_.below(100);
        for (std::size_t i = 0; i < steps; ++i)
        {
            step(random_.below(peer_steps + 5));
            run_some_handlers();
        }
        bool is_shutting_down = false;
        conclude(
            [&]
            {
                if (!is_reading_ && !has_ended_)
                    read();
                if (has_ended_ && !is_writing_ && !std::exchange(is_shutting_down, true))
                    shut_down();
                return is_shut_down_;
            });
        check(!is_reading_ && !is_writing_, "an operation outlasts its stream");
        check(read_ == peer_->sent(), "the stream has not received all");
        check(written_ == peer_->received(), "the peer has not received all");
        check(peer_->was_ended(), "no close_notify came");
    }

private:
    static constexpr bool is_upgradeable = requires(Stream& stream) { stream.start_tls(); };

    void open()
    {
        const bool is_client = !random_.one_in(3);
        socket_type socket = meet_peer(is_client, random_.one_in(4) ? TLS1_2_VERSION : TLS1_3_VERSION);
        asio::ssl::context& context = is_client ? test::client_context() : test::server_context();
        asio::error_code error = asio::error::in_progress;
        const auto done = [&](asio::error_code result) { error = result; };
        if constexpr (is_upgradeable)
        {
            const std::size_t chunk = random_.one_in(3) ? 0 : std::size_t(1) << (4 + random_.below(8));
            if (chunk > 0)
                largest_ = 100 * chunk;
            us::tls_options options;
            options.ssl = &context;
            options.role = is_client ? us::tls_role::client : us::tls_role::server;
            options.server_hostname = "localhost";
            stream_.emplace(test::chunked_stream(std::move(socket), chunk), options);
            stream_->async_start_tls({}, done);
        }
        else
        {
            stream_.emplace(std::move(socket), context);
            stream_->async_handshake(is_client ? Stream::client : Stream::server, done);
        }
        shake_hands([&] { return error != asio::error::in_progress; });
        check(!error, "the handshake failed");
    }

    void step(std::size_t which)
    {
        if (which < peer_steps)
            step_of_peer(which);
        else if (which < peer_steps + 2 && !is_reading_ && !has_ended_)
            read();
        else if (which == peer_steps + 2)
            cancellation_.emit(asio::cancellation_type::terminal);
        else if (which > peer_steps + 2 && !is_writing_)
            write();
    }

    void read()
    {
        incoming_.resize(random_.size(largest_));
        is_reading_ = true;
        stream_->async_read_some(asio::buffer(incoming_),
                                 asio::bind_cancellation_slot(cancellation_.slot(),
                                                              [this](const asio::error_code& error, std::size_t size)
                                                              { has_read(error, std::string_view(incoming_.data(), size)); }));
    }

    void has_read(const asio::error_code& error, std::string_view bytes)
    {
        is_reading_ = false;
        has_ended_ = error == asio::error::eof;
        check(!error || has_ended_ || error == asio::error::operation_aborted, "a read failed");
        check(error ? bytes.empty() : !bytes.empty(), "bytes with an error, or neither");
        check(!test::stepped_peer::outgoing.check(read_, bytes), "the stream received other bytes");
        read_ += bytes.size();
    }

    void write()
    {
        outgoing_ = test::stepped_peer::incoming.bytes(written_, random_.size(largest_));
        is_writing_ = true;
        stream_->async_write_some(asio::buffer(outgoing_),
                                  [this](const asio::error_code& error, std::size_t size)
                                  {
                                      is_writing_ = false;
                                      check(!error && size > 0, "a write failed");
                                      written_ += size;
                                  });
    }

    void shut_down()
    {
        const auto done = [this](const asio::error_code& error)
        {
            check(!error, "the shutdown failed");
            is_shut_down_ = true;
        };
        if constexpr (is_upgradeable)
            stream_->async_shutdown({}, done);
        else
            stream_->async_shutdown(done);
    }

    std::optional<Stream> stream_;
    asio::cancellation_signal cancellation_; ///< Of the read that is pending.
    std::string incoming_;
    std::string outgoing_;
    std::uint64_t read_ = 0;
    std::uint64_t written_ = 0;
    bool is_reading_ = false;
    bool is_writing_ = false;
    bool has_ended_ = false; ///< The peer's end was read.
    bool is_shut_down_ = false;
};

using walk_of_tls_stream = walk_of_stream<us::tls_stream<socket_type>>;
using walk_of_upgradeable_stream =
    walk_of_stream<us::upgradeable_stream<test::chunked_stream<socket_type>, us::tls_stream>>;

} // namespace

TEMPLATE_TEST_CASE("random walks: no byte is lost, repeated or reordered, and nothing hangs or runs on", "", walk_of_pair,
                   walk_of_tls_stream, walk_of_upgradeable_stream)
{
    const std::uint64_t first = 1;
    const auto end = std::chrono::steady_clock::now() + 4s;
    for (std::uint64_t seed = first; seed < first + 400 && std::chrono::steady_clock::now() < end; ++seed)
    {
        CAPTURE(seed);
        REQUIRE_NOTHROW(TestType(seed).run());
    }
}
