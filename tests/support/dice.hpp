#ifndef TEST_SUPPORT_DICE_HPP
#define TEST_SUPPORT_DICE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>

namespace test
{

/// Chooses for a random walk; the same on every platform, as std::uniform_int_distribution is not.
class dice
{
public:
    explicit dice(std::uint64_t seed) : engine_(seed) {}

    std::size_t below(std::size_t end) { return static_cast<std::size_t>(engine_() % end); }
    bool one_in(std::size_t count) { return below(count) == 0; }

    /// Small ones as often as large ones.
    std::size_t size(std::size_t most) { return 1 + below(std::min(most, std::size_t(2) << below(17))); }

private:
    std::mt19937_64 engine_;
};

} // namespace test

#endif
