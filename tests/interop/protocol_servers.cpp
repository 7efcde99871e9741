#include "protocol_servers.hpp"

#include "support/failure.hpp"

#include <upgradeable_streams/detail/byte_order.hpp>
#include <upgradeable_streams/starttls/ftp.hpp>
#include <upgradeable_streams/starttls/imap.hpp>
#include <upgradeable_streams/starttls/irc.hpp>
#include <upgradeable_streams/starttls/ldap.hpp>
#include <upgradeable_streams/starttls/nbd.hpp>
#include <upgradeable_streams/starttls/nntp.hpp>
#include <upgradeable_streams/starttls/pop3.hpp>
#include <upgradeable_streams/starttls/postgres.hpp>
#include <upgradeable_streams/starttls/sieve.hpp>
#include <upgradeable_streams/starttls/smtp.hpp>
#include <upgradeable_streams/starttls/xmpp.hpp>

#include <asio/awaitable.hpp>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <string>
#include <tuple>
#include <utility>

namespace us = upgradeable_streams;
namespace starttls = us::starttls;
using asio::awaitable;
using pair = std::pair<us::stream_reader, us::stream_writer>;

namespace test
{

namespace
{

/// A protocol in which clients send lines.
struct dialect
{
    bool (*is_request)(std::string_view);
    awaitable<pair> (*answer)(const us::stream_reader&, const us::stream_writer&, std::string_view,
                              const us::tls_options&);
    std::string (*greet)(bool is_tls);

    /// `verb` is the line's first word in upper case, and `tag` that of IMAP.
    std::string (*reply)(const std::string& verb, const std::string& tag, bool is_tls);
    std::string_view goodbye;
    bool has_tags = false;
    bool greets_again = false;
};

std::string take_word(std::string& line)
{
    const std::size_t end = std::min(line.find_first_of(" \r\n"), line.size());
    const std::string word = line.substr(0, end);
    line.erase(0, std::min(line.size(), end + 1));
    return word;
}

awaitable<void> serve_lines(dialect spoken, us::stream_reader reader, us::stream_writer writer)
{
    writer.write(spoken.greet(false));
    for (std::string line; !(line = co_await reader.readline()).empty();)
    {
        if (spoken.is_request(line))
        {
            std::tie(reader, writer) = co_await spoken.answer(reader, writer, line, {});
            if (spoken.greets_again)
                writer.write(spoken.greet(reader.is_tls()));
            continue;
        }
        const std::string tag = spoken.has_tags ? take_word(line) : "";
        std::string verb = take_word(line);
        for (char& c : verb)
            c = char(std::toupper(static_cast<unsigned char>(c)));
        writer.write(spoken.reply(verb, tag, reader.is_tls()));
        if (verb == spoken.goodbye)
            co_return;
        if (verb == "DATA" && reader.is_tls())
        {
            co_await reader.readuntil("\r\n.\r\n");
            writer.write("250 2.0.0 Ok\r\n");
        }
    }
}

const dialect smtp{starttls::is_smtp_request, starttls::answer_smtp,
                   [](bool) -> std::string { return "220 localhost ESMTP\r\n"; },
                   [](const std::string& verb, const std::string&, bool is_tls) -> std::string
                   {
                       if (verb == "EHLO" || verb == "LHLO")
                           return is_tls ? "250-localhost\r\n250 8BITMIME\r\n" : "250-localhost\r\n250 STARTTLS\r\n";
                       if (verb == "QUIT")
                           return "221 2.0.0 Bye\r\n";
                       if (!is_tls)
                           return "530 5.7.0 Must issue a STARTTLS command first\r\n";
                       return verb == "DATA" ? "354 End data with <CR><LF>.<CR><LF>\r\n" : "250 2.0.0 Ok\r\n";
                   },
                   "QUIT"};

const dialect imap{starttls::is_imap_request, starttls::answer_imap,
                   [](bool) -> std::string { return "* OK ready\r\n"; },
                   [](const std::string& verb, const std::string& tag, bool is_tls) -> std::string
                   {
                       std::string untagged;
                       if (verb == "CAPABILITY")
                           untagged = is_tls ? "* CAPABILITY IMAP4rev1\r\n"
                                             : "* CAPABILITY IMAP4rev1 STARTTLS\r\n";
                       else if (verb == "LOGOUT")
                           untagged = "* BYE\r\n";
                       else if (!is_tls)
                           return tag + " BAD not in plain text\r\n";
                       return untagged + tag + " OK done\r\n";
                   },
                   "LOGOUT", true};

const dialect pop3{starttls::is_pop3_request, starttls::answer_pop3,
                   [](bool) -> std::string { return "+OK ready\r\n"; },
                   [](const std::string& verb, const std::string&, bool is_tls) -> std::string
                   {
                       if (verb == "CAPA")
                           return is_tls ? "+OK\r\nUSER\r\n.\r\n" : "+OK\r\nSTLS\r\n.\r\n";
                       if (verb != "QUIT" && !is_tls)
                           return "-ERR not in plain text\r\n";
                       return verb == "LIST" ? "+OK\r\n.\r\n" : "+OK 0 0\r\n";
                   },
                   "QUIT"};

const dialect sieve{starttls::is_sieve_request,
                    starttls::answer_sieve,
                    [](bool is_tls) -> std::string
                    {
                        return std::string("\"IMPLEMENTATION\" \"test\"\r\n\"SASL\" \"\"\r\n\"SIEVE\" \"\"\r\n") +
                               (is_tls ? "" : "\"STARTTLS\"\r\n") + "\"VERSION\" \"1.0\"\r\nOK \"ready\"\r\n";
                    },
                    [](const std::string&, const std::string&, bool) -> std::string { return "OK\r\n"; },
                    "LOGOUT",
                    false,
                    true};

const dialect nntp{starttls::is_nntp_request, starttls::answer_nntp,
                   [](bool) -> std::string { return "200 ready\r\n"; },
                   [](const std::string& verb, const std::string&, bool is_tls) -> std::string
                   {
                       if (verb == "CAPABILITIES")
                           return is_tls ? "101 list\r\nVERSION 2\r\nREADER\r\n.\r\n"
                                         : "101 list\r\nVERSION 2\r\nSTARTTLS\r\n.\r\n";
                       return verb == "QUIT" ? "205 bye\r\n" : "500 what?\r\n";
                   },
                   "QUIT"};

const dialect ftp{starttls::is_ftp_request, starttls::answer_ftp,
                  [](bool) -> std::string { return "220 ready\r\n"; },
                  [](const std::string& verb, const std::string&, bool is_tls) -> std::string
                  {
                      if (verb == "QUIT")
                          return "221 bye\r\n";
                      if (verb == "FEAT")
                          return "211-features\r\n AUTH TLS\r\n PBSZ\r\n PROT\r\n211 end\r\n";
                      if (!is_tls)
                          return "530 not in plain text\r\n";
                      return verb == "USER" ? "331 password\r\n"
                             : verb == "PASS" ? "230 welcome\r\n"
                             : verb == "PWD"  ? "257 \"/\"\r\n"
                                              : "200 ok\r\n";
                  },
                  "QUIT"};

awaitable<pair> answer_irc(const us::stream_reader& reader, const us::stream_writer& writer, std::string_view line,
                           const us::tls_options& options)
{
    return starttls::answer_irc(reader, writer, line, "localhost", options);
}

const dialect irc{starttls::is_irc_request, answer_irc, [](bool) -> std::string { return ""; },
                  [](const std::string& verb, const std::string&, bool is_tls) -> std::string
                  {
                      if (verb == "NICK" && is_tls)
                          return ":localhost 001 nick :welcome\r\n";
                      return verb == "QUIT" ? "ERROR :bye\r\n" : "";
                  },
                  "QUIT"};

awaitable<void> serve_xmpp(std::string space, us::stream_reader reader, us::stream_writer writer)
{
    for (;;)
    {
        std::string header = co_await reader.readuntil(">");
        if (header.find("<?xml") != header.npos)
            header = co_await reader.readuntil(">");
        if (header.find("stream:stream") == header.npos || header.find("</") != header.npos)
            co_return;
        writer.write("<?xml version='1.0'?><stream:stream xmlns='" + space +
                     "' xmlns:stream='http://etherx.jabber.org/streams' id='1' from='localhost' version='1.0'>");
        if (reader.is_tls())
        {
            writer.write("<stream:features/>");
            continue;
        }
        writer.write("<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>");
        std::string request = co_await reader.readuntil(">");
        request.erase(0, request.find('<')); // blanks may be between elements
        if (!starttls::is_xmpp_request(request))
            co_return;
        std::tie(reader, writer) = co_await starttls::answer_xmpp(reader, writer, request);
    }
}

/// One operation and its response of success after the other (RFC 4511).
awaitable<void> serve_ldap(us::stream_reader reader, us::stream_writer writer)
{
    for (;;)
    {
        std::string message = co_await reader.readexactly(2);
        const std::size_t size = static_cast<unsigned char>(message[1]);
        if (size >= 128)
            throw failure("a message longer than expected");
        message += co_await reader.readexactly(size);
        if (starttls::is_ldap_request(message))
        {
            std::tie(reader, writer) = co_await starttls::answer_ldap(reader, writer, message);
            continue;
        }
        const std::string id = message.substr(2, 3);
        const unsigned char operation = static_cast<unsigned char>(message[5]);
        if (operation == 0x42) // unbind
            co_return;
        if (!reader.is_tls())
            throw failure("an operation in plain text");
        const char response = operation == 0x63 ? 0x65 : char(operation + 1);
        writer.write(std::string("\x30\x0c", 2) + id + response + std::string("\x07\x0a\x01\x00\x04\x00\x04\x00", 8));
    }
}

/// A login without a password, and queries without rows.
awaitable<void> serve_postgres(us::stream_reader reader, us::stream_writer writer)
{
    const std::string request = co_await reader.readexactly(8);
    if (!starttls::is_postgres_request(request))
        throw failure("not an SSLRequest");
    std::tie(reader, writer) = co_await starttls::answer_postgres(reader, writer, request);
    const std::string_view ready("Z\0\0\0\5I", 6);
    const auto size_of = [](const std::string& bytes)
    { return std::size_t(static_cast<unsigned char>(bytes[2])) << 8 | static_cast<unsigned char>(bytes[3]); };
    const std::string size = co_await reader.readexactly(4);
    co_await reader.readexactly(size_of(size) - 4);
    writer.write(std::string("R\0\0\0\x08\0\0\0\0", 9).append(ready));
    for (std::string type; (type = co_await reader.read(1)) == "Q";)
    {
        const std::string more = co_await reader.readexactly(4);
        co_await reader.readexactly(size_of(more) - 4);
        writer.write(std::string("I\0\0\0\4", 5).append(ready));
    }
}

/// An export of 1 MiB, of which nothing is read, over TLS alone.
awaitable<void> serve_nbd(us::stream_reader reader, us::stream_writer writer)
{
    using namespace std::string_literals;
    writer.write("NBDMAGICIHAVEOPT\0\3"s);
    const std::string flags = co_await reader.readexactly(4);
    if (flags != "\0\0\0\3"s)
        throw failure("a client of another style");
    for (;;)
    {
        std::string option = co_await reader.readexactly(16);
        const std::string number = option.substr(8, 4);
        option += co_await reader.readexactly(us::detail::parse_big_endian(std::string_view(option).substr(12)));
        const auto reply = [&](const std::string& type, const std::string& data)
        {
            writer.write("\0\3\xe8\x89\x04\x55\x65\xa9"s + number + type + "\0\0\0"s + static_cast<char>(data.size()) +
                         data);
        };
        const std::string ack = "\0\0\0\1"s;
        const bool is_go = number == "\0\0\0\7"s;
        if (starttls::is_nbd_request(option))
            std::tie(reader, writer) = co_await starttls::answer_nbd(reader, writer, option);
        else if (number == "\0\0\0\1"s) // NBD_OPT_EXPORT_NAME
            co_return;
        else if (number == "\0\0\0\2"s) // NBD_OPT_ABORT
        {
            reply(ack, "");
            co_return;
        }
        else if (!reader.is_tls())
            reply("\x80\0\0\5"s, "");
        else if (is_go || number == "\0\0\0\6"s) // NBD_OPT_INFO
        {
            reply("\0\0\0\3"s, "\0\0\0\0\0\0\0\x10\0\0\0\1"s);
            reply(ack, "");
            if (!is_go)
                continue;
            co_await reader.read(); // NBD_CMD_DISC
            co_return;
        }
        else
            reply("\x80\0\0\1"s, "");
    }
}

} // namespace

awaitable<void> serve_protocol(std::string_view name, us::stream_reader reader, us::stream_writer writer)
{
    if (name == "smtp" || name == "lmtp")
        return serve_lines(smtp, std::move(reader), std::move(writer));
    if (name == "imap")
        return serve_lines(imap, std::move(reader), std::move(writer));
    if (name == "pop3")
        return serve_lines(pop3, std::move(reader), std::move(writer));
    if (name == "sieve")
        return serve_lines(sieve, std::move(reader), std::move(writer));
    if (name == "nntp")
        return serve_lines(nntp, std::move(reader), std::move(writer));
    if (name == "ftp")
        return serve_lines(ftp, std::move(reader), std::move(writer));
    if (name == "irc")
        return serve_lines(irc, std::move(reader), std::move(writer));
    if (name == "xmpp" || name == "xmpp-server")
        return serve_xmpp(name == "xmpp" ? "jabber:client" : "jabber:server", std::move(reader), std::move(writer));
    if (name == "ldap")
        return serve_ldap(std::move(reader), std::move(writer));
    if (name == "postgres")
        return serve_postgres(std::move(reader), std::move(writer));
    if (name == "nbd")
        return serve_nbd(std::move(reader), std::move(writer));
    throw failure("there is no server of " + std::string(name));
}

} // namespace test
