/// @file
/// From names to addresses.
#ifndef UPGRADEABLE_STREAMS_DETAIL_RESOLVE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_RESOLVE_HPP

#include <upgradeable_streams/socket_address.hpp>

#include <asio/async_result.hpp>
#include <asio/error_code.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/post.hpp>

#include <memory>
#include <string>
#include <system_error>
#include <utility>

namespace upgradeable_streams::detail
{

struct resolve_query
{
    std::string host;
    std::string service;
    ip_family family;
    asio::ip::tcp::resolver::flags flags = {};

    /// Calls a function with what Asio's resolver is to be asked.
    template <typename Function>
    auto apply(Function function) const
    {
        using asio::ip::tcp;
        return family == ip_family::any ? function(host, service)
                                        : function(family == ip_family::v4 ? tcp::v4() : tcp::v6(), host, service);
    }

    /// The addresses of a host and service that are written in numbers, without waiting; none for any other.
    ///
    /// Asio resolves on a thread of its own, and from the first thread on every lock and every shared_ptr of the
    /// process costs more. asyncio too calls no resolver for numbers.
    asio::ip::tcp::resolver::results_type numbers(asio::ip::tcp::resolver& resolver) const
    {
        const auto only_numbers = flags | resolver.numeric_host | resolver.numeric_service;
        asio::error_code error;
        return apply([&](const auto&... query) { return resolver.resolve(query..., only_numbers, error); });
    }

    /// As tcp::resolver::async_resolve, but where no thread can be started to resolve on that is the result: to throw
    /// it would end the program, since in Asio 1.22 await_suspend is noexcept.
    template <typename CompletionToken>
    auto async_resolve(asio::ip::tcp::resolver& resolver, CompletionToken&& token) const
    {
        using results = asio::ip::tcp::resolver::results_type;
        const auto begin = [this, &resolver](auto handler)
        {
            const auto kept = std::make_shared<decltype(handler)>(std::move(handler));
            const auto complete = [kept](const asio::error_code& error, results found)
            { (*kept)(error, std::move(found)); };
            try
            {
                apply([&](const auto&... query) { resolver.async_resolve(query..., flags, complete); });
            }
            catch (const std::system_error& failed)
            {
                asio::post(resolver.get_executor(), [complete, error = failed.code()] { complete(error, {}); });
            }
        };
        return asio::async_initiate<CompletionToken, void(asio::error_code, results)>(begin, token);
    }
};

} // namespace upgradeable_streams::detail

#endif
