/// @file
/// Sending to and receiving from a socket without waiting and without its reactor.
#ifndef UPGRADEABLE_STREAMS_DETAIL_SOCKET_IO_HPP
#define UPGRADEABLE_STREAMS_DETAIL_SOCKET_IO_HPP

#include <asio/basic_stream_socket.hpp>
#include <asio/buffer.hpp>
#include <asio/error.hpp>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <string_view>
#include <system_error>
#include <type_traits>

namespace upgradeable_streams::detail
{

#ifdef _WIN32
using socket_descriptor = SOCKET;
using call_size = int;
inline constexpr int without_waiting = 0; // descriptor_of has made the socket non-blocking
inline constexpr int without_signal = 0;
inline constexpr int address_not_available = WSAEADDRNOTAVAIL;
inline constexpr std::size_t most_at_once = 256 * 1024; // of which Windows keeps a copy, whatever the socket's buffer
#else
using socket_descriptor = int;
using call_size = std::size_t;
inline constexpr int without_waiting = MSG_DONTWAIT;
inline constexpr int without_signal = MSG_NOSIGNAL;
inline constexpr int address_not_available = EADDRNOTAVAIL;
inline constexpr std::size_t most_at_once = INT_MAX;
#endif

inline constexpr auto invalid_descriptor = static_cast<socket_descriptor>(-1);

template <typename Stream>
inline constexpr bool is_socket = false;

/// Asio's own class and nothing that derives from it, which may do more than a system call.
template <typename Protocol, typename Executor>
inline constexpr bool is_socket<asio::basic_stream_socket<Protocol, Executor>> = true;

template <typename Stream>
socket_descriptor descriptor_of(Stream& stream)
{
    if constexpr (is_socket<std::remove_const_t<Stream>>)
    {
#if defined(__APPLE__) || defined(_WIN32) // where send waits in spite of MSG_DONTWAIT, or there is no such thing
        asio::error_code ignored;
        if (!stream.native_non_blocking())
            stream.native_non_blocking(true, ignored);
#endif
        return stream.native_handle();
    }
    else
        return invalid_descriptor;
}

/// An operation that was between two steps when the socket was closed finds no descriptor at its next.
inline asio::error_code as_aborted(const asio::error_code& error)
{
    return error && error == asio::error::bad_descriptor ? asio::error_code(asio::error::operation_aborted) : error;
}

/// Of a system call on a socket that has failed.
inline asio::error_code last_error()
{
#ifdef _WIN32
    const int error = ::WSAGetLastError();
    if (error == WSAENOTSOCK)
        return asio::error::bad_descriptor;
    return error == WSAENOBUFS ? asio::error::would_block : asio::error_code(error, asio::error::get_system_category());
#else
    return errno == EAGAIN ? asio::error::would_block : asio::error_code(errno, asio::error::get_system_category());
#endif
}

/// Whether a signal has ended a system call on a socket, which is to be made again.
inline bool was_interrupted()
{
#ifdef _WIN32
    return false;
#else
    return errno == EINTR;
#endif
}

/// Whether a blocking call can be made again after it.
inline bool is_transient(const asio::error_code& error)
{
    return error && (error == asio::error::would_block || error == asio::error::interrupted);
}

/// Whether an error tells that the connection is broken. A socket tells so once, to a write as well, and to reads from
/// then on that the stream has ended.
inline bool tells_cut_off(const std::error_code& error)
{
    return error == asio::error::connection_reset || error == asio::error::connection_aborted ||
           error == asio::error::timed_out || error == asio::error::host_unreachable ||
           error == asio::error::network_unreachable;
}

inline call_size bounded(std::size_t size)
{
    return static_cast<call_size>(std::min(size, most_at_once));
}

/// Sends what the socket takes at once.
inline std::size_t send_at_once(socket_descriptor descriptor, std::string_view bytes, asio::error_code& error)
{
    std::ptrdiff_t size = 0;
    do
        size = ::send(descriptor, bytes.data(), bounded(bytes.size()), without_waiting | without_signal);
    while (size < 0 && was_interrupted());
    error = size < 0 ? last_error() : asio::error_code();
    return size < 0 ? 0 : static_cast<std::size_t>(size);
}

/// Sends what the socket takes until it takes no more, nothing where there is none; sets `error` when that fails for
/// good.
inline std::size_t send_all_at_once(socket_descriptor descriptor, std::string_view bytes, asio::error_code& error)
{
    std::size_t size = 0;
    asio::error_code failed;
    while (size < bytes.size() && descriptor != invalid_descriptor && !failed)
        size += send_at_once(descriptor, bytes.substr(size), failed);
    if (failed && failed != asio::error::would_block)
        error = failed;
    return size;
}

/// Receives what the socket holds; asio::error::eof at the end.
inline std::size_t receive_at_once(socket_descriptor descriptor, char* data, std::size_t capacity,
                                   asio::error_code& error)
{
    std::ptrdiff_t size = 0;
    do
        size = ::recv(descriptor, data, bounded(capacity), without_waiting);
    while (size < 0 && was_interrupted());
    error = size < 0 ? last_error() : size == 0 ? asio::error_code(asio::error::eof) : asio::error_code();
    return size < 0 ? 0 : static_cast<std::size_t>(size);
}

/// As from a socket; asio::error::would_block where a stream does not tell without waiting what it holds.
template <typename Stream>
std::size_t receive_at_once(Stream& stream, const asio::mutable_buffer& memory, asio::error_code& error)
{
    if constexpr (is_socket<Stream>)
        return receive_at_once(descriptor_of(stream), static_cast<char*>(memory.data()), memory.size(), error);
    else if constexpr (requires { stream.receive_at_once(memory, error); })
        return stream.receive_at_once(memory, error);
    error = asio::error::would_block;
    return 0;
}

} // namespace upgradeable_streams::detail

#endif
