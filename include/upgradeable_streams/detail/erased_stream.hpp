/// @file
/// What a connection asks of its stream.
#ifndef UPGRADEABLE_STREAMS_DETAIL_ERASED_STREAM_HPP
#define UPGRADEABLE_STREAMS_DETAIL_ERASED_STREAM_HPP

#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/tls_settings.hpp>

#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/error_code.hpp>
#include <asio/socket_base.hpp>
#include <openssl/ssl.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace upgradeable_streams::detail
{

struct read_result
{
    asio::error_code error;
    std::size_t size;
};

/// What a stream took without waiting, and how much of that it has yet to send.
struct write_result
{
    std::size_t size = 0;
    bool is_blocked = false;
    std::size_t unsent = 0;
    asio::error_code error = {};
};

class read_handler;

/// A stream, type-erased.
class erased_stream
{
public:
    erased_stream(const erased_stream&) = delete;
    erased_stream& operator=(const erased_stream&) = delete;
    virtual ~erased_stream() = default;

    virtual SSL* ssl() const = 0;
    virtual bool is_tls() const = 0;
    virtual bool can_write_eof() const = 0;
    virtual const tls_settings& settings() const = 0;

    /// What is at the other end is another server from here on: a later upgrade is for that one.
    virtual void turn_to(std::string_view server) = 0;
    virtual std::optional<socket_descriptor> native_socket() = 0;

    /// Whether read_some finds what has come, also where nothing has waited for it.
    virtual bool tells_at_once() const = 0;

protected:
    erased_stream() = default;

    /// A pending async_receive has asio::error::operation_aborted for its result; so has what is being sent.
    virtual void cancel() = 0;

    /// Has the next read_some look what there is, though the last has found nothing more. Returns: whether what it
    /// finds may be less than what has come.
    virtual bool look_again() = 0;

    /// Whether the last read_some met what is no data, behind which there may be more.
    virtual bool has_skipped() const = 0;

    /// asio::error::would_block when there is nothing.
    virtual std::size_t read_some(asio::mutable_buffer buffer, asio::error_code& error) = 0;

    /// Waits until there may be more. May put it into what read_side::room gives, and tells how much with `arrived`.
    virtual void async_receive(read_handler handler) = 0;

    /// Tells that nothing is known, asio::error::would_block, when others have had their turn. Not for cancel to end,
    /// only for the handler's cancellation slot, with asio::error::interrupted.
    virtual void async_yield(read_handler handler) = 0;

    /// What a read_handler was told.
    virtual read_result arrived(const asio::error_code& error, std::size_t size) = 0;

    virtual write_result write_some(asio::const_buffer data) = 0;

    /// Waits until write_some can go on, and may write of `data`. Calls write_side::written in the end.
    virtual void async_write(asio::const_buffer data) = 0;

    /// Whether all that was written, and all that the stream says by itself, was handed to the socket or never will be.
    virtual bool is_flushed() const = 0;

    virtual asio::awaitable<void> start_tls(std::unique_ptr<upgrade_request> request) = 0;
    virtual asio::awaitable<std::string> stop_tls() = 0; ///< Gives what is then to be read first.
    virtual asio::awaitable<void> shutdown(asio::socket_base::shutdown_type what, asio::error_code& error) = 0;
    virtual std::size_t unread() = 0; ///< Bytes that the operating system holds.
    virtual bool end_at_once() = 0;   ///< Tells the peer of the end if closing the socket is then all that is left.
    virtual void close_socket() = 0;
};

} // namespace upgradeable_streams::detail

#endif
