#ifndef TEST_SUPPORT_DESCRIPTORS_HPP
#define TEST_SUPPORT_DESCRIPTORS_HPP

#include <cstddef>

#include <sys/resource.h>

namespace test
{

/// Returns: how many descriptors this process has open.
std::size_t open_descriptors();

/// Lowers RLIMIT_NOFILE so that exactly `spare` more descriptors can be opened, until it is destroyed.
///
/// UndefinedBehaviorSanitizer's vptr check needs descriptors of its own, so it is to be off (CMakePresets.json).
class descriptor_limit
{
public:
    explicit descriptor_limit(std::size_t spare);
    ~descriptor_limit();
    descriptor_limit(const descriptor_limit&) = delete;
    descriptor_limit& operator=(const descriptor_limit&) = delete;

private:
    rlimit before_;
};

} // namespace test

#endif
