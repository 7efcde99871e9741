#ifndef TEST_INTEROP_PROTOCOL_SERVERS_HPP
#define TEST_INTEROP_PROTOCOL_SERVERS_HPP

#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>

#include <asio/awaitable.hpp>

#include <string_view>

namespace test
{

/// As much of a protocol, by the name that openssl s_client has for it, as a client needs to go over to TLS, log in and
/// say goodbye; what is more than asking for TLS is refused in plain text.
asio::awaitable<void> serve_protocol(std::string_view name, upgradeable_streams::stream_reader reader,
                                     upgradeable_streams::stream_writer writer);

} // namespace test

#endif
