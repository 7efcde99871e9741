#include <upgradeable_streams/socket_address.hpp>

#include "support/catch.hpp"
#include "support/socket_pair.hpp"
#include "support/temporary_directory.hpp"

#include <asio/generic/stream_protocol.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/local/stream_protocol.hpp>

#include <string>

namespace us = upgradeable_streams;
using asio::ip::tcp;

namespace
{

tcp::endpoint endpoint(const char* address, std::uint16_t port)
{
    return {asio::ip::make_address(address), port};
}

} // namespace

TEST_CASE("socket_address: an IPv4 endpoint is host:port")
{
    const us::socket_address address(endpoint("127.0.0.1", 25));
    CHECK(address.host == "127.0.0.1");
    CHECK(address.port == 25);
    CHECK(!address.is_unix);
    CHECK(address.to_string() == "127.0.0.1:25");
}

TEST_CASE("socket_address: an IPv6 endpoint has its host in brackets")
{
    const us::socket_address address(endpoint("::1", 65535));
    CHECK(address.host == "::1");
    CHECK(address.port == 65535);
    CHECK(!address.is_unix);
    CHECK(address.to_string() == "[::1]:65535");
}

TEST_CASE("socket_address: an IP endpoint may be larger than its address, as Asio gives them on Windows")
{
    asio::generic::stream_protocol::endpoint larger(endpoint("127.0.0.1", 25));
    larger.resize(larger.capacity());
    CHECK(us::socket_address(larger).to_string() == "127.0.0.1:25");
}

TEST_CASE("socket_address: the scope of a link-local IPv6 address is kept")
{
    const asio::ip::address_v6 scoped(asio::ip::make_address_v6("fe80::1").to_bytes(), 1);
    const us::socket_address address(tcp::endpoint(scoped, 80));
    CHECK_THAT(address.host, test::starts_with("fe80::1%"));
    CHECK_THAT(address.to_string(), test::starts_with("[fe80::1%"));
}

TEST_CASE("socket_address: a Unix domain endpoint is its path, without a port")
{
    const us::socket_address address(asio::local::stream_protocol::endpoint("/run/a.sock"));
    CHECK(address.host == "/run/a.sock");
    CHECK(address.port == 0);
    CHECK(address.is_unix);
    CHECK(address.to_string() == "/run/a.sock");
}

TEST_CASE("socket_address: a Unix domain path of the greatest length is whole")
{
    const std::string path(107, 'p');
    CHECK(us::socket_address(asio::local::stream_protocol::endpoint(path)).host == path);
}

TEST_CASE("socket_address: a Unix domain socket that is not bound has an empty path")
{
    asio::io_context io;
    const auto [left, right] = test::local_pair(io.get_executor());
    const us::socket_address address(right.remote_endpoint());
    CHECK(address.host.empty());
    CHECK(address.is_unix);
    CHECK(address.to_string() == "a Unix domain socket");
}

TEST_CASE("socket_address: what connected sockets report fits")
{
    asio::io_context io;
    const auto [client, server] = test::tcp_pair(io.get_executor());
    const us::socket_address seen_by_server(server.remote_endpoint());
    const us::socket_address seen_by_client(client.local_endpoint());
    CHECK(seen_by_server == seen_by_client);
    CHECK(seen_by_server.host == "127.0.0.1");
    CHECK(seen_by_server.port == client.local_endpoint().port());

    const test::temporary_directory directory;
    const std::string path = directory.file("s");
    asio::local::stream_protocol::acceptor acceptor(io, path);
    asio::local::stream_protocol::socket socket(io);
    socket.connect(path);
    CHECK(us::socket_address(socket.remote_endpoint()).host == path);
}

TEST_CASE("socket_address: addresses are equal when host, port and kind are")
{
    const us::socket_address address(endpoint("127.0.0.1", 25));
    CHECK(address == us::socket_address(endpoint("127.0.0.1", 25)));
    CHECK(address != us::socket_address(endpoint("127.0.0.1", 26)));
    CHECK(address != us::socket_address(endpoint("127.0.0.2", 25)));
    CHECK(us::socket_address() == us::socket_address());
    CHECK(us::socket_address() != us::socket_address(asio::local::stream_protocol::endpoint("")));
}
