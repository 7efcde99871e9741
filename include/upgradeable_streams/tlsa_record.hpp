/// @file
/// What DNS says of a server's certificate (DANE).
#ifndef UPGRADEABLE_STREAMS_TLSA_RECORD_HPP
#define UPGRADEABLE_STREAMS_TLSA_RECORD_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/text.hpp>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace upgradeable_streams
{

/// A TLSA record (RFC 6698 section 2.1), with the names of RFC 7218.
struct tlsa_record
{
    std::uint8_t usage = 0;         ///< 0 PKIX-TA, 1 PKIX-EE, 2 DANE-TA, 3 DANE-EE.
    std::uint8_t selector = 0;      ///< 0 Cert, 1 SPKI.
    std::uint8_t matching_type = 0; ///< 0 Full, 1 SHA2-256, 2 SHA2-512.
    std::string data = {};          ///< In binary.

    /// Reads the presentation format (RFC 6698 section 2.2), as in `3 1 1 0b9f...`; blanks may part the digits.
    ///
    /// Errors: std::invalid_argument.
    static tlsa_record parse(std::string_view text);

    friend bool operator==(const tlsa_record&, const tlsa_record&) = default;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

inline std::optional<std::uint8_t> parse_byte(std::string_view digits, int base)
{
    std::uint8_t value = 0;
    const char* const end = digits.data() + digits.size();
    const auto [parsed, error] = std::from_chars(digits.data(), end, value, base);
    return error == std::errc() && parsed == end ? std::optional(value) : std::nullopt;
}

} // namespace detail

UPGRADEABLE_STREAMS_DECL tlsa_record tlsa_record::parse(std::string_view text)
{
    const auto require = [text](bool condition)
    {
        if (!condition)
            throw std::invalid_argument("\"" + detail::printable(text) +
                                        "\" is no TLSA record; give three numbers and hexadecimal digits");
    };
    tlsa_record record;
    std::string_view rest = text;
    for (std::uint8_t* const number : {&record.usage, &record.selector, &record.matching_type})
    {
        const auto value = detail::parse_byte(detail::take_word(rest), 10);
        require(value.has_value());
        *number = *value;
    }
    std::string digits;
    for (std::string word; !(word = detail::take_word(rest)).empty();)
        digits += word;
    require(rest.empty() && !digits.empty() && digits.size() % 2 == 0);
    for (std::size_t i = 0; i < digits.size(); i += 2)
    {
        const auto value = detail::parse_byte(std::string_view(digits).substr(i, 2), 16);
        require(value.has_value());
        record.data.push_back(static_cast<char>(*value));
    }
    return record;
}

#endif

} // namespace upgradeable_streams

#endif
