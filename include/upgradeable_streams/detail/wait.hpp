/// @file
/// Waiting for a change that somebody tells by cancelling a timer, and what cancels a wait.
#ifndef UPGRADEABLE_STREAMS_DETAIL_WAIT_HPP
#define UPGRADEABLE_STREAMS_DETAIL_WAIT_HPP

#include <asio/awaitable.hpp>
#include <asio/cancellation_state.hpp>
#include <asio/cancellation_type.hpp>
#include <asio/error.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <system_error>

namespace upgradeable_streams::detail
{

/// Tells whether a coroutine was cancelled since this was made, though what it waited for came first.
class cancellation_watch
{
public:
    explicit cancellation_watch(const asio::cancellation_state& state) : state_(state), before_(state.cancelled()) {}

    bool was_cancelled() const { return state_.cancelled() != before_; }

private:
    asio::cancellation_state state_;
    asio::cancellation_type before_;
};

/// Returns when the timer expires or is cancelled; throws asio::error::operation_aborted when the caller is.
inline asio::awaitable<void> wait(asio::steady_timer& timer)
{
    asio::error_code ignored;
    const cancellation_watch cancellation(co_await asio::this_coro::cancellation_state);
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    if (cancellation.was_cancelled())
        throw std::system_error(asio::error::operation_aborted);
}

} // namespace upgradeable_streams::detail

#endif
