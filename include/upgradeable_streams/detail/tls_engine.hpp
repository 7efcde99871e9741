/// @file
/// OpenSSL between a caller's memory and a transport: what a TLS stream does without waiting.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TLS_ENGINE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TLS_ENGINE_HPP

#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/detail/record_buffer.hpp>
#include <upgradeable_streams/detail/record_framing.hpp>
#include <upgradeable_streams/detail/send_queue.hpp>
#include <upgradeable_streams/detail/socket_io.hpp>

#include <asio/buffer.hpp>
#include <asio/error.hpp>
#include <asio/ssl/error.hpp>
#include <asio/ssl/verify_context.hpp>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <new>
#include <string>
#include <string_view>
#include <utility>

namespace upgradeable_streams::detail
{

/// One TLS connection. Nothing here waits: for want of input an operation ends with asio::error::would_block.
///
/// Records go to and come from a socket's descriptor directly, where there is one. What the socket does not take at
/// once is `unsent`, over any other transport all that is written.
///
/// Lifetime: not movable, for OpenSSL holds its address.
class tls_engine
{
public:
    explicit tls_engine(openssl_ptr<SSL> owned) : ssl_(std::move(owned))
    {
        SSL* const ssl = ssl_.get();
        BIO* const bio = BIO_new(method());
        if (!bio)
            throw std::bad_alloc();
        BIO_set_data(bio, this);
        BIO_set_init(bio, 1);
        SSL_set_bio(ssl, bio, bio);
        SSL_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_AUTO_RETRY);
        SSL_clear_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE);
        SSL_set_options(ssl, SSL_OP_NO_RENEGOTIATION); // a write needs no input but the rest of a message
    }

    tls_engine(const tls_engine&) = delete;
    tls_engine& operator=(const tls_engine&) = delete;

    SSL* native_handle() const { return ssl_.get(); }

    /// Whether the handshake is done.
    bool is_established() const { return is_established_; }

    /// The socket to use directly; invalid_descriptor over any other transport.
    void use(socket_descriptor descriptor) { descriptor_ = descriptor; }

    void set_verify_callback(std::function<bool(bool, asio::ssl::verify_context&)> callback)
    {
        verify_callback_ = std::move(callback);
        SSL_set_verify(ssl_.get(), SSL_get_verify_mode(ssl_.get()), verify);
    }

    // Input

    /// Bytes that come before all that the descriptor holds. They are not copied, and live until they were read.
    void feed(std::string_view bytes) { input_ = bytes; }

    /// What was fed or received and is not yet read: after the peer's close_notify, what came with it in plain text.
    std::string_view fed() const { return input_; }

    /// Of what was read.
    const record_framing& framing() const { return framing_; }

    /// How the transport's input ended, after what was fed.
    void feed_error(const asio::error_code& error) { input_error_ = error; }

    /// Whether a read may do more than say would_block.
    bool has_input() const
    {
        return !input_.empty() || input_error_ || read_error_ || ssl_error_ || may_receive() ||
               SSL_has_pending(ssl_.get()) || (SSL_get_shutdown(ssl_.get()) & SSL_RECEIVED_SHUTDOWN);
    }

    /// To be called when others have had their turn.
    void begin_turn() { budget_ = whole_turn; }

    /// Whether a read has ended for others to have theirs: the peer sends much that is no data, as KeyUpdates.
    bool is_spent() const { return budget_ <= 0; }

    /// Whether something was received in this turn that is no data, as a session ticket or new keys are.
    bool has_skipped() const { return budget_ < whole_turn; }

    /// Whether the descriptor may hold bytes. While it may, what is fed can be less than what has come.
    void may_hold(bool on) { may_hold_ = on; }

    // Output

    /// What the socket has not taken, or all where there is none. What is begun with stays where it is.
    send_queue& unsent() { return unsent_; }
    const send_queue& unsent() const { return unsent_; }

    /// How much of the output was no caller's write, since the last call of forget_replies.
    std::size_t replies() const { return replies_; }
    void forget_replies() { replies_ = 0; }

    /// Sends what the descriptor takes.
    void flush(asio::error_code& error)
    {
        for (std::string_view next; !(next = unsent_.front()).empty();)
        {
            const std::size_t size = send_all_at_once(descriptor_, next, error);
            unsent_.take(size);
            if (size < next.size())
                return;
        }
        unsent_.shrink();
    }

    // TLS

    void handshake(bool is_server, asio::error_code& error)
    {
        error = outcome([&] { return is_server ? SSL_accept(ssl_.get()) : SSL_connect(ssl_.get()); });
        is_established_ = !error;
        if (is_established_)
            SSL_set_read_ahead(ssl_.get(), 1);
    }

    /// would_block where a message that comes after the handshake, as a session ticket does, has come in part. OpenSSL
    /// encrypts nothing before it has the rest.
    asio::error_code finish_message()
    {
        if (!is_established_ || !SSL_in_init(ssl_.get()))
            return {};
        return read_error_ ? read_error_ : outcome([&] { return SSL_do_handshake(ssl_.get()); });
    }

    /// Sends a close_notify; `error` is would_block until the peer's has come.
    void shutdown(asio::error_code& error)
    {
        error = finish_message();
        if (error)
            return;
        int result = 0;
        error = outcome(
            [&]
            {
                result = SSL_shutdown(ssl_.get());
                has_ended_ = has_ended_ || (SSL_get_shutdown(ssl_.get()) & SSL_SENT_SHUTDOWN);
                return result == 0 ? SSL_shutdown(ssl_.get()) : result;
            });
    }

    /// Reads all that is there, as far as the buffer goes. The first error is kept, and told when no bytes are left.
    std::size_t read(asio::mutable_buffer buffer, asio::error_code& error)
    {
        std::size_t size = 0;
        error = read_error_;
        while (!error && size < buffer.size())
        {
            if (!has_input())
            {
                error = asio::error::would_block;
                break;
            }
            std::size_t step = 0;
            error = outcome(
                [&]
                {
                    return SSL_read_ex(ssl_.get(), static_cast<char*>(buffer.data()) + size, buffer.size() - size,
                                       &step);
                });
            size += step;
            budget_ = std::min(budget_ + static_cast<std::ptrdiff_t>(step), whole_turn);
            brings_data_ = step > 0;
        }
        if (error != asio::error::would_block)
            read_error_ = error;
        if (size > 0)
            error.clear();
        return size;
    }

    /// Encrypts at most tls_batch bytes and sends of their records what the descriptor takes. Nothing may be `unsent`.
    /// `error` is would_block as finish_message says.
    template <typename ConstBufferSequence>
    std::size_t write(const ConstBufferSequence& buffers, asio::error_code& error)
    try
    {
        record_buffer records(asio::buffer_size(buffers));
        records_ = &records;
        const std::size_t size = gather_into_records(
            buffers, [this](asio::const_buffer part, asio::error_code& e) { return encrypt(part, e); }, error);
        records_ = nullptr;
        std::string_view rest = records.filled();
        if (unsent_.empty())
            rest.remove_prefix(send_all_at_once(descriptor_, rest, error));
        if (!rest.empty())
            unsent_.begin(rest);
        return size;
    }
    catch (const std::bad_alloc&)
    {
        records_ = nullptr;
        error = asio::error::no_memory;
        return 0;
    }
    catch (...) // of the caller's buffer sequence
    {
        records_ = nullptr;
        throw;
    }

private:
    /// While bytes come faster than they are read, OpenSSL's buffer takes in so much at once.
    static constexpr std::size_t large_read = 64 * 1024;

    /// How many bytes of records without data, counted four times, one turn may receive; the last receive may exceed
    /// it.
    static constexpr std::ptrdiff_t whole_turn = large_read;

    /// Before the handshake is done nothing is received beyond what is fed, lest plain text behind it goes unnoticed.
    bool may_receive() const { return is_established_ && may_hold_ && descriptor_ != invalid_descriptor; }

    template <typename Function>
    asio::error_code outcome(Function function)
    {
        if (ERR_peek_error() != 0) // clearing a queue that is empty costs 600 instructions
            ERR_clear_error();
        const int result = function();
        if (result > 0)
            return {};
        const int kind = SSL_get_error(ssl_.get(), result);
        if (output_error_)
            return output_error_;
        const unsigned long told = kind == SSL_ERROR_SSL ? ERR_get_error() : 0; // none where the first time was before
        if (told != 0)
        {
            const asio::error_code error(static_cast<int>(told), asio::error::get_ssl_category());
            if (is_established_ && !ssl_error_ && ERR_GET_REASON(told) != SSL_R_PROTOCOL_IS_SHUTDOWN)
                ssl_error_ = error;
            return error;
        }
        if (kind == SSL_ERROR_ZERO_RETURN)
            return asio::error::eof;
        if (kind != SSL_ERROR_WANT_READ)
            return ssl_error_ ? ssl_error_ : asio::error_code(asio::ssl::error::unexpected_result);
        if (SSL_get_shutdown(ssl_.get()) & SSL_RECEIVED_SHUTDOWN) // amid a message, whose rest cannot come
            return asio::error::eof;
        return input_error_ == asio::error::eof ? asio::error_code(asio::ssl::error::stream_truncated)
               : input_error_                   ? input_error_
                                                : asio::error_code(asio::error::would_block);
    }

    std::size_t encrypt(asio::const_buffer bytes, asio::error_code& error)
    {
        std::size_t size = 0;
        if (bytes.size() > 0)
            error = outcome(
                [&] { return SSL_write_ex(ssl_.get(), bytes.data(), std::min(bytes.size(), tls_batch), &size); });
        return size;
    }

    int receive(char* data, std::size_t capacity)
    {
        if (!input_.empty())
        {
            const std::string_view next = input_.substr(0, capacity);
            const std::size_t size = next.copy(data, framing_.admit(next));
            input_.remove_prefix(size);
            if (input_.empty())
                std::string().swap(rest_);
            return static_cast<int>(size);
        }
        if (input_error_ || !may_receive() || is_spent())
            return 0;
        const std::size_t size = receive_at_once(descriptor_, data, capacity, input_error_);
        if (input_error_ == asio::error::would_block)
            input_error_.clear();
        budget_ -= static_cast<std::ptrdiff_t>(brings_data_ ? size : 4 * size); // KeyUpdates cost more than data do
        may_hold_ = size == capacity;
        if (may_hold_ && brings_data_)
            choose_buffer(large_read);
        else if (!brings_data_ || size < large_read / 8)
            choose_buffer(0);
        return static_cast<int>(keep_rest({data, size}));
    }

    /// Of the next receives. Since OpenSSL 3.2 it would be that of the next keys, before which what a larger buffer
    /// holds is not told of by SSL_has_pending.
    void choose_buffer(std::size_t size)
    {
        if (OpenSSL_version_num() < 0x30200000L)
            SSL_set_default_read_buffer_len(ssl_.get(), size);
    }

    /// Keeps what OpenSSL is not to be given at once.
    std::size_t keep_rest(std::string_view received)
    try
    {
        const std::size_t admitted = framing_.admit(received);
        rest_ = received.substr(admitted);
        input_ = rest_;
        return admitted;
    }
    catch (const std::bad_alloc&)
    {
        input_error_ = asio::error::no_memory;
        return 0;
    }

    void send(std::string_view bytes)
    {
        // OpenSSL answers KeyUpdates all the same, where the peer may await plain text.
        if (has_ended_ && (SSL_get_shutdown(ssl_.get()) & SSL_SENT_SHUTDOWN))
            return;
        if (!records_)
            replies_ += bytes.size();
        if (!records_ || !unsent_.empty() || !records_->append(bytes))
            unsent_.append(bytes);
    }

    static int verify(int is_verified, X509_STORE_CTX* certificates)
    try
    {
        void* const ssl = X509_STORE_CTX_get_ex_data(certificates, SSL_get_ex_data_X509_STORE_CTX_idx());
        asio::ssl::verify_context context(certificates);
        return of(SSL_get_rbio(static_cast<SSL*>(ssl))).verify_callback_(is_verified != 0, context);
    }
    catch (...) // OpenSSL cannot be thrown through
    {
        return 0;
    }

    static tls_engine& of(BIO* bio) { return *static_cast<tls_engine*>(BIO_get_data(bio)); }

    static int read_bio(BIO* bio, char* data, int capacity)
    {
        BIO_clear_retry_flags(bio);
        const int size = of(bio).receive(data, static_cast<std::size_t>(capacity));
        if (size > 0)
            return size;
        BIO_set_retry_read(bio);
        return -1;
    }

    static int write_bio(BIO* bio, const char* data, int size)
    try
    {
        BIO_clear_retry_flags(bio);
        of(bio).send({data, static_cast<std::size_t>(size)});
        return size;
    }
    catch (const std::bad_alloc&)
    {
        of(bio).output_error_ = asio::error::no_memory;
        return -1;
    }

    static long control_bio(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH; }

    /// Never freed: streams may outlive what the end of the program destroys.
    static const BIO_METHOD* method()
    {
        static const BIO_METHOD* const made = []
        {
            BIO_METHOD* const m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "upgradeable_streams");
            if (!m)
                throw std::bad_alloc();
            BIO_meth_set_read(m, read_bio);
            BIO_meth_set_write(m, write_bio);
            BIO_meth_set_ctrl(m, control_bio);
            return m;
        }();
        return made;
    }

    openssl_ptr<SSL> ssl_;
    socket_descriptor descriptor_ = invalid_descriptor;
    bool may_hold_ = true;
    bool brings_data_ = false; ///< The last read did, not only records that OpenSSL keeps to itself.
    std::ptrdiff_t budget_ = whole_turn; ///< Only data makes good an excess: a byte now and then buys no other turn.
    bool is_established_ = false;
    bool has_ended_ = false; ///< The close_notify was sent.
    std::string_view input_;
    std::string rest_; ///< What input_ views when the descriptor gave too much.
    record_framing framing_;
    asio::error_code input_error_;
    asio::error_code output_error_;
    asio::error_code read_error_;
    asio::error_code ssl_error_; ///< Which ends TLS; OpenSSL gives no reason after it.
    record_buffer* records_ = nullptr; ///< While a batch is encrypted.
    send_queue unsent_;
    std::size_t replies_ = 0;
    std::function<bool(bool, asio::ssl::verify_context&)> verify_callback_;
};

} // namespace upgradeable_streams::detail

#endif
