/// @file
/// The file of a Unix domain socket that a server listens on.
#ifndef UPGRADEABLE_STREAMS_DETAIL_UNIX_SOCKET_FILE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_UNIX_SOCKET_FILE_HPP

#include <asio/any_io_executor.hpp>
#include <asio/error.hpp>
#include <asio/local/stream_protocol.hpp>

#include <string>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>

namespace upgradeable_streams::detail
{

/// Removes the file in the end, but not another's that has taken its place: as long as the socket is open no other file
/// can have its inode.
class unix_socket_file
{
public:
    explicit unix_socket_file(std::string path)
        : path_(std::move(path)), is_known_(::lstat(path_.c_str(), &known_) == 0)
    {
    }

    unix_socket_file(const unix_socket_file&) = delete;
    unix_socket_file& operator=(const unix_socket_file&) = delete;

    ~unix_socket_file()
    {
        struct stat status;
        if (is_known_ && ::lstat(path_.c_str(), &status) == 0 && status.st_dev == known_.st_dev &&
            status.st_ino == known_.st_ino)
            ::unlink(path_.c_str());
    }

    /// Removes a socket that nobody listens on any more. Returns: std::errc::address_in_use where there is something
    /// else.
    static std::error_code remove_stale(const std::string& path, const asio::any_io_executor& executor)
    {
        struct stat status;
        if (::lstat(path.c_str(), &status) != 0)
            return {};
        asio::local::stream_protocol::socket probe(executor);
        probe.open();
        probe.non_blocking(true);
        asio::error_code error;
        probe.connect(path, error);
        if (!S_ISSOCK(status.st_mode) || error != asio::error::connection_refused)
            return std::make_error_code(std::errc::address_in_use);
        ::unlink(path.c_str());
        return {};
    }

private:
    std::string path_;
    struct stat known_;
    bool is_known_;
};

} // namespace upgradeable_streams::detail

#endif
