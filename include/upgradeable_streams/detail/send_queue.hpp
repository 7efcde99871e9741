/// @file
/// What waits to be sent.
#ifndef UPGRADEABLE_STREAMS_DETAIL_SEND_QUEUE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_SEND_QUEUE_HPP

#include <cstddef>
#include <string>
#include <string_view>

namespace upgradeable_streams::detail
{

/// Bytes of which the stream takes some at a time; those that it has begun with stay where they are.
class send_queue
{
public:
    bool empty() const { return begun_.empty() && behind_.empty(); }
    std::size_t size() const { return begun_.size() - taken_ + behind_.size(); }

    void append(std::string_view data) { behind_.append(data); }

    /// Puts data in front, which the stream begins with; nothing that was begun may be left.
    void begin(std::string_view data) { begun_ = data; }

    /// What is next, as far as it lies together.
    std::string_view front() const { return begun_.empty() ? behind_ : std::string_view(begun_).substr(taken_); }

    /// The stream begins with what is in front.
    std::string_view begin()
    {
        take(0);
        return front();
    }

    /// The stream has begun with what is in front, and taken so much of it.
    void take(std::size_t size)
    {
        std::string& source = begun_.empty() ? behind_ : begun_;
        taken_ += size;
        if (taken_ == source.size())
        {
            source.clear();
            taken_ = 0;
        }
        else if (begun_.empty())
            begun_.swap(behind_);
    }

    /// Drops all; what was begun stays while it `is_in_use`.
    void drop(bool is_in_use)
    {
        std::string().swap(behind_);
        if (is_in_use)
            return;
        std::string().swap(begun_);
        taken_ = 0;
    }

    /// Gives back memory in which there is nothing, unless it is as small as `kept`.
    void shrink(std::size_t kept = std::string().capacity())
    {
        for (std::string* const each : {&behind_, &begun_})
            if (each->empty() && each->capacity() > kept)
                std::string().swap(*each); // assignment would keep the memory, as clear does
    }

private:
    std::string begun_;
    std::size_t taken_ = 0; ///< Of begun_.
    std::string behind_;
};

} // namespace upgradeable_streams::detail

#endif
