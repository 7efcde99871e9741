#ifndef TEST_SUPPORT_TASK_HPP
#define TEST_SUPPORT_TASK_HPP

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/co_spawn.hpp>
#include <asio/dispatch.hpp>
#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <asio/use_awaitable.hpp>

#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <system_error>
#include <type_traits>
#include <utility>
#include <variant>

namespace test
{

template <typename Factory>
using task_result_t = typename std::invoke_result_t<Factory&>::value_type;

/// A coroutine that was started by `spawn`; it goes on when its task is destroyed.
template <typename T>
class task
{
public:
    using factory_type = std::function<asio::awaitable<T>()>;

    /// Starts the coroutine that `factory()` returns, and keeps `factory` alive until it has ended.
    task(const asio::any_io_executor& executor, factory_type factory) : state_(std::make_shared<state>(executor))
    {
        auto ended = [shared = state_](std::exception_ptr) {};
        asio::co_spawn(executor, run(state_, std::move(factory)),
                       asio::bind_cancellation_slot(state_->cancellation.slot(), std::move(ended)));
    }

    bool done() const noexcept { return state_->done; }
    bool failed() const noexcept { return done() && state_->error; }

    /// Waits for the end of the coroutine; a result can be had once. Errors: what the coroutine threw.
    asio::awaitable<T> join() const { return join(state_); }

    /// Returns: the result of a coroutine that is done; it can be had once. Errors: what the coroutine threw.
    T result() const { return result(*state_); }

    /// Emits a cancellation signal on the coroutine's executor.
    void cancel(asio::cancellation_type type = asio::cancellation_type::terminal) const
    {
        asio::dispatch(state_->executor,
                       [state = state_, type]
                       {
                           if (!state->done)
                               state->cancellation.emit(type);
                       });
    }

private:
    struct state
    {
        explicit state(const asio::any_io_executor& on)
            : executor(on), waiters(asio::make_strand(on)), ended(waiters, asio::steady_timer::time_point::max())
        {
        }

        asio::any_io_executor executor;
        asio::any_io_executor waiters; // the only one to touch `ended`
        asio::steady_timer ended;
        asio::cancellation_signal cancellation;
        std::conditional_t<std::is_void_v<T>, std::monostate, std::optional<T>> value;
        std::exception_ptr error;
        std::atomic<bool> done{false}; // set after value and error
    };

    static asio::awaitable<void> run(std::shared_ptr<state> shared, factory_type factory)
    {
        try
        {
            if constexpr (std::is_void_v<T>)
                co_await factory();
            else
                shared->value.emplace(co_await factory());
        }
        catch (...)
        {
            shared->error = std::current_exception();
        }
        shared->done = true;
        asio::post(shared->waiters, [shared] { shared->ended.cancel(); });
    }

    static asio::awaitable<void> wait(std::shared_ptr<state> shared)
    {
        while (!shared->done)
        {
            std::error_code ignored;
            co_await shared->ended.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
        }
    }

    static asio::awaitable<T> join(std::shared_ptr<state> shared)
    {
        co_await asio::co_spawn(shared->waiters, wait(shared), asio::use_awaitable);
        co_return result(*shared);
    }

    static T result(state& shared)
    {
        if (shared.error)
            std::rethrow_exception(shared.error);
        if constexpr (!std::is_void_v<T>)
            return std::move(shared.value).value();
    }

    std::shared_ptr<state> state_;
};

template <typename Factory>
[[nodiscard]] task<task_result_t<Factory>> spawn(const asio::any_io_executor& executor, Factory factory)
{
    return {executor, std::move(factory)};
}

extern template class task<void>;

} // namespace test

#endif
