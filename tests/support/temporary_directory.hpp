#ifndef TEST_SUPPORT_TEMPORARY_DIRECTORY_HPP
#define TEST_SUPPORT_TEMPORARY_DIRECTORY_HPP

#include <string>
#include <string_view>

namespace test
{

/// A private directory, removed with all that is in it; its path is short enough for a Unix socket.
class temporary_directory
{
public:
    temporary_directory();
    ~temporary_directory();
    temporary_directory(const temporary_directory&) = delete;
    temporary_directory& operator=(const temporary_directory&) = delete;

    const std::string& path() const noexcept { return path_; }

    /// The path of `name` within the directory, which need not exist.
    std::string file(std::string_view name) const;

    /// Effects: writes `content` to a file with these permission bits. Returns: its path.
    std::string write(std::string_view name, std::string_view content, unsigned mode = 0600) const;

private:
    std::string path_;
};

} // namespace test

#endif
