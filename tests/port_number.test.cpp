#include <upgradeable_streams/port_number.hpp>

#include "support/catch.hpp"

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace us = upgradeable_streams;

TEST_CASE("port_number: numbers of every integral type, and service names")
{
    const std::string service = "smtp";
    CHECK(us::port_number(25).to_string() == "25");
    CHECK(us::port_number(std::uint16_t(10001)).to_string() == "10001");
    CHECK(us::port_number(443L).to_string() == "443");
    CHECK(us::port_number(443ULL).to_string() == "443");
    CHECK(us::port_number("smtp").to_string() == "smtp");
    CHECK(us::port_number(service).to_string() == "smtp");
    CHECK(us::port_number(std::string_view("587")).to_string() == "587");
}

TEST_CASE("port_number: 0 and 65535 are ports")
{
    CHECK(us::port_number(0).to_string() == "0");
    CHECK(us::port_number(65535).to_string() == "65535");
}

TEST_CASE("port_number: a number that is no port is std::invalid_argument, not another port")
{
    CHECK_THROWS_AS(us::port_number(-1), std::invalid_argument);
    CHECK_THROWS_AS(us::port_number(65536), std::invalid_argument);
    CHECK_THROWS_AS(us::port_number(std::numeric_limits<std::int64_t>::min()), std::invalid_argument);
    CHECK_THROWS_AS(us::port_number(std::numeric_limits<std::uint64_t>::max()), std::invalid_argument);
    CHECK_THROWS_MATCHES(us::port_number(70000), std::invalid_argument,
                         test::message_contains("port 70000: a port is a number from 0 to 65535"));
    CHECK_THROWS_MATCHES(us::port_number("70000"), std::invalid_argument,
                         test::message_contains("port \"70000\": a port is a number from 0 to 65535"));
    CHECK_THROWS_MATCHES(us::port_number(std::string_view("25\0x", 4)), std::invalid_argument,
                         test::message_contains("holds a NUL"));
}

TEST_CASE("port_number: an empty service name is std::invalid_argument")
{
    CHECK_THROWS_AS(us::port_number(""), std::invalid_argument);
    CHECK_THROWS_AS(us::port_number(std::string()), std::invalid_argument);
}

TEST_CASE("port_number: text that the resolver would take for another port is std::invalid_argument")
{
    for (const std::string text : {"65536", "65537", "100000", "18446744073709551616", "-1", "+25", " 25", "\t25", "-"})
        CHECK_THROWS_AS(us::port_number(text), std::invalid_argument);
    for (const std::string text : {"0", "65535", "00025", "000000", "z39.50", "9pfs", "http-alt"})
        CHECK(us::port_number(text).to_string() == text);
}

TEST_CASE("port_number: it can be a parameter of a coroutine")
{
    CHECK(std::is_trivially_destructible_v<us::port_number>);
}
