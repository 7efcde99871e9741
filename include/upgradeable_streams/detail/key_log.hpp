/// @file
/// Where a context writes its sessions' secrets down, for who looks into the traffic.
#ifndef UPGRADEABLE_STREAMS_DETAIL_KEY_LOG_HPP
#define UPGRADEABLE_STREAMS_DETAIL_KEY_LOG_HPP

#include <upgradeable_streams/detail/context_data.hpp>
#include <upgradeable_streams/detail/text.hpp>

#include <openssl/ssl.h>

#include <fcntl.h>
#include <sys/stat.h>
#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

#include <cerrno>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

namespace upgradeable_streams::detail
{

#ifdef _WIN32

inline int open_to_append(const std::string& path)
{
    const std::filesystem::path wide(std::u8string(path.begin(), path.end()));
    return ::_wopen(wide.c_str(), _O_WRONLY | _O_APPEND | _O_CREAT | _O_BINARY | _O_NOINHERIT, _S_IREAD | _S_IWRITE);
}

/// Who can read it, its folder says.
inline bool is_secret(int)
{
    return true;
}

inline void append(int file, std::string_view bytes)
{
    [[maybe_unused]] const auto written = ::_write(file, bytes.data(), static_cast<unsigned>(bytes.size()));
}

inline void close_file(int file)
{
    ::_close(file);
}

#else

inline int open_to_append(const std::string& path)
{
    return ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
}

/// Whether a file is this user's, and no other's to read. A device keeps nothing; a pipe has a reader.
inline bool is_secret(int file)
{
    struct stat status = {};
    return ::fstat(file, &status) == 0 &&
           (S_ISCHR(status.st_mode) || (status.st_uid == ::geteuid() && (status.st_mode & (S_IRWXG | S_IRWXO)) == 0));
}

inline void append(int file, std::string_view bytes)
{
    [[maybe_unused]] const auto written = ::write(file, bytes.data(), bytes.size());
}

inline void close_file(int file)
{
    ::close(file);
}

#endif

/// Kept in the SSL_CTX.
class key_log
{
public:
    explicit key_log(const std::string& path) : file_(open_to_append(path))
    {
        const std::string what = "key log file \"" + path + "\"";
        if (file_ < 0)
            throw std::system_error(errno, std::generic_category(), what);
        if (is_secret(file_))
            return;
        close_file(file_);
        throw std::system_error(std::make_error_code(std::errc::operation_not_permitted),
                                what + " is another user's or can be read by others; chmod 600 it");
    }

    ~key_log() { close_file(file_); }
    key_log(const key_log&) = delete;
    key_log& operator=(const key_log&) = delete;

    /// Appends a line, whole also where several threads and processes do, but for Windows, where only the threads of
    /// one log may. What cannot be written is dropped.
    void write(std::string line) const { append(file_, line += '\n'); }

private:
    int file_;
};

inline void write_to_key_log(const SSL* ssl, const char* line)
try
{
    if (const key_log* log = context_data<key_log>(SSL_get_SSL_CTX(ssl)))
        log->write(line);
}
catch (...)
{
}

inline void log_keys(SSL_CTX* context, std::string_view path)
{
    if (path.empty())
        return;
    refuse_nul(path, "key_log_file");
    emplace_context_data<key_log>(context, std::string(path));
    SSL_CTX_set_keylog_callback(context, write_to_key_log);
}

} // namespace upgradeable_streams::detail

#endif
