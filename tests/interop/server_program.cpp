#include "server_program.hpp"

#include "support/certificates.hpp"
#include "support/failure.hpp"

#include <cstddef>
#include <exception>
#include <utility>

namespace test
{
namespace
{

constexpr int not_installed = 77;

} // namespace

server_program::server_program(const std::string& script)
    : process_({SERVER_SCRIPTS "/" + script + ".sh", directory_.path(), localhost_certificate().certificate_file,
                localhost_certificate().key_file, authority().ca_file()})
{
    for (const std::string& listening : words(process_.read_line()))
    {
        const std::size_t equals = listening.find('=');
        ports_[listening.substr(0, equals)] = static_cast<std::uint16_t>(std::stoi(listening.substr(equals + 1)));
    }
    if (!ports_.empty())
        return;
    const process::outcome outcome = process_.wait();
    if (outcome.status != not_installed)
        throw failure("the server of " + script + " did not start: " + outcome.errors);
    absence_ = outcome.errors.substr(0, outcome.errors.find('\n'));
}

server_program::~server_program()
{
    try
    {
        end();
    }
    catch (const std::exception&) // process kills the script, and its standard input's end the server
    {
    }
}

void server_program::end()
{
    if (std::exchange(ports_, {}).empty())
        return;
    const process::outcome outcome = process_.wait();
    if (outcome.status != 0)
        throw failure("a server ended by itself: " + outcome.errors);
}

} // namespace test
