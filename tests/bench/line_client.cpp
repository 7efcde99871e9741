// A client that puts load on a server of the line protocol, and prints as a line of JSON what that costs the server.
//
//   line_client WORK PORT PID [--tls 1] [--seconds S] [--connections N] [--idle N]
//               [--pipelined N] [--size BYTES] [--piece BYTES] [--outstanding N]
//
// ping     PING, answered with PONG; `pipelined` of them are sent as one
// source   the server sends `size` bytes, written `piece` at a time
// sink     the server receives `size` bytes
// upgrade  a connection, PING, STARTTLS, handshake, PING; `connections` of them at once
// memory   the server's resident memory for each of `connections` that are idle
//
// Each of `connections` has `outstanding` requests under way. `idle` more, all encrypted, are open and say nothing. The
// cost is the CPU time of the process PID: microseconds for an operation, seconds for a GiB. That of memory is in KiB.

#include "client_connection.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>

using namespace bench;
using std::chrono::steady_clock;
using seconds = std::chrono::duration<double>;

namespace
{

void print(const options& given, double cost, const char* unit, double rate, const char* rate_unit)
{
    std::cout << "{\"work\": \"" << given.work << "\", \"cost\": " << cost << ", \"unit\": \"" << unit
              << "\", \"rate\": " << rate << ", \"rate_unit\": \"" << rate_unit << "\"}\n";
}

/// Counts what is done after a warm-up of a quarter of the time, and the server's CPU time until the time is over.
class measurement
{
public:
    explicit measurement(const options& given) : given_(given), duration_(given.values.at("--seconds"))
    {
        if (::clock_getcpuclockid(given.server, &cpu_clock_) != 0)
            throw std::runtime_error("no process has the PID that was given for the server");
    }

    bool over() const { return over_; }

    void count(std::size_t operations)
    {
        const auto now = steady_clock::now();
        if (over_)
            return;
        if (now - begin_ < (warm_ ? duration_ : duration_ / 4))
            done_ += operations;
        else if (!warm_)
        {
            warm_ = true;
            done_ = 0;
            begin_ = now;
            cpu_ = server_cpu();
        }
        else
        {
            over_ = true;
            done_ += operations;
            duration_ = now - begin_;
            cpu_ = server_cpu() - cpu_;
        }
    }

    void print() const
    {
        const double done = static_cast<double>(done_);
        if (given_.bulk())
            ::print(given_, cpu_.count() / done * (1 << 30), "s/GiB", done / duration_.count() / 1e6, "MB/s");
        else
            ::print(given_, cpu_.count() / done * 1e6, "us", done / duration_.count(), "1/s");
    }

private:
    seconds server_cpu() const
    {
        timespec used{};
        check(::clock_gettime(cpu_clock_, &used), "the server's CPU time");
        return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
    }

    const options& given_;
    seconds duration_;
    clockid_t cpu_clock_{};
    steady_clock::time_point begin_ = steady_clock::now();
    seconds cpu_{};
    std::size_t done_ = 0;
    bool warm_ = false;
    bool over_ = false;
};

/// Calls `ready` with what was added for each connection that can be read, until the measurement is over.
template <typename Owner, typename Ready>
void run(int epoll, const measurement& measured, Ready ready)
{
    while (!measured.over())
    {
        std::array<epoll_event, 64> events;
        const int count = check(::epoll_wait(epoll, events.data(), int(events.size()), patience), "epoll_wait");
        if (count == 0)
            throw std::runtime_error("the server is silent");
        for (int i = 0; i < count && !measured.over(); ++i)
            ready(*static_cast<Owner*>(events[static_cast<std::size_t>(i)].data.ptr));
    }
}

std::string repeated(std::string_view text, std::size_t count)
{
    std::string made;
    while (count-- > 0)
        made += text;
    return made;
}

void exchange(const options& given)
{
    const std::size_t size = given["--size"];
    std::string request = repeated("PING\n", given["--pipelined"]);
    answers expected(repeated("PONG\n", given["--pipelined"]));
    if (given.work == "source")
    {
        request = "SOURCE " + std::to_string(size) + " " + std::to_string(given["--piece"]) + "\n";
        expected = answers("", size);
    }
    else if (given.work == "sink")
    {
        request = "SINK " + std::to_string(size) + "\n" + std::string(size, 'z');
        expected = answers("OK\n");
    }

    struct conversation
    {
        std::unique_ptr<connection> with;
        answers awaited;
    };
    const auto idle = open(given, given["--idle"], true);
    const int epoll = check(::epoll_create1(0), "epoll_create1");
    std::vector<conversation> conversations;
    for (auto& opened : open(given, given["--connections"], given["--tls"] != 0))
        conversations.push_back({std::move(opened), expected});
    measurement measured(given);
    for (conversation& c : conversations)
    {
        c.with->add_to(epoll, &c);
        c.with->write(repeated(request, given["--outstanding"]));
    }
    const auto answered = [&](conversation& c)
    {
        do
            for (std::size_t i = c.awaited.read(*c.with); i > 0; --i)
            {
                measured.count(given.bulk() ? size : given["--pipelined"]);
                c.with->write(request);
            }
        while (c.with->may_read_without_waiting());
    };
    run<conversation>(epoll, measured, answered);
    measured.print();
}

void upgrade(const options& given)
{
    struct conversation
    {
        std::unique_ptr<connection> with;
        answers awaited{"PONG\n"};
        bool in_handshake = false;
        bool encrypted = false;
    };
    const int epoll = check(::epoll_create1(0), "epoll_create1");
    const auto begin = [&](conversation& c)
    {
        c = {.with = std::make_unique<connection>(given)};
        c.with->add_to(epoll, &c);
        c.with->write("PING\nSTARTTLS\n");
    };
    std::vector<conversation> conversations(given["--connections"]);
    measurement measured(given);
    std::ranges::for_each(conversations, begin);
    const auto go_on = [&](conversation& c)
    {
        if (!c.in_handshake && c.awaited.read(*c.with, true) == 1)
        {
            if (c.encrypted)
            {
                measured.count(1);
                return begin(c);
            }
            c.in_handshake = true;
        }
        if (c.in_handshake && c.with->handshake())
        {
            c.in_handshake = false;
            c.encrypted = true;
            c.with->write("PING\n");
        }
    };
    run<conversation>(epoll, measured, go_on);
    measured.print();
}

/// What the server has in KiB, once that does not change any more.
double resident(const options& given)
{
    const std::string file = "/proc/" + std::to_string(given.server) + "/smaps_rollup";
    double last = -1;
    for (int i = 0; i < 100; ++i)
    {
        std::ifstream in(file);
        std::string word;
        double now = 0;
        while (in >> word && word != "Rss:")
            ;
        if (!(in >> now))
            throw std::runtime_error("cannot read " + file);
        if (std::exchange(last, now) == now)
            break;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return last;
}

void memory(const options& given)
{
    open(given, 2, true); // what the first connections need is not counted
    const double before = resident(given);
    const auto opened = open(given, given["--connections"], given["--tls"] != 0);
    print(given, (resident(given) - before) / static_cast<double>(opened.size()), "KiB", 0, "");
}

} // namespace

int main(int argc, char** argv)
try
{
    ::signal(SIGPIPE, SIG_IGN);
    const options given(argc, argv);
    rlimit descriptors{};
    ::getrlimit(RLIMIT_NOFILE, &descriptors);
    descriptors.rlim_cur = descriptors.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &descriptors);
    if (given.work == "ping" || given.bulk())
        exchange(given);
    else if (given.work == "upgrade")
        upgrade(given);
    else if (given.work == "memory")
        memory(given);
    else
        throw std::invalid_argument("WORK is ping, source, sink, upgrade or memory");
    return EXIT_SUCCESS;
}
catch (const std::exception& e)
{
    std::cerr << "line_client: " << e.what() << "\n";
    return EXIT_FAILURE;
}
