/// @file
/// Where a context writes its sessions' secrets down, for who looks into the traffic.
#ifndef UPGRADEABLE_STREAMS_DETAIL_KEY_LOG_HPP
#define UPGRADEABLE_STREAMS_DETAIL_KEY_LOG_HPP

#include <upgradeable_streams/detail/context_data.hpp>
#include <upgradeable_streams/detail/text.hpp>

#include <openssl/ssl.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <system_error>

namespace upgradeable_streams::detail
{

/// Kept in the SSL_CTX.
class key_log
{
public:
    explicit key_log(const std::string& path)
        : descriptor_(::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600))
    {
        const std::string what = "key log file \"" + path + "\"";
        if (descriptor_ < 0)
            throw std::system_error(errno, std::generic_category(), what);
        struct stat status = {};
        const bool is_known = ::fstat(descriptor_, &status) == 0;
        const bool is_own = status.st_uid == ::geteuid() && (status.st_mode & (S_IRWXG | S_IRWXO)) == 0;
        if (is_known && (!S_ISREG(status.st_mode) || is_own))
            return;
        ::close(descriptor_);
        throw std::system_error(std::make_error_code(std::errc::operation_not_permitted),
                                what + " is another user's or can be read by others; chmod 600 it");
    }

    ~key_log() { ::close(descriptor_); }
    key_log(const key_log&) = delete;
    key_log& operator=(const key_log&) = delete;

    /// Appends a line, whole also where several threads and processes do. What cannot be written is dropped.
    void write(std::string line) const
    {
        line += '\n';
        [[maybe_unused]] const auto written = ::write(descriptor_, line.data(), line.size());
    }

private:
    int descriptor_;
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
