// The clients of starttls/, whose server says arbitrary bytes, before TLS and within it.

#include "input.hpp"
#include "support/openssl.hpp"
#include "support/socket_pair.hpp"
#include "support/stream_links.hpp"
#include "support/task.hpp"
#include "support/tls_settings.hpp"

#include <upgradeable_streams/open_connection.hpp>
#include <upgradeable_streams/starttls/ftp.hpp>
#include <upgradeable_streams/starttls/http_connect.hpp>
#include <upgradeable_streams/starttls/imap.hpp>
#include <upgradeable_streams/starttls/irc.hpp>
#include <upgradeable_streams/starttls/ldap.hpp>
#include <upgradeable_streams/starttls/mysql.hpp>
#include <upgradeable_streams/starttls/nbd.hpp>
#include <upgradeable_streams/starttls/nntp.hpp>
#include <upgradeable_streams/starttls/pop3.hpp>
#include <upgradeable_streams/starttls/postgres.hpp>
#include <upgradeable_streams/starttls/sieve.hpp>
#include <upgradeable_streams/starttls/smtp.hpp>
#include <upgradeable_streams/starttls/xmpp.hpp>

#include <asio/awaitable.hpp>
#include <asio/io_context.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/write.hpp>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using us::starttls_policy;

namespace
{

using client = asio::awaitable<us::starttls::negotiated> (*)(const us::stream_reader&, const us::stream_writer&,
                                                             const us::starttls::starttls_options&);

asio::awaitable<us::starttls::negotiated> mysql(const us::stream_reader& reader, const us::stream_writer& writer,
                                                const us::starttls::starttls_options& options)
{
    return us::starttls::mysql(reader, writer, options);
}

asio::awaitable<us::starttls::negotiated> http_connect(const us::stream_reader& reader, const us::stream_writer& writer,
                                                       const us::starttls::starttls_options& options)
{
    return us::starttls::http_connect(reader, writer, "localhost", 443, {.policy = options.policy}, {.user = "a"});
}

struct protocol
{
    client talk;
    std::vector<std::string> asks; ///< All that is said in plain text by one that asks for TLS.
    std::string plain = {};        ///< What one says who goes on in plain text, behind a beginning of `asks` or alone.
};

std::string xmpp_header(const std::string& attributes)
{
    return "<?xml version='1.0'?><stream:stream" + attributes +
           " to='localhost' version='1.0' xmlns:stream='http://etherx.jabber.org/streams'>";
}

/// The order is that of the first byte of an input.
const std::vector<protocol>& protocols()
{
    const std::string xmpp_request = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
    static const std::vector<protocol> all = {
        {us::starttls::smtp, {"EHLO me\r\n", "STARTTLS\r\n"}},
        {us::starttls::lmtp, {"LHLO me\r\n", "STARTTLS\r\n"}},
        {us::starttls::imap, {"a1 CAPABILITY\r\n", "a2 STARTTLS\r\n"}},
        {us::starttls::pop3, {"CAPA\r\n", "STLS\r\n"}},
        {us::starttls::sieve, {"STARTTLS\r\n"}},
        {us::starttls::nntp, {"CAPABILITIES\r\n", "STARTTLS\r\n"}},
        {us::starttls::ftp, {"AUTH TLS\r\n"}, "FEAT\r\n"},
        {us::starttls::irc, {"STARTTLS\r\n"}},
        {us::starttls::postgres, {std::string("\0\0\0\x08\x04\xd2\x16\x2f", 8)}},
        {mysql, {std::string("\x20\0\0\x01", 4)}},
        {us::starttls::ldap,
         {"\x30\x1d\x02\x01\x01\x77\x18\x80\x16"
          "1.3.6.1.4.1.1466.20037"}},
        {us::starttls::xmpp, {xmpp_header(" xmlns='jabber:client'"), xmpp_request}},
        {us::starttls::xmpp_server,
         {xmpp_header(" xmlns='jabber:server' xmlns:db='jabber:server:dialback' from='me'"), xmpp_request}},
        {http_connect,
         {"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n"
          "Proxy-Authorization: Basic YTo=\r\n\r\n"}},
        {us::starttls::nbd, {std::string(4, '\0'), std::string("IHAVEOPT\0\0\0\5\0\0\0\0", 16)}},
    };
    return all;
}

/// The connection under test.
struct negotiation
{
    starttls_policy policy;
    bool done = false;
    bool is_tls = false;
    bool is_closed = false;
    std::error_code error{};
    std::string what{};
    std::string reply{};
    std::vector<std::string> capabilities{};
};

asio::awaitable<void> run(const protocol& spoken, negotiation& n, asio::local::stream_protocol::socket socket)
{
    auto [reader, writer] = co_await us::open_connection(
        std::move(socket), {.ssl = &test::client_context(), .upgradeable = true, .server_hostname = "localhost"});
    try
    {
        us::starttls::negotiated made = co_await spoken.talk(
            reader, writer, {.policy = n.policy, .client_name = "me", .domain = "localhost"});
        n.done = true;
        n.is_tls = made.reader.is_tls();
        n.capabilities = std::move(made.capabilities);
        made.writer.close();
    }
    catch (const us::starttls_error& error)
    {
        n.error = error.code();
        n.what = error.what();
        n.reply = error.reply();
    }
    catch (const std::system_error& error)
    {
        n.error = error.code();
        n.what = error.what();
    }
    n.is_closed = writer.is_closing();
}

/// A server of TLS in memory, which says something once the handshake is done, and then closes.
class tls_server
{
public:
    explicit tls_server(std::string words) : ssl_(SSL_new(context())), words_(std::move(words))
    {
        SSL_set_bio(ssl_.get(), BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
        SSL_set_accept_state(ssl_.get());
    }

    /// Takes what came, and returns what is to be sent.
    std::string exchange(std::string_view received)
    {
        BIO_write(SSL_get_rbio(ssl_.get()), received.data(), static_cast<int>(received.size()));
        ERR_clear_error();
        if (SSL_do_handshake(ssl_.get()) == 1)
        {
            if (!std::exchange(has_spoken_, true))
            {
                if (!words_.empty())
                    SSL_write(ssl_.get(), words_.data(), static_cast<int>(words_.size()));
                SSL_shutdown(ssl_.get());
            }
            for (std::array<char, 4096> buffer;;)
            {
                const int size = SSL_read(ssl_.get(), buffer.data(), static_cast<int>(buffer.size()));
                if (size <= 0)
                    break;
                heard_.append(buffer.data(), static_cast<std::size_t>(size));
            }
        }
        std::string sent(BIO_ctrl_pending(SSL_get_wbio(ssl_.get())), '\0');
        if (!sent.empty())
            BIO_read(SSL_get_wbio(ssl_.get()), sent.data(), static_cast<int>(sent.size()));
        return sent;
    }

private:
    static SSL_CTX* context()
    {
        static const test::context_ptr made = test::make_context(test::localhost_server(), true);
        return made.get();
    }

    test::openssl_ptr<SSL, SSL_free> ssl_;
    std::string words_;
    std::string heard_;
    bool has_spoken_ = false;
};

/// Takes the text off the front, as far as it goes. Returns: whether there is nothing more to come of `bytes`.
bool take(std::string_view& bytes, std::string_view text)
{
    const std::size_t size = std::min(bytes.size(), text.size());
    fuzz::require(bytes.substr(0, size) == text.substr(0, size), "nothing is said in plain text but requests");
    bytes.remove_prefix(size);
    return bytes.empty();
}

/// What a client of IRC says when it is asked whether it is still there.
std::string without_pongs(std::string_view bytes)
{
    std::string rest;
    while (bytes.starts_with("PONG ") || bytes.starts_with("STARTTLS\r\n"))
    {
        const std::size_t size = bytes.find("\r\n") + 2;
        fuzz::require(size > 1, "lines end");
        rest += bytes.starts_with('S') ? bytes.substr(0, size) : "";
        bytes.remove_prefix(size);
    }
    return rest += bytes;
}

/// What a client of NBD says, but for the flags that it shares with its server.
std::string without_flags(std::string_view bytes)
{
    std::string rest(bytes);
    if (rest.size() >= 4)
        rest[3] &= ~3;
    return rest;
}

/// Whether bytes are whole TLS records.
bool are_records(std::string_view bytes)
{
    while (bytes.size() >= 5 && bytes[0] >= 20 && bytes[0] <= 23 && bytes[1] == 3)
    {
        const std::size_t size = 5 + 256u * static_cast<unsigned char>(bytes[3]) + static_cast<unsigned char>(bytes[4]);
        if (size > bytes.size())
            return false;
        bytes.remove_prefix(size);
    }
    return bytes.empty();
}

void check_sent(std::size_t index, starttls_policy policy, std::string_view bytes)
{
    const protocol& spoken = protocols()[index];
    const std::string own = spoken.talk == us::starttls::irc   ? without_pongs(bytes)
                            : spoken.talk == us::starttls::nbd ? without_flags(bytes)
                                                               : std::string(bytes);
    std::string_view rest = own;
    for (const std::string& request : spoken.asks)
    {
        if (rest.starts_with("\x16\x03"))
            break;
        const bool is_left_out = (request.starts_with("a1 ") && rest.starts_with("a2 ")) || // the greeting told
                                 (!spoken.plain.empty() && rest.starts_with(spoken.plain));
        if (!is_left_out && take(rest, request))
            return;
    }
    if (spoken.talk == mysql)
    {
        fuzz::require(rest.size() >= 32 && rest.substr(9, 23) == std::string(23, '\0'), "an SSLRequest is whole");
        rest.remove_prefix(32);
    }
    if (policy != starttls_policy::require && !rest.starts_with("\x16\x03") && take(rest, spoken.plain))
        return;
    fuzz::require(policy != starttls_policy::never, "TLS is not begun where it is not wanted");
    fuzz::require(are_records(rest), "nothing but TLS is sent behind the requests");
}

bool is_expected(const std::error_code& error)
{
    constexpr std::array expected = {us::errc::tls_not_offered, us::errc::request_refused, us::errc::reply_malformed,
                                     us::errc::reply_too_long, us::errc::incomplete_read,
                                     us::errc::plaintext_injection};
    return std::ranges::any_of(expected, [&](us::errc each) { return error == each; });
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    fuzz::input input(data, size);
    const std::size_t index = input.below(protocols().size());
    const std::uint8_t flags = input.byte();
    negotiation n{.policy = static_cast<starttls_policy>(flags % 3)};
    const bool has_tls = flags & 4;
    const std::size_t chunk = flags & 8 ? 1 + input.below(100) : 1u << 20;
    const std::string plain(input.bytes(has_tls ? input.below(1 << 16) : size));
    const std::string words(input.bytes(size));

    asio::io_context io;
    auto [socket, peer] = test::local_pair(io.get_executor());
    peer.non_blocking(true);
    const auto running = test::spawn(
        io.get_executor(), [&, own = &socket] { return run(protocols()[index], n, std::move(*own)); });
    std::string received; // all that the client sent
    const auto poll = [&]
    {
        io.restart();
        io.poll();
        std::array<char, 65536> buffer;
        asio::error_code nothing;
        const std::size_t came = peer.read_some(asio::buffer(buffer), nothing);
        received.append(buffer.data(), came);
        return std::pair(std::string(buffer.data(), came), nothing);
    };
    const auto send = [&](std::string_view bytes)
    {
        std::string came;
        asio::error_code closed;
        for (; !bytes.empty() && !closed; bytes.remove_prefix(std::min(chunk, bytes.size())))
        {
            asio::write(peer, asio::buffer(bytes.substr(0, chunk)), closed);
            came += poll().first;
        }
        return came;
    };

    std::string came = send(plain);
    came += poll().first;
    if (has_tls)
    {
        tls_server tls(words);
        came.erase(0, std::min(came.find("\x16\x03\x01"), came.size()));
        while (!came.empty())
        {
            came = send(tls.exchange(came));
            came += poll().first;
        }
    }
    asio::error_code end;
    peer.shutdown(asio::socket_base::shutdown_send, end);
    end = {};
    for (int round = 0; !running.done() || !end || end == asio::error::would_block; ++round)
    {
        fuzz::require(round < 1000, "a negotiation ends when its server has, and closes the connection");
        end = poll().second;
    }
    running.result();

    check_sent(index, n.policy, received);
    fuzz::require(n.is_closed, "what has failed is closed, and what went well goes on with new handles");
    fuzz::require(n.done == !n.error, "a negotiation succeeds or fails");
    fuzz::require(!n.done || n.policy != starttls_policy::require || n.is_tls, "required is required");
    fuzz::require(!n.is_tls || (has_tls && n.policy != starttls_policy::never), "arbitrary bytes are no handshake");
    fuzz::require(n.is_tls || !n.error || is_expected(n.error) || received.find("\x16\x03") != received.npos,
                  "what a server is to blame for is told");
    fuzz::require(n.reply.size() <= 512 && (plain.find(n.reply) != plain.npos || words.find(n.reply) != words.npos),
                  "the reply that is shown is the server's");
    fuzz::require(n.what.size() < 1000 && std::ranges::all_of(n.what, [](char c) { return c >= ' ' && c <= '~'; }),
                  "what people are told can be shown on a terminal");
    for (const std::string& each : n.capabilities)
        fuzz::require(plain.size() + words.size() >= each.size(), "capabilities are what a server said");
    return 0;
}
