/// @file
/// What lets the operations of a tls_stream run on the calling thread.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TLS_BLOCKING_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TLS_BLOCKING_HPP

#include <asio/cancellation_state.hpp>
#include <asio/error_code.hpp>

#include <cstddef>
#include <utility>

namespace upgradeable_streams::detail
{

/// Stands in the place of the `self` that asio::async_compose gives to an operation: where that would suspend, this
/// keeps what it waits for.
class blocking_call
{
public:
    /// In the place of an executor.
    struct calling_thread
    {
    };

    enum class awaited
    {
        nothing,
        output,
        input,
        raw_input ///< Which the operation itself gives to the core.
    };

    void await(awaited what) { awaited_ = what; }

    void complete(const asio::error_code& error, std::size_t size = 0)
    {
        error_ = error;
        size_ = size;
        is_complete_ = true;
    }

    calling_thread get_executor() const { return {}; }
    asio::cancellation_state get_cancellation_state() const { return {}; }

    /// Runs the operation to its end.
    template <typename Core, typename Operation>
    std::size_t run(Core& core, Operation operation, asio::error_code& error)
    {
        operation(*this);
        while (!is_complete_)
        {
            std::size_t size = 0;
            asio::error_code outcome;
            const awaited what = std::exchange(awaited_, awaited::nothing);
            if (what != awaited::nothing)
                core.flush_blocking(outcome);
            if (what == awaited::input || what == awaited::raw_input)
                size = core.receive_blocking(outcome);
            if (what == awaited::input)
                outcome = core.received(outcome, size);
            operation(*this, outcome, size);
        }
        error = error_;
        return size_;
    }

private:
    awaited awaited_ = awaited::nothing;
    asio::error_code error_;
    std::size_t size_ = 0;
    bool is_complete_ = false;
};

} // namespace upgradeable_streams::detail

#endif
