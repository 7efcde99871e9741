/// @file
/// The operations of a tls_stream.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TLS_OPERATIONS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TLS_OPERATIONS_HPP

#include <upgradeable_streams/detail/initiation.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/tls_engine.hpp>

#include <asio/buffer.hpp>
#include <asio/error.hpp>

#include <cstddef>
#include <memory>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

namespace upgradeable_streams::detail
{

template <typename Core, typename MutableBufferSequence>
struct tls_read_operation
{
    std::shared_ptr<Core> core;
    MutableBufferSequence buffers;
    enum { starting, flushing, waiting, receiving, completing } step = starting;
    asio::error_code result = {};
    std::size_t size = 0;

    template <typename Self>
    void operator()(Self& self, const asio::error_code& error = {}, std::size_t received = 0)
    {
        const bool first = step == starting;
        switch (step)
        {
        case receiving: result = core->received(error, received); break;
        case waiting: result = error; break;
        case flushing:
            result.clear();
            if (was_cancelled(self))
                result = asio::error::operation_aborted;
            else if (is_transient(error) || error == asio::error::in_progress)
                result = error;
            break;
        case starting: core->engine.begin_turn(); break;
        case completing: return self.complete(result, size);
        }
        if (result)
            return self.complete(result, 0);
        if (asio::buffer_size(buffers) > 0)
            size = core->read(buffers, result, self.get_executor());
        if (result != asio::error::would_block)
        {
            step = completing;
            return first ? core->resume_later(std::move(self)) : self.complete(result, size);
        }
        const auto keep = core;
        if (keep->has_too_many_replies())
        {
            step = flushing;
            return keep->async_flush(std::move(self));
        }
        if (was_cancelled(self))
            return self.complete(asio::error::operation_aborted, 0);
        step = keep->is_receiving() ? waiting : receiving;
        step == waiting ? keep->async_wait_change(std::move(self)) : keep->async_receive(std::move(self));
    }
};

template <typename Core, typename ConstBufferSequence>
struct tls_write_operation
{
    std::shared_ptr<Core> core;
    ConstBufferSequence buffers;
    enum { starting, waiting, flushing, completing } step = starting;
    asio::error_code result = {};
    std::size_t size = 0;

    template <typename Self>
    void operator()(Self& self, const asio::error_code& error = {}, std::size_t = 0)
    {
        const bool first = step == starting;
        switch (step)
        {
        case waiting:
            if (error)
                return finish(self, error);
            [[fallthrough]];
        case starting:
            if (asio::buffer_size(buffers) > 0)
                size = core->write(buffers, result);
            if (result == asio::error::would_block || (!result && !core->is_flushed()))
            {
                step = result ? waiting : flushing;
                const auto keep = core;
                return keep->async_writable(std::move(self));
            }
            step = completing;
            return first ? core->resume_later(std::move(self)) : self.complete(result, result ? 0 : size);
        case flushing:
            if (is_transient(error) && size > 0)
                core->keep_written(size);
            return finish(self, error);
        case completing: return self.complete(result, result ? 0 : size);
        }
    }

    template <typename Self>
    void finish(Self& self, const asio::error_code& error)
    {
        if (error == asio::error::operation_aborted)
            core->fail_half_way();
        self.complete(error, error ? 0 : size);
    }
};

/// A handshake or a shutdown: `Action` is tried until it does not ask for input.
template <typename Core, typename Action>
struct tls_exchange_operation
{
    std::shared_ptr<Core> core;
    Action action;
    enum { starting, acting, flushing, waiting, completing } step = starting;
    asio::error_code result = {};
    bool suspended = false;

    /// So often something is received without waiting before others have their turn.
    static constexpr int most_at_once = 16;

    template <typename Self>
    void operator()(Self& self, asio::error_code error = {}, std::size_t = 0)
    {
        suspended = suspended || step != starting;
        const auto keep = core;
        for (int rounds = 0;;)
            switch (step)
            {
            case starting:
                result = core->failure();
                if (result)
                    return finish(self);
                [[fallthrough]];
            case acting:
                core->engine.use(invalid_descriptor);
                action(core->engine, result);
                core->flush();
                step = flushing;
                if (!core->is_flushed())
                    return keep->async_flush(std::move(self));
                break;
            case flushing:
                if (!result || result == asio::error::would_block)
                    if (core->write_error())
                        result = core->write_error();
                if (const auto flushed = std::exchange(error, {});
                    flushed && (!result || flushed == asio::error::in_progress))
                    result = flushed;
                if (was_cancelled(self))
                    result = asio::error::operation_aborted;
                if (result != asio::error::would_block)
                    return finish(self);
                step = acting;
                if (!core->is_receiving() && ++rounds < most_at_once && core->receive())
                    break;
                step = waiting;
                return keep->async_wait_input(std::move(self));
            case waiting:
                step = acting;
                result = std::exchange(error, {});
                if (!result)
                    break;
                return finish(self);
            case completing: return action.complete(self, *keep, result);
            }
    }

    template <typename Self>
    void finish(Self& self)
    {
        if (result == asio::error::operation_aborted)
            core->fail_half_way();
        else if (result && !is_transient(result) && !core->engine.is_established())
            core->fail(result);
        step = completing;
        if (suspended)
        {
            const auto keep = core;
            return action.complete(self, *keep, result);
        }
        core->resume_later(std::move(self));
    }
};

/// Tells how many of the bytes that were received before it took, if that is `Counted`.
template <bool Counted, typename ConstBufferSequence>
struct tls_handshake
{
    bool is_server;
    ConstBufferSequence buffers;
    std::vector<char> received = {}; ///< Not a string, which may move with its bytes.
    bool began = false;

    void operator()(tls_engine& engine, asio::error_code& error)
    try
    {
        if (!std::exchange(began, true) && SSL_in_before(engine.native_handle()))
        {
            received.resize(asio::buffer_size(buffers));
            asio::buffer_copy(asio::buffer(received), buffers);
            engine.feed({received.data(), received.size()});
        }
        engine.handshake(is_server, error);
    }
    catch (const std::bad_alloc&)
    {
        error = asio::error::no_memory;
    }

    template <typename Self, typename Core>
    void complete(Self& self, Core& core, const asio::error_code& error)
    {
        const std::string_view rest = core.engine.fed();
        const bool is_ours = rest.data() + rest.size() == received.data() + received.size();
        const std::size_t consumed = received.size() - (is_ours ? rest.size() : 0);
        if (is_ours)
            core.engine.feed({}); // it goes with this operation
        core.end_handshake();
        if constexpr (Counted)
            self.complete(error, consumed);
        else
            self.complete(error);
    }
};

struct tls_shutdown
{
    void operator()(tls_engine& engine, asio::error_code& error) { engine.shutdown(error); }

    template <typename Self, typename Core>
    void complete(Self& self, Core&, const asio::error_code& error)
    {
        self.complete(error);
    }
};

} // namespace upgradeable_streams::detail

#endif
