/// @file
/// The words of lines.
#ifndef UPGRADEABLE_STREAMS_DETAIL_WORDS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_WORDS_HPP

#include <upgradeable_streams/certificate.hpp>

#include <algorithm>
#include <string>
#include <string_view>

namespace upgradeable_streams::detail
{

/// Takes the first word off a line, in lower case, and the blanks behind it.
inline std::string take_word(std::string_view& line)
{
    const std::string word = lower_case(line.substr(0, line.find_first_of(" \t\r\n")));
    line.remove_prefix(word.size());
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    return word;
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

} // namespace upgradeable_streams::detail

#endif
