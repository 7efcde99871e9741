/// @file
/// The variant inside an upgradeable_stream, and the operations on it once it is no longer plain.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STREAM_STATE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STREAM_STATE_HPP

#include <upgradeable_streams/detail/deadline.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/tls_limits.hpp>
#include <upgradeable_streams/detail/tls_link.hpp>
#include <upgradeable_streams/detail/tls_settings.hpp>
#include <upgradeable_streams/detail/upgrade_error.hpp>
#include <upgradeable_streams/error.hpp>

#include <asio/bind_executor.hpp>
#include <asio/buffer.hpp>
#include <asio/error.hpp>
#include <asio/socket_base.hpp>
#include <asio/post.hpp>
#include <asio/ssl/error.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <variant>

namespace upgradeable_streams::detail
{

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

/// What is to be told of an operation that has ended with `result`, and its deadline with it.
inline asio::error_code conclude(std::optional<deadline>& within, const asio::error_code& result, bool cancelled,
                                 errc late)
{
    const bool is_late = within->has_expired();
    within.reset();
    if (is_late)
        return late;
    return cancelled ? asio::error_code(asio::error::operation_aborted) : as_aborted(result);
}

template <typename Socket, template <typename> class TlsLayer>
struct stream_state : std::enable_shared_from_this<stream_state<Socket, TlsLayer>>
{
    using link = tls_link<Socket, TlsLayer>;

    /// Between the two others, in either direction.
    struct changing
    {
        std::unique_ptr<link> tls;
    };

    struct encrypted
    {
        std::unique_ptr<link> tls;
    };

    stream_state(Socket&& socket, tls_settings given) : stage(std::move(socket)), settings(std::move(given)) {}

    link* tls()
    {
        if (auto* now = std::get_if<encrypted>(&stage))
            return now->tls.get();
        if (auto* soon = std::get_if<changing>(&stage))
            return soon->tls.get();
        return nullptr;
    }

    /// Resumes an operation that may not go on yet. The executor of a handler for a future is the system's, on whose
    /// threads the stream is not to be used.
    template <typename Operation>
    void resume_later(Operation&& operation)
    {
        asio::post(socket().get_executor(), std::forward<Operation>(operation));
    }

    Socket& socket() { return tls() ? tls()->socket() : std::get<Socket>(stage); }
    SSL* ssl() { return tls() ? tls()->layer().native_handle() : nullptr; }

    /// Ends TLS with a FIN, lest the reset for bytes that are left unread overtakes an alert; without a close_notify
    /// it is no clean end, as it would be in plain text.
    void close()
    {
        asio::error_code ignored;
        if (tls())
            socket().lowest_layer().shutdown(asio::socket_base::shutdown_send, ignored);
        socket().lowest_layer().close(ignored);
    }

    void fail(const asio::error_code& reason)
    {
        failure = reason;
        close();
    }

    /// Keeps the start of what stands behind the first `offset` bytes, without allocating.
    void keep_not_tls(std::string&& bytes, std::size_t offset)
    {
        not_tls = std::move(bytes.erase(0, offset));
        not_tls.resize(std::min(not_tls.size(), first_bytes_limit));
    }

    /// What a read of the encrypted stream reports; an error is kept.
    asio::error_code outcome_of_read(asio::error_code error)
    {
        error = as_aborted(error);
        if (error == asio::ssl::error::stream_truncated && settings.suppress_ragged_eofs)
            error = asio::error::eof;
        if (error && error != asio::error::operation_aborted)
            read_error = error;
        return error;
    }

    /// The socket, while it may be used directly.
    Socket* plain() { return failure ? nullptr : std::get_if<Socket>(&stage); }
    Socket* plain_to_read() { return left_over.empty() ? plain() : nullptr; }

    template <typename MutableBufferSequence>
    std::size_t read_left_over(const MutableBufferSequence& buffers)
    {
        const std::size_t size = asio::buffer_copy(buffers, asio::buffer(left_over));
        left_over.erase(0, size);
        if (left_over.empty())
            std::string().swap(left_over);
        return size;
    }

    std::string take_left_over() { return std::exchange(left_over, {}); }

    /// Why a read or a write is refused.
    asio::error_code refusal() const
    {
        if (failure)
            return failure;
        return std::holds_alternative<changing>(stage) ? make_error_code(errc::upgrade_in_progress)
                                                        : asio::error_code();
    }

    asio::error_code read_refusal() const
    {
        const asio::error_code refused = refusal();
        return refused ? refused : read_error;
    }

    /// As a read of the encrypted stream, but asio::error::would_block in place of waiting.
    template <typename Executor>
    std::size_t read_now(asio::mutable_buffer buffer, asio::error_code& error, const Executor& executor)
    {
        error = read_refusal();
        const std::size_t size = error ? 0 : tls()->core().read(buffer, error, executor);
        if (error && error != asio::error::would_block)
            error = outcome_of_read(error);
        return size;
    }

    /// As a write of the encrypted stream, but asio::error::would_block in place of waiting.
    std::size_t write_now(asio::const_buffer buffer, asio::error_code& error)
    {
        error = refusal();
        return error ? 0 : tls()->core().write(buffer, error);
    }

    /// Puts a TLS stream in the socket's place; when that throws the socket is where it was.
    void begin_upgrade(const openssl_ptr<SSL>& ssl)
    {
        SSL_up_ref(ssl.get());
        auto next = std::make_unique<link>(std::move(std::get<Socket>(stage)), openssl_ptr<SSL>(ssl.get()),
                                           this->weak_from_this());
        stage.template emplace<changing>(changing{std::move(next)});
    }

    void complete_upgrade()
    {
        auto done = std::move(std::get<changing>(stage).tls);
        stage.template emplace<encrypted>(encrypted{std::move(done)});
    }

    void begin_stop()
    {
        auto now = std::move(std::get<encrypted>(stage).tls);
        stage.template emplace<changing>(changing{std::move(now)});
    }

    /// Puts the socket in the TLS stream's place. `unread` is what came through TLS and was not read.
    void complete_stop(std::string&& unread)
    {
        left_over = std::move(unread) + tls()->take_plain_text();
        const auto done = std::move(std::get<changing>(stage).tls);
        read_error.clear();
        stage.template emplace<Socket>(done->release_socket());
    }

    /// Closes the stream when `timeout` has passed; for an operation that runs on `executor`.
    template <typename Executor>
    deadline start_deadline(std::chrono::steady_clock::duration timeout, const Executor& executor)
    {
        return {socket().get_executor(), timeout, asio::bind_executor(executor, [this] { close(); })};
    }

    /// The exception of an upgrade that failed with `error`.
    tls_error describe(const asio::error_code& error) { return describe_upgrade(error, ssl(), settings, not_tls); }

    std::variant<Socket, changing, encrypted> stage;
    tls_settings settings;
    asio::error_code failure;    ///< Why the encrypted stream can only be closed.
    asio::error_code read_error; ///< The first, which later reads repeat.
    std::string not_tls;         ///< What the peer sent where TLS had to begin.
    std::string left_over;       ///< What a stop of TLS has received for the plain stream to read.
};

} // namespace upgradeable_streams::detail

#endif
