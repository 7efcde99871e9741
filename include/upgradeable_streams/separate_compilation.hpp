/// @file
/// In place of `upgradeable_streams.hpp` in programs of several files: connections over sockets, most of what a file
/// with readers and writers compiles, are compiled once, in the one file that includes `upgradeable_streams/src.hpp`.
#ifndef UPGRADEABLE_STREAMS_SEPARATE_COMPILATION_HPP
#define UPGRADEABLE_STREAMS_SEPARATE_COMPILATION_HPP

#include <upgradeable_streams.hpp>

#include <asio/generic/stream_protocol.hpp>

extern template class upgradeable_streams::detail::stream_connection<asio::generic::stream_protocol::socket>;

#endif
