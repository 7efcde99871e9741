/// @file
/// A connection over one kind of socket.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STREAM_CONNECTION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STREAM_CONNECTION_HPP

#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/socket_address.hpp>
#include <upgradeable_streams/tls.hpp>
#include <upgradeable_streams/upgradeable_stream.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/redirect_error.hpp>
#include <asio/socket_base.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/write.hpp>

#include <cstddef>
#include <memory>
#include <optional>
#include <utility>

namespace upgradeable_streams::detail
{

/// A connection over an upgradeable_stream.
template <typename Socket>
class stream_connection final : public connection
{
public:
    stream_connection(Socket socket, const connection_settings& settings)
        : connection(socket.get_executor(), settings), stream_(std::move(socket), settings.tls)
    {
        asio::error_code error;
        auto& lowest = stream_.lowest_layer();
        if (const auto peer = lowest.remote_endpoint(error); !error)
            peername_.emplace(peer);
        if (const auto own = lowest.local_endpoint(error); !error)
            sockname_.emplace(own);
        lowest.set_option(asio::ip::tcp::no_delay(true), error); // refused by Unix domain sockets
    }

    SSL* ssl() const override { return stream_.native_handle(); }
    bool is_tls() const override { return stream_.is_tls(); }
    const tls_settings& settings() const override { return stream_.state_->settings; }

    std::optional<int> native_socket() override
    {
        auto& lowest = stream_.lowest_layer();
        return lowest.is_open() ? std::optional<int>(lowest.native_handle()) : std::nullopt;
    }

private:
    void async_read_some(asio::mutable_buffer buffer, read_handler handler) override
    {
        stream_.async_read_some(buffer, std::move(handler));
    }

    void async_write(asio::const_buffer buffer) override
    {
        asio::async_write(stream_, buffer,
                          [self = std::static_pointer_cast<stream_connection>(shared_from_this())](
                              const asio::error_code& error, std::size_t) { self->written(error); });
    }

    asio::awaitable<void> start_tls(std::unique_ptr<upgrade_request> request) override
    {
        return stream_.await_upgrade(stream_.state_, std::move(request));
    }

    asio::awaitable<void> shutdown(asio::socket_base::shutdown_type what, asio::error_code& error) override
    {
        const shutdown_options options = {.what = what};
        return stream_.async_shutdown(options, asio::redirect_error(asio::use_awaitable, error));
    }

    std::size_t unread() override
    {
        asio::error_code ignored;
        return is_tls() ? 0 : stream_.lowest_layer().available(ignored);
    }

    void cancel_read() override
    {
        if (auto* tls = stream_.state_->tls())
            tls->queue.refuse_reads(true);
        asio::error_code ignored;
        stream_.lowest_layer().cancel(ignored);
    }

    void allow_reads() override
    {
        if (auto* tls = stream_.state_->tls())
            tls->queue.refuse_reads(false);
    }

    void close_socket() override
    {
        stream_.state_->close();
    }

    upgradeable_stream<Socket> stream_;
};

} // namespace upgradeable_streams::detail

#endif
