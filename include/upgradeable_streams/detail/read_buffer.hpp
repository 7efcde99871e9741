/// @file
/// What a connection has received and nobody has yet read.
#ifndef UPGRADEABLE_STREAMS_DETAIL_READ_BUFFER_HPP
#define UPGRADEABLE_STREAMS_DETAIL_READ_BUFFER_HPP

#include <asio/buffer.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>

namespace upgradeable_streams::detail
{

/// A buffer that grows at its end and is read from its beginning; while it holds little it allocates nothing.
class read_buffer
{
public:
    std::string_view filled() const { return {data() + begin_, end_ - begin_}; }

    void consume(std::size_t size)
    {
        begin_ += size;
        if (begin_ == end_)
            begin_ = end_ = 0;
    }

    /// Gives back the memory that holds nothing.
    void shrink()
    {
        if (filled().empty())
            large_.reset();
    }

    /// Room for `size` bytes at the end, until the next call.
    asio::mutable_buffer prepare(std::size_t size)
    {
        const std::string_view kept = filled();
        if (capacity() - end_ < size && kept.size() + size > capacity())
        {
            const std::size_t larger = std::max(2 * kept.size(), kept.size() + size);
            std::unique_ptr<char[]> next(new char[larger]);
            kept.copy(next.get(), kept.size());
            large_ = std::move(next);
            large_size_ = larger;
            end_ -= std::exchange(begin_, 0);
        }
        else if (capacity() - end_ < size)
        {
            std::memmove(data(), kept.data(), kept.size());
            end_ -= std::exchange(begin_, 0);
        }
        return {data() + end_, size};
    }

    /// So much of what `prepare` gave was filled.
    void commit(std::size_t size) { end_ += size; }

    static constexpr std::size_t small_size = 512;

private:
    char* data() { return large_ ? large_.get() : small_.data(); }
    const char* data() const { return large_ ? large_.get() : small_.data(); }
    std::size_t capacity() const { return large_ ? large_size_ : small_.size(); }

    std::size_t begin_ = 0;
    std::size_t end_ = 0;
    std::size_t large_size_ = 0;
    std::unique_ptr<char[]> large_;
    std::array<char, small_size> small_;
};

} // namespace upgradeable_streams::detail

#endif
