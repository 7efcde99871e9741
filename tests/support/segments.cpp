#include "segments.hpp"

#include <cerrno>
#include <system_error>

#include <linux/tcp.h> // not beside netinet/tcp.h, whose tcp_info is shorter
#include <netinet/in.h>
#include <sys/socket.h>

namespace test
{

std::uint32_t data_segments_sent(int descriptor)
{
    tcp_info info{};
    socklen_t size = sizeof info;
    if (::getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
        throw std::system_error(errno, std::system_category(), "TCP_INFO");
    return info.tcpi_data_segs_out - info.tcpi_total_retrans;
}

} // namespace test
