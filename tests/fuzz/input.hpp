#ifndef TEST_FUZZ_INPUT_HPP
#define TEST_FUZZ_INPUT_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>

namespace fuzz
{

/// The bytes of one run, taken from the front; at their end there are zeros.
class input
{
public:
    input(const std::uint8_t* data, std::size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

    bool empty() const { return rest_.empty(); }

    std::uint8_t byte()
    {
        const std::string_view taken = bytes(1);
        return taken.empty() ? 0 : static_cast<std::uint8_t>(taken.front());
    }

    /// A number below `end`.
    std::size_t below(std::size_t end)
    {
        std::size_t number = byte();
        if (end > 256)
            number = 256 * number + byte();
        return number % end;
    }

    /// At most `size` bytes.
    std::string_view bytes(std::size_t size)
    {
        const std::string_view taken = rest_.substr(0, size);
        rest_.remove_prefix(taken.size());
        return taken;
    }

private:
    std::string_view rest_;
};

/// Ends the program, as a finding does.
inline void require(bool condition, const char* fact)
{
    if (condition)
        return;
    std::cerr << "not so: " << fact << std::endl;
    std::abort();
}

} // namespace fuzz

#endif
