/// @file
/// Waiting for a change that somebody tells by cancelling a timer, and what cancels a wait.
#ifndef UPGRADEABLE_STREAMS_DETAIL_WAIT_HPP
#define UPGRADEABLE_STREAMS_DETAIL_WAIT_HPP

#include <upgradeable_streams/detail/compilation.hpp>

#include <asio/awaitable.hpp>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/cancellation_state.hpp>
#include <asio/cancellation_type.hpp>
#include <asio/error.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <memory>
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

/// Passes a cancellation on, and remembers it: a state does not tell the second of a kind from the first.
struct cancellation_relay
{
    bool was_cancelled = false;
    asio::cancellation_signal signal{};
};

/// Returns when the timer expires or is cancelled; throws asio::error::operation_aborted when the caller is.
asio::awaitable<void> wait(asio::steady_timer& timer);

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> wait(asio::steady_timer& timer)
{
    const auto cancellation = std::make_shared<cancellation_relay>();
    const asio::cancellation_state state = co_await asio::this_coro::cancellation_state;
    if (state.slot().is_connected())
        state.slot().assign(
            [cancellation](asio::cancellation_type type)
            {
                cancellation->was_cancelled = true;
                cancellation->signal.emit(type);
            });
    asio::error_code ignored;
    co_await timer.async_wait(asio::bind_cancellation_slot(cancellation->signal.slot(),
                                                           asio::redirect_error(asio::use_awaitable, ignored)));
    if (cancellation->was_cancelled)
        throw std::system_error(asio::error::operation_aborted);
}

#endif

} // namespace upgradeable_streams::detail

#endif
