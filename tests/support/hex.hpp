#ifndef TEST_SUPPORT_HEX_HPP
#define TEST_SUPPORT_HEX_HPP

#include <string>
#include <string_view>

namespace test
{

inline std::string hex(std::string_view bytes)
{
    std::string text;
    for (const char byte : bytes)
        for (const int digit : {byte >> 4 & 15, byte & 15})
            text += "0123456789ABCDEF"[digit];
    return text;
}

} // namespace test

#endif
