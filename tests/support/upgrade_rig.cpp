#include "upgrade_rig.hpp"

namespace test::rig
{

template <typename Layer, typename Socket>
void compiled_stream<Layer, Socket>::read(asio::mutable_buffer buffer, test::any_handler handler)
{
    stream::async_read_some(buffer, std::move(handler));
}

template <typename Layer, typename Socket>
void compiled_stream<Layer, Socket>::write(asio::const_buffer buffer, test::any_handler handler)
{
    stream::async_write_some(buffer, std::move(handler));
}

template <typename Layer, typename Socket>
void compiled_stream<Layer, Socket>::upgrade(const us::tls_options& options, test::any_handler handler)
{
    stream::async_start_tls(options, std::move(handler));
}

template <typename Layer, typename Socket>
void compiled_stream<Layer, Socket>::stop(const us::stop_tls_options& options, test::any_handler handler)
{
    stream::async_stop_tls(options, std::move(handler));
}

template <typename Layer, typename Socket>
void compiled_stream<Layer, Socket>::shut_down(const us::shutdown_options& options, test::any_handler handler)
{
    stream::async_shutdown(options, std::move(handler));
}

template <typename Layer, typename Socket>
asio::awaitable<void> compiled_stream<Layer, Socket>::start_tls(const us::tls_options& options)
{
    return stream::start_tls(options);
}

template <typename Layer, typename Socket>
asio::awaitable<void> compiled_stream<Layer, Socket>::stop_tls(const us::stop_tls_options& options)
{
    return stream::stop_tls(options);
}

template class compiled_stream<with_ssl_stream, tcp::socket>;
template class compiled_stream<with_tls_stream, tcp::socket>;
template class compiled_stream<with_ssl_stream, test::chunked_stream<tcp::socket>>;
template class compiled_stream<with_tls_stream, test::chunked_stream<tcp::socket>>;
template class compiled_stream<with_ssl_stream, stream_over<with_ssl_stream, tcp::socket>>;
template class compiled_stream<with_tls_stream, stream_over<with_tls_stream, tcp::socket>>;

} // namespace test::rig
