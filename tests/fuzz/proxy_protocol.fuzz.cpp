// The header of a proxy, received byte by byte: when there is a result, that it stays, and what it may be.

#include "input.hpp"

#include <upgradeable_streams/proxy_protocol.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace us = upgradeable_streams;

namespace
{

struct outcome
{
    std::optional<us::proxy_header> header{};
    std::string refusal{};

    bool is_decided() const { return header || !refusal.empty(); }
    bool operator==(const outcome&) const = default;
};

outcome parse(std::string_view bytes)
try
{
    return {us::parse_proxy_header(bytes)};
}
catch (const std::system_error& error)
{
    fuzz::require(error.code() == us::errc::proxy_header_invalid, "a refusal is proxy_header_invalid");
    return {{}, error.what()};
}

/// The header of version 1 that tells these addresses.
std::string line_of(const us::socket_address& source, const us::socket_address& destination)
{
    const bool is_v6 = source.host.find(':') != source.host.npos;
    return std::string("PROXY ") + (is_v6 ? "TCP6 " : "TCP4 ") + source.host + " " + destination.host + " " +
           std::to_string(source.port) + " " + std::to_string(destination.port) + "\r\n";
}

void check(const us::proxy_header& header, std::size_t size)
{
    fuzz::require(header.size == size, "a header is read when it is whole");
    fuzz::require(header.source.has_value() == header.destination.has_value(), "both addresses are told, or none");
    fuzz::require(!header.is_local || !header.source, "a local header tells no address");
    if (!header.source)
        return;
    fuzz::require(header.source->is_unix == header.destination->is_unix, "both addresses are of one kind");
    if (header.source->is_unix)
        return;
    const outcome told_again = parse(line_of(*header.source, *header.destination));
    fuzz::require(told_again.header && told_again.header->source == header.source &&
                      told_again.header->destination == header.destination,
                  "the addresses are what a line of version 1 can tell");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    outcome first;
    std::size_t needed = 0;
    for (; needed <= bytes.size(); ++needed)
    {
        first = parse(bytes.substr(0, needed));
        if (first.is_decided())
            break;
        fuzz::require(needed < (bytes.starts_with('P') ? 107 : 65551), "a header is no longer than it may be");
    }
    if (!first.is_decided())
        return 0;
    if (first.header)
        check(*first.header, needed);
    fuzz::require(parse(bytes) == first, "what follows does not matter");
    return 0;
}
