/// @file
/// Where TLS records begin and end in what a peer sends.
#ifndef UPGRADEABLE_STREAMS_DETAIL_RECORD_FRAMING_HPP
#define UPGRADEABLE_STREAMS_DETAIL_RECORD_FRAMING_HPP

#include <upgradeable_streams/detail/byte_order.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

namespace upgradeable_streams::detail
{

/// Whether bytes that came first begin a TLS record (RFC 8446 section 5.1), as far as they go.
inline bool begins_tls_record(std::string_view bytes)
{
    return (bytes.empty() || (bytes[0] >= 0x14 && bytes[0] <= 0x17)) && (bytes.size() < 2 || bytes[1] == 0x03);
}

/// Finds where records end in bytes that come in pieces.
///
/// OpenSSL does not give back input that it did not need, and plain text behind a close_notify would be lost in it.
/// So nothing behind a record of a close_notify's length is handed on until OpenSSL asks for more, which shows that it
/// was none. A close_notify that is padded to another length is not recognised: what follows it is noticed only where
/// it does not look like a record.
class record_framing
{
public:
    /// Returns: how many of the next bytes are to be given at once; 0 when they begin no record.
    std::size_t accept(std::string_view bytes)
    {
        std::size_t size = 0;
        while (size < bytes.size())
        {
            const std::size_t begin = size;
            for (; header_size_ < header_.size() && size < bytes.size(); ++size)
                header_[header_size_++] = bytes[size];
            if (!begins_tls_record({header_.data(), header_size_}))
            {
                header_size_ -= size - begin;
                return begin;
            }
            if (header_size_ < header_.size())
                break;
            const std::size_t step = std::min(body_size() - body_seen_, bytes.size() - size);
            size += step;
            body_seen_ += step;
            if (body_seen_ < body_size())
                break;
            header_size_ = body_seen_ = 0;
            if (may_be_close_notify())
                break;
        }
        return size;
    }

    /// How many of the next bytes TLS is to be given at once: all where no record begins, for TLS to refuse.
    std::size_t admit(std::string_view bytes)
    {
        const std::size_t records = accept(bytes);
        return records > 0 ? records : bytes.size();
    }

    /// `accept`, as often as there are records.
    std::size_t accept_all(std::string_view bytes)
    {
        std::size_t size = 0;
        while (const std::size_t step = accept(bytes.substr(size)))
            size += step;
        return size;
    }

    /// Whether what was accepted ends where a record does, and with one that may be a close_notify.
    bool is_between_records() const { return header_size_ == 0; }
    bool ends_with_close_notify() const { return is_between_records() && may_be_close_notify(); }

private:
    std::size_t body_size() const { return parse_big_endian({&header_[3], 2}); }

    /// In TLS 1.3 an alert looks like data: two bytes, their type, what pads them to a power of two, and a tag
    /// (RFC 8446 sections 5.2 and 5.4).
    bool may_be_close_notify() const
    {
        constexpr std::size_t tag = 16;
        const std::size_t size = body_size();
        return header_[0] == 0x15 || (header_[0] == 0x17 && (size <= 3 + tag || size == 16 + tag || size == 32 + tag ||
                                                             size == 64 + tag));
    }

    std::array<char, 5> header_ = {};
    std::size_t header_size_ = 0;
    std::size_t body_seen_ = 0;
};

} // namespace upgradeable_streams::detail

#endif
