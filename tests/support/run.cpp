#include "run.hpp"

namespace test
{

asio::awaitable<void> turns(int count)
{
    const auto executor = co_await asio::this_coro::executor;
    for (int i = 0; i < count; ++i)
        co_await asio::post(executor, asio::use_awaitable);
}

} // namespace test
