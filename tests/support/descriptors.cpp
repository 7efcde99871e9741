#include "descriptors.hpp"

#include <cerrno>
#include <filesystem>
#include <iterator>
#include <system_error>

#include <fcntl.h>

namespace test
{
namespace
{

bool is_open(int descriptor)
{
    return ::fcntl(descriptor, F_GETFD) != -1 || errno != EBADF;
}

void set_limit(const rlimit& limit)
{
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0)
        throw std::system_error(errno, std::system_category(), "setrlimit");
}

} // namespace

std::size_t open_descriptors()
{
    const std::filesystem::directory_iterator entries("/proc/self/fd");
    const auto count = std::distance(begin(entries), end(entries));
    return static_cast<std::size_t>(count) - 1; // without the iterator's own
}

descriptor_limit::descriptor_limit(std::size_t spare) : before_{}
{
    if (::getrlimit(RLIMIT_NOFILE, &before_) != 0)
        throw std::system_error(errno, std::system_category(), "getrlimit");
    int limit = 0;
    while (spare > 0 || is_open(limit))
    {
        if (!is_open(limit))
            --spare;
        ++limit;
    }
    set_limit({static_cast<rlim_t>(limit), before_.rlim_max});
}

descriptor_limit::~descriptor_limit()
{
    ::setrlimit(RLIMIT_NOFILE, &before_);
}

} // namespace test
