/// @file
/// What `upgradeable_streams/separate_compilation.hpp` leaves to one file of the program.
#ifndef UPGRADEABLE_STREAMS_SRC_HPP
#define UPGRADEABLE_STREAMS_SRC_HPP

#include <upgradeable_streams/separate_compilation.hpp>

template class upgradeable_streams::detail::stream_connection<asio::generic::stream_protocol::socket>;

#endif
