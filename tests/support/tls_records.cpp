#include "tls_records.hpp"

namespace test
{
namespace
{

constexpr std::size_t header_size = 5;
constexpr std::size_t longest_record = (1 << 14) + 2048; // TLS 1.2; TLS 1.3 allows 256 instead of 2048

bool may_begin_a_record(std::string_view bytes)
{
    const auto at = [bytes](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
    return (bytes.size() < 1 || (at(0) >= 20 && at(0) <= 23)) && (bytes.size() < 2 || at(1) == 3) &&
           (bytes.size() < 3 || at(2) <= 4) && (bytes.size() < 5 || std::size_t(at(3) << 8 | at(4)) <= longest_record);
}

} // namespace

tls_scan tls_records(std::string_view bytes)
{
    tls_scan scan;
    for (;;)
    {
        const std::string_view rest = bytes.substr(scan.end);
        if (rest.empty() || !may_begin_a_record(rest))
        {
            scan.all_tls = rest.empty();
            return scan;
        }
        const auto number = [rest](std::size_t i)
        {
            return static_cast<std::uint16_t>(static_cast<unsigned char>(rest[i]) << 8 |
                                              static_cast<unsigned char>(rest[i + 1]));
        };
        if (rest.size() < header_size || rest.size() < header_size + number(3))
        {
            scan.cut_off = true;
            return scan;
        }
        scan.records.push_back({scan.end, static_cast<std::uint8_t>(rest[0]), number(1), number(3)});
        scan.end += header_size + number(3);
    }
}

bool only_tls(std::string_view bytes)
{
    const tls_scan scan = tls_records(bytes);
    return scan.all_tls || scan.cut_off;
}

} // namespace test
