#include <upgradeable_streams/proxy_protocol.hpp>

#include "support/catch.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

namespace us = upgradeable_streams;
using namespace std::string_literals;

namespace
{

const std::string signature = "\r\n\r\n\0\r\nQUIT\n"s;
const std::string ends_v4 = "\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x00\x19"s; // 192.0.2.1:56324, 198.51.100.2:25

/// A network load balancer's, as its maker prints it.
const std::string with_checksum =
    signature +
    "\x21\x11\x00\x54\xac\x1f\x07\x71\xac\x1f\x0a\x1f\xc8\xf2\x00\x50\x03\x00\x04\xe8\xd6\x89\x2d"
    "\xea\x00\x17\x01vpce-08d2bf15fac5001c9\x04\x00\x24"s +
    std::string(36, '\0');

/// A header of version 2.
std::string block(char version_and_command, char family_and_protocol, const std::string& rest)
{
    return signature + version_and_command + family_and_protocol + static_cast<char>(rest.size() >> 8) +
           static_cast<char>(rest.size() & 0xff) + rest;
}

std::string extension(char type, const std::string& value)
{
    return type + ""s + static_cast<char>(value.size() >> 8) + static_cast<char>(value.size() & 0xff) + value;
}

std::string path(std::string bytes)
{
    bytes.resize(108);
    return bytes;
}

us::socket_address ip(const std::string& host, std::uint16_t port)
{
    us::socket_address made;
    made.host = host;
    made.port = port;
    return made;
}

us::socket_address unix_path(const std::string& host)
{
    us::socket_address made;
    made.host = host;
    made.is_unix = true;
    return made;
}

/// What the parser makes of bytes: a header, nothing yet (empty), or the reason for which it refuses them.
struct outcome
{
    std::optional<us::proxy_header> header;
    std::string refusal;
};

outcome parse(std::string_view bytes)
try
{
    return {us::parse_proxy_header(bytes), {}};
}
catch (const std::system_error& error)
{
    CHECK(error.code() == us::errc::proxy_header_invalid);
    return {{}, error.what()};
}

struct valid
{
    std::string bytes;
    std::optional<us::socket_address> source = {};
    std::optional<us::socket_address> destination = {};
    bool is_local = false;
};

struct malformed
{
    std::string bytes;
    std::size_t refused_at; ///< How many of them show it.
    std::string reason;
};

} // namespace

TEST_CASE("parse_proxy_header: each header is read when it is whole, and not before, whatever follows")
{
    const std::string ffff = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    const us::socket_address client = ip("192.0.2.1", 56324);
    const us::socket_address server = ip("198.51.100.2", 25);
    const std::string ends_v6 = "\x20\x01\x0d\xb8"s + std::string(11, '\0') + "\x01" + std::string(15, '\0') +
                                "\x01\xff\xff\x00\x19"s;
    const std::vector<valid> headers = {
        {"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n", client, server},
        {"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", ip("255.255.255.255", 65535),
         ip("255.255.255.255", 65535)},
        {"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", ip("0.0.0.0", 0), ip("0.0.0.0", 0)},
        {"PROXY TCP6 2001:db8::1 ::1 56324 25\r\n", ip("2001:db8::1", 56324), ip("::1", 25)},
        {"PROXY TCP6 2001:0DB8:0:0:0:0:0:1 :: 1 2\r\n", ip("2001:db8::1", 1), ip("::", 2)},
        {"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", ip("::ffff:192.0.2.1", 1), ip("::1", 2)},
        {"PROXY TCP6 " + ffff + " " + ffff + " 65535 65535\r\n", ip(ffff, 65535), ip(ffff, 65535)},
        {"PROXY UNKNOWN\r\n"},
        {"PROXY UNKNOWN \r\n"},
        {"PROXY UNKNOWN any\0thing\rat\nall\r\n"s},
        {"PROXY UNKNOWN " + ffff + " " + ffff + " 65535 65535\r\n"},

        {block(0x21, 0x11, ends_v4), client, server},
        {block(0x21, 0x12, ends_v4), client, server}, // a datagram's sender
        {block(0x21, 0x21, ends_v6), ip("2001:db8::1", 65535), ip("::1", 25)},
        {block(0x21, 0x22, ends_v6), ip("2001:db8::1", 65535), ip("::1", 25)},
        {block(0x21, 0x31, path("/run/a.sock") + path("/run/b.sock")), unix_path("/run/a.sock"),
         unix_path("/run/b.sock")},
        {block(0x21, 0x32, path(std::string(108, 'a')) + path("\0abstract"s)), unix_path(std::string(108, 'a')),
         unix_path("")},
        {block(0x21, 0x11, ends_v4 + extension(0x01, "h2") + extension(0x04, "") + extension(0x20, "\0\0\0\0\0"s)),
         client, server},
        {with_checksum, ip("172.31.7.113", 51442), ip("172.31.10.31", 80)},

        {block(0x20, 0x00, ""), {}, {}, true},
        {block(0x20, 0x00, "whatever"), {}, {}, true},
        {block(0x20, 0x11, ends_v4), {}, {}, true},
        {block(0x20, 0x11, ""), {}, {}, true},
        {block(0x20, '\xff', "of a family that nobody knows"), {}, {}, true},
        {block(0x21, 0x00, "")},
        {block(0x21, 0x00, "whatever")},
        {block(0x21, 0x10, ends_v4)},
        {block(0x21, 0x01, ends_v4)},
    };
    for (const valid& each : headers)
    {
        INFO(each.bytes);
        const us::proxy_header expected = {each.bytes.size(), each.is_local, each.source, each.destination};
        for (std::size_t size = 0; size < each.bytes.size(); ++size)
        {
            const outcome before = parse(std::string_view(each.bytes).substr(0, size));
            if (before.header || !before.refusal.empty())
                FAIL("after " << size << " bytes: " << before.refusal);
        }
        for (const std::string& behind : {""s, "\r"s, "\n"s, "\0"s, " "s, "1"s, "QUIT\r\n"s, "\x16\x03"s, each.bytes})
        {
            const outcome whole = parse(each.bytes + behind);
            CHECK(whole.refusal == "");
            CHECK(whole.header == expected);
        }
    }
}

TEST_CASE("parse_proxy_header: a block of the greatest length is read when it is whole")
{
    const std::string bytes = block(0x21, 0x11, ends_v4 + extension(0x04, std::string(65535 - 12 - 3, '\0')));
    REQUIRE(bytes.size() == 65551);
    CHECK_FALSE(parse(std::string_view(bytes).substr(0, bytes.size() - 1)).header);
    CHECK(parse(bytes).header->size == bytes.size());
    CHECK(parse(bytes).header->source == ip("192.0.2.1", 56324));
}

TEST_CASE("parse_proxy_header: what is malformed is refused as soon as that shows, and from then on")
{
    const std::string tcp4 = "PROXY TCP4 ";
    const std::string tcp6 = "PROXY TCP6 ";
    const std::string line = "the line is malformed";
    const std::string address = "an address is malformed";
    const std::string port = "a port is malformed";
    const std::string something_else = "it begins with something else";
    const std::string cut_short = "an extension is cut short";
    const std::vector<malformed> headers = {
        {"GET / HTTP/1.1\r\n", 1, something_else},
        {"\x16\x03\x01", 1, something_else},
        {"\nPROXY TCP4", 1, something_else},
        {" PROXY TCP4", 1, something_else},
        {"proxy tcp4", 1, something_else},
        {"PING\r\n", 2, something_else},
        {"PROXY\r\n", 6, something_else},
        {"PROXY  TCP4", 7, something_else},
        {"PROXY \tTCP4", 7, something_else},
        {"PROXY TCP5 ", 10, something_else},
        {"PROXY TCP46 ", 11, something_else},
        {"PROXY TCP4\r\n", 11, something_else},
        {"PROXY UDP4 ", 8, something_else},
        {"PROXY UNIX ", 9, something_else},
        {"PROXY UNKNOWNS\r\n", 14, line},
        {"PROXY UNKNOWN\n", 14, line},
        {"PROXY UNKNOWN\rx", 15, line},
        {"PROXY UNKNOWN " + std::string(92, 'x') + "\r\n", 107, "the line is too long"},

        {tcp4 + "\r\n", 12, line},
        {tcp4 + " 192.0.2.1", 12, address},
        {tcp4 + "192.0.2.1\t1", 21, line},
        {tcp4 + "localhost 1", 12, line},
        {tcp4 + "192.0.2.1:80 1", 21, line},
        {tcp4 + "192.0.2 1", 19, address},
        {tcp4 + "192.0.2.1. 1", 22, address},
        {tcp4 + "192.0.2.1.1 1", 23, address},
        {tcp4 + "192.0.2.256 1", 23, address},
        {tcp4 + "192.0.2.01 1", 22, address},
        {tcp4 + "0192.0.2.1 1", 22, address},
        {tcp4 + "3221225985 1", 22, address},
        {tcp4 + "2001:db8::1 1", 16, line},
        {tcp4 + "1922.0000.0002.01 1", 27, line},
        {tcp4 + "192.0.2.1  198.51.100.2 1 2\r\n", 22, address},
        {tcp4 + "192.0.2.1 2001:db8::1 1 2\r\n", 26, line},
        {tcp4 + "192.0.2.1 198.51.100.2\r\n", 34, line},
        {tcp4 + "192.0.2.1 198.51.100.2 1\r\n", 36, line},
        {tcp4 + "192.0.2.1 198.51.100.2  2\r\n", 35, port},
        {tcp4 + "192.0.2.1 198.51.100.2 +1 2\r\n", 35, line},
        {tcp4 + "192.0.2.1 198.51.100.2 -1 2\r\n", 35, line},
        {tcp4 + "192.0.2.1 198.51.100.2 0x1 2\r\n", 36, line},
        {tcp4 + "192.0.2.1 198.51.100.2 01 2\r\n", 37, port},
        {tcp4 + "192.0.2.1 198.51.100.2 00 2\r\n", 37, port},
        {tcp4 + "192.0.2.1 198.51.100.2 65536 2\r\n", 40, port},
        {tcp4 + "192.0.2.1 198.51.100.2 000001 2\r\n", 40, line},
        {tcp4 + "192.0.2.1 198.51.100.2 1 \r\n", 38, port},
        {tcp4 + "192.0.2.1 198.51.100.2 1 02\r\n", 40, port},
        {tcp4 + "192.0.2.1 198.51.100.2 1 65536\r\n", 43, port},
        {tcp4 + "192.0.2.1 198.51.100.2 1 2\n", 38, line},
        {tcp4 + "192.0.2.1 198.51.100.2 1 2\rx", 39, line},
        {tcp4 + "192.0.2.1 198.51.100.2 1 2 \r\n", 38, line},
        {tcp4 + "192.0.2.1 198.51.100.2 1 2\0\r\n"s, 38, line},

        {tcp6 + "192.0.2.1 192.0.2.2 1 2\r\n", 21, address},
        {tcp6 + "2001:db8::1::2 ::1", 26, address},
        {tcp6 + "2001:db8::12345 ::1", 27, address},
        {tcp6 + "1:2:3:4:5:6:7:8:9 ::1", 29, address},
        {tcp6 + "1:2:3:4:5:6:7 ::1", 25, address},
        {tcp6 + "fe80::1%eth0 ::1", 19, line},
        {tcp6 + "[::1] ::1", 12, line},
        {tcp6 + "0000:0000:0000:0000:0000:ffff:192.168.100.200 ::1", 51, line},

        {"\r\nPROXY", 3, something_else},
        {signature.substr(0, 11) + "\r", 12, something_else},
        {signature + "\x11\x11", 13, "the version or the command is unknown"},
        {signature + "\x31\x11", 13, "the version or the command is unknown"},
        {signature + "\x22\x11", 13, "the version or the command is unknown"},
        {signature + "\x2f\x11", 13, "the version or the command is unknown"},
        {signature + "\x21\x41", 14, "the address family or the protocol is unknown"},
        {signature + "\x21\xf1", 14, "the address family or the protocol is unknown"},
        {signature + "\x21\x13", 14, "the address family or the protocol is unknown"},
        {signature + "\x21\x1f", 14, "the address family or the protocol is unknown"},
        {block(0x21, 0x11, ends_v4.substr(1)), 16, "the length is less than that of the addresses"},
        {block(0x21, 0x11, ""), 16, "the length is less than that of the addresses"},
        {block(0x21, 0x21, std::string(35, '\0')), 16, "the length is less than that of the addresses"},
        {block(0x21, 0x31, std::string(215, '\0')), 16, "the length is less than that of the addresses"},
        {block(0x21, 0x11, ends_v4 + "\x04"), 29, cut_short},
        {block(0x21, 0x11, ends_v4 + "\x04\0"s), 30, cut_short},
        {block(0x21, 0x11, ends_v4 + "\x04\0\1"s), 31, cut_short},
        {block(0x21, 0x11, ends_v4 + extension(0x04, "") + "\x04\xff\xffwhatever"), 42, cut_short},
        {block(0x21, 0x11, ends_v4 + extension(0x03, "123")), 34, "the checksum is malformed"},
        {block(0x21, 0x11, ends_v4 + extension(0x03, "12345")), 36, "the checksum is malformed"},
        {block(0x21, 0x11, ends_v4 + extension(0x03, "1234")), 35, "the checksum is wrong"},
        {block(0x21, 0x11, ends_v4 + extension(0x03, "1234") + extension(0x03, "1234")), 42,
         "the checksum is malformed"},
    };
    for (const malformed& each : headers)
    {
        INFO(each.bytes);
        REQUIRE(each.refused_at <= each.bytes.size());
        for (std::size_t size = 0; size <= each.bytes.size(); ++size)
        {
            const outcome now = parse(std::string_view(each.bytes).substr(0, size));
            if (now.header || now.refusal.empty() != (size < each.refused_at))
                FAIL("after " << size << " bytes: " << (now.refusal.empty() ? "not refused" : now.refusal));
        }
        CHECK_THAT(parse(each.bytes).refusal, test::starts_with(each.reason + ": "));
        CHECK_FALSE(parse(each.bytes + std::string(70'000, '\r')).header);
        CHECK(parse(each.bytes + std::string(70'000, '1')).refusal == parse(each.bytes).refusal);
    }
}

TEST_CASE("parse_proxy_header: a checksum covers each bit of the header")
{
    for (std::size_t i = 16; i < with_checksum.size(); ++i)
        for (int bit = 0; bit < 8; ++bit)
        {
            const bool is_structure = (i >= 28 && i < 31) || (i >= 35 && i < 38) || (i >= 61 && i < 64);
            std::string changed = with_checksum;
            changed[i] = static_cast<char>(changed[i] ^ (1 << bit));
            if (!is_structure)
                CHECK_THAT(parse(changed).refusal, test::starts_with("the checksum is wrong"));
        }
}

TEST_CASE("proxy_header: a header is told apart from another")
{
    const auto header = us::parse_proxy_header(block(0x21, 0x11, ends_v4));
    CHECK(header == us::parse_proxy_header(block(0x21, 0x12, ends_v4)));
    CHECK(header != us::parse_proxy_header("PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n"));
}
