#ifndef TEST_SUPPORT_ECHO_SERVER_HPP
#define TEST_SUPPORT_ECHO_SERVER_HPP

#include "contexts.hpp"
#include "socket_pair.hpp"

#include <upgradeable_streams.hpp>

#include <asio/awaitable.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/ssl/context.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace test
{

/// A handler that sends each line back, upgrades the connection at STARTTLS, and returns at the end.
asio::awaitable<void> echo(upgradeable_streams::stream_reader reader, upgradeable_streams::stream_writer writer);

/// What a server reported to its error handler, which is a copy of this. Safe to use from several threads.
class error_log
{
public:
    struct entry
    {
        std::error_code code; ///< Of a std::system_error.
        std::string what;     ///< Empty for what is no std::exception.
        upgradeable_streams::socket_address peer;
    };

    void operator()(std::exception_ptr error, const upgradeable_streams::socket_address& peer) const
    {
        const std::lock_guard lock(shared_->mutex);
        shared_->reports.emplace_back(std::move(error), peer);
    }

    std::size_t size() const
    {
        const std::lock_guard lock(shared_->mutex);
        return shared_->reports.size();
    }

    std::vector<entry> entries() const
    {
        const std::lock_guard lock(shared_->mutex);
        std::vector<entry> made;
        for (const auto& [error, peer] : shared_->reports)
            made.push_back(describe(error, peer));
        return made;
    }

private:
    struct shared
    {
        std::mutex mutex;
        std::vector<std::pair<std::exception_ptr, upgradeable_streams::socket_address>> reports;
    };

    static entry describe(const std::exception_ptr& error, const upgradeable_streams::socket_address& peer)
    try
    {
        std::rethrow_exception(error);
    }
    catch (const std::system_error& e)
    {
        return {e.code(), e.what(), peer};
    }
    catch (const std::exception& e)
    {
        return {{}, e.what(), peer};
    }
    catch (...)
    {
        return {{}, {}, peer};
    }

    std::shared_ptr<shared> shared_ = std::make_shared<shared>();
};

/// The first endpoint that a server on 127.0.0.1 or on all interfaces is bound to.
inline asio::ip::tcp::endpoint endpoint_of(const upgradeable_streams::server& server)
{
    return loopback(server.sockets().front().port);
}

/// What a server answers to one line in plain text.
asio::awaitable<std::string> ask(std::string host, std::uint16_t port, std::string line);

asio::awaitable<std::string> ask(const upgradeable_streams::server& server, std::string line);

/// A client that upgrades and asks; the result is the server's certificate and the answer.
asio::awaitable<std::pair<std::string, std::string>> ask_tls(std::uint16_t port, asio::ssl::context& ssl,
                                                             std::string line);

/// Waits until connections to a port of 127.0.0.1 are refused.
asio::awaitable<void> until_refused(std::uint16_t port);

} // namespace test

#endif
