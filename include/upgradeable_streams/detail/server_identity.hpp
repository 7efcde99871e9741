/// @file
/// The name of a server, as a certificate has to have it.
#ifndef UPGRADEABLE_STREAMS_DETAIL_SERVER_IDENTITY_HPP
#define UPGRADEABLE_STREAMS_DETAIL_SERVER_IDENTITY_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/text.hpp>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <string_view>

namespace upgradeable_streams::detail
{

/// The name that a client verifies, as the caller gave it or in OpenSSL's terms.
struct server_identity
{
    std::string name;
    bool is_address = false;

    /// Throws std::invalid_argument for a name that OpenSSL would match too liberally or not at all.
    static server_identity parse(std::string_view given);

    bool is_same(std::string_view other) const { return lower_case(name) == lower_case(parse(other).name); }
};

/// Null where it may be one.
inline const char* why_no_dns_name(std::string_view name)
{
    if (name.find(' ') != name.npos)
        return "holds a space";
    if (std::ranges::any_of(name, [](unsigned char c) { return c < ' ' || c >= 0x7f; }))
        return "holds a character that is not printable ASCII; give an internationalised name as A-labels (xn--...)";
    return name.size() > 253 ? "is longer than a DNS name can be" : nullptr;
}

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL server_identity server_identity::parse(std::string_view given)
{
    const auto refuse = [&](const char* reason)
    { throw std::invalid_argument("server_hostname \"" + printable(given) + "\" " + reason); };

    std::string_view name = given;
    if (name.ends_with('.'))
        name.remove_suffix(1);
    const bool is_bracketed = name.size() > 2 && name.front() == '[' && name.back() == ']';
    const std::string_view text = is_bracketed ? name.substr(1, name.size() - 2) : name;
    const std::string_view unscoped = text.substr(0, text.find('%'));
    const auto address = parse_address(unscoped);
    if (address && (address->is_v6() || unscoped == name) && name.find('\0') == name.npos)
        return {address->to_string(), true};

    if (name.empty())
        refuse("is empty: any certificate would match");
    if (name.front() == '.')
        refuse("begins with a dot: any subdomain would match");
    if (name.find('*') != name.npos)
        refuse("holds a wildcard; give the name of one host");
    if (name.find_first_of("[]%") != name.npos)
        refuse("holds brackets or a %, which are for IPv6 addresses");
    if (const char* const reason = why_no_dns_name(name))
        refuse(reason);
    return {std::string(name), false};
}

#endif

} // namespace upgradeable_streams::detail

#endif
