/// @file
/// Options of a connection, checked and owned.
#ifndef UPGRADEABLE_STREAMS_DETAIL_CONNECTION_SETTINGS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_CONNECTION_SETTINGS_HPP

#include <upgradeable_streams/detail/handshake_limit.hpp>
#include <upgradeable_streams/detail/strand.hpp>
#include <upgradeable_streams/detail/tls_settings.hpp>
#include <upgradeable_streams/tls.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string_view>

namespace upgradeable_streams::detail
{

/// Options of a connection, owned.
struct connection_settings
{
    tls_settings tls;
    std::size_t limit = 64 * 1024;
    std::optional<std::chrono::steady_clock::duration> operation_timeout;
    std::shared_ptr<handshake_limit> handshakes;
    std::shared_ptr<detail::strand> strand; ///< Null for a connection on whose executor nothing else runs meanwhile.
    bool tls_at_once = false;               ///< Before anything is read or written.
};

/// Checks and owns what connection_options and server_options have in common.
template <typename Options>
connection_settings make_settings(const Options& options, tls_role role, std::string_view server_hostname)
{
    if (options.upgradeable && !options.ssl)
        throw std::invalid_argument("upgradeable needs ssl: the context to upgrade with");
    if (options.limit == 0)
        throw std::invalid_argument("limit must be greater than zero");
    if (options.operation_timeout)
        require_positive(*options.operation_timeout, "operation_timeout");
    connection_settings made;
    made.tls_at_once = options.ssl && !options.upgradeable;
    made.limit = options.limit;
    made.operation_timeout = options.operation_timeout;
    made.tls.apply({.ssl = options.ssl,
                    .role = role,
                    .handshake_timeout = options.ssl_handshake_timeout,
                    .shutdown_timeout = options.ssl_shutdown_timeout,
                    .suppress_ragged_eofs = options.suppress_ragged_eofs});
    made.tls.server_hostname = server_hostname;
    if (options.ssl)
        made.tls.make_ssl();
    return made;
}

} // namespace upgradeable_streams::detail

#endif
