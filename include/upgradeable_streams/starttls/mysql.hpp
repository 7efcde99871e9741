/// @file
/// The SSLRequest of MySQL and MariaDB (their documentation's "Connection Phase").
#ifndef UPGRADEABLE_STREAMS_STARTTLS_MYSQL_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_MYSQL_HPP

#include <upgradeable_streams/detail/byte_order.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/starttls_dialogue.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/starttls/negotiation.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>

#include <asio/awaitable.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace upgradeable_streams
{
namespace starttls
{

/// What a client's login begins with.
struct mysql_client
{
    /// The CLIENT_ flags that the client knows: LONG_PASSWORD, LONG_FLAG, PROTOCOL_41, TRANSACTIONS, SECURE_CONNECTION,
    /// MULTI_RESULTS, PLUGIN_AUTH, PLUGIN_AUTH_LENENC_CLIENT_DATA unless said otherwise.
    std::uint32_t capabilities = 0x2aa205;
    std::uint32_t max_packet_size = 16 * 1024 * 1024;
    std::uint8_t character_set = 45; ///< utf8mb4_general_ci, which MySQL and MariaDB have.
};

static_assert(std::is_trivially_destructible_v<mysql_client>);

/// Reads the server's greeting, sends an SSLRequest and upgrades.
///
/// Returns: `greeting` is the payload of the server's first packet. The next packet is the client's login, whose
/// sequence number is 2 in TLS and 1 in plain text, and which begins with mysql_login_header.
///
/// Errors: errc::request_refused where the server's first packet is an error.
asio::awaitable<negotiated> mysql(const stream_reader& reader, const stream_writer& writer,
                                  const starttls_options& options = {}, const mysql_client& client = {});

/// The first 32 bytes of a HandshakeResponse41: those flags that the server has too, CLIENT_SSL in TLS, the rest of
/// `client`. The SSLRequest consisted of them, and servers go by what they were there.
///
/// Errors: std::invalid_argument for a connection that is not from `mysql`.
std::string mysql_login_header(const negotiated& connection, const mysql_client& client = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

inline constexpr std::uint32_t mysql_protocol_41 = 0x200;
inline constexpr std::uint32_t mysql_ssl = 0x800;

/// The server's flags. Returns: empty for another greeting than that of protocol 10.
inline std::optional<std::uint32_t> parse_mysql_capabilities(std::string_view greeting)
{
    constexpr std::size_t before = 1 + 4 + 8 + 1; // the version's end, the connection's id, a nonce, a filler
    const std::size_t end = greeting.find('\0');  // of the version
    if (!greeting.starts_with('\x0a') || end == greeting.npos || greeting.size() - end < before + 2)
        return std::nullopt;
    const std::string_view flags = greeting.substr(end + before);
    const std::string_view upper = flags.size() < 7 ? "" : flags.substr(5, 2); // behind character set and status
    return parse_little_endian(flags.substr(0, 2)) | parse_little_endian(upper) << 16;
}

inline std::string make_mysql_header(std::uint32_t server, bool is_tls, const starttls::mysql_client& client)
{
    const std::uint32_t known = (client.capabilities | mysql_protocol_41) & server & ~mysql_ssl;
    const std::uint32_t capabilities = known | (is_tls ? mysql_ssl : 0);
    return to_little_endian(capabilities, 4) + to_little_endian(client.max_packet_size, 4) +
           to_little_endian(client.character_set, 1) + std::string(23, '\0');
}

/// The words of an error packet: the number, and the text behind an SQL state if there is one.
inline std::string explain_mysql_error(const std::string& packet)
{
    const std::string text = packet.substr(std::min<std::size_t>(packet.size(), 3));
    return std::to_string(parse_little_endian(std::string_view(packet).substr(1, 2))) + ": " +
           (text.starts_with('#') ? text.substr(std::min<std::size_t>(text.size(), 6)) : text);
}

inline asio::awaitable<void> talk_mysql(starttls_dialogue& dialogue, starttls::mysql_client client)
{
    const std::string header = co_await dialogue.read(4);
    dialogue.greeting = co_await dialogue.read(parse_little_endian(std::string_view(header).substr(0, 3)));
    const std::string& greeting = dialogue.greeting;
    if (greeting.starts_with('\xff'))
    {
        dialogue.explain(explain_mysql_error(greeting));
        dialogue.fail(errc::request_refused);
    }
    const std::optional<std::uint32_t> server = parse_mysql_capabilities(greeting);
    if (header[3] != 0 || !server)
        dialogue.fail(errc::reply_malformed);
    dialogue.explain(greeting.substr(1, greeting.find('\0') - 1));

    constexpr std::uint32_t needed = mysql_ssl | mysql_protocol_41;
    if (dialogue.wants_tls((*server & needed) == needed))
    {
        dialogue.ask("SSLRequest", std::string("\x20\0\0\x01", 4) + make_mysql_header(*server, true, client));
        co_await dialogue.start_tls();
    }
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> mysql(const stream_reader& reader, const stream_writer& writer,
                                                           const starttls_options& options, const mysql_client& client)
{
    return detail::starttls_dialogue::run("MySQL", reader, writer, options, detail::talk_mysql, client);
}

UPGRADEABLE_STREAMS_DECL std::string mysql_login_header(const negotiated& connection, const mysql_client& client)
{
    const std::optional<std::uint32_t> server = detail::parse_mysql_capabilities(connection.greeting);
    if (!server)
        throw std::invalid_argument("mysql_login_header needs what mysql returned");
    return detail::make_mysql_header(*server, connection.reader.is_tls(), client);
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
