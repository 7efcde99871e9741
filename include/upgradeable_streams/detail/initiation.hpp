/// @file
/// What async_initiate calls, with the executor that tokens as asio::cancel_after and use_promise ask it for.
#ifndef UPGRADEABLE_STREAMS_DETAIL_INITIATION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_INITIATION_HPP

#include <asio/async_result.hpp>
#include <asio/cancellation_type.hpp>
#include <asio/compose.hpp>

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

/// Of a composed operation.
template <typename Self>
bool was_cancelled(const Self& self)
{
    return self.get_cancellation_state().cancelled() != asio::cancellation_type::none;
}

/// Begins an operation as asio::async_compose does, but not before the token asks for it.
template <typename Signature, typename Executor, typename Operation, typename Token>
auto initiate(const Executor& executor, Operation operation, Token&& token)
{
    return asio::async_initiate<Token, Signature>(
        initiation(executor, [executor](auto handler, Operation o)
                   { asio::async_compose<decltype(handler), Signature>(std::move(o), handler, executor); }),
        token, std::move(operation));
}

} // namespace upgradeable_streams::detail

#endif
