/// @file
/// Text that peers send: its words, and how it is shown.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TEXT_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TEXT_HPP

#include <asio/error_code.hpp>
#include <asio/ip/address.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace upgradeable_streams::detail
{

/// What a peer sent, fit to be shown in one line: at most 100 bytes of it, others than printable ASCII escaped.
inline std::string printable(std::string_view bytes)
{
    constexpr std::size_t most = 100;
    std::string text;
    while (bytes.ends_with('\n') || bytes.ends_with('\r'))
        bytes.remove_suffix(1);
    for (const char c : bytes.substr(0, most))
        if (c >= ' ' && c <= '~')
            text += c;
        else
        {
            constexpr std::string_view digits = "0123456789abcdef";
            const auto value = static_cast<unsigned char>(c);
            (text += "\\x") += {digits[value / 16], digits[value % 16]};
        }
    return bytes.size() > most ? text + "..." : text;
}

/// `host:port`, with brackets around what has colons of its own.
inline std::string join_host_port(std::string_view host, std::string_view port)
{
    std::string joined(host);
    if (host.find(':') != host.npos)
        joined = "[" + joined + "]";
    return joined + ":" + std::string(port);
}

/// Throws std::invalid_argument for text that a function of C would cut.
inline void refuse_nul(std::string_view text, const std::string& what)
{
    if (text.find('\0') != text.npos)
        throw std::invalid_argument(what + " holds a NUL, at which it would be cut");
}

/// As refuse_nul, but an abstract name of Linux begins with one.
inline void refuse_nul_in_path(std::string_view path)
{
    if (!path.starts_with('\0'))
        refuse_nul(path, "path");
}

/// Of the letters of ASCII.
inline std::string lower_case(std::string_view text)
{
    std::string lower(text);
    for (char& c : lower)
        if (c >= 'A' && c <= 'Z')
            c = char(c - 'A' + 'a');
    return lower;
}

/// Takes the first word off a line, and the blanks behind it.
inline std::string_view take_word_as_is(std::string_view& line)
{
    const std::string_view word = line.substr(0, line.find_first_of(" \t\r\n"));
    line.remove_prefix(word.size());
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    return word;
}

/// As take_word_as_is, in lower case.
inline std::string take_word(std::string_view& line)
{
    return lower_case(take_word_as_is(line));
}

/// Whether this is a word of printable ASCII.
inline bool is_word(std::string_view text)
{
    return !text.empty() && std::ranges::all_of(text, [](unsigned char c) { return c > ' ' && c < 0x7f; });
}

/// Whether no word is left.
inline bool is_line_end(std::string_view line)
{
    return line.find_first_not_of("\r\n") == line.npos;
}

/// An IPv4 address in four decimal numbers, or an IPv6 address. Windows would take a port as well, and `127.1`.
inline std::optional<asio::ip::address> parse_address(std::string_view text)
{
    asio::error_code error;
    const auto address = asio::ip::make_address(std::string(text), error);
    if (error || text.find_first_of(std::string_view("[]\0", 3)) != text.npos ||
        (address.is_v4() && text != address.to_string()))
        return std::nullopt;
    return address;
}

/// The size of the literal that `{12}` or `{12+}` announces at a line's end (RFC 9051 section 4.3, RFC 5804 section 4);
/// one that is too great for its type is the greatest.
inline std::optional<std::size_t> literal_size(std::string_view text)
{
    if (!text.starts_with('{') || !text.ends_with('}'))
        return std::nullopt;
    text.remove_prefix(1);
    text.remove_suffix(text.ends_with("+}") ? 2 : 1);
    std::size_t size = 0;
    const char* const end = text.data() + text.size();
    const auto [parsed, error] = std::from_chars(text.data(), end, size);
    if (error == std::errc::invalid_argument || parsed != end)
        return std::nullopt;
    return error == std::errc() ? size : std::numeric_limits<std::size_t>::max();
}

} // namespace upgradeable_streams::detail

#endif
