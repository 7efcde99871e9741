#include "temporary_directory.hpp"

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <system_error>

#include <stdlib.h>

namespace test
{

temporary_directory::temporary_directory() : path_("/tmp/us-test-XXXXXX")
{
    if (::mkdtemp(path_.data()) == nullptr)
        throw std::system_error(errno, std::system_category(), "mkdtemp");
}

temporary_directory::~temporary_directory()
{
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

std::string temporary_directory::file(std::string_view name) const
{
    return path_ + '/' + std::string(name);
}

std::string temporary_directory::write(std::string_view name, std::string_view content, unsigned mode) const
{
    const std::string path = file(name);
    std::ofstream stream;
    stream.exceptions(std::ios::failbit | std::ios::badbit);
    stream.open(path, std::ios::binary | std::ios::trunc);
    std::filesystem::permissions(path, std::filesystem::perms(mode));
    stream.write(content.data(), static_cast<std::streamsize>(content.size()));
    stream.close();
    return path;
}

} // namespace test
