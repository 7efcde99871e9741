#ifndef TEST_SUPPORT_ALLOCATIONS_HPP
#define TEST_SUPPORT_ALLOCATIONS_HPP

#include <cstddef>

// A program that uses these has the global operator new replaced.

namespace test
{

/// How many allocations by operator new are alive, of all threads, and the bytes that they take.
struct memory_use
{
    std::ptrdiff_t allocations;
    std::ptrdiff_t bytes;

    bool operator==(const memory_use&) const = default;
};

memory_use allocated();

/// Lets the nth allocation by operator new that this thread makes from now on fail; counted from 1.
class allocation_failure
{
public:
    explicit allocation_failure(std::size_t nth);
    ~allocation_failure();
    allocation_failure(const allocation_failure&) = delete;
    allocation_failure& operator=(const allocation_failure&) = delete;

    /// Whether there have been as many; asked on the same thread.
    bool happened() const;
};

} // namespace test

#endif
