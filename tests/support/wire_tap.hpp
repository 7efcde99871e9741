#ifndef TEST_SUPPORT_WIRE_TAP_HPP
#define TEST_SUPPORT_WIRE_TAP_HPP

#include "tls_records.hpp"

#include <asio/any_io_executor.hpp>
#include <asio/ip/tcp.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace test
{

/// Where and how a relay ends a connection: after so many bytes in one direction, which ends with a FIN, or with a
/// RST for both ends.
struct wire_cut
{
    bool from_client;
    std::size_t after;
    bool reset;
};

/// A relay on a free port of 127.0.0.1 that keeps a copy of all that passes; FIN and RST pass too.
///
/// The recordings are those of one connection after the other, so a test uses one at a time. Concurrency: to be
/// used on `executor` only (a strand where there are threads). Lifetime: work is pending until `close`, which
/// the destructor calls too.
class wire_tap
{
public:
    /// With `split` other than 0, no more than so many bytes are sent on at once.
    wire_tap(const asio::any_io_executor& executor, const asio::ip::tcp::endpoint& target, std::size_t split = 0);
    ~wire_tap();
    wire_tap(const wire_tap&) = delete;
    wire_tap& operator=(const wire_tap&) = delete;

    asio::ip::tcp::endpoint endpoint() const;
    std::uint16_t port() const { return endpoint().port(); }

    /// Ends the connections that pass from now on; what comes behind the cut is swallowed.
    void cut(const wire_cut& where);

    const std::string& client_to_server() const noexcept;
    const std::string& server_to_client() const noexcept;

    /// Stops listening, and closes the connections that pass through.
    void close();

private:
    struct relay;

    std::shared_ptr<relay> relay_;
};

} // namespace test

#endif
