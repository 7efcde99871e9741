/// @file
/// Literals, in which IMAP and ManageSieve send what may be of several lines.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STARTTLS_LITERAL_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STARTTLS_LITERAL_HPP

#include <charconv>
#include <cstddef>
#include <limits>
#include <optional>
#include <string_view>
#include <system_error>

namespace upgradeable_streams::detail
{

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
