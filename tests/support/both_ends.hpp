#ifndef TEST_SUPPORT_BOTH_ENDS_HPP
#define TEST_SUPPORT_BOTH_ENDS_HPP

#include "raw_peer.hpp"
#include "thread.hpp"
#include "tls_settings.hpp"

#include <utility>

namespace test
{

/// Returns: what `function(ssl)` does at both ends of a TLS connection between raw peers, the client's first.
template <typename Function>
auto at_both_ends(const tls_settings& client, const tls_settings& server, Function function)
{
    raw_listener listener;
    auto serving = run_in_thread(
        [&]
        {
            raw_peer peer = listener.accept();
            peer.tls_accept(server);
            auto result = function(peer.ssl());
            peer.tls_shutdown();
            return result;
        });
    auto peer = raw_peer::connect(listener.endpoint());
    peer.tls_connect(client);
    auto result = function(peer.ssl());
    peer.tls_shutdown();
    return std::pair(std::move(result), serving.get());
}

} // namespace test

#endif
