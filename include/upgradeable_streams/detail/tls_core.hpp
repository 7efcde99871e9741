/// @file
/// A TLS engine and its transport.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TLS_CORE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TLS_CORE_HPP

#include <upgradeable_streams/detail/initiation.hpp>
#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>
#include <upgradeable_streams/detail/tls_blocking.hpp>
#include <upgradeable_streams/detail/tls_engine.hpp>
#include <upgradeable_streams/detail/tls_limits.hpp>
#include <upgradeable_streams/error.hpp>

#include <asio/bind_executor.hpp>
#include <asio/buffer.hpp>
#include <asio/compose.hpp>
#include <asio/error.hpp>
#include <asio/post.hpp>
#include <asio/ssl/error.hpp>
#include <asio/steady_timer.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace upgradeable_streams::detail
{

/// What a tls_stream and its operations share.
template <typename NextLayer>
class tls_core : public std::enable_shared_from_this<tls_core<NextLayer>>
{
public:
    using next_layer_type = std::remove_reference_t<NextLayer>;

    /// `next` is taken over when nothing can throw any more.
    template <typename Arg>
    tls_core(Arg&& next, openssl_ptr<SSL> ssl)
        : engine(std::move(ssl)), changed_(executor_of(next), asio::steady_timer::time_point::max()),
          next_(std::forward<Arg>(next))
    {
    }

    next_layer_type& next() { return next_; }
    std::string take_first_bytes() { return std::exchange(first_bytes_, {}); }

    /// Ends both directions; the first reason is kept.
    void fail(const asio::error_code& reason)
    {
        if (!failure_)
            failure_ = reason;
    }

    /// Of a write, a handshake or a shutdown that was cancelled, or ended because the socket was closed.
    void fail_half_way()
    {
        bool is_open = true;
        if constexpr (requires { next_.lowest_layer().is_open(); })
            is_open = next_.lowest_layer().is_open();
        fail(is_open ? make_error_code(errc::stream_unusable) : asio::error_code(asio::error::operation_aborted));
    }

    const asio::error_code& failure() const { return failure_; }

    /// Ends what is pending at its next step.
    void abandon() { failure_ = write_error_ = asio::error::operation_aborted; }

    /// As async_read_some, but asio::error::would_block in place of waiting, and while the peer has too many replies to
    /// receive. `executor` is where replies that cannot be sent at once are sent from.
    template <typename MutableBufferSequence, typename Executor>
    std::size_t read(const MutableBufferSequence& buffers, asio::error_code& error, const Executor& executor)
    {
        if (has_too_many_replies())
            send_replies(executor);
        const bool is_full = has_too_many_replies();
        error = failure_                   ? failure_
                : !engine.is_established() ? asio::error::not_connected
                : is_full                  ? asio::error::would_block
                                           : asio::error_code();
        std::size_t size = 0;
        engine.use(descriptor_of(next_));
        for (auto b = asio::buffer_sequence_begin(buffers); b != asio::buffer_sequence_end(buffers) && !error; ++b)
            size += engine.read(*b, error);
        has_news_ = is_full || (error != asio::error::would_block && engine.has_input());
        if (size > 0)
            error.clear();
        else if (error == asio::ssl::error::stream_truncated && tells_cut_off(write_error_))
            error = write_error_;
        release_room();
        if (!engine.unsent().empty() && !is_full) // else the caller flushes, and reads on what is there
            send_replies(executor);
        return size;
    }

    /// As async_write_some, but asio::error::would_block where it is to be made again after async_writable; and it has
    /// then still to be flushed.
    template <typename ConstBufferSequence>
    std::size_t write(const ConstBufferSequence& buffers, asio::error_code& error)
    try
    {
        flush();
        needs_input_ = false;
        error = failure_                   ? failure_
                : !engine.is_established() ? asio::error::not_connected
                : !is_flushed()            ? asio::error::would_block
                                           : write_error_;
        if (error)
            return 0;
        if (written_ > 0)
        {
            const std::size_t size = std::min(written_, asio::buffer_size(buffers));
            written_ -= size;
            return size;
        }
        engine.use(descriptor_of(next_));
        const std::size_t size = engine.write(buffers, error);
        release_room();
        needs_input_ = error == asio::error::would_block;
        const bool is_of_ssl = error.category() == asio::error::get_ssl_category(); // as a write after a shutdown
        if (!needs_input_ && !is_of_ssl)
            write_error_ = error;
        return size;
    }
    catch (...) // of the caller's buffer sequence
    {
        fail(errc::stream_unusable);
        throw;
    }

    /// Reads the rest of a message that has come in part, before which nothing can be encrypted.
    ///
    /// Returns: whether there is none; else it is waited for with async_writable.
    bool finish_message()
    {
        has_news_ = true; // what it receives may be more than the rest of a message
        engine.use(descriptor_of(next_));
        needs_input_ = !write_error_ && next_.lowest_layer().is_open() &&
                       engine.finish_message() == asio::error::would_block;
        return !needs_input_;
    }

    /// What the next write, which is the same once more, does not encrypt again.
    void keep_written(std::size_t size) { written_ = size; }

    /// Whether all was handed to the transport, or never will be.
    bool is_flushed() const { return write_error_ || (!sending_ && engine.unsent().empty()); }
    std::size_t unsent() const { return engine.unsent().size(); }

    /// Whether to flush before reading on.
    bool has_too_many_replies() const { return engine.replies() > reply_limit && !is_flushed(); }
    const asio::error_code& write_error() const { return write_error_; }

    /// Hands to the transport what it takes without waiting.
    void flush()
    {
        if (write_error_)
            return engine.unsent().drop(sending_);
        if (sending_)
            return;
        engine.use(descriptor_of(next_));
        engine.flush(write_error_);
        if (is_flushed())
            engine.forget_replies();
    }

    /// Whether something was received without waiting.
    bool receive()
    {
        asio::error_code error;
        const std::size_t size = receive_at_once(next_, prepare(), error);
        if (error != asio::error::would_block)
            return !received(error, size);
        release_room();
        return false;
    }

    /// Waits until there may be more to read; what `handler` is given goes to `received`. One at a time.
    template <typename Handler>
    void async_receive(Handler&& handler)
    {
        const asio::mutable_buffer landing = prepare();
        receiving_ = true;
        engine.may_hold(false); // to others: what comes next is this operation's
        next_.async_read_some(landing, std::forward<Handler>(handler));
    }

    void async_receive(blocking_call&& call) { call.await(blocking_call::awaited::raw_input); }

    /// Whether an operation receives; another is then not to, but to wait for it.
    bool is_receiving() const { return receiving_; }

    /// Whether there may be something to read that the last read did not see. It is read before async_receive, which
    /// would receive into its place.
    bool has_news() const { return has_news_; }

    /// Waits until another has received or sent something; as async_flush.
    template <typename Handler>
    void async_wait_change(Handler&& handler)
    {
        wait_for(awaited::change, handler);
    }

    void async_wait_change(blocking_call&& call) { call.complete(asio::error::in_progress); }

    /// Receives, unless another does, and then waits for that; as async_flush.
    template <typename Handler>
    void async_wait_input(Handler&& handler)
    {
        wait_for(awaited::input, handler);
    }

    void async_wait_input(blocking_call&& call)
    {
        if (receiving_)
            call.complete(asio::error::in_progress);
        else
            call.await(blocking_call::awaited::input);
    }

    std::size_t receive_blocking(asio::error_code& error)
    {
        error.clear();
        const asio::mutable_buffer landing = prepare();
        return next_.read_some(landing, error);
    }

    /// What was received, or nothing when that is not known.
    ///
    /// Returns: operation_aborted when that ended the wait, or a transient error; any other is told by the next read.
    asio::error_code received(const asio::error_code& given, std::size_t size)
    {
        const asio::error_code error = as_aborted(given);
        receiving_ = false;
        has_news_ = true;
        if (std::exchange(is_awaited_, false))
            changed_.cancel();
        engine.begin_turn();
        if (error == asio::error::operation_aborted || is_transient(error))
            return error;
        if (error)
            engine.feed_error(error);
        const std::string_view bytes(static_cast<const char*>(landing_.data()), size);
        if (bytes.empty())
            engine.may_hold(true);
        else if (!engine.is_established() && !keep_first(bytes))
            engine.feed_error(asio::error::no_memory);
        else
        {
            engine.feed(bytes);
            engine.may_hold(size == landing_.size());
        }
        return {};
    }

    /// Others have had their turn, or received or sent something: there may be more to read. Returns: whether something
    /// was received, behind which there may be more; of a socket the engine receives itself.
    bool look_again()
    {
        engine.begin_turn();
        engine.may_hold(!receiving_);
        return !is_socket<next_layer_type> && engine.is_established() && !receiving_ && engine.fed().empty() &&
               receive();
    }

    /// Gives back the memory of the handshake.
    void end_handshake()
    {
        if (engine.is_established())
            std::string().swap(first_bytes_);
        release_room();
    }

    /// Waits until all was handed to the transport; not to be called when it was. The signature is
    /// void(asio::error_code, std::size_t).
    template <typename Handler>
    void async_flush(Handler&& handler)
    {
        wait_for(awaited::flush, handler);
    }

    void async_flush(blocking_call&& call) { call.await(blocking_call::awaited::output); }

    /// Waits until a write that was would_block can be made again, or TLS be ended; as async_flush.
    template <typename Handler>
    void async_writable(Handler&& handler)
    {
        if (needs_input_ && is_flushed())
            async_wait_input(std::forward<Handler>(handler));
        else
            async_flush(std::forward<Handler>(handler));
    }

    void flush_blocking(asio::error_code& error)
    {
        for (flush(); !is_flushed(); flush())
        {
            if (sending_)
            {
                error = asio::error::in_progress;
                return;
            }
            const std::size_t size = next_.write_some(begin_sending(), error);
            sent(is_transient(error) ? asio::error_code() : error, size);
            if (error)
                return;
        }
        error = write_error_;
    }

    /// Resumes an operation that may not complete yet, for it has not suspended. The executor of a handler for a future
    /// is the system's, on whose threads the stream is not to be used.
    template <typename Handler>
    void resume_later(Handler&& handler)
    {
        asio::post(executor_of(next_), std::forward<Handler>(handler));
    }

    void resume_later(blocking_call&&) {}

    tls_engine engine;

private:
    enum class awaited
    {
        flush,
        change,
        input
    };

    /// The one operation beneath the others: Asio's templates make all of it anew for each handler of each of them.
    struct wait_operation
    {
        std::shared_ptr<tls_core> core;
        awaited what;
        enum { starting, sending, receiving, waiting } step = starting;

        template <typename Self>
        void operator()(Self& self, asio::error_code error = {}, std::size_t size = 0)
        {
            const auto keep = core;
            const auto before = std::exchange(step, waiting);
            error = before == waiting ? asio::error_code() : as_aborted(error);
            if (before == sending)
                keep->sent(error, size);
            if (before == receiving)
                error = keep->received(error, size);
            if (was_cancelled(self) || (before == sending && error == asio::error::operation_aborted))
                return self.complete(asio::error::operation_aborted, 0);
            if (before != starting && what != awaited::flush)
                return self.complete(error, 0);

            if (what == awaited::flush)
            {
                keep->flush();
                if (keep->is_flushed() && before == starting)
                    return keep->resume_later(std::move(self));
                if (keep->is_flushed())
                    return self.complete(keep->write_error_, 0);
                if (!keep->sending_)
                {
                    step = sending;
                    const auto bytes = keep->begin_sending();
                    return keep->next_.async_write_some(bytes, std::move(self));
                }
            }
            else if (what == awaited::input && !keep->receiving_)
            {
                step = receiving;
                return keep->async_receive(std::move(self));
            }
            else
                keep->is_awaited_ = true;
            keep->changed_.async_wait(std::move(self));
        }
    };

    template <typename Handler>
    void wait_for(awaited what, Handler& handler)
    {
        asio::async_compose<Handler, void(asio::error_code, std::size_t)>(
            wait_operation{this->shared_from_this(), what}, handler, next_);
    }

    template <typename Arg>
    static auto executor_of(Arg& next)
    {
        if constexpr (requires { next.get_executor(); })
            return next.get_executor();
        else
            return next; // it is one
    }

    /// Small over a socket: the rest of a record goes to OpenSSL directly. So it is when there is no memory.
    asio::mutable_buffer prepare()
    {
        constexpr std::size_t size = 16 * 1024;
        if (!is_socket<next_layer_type> && !large_room_)
            large_room_.reset(new (std::nothrow) char[size]);
        landing_ = large_room_ ? asio::buffer(large_room_.get(), size) : asio::buffer(small_room_);
        return landing_;
    }

    /// Gives back the memory of what was received, once all of that is read.
    void release_room()
    {
        if (engine.is_established() && engine.fed().empty() && !receiving_)
            large_room_.reset();
    }

    /// Whether there was memory for it.
    bool keep_first(std::string_view bytes)
    try
    {
        first_bytes_.append(bytes.substr(0, first_bytes_limit - first_bytes_.size()));
        return true;
    }
    catch (const std::bad_alloc&)
    {
        return false;
    }

    asio::const_buffer begin_sending()
    {
        sending_ = true;
        return asio::buffer(engine.unsent().begin());
    }

    void sent(const asio::error_code& error, std::size_t size)
    {
        sending_ = false;
        engine.unsent().take(size);
        engine.unsent().shrink();
        if (error == asio::error::operation_aborted)
            fail_half_way();
        if (error && !write_error_)
            write_error_ = error;
        changed_.cancel();
    }

    template <typename Executor>
    void send_replies(const Executor& executor)
    try
    {
        flush();
        if (!is_flushed() && !sending_)
            async_flush(asio::bind_executor(executor, [](const asio::error_code&, std::size_t) {}));
    }
    catch (const std::bad_alloc&)
    {
        write_error_ = asio::error::no_memory;
    }

    /// The rest goes before the next wait.
    void send_replies(blocking_call::calling_thread) { flush(); }

    std::array<char, 512> small_room_;
    std::unique_ptr<char[]> large_room_;
    asio::mutable_buffer landing_; ///< The one of them that is in use.
    std::string first_bytes_;
    std::size_t written_ = 0; ///< What was encrypted of a write that is to be made again.
    bool sending_ = false;
    bool receiving_ = false;
    bool is_awaited_ = false; ///< What is received, by one that does not receive itself.
    bool has_news_ = false;   ///< Left by the last read, or come since.
    bool needs_input_ = false; ///< Before what was to be written last can be.
    asio::error_code write_error_; ///< Why nothing more is sent.
    asio::error_code failure_;
    asio::steady_timer changed_; ///< Cancelled when something was sent, or received that is awaited.
    NextLayer next_;
};

} // namespace upgradeable_streams::detail

#endif
