#ifndef TEST_SUPPORT_MEMORY_HPP
#define TEST_SUPPORT_MEMORY_HPP

#include "deadline.hpp"

#include <cstddef>

#include <malloc.h>

/// Of the sanitizers' allocator.
extern "C" std::size_t __sanitizer_get_current_allocated_bytes() __attribute__((weak));

namespace test
{

/// How many bytes of this process are allocated, by OpenSSL too.
inline std::size_t live_bytes()
{
    if (under_sanitizer)
        return __sanitizer_get_current_allocated_bytes();
    const struct mallinfo2 now = ::mallinfo2();
    return now.uordblks + now.hblkhd;
}

} // namespace test

#endif
