/// @file
/// Where TLS records are put together before they are sent.
#ifndef UPGRADEABLE_STREAMS_DETAIL_RECORD_BUFFER_HPP
#define UPGRADEABLE_STREAMS_DETAIL_RECORD_BUFFER_HPP

#include <openssl/ssl3.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>

namespace upgradeable_streams::detail
{

/// How much is encrypted before it is sent.
inline constexpr std::size_t tls_batch = 16 * SSL3_RT_MAX_PLAIN_LENGTH;

/// Room for the records of a batch, which the connections of a thread take turns to use.
class record_buffer
{
public:
    /// For the records of so many bytes, or more.
    explicit record_buffer(std::size_t plain)
    {
        if (storage* const kept = spare())
            storage_ = std::exchange(*kept, {});
        constexpr std::size_t record = SSL3_RT_HEADER_LENGTH + SSL3_RT_MAX_ENCRYPTED_LENGTH;
        const std::size_t needed = (std::min(plain, tls_batch) / SSL3_RT_MAX_PLAIN_LENGTH + 1) * record;
        if (storage_.capacity >= needed)
            return;
        storage_ = {};
        storage_ = {std::unique_ptr<char[]>(new char[needed]), needed};
    }

    ~record_buffer()
    {
        if (storage* const kept = spare())
            *kept = std::move(storage_);
    }

    record_buffer(const record_buffer&) = delete;
    record_buffer& operator=(const record_buffer&) = delete;

    /// Whether there was room.
    bool append(std::string_view bytes)
    {
        if (bytes.size() > storage_.capacity - size_)
            return false;
        std::memcpy(storage_.bytes.get() + size_, bytes.data(), bytes.size());
        size_ += bytes.size();
        return true;
    }

    std::string_view filled() const { return {storage_.bytes.get(), size_}; }

private:
    struct storage
    {
        std::unique_ptr<char[]> bytes;
        std::size_t capacity = 0;
    };

    /// Null under MinGW, where what is thread_local loses its memory before it is destroyed (GCC bug 80816).
    static storage* spare()
    {
#ifdef __MINGW32__
        return nullptr;
#else
        static thread_local storage kept;
        return &kept;
#endif
    }

    storage storage_;
    std::size_t size_ = 0;
};

} // namespace upgradeable_streams::detail

#endif
