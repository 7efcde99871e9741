#include "stream_connection.hpp"

template class upgradeable_streams::detail::stream_connection<asio::generic::stream_protocol::socket>;
