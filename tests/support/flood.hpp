#ifndef TEST_SUPPORT_FLOOD_HPP
#define TEST_SUPPORT_FLOOD_HPP

#include "raw_peer.hpp"
#include "run.hpp"

#include <asio/awaitable.hpp>

#include <algorithm>
#include <cstddef>
#include <string_view>

#include <sys/socket.h>

namespace test
{

/// Sends until the other side, which runs on the same io_context, takes no more.
///
/// Returns: how many of `bytes` were sent.
inline asio::awaitable<std::size_t> flood(raw_peer& peer, std::string_view bytes)
{
    constexpr std::size_t piece = 16 * 1024;
    std::size_t sent = 0;
    for (int idle = 0; idle < 20 && sent < bytes.size();)
    {
        const std::string_view next = bytes.substr(sent, piece);
        const ssize_t count = ::send(peer.descriptor(), next.data(), next.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        sent += count > 0 ? std::size_t(count) : 0;
        idle = count > 0 ? 0 : idle + 1;
        co_await turns();
    }
    co_return sent;
}

} // namespace test

#endif
