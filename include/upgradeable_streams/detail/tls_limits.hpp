/// @file
/// How much of a peer's doing is kept in memory, whichever layer does TLS.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TLS_LIMITS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TLS_LIMITS_HPP

#include <cstddef>

namespace upgradeable_streams::detail
{

/// How many bytes are kept of what a peer sent in place of TLS.
inline constexpr std::size_t first_bytes_limit = 512;

/// Beyond so many bytes not yet handed to the socket nothing more is read, lest a peer that asks for replies and
/// receives none fills the memory.
inline constexpr std::size_t reply_limit = 64 * 1024;

/// How much that came before the peer's close_notify, and nobody has read, is kept for the plain stream.
inline constexpr std::size_t unread_limit = 64 * 1024;

} // namespace upgradeable_streams::detail

#endif
