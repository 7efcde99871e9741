#ifndef TEST_SUPPORT_PROCESS_HPP
#define TEST_SUPPORT_PROCESS_HPP

#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

namespace test
{

/// Another program, found as a shell finds it, with pipes to its standard input, output and error.
///
/// Every wait is bounded by `run_deadline`. Errors: `failure`, `std::system_error`. Lifetime: killed when destroyed.
class process
{
public:
    struct outcome
    {
        int status; ///< Of exit, or 128 and the number of the signal that ended it.
        std::string output;
        std::string errors;
    };

    explicit process(const std::vector<std::string>& command);
    ~process();
    process(const process&) = delete;
    process& operator=(const process&) = delete;

    void write(std::string_view bytes);
    void close_input();

    /// Waits for the next line of standard output, which `wait` leaves out. Returns: less than a line at the end.
    std::string read_line();

    void send_signal(int number);

    /// Closes standard input and waits for the end.
    outcome wait();

private:
    bool read_more();

    struct source
    {
        int descriptor = -1;
        std::string bytes;
    };

    pid_t pid_ = -1;
    int input_ = -1;
    std::array<source, 2> sources_; // output, errors
};

/// Runs a function in a process that is forked off this one, which has no other thread then. Returns: the lowest byte
/// of what the function returns, 255 where it throws, or 128 and the number of the signal that ended it.
int run_forked(const std::function<int()>& function);

/// Lets the process start no other thread or process from here on. Root becomes nobody, since it has no such limit.
void forbid_threads();

/// A command of what spaces separate in `line`.
std::vector<std::string> words(const std::string& line);

/// `process(command).wait()`.
process::outcome run_process(const std::vector<std::string>& command);

/// Whether a command's exit status is 0.
bool succeeds(const std::vector<std::string>& command);

} // namespace test

#endif
