#ifndef TEST_INTEROP_SERVER_PROGRAM_HPP
#define TEST_INTEROP_SERVER_PROGRAM_HPP

#include "support/process.hpp"
#include "support/temporary_directory.hpp"

#include <cstdint>
#include <map>
#include <string>

namespace test
{

/// A server that others wrote, with `localhost_certificate()`, as a script of servers/ sets it up and ends it.
///
/// Errors: `failure` where it does not start. Lifetime: ended when destroyed, and when this program is killed.
class server_program
{
public:
    explicit server_program(const std::string& script);
    ~server_program();
    server_program(const server_program&) = delete;
    server_program& operator=(const server_program&) = delete;

    /// What this machine lacks, as in "there is no postfix"; empty when the server runs.
    const std::string& absence() const noexcept { return absence_; }

    std::uint16_t port(const std::string& protocol) const { return ports_.at(protocol); }

    /// Ends the server. Errors: `failure` where it had ended by itself, with its log.
    void end();

private:
    temporary_directory directory_;
    process process_;
    std::string absence_;
    std::map<std::string, std::uint16_t> ports_;
};

} // namespace test

#endif
