/// @file
/// What a connection has received and nobody has yet read.
#ifndef UPGRADEABLE_STREAMS_DETAIL_READ_BUFFER_HPP
#define UPGRADEABLE_STREAMS_DETAIL_READ_BUFFER_HPP

#include <asio/buffer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>

namespace upgradeable_streams::detail
{

/// A buffer that grows at its end and is read from its beginning.
class read_buffer
{
public:
    std::string_view filled() const { return {memory_.get() + begin_, end_ - begin_}; }

    void consume(std::size_t size)
    {
        begin_ += size;
        if (begin_ == end_)
            begin_ = end_ = 0;
    }

    /// Gives back memory in which there is nothing, unless it is as small as `kept`.
    void shrink(std::size_t kept)
    {
        if (!filled().empty() || capacity_ <= kept)
            return;
        memory_.reset();
        capacity_ = 0;
    }

    /// Room for `size` bytes at the end, until the next call.
    asio::mutable_buffer prepare(std::size_t size)
    {
        const std::string_view kept = filled();
        if (capacity_ - end_ < size && kept.size() + size > capacity_)
        {
            const std::size_t larger = std::max(2 * kept.size(), kept.size() + size);
            std::unique_ptr<char[]> next(new char[larger]);
            kept.copy(next.get(), kept.size());
            memory_ = std::move(next);
            capacity_ = larger;
            end_ -= std::exchange(begin_, 0);
        }
        else if (capacity_ - end_ < size)
        {
            std::memmove(memory_.get(), kept.data(), kept.size());
            end_ -= std::exchange(begin_, 0);
        }
        return {memory_.get() + end_, size};
    }

    /// So much of what `prepare` gave was filled.
    void commit(std::size_t size) { end_ += size; }

private:
    std::unique_ptr<char[]> memory_;
    std::size_t capacity_ = 0;
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
};

} // namespace upgradeable_streams::detail

#endif
