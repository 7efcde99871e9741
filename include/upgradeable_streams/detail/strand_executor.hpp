/// @file
/// The executor of a connection.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STRAND_EXECUTOR_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STRAND_EXECUTOR_HPP

#include <upgradeable_streams/detail/strand.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/execution/blocking.hpp>
#include <asio/io_context.hpp>
#include <asio/prefer.hpp>
#include <asio/query.hpp>
#include <asio/require.hpp>

#include <memory>
#include <typeinfo>
#include <utility>

namespace upgradeable_streams::detail
{

/// An executor of a strand, in the sense of asio::strand.
template <typename Inner>
class strand_executor
{
public:
    strand_executor(Inner inner, std::shared_ptr<strand> s) : inner_(std::move(inner)), strand_(std::move(s)) {}

    template <typename Property>
        requires asio::can_query_v<const Inner&, Property>
    decltype(auto) query(const Property& property) const
    {
        return asio::query(inner_, property);
    }

    template <typename Property>
        requires asio::can_require_v<const Inner&, Property>
    auto require(const Property& property) const
    {
        return of(asio::require(inner_, property));
    }

    template <typename Property>
        requires asio::can_prefer_v<const Inner&, Property>
    auto prefer(const Property& property) const
    {
        return of(asio::prefer(inner_, property));
    }

    template <typename Function>
    void execute(Function&& function) const
    {
        if (asio::query(inner_, asio::execution::blocking) == asio::execution::blocking.never)
            strand_->post(std::forward<Function>(function));
        else if (strand_->runs_here())
            std::forward<Function>(function)();
        else
            strand_->dispatch(std::forward<Function>(function));
    }

    friend bool operator==(const strand_executor& a, const strand_executor& b) noexcept
    {
        return a.strand_ == b.strand_;
    }

private:
    template <typename Other>
    strand_executor<Other> of(Other other) const
    {
        return {std::move(other), strand_};
    }

    Inner inner_;
    std::shared_ptr<strand> strand_;
};

/// What the executor is if it is of this type, else null. Asio 1.22's target() does not look at the type.
template <typename Executor>
const Executor* target_of([[maybe_unused]] const asio::any_io_executor& executor)
{
#ifndef ASIO_NO_TYPEID
    if (executor.target_type() == typeid(Executor))
        return executor.target<Executor>();
#endif
    return nullptr;
}

/// Calls the function with the executor, and where that is an io_context's own with what it is, which costs less to call
/// and to copy.
template <typename Function>
decltype(auto) with_executor(const asio::any_io_executor& executor, Function&& function)
{
    if (const auto* const own = target_of<asio::io_context::executor_type>(executor))
        return std::forward<Function>(function)(*own);
    return std::forward<Function>(function)(executor);
}

/// The executor of a connection's strand, or without one the inner executor.
inline asio::any_io_executor executor_of_strand(const asio::any_io_executor& inner, const std::shared_ptr<strand>& s)
{
    return !s ? inner
              : with_executor(inner, [&s](const auto& e) { return asio::any_io_executor(strand_executor(e, s)); });
}

} // namespace upgradeable_streams::detail

#endif
