#include "flood.hpp"

#include "run.hpp"

#include <sys/socket.h>

namespace test
{

void shrink_buffers(int descriptor)
{
    const int size = 32 * 1024;
    ::setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    ::setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
}

asio::awaitable<std::size_t> flood(raw_peer& peer, std::string_view bytes, int turns_between)
{
    constexpr std::size_t piece = 16 * 1024;
    std::size_t sent = 0;
    for (int idle = 0; idle < 200 && sent < bytes.size();)
    {
        const std::string_view next = bytes.substr(sent, piece);
        const ssize_t count = ::send(peer.descriptor(), next.data(), next.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        sent += count > 0 ? std::size_t(count) : 0;
        idle = count > 0 ? 0 : idle + 1;
        co_await turns(turns_between);
    }
    co_return sent;
}

} // namespace test
