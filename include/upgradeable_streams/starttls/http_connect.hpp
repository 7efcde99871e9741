/// @file
/// Tunnels through an HTTP proxy (CONNECT, RFC 9110 section 9.3.6).
#ifndef UPGRADEABLE_STREAMS_STARTTLS_HTTP_CONNECT_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_HTTP_CONNECT_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/openssl.hpp>
#include <upgradeable_streams/detail/server_identity.hpp>
#include <upgradeable_streams/detail/starttls_dialogue.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/port_number.hpp>
#include <upgradeable_streams/starttls/negotiation.hpp>
#include <upgradeable_streams/starttls/policy.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace upgradeable_streams
{
namespace starttls
{

/// For a proxy that asks for them (Basic, RFC 7617), which reads them, as does everybody on the way to it unless that
/// is encrypted.
struct http_credentials
{
    std::string_view user = {};
    std::string_view password = {};
};

static_assert(std::is_trivially_destructible_v<http_credentials>);

/// Has a proxy connect to a host, and begins TLS with the host, which is `tls.server_hostname` unless another is given.
///
/// starttls_policy::never leaves the tunnel in plain text, for a later start_tls with the target, and no longer with
/// the proxy; of `tls` the name alone counts then. `attempt` is as `require`, for no target tells what it offers. With
/// an HTTPS proxy, where the pair is in TLS already: `http_connect` with `never`, then
/// `start_tls<within_tls>({.server_hostname = host})`.
///
/// Errors: std::invalid_argument for a host that is neither a domain nor an address, a user with a colon, or a control
/// character in user or password; any status but 2xx is errc::request_refused.
asio::awaitable<negotiated> http_connect(const stream_reader& reader, const stream_writer& writer,
                                         std::string_view host, port_number port, const starttls_options& options = {},
                                         const http_credentials& credentials = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

/// A host and its port (RFC 9110 section 7.2).
inline std::string make_authority(std::string_view host, const std::string& port)
{
    if (host.empty() || host.find_first_of("/@?#%\\\"<>") != host.npos)
        throw std::invalid_argument("host must be a domain or an address, as in \"example.org\" or \"::1\"");
    const server_identity identity = server_identity::parse(host);
    if (!identity.is_address && identity.name.find_first_of(":[]") != identity.name.npos)
        throw std::invalid_argument("host must be without a port, which is an argument of its own");
    if (port.find_first_not_of("0123456789") != port.npos)
        throw std::invalid_argument("port must be a number: proxies know no names of services");
    return join_host_port(identity.name, port);
}

/// The header that holds user and password, if there are any.
inline std::string proxy_authorization(std::string_view user, std::string_view password)
{
    const auto is_control = [](unsigned char c) { return c < ' ' || c == 0x7f; };
    if (user.find(':') != user.npos)
        throw std::invalid_argument("user must not hold a colon (RFC 7617 section 2)");
    if (std::ranges::any_of(user, is_control) || std::ranges::any_of(password, is_control))
        throw std::invalid_argument("user and password must not hold control characters (RFC 7617 section 2)");
    if (user.empty() && password.empty())
        return {};
    const std::string pair = std::string(user) + ":" + std::string(password);
    return "Proxy-Authorization: Basic " + base64(pair.data(), pair.size()) + "\r\n";
}

/// The status of an HTTP/1 response (RFC 9112 section 4). Returns: empty for another line.
inline std::string parse_http_status(const std::string& line)
{
    if (line.size() < 12 || !(line.starts_with("HTTP/1.0 ") || line.starts_with("HTTP/1.1 ")))
        return {};
    const std::string status = line.substr(9, 3);
    const bool is_number = status.find_first_not_of("0123456789") == status.npos;
    return is_number && (line.size() == 12 || line[12] == ' ') ? status : std::string();
}

inline asio::awaitable<void> talk_http_connect(starttls_dialogue& dialogue, std::string name, std::string request,
                                               std::string server)
{
    dialogue.ask(name, request);
    std::string status;
    do
    {
        const std::string line = co_await dialogue.read_line();
        dialogue.explain(line);
        status = parse_http_status(line);
        if (status.empty())
            dialogue.fail(errc::reply_malformed);
        if (status == "101" || (status[0] != '1' && status[0] != '2'))
            dialogue.fail(errc::request_refused);
        std::string header = line;
        while (!header.empty())
            header = co_await dialogue.read_line();
    } while (status[0] == '1');
    if (dialogue.wants_tls(true))
        co_await dialogue.start_tls();
    else
        dialogue.turn_to(server);
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> http_connect(const stream_reader& reader,
                                                                  const stream_writer& writer, std::string_view host,
                                                                  port_number port, const starttls_options& options,
                                                                  const http_credentials& credentials)
{
    const std::string target = detail::make_authority(host, port.to_string());
    starttls_options tunnel = options;
    const std::string server(options.tls.server_hostname.empty() ? host : options.tls.server_hostname);
    tunnel.tls.server_hostname = server;
    if (options.policy == starttls_policy::never)
        tunnel.tls.server_hostname = {}; // the pair is the proxy's until it has answered
    const std::string request = "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n" +
                                detail::proxy_authorization(credentials.user, credentials.password) + "\r\n";
    return detail::starttls_dialogue::run("HTTP", reader, writer, tunnel, detail::talk_http_connect,
                                          "CONNECT " + target, request, server);
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
