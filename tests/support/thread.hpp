#ifndef TEST_SUPPORT_THREAD_HPP
#define TEST_SUPPORT_THREAD_HPP

#include <functional>
#include <future>
#include <memory>
#include <type_traits>
#include <utility>

namespace test
{

/// Runs `function` on a thread of its own; the future rethrows from `get()`, and joins when it is destroyed.
template <typename Function>
[[nodiscard]] std::future<std::invoke_result_t<Function>> run_in_thread(Function function)
{
    using result_type = std::invoke_result_t<Function>;
    auto shared = std::make_shared<Function>(std::move(function));
    return std::async(std::launch::async, std::function<result_type()>([shared] { return (*shared)(); }));
}

} // namespace test

#endif
