/// @file
/// What async_initiate calls, with the executor that tokens as asio::cancel_after and use_promise ask it for.
#ifndef UPGRADEABLE_STREAMS_DETAIL_INITIATION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_INITIATION_HPP

#include <utility>

namespace upgradeable_streams::detail
{

template <typename Executor, typename Function>
struct initiation : Function
{
    using executor_type = Executor;

    initiation(Executor e, Function f) : Function(std::move(f)), executor(std::move(e)) {}
    executor_type get_executor() const noexcept { return executor; }

    Executor executor;
};

} // namespace upgradeable_streams::detail

#endif
