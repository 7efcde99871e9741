#ifndef TEST_SUPPORT_FLOOD_HPP
#define TEST_SUPPORT_FLOOD_HPP

#include "raw_peer.hpp"

#include <asio/awaitable.hpp>

#include <cstddef>
#include <string_view>

namespace test
{

/// Makes the system hold little of what is on the way from or to a socket.
void shrink_buffers(int descriptor);

/// Sends until the other side, which runs on the same io_context, takes no more; it has so many turns after each piece.
///
/// Returns: how many of `bytes` were sent.
asio::awaitable<std::size_t> flood(raw_peer& peer, std::string_view bytes, int turns_between = 10);

} // namespace test

#endif
