#ifndef TEST_SUPPORT_DUPLEX_HPP
#define TEST_SUPPORT_DUPLEX_HPP

#include "pattern.hpp"
#include "raw_peer.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace test
{

struct duplex_plan
{
    std::uint64_t bytes_to_send = 0;
    std::uint64_t bytes_to_receive = 0;
    pattern sent{1};
    pattern received{2};
    std::size_t key_update_every = 0; ///< Bytes sent between two KeyUpdates; 0 for none.
    bool request_peer = true;         ///< Whether each KeyUpdate asks for one in return.
    std::size_t write_size = 16384;   ///< Of each SSL_write.
};

struct duplex_result
{
    std::uint64_t sent = 0;
    std::uint64_t received = 0;
    std::uint64_t key_updates = 0;
    std::optional<std::uint64_t> mismatch; ///< Offset of the first byte received that is not the pattern's.
    std::string error;                     ///< What ended the exchange early.

    bool ok() const { return error.empty() && !mismatch; }
};

/// Sends and receives over `peer`'s TLS session at the same time, with KeyUpdates between its writes.
///
/// Answers to KeyUpdates may stay unread, so `peer.tls_shutdown()` comes before `close()`, which would send a RST.
duplex_result exchange(raw_peer& peer, const duplex_plan& plan);

} // namespace test

#endif
