#ifndef TEST_SUPPORT_RUN_HPP
#define TEST_SUPPORT_RUN_HPP

#include "deadline.hpp"
#include "failure.hpp"
#include "task.hpp"

#include <asio/awaitable.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <chrono>
#include <future>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace test
{

namespace detail
{

/// Returns: the coroutine's result. Errors: its exception; `failure` where it or other work did not end.
template <typename T>
T conclude(task<T>& coroutine, bool out_of_work, std::chrono::milliseconds limit)
{
    if (coroutine.done() && (out_of_work || coroutine.failed()))
        return coroutine.result();
    const std::string time = std::to_string(limit.count()) + " ms";
    if (coroutine.done())
        throw failure("work was left behind: the coroutine ended, but operations were still pending after " + time);
    if (out_of_work)
        throw failure("the io_context ran out of work before the coroutine ended");
    throw failure("the coroutine did not end within " + time);
}

} // namespace detail

/// Runs the coroutine that `factory()` returns on `io`, and then `io` until it is out of work.
///
/// Returns: what the coroutine returns. Errors: what it throws, at once; `failure` when `limit` has passed.
template <typename Factory>
auto run_on(asio::io_context& io, Factory factory, std::chrono::milliseconds limit = run_deadline)
{
    const auto deadline = std::chrono::steady_clock::now() + limit;
    io.restart();
    auto coroutine = spawn(io.get_executor(), std::move(factory));
    while (!coroutine.failed() && io.run_one_until(deadline) != 0)
    {
    }
    return detail::conclude(coroutine, io.stopped(), limit);
}

/// `run_on` with an io_context of its own.
template <typename Factory>
auto run(Factory factory, std::chrono::milliseconds limit = run_deadline)
{
    asio::io_context io;
    return run_on(io, std::move(factory), limit);
}

/// `run` with an io_context that `count` threads run; the coroutine is spawned on a strand.
template <typename Factory>
auto run_threads(int count, Factory factory, std::chrono::milliseconds limit = run_deadline)
{
    using result_type = task_result_t<Factory>;
    const auto deadline = std::chrono::steady_clock::now() + limit;
    asio::io_context io(count);
    auto coroutine = spawn(asio::make_strand(io),
                           [&io, factory = std::move(factory)]() mutable -> asio::awaitable<result_type>
                           {
                               try
                               {
                                   co_return co_await factory();
                               }
                               catch (...)
                               {
                                   io.stop();
                                   throw;
                               }
                           });
    std::vector<std::future<void>> workers;
    for (int i = 0; i < count; ++i)
    {
        workers.push_back(std::async(std::launch::async,
                                     [&io]
                                     {
                                         try
                                         {
                                             io.run();
                                         }
                                         catch (...)
                                         {
                                             io.stop();
                                             throw;
                                         }
                                     }));
    }
    bool in_time = true;
    for (auto& worker : workers)
        in_time = worker.wait_until(deadline) == std::future_status::ready && in_time;
    io.stop();
    for (auto& worker : workers)
        worker.get();
    return detail::conclude(coroutine, in_time, limit);
}

/// Returns: the code of the `std::system_error` that `operation` throws. Errors: `failure` where it throws nothing.
template <typename T, typename Executor>
asio::awaitable<std::error_code, Executor> error_of(asio::awaitable<T, Executor> operation)
{
    try
    {
        static_cast<void>(co_await std::move(operation));
    }
    catch (const std::system_error& error)
    {
        co_return error.code();
    }
    throw failure("an error was expected, but the operation succeeded");
}

/// Returns: a copy of the `Exception` that `operation` throws. Errors: `failure` where it throws nothing.
template <typename Exception, typename T, typename Executor>
asio::awaitable<Exception, Executor> exception_of(asio::awaitable<T, Executor> operation)
{
    try
    {
        static_cast<void>(co_await std::move(operation));
    }
    catch (const Exception& exception)
    {
        co_return exception;
    }
    throw failure("an exception was expected, but the operation succeeded");
}

/// Waits, without blocking the thread, until `predicate()` is true; the deadline of `run` bounds it.
template <typename Predicate>
asio::awaitable<void> eventually(Predicate predicate)
{
    const auto executor = co_await asio::this_coro::executor;
    asio::steady_timer timer(executor);
    while (!predicate())
    {
        timer.expires_after(std::chrono::milliseconds(1));
        co_await timer.async_wait(asio::use_awaitable);
    }
}

/// Lets everything else that is ready run, so many times: a coroutine spawned before has then come to its first wait.
asio::awaitable<void> turns(int count = 10);

/// Waits for what a thread computes (`run_in_thread`), without blocking this one.
template <typename T>
asio::awaitable<T> joined(std::future<T> result)
{
    co_await eventually([&result] { return result.wait_for(std::chrono::seconds(0)) == std::future_status::ready; });
    co_return result.get();
}

} // namespace test

#endif
