#include "allocations.hpp"

#include <atomic>
#include <cstdlib>
#include <new>

#include <malloc.h>

namespace
{

std::atomic<std::ptrdiff_t> live_allocations;
std::atomic<std::ptrdiff_t> live_bytes;
thread_local std::size_t until_failure = 0;

void* allocate(std::size_t size, std::size_t alignment)
{
    if (until_failure > 0 && --until_failure == 0)
        throw std::bad_alloc();
    void* memory = nullptr;
    if (alignment <= __STDCPP_DEFAULT_NEW_ALIGNMENT__)
        memory = std::malloc(size);
    else if (::posix_memalign(&memory, alignment, size) != 0)
        memory = nullptr;
    if (!memory)
        throw std::bad_alloc();
    ++live_allocations;
    live_bytes += static_cast<std::ptrdiff_t>(::malloc_usable_size(memory));
    return memory;
}

void release(void* memory) noexcept
{
    if (!memory)
        return;
    --live_allocations;
    live_bytes -= static_cast<std::ptrdiff_t>(::malloc_usable_size(memory));
    std::free(memory);
}

} // namespace

// All forms, for a sanitizer has its own of those that are not here.

void* operator new(std::size_t size)
{
    return allocate(size, 1);
}

void* operator new[](std::size_t size)
{
    return allocate(size, 1);
}

void* operator new(std::size_t size, std::align_val_t alignment)
{
    return allocate(size, static_cast<std::size_t>(alignment));
}

void* operator new[](std::size_t size, std::align_val_t alignment)
{
    return allocate(size, static_cast<std::size_t>(alignment));
}

void* operator new(std::size_t size, const std::nothrow_t&) noexcept
try
{
    return allocate(size, 1);
}
catch (const std::bad_alloc&)
{
    return nullptr;
}

void* operator new[](std::size_t size, const std::nothrow_t& nothrow) noexcept
{
    return operator new(size, nothrow);
}

void operator delete(void* memory) noexcept
{
    release(memory);
}

void operator delete[](void* memory) noexcept
{
    release(memory);
}

void operator delete(void* memory, std::size_t) noexcept
{
    release(memory);
}

void operator delete[](void* memory, std::size_t) noexcept
{
    release(memory);
}

void operator delete(void* memory, std::align_val_t) noexcept
{
    release(memory);
}

void operator delete[](void* memory, std::align_val_t) noexcept
{
    release(memory);
}

void operator delete(void* memory, std::size_t, std::align_val_t) noexcept
{
    release(memory);
}

void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept
{
    release(memory);
}

void operator delete(void* memory, const std::nothrow_t&) noexcept
{
    release(memory);
}

void operator delete[](void* memory, const std::nothrow_t&) noexcept
{
    release(memory);
}

namespace test
{

memory_use allocated()
{
    return {live_allocations, live_bytes};
}

allocation_failure::allocation_failure(std::size_t nth)
{
    until_failure = nth;
}

allocation_failure::~allocation_failure()
{
    until_failure = 0;
}

bool allocation_failure::happened() const
{
    return until_failure == 0;
}

} // namespace test
