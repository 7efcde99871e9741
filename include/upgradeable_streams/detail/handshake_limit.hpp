/// @file
/// The limit on handshakes that a server's connections share.
#ifndef UPGRADEABLE_STREAMS_DETAIL_HANDSHAKE_LIMIT_HPP
#define UPGRADEABLE_STREAMS_DETAIL_HANDSHAKE_LIMIT_HPP

#include <asio/any_io_executor.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>

#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <utility>

namespace upgradeable_streams::detail
{

/// Lets so many handshakes run at once; the others wait their turn. Safe to share between strands.
class handshake_limit
{
public:
    explicit handshake_limit(std::size_t most) : free_(most) {}

    /// A place in the queue, and once `try_enter` has said so, among those that run.
    class place
    {
    public:
        place(std::shared_ptr<handshake_limit> limit, asio::any_io_executor executor,
              std::weak_ptr<asio::steady_timer> wake)
            : limit_(std::move(limit)), waiter_{std::move(executor), std::move(wake)}
        {
            const std::lock_guard lock(limit_->mutex_);
            limit_->waiting_.push_back(&waiter_);
        }

        ~place()
        {
            const std::lock_guard lock(limit_->mutex_);
            if (running_)
                ++limit_->free_;
            else
                limit_->waiting_.remove(&waiter_);
            limit_->wake_first();
        }

        place(const place&) = delete;
        place& operator=(const place&) = delete;

        bool try_enter()
        {
            const std::lock_guard lock(limit_->mutex_);
            if (limit_->free_ == 0 || limit_->waiting_.front() != &waiter_)
                return false;
            limit_->waiting_.pop_front();
            --limit_->free_;
            limit_->wake_first();
            return running_ = true;
        }

        /// Whether it was running at the previous call already, and others wait.
        bool outstays()
        {
            const std::lock_guard lock(limit_->mutex_);
            const bool ran_before = std::exchange(seen_running_, running_);
            return ran_before && !limit_->waiting_.empty();
        }

    private:
        friend handshake_limit;

        struct waiter
        {
            asio::any_io_executor executor;
            std::weak_ptr<asio::steady_timer> wake;
        };

        std::shared_ptr<handshake_limit> limit_;
        waiter waiter_;
        bool running_ = false;
        bool seen_running_ = false;
    };

private:
    void wake_first() noexcept
    try
    {
        if (free_ == 0 || waiting_.empty())
            return;
        asio::post(waiting_.front()->executor,
                   [wake = waiting_.front()->wake]
                   {
                       if (const auto timer = wake.lock())
                           timer->cancel();
                   });
    }
    catch (...)
    {
    }

    std::mutex mutex_;
    std::size_t free_;
    std::list<place::waiter*> waiting_;
};

} // namespace upgradeable_streams::detail

#endif
