/// @file
/// The end of TLS: with the connection, or back to plain text.
#ifndef UPGRADEABLE_STREAMS_DETAIL_SHUTDOWN_OPERATION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_SHUTDOWN_OPERATION_HPP

#include <upgradeable_streams/detail/deadline.hpp>
#include <upgradeable_streams/detail/initiation.hpp>
#include <upgradeable_streams/detail/record_framing.hpp>
#include <upgradeable_streams/detail/stream_state.hpp>
#include <upgradeable_streams/detail/tls_limits.hpp>
#include <upgradeable_streams/error.hpp>

#include <asio/buffer.hpp>
#include <asio/dispatch.hpp>
#include <asio/error.hpp>
#include <asio/socket_base.hpp>
#include <asio/ssl/error.hpp>
#include <openssl/bio.h>
#include <openssl/ssl.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

namespace upgradeable_streams::detail
{

/// Ends the own direction, and for shutdown_both awaits the end of the peer's; then may go on in plain text.
template <typename State>
struct shutdown_operation
{
    std::shared_ptr<State> state;
    asio::socket_base::shutdown_type what;
    std::chrono::steady_clock::duration timeout;
    bool to_plain_text = false;
    enum { starting, beginning, refusing, waiting, notifying, sending, receiving, settling, leaving } step = starting;
    std::optional<deadline> within = {};
    std::unique_ptr<std::array<char, 4096>> memory = {};
    std::string unread = {}; ///< Of what came before the close_notify, for the plain stream.
    asio::error_code result = {};
    bool suspended = false;

    template <typename Self>
    void operator()(Self& self, asio::error_code error = {}, std::size_t size = 0)
    {
        const bool cancelled = was_cancelled(self);
        suspended = suspended || step > beginning;
        switch (step)
        {
        case starting: // on any thread, as with use_future; send_close_notify needs the one that goes on with this
            step = beginning;
            return asio::dispatch(state->socket().get_executor(), std::move(self));
        case beginning:
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
                return state->resume_later(std::move(self));
            }
            if (to_plain_text)
                state->begin_stop();
            step = waiting;
            [[fallthrough]];
        case waiting:
            if (!state->tls()->can_write() && !cancelled)
                return state->tls()->async_wait_output(std::move(self));
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
            state->tls()->end_output();
            [[fallthrough]];
        case sending:
            if (!state->tls()->is_sent() && !cancelled)
                return state->tls()->async_wait_output(std::move(self));
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
            if (!result && !cancelled && !(state->tls()->can_write() && state->tls()->is_sent()))
                return state->tls()->async_wait_output(std::move(self));
            if (!result)
                result = state->tls()->error();
            step = leaving;
            return state->resume_later(std::move(self)); // out of the layer that goes
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
        within.emplace(state->start_deadline(timeout, executor));
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
        result = conclude(within, result, cancelled, errc::shutdown_timeout);
        if (cancelled)
            state->failure = errc::stream_unusable;
        if (suspended)
            return self.complete(result);
        step = refusing;
        state->resume_later(std::move(self));
    }

    /// Whether TLS was given what is behind the close_notify. From OpenSSL 3.2 on SSL_has_pending takes the
    /// close_notify itself for that, and is asked only where the last record was no such.
    bool has_taken_too_much() const
    {
        const record_framing& given = state->tls()->framing();
        const bool is_pending = SSL_has_pending(state->ssl()) &&
                                (OpenSSL_version_num() < 0x30200000L || !given.ends_with_close_notify());
        return !given.is_between_records() || is_pending || BIO_ctrl_pending(SSL_get_rbio(state->ssl())) > 0;
    }

    void leave(bool cancelled)
    {
        if (!result && !(SSL_get_shutdown(state->ssl()) & SSL_RECEIVED_SHUTDOWN))
            result = asio::ssl::error::stream_truncated;
        if (!result && has_taken_too_much())
            result = std::make_error_code(std::errc::protocol_error);
        if (!result && !state->socket().lowest_layer().is_open())
            result = asio::error::operation_aborted;
        result = conclude(within, result, cancelled, errc::shutdown_timeout);
        if (!result)
            result = error_of([&] { state->complete_stop(std::move(unread)); });
        if (result)
            state->fail(cancelled ? make_error_code(errc::stream_unusable) : result);
    }
};

} // namespace upgradeable_streams::detail

#endif
