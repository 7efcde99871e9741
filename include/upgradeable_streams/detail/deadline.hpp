/// @file
/// How long something may take.
#ifndef UPGRADEABLE_STREAMS_DETAIL_DEADLINE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_DEADLINE_HPP

#include <asio/bind_executor.hpp>
#include <asio/error_code.hpp>
#include <asio/steady_timer.hpp>

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace upgradeable_streams::detail
{

inline void require_positive(std::chrono::steady_clock::duration timeout, const char* name)
{
    if (timeout <= timeout.zero())
        throw std::invalid_argument(std::string(name) + " must be greater than zero");
}

/// When that time has passed, or a year, which no clock fails to tell.
inline std::chrono::steady_clock::time_point time_after(std::chrono::steady_clock::duration timeout)
{
    return std::chrono::steady_clock::now() +
           std::min<std::chrono::steady_clock::duration>(timeout, std::chrono::years(1));
}

/// Calls a function when time is up, unless it goes before.
///
/// Concurrency: goes where the function is called, which is its associated executor, or else `executor`.
class deadline
{
public:
    template <typename Executor, typename Function>
    deadline(const Executor& executor, std::chrono::steady_clock::duration timeout, Function expired)
        : state_(std::make_shared<state>(executor, timeout))
    {
        auto end = [weak = std::weak_ptr(state_), expired](const asio::error_code& cancelled) mutable
        {
            const auto living = weak.lock();
            if (cancelled || !living)
                return;
            living->has_expired = true;
            expired();
        };
        if constexpr (requires { expired.get_executor(); })
            state_->timer.async_wait(asio::bind_executor(expired.get_executor(), std::move(end)));
        else
            state_->timer.async_wait(std::move(end));
    }

    deadline(deadline&&) noexcept = default;
    deadline& operator=(deadline&&) noexcept = default;

    bool has_expired() const { return state_->has_expired; }

private:
    struct state
    {
        template <typename Executor>
        state(const Executor& executor, std::chrono::steady_clock::duration timeout) : timer(executor, timeout)
        {
        }

        asio::steady_timer timer;
        bool has_expired = false;
    };

    std::shared_ptr<state> state_;
};

} // namespace upgradeable_streams::detail

#endif
