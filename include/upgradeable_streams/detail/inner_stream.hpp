/// @file
/// An encrypted connection as the transport of another.
#ifndef UPGRADEABLE_STREAMS_DETAIL_INNER_STREAM_HPP
#define UPGRADEABLE_STREAMS_DETAIL_INNER_STREAM_HPP

#include <upgradeable_streams/detail/checked_ptr.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/detail/stream_connection.hpp>
#include <upgradeable_streams/detail/stream_operations.hpp>
#include <upgradeable_streams/socket_address.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/co_spawn.hpp>
#include <asio/compose.hpp>
#include <asio/error.hpp>
#include <asio/socket_base.hpp>

#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

namespace upgradeable_streams::detail
{

/// What passes through a pair as an AsyncStream. A write completes when the socket has it all.
class inner_stream
{
public:
    using executor_type = asio::any_io_executor;
    using lowest_layer_type = inner_stream;

    inner_stream(std::shared_ptr<connection> outer, stream_pair handles)
        : outer_(std::move(outer)), reader_(std::move(handles.first)), writer_(std::move(handles.second))
    {
    }

    executor_type get_executor() const { return outer_->get_executor(); }
    lowest_layer_type& lowest_layer() { return *this; }
    const lowest_layer_type& lowest_layer() const { return *this; }

    template <typename MutableBufferSequence, typename Token>
    auto async_read_some(const MutableBufferSequence& buffers, Token&& token)
    {
        const auto read = [](stream_reader reader, asio::mutable_buffer memory) -> asio::awaitable<std::size_t>
        {
            const std::size_t size = co_await reader.readinto({static_cast<char*>(memory.data()), memory.size()});
            if (size == 0 && memory.size() > 0)
                throw std::system_error(asio::error::eof);
            co_return size;
        };
        return run([read, reader = reader_, memory = asio::mutable_buffer(*asio::buffer_sequence_begin(buffers))]
                   { return read(reader, memory); }, std::forward<Token>(token));
    }

    template <typename ConstBufferSequence, typename Token>
    auto async_write_some(const ConstBufferSequence& buffers, Token&& token)
    {
        const auto write = [](std::shared_ptr<connection> outer, stream_writer writer,
                              asio::const_buffer bytes) -> asio::awaitable<std::size_t>
        {
            writer.write({static_cast<const char*>(bytes.data()), bytes.size()});
            co_await outer->flush();
            co_return bytes.size();
        };
        return run(
            [write, outer = outer_, writer = writer_, bytes = asio::const_buffer(*asio::buffer_sequence_begin(buffers))]
            { return write(outer, writer, bytes); }, std::forward<Token>(token));
    }

    /// Closes what is outside, in order.
    asio::awaitable<void> close_outer() { return close(outer_); }

    socket_address local_endpoint(asio::error_code& error) const
    {
        if (!outer_->sockname())
            error = asio::error::not_connected;
        return outer_->sockname().value_or(socket_address());
    }

    bool is_open() const { return outer_->native_socket().has_value(); }
    socket_descriptor native_handle() const { return *outer_->native_socket(); }

    bool can_write_eof() const { return writer_.can_write_eof(); }

    template <typename Option>
    void set_option(const Option&, asio::error_code&)
    {
    }

    bool tells_at_once() const { return outer_->tells_at_once(); }

    std::size_t receive_at_once(const asio::mutable_buffer& memory, asio::error_code& error)
    try
    {
        if (tells_at_once())
            reader_.poll();
        const std::size_t size = asio::buffer_copy(memory, asio::buffer(outer_->received()));
        outer_->discard(size);
        if (size > 0)
            error.clear();
        else
            error = outer_->eof() ? asio::error_code(asio::error::eof) : asio::error::would_block;
        return size;
    }
    catch (...)
    {
        error = code_of(std::current_exception());
        return 0;
    }

    std::size_t available(asio::error_code&) const { return 0; }
    void cancel(asio::error_code&) { outer_->cancel_read(); }

    /// Otherwise than to be written to no more the outer session ends as a whole.
    void shutdown(asio::socket_base::shutdown_type what, asio::error_code& error)
    try
    {
        error = asio::error::operation_not_supported;
        if (what != asio::socket_base::shutdown_send || !writer_.can_write_eof())
            return;
        writer_.write_eof();
        error.clear();
    }
    catch (const std::system_error& failed)
    {
        error = failed.code();
    }

    void close(asio::error_code&) { outer_->abort(); }

private:
    template <typename Coroutine>
    struct operation
    {
        asio::any_io_executor executor;
        Coroutine coroutine;
        bool started = false;

        template <typename Self>
        void operator()(Self& self, std::exception_ptr error = {}, std::size_t size = 0)
        {
            if (std::exchange(started, true))
                return self.complete(error ? code_of(error) : asio::error_code(), size);
            self.reset_cancellation_state(as_terminal, as_terminal);
            const auto where = executor;
            auto begun = coroutine();
            asio::co_spawn(where, std::move(begun), std::move(self));
        }
    };

    template <typename Coroutine, typename Token>
    auto run(Coroutine coroutine, Token&& token)
    {
        const auto executor = get_executor();
        return asio::async_compose<Token, void(asio::error_code, std::size_t)>(
            operation<Coroutine>{executor, std::move(coroutine)}, token, executor);
    }

    static asio::awaitable<void> close(std::shared_ptr<connection> outer);

    std::shared_ptr<connection> outer_;
    stream_reader reader_;
    stream_writer writer_;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> inner_stream::close(std::shared_ptr<connection> outer)
{
    outer->end_inner();
    co_await outer->wait_closed();
}

#endif

/// Begins a TLS session inside another.
template <typename Stream>
asio::awaitable<stream_pair> start_inner_tls(checked_ptr<handle> outside, std::unique_ptr<upgrade_request> request)
{
    outside->check_epoch();
    const std::shared_ptr<connection> outer = outside->connection();
    outer->check_inner();
    Stream stream(outer, make_handles(outer, connection::inner_epoch));
    const auto inner =
        std::make_shared<stream_connection<Stream>>(std::move(stream), outer->settings_inside(), outer->peername());
    auto upgraded = make_handles(inner, inner->epoch() + 1);
    co_await outer->upgrade_inner(inner, std::move(request));
    co_return upgraded;
}

} // namespace upgradeable_streams::detail

#endif
