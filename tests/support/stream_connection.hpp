#ifndef TEST_SUPPORT_STREAM_CONNECTION_HPP
#define TEST_SUPPORT_STREAM_CONNECTION_HPP

#include <upgradeable_streams/detail/stream_connection.hpp>

#include <asio/generic/stream_protocol.hpp>

// Compiled once for all tests: connections over sockets are most of what a test of readers and writers compiles.
extern template class upgradeable_streams::detail::stream_connection<asio::generic::stream_protocol::socket>;

#endif
