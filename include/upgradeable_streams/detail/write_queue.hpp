/// @file
/// The layer between a TLS stream and its socket that makes asio::ssl::stream right in full duplex.
#ifndef UPGRADEABLE_STREAMS_DETAIL_WRITE_QUEUE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_WRITE_QUEUE_HPP

#include <upgradeable_streams/detail/record_framing.hpp>
#include <upgradeable_streams/detail/send_queue.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/tls_limits.hpp>

#include <asio/bind_executor.hpp>
#include <asio/buffer.hpp>
#include <asio/buffers_iterator.hpp>
#include <asio/compose.hpp>
#include <asio/error.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <asio/write.hpp>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>

namespace upgradeable_streams::detail
{

/// Completes each write at once, and sends copies of what the socket did not take, first in, first out.
///
/// asio::ssl::stream (1.22.1 to 1.38.2) shares one output buffer and one lock between the records of a user's write
/// and those that a read gives rise to (KeyUpdate replies, alerts). Its lock can be released by the wrong operation,
/// so that two writes overlap, and a write that finds the lock taken completes without having sent anything. Here
/// overlapping writes stay whole and in order, the lock is never held while the peer is slow, and `can_write`
/// lets a user's write begin only when the lock is free.
///
/// Lifetime: an operation under way keeps the owner alive.
template <typename NextLayer>
class write_queue
{
public:
    using next_layer_type = NextLayer;
    using lowest_layer_type = typename NextLayer::lowest_layer_type;
    using executor_type = typename NextLayer::executor_type;

    write_queue(NextLayer&& next, std::weak_ptr<void> owner)
        : owner_(std::move(owner)), changed_(next.get_executor(), asio::steady_timer::time_point::max()),
          next_(std::move(next))
    {
    }

    executor_type get_executor() { return next_.get_executor(); }
    next_layer_type& next_layer() { return next_; }
    lowest_layer_type& lowest_layer() { return next_.lowest_layer(); }

    /// From here on the start of what is received is kept, until it is taken.
    void keep_first_bytes()
    {
        first_bytes_.reserve(first_bytes_limit);
        keep_first_bytes_ = true;
    }

    std::string take_first_bytes()
    {
        keep_first_bytes_ = false;
        return std::exchange(first_bytes_, {});
    }

    /// Tells of bytes from before the first read.
    void skip(std::string_view received) { framing_.accept_all(received); }

    /// The plain text that came with the last record.
    std::string take_plain_text() { return std::exchange(rest_, {}).substr(std::exchange(rest_begin_, 0)); }

    /// Of what was read.
    const record_framing& framing() const { return framing_; }

    template <typename MutableBufferSequence, typename Handler>
    void async_read_some(const MutableBufferSequence& buffers, Handler&& handler)
    {
        asio::async_compose<Handler, void(asio::error_code, std::size_t)>(
            [this, buffers, kept = std::size_t(0), started = false](auto& self, asio::error_code error = {},
                                                                    std::size_t size = 0) mutable
            {
                if (!std::exchange(started, true))
                {
                    const auto copy = buffers;
                    kept = take_rest(copy);
                    if (kept > 0)
                        return asio::post(next_.get_executor(), std::move(self));
                    return next_.async_read_some(copy, std::move(self));
                }
                if (kept > 0)
                    return self.complete({}, kept);
                append_first_bytes(buffers, size);
                size = keep_rest(buffers, size, error);
                self.complete(error, size);
            },
            handler, next_);
    }

    template <typename ConstBufferSequence, typename Handler>
    void async_write_some(const ConstBufferSequence& buffers, Handler&& handler)
    {
        asio::async_compose<Handler, void(asio::error_code, std::size_t)>(
            [this, buffers, owner = owner_.lock(), size = std::size_t(0), started = false](
                auto& self, asio::error_code = {}, std::size_t = 0) mutable
            {
                if (!std::exchange(started, true))
                {
                    for (auto b = asio::buffer_sequence_begin(buffers); b != asio::buffer_sequence_end(buffers); ++b)
                    {
                        const asio::const_buffer part(*b);
                        put({static_cast<const char*>(part.data()), part.size()});
                        size += part.size();
                    }
                    ++unreleased_;
                    if (!sending_now_)
                        send(self.get_executor());
                    return asio::post(next_.get_executor(), std::move(self));
                }
                if (queue_.size() > reply_limit)
                    return changed_.async_wait(std::move(self));
                const auto keep = std::move(owner);
                --unreleased_; // the TLS stream frees its lock before it calls any handler
                changed_.cancel();
                self.complete(error_, size);
            },
            handler, next_);
    }

    /// What is written from here on is dropped: OpenSSL answers KeyUpdates also behind its close_notify.
    void end_output() { has_ended_ = true; }

    /// Whether all was handed to the socket, and whether the TLS stream's lock is free.
    bool is_sent() const { return !sending_now_; }
    bool can_write() const { return is_sent() && unreleased_ == 0; }

    /// The first error of sending.
    const asio::error_code& error() const { return error_; }

    /// Completes when is_sent or can_write may have changed, or for no reason.
    template <typename Handler>
    void async_wait_output(Handler&& handler)
    {
        changed_.async_wait(std::forward<Handler>(handler));
    }

private:
    /// Sends what the socket takes without waiting, unless something is to go before, and queues the rest.
    void put(std::string_view bytes)
    {
        if (has_ended_)
            return;
        asio::error_code error;
        if (is_sent() && queue_.empty() && !error_)
            bytes.remove_prefix(send_all_at_once(descriptor_of(next_), bytes, error));
        if (error)
            fail(error);
        if (error_)
            return;
        try
        {
            queue_.append(bytes);
        }
        catch (const std::bad_alloc&)
        {
            fail(asio::error::no_memory);
        }
    }

    template <typename Executor>
    void send(const Executor& executor)
    {
        if (queue_.empty())
            return;
        sending_now_ = true;
        auto sent = [this, executor, owner = owner_.lock()](asio::error_code error, std::size_t size)
        {
            sending_now_ = false;
            queue_.take(size);
            if (error)
                fail(error);
            send(executor);
            changed_.cancel();
        };
        try
        {
            asio::async_write(next_, asio::buffer(queue_.begin()), asio::bind_executor(executor, std::move(sent)));
        }
        catch (const std::bad_alloc&)
        {
            sending_now_ = false;
            fail(asio::error::no_memory);
        }
    }

    void fail(const asio::error_code& error)
    {
        if (!error_)
            error_ = error;
        queue_.drop(sending_now_);
    }

    template <typename MutableBufferSequence>
    std::size_t take_rest(const MutableBufferSequence& buffers)
    {
        const std::string_view next = std::string_view(rest_).substr(rest_begin_, asio::buffer_size(buffers));
        const std::size_t size = asio::buffer_copy(buffers, asio::buffer(next, framing_.admit(next)));
        rest_begin_ += size;
        if (rest_begin_ == rest_.size())
            take_plain_text();
        return size;
    }

    /// Keeps what the TLS stream is not to be given at once.
    template <typename MutableBufferSequence>
    std::size_t keep_rest(const MutableBufferSequence& buffers, std::size_t size, asio::error_code& error)
    try
    {
        std::size_t seen = 0;
        std::size_t records = 0;
        for (auto b = asio::buffer_sequence_begin(buffers); seen < size && records == seen; ++b)
        {
            const asio::mutable_buffer part = asio::buffer(asio::mutable_buffer(*b), size - seen);
            records += framing_.accept({static_cast<const char*>(part.data()), part.size()});
            seen += part.size();
        }
        if (records == size || records == 0)
            return size;
        const auto bytes = asio::buffers_begin(buffers);
        rest_.assign(bytes + std::ptrdiff_t(records), bytes + std::ptrdiff_t(size));
        return records;
    }
    catch (const std::bad_alloc&)
    {
        error = asio::error::no_memory;
        return 0;
    }

    template <typename MutableBufferSequence>
    void append_first_bytes(const MutableBufferSequence& buffers, std::size_t size)
    {
        if (!keep_first_bytes_)
            return;
        const std::size_t before = first_bytes_.size();
        first_bytes_.resize(before + std::min(size, first_bytes_limit - before));
        asio::buffer_copy(asio::buffer(first_bytes_) + before, buffers);
    }

    std::weak_ptr<void> owner_;
    asio::steady_timer changed_;
    NextLayer next_; ///< Taken over when nothing can throw any more.
    send_queue queue_;
    bool sending_now_ = false;
    bool has_ended_ = false;
    std::size_t unreleased_ = 0; ///< Writes whose completion the TLS stream has not yet seen.
    asio::error_code error_;
    bool keep_first_bytes_ = false;
    std::string first_bytes_;
    record_framing framing_;
    std::string rest_; ///< From rest_begin_ on, received and not yet given.
    std::size_t rest_begin_ = 0;
};

} // namespace upgradeable_streams::detail

#endif
