#include "process.hpp"

#include "deadline.hpp"
#include "failure.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <iterator>
#include <sstream>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace test
{
namespace
{

/// Both ends are closed by exec.
std::pair<int, int> make_pipe()
{
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0)
        throw std::system_error(errno, std::system_category(), "pipe2");
    return {ends[0], ends[1]};
}

/// Waits for the end.
int status_of(pid_t child)
{
    int status = 0;
    if (::waitpid(child, &status, 0) == -1)
        throw std::system_error(errno, std::system_category(), "waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void close_descriptor(int& descriptor)
{
    if (descriptor != -1)
        ::close(std::exchange(descriptor, -1));
}

} // namespace

process::process(const std::vector<std::string>& command)
{
    auto [input_end, input] = make_pipe();
    auto [output, output_end] = make_pipe();
    auto [errors, errors_end] = make_pipe();
    input_ = input;
    sources_[0].descriptor = output;
    sources_[1].descriptor = errors;

    std::vector<char*> arguments;
    for (const std::string& argument : command)
        arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);

    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, input_end, STDIN_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, output_end, STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, errors_end, STDERR_FILENO);
    const int error = ::posix_spawnp(&pid_, arguments.front(), &actions, nullptr, arguments.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    for (int* end : {&input_end, &output_end, &errors_end})
        close_descriptor(*end);
    if (error != 0)
    {
        close_input();
        for (source& from : sources_)
            close_descriptor(from.descriptor);
        throw std::system_error(error, std::system_category(), command.front());
    }
}

process::~process()
{
    close_input();
    for (source& from : sources_)
        close_descriptor(from.descriptor);
    if (pid_ == -1)
        return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
}

void process::write(std::string_view bytes)
{
    while (!bytes.empty())
    {
        const ssize_t size = ::write(input_, bytes.data(), bytes.size());
        if (size < 0)
            throw std::system_error(errno, std::system_category(), "write");
        bytes.remove_prefix(static_cast<std::size_t>(size));
    }
}

void process::close_input()
{
    close_descriptor(input_);
}

/// Returns: false at the end of both streams.
bool process::read_more()
{
    std::array<pollfd, 2> waiting{};
    for (std::size_t i = 0; i < waiting.size(); ++i)
        waiting[i] = {sources_[i].descriptor, POLLIN, 0};
    if (std::ranges::all_of(sources_, [](const source& from) { return from.descriptor == -1; }))
        return false;
    const int ready = ::poll(waiting.data(), waiting.size(), static_cast<int>(run_deadline.count()));
    if (ready == 0)
        throw failure("a process neither wrote anything nor ended in time; it wrote \"" + sources_[0].bytes +
                      "\" and \"" + sources_[1].bytes + '"');
    if (ready < 0)
        throw std::system_error(errno, std::system_category(), "poll");
    for (std::size_t i = 0; i < waiting.size(); ++i)
    {
        if (waiting[i].revents == 0)
            continue;
        std::array<char, 4096> buffer;
        const ssize_t size = ::read(sources_[i].descriptor, buffer.data(), buffer.size());
        if (size > 0)
            sources_[i].bytes.append(buffer.data(), static_cast<std::size_t>(size));
        else
            close_descriptor(sources_[i].descriptor);
    }
    return true;
}

std::string process::read_line()
{
    source& output = sources_[0];
    while (output.bytes.find('\n') == std::string::npos && output.descriptor != -1)
        read_more();
    const std::size_t end = std::min(output.bytes.find('\n'), output.bytes.size() - 1) + 1;
    std::string line = output.bytes.substr(0, end);
    output.bytes.erase(0, end);
    return line;
}

void process::send_signal(int number)
{
    if (::kill(pid_, number) != 0)
        throw std::system_error(errno, std::system_category(), "kill");
}

process::outcome process::wait()
{
    close_input();
    while (read_more())
    {
    }
    const int status = status_of(std::exchange(pid_, -1));
    return {status, std::move(sources_[0].bytes), std::move(sources_[1].bytes)};
}

int run_forked(const std::function<int()>& function)
{
    const pid_t child = ::fork();
    if (child == -1)
        throw std::system_error(errno, std::system_category(), "fork");
    if (child != 0)
        return status_of(child);
    int status = 255;
    try
    {
        status = function();
    }
    catch (...)
    {
    }
    ::_exit(status);
}

void forbid_threads()
{
    constexpr uid_t nobody = 65534;
    constexpr rlimit one{1, 1};
    const bool is_nobody = ::getuid() != 0 || ::setuid(nobody) == 0;
    const bool is_limited_root = !is_nobody && errno == EINVAL; // of a namespace in which there is no other user
    if (!(is_nobody || is_limited_root) || ::setrlimit(RLIMIT_NPROC, &one) != 0)
        throw std::system_error(errno, std::system_category(), "a limit of processes");
}

std::vector<std::string> words(const std::string& line)
{
    std::istringstream in(line);
    return {std::istream_iterator<std::string>(in), {}};
}

process::outcome run_process(const std::vector<std::string>& command)
{
    return process(command).wait();
}

bool succeeds(const std::vector<std::string>& command)
{
    try
    {
        return run_process(command).status == 0;
    }
    catch (const std::system_error&)
    {
        return false;
    }
}

} // namespace test
