/// @file
/// Resolving a host and connecting to the first of its addresses that answers.
#ifndef UPGRADEABLE_STREAMS_DETAIL_TCP_CONNECTOR_HPP
#define UPGRADEABLE_STREAMS_DETAIL_TCP_CONNECTOR_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/deadline.hpp>
#include <upgradeable_streams/detail/resolve.hpp>
#include <upgradeable_streams/detail/text.hpp>
#include <upgradeable_streams/detail/wait.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/port_number.hpp>
#include <upgradeable_streams/socket_address.hpp>

#include <asio/awaitable.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace upgradeable_streams::detail
{

/// Connects to the first of several addresses that answers (RFC 8305). Used by one coroutine, which keeps it.
class tcp_connector : public std::enable_shared_from_this<tcp_connector>
{
public:
    template <typename Options>
    tcp_connector(std::string_view host, port_number port, const Options& options)
        : host_(host.starts_with('[') && host.ends_with(']') ? host.substr(1, host.size() - 2) : host),
          service_(port.to_string()), target_(join_host_port(printable(host_), service_)), family_(options.family),
          delay_(options.happy_eyeballs_delay), interleave_(options.interleave.value_or(delay_ ? 1 : 0)),
          timeout_(options.connect_timeout)
    {
        if (host_.empty())
            throw std::invalid_argument("host must not be empty");
        if (service_.find_first_not_of('0') == service_.npos)
            throw std::invalid_argument("port 0 is for servers, for which it picks one");
        require_positive(timeout_, "connect_timeout");
        if (delay_)
            require_positive(*delay_, "happy_eyeballs_delay");
        if (options.local_addr)
            local_.emplace(options.local_addr->host, options.local_addr->port.to_string());
        refuse_nul(host_, "host");
        refuse_nul(local_ ? local_->first : "", "local_addr");
    }

    struct attempt
    {
        asio::ip::tcp::socket socket;
        asio::ip::tcp::endpoint endpoint;
    };

    asio::awaitable<attempt> connect();

private:
    using tcp = asio::ip::tcp;
    using endpoints = std::vector<tcp::endpoint>;

    // A type of the class: GCC 12 cannot mangle one of a coroutine that comes from a precompiled header.
    struct resolution
    {
        std::optional<asio::error_code> error;
        tcp::resolver::results_type results;
    };

    asio::awaitable<endpoints> resolve(tcp::resolver& resolver, std::string host, std::string service);
    asio::awaitable<void> wait_until(std::chrono::steady_clock::time_point time);
    endpoints interleaved(const endpoints& given) const;
    void start(const tcp::endpoint& endpoint, const endpoints& local);
    void connected(attempt won);
    void failed(const tcp::endpoint& endpoint, std::error_code error);
    [[noreturn]] void give_up(std::error_code error);

    std::string host_;
    std::string service_;
    std::string target_;
    ip_family family_;
    std::optional<std::chrono::steady_clock::duration> delay_;
    std::size_t interleave_;
    std::chrono::steady_clock::duration timeout_;
    std::optional<std::pair<std::string, std::string>> local_;

    std::optional<asio::steady_timer> changed_;
    std::chrono::steady_clock::time_point deadline_;
    std::list<attempt> running_;
    std::optional<attempt> connected_;
    std::vector<connect_error::attempt> failed_;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> tcp_connector::wait_until(std::chrono::steady_clock::time_point time)
{
    changed_->expires_at(std::min(time, deadline_));
    co_await wait(*changed_);
    if (!connected_ && std::chrono::steady_clock::now() >= deadline_)
    {
        for (const attempt& still : running_)
            failed(still.endpoint, errc::connect_timeout);
        give_up(errc::connect_timeout);
    }
}

/// The resolver cannot be interrupted, so a result that comes too late is dropped.
UPGRADEABLE_STREAMS_DECL asio::awaitable<tcp_connector::endpoints>
tcp_connector::resolve(tcp::resolver& resolver, std::string host, std::string service)
{
    const resolve_query query = {host, service, family_};
    if (const auto numbers = query.numbers(resolver); !numbers.empty())
        co_return endpoints(numbers.begin(), numbers.end());
    const auto answer = std::make_shared<resolution>();
    const auto receive = [answer, weak = weak_from_this()](asio::error_code error, tcp::resolver::results_type results)
    {
        answer->error = error;
        answer->results = std::move(results);
        if (const auto self = weak.lock())
            self->changed_->cancel();
    };
    query.async_resolve(resolver, receive);
    while (!answer->error)
        co_await wait_until(deadline_);
    if (*answer->error)
        throw std::system_error(*answer->error, "cannot resolve " + join_host_port(printable(host), service));
    co_return endpoints(answer->results.begin(), answer->results.end());
}

UPGRADEABLE_STREAMS_DECL tcp_connector::endpoints tcp_connector::interleaved(const endpoints& given) const
{
    if (interleave_ == 0 || given.empty())
        return given;
    endpoints first;
    endpoints second;
    for (const tcp::endpoint& endpoint : given)
        (endpoint.protocol() == given.front().protocol() ? first : second).push_back(endpoint);
    const std::size_t lead = std::min(interleave_ - 1, first.size());
    endpoints order(first.begin(), first.begin() + std::ptrdiff_t(lead));
    for (std::size_t i = 0; lead + i < first.size() || i < second.size(); ++i)
    {
        if (lead + i < first.size())
            order.push_back(first[lead + i]);
        if (i < second.size())
            order.push_back(second[i]);
    }
    return order;
}

UPGRADEABLE_STREAMS_DECL void tcp_connector::connected(attempt won)
{
    asio::error_code has_gone;
    if (const auto peer = won.socket.remote_endpoint(has_gone); !has_gone)
        won.endpoint = peer; // where 0.0.0.0 led
    connected_.emplace(std::move(won));
}

UPGRADEABLE_STREAMS_DECL void tcp_connector::failed(const tcp::endpoint& endpoint, std::error_code error)
{
    failed_.push_back({socket_address(endpoint).to_string(), error});
}

/// When every address failed for the same reason, that is the reason.
UPGRADEABLE_STREAMS_DECL void tcp_connector::give_up(std::error_code error)
{
    if (!error)
    {
        const auto differs = [this](const auto& a) { return a.error != failed_.front().error; };
        error = failed_.empty() || std::ranges::any_of(failed_, differs) ? make_error_code(errc::connect_failed)
                                                                         : failed_.front().error;
    }
    throw connect_error(error, target_, std::move(failed_));
}

UPGRADEABLE_STREAMS_DECL void tcp_connector::start(const tcp::endpoint& endpoint, const endpoints& local)
{
    tcp::socket socket(changed_->get_executor());
    asio::error_code error;
    socket.open(endpoint.protocol(), error);
    if (!error && local_)
    {
        const auto same = std::ranges::find(local, endpoint.protocol(), &tcp::endpoint::protocol);
        if (same == local.end())
            error = asio::error::address_family_not_supported;
        else
            socket.bind(*same, error);
    }
    if (error)
        return failed(endpoint, error);

    const auto self = running_.insert(running_.end(), {std::move(socket), endpoint});
    self->socket.async_connect(endpoint,
                               [self, weak = weak_from_this()](const asio::error_code& result)
                               {
                                   const auto connector = weak.lock();
                                   if (!connector || result == asio::error::operation_aborted)
                                       return;
                                   if (result)
                                       connector->failed(self->endpoint, result);
                                   else if (!connector->connected_)
                                       connector->connected(std::move(*self));
                                   connector->running_.erase(self);
                                   connector->changed_->cancel();
                               });
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<tcp_connector::attempt> tcp_connector::connect()
{
    changed_.emplace(co_await asio::this_coro::executor);
    deadline_ = time_after(timeout_);
    tcp::resolver resolver(changed_->get_executor());
    endpoints local;
    if (local_)
        local = co_await resolve(resolver, local_->first, local_->second);
    const endpoints remote = co_await resolve(resolver, host_, service_);
    const endpoints order = interleaved(remote);

    auto next = order.begin();
    auto next_start = std::chrono::steady_clock::time_point::max();
    while (!connected_)
    {
        if (next == order.end() && running_.empty())
            give_up({});
        const auto now = std::chrono::steady_clock::now();
        if (next != order.end() && (running_.empty() || now >= next_start))
        {
            start(*next++, local);
            next_start = delay_ && *delay_ < deadline_ - now ? now + *delay_
                                                             : std::chrono::steady_clock::time_point::max();
            continue;
        }
        co_await wait_until(next == order.end() ? deadline_ : next_start);
    }
    co_return std::move(*connected_);
}

#endif

} // namespace upgradeable_streams::detail

#endif
