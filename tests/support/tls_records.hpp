#ifndef TEST_SUPPORT_TLS_RECORDS_HPP
#define TEST_SUPPORT_TLS_RECORDS_HPP

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace test
{

/// The header of a TLS record (RFC 8446 section 5.1), and where in the bytes it stands.
struct tls_record
{
    static constexpr std::uint8_t change_cipher_spec = 20;
    static constexpr std::uint8_t alert = 21;
    static constexpr std::uint8_t handshake = 22;
    static constexpr std::uint8_t application_data = 23;

    std::size_t offset;
    std::uint8_t type;
    std::uint16_t version; ///< 0x0301 to 0x0304.
    std::uint16_t length;  ///< Without the header's 5 bytes.
};

struct tls_scan
{
    std::vector<tls_record> records;
    std::size_t end = 0;  ///< Offset of the first byte that belongs to no complete record.
    bool cut_off = false; ///< The bytes from `end` on may be the beginning of a record.
    bool all_tls = false; ///< Complete records, and nothing else.
};

/// Returns: the TLS records that `bytes` begin with, and where they stop to be TLS.
tls_scan tls_records(std::string_view bytes);

/// Whether `bytes` are TLS records and nothing else; the last may be cut off.
bool only_tls(std::string_view bytes);

} // namespace test

#endif
