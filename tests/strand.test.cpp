#include <upgradeable_streams/detail/strand.hpp>
#include <upgradeable_streams/detail/strand_executor.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/deadline.hpp"
#include "support/descriptors.hpp"
#include "support/echo_server.hpp"
#include "support/run.hpp"
#include "support/thread.hpp"

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/bind_executor.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/dispatch.hpp>
#include <asio/execution/blocking.hpp>
#include <asio/execution/context.hpp>
#include <asio/execution/outstanding_work.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <asio/prefer.hpp>
#include <asio/query.hpp>
#include <asio/require.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <future>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using us::detail::strand;

namespace
{

constexpr int thread_count = 4;
constexpr int rounds = test::under_sanitizer ? 5'000 : 50'000;

std::shared_ptr<strand> make_strand(asio::io_context& io)
{
    return std::make_shared<strand>(io.get_executor());
}

asio::any_io_executor executor_of(asio::io_context& io, const std::shared_ptr<strand>& s)
{
    return us::detail::executor_of_strand(io.get_executor(), s);
}

/// Runs until there is no more work, on several threads.
void run_on_threads(asio::io_context& io)
{
    std::vector<std::future<void>> threads;
    for (int i = 0; i < thread_count; ++i)
        threads.push_back(test::run_in_thread([&io] { io.run_for(test::run_deadline); }));
    for (auto& thread : threads)
        thread.get();
    REQUIRE(io.stopped());
}

/// Has every function wait, and no memory for it while `*fails`.
struct scarce_executor
{
    asio::io_context* io;
    const bool* fails;

    asio::execution_context& query(asio::execution::context_t) const noexcept { return *io; }

    static constexpr asio::execution::blocking_t query(asio::execution::blocking_t) noexcept
    {
        return asio::execution::blocking.never;
    }

    template <typename Function>
    void execute(Function&& function) const
    {
        if (*fails)
            throw std::bad_alloc();
        asio::post(*io, std::forward<Function>(function));
    }

    bool operator==(const scarce_executor&) const noexcept = default;
};

} // namespace

TEST_CASE("strand: one function at a time, of threads that enter, post and dispatch")
{
    asio::io_context io(thread_count);
    const auto s = make_strand(io);
    const auto executor = executor_of(io, s);
    std::atomic<bool> inside = false;
    std::atomic<bool> overlapped = false;
    int count = 0; // not atomic
    const auto function = [&]
    {
        if (inside.exchange(true))
            overlapped = true;
        ++count;
        inside = false;
    };
    for (int i = 0; i < rounds; ++i)
        asio::post(io,
                   [&, i]
                   {
                       switch (i % 5)
                       {
                       case 0: return s->enter(function);
                       case 1: return s->post(function);
                       case 2: return s->dispatch(function);
                       case 3: return asio::post(executor, function);
                       case 4: return asio::dispatch(executor, function);
                       }
                   });
    run_on_threads(io);
    CHECK(count == rounds);
    CHECK(!overlapped);
}

TEST_CASE("strand: what one thread posts and dispatches runs in order, while others run it")
{
    asio::io_context io(thread_count);
    const auto s = make_strand(io);
    const auto executor = executor_of(io, s);
    std::vector<int> seen[thread_count / 2];
    for (auto& of_thread : seen)
        asio::post(io,
                   [&]
                   {
                       for (int i = 0; i < rounds; ++i)
                       {
                           const auto see = [&of_thread, i] { of_thread.push_back(i); };
                           if (i % 3 == 0)
                               s->post(see);
                           else if (i % 3 == 1)
                               s->dispatch(see);
                           else
                               asio::post(executor, see);
                       }
                   });
    run_on_threads(io);
    for (const auto& of_thread : seen)
    {
        CHECK(of_thread.size() == rounds);
        CHECK(std::ranges::is_sorted(of_thread));
    }
}

TEST_CASE("strand: inside it enter and dispatch run at once, and post does not")
{
    asio::io_context io;
    const auto s = make_strand(io);
    const auto executor = executor_of(io, s);
    std::string order;
    s->post(
        [&]
        {
            asio::post(executor, [&] { order += "posted "; });
            asio::dispatch(executor, [&] { order += "dispatched "; });
            s->enter([&] { order += "entered "; });
            order += "left ";
        });
    CHECK(order.empty());
    io.run();
    CHECK(order == "dispatched entered left posted ");
}

TEST_CASE("strand: inside it are the functions of another strand that one of its own has entered")
{
    asio::io_context io;
    const auto outer = make_strand(io);
    const auto inner = make_strand(io);
    std::string order;
    outer->enter(
        [&]
        {
            inner->enter(
                [&]
                {
                    outer->enter([&] { order += "entered "; });
                    order += "left ";
                });
            CHECK(outer->runs_here());
            CHECK(!inner->runs_here());
        });
    CHECK(order == "entered left ");
    CHECK(!outer->runs_here());
}

TEST_CASE("strand: entered while it is free it runs the function at once and allocates nothing")
{
    asio::io_context io;
    const auto s = make_strand(io);
    int count = 0;
    bool allocated = false;
    {
        const test::allocation_failure failure(1);
        s->enter([&] { ++count; });
        allocated = failure.happened();
    }
    CHECK(count == 1);
    CHECK(!allocated);
    CHECK(io.poll() == 0);
}

TEST_CASE("strand: an exception leaves it usable, and what waits runs all the same")
{
    asio::io_context io;
    const auto s = make_strand(io);
    int count = 0;
    const auto fail = [&]
    {
        s->post([&] { ++count; });
        throw std::runtime_error("thrown by a function");
    };
    CHECK_THROWS_AS(s->enter(fail), std::runtime_error);
    CHECK(io.run() > 0);
    CHECK(count == 1);

    io.restart();
    s->post(fail);
    s->post([&] { ++count; });
    s->post(fail);
    s->post([&] { ++count; });
    CHECK_THROWS_AS(io.run(), std::runtime_error);
    CHECK(count == 1);
    CHECK_THROWS_AS(io.run(), std::runtime_error);
    io.run();
    CHECK(count == 5);

    io.restart();
    asio::post(io, [&] { s->dispatch(fail); });
    CHECK_THROWS_AS(io.run(), std::runtime_error);
    io.run();
    s->enter([&] { ++count; });
    CHECK(count == 7);
}

TEST_CASE("strand: an exception that dispatch lets through leaves it usable")
{
    asio::io_context io;
    const auto below = asio::make_strand(io);
    const auto s = std::make_shared<strand>(below);
    int count = 0;
    bool thrown = false;
    asio::post(below,
               [&]
               {
                   try
                   {
                       s->dispatch(
                           [&]
                           {
                               s->post([&] { ++count; });
                               throw std::runtime_error("thrown by a function");
                           });
                   }
                   catch (const std::runtime_error&)
                   {
                       thrown = true;
                   }
               });
    io.run();
    CHECK(thrown);
    CHECK(count == 1);
}

TEST_CASE("strand: without memory for a function it throws, and goes on with the others")
{
    asio::io_context io;
    const auto s = make_strand(io);
    int count = 0;
    const auto fails = [&](auto add)
    {
        const test::allocation_failure failure(1);
        try
        {
            add([&] { count += 100; });
        }
        catch (const std::bad_alloc&)
        {
            return true;
        }
        return false;
    };
    CHECK(fails([&](auto function) { s->post(function); }));
    CHECK(fails([&](auto function) { s->dispatch(function); }));
    bool post_failed = false;
    bool enter_failed = false;
    s->enter(
        [&]
        {
            s->post([&] { ++count; });
            post_failed = fails([&](auto function) { s->post(function); });
            enter_failed = test::run_in_thread([&] { return fails([&](auto function) { s->enter(function); }); }).get();
            s->post([&] { ++count; });
        });
    CHECK(post_failed);
    CHECK(enter_failed);
    CHECK(count == 0);
    io.run();
    CHECK(count == 2);
    s->enter([&] { ++count; });
    CHECK(count == 3);
}

TEST_CASE("strand: when the executor below has no memory, what was to be added is dropped, and what waits runs")
{
    asio::io_context io;
    bool fails = false;
    const auto s = std::make_shared<strand>(scarce_executor{&io, &fails});
    int count = 0;
    const auto one = [&] { ++count; };
    const auto many = [&] { count += 100; };

    fails = true;
    CHECK_THROWS_AS(s->post(many), std::bad_alloc);
    CHECK_THROWS_AS(s->dispatch(many), std::bad_alloc);
    s->enter(one);
    CHECK(count == 1);
    s->enter(
        [&]
        {
            s->post(one);
            s->post(one);
        });
    CHECK(count == 3);

    fails = false;
    s->post(one);
    io.run();
    CHECK(count == 4);
}

TEST_CASE("strand: what waits goes with the io_context, though it owns the strand")
{
    const auto held = std::make_shared<int>();
    {
        asio::io_context io;
        const auto s = make_strand(io);
        for (int i = 0; i < 100'000; ++i)
            s->post([s, held] {});
    }
    CHECK(held.use_count() == 1);
}

TEST_CASE("strand: what waits goes with the io_context after an exception too, and while one passes")
{
    const auto held = std::make_shared<int>();
    {
        asio::io_context io;
        const auto s = make_strand(io);
        s->post(
            [&]
            {
                s->post([s, held] {});
                throw std::runtime_error("thrown by a function");
            });
        CHECK_THROWS_AS(io.run(), std::runtime_error);
        CHECK(held.use_count() == 2);
    }
    CHECK(held.use_count() == 1);
    const auto fail = [&]
    {
        asio::io_context io;
        const auto s = make_strand(io);
        s->post([s, held] {});
        CHECK(held.use_count() == 2);
        throw std::runtime_error("thrown while it waits");
    };
    CHECK_THROWS_AS(fail(), std::runtime_error);
    CHECK(held.use_count() == 1);
}

TEST_CASE("strand: a server's connections go with the io_context")
{
    const bool is_on_strand = GENERATE(false, true);
    const std::size_t before = test::open_descriptors();
    {
        asio::io_context io;
        const asio::steady_timer timer(io); // what came after it goes first: a strand before the sockets on it
        bool answered = false;
        asio::co_spawn(
            is_on_strand ? asio::any_io_executor(asio::make_strand(io)) : asio::any_io_executor(io.get_executor()),
            [&]() -> asio::awaitable<void>
            {
                const us::server server = co_await us::start_server(test::echo, "127.0.0.1", 0);
                auto [reader, writer] = co_await us::open_connection("127.0.0.1", server.sockets().at(0).port);
                writer.write("hello\n");
                const std::string answer = co_await reader.readline();
                answered = answer == "hello\n";
                io.stop();
                co_await reader.readline();
            },
            asio::detached);
        io.run_for(test::run_deadline);
        CHECK(answered);
    }
    CHECK(test::open_descriptors() == before);
}

TEST_CASE("strand: its executors are equal where the strand is the same")
{
    asio::io_context io;
    const bool is_over_io_context = GENERATE(true, false);
    CAPTURE(is_over_io_context);
    const asio::any_io_executor inner =
        is_over_io_context ? asio::any_io_executor(io.get_executor()) : asio::make_strand(io);
    const auto s = std::make_shared<strand>(inner);
    const auto other = std::make_shared<strand>(inner);
    const auto executor = us::detail::executor_of_strand(inner, s);
    CHECK(executor == us::detail::executor_of_strand(inner, s));
    CHECK(executor != us::detail::executor_of_strand(inner, other));
    CHECK(executor != inner);
    CHECK(&asio::query(executor, asio::execution::context) == &io);
    if (is_over_io_context) // whose own executors are unequal as well once they tell of work
        return;
    CHECK(executor == asio::prefer(executor, asio::execution::outstanding_work.tracked));
    CHECK(executor == asio::require(executor, asio::execution::blocking.never));
}

TEST_CASE("strand: over an io_context its executor is made, copied and given properties without an allocation")
{
    asio::io_context io;
    const auto s = make_strand(io);
    const asio::any_io_executor inner = io.get_executor();
    bool allocated = false;
    {
        const test::allocation_failure failure(1);
        const asio::any_io_executor executor = us::detail::executor_of_strand(inner, s);
        const asio::any_io_executor copy = executor;
        const asio::any_io_executor work = asio::prefer(copy, asio::execution::outstanding_work.tracked);
        allocated = failure.happened();
    }
    CHECK(!allocated);
}

TEST_CASE("strand: an io_context has work while a function waits, or an executor says so")
{
    asio::io_context io;
    const auto s = make_strand(io);
    int count = 0;
    s->enter([&] { s->post([&] { s->post([&] { ++count; }); }); });
    io.run();
    CHECK(count == 1);

    io.restart();
    asio::any_io_executor work = asio::prefer(executor_of(io, s), asio::execution::outstanding_work.tracked);
    io.poll();
    CHECK(!io.stopped());
    work = {};
    io.poll();
    CHECK(io.stopped());
}

TEST_CASE("strand: coroutines, timers and handlers of its executor run inside it")
{
    asio::io_context io(thread_count);
    const auto s = make_strand(io);
    const auto executor = executor_of(io, s);
    int inside = 0; // not atomic
    const auto coroutine = [&]() -> asio::awaitable<void>
    {
        const auto own = co_await asio::this_coro::executor;
        asio::steady_timer timer(own);
        for (int i = 0; i < 100; ++i)
        {
            inside += own == executor && s->runs_here();
            timer.expires_after(std::chrono::microseconds(1));
            co_await timer.async_wait(asio::use_awaitable);
            inside += s->runs_here();
            co_await asio::post(asio::use_awaitable);
            inside += s->runs_here();
        }
    };
    for (int i = 0; i < thread_count; ++i)
        asio::co_spawn(executor, coroutine, asio::detached);
    asio::post(io, asio::bind_executor(executor, [&] { inside += s->runs_here(); }));
    run_on_threads(io);
    CHECK(inside == 300 * thread_count + 1);
}
