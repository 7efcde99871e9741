#ifndef TEST_SUPPORT_RECORD_FORGER_HPP
#define TEST_SUPPORT_RECORD_FORGER_HPP

#include "tls_settings.hpp"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace test
{

/// Encrypts a TLS 1.3 server's records in its place, so that they may be what OpenSSL never sends. The server has sent
/// nothing after the handshake, and sends nothing from the first forged record on.
class record_forger
{
public:
    /// The settings of the server, for its handshake, during which this lives. It sends no session tickets.
    tls_settings server();

    static constexpr unsigned char alert = 21;
    static constexpr unsigned char handshake = 22;

    /// The next record (RFC 8446 section 5.2).
    std::string record(unsigned char type, std::string_view content);

private:
    template <std::size_t Size>
    std::array<unsigned char, Size> derive(std::string_view label) const;

    std::string secret_;
    std::uint64_t sequence_ = 0;
};

} // namespace test

#endif
