/// @file
/// Replies that begin with a code of three digits, as FTP has handed them on to SMTP and NNTP.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STARTTLS_CODE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STARTTLS_CODE_HPP

#include <upgradeable_streams/detail/starttls_dialogue.hpp>
#include <upgradeable_streams/error.hpp>

#include <string>
#include <string_view>

namespace upgradeable_streams::detail
{

/// The code of a reply's line, which ends there or goes on behind one of these characters (RFC 959 section 4.2).
inline std::string reply_code(const starttls_dialogue& dialogue, std::string_view line,
                              std::string_view separators = " ")
{
    const std::string code(line.substr(0, 3));
    if (code.size() < 3 || code.find_first_not_of("0123456789") != code.npos ||
        line.substr(3, 1).find_first_not_of(separators) != line.npos)
        dialogue.fail(errc::reply_malformed);
    return code;
}

/// Whether a request was refused (RFC 959 section 4.2.1).
inline bool is_negative(std::string_view code)
{
    return code.starts_with('4') || code.starts_with('5');
}

} // namespace upgradeable_streams::detail

#endif
