/// @file
/// Reading and writing, whatever the stage of the stream.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STREAM_OPERATIONS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STREAM_OPERATIONS_HPP

#include <upgradeable_streams/detail/initiation.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/stream_state.hpp>
#include <upgradeable_streams/error.hpp>

#include <asio/buffer.hpp>
#include <asio/cancellation_type.hpp>
#include <asio/compose.hpp>
#include <asio/error.hpp>
#include <asio/ssl/error.hpp>

#include <cstddef>
#include <memory>
#include <utility>

namespace upgradeable_streams::detail
{

/// Any cancellation of a read is passed on as terminal, the only one that asio::ssl::stream knows.
inline asio::cancellation_type as_terminal(asio::cancellation_type type)
{
    return type == asio::cancellation_type::none ? type : asio::cancellation_type::terminal;
}

/// An operation of a plain stream that is no socket, and may need its stream to the end. `begin(stream, handler)`
/// begins it.
template <typename State, typename Begin>
struct plain_operation
{
    std::shared_ptr<State> state;
    Begin begin;
    bool has_begun = false;

    template <typename Self>
    void operator()(Self& self, asio::error_code error = {}, std::size_t size = 0)
    {
        if (std::exchange(has_begun, true))
            return self.complete(error, size);
        self.reset_cancellation_state([](asio::cancellation_type type) { return type; });
        const auto keep = state;
        const auto copy = begin;
        copy(keep->socket(), std::move(self));
    }
};

/// Begins an operation of the plain stream, which is safe to destroy meanwhile.
template <typename Socket, typename State, typename Begin, typename Handler>
void begin_plain(const std::shared_ptr<State>& state, Begin begin, Handler&& handler)
{
    if constexpr (is_socket<Socket>)
        begin(state->socket(), std::move(handler));
    else
        asio::async_compose<Handler, void(asio::error_code, std::size_t)>(
            plain_operation<State, Begin>{state, std::move(begin)}, handler, state->socket());
}

/// What a TLS layer has told of a read or a write. For a failure that is not its first OpenSSL 4 gives no reason, which
/// is no error to Asio's layer.
template <typename BufferSequence>
asio::error_code outcome_of(const asio::error_code& error, std::size_t size, const BufferSequence& buffers)
{
    const bool is_nothing = !error && size == 0 && asio::buffer_size(buffers) > 0;
    return is_nothing ? asio::error_code(asio::ssl::error::unexpected_result) : error;
}

template <typename State, typename MutableBufferSequence>
struct read_operation
{
    std::shared_ptr<State> state;
    MutableBufferSequence buffers;
    enum { starting, refusing, reading } step = starting;
    asio::error_code refusal = {};
    std::size_t left_over = 0;

    template <typename Self>
    void operator()(Self& self, asio::error_code error = {}, std::size_t size = 0)
    {
        switch (step)
        {
        case starting:
            refusal = state->read_refusal();
            if (!refusal && !state->tls())
                left_over = state->read_left_over(buffers);
            if (!state->tls() || refusal)
            {
                step = refusing;
                return state->resume_later(std::move(self));
            }
            {
                step = reading;
                self.reset_cancellation_state(as_terminal, as_terminal);
                auto& layer = state->tls()->layer();
                const auto copy = buffers;
                return layer.async_read_some(copy, std::move(self));
            }
        case refusing: return self.complete(refusal, left_over);
        case reading:
            return self.complete(state->outcome_of_read(outcome_of(error, size, buffers)), size);
        }
    }
};

template <typename State, typename ConstBufferSequence>
struct write_operation
{
    std::shared_ptr<State> state;
    ConstBufferSequence buffers;
    enum { starting, refusing, waiting, writing, sending } step = starting;
    asio::error_code result = {};
    std::size_t written = 0;

    template <typename Self>
    void operator()(Self& self, asio::error_code error = {}, std::size_t size = 0)
    {
        if (step == starting && (result = state->refusal()))
        {
            step = refusing;
            return state->resume_later(std::move(self));
        }
        if (step == refusing)
            return self.complete(result, 0);
        auto& link = *state->tls();
        const bool cancelled = was_cancelled(self);
        switch (step)
        {
        case starting:
            step = waiting;
            [[fallthrough]];
        case waiting:
            if (cancelled)
                return self.complete(asio::error::operation_aborted, 0);
            if (!link.can_write())
                return link.async_wait_output(std::move(self));
            {
                step = writing;
                auto& layer = state->tls()->layer();
                const auto copy = buffers;
                return layer.async_write_some(copy, std::move(self));
            }
        case writing:
            step = sending;
            result = outcome_of(error, size, buffers);
            written = size;
            [[fallthrough]];
        case sending:
            if (!link.is_sent() && !cancelled)
                return link.async_wait_output(std::move(self));
            if (!link.is_sent() || result == asio::error::operation_aborted)
                state->failure = errc::stream_unusable;
            if (!link.is_sent())
                return self.complete(asio::error::operation_aborted, 0);
            if (!result)
                result = link.error();
            return self.complete(as_aborted(result), result ? 0 : written);
        case refusing: break;
        }
    }
};

} // namespace upgradeable_streams::detail

#endif
