/// @file
/// How long something may take.
#ifndef UPGRADEABLE_STREAMS_DETAIL_DEADLINE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_DEADLINE_HPP

#include <asio/associated_executor.hpp>
#include <asio/bind_executor.hpp>
#include <asio/error_code.hpp>
#include <asio/steady_timer.hpp>

#include <chrono>
#include <memory>
#include <utility>

namespace upgradeable_streams::detail
{

/// Calls a function when time is up, unless it goes before.
///
/// Concurrency: goes where the function is called, which is its associated executor, or else `executor`.
class deadline
{
public:
    template <typename Executor, typename Function>
    deadline(const Executor& executor, std::chrono::steady_clock::duration timeout, Function expired)
        : state_(std::make_shared<state>(asio::steady_timer(executor, timeout)))
    {
        const auto where = asio::get_associated_executor(expired, executor);
        state_->timer.async_wait(asio::bind_executor(
            where,
            [weak = std::weak_ptr(state_), expired = std::move(expired)](const asio::error_code& cancelled) mutable
            {
                const auto living = weak.lock();
                if (cancelled || !living)
                    return;
                living->has_expired = true;
                std::move(expired)();
            }));
    }

    deadline(deadline&&) noexcept = default;
    deadline& operator=(deadline&&) noexcept = default;

    bool has_expired() const { return state_->has_expired; }

private:
    struct state
    {
        asio::steady_timer timer;
        bool has_expired = false;
    };

    std::shared_ptr<state> state_;
};

} // namespace upgradeable_streams::detail

#endif
