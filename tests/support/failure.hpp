#ifndef TEST_SUPPORT_FAILURE_HPP
#define TEST_SUPPORT_FAILURE_HPP

#include <stdexcept>

namespace test
{

/// What the test support throws, from any thread, when a test cannot go on.
class failure : public std::runtime_error
{
public:
    using std::runtime_error::runtime_error;
};

} // namespace test

#endif
