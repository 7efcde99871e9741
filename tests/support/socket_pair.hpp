#ifndef TEST_SUPPORT_SOCKET_PAIR_HPP
#define TEST_SUPPORT_SOCKET_PAIR_HPP

#include <asio/any_io_executor.hpp>
#include <asio/basic_socket_acceptor.hpp>
#include <asio/basic_stream_socket.hpp>
#include <asio/ip/address_v4.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/local/connect_pair.hpp>
#include <asio/local/stream_protocol.hpp>

#include <cstdint>
#include <type_traits>
#include <utility>

namespace test
{

/// 127.0.0.1; port 0 lets the system choose.
inline asio::ip::tcp::endpoint loopback(std::uint16_t port = 0)
{
    return {asio::ip::address_v4::loopback(), port};
}

template <typename Protocol, typename Executor>
using socket_pair =
    std::pair<asio::basic_stream_socket<Protocol, Executor>, asio::basic_stream_socket<Protocol, Executor>>;

/// Two TCP sockets, connected with each other, with Nagle's algorithm off; by default of type `tcp::socket`.
template <typename Executor = asio::any_io_executor>
socket_pair<asio::ip::tcp, Executor> tcp_pair(const std::type_identity_t<Executor>& executor)
{
    asio::basic_socket_acceptor<asio::ip::tcp, Executor> acceptor(executor, loopback());
    socket_pair<asio::ip::tcp, Executor> sockets(executor, executor);
    sockets.first.connect(acceptor.local_endpoint());
    acceptor.accept(sockets.second);
    sockets.first.set_option(asio::ip::tcp::no_delay(true));
    sockets.second.set_option(asio::ip::tcp::no_delay(true));
    return sockets;
}

/// Two Unix domain sockets, connected with each other.
template <typename Executor = asio::any_io_executor>
socket_pair<asio::local::stream_protocol, Executor> local_pair(const std::type_identity_t<Executor>& executor)
{
    socket_pair<asio::local::stream_protocol, Executor> sockets(executor, executor);
    asio::local::connect_pair(sockets.first, sockets.second);
    return sockets;
}

} // namespace test

#endif
