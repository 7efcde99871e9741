/// @file
/// The operations on a stream that is no longer plain, and the one that makes it so.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STREAM_OPERATIONS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STREAM_OPERATIONS_HPP

#include <upgradeable_streams/detail/record_framing.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/stream_state.hpp>
#include <upgradeable_streams/detail/tls_core.hpp>
#include <upgradeable_streams/detail/tls_limits.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/buffer.hpp>
#include <asio/cancellation_type.hpp>
#include <asio/error.hpp>
#include <asio/post.hpp>
#include <asio/socket_base.hpp>
#include <asio/ssl/error.hpp>
#include <asio/ssl/stream_base.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>

namespace upgradeable_streams::detail
{

/// Any cancellation of a read is passed on as terminal, the only one that asio::ssl::stream knows.
inline asio::cancellation_type as_terminal(asio::cancellation_type type)
{
    return type == asio::cancellation_type::none ? type : asio::cancellation_type::terminal;
}

/// What `function` throws for want of a resource: Asio ends the program when an initiating function throws and a
/// coroutine awaits it. Any other exception is a TLS layer's own affair.
template <typename Function>
asio::error_code error_of(Function function)
try
{
    function();
    return {};
}
catch (const std::bad_alloc&)
{
    return asio::error::no_memory;
}
catch (const std::system_error& error)
{
    return error.code();
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
                return asio::post(std::move(self));
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
            return self.complete(state->outcome_of_read(error), size);
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
            return asio::post(std::move(self));
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
            if (!link.is_idle())
                return link.async_wait_change(std::move(self));
            {
                step = writing;
                auto& layer = state->tls()->layer();
                const auto copy = buffers;
                return layer.async_write_some(copy, std::move(self));
            }
        case writing:
            step = sending;
            result = error;
            written = size;
            [[fallthrough]];
        case sending:
            if (!link.is_sent() && !cancelled)
                return link.async_wait_change(std::move(self));
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

template <typename State>
struct upgrade_operation
{
    std::shared_ptr<State> state;
    std::unique_ptr<upgrade_request> request;
    enum { starting, refusing, handshaking, sending } step = starting;
    std::shared_ptr<typename State::deadline> deadline = {};
    asio::error_code result = {};

    template <typename Self>
    void operator()(Self& self, asio::error_code error = {}, std::size_t consumed = 0)
    {
        switch (step)
        {
        case starting:
            result = refusal();
            if (!result)
            {
                result = error_of([&] { begin(self.get_executor()); });
                if (result)
                    state->fail(result);
            }
            if (result)
            {
                step = refusing;
                return asio::post(std::move(self));
            }
            step = handshaking;
            {
                auto& layer = state->tls()->layer();
                const auto type = state->settings.role == tls_role::client ? asio::ssl::stream_base::client
                                                                           : asio::ssl::stream_base::server;
                const auto received = asio::buffer(request->received);
                return layer.async_handshake(type, asio::const_buffer(received), std::move(self));
            }
        case handshaking:
            step = sending;
            result = judge(error, consumed);
            [[fallthrough]];
        case sending:
        {
            const bool cancelled = was_cancelled(self);
            auto& link = *state->tls();
            if (!link.is_sent() && !cancelled)
                return link.async_wait_change(std::move(self));
            if (!result)
                result = link.error();
            result = as_aborted(result);
            if (deadline->expired)
                result = errc::handshake_timeout;
            else if (cancelled)
                result = asio::error::operation_aborted;
            deadline->cancel();
            if (result)
                state->fail(cancelled ? make_error_code(errc::stream_unusable) : result);
            else
                state->complete_upgrade();
            return self.complete(result);
        }
        case refusing: return self.complete(result);
        }
    }

    template <typename Executor>
    void begin(const Executor& executor)
    {
        state->settings = std::move(request->settings);
        state->begin_upgrade(request->ssl);
        state->tls()->skip(request->received);
        deadline = state->start_deadline(state->settings.handshake_timeout, executor);
    }

    asio::error_code refusal()
    {
        if (state->failure)
            return state->failure;
        if (std::holds_alternative<typename State::encrypted>(state->stage))
            return errc::already_tls;
        if (std::holds_alternative<typename State::changing>(state->stage))
            return errc::upgrade_in_progress;
        if (!request->ssl)
            return errc::not_upgradeable;
        std::string& received = request->received;
        if (const auto error = error_of([&] { received.insert(0, state->take_left_over()); }))
        {
            state->fail(error);
            return error;
        }
        const bool may_be_tls = request->settings.role == tls_role::server && begins_tls_handshake(received);
        const std::size_t tls_size = may_be_tls ? record_framing().accept_all(received) : 0;
        if (tls_size < received.size())
        {
            state->keep_not_tls(std::move(request->received), tls_size);
            state->fail(errc::plaintext_injection);
            return errc::plaintext_injection;
        }
        return {};
    }

    /// What the handshake's outcome means.
    asio::error_code judge(const asio::error_code& error, std::size_t consumed)
    {
        std::string first = state->tls()->take_first_bytes();
        if (error && request->received.empty() && !begins_tls_record(first))
        {
            state->keep_not_tls(std::move(first), 0);
            return errc::plaintext_injection;
        }
        if (error)
            return error;
        if (consumed < request->received.size())
        {
            state->keep_not_tls(std::move(request->received), consumed);
            return errc::plaintext_injection;
        }
        const unsigned char* protocol = nullptr;
        unsigned size = 0;
        SSL_get0_alpn_selected(state->ssl(), &protocol, &size);
        if (size == 0 && state->settings.role == tls_role::client && has_alpn_protocols(state->ssl()))
            return errc::alpn_not_agreed;
        put_back_session(state->ssl());
        return {};
    }
};

/// Ends the own direction, and for shutdown_both awaits the end of the peer's; then may go on in plain text.
template <typename State>
struct shutdown_operation
{
    std::shared_ptr<State> state;
    asio::socket_base::shutdown_type what;
    std::chrono::steady_clock::duration timeout;
    bool to_plain_text = false;
    enum { starting, refusing, waiting, notifying, sending, receiving, settling, leaving } step = starting;
    std::shared_ptr<typename State::deadline> deadline = {};
    std::unique_ptr<std::array<char, 4096>> memory = {};
    std::string unread = {}; ///< Of what came before the close_notify, for the plain stream.
    asio::error_code result = {};
    bool suspended = false;

    template <typename Self>
    void operator()(Self& self, asio::error_code error = {}, std::size_t size = 0)
    {
        const bool cancelled = was_cancelled(self);
        suspended = suspended || step != starting;
        switch (step)
        {
        case starting:
            if (state->tls() || to_plain_text)
                result = state->refusal();
            else
                state->socket().lowest_layer().shutdown(asio::socket_base::shutdown_send, result);
            if (!result && to_plain_text && !state->tls())
                result = errc::not_tls;
            if (!result && state->tls())
                result = error_of([&] { begin(self.get_executor()); });
            if (result || !state->tls())
            {
                step = refusing;
                return asio::post(std::move(self));
            }
            if (to_plain_text)
                state->begin_stop();
            step = waiting;
            [[fallthrough]];
        case waiting:
            if (!state->tls()->is_idle() && !cancelled)
                return state->tls()->async_wait_change(std::move(self));
            if (has_failed())
            {
                result = state->read_error;
                return finish(self, cancelled);
            }
            step = notifying;
            if (!cancelled && !(SSL_get_shutdown(state->ssl()) & SSL_SENT_SHUTDOWN))
                return send_close_notify(std::move(self));
            [[fallthrough]];
        case notifying:
            step = sending;
            result = error;
            [[fallthrough]];
        case sending:
            if (!state->tls()->is_sent() && !cancelled)
                return state->tls()->async_wait_change(std::move(self));
            if (!result)
                result = state->tls()->error();
            if (result || cancelled || what == asio::socket_base::shutdown_send)
                return finish(self, cancelled);
            step = receiving;
            return receive(std::move(self));
        case receiving:
            error = state->outcome_of_read(error);
            if (!error && !cancelled && keep_unread(size))
                return receive(std::move(self));
            if (error != asio::error::eof && !result)
                result = error;
            return finish(self, cancelled);
        case settling:
            if (!result && !cancelled && !(state->tls()->is_idle() && state->tls()->is_sent()))
                return state->tls()->async_wait_change(std::move(self));
            if (!result)
                result = state->tls()->error();
            step = leaving;
            return asio::post(std::move(self)); // out of the layer that goes
        case leaving:
            leave(cancelled);
            return self.complete(result);
        case refusing: return self.complete(result);
        }
    }

    template <typename Executor>
    void begin(const Executor& executor)
    {
        if (what != asio::socket_base::shutdown_send)
            memory = std::make_unique<std::array<char, 4096>>();
        deadline = state->start_deadline(timeout, executor);
    }

    /// Whether a read has met an error after which no close_notify can be sent.
    bool has_failed() const
    {
        return state->read_error && state->read_error != asio::error::eof &&
               state->read_error != asio::ssl::error::stream_truncated;
    }

    /// asio's async_shutdown awaits the peer's close_notify and fails on data that comes before it. Told that the
    /// close_notify has come, SSL_shutdown, which runs inside the call, sends ours and awaits nothing.
    template <typename Self>
    void send_close_notify(Self&& self)
    {
        const auto keep = state;
        const int before = SSL_get_shutdown(keep->ssl());
        SSL_set_shutdown(keep->ssl(), before | SSL_RECEIVED_SHUTDOWN);
        keep->tls()->layer().async_shutdown(std::move(self));
        SSL_set_shutdown(keep->ssl(), before | SSL_SENT_SHUTDOWN);
    }

    /// An end that a read has found is not awaited again: a socket tells its end once.
    template <typename Self>
    void receive(Self&& self)
    {
        if (state->read_error && state->read_error != asio::error::eof)
            result = state->read_error;
        if (state->read_error || SSL_get_shutdown(state->ssl()) & SSL_RECEIVED_SHUTDOWN)
            return finish(self, false);
        auto& layer = state->tls()->layer();
        const auto buffer = asio::buffer(*memory);
        layer.async_read_some(buffer, std::move(self));
    }

    /// Whether there was room for what was received; a stream that ends drops it.
    bool keep_unread(std::size_t size)
    {
        if (!to_plain_text)
            return true;
        result = unread.size() + size > unread_limit ? asio::error_code(asio::error::no_buffer_space)
                                                     : error_of([&] { unread.append(memory->data(), size); });
        return !result;
    }

    template <typename Self>
    void finish(Self& self, bool cancelled)
    {
        if (to_plain_text)
        {
            step = settling;
            return (*this)(self);
        }
        conclude(cancelled);
        if (cancelled)
            state->failure = errc::stream_unusable;
        if (suspended)
            return self.complete(result);
        step = refusing;
        asio::post(std::move(self));
    }

    /// Whether TLS was given what is behind the close_notify.
    bool has_taken_too_much() const
    {
        return !state->tls()->is_between_records() || SSL_has_pending(state->ssl()) ||
               BIO_ctrl_pending(SSL_get_rbio(state->ssl())) > 0;
    }

    void conclude(bool cancelled)
    {
        result = as_aborted(result);
        if (deadline->expired)
            result = errc::shutdown_timeout;
        else if (cancelled)
            result = asio::error::operation_aborted;
        deadline->cancel();
    }

    void leave(bool cancelled)
    {
        if (!result && !(SSL_get_shutdown(state->ssl()) & SSL_RECEIVED_SHUTDOWN))
            result = asio::ssl::error::stream_truncated;
        if (!result && has_taken_too_much())
            result = std::make_error_code(std::errc::protocol_error);
        if (!result && !state->socket().lowest_layer().is_open())
            result = asio::error::operation_aborted;
        conclude(cancelled);
        if (!result)
            result = error_of([&] { state->complete_stop(std::move(unread)); });
        if (result)
            state->fail(cancelled ? make_error_code(errc::stream_unusable) : result);
    }
};

} // namespace upgradeable_streams::detail

#endif
