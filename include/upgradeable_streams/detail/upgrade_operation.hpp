/// @file
/// From plain text to TLS.
#ifndef UPGRADEABLE_STREAMS_DETAIL_UPGRADE_OPERATION_HPP
#define UPGRADEABLE_STREAMS_DETAIL_UPGRADE_OPERATION_HPP

#include <upgradeable_streams/detail/alpn.hpp>
#include <upgradeable_streams/detail/deadline.hpp>
#include <upgradeable_streams/detail/initiation.hpp>
#include <upgradeable_streams/detail/record_framing.hpp>
#include <upgradeable_streams/detail/resumption.hpp>
#include <upgradeable_streams/detail/stream_state.hpp>
#include <upgradeable_streams/detail/tls_settings.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/buffer.hpp>
#include <asio/error_code.hpp>
#include <asio/ssl/stream_base.hpp>
#include <openssl/ssl.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace upgradeable_streams::detail
{

template <typename State>
struct upgrade_operation
{
    std::shared_ptr<State> state;
    std::unique_ptr<upgrade_request> request;
    enum { starting, refusing, handshaking, sending } step = starting;
    std::optional<deadline> within = {};
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
                return state->resume_later(std::move(self));
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
                return link.async_wait_output(std::move(self));
            if (!result)
                result = link.error();
            result = conclude(within, result, cancelled, errc::handshake_timeout);
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
        state->settings.offer_known_session(request->ssl.get());
        state->begin_upgrade(request->ssl);
        state->tls()->skip(request->received);
        within.emplace(state->start_deadline(state->settings.handshake_timeout, executor));
    }

    asio::error_code refusal()
    {
        if (const asio::error_code refused = state->refusal())
            return refused;
        if (state->tls())
            return errc::already_tls;
        if (!request->ssl)
            return errc::not_upgradeable;
        state->settings = std::move(request->settings); // whatever is refused from here on ends the stream
        std::string& received = request->received;
        if (const auto error = error_of([&] { received.insert(0, state->take_left_over()); }))
        {
            state->fail(error);
            return error;
        }
        const bool may_be_tls = state->settings.role == tls_role::server && begins_tls_handshake(received);
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

} // namespace upgradeable_streams::detail

#endif
