/// @file
/// Whether to look for input once more before waiting for it.
#ifndef UPGRADEABLE_STREAMS_DETAIL_SECOND_LOOK_HPP
#define UPGRADEABLE_STREAMS_DETAIL_SECOND_LOOK_HPP

#include <algorithm>
#include <utility>

namespace upgradeable_streams::detail
{

/// Learns whether input comes while others have their turn, as it does where many connections are busy: to look then is
/// a system call less than to wait. Each look in vain makes the next a rarer one.
class second_look
{
public:
    /// Whether to look once more, to be asked each time that nothing was found.
    bool is_due()
    {
        if (std::exchange(looking_, false))
            left_ = pause_ = static_cast<unsigned char>(std::min(2 * pause_, 64));
        else if (left_ == 0)
            looking_ = true;
        else
            --left_;
        return looking_;
    }

    void found()
    {
        if (std::exchange(looking_, false))
            pause_ = shortest;
    }

private:
    static constexpr unsigned char shortest = 2;

    bool looking_ = false;
    unsigned char pause_ = shortest; ///< Waits between looks in vain.
    unsigned char left_ = shortest;
};

} // namespace upgradeable_streams::detail

#endif
