/// @file
/// The parameter type of calls that take a port number or a service name.
#ifndef UPGRADEABLE_STREAMS_PORT_NUMBER_HPP
#define UPGRADEABLE_STREAMS_PORT_NUMBER_HPP

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace upgradeable_streams
{

/// A port number, or a service name such as "smtp".
///
/// Errors: std::invalid_argument for a number that is no port, or an empty name.
///
/// Lifetime: a view. The call that takes it copies what it needs.
class port_number
{
public:
    template <std::integral Number>
    constexpr port_number(Number number) : number_(static_cast<std::uint16_t>(number))
    {
        if (!std::in_range<std::uint16_t>(number))
            throw std::invalid_argument("port " + std::to_string(number) + ": a port is a number from 0 to 65535");
    }

    template <std::convertible_to<std::string_view> String>
    constexpr port_number(const String& service) : service_(service)
    {
        if (service_.empty())
            throw std::invalid_argument("the port is empty; give a number, or the name of a service");
        if (service_.find('\0') != service_.npos)
            throw std::invalid_argument("the port holds a NUL, at which it would be cut");
        if (getaddrinfo_takes_it_for_another(service_))
            throw std::invalid_argument("port \"" + std::string(service_) +
                                        "\": a port is a number from 0 to 65535, or the name of a service");
    }

    std::string to_string() const { return service_.empty() ? std::to_string(number_) : std::string(service_); }

private:
    /// glibc reads "65536" as 0, "-1" as 65535 and " 25" as 25.
    static constexpr bool getaddrinfo_takes_it_for_another(std::string_view service)
    {
        constexpr std::string_view digits = "0123456789";
        if (service.find_first_not_of(digits) != service.npos)
            return service.find_first_of("+- \t\n\v\f\r") == 0;
        service.remove_prefix(std::min(service.find_first_not_of('0'), service.size()));
        return service.size() > 5 || (service.size() == 5 && service > "65535");
    }

    std::string_view service_;
    std::uint16_t number_ = 0;
};

static_assert(std::is_trivially_destructible_v<port_number>);

} // namespace upgradeable_streams

#endif
