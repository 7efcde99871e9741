/// @file
/// Where TLS records are put together before they are sent.
#ifndef UPGRADEABLE_STREAMS_DETAIL_RECORD_BUFFER_HPP
#define UPGRADEABLE_STREAMS_DETAIL_RECORD_BUFFER_HPP

#include <asio/buffer.hpp>
#include <asio/error_code.hpp>
#include <openssl/ssl3.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

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

/// Gives `encrypt(part, error)`, which returns how much of it was taken, at most tls_batch bytes: of several fragments
/// those that fill a record as they are, smaller ones joined.
template <typename ConstBufferSequence, typename Encrypt>
std::size_t gather_into_records(const ConstBufferSequence& buffers, Encrypt encrypt, asio::error_code& error)
{
    if constexpr (std::is_convertible_v<const ConstBufferSequence&, asio::const_buffer>)
        return encrypt(buffers, error);
    else
    {
        std::vector<char> joined;
        std::size_t size = 0;
        const auto put_joined = [&]
        {
            size += encrypt(asio::buffer(joined), error);
            joined.clear();
        };
        for (auto b = asio::buffer_sequence_begin(buffers); b != asio::buffer_sequence_end(buffers); ++b)
        {
            const asio::const_buffer fragment(*b);
            const bool is_large = fragment.size() >= SSL3_RT_MAX_PLAIN_LENGTH;
            if (is_large || joined.size() + fragment.size() > SSL3_RT_MAX_PLAIN_LENGTH)
                put_joined();
            const std::size_t room = tls_batch - size;
            if (error || room < SSL3_RT_MAX_PLAIN_LENGTH)
                break;
            const auto* const bytes = static_cast<const char*>(fragment.data());
            if (!is_large)
                joined.insert(joined.end(), bytes, bytes + fragment.size());
            else
                size += encrypt(asio::buffer(fragment, room), error);
            if (is_large && fragment.size() > room)
                return size;
        }
        if (!error)
            put_joined();
        return size;
    }
}

} // namespace upgradeable_streams::detail

#endif
