/// @file
/// What a server reads of a connection before a handler has it: a proxy's header, and whether TLS begins.
#ifndef UPGRADEABLE_STREAMS_DETAIL_FIRST_BYTES_HPP
#define UPGRADEABLE_STREAMS_DETAIL_FIRST_BYTES_HPP

#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/proxy_protocol.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>
#include <asio/error.hpp>
#include <asio/steady_timer.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <system_error>

namespace upgradeable_streams::detail
{

/// Receives up to a deadline, after which the connection goes on.
class first_bytes
{
public:
    first_bytes(connection& c, std::chrono::steady_clock::duration timeout)
        : connection_(c), reading_(c, c.epoch()),
          timer_(std::make_shared<asio::steady_timer>(c.get_executor(), timeout))
    {
        timer_->async_wait(
            [this, timer = std::weak_ptr(timer_)](const asio::error_code& error)
            {
                if (error || timer.expired())
                    return;
                is_late_ = true;
                connection_.cancel_read();
            });
    }

    first_bytes(const first_bytes&) = delete;
    first_bytes& operator=(const first_bytes&) = delete;

    /// Adds to what was received; false at the end of the stream and when time is up.
    asio::awaitable<bool> receive()
    {
        const std::size_t before = connection_.received().size();
        while (connection_.received().size() == before)
        {
            if (connection_.eof())
                co_return false;
            if (connection_.receive_now())
                continue;
            if (is_late_)
                co_return false;
            const read_result result = co_await connection_.wait_to_receive();
            const bool is_cancelled = is_late_ && result.error == asio::error::operation_aborted;
            connection_.receive(is_cancelled ? read_result() : result);
        }
        co_return true;
    }

    bool is_late() const { return is_late_; }

private:
    connection& connection_;
    const connection::read_guard reading_;
    std::shared_ptr<asio::steady_timer> timer_;
    bool is_late_ = false;
};

/// Reads the header that the peer has to begin with, and gives the connection the addresses that it tells.
inline asio::awaitable<void> read_proxy_header(connection& c, std::chrono::steady_clock::duration timeout)
{
    first_bytes first(c, timeout);
    std::optional<proxy_header> header;
    while (!(header = parse_proxy_header(c.received())))
    {
        const bool has_more = co_await first.receive();
        if (!has_more && first.is_late())
            throw std::system_error(errc::proxy_header_timeout);
        if (!has_more)
            throw std::system_error(errc::proxy_header_invalid, "the connection ended");
    }
    c.discard(header->size);
    if (header->source)
        c.set_names(*header->source, *header->destination);
}

/// Whether the client begins with TLS; not so one that says nothing.
inline asio::awaitable<bool> detect_tls(connection& c, std::chrono::steady_clock::duration timeout)
{
    first_bytes first(c, timeout);
    bool has_more = true;
    while (has_more && c.received().size() < 2 && begins_tls_handshake(c.received()))
        has_more = co_await first.receive();
    co_return !c.received().empty() && begins_tls_handshake(c.received());
}

} // namespace upgradeable_streams::detail

#endif
