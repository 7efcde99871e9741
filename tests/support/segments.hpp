#ifndef TEST_SUPPORT_SEGMENTS_HPP
#define TEST_SUPPORT_SEGMENTS_HPP

#include <cstdint>

namespace test
{

/// How many segments with data a TCP socket has sent, each counted once: on loopback one for each small send.
std::uint32_t data_segments_sent(int descriptor);

} // namespace test

#endif
