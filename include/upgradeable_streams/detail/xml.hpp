/// @file
/// As much of XML as is needed to find the elements of an XMPP stream, and no more than XMPP allows.
#ifndef UPGRADEABLE_STREAMS_DETAIL_XML_HPP
#define UPGRADEABLE_STREAMS_DETAIL_XML_HPP

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace upgradeable_streams::detail
{

inline constexpr std::string_view xml_space = " \t\r\n";

/// Whether text, or the value of an attribute, is well-formed and refers to no entities but the five predefined ones
/// (RFC 6120 section 11.1).
inline bool is_xml_text(std::string_view text)
{
    if (std::ranges::any_of(text, [](unsigned char c) { return c < ' ' && c != '\t' && c != '\r' && c != '\n'; }))
        return false;
    for (std::size_t at = 0; (at = text.find('&', at)) != text.npos; ++at)
    {
        const std::size_t end = text.find(';', at);
        const std::string_view name = text.substr(at + 1, end == text.npos ? 0 : end - at - 1);
        const bool is_hex = name.starts_with("#x");
        const std::string_view digits = name.substr(std::min<std::size_t>(is_hex ? 2 : 1, name.size()));
        const bool is_number =
            name.starts_with('#') && !digits.empty() &&
            digits.find_first_not_of(is_hex ? "0123456789abcdefABCDEF" : "0123456789") == digits.npos;
        if (!is_number && name != "lt" && name != "gt" && name != "amp" && name != "apos" && name != "quot")
            return false;
    }
    return text.find('<') == text.npos;
}

/// A tag with its attributes. Comments, processing instructions and what belongs to a DTD are none (RFC 6120 section
/// 11.1), nor are CDATA sections, which XMPP allows and no server needs before TLS.
struct xml_tag
{
    std::string_view name; ///< With its prefix.
    std::vector<std::pair<std::string_view, std::string_view>> attributes;
    bool is_end = false;
    bool is_empty = false; ///< Of an element without content.

    /// Returns: empty for what is not well-formed.
    static std::optional<xml_tag> parse(std::string_view text);

    std::string_view attribute(std::string_view wanted) const
    {
        const auto found = std::ranges::find(attributes, wanted, [](const auto& each) { return each.first; });
        return found == attributes.end() ? std::string_view() : found->second;
    }
};

/// Where in XML the next byte is.
class xml_position
{
public:
    bool is_in_tag() const { return inside_ != 0; }

    /// Returns: whether this byte was the end of a tag.
    bool pass(char c)
    {
        const char was = inside_;
        if (was == 0 ? c == '<' : was == '<' && (c == '"' || c == '\''))
            inside_ = c;
        else if (was == '<' && c == '>')
            inside_ = 0;
        else if (was == c)
            inside_ = '<';
        return was != 0 && inside_ == 0;
    }

private:
    char inside_ = 0; ///< '<' in a tag, the quote in an attribute's value.
};

/// The tag in front. Returns: empty where there is none.
inline std::optional<xml_tag> first_xml_tag(std::string_view text)
{
    xml_position position;
    for (std::size_t i = 0; i < text.size(); ++i)
        if (position.pass(text[i]))
            return xml_tag::parse(text.substr(0, i + 1));
    return std::nullopt;
}

inline void skip_xml_space(std::string_view& text)
{
    text.remove_prefix(std::min(text.find_first_not_of(xml_space), text.size()));
}

inline std::string_view take_xml_name(std::string_view& text)
{
    const auto is_in_name = [](unsigned char c)
    {
        return c >= 0x80 || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= ':') || c == '_' ||
               c == '-' || c == '.';
    };
    const auto end = std::ranges::find_if_not(text, is_in_name);
    const std::string_view name(text.begin(), end);
    text.remove_prefix(name.size());
    return name;
}

inline std::optional<xml_tag> xml_tag::parse(std::string_view text)
{
    constexpr std::size_t most_attributes = 64; // each is compared with those before it
    if (text.size() < 3 || text.front() != '<' || text.back() != '>')
        return std::nullopt;
    text = text.substr(1, text.size() - 2);
    xml_tag tag;
    tag.is_end = text.starts_with('/');
    tag.is_empty = text.ends_with('/');
    text = text.substr(tag.is_end, text.size() - tag.is_end - tag.is_empty);
    tag.name = take_xml_name(text);
    if (tag.name.empty() || (tag.is_end && tag.is_empty))
        return std::nullopt;
    for (;;)
    {
        const bool has_space = !text.empty() && xml_space.find(text.front()) != xml_space.npos;
        skip_xml_space(text);
        if (text.empty())
            return tag;
        const std::string_view name = take_xml_name(text);
        skip_xml_space(text);
        if (tag.is_end || !has_space || tag.attributes.size() == most_attributes || name.empty() ||
            !text.starts_with('='))
            return std::nullopt;
        text.remove_prefix(1);
        skip_xml_space(text);
        const std::size_t end = text.empty() ? text.npos : text.find(text.front(), 1);
        if (end == text.npos || (text.front() != '"' && text.front() != '\''))
            return std::nullopt;
        const std::string_view value = text.substr(1, end - 1);
        if (!is_xml_text(value) || std::ranges::count(tag.attributes, name, [](auto& each) { return each.first; }) > 0)
            return std::nullopt;
        tag.attributes.emplace_back(name, value);
        text.remove_prefix(end + 1);
    }
}

} // namespace upgradeable_streams::detail

#endif
