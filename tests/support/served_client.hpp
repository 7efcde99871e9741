#ifndef TEST_SUPPORT_SERVED_CLIENT_HPP
#define TEST_SUPPORT_SERVED_CLIENT_HPP

// Programs of others, as clients of the library's server.

#include "catch.hpp"
#include "certificates.hpp"
#include "contexts.hpp"
#include "echo_server.hpp"
#include "process.hpp"
#include "run.hpp"
#include "thread.hpp"

#include <upgradeable_streams/start_server.hpp>

#include <asio/awaitable.hpp>
#include <asio/ssl/context.hpp>

#include <string>
#include <utility>
#include <vector>

namespace test
{

/// Whether a test has to be skipped, because `probe` fails.
inline bool is_missing(const std::string& what, const std::vector<std::string>& probe)
{
    if (succeeds(probe))
        return false;
    WARN("skipped: there is no " << what);
    return true;
}

struct served
{
    process::outcome client;
    std::vector<error_log::entry> errors; ///< Of the server.
};

/// Serves with this handler while `run_client(port)` runs a program, on a thread of its own.
template <typename RunClient>
served serve(upgradeable_streams::connection_handler handler, RunClient run_client,
             const issued& identity = localhost_certificate())
{
    return run(
        [&]() -> asio::awaitable<served>
        {
            asio::ssl::context ssl = make_server_context(identity);
            const error_log errors;
            upgradeable_streams::server server = co_await upgradeable_streams::start_server(
                handler, "127.0.0.1", 0, {.ssl = &ssl, .upgradeable = true, .error_handler = errors});
            const std::string port = std::to_string(server.sockets().at(0).port);
            auto outcome = co_await joined(run_in_thread([&] { return run_client(port); }));
            server.close();
            co_await server.wait_closed();
            served result{std::move(outcome), errors.entries()};
            co_return result;
        });
}

} // namespace test

#endif
