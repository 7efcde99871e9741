// How much longer a round trip over TLS takes while other encrypted connections are idle, on a server of the line
// protocol (line_server.cpp).
//
//   idle_connections PORT [COUNT]

#include <asio.hpp>
#include <upgradeable_streams.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <sys/resource.h>

namespace us = upgradeable_streams;
using pair = std::pair<us::stream_reader, us::stream_writer>;
using microseconds = std::chrono::duration<double, std::micro>;

namespace
{

asio::awaitable<pair> connect(std::string port, asio::ssl::context& ssl)
{
    auto [reader, writer] = co_await us::open_connection("127.0.0.1", port, {.ssl = &ssl, .upgradeable = true});
    writer.write("STARTTLS\n");
    auto upgraded = co_await writer.start_tls();
    co_return upgraded;
}

/// The median of many round trips.
asio::awaitable<microseconds> round_trip(pair& active)
{
    std::vector<microseconds> times(20'000);
    for (microseconds& time : times)
    {
        const auto start = std::chrono::steady_clock::now();
        active.second.write("PING\n");
        const std::string answer = co_await active.first.readline();
        if (answer != "PONG\n")
            throw std::runtime_error("the server does not answer PING");
        time = std::chrono::steady_clock::now() - start;
    }
    std::ranges::nth_element(times, times.begin() + 10'000);
    co_return times[10'000];
}

asio::awaitable<void> measure(std::string port, std::size_t count)
{
    asio::ssl::context ssl = us::create_client_context({.verify_peer = false});
    pair active = co_await connect(port, ssl);
    co_await round_trip(active); // warms up
    const microseconds alone = co_await round_trip(active);
    std::vector<pair> idle;
    while (idle.size() < count)
        idle.push_back(co_await connect(port, ssl));
    const microseconds among = co_await round_trip(active);
    std::cout << "alone " << alone.count() << " us, among " << count << " idle connections " << among.count()
              << " us: " << among / alone << " x\n";
}

} // namespace

int main(int argc, char** argv)
try
{
    if (argc < 2)
        throw std::invalid_argument("usage: idle_connections PORT [COUNT]");
    rlimit descriptors{};
    ::getrlimit(RLIMIT_NOFILE, &descriptors);
    descriptors.rlim_cur = descriptors.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &descriptors);
    asio::io_context io(1);
    asio::co_spawn(io, measure(argv[1], argc > 2 ? std::stoul(argv[2]) : 2'000),
                   [](std::exception_ptr e)
                   {
                       if (e)
                           std::rethrow_exception(e);
                   });
    io.run();
    return EXIT_SUCCESS;
}
catch (const std::exception& e)
{
    std::cerr << "idle_connections: " << e.what() << "\n";
    return EXIT_FAILURE;
}
