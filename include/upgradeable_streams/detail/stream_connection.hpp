/// @file
/// A connection over one kind of socket.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STREAM_CONNECTION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STREAM_CONNECTION_HPP

#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/detail/connection_settings.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/strand_executor.hpp>
#include <upgradeable_streams/socket_address.hpp>
#include <upgradeable_streams/tls_stream.hpp>
#include <upgradeable_streams/upgradeable_stream.hpp>

#include <asio/awaitable.hpp>
#include <asio/bind_executor.hpp>
#include <asio/buffer.hpp>
#include <asio/cancellation_type.hpp>
#include <asio/error.hpp>
#include <asio/generic/stream_protocol.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/socket_base.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace upgradeable_streams::detail
{

/// A connection over an upgradeable_stream.
template <typename Socket>
class stream_connection final : public connection
{
public:
    /// The socket of a peer that has gone already does not know its address any more.
    stream_connection(Socket socket, const connection_settings& settings, std::optional<socket_address> peer)
        : connection(socket.get_executor(), settings), stream_(std::move(socket), settings.tls)
    {
        asio::error_code error;
        auto& lowest = stream_.lowest_layer();
        peername_ = std::move(peer);
        if (const auto own = lowest.local_endpoint(error); !error)
            sockname_.emplace(own);
        lowest.set_option(asio::ip::tcp::no_delay(true), error); // refused by Unix domain sockets
    }

    SSL* ssl() const override { return stream_.native_handle(); }
    bool is_tls() const override { return stream_.is_tls(); }

    bool can_write_eof() const override
    {
        if (is_tls())
            return SSL_version(ssl()) >= TLS1_3_VERSION;
        if constexpr (requires { stream_.next_layer().can_write_eof(); })
            return stream_.next_layer().can_write_eof();
        return true;
    }

    const tls_settings& settings() const override { return stream_.state_->settings; }
    void turn_to(std::string_view server) override { stream_.state_->settings.turn_to(server); }

    std::optional<socket_descriptor> native_socket() override
    {
        auto& lowest = stream_.lowest_layer();
        return lowest.is_open() ? std::optional<socket_descriptor>(lowest.native_handle()) : std::nullopt;
    }

    bool tells_at_once() const override
    {
        if constexpr (requires { stream_.next_layer().tells_at_once(); })
            return stream_.next_layer().tells_at_once();
        return is_socket<Socket>;
    }

private:
    void cancel() override
    {
        asio::error_code ignored;
        stream_.lowest_layer().cancel(ignored);
    }

    bool look_again() override
    {
        is_dry_ = false;
        auto* const tls = stream_.state_->tls();
        return tls && tls->core().look_again();
    }

    bool has_skipped() const override
    {
        auto* const tls = stream_.state_->tls();
        return tls && tls->core().engine.has_skipped();
    }

    std::size_t read_some(asio::mutable_buffer buffer, asio::error_code& error) override
    {
        const auto& state = stream_.state_;
        std::size_t size = 0;
        if (!state->plain())
        {
            size = state->read_now(buffer, error, get_executor());
            const auto& core = state->tls()->core();
            is_dry_ = !error && (core.engine.is_spent() || !core.has_news());
            return size;
        }
        size = receive_at_once(stream_.next_layer(), buffer, error);
        is_dry_ = size < buffer.size();
        return size;
    }

    void async_receive(read_handler handler) override
    {
        if (auto* plain = stream_.state_->plain())
            return plain->async_read_some(room(is_socket<Socket>), std::move(handler));
        auto& core = stream_.state_->tls()->core();
        const bool is_free = !core.has_too_many_replies() && !core.is_receiving();
        is_receiving_ = is_free && !core.has_news();
        if (is_receiving_)
            return core.async_receive(std::move(handler));
        if (is_free)
            return async_yield(std::move(handler)); // and look first
        auto on_strand = asio::bind_executor(get_executor(), std::move(handler));
        core.is_receiving() ? core.async_wait_change(std::move(on_strand)) : core.async_flush(std::move(on_strand));
    }

    void async_yield(read_handler handler) override
    {
        struct cancellation
        {
            asio::error_code outcome = asio::error::would_block;
            void operator()(asio::cancellation_type) { outcome = asio::error::interrupted; }
        };
        auto slot = handler.get_cancellation_slot();
        const auto* const asked = slot.is_connected() ? &slot.template emplace<cancellation>() : nullptr;
        auto yielded = [this, h = std::move(handler), asked]() mutable
        {
            const auto keep = shared_from_this();
            enter([h = std::move(h), asked]() mutable { h(asked ? asked->outcome : cancellation().outcome, 0); });
        };
        with_executor(stream_.get_executor(), [&](const auto& executor) { asio::post(executor, std::move(yielded)); });
    }

    read_result arrived(const asio::error_code& error, std::size_t size) override
    {
        auto* const tls = stream_.state_->tls();
        if (is_transient(error) || (tls && !is_receiving_))
        {
            if (tls)
                tls->core().look_again();
            const bool is_cancelled = error == asio::error::interrupted || error == asio::error::operation_aborted;
            return {is_cancelled ? asio::error::operation_aborted : asio::error_code(), 0};
        }
        if (tls)
            return {tls->core().received(error, size), 0};
        is_dry_ = !error && size < small_receive;
        return {error, size};
    }

    write_result write_some(asio::const_buffer data) override
    {
        const auto& state = stream_.state_;
        write_result result;
        if (!state->plain())
        {
            result.size = state->write_now(data, result.error);
            result.unsent = std::min(state->tls()->core().unsent(), result.size);
            result.is_blocked = result.error == asio::error::would_block || result.unsent > 0;
        }
        else
        {
            if constexpr (is_socket<Socket>)
                result.size = send_at_once(descriptor_of(stream_.next_layer()),
                                           {static_cast<const char*>(data.data()), data.size()}, result.error);
            result.is_blocked = result.size < data.size();
        }
        if (result.error && result.error == asio::error::would_block)
            result.error.clear();
        return result;
    }

    void async_write(asio::const_buffer data) override
    {
        auto done = asio::bind_executor(
            get_executor(), [self = std::static_pointer_cast<stream_connection>(shared_from_this())](
                                const asio::error_code& error, std::size_t size) { self->written(error, size); });
        if (auto* plain = stream_.state_->plain())
            plain->async_write_some(data, std::move(done));
        else
            stream_.state_->tls()->core().async_writable(std::move(done));
    }

    bool is_flushed() const override
    {
        auto* const tls = stream_.state_->tls();
        return !tls || tls->core().is_flushed();
    }

    asio::awaitable<void> start_tls(std::unique_ptr<upgrade_request> request) override
    {
        return stream_.await_upgrade(stream_.state_, std::move(request));
    }

    asio::awaitable<std::string> stop_tls() override
    {
        co_await stream_.stop_tls();
        co_return stream_.state_->take_left_over();
    }

    asio::awaitable<void> shutdown(asio::socket_base::shutdown_type what, asio::error_code& error) override
    {
        const shutdown_options options = {.what = what};
        if (auto* plain = stream_.state_->plain()) // which has nothing to wait for
            plain->lowest_layer().shutdown(asio::socket_base::shutdown_send, error);
        else
            co_await stream_.async_shutdown(options, asio::redirect_error(asio::use_awaitable, error));
        if constexpr (requires { stream_.next_layer().close_outer(); })
            if (what == asio::socket_base::shutdown_both)
                co_await stream_.next_layer().close_outer();
    }

    std::size_t unread() override
    {
        asio::error_code ignored;
        return is_tls() ? 0 : stream_.lowest_layer().available(ignored);
    }

    bool end_at_once() override
    {
        if constexpr (requires { stream_.next_layer().close_outer(); })
            return false;
        if (is_tls() || unread() > 0)
            return false;
        asio::error_code ignored; // a close does not tell, while a child process has the socket too
        stream_.lowest_layer().shutdown(asio::socket_base::shutdown_send, ignored);
        return true;
    }

    void close_socket() override
    {
        stream_.state_->close();
    }

    upgradeable_stream<Socket, tls_stream> stream_;
    bool is_receiving_ = false; ///< Else the pending read waits for another operation, whose errors are not its own.
};

#ifdef UPGRADEABLE_STREAMS_SEPARATE_COMPILATION
extern template class stream_connection<asio::generic::stream_protocol::socket>;
#endif

} // namespace upgradeable_streams::detail

#endif
