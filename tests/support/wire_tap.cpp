#include "wire_tap.hpp"

#include "socket_pair.hpp"

#include <asio/awaitable.hpp>
#include <asio/buffer.hpp>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <asio/error.hpp>
#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/write.hpp>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

namespace test
{

using asio::ip::tcp;

namespace
{

struct connection
{
    explicit connection(tcp::socket accepted) : client(std::move(accepted)), server(client.get_executor()) {}

    void close()
    {
        std::error_code ignored;
        client.close(ignored);
        server.close(ignored);
    }

    void reset()
    {
        std::error_code ignored;
        client.set_option(tcp::socket::linger(true, 0), ignored);
        server.set_option(tcp::socket::linger(true, 0), ignored);
        close();
    }

    tcp::socket client;
    tcp::socket server;
    int open_directions = 2;
};

} // namespace

struct wire_tap::relay
{
    relay(const asio::any_io_executor& executor, const tcp::endpoint& to, std::size_t at_once)
        : acceptor(executor, loopback()), target(to), split(at_once)
    {
    }

    static asio::awaitable<void> accept(std::shared_ptr<relay> self)
    {
        for (;;)
        {
            std::error_code error;
            tcp::socket client = co_await self->acceptor.async_accept(asio::redirect_error(asio::use_awaitable, error));
            if (error)
                co_return;
            auto passing = std::make_shared<connection>(std::move(client));
            self->connections.push_back(passing);
            co_await passing->server.async_connect(self->target, asio::redirect_error(asio::use_awaitable, error));
            if (error)
            {
                passing->reset();
                continue;
            }
            passing->client.set_option(tcp::no_delay(true), error);
            passing->server.set_option(tcp::no_delay(true), error);
            const auto executor = self->acceptor.get_executor();
            asio::co_spawn(executor, pass(self, passing, passing->client, passing->server, self->client_to_server),
                           asio::detached);
            asio::co_spawn(executor, pass(self, passing, passing->server, passing->client, self->server_to_client),
                           asio::detached);
        }
    }

    static asio::awaitable<void> pass(std::shared_ptr<relay> self, std::shared_ptr<connection> passing,
                                      tcp::socket& from, tcp::socket& to, std::string& record)
    {
        std::array<char, 16384> buffer;
        std::error_code error;
        const bool is_cut = self->cut && self->cut->from_client == (&record == &self->client_to_server);
        std::size_t left = is_cut ? self->cut->after : std::numeric_limits<std::size_t>::max();
        if (left == 0)
            self->end(*passing, to);
        while (!error)
        {
            const std::size_t size =
                co_await from.async_read_some(asio::buffer(buffer), asio::redirect_error(asio::use_awaitable, error));
            record.append(buffer.data(), size);
            const std::size_t passes = std::min(size, left);
            const std::size_t step = self->split == 0 ? buffer.size() : self->split;
            for (std::size_t sent = 0; sent < passes && !error; sent += step)
            {
                const auto piece = asio::buffer(buffer.data() + sent, std::min(step, passes - sent));
                co_await asio::async_write(to, piece, asio::redirect_error(asio::use_awaitable, error));
            }
            if (passes > 0 && (left -= passes) == 0)
                self->end(*passing, to);
        }
        if (error == asio::error::eof)
        {
            // A write that meets a RST leaves no more than an end for the read: what it tells goes first.
            co_await asio::post(asio::use_awaitable);
            to.shutdown(tcp::socket::shutdown_send, error);
        }
        else
            passing->reset();
        if (--passing->open_directions == 0)
            passing->close();
        else // a FIN may be followed by a RST
            co_await from.async_wait(tcp::socket::wait_error, asio::redirect_error(asio::use_awaitable, error));
        if (!error && passing->open_directions > 0)
            passing->reset();
    }

    void end(connection& passing, tcp::socket& to) const
    {
        std::error_code ignored;
        if (cut->reset)
            passing.reset();
        else
            to.shutdown(tcp::socket::shutdown_send, ignored);
    }

    tcp::acceptor acceptor;
    tcp::endpoint target;
    std::size_t split;
    std::optional<wire_cut> cut;
    std::string client_to_server;
    std::string server_to_client;
    std::vector<std::shared_ptr<connection>> connections;
};

wire_tap::wire_tap(const asio::any_io_executor& executor, const tcp::endpoint& target, std::size_t split)
    : relay_(std::make_shared<relay>(executor, target, split))
{
    asio::co_spawn(executor, relay::accept(relay_), asio::detached);
}

wire_tap::~wire_tap()
{
    close();
}

tcp::endpoint wire_tap::endpoint() const
{
    return relay_->acceptor.local_endpoint();
}

void wire_tap::cut(const wire_cut& where)
{
    relay_->cut = where;
}

const std::string& wire_tap::client_to_server() const noexcept
{
    return relay_->client_to_server;
}

const std::string& wire_tap::server_to_client() const noexcept
{
    return relay_->server_to_client;
}

void wire_tap::close()
{
    std::error_code ignored;
    relay_->acceptor.close(ignored);
    for (const auto& passing : relay_->connections)
        passing->close();
    relay_->connections.clear();
}

} // namespace test
