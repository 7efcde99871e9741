// A conversation that goes well in each protocol, and how it can go wrong in that protocol's own words.

#include "conversation.hpp"

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

namespace us = upgradeable_streams;
using us::errc;

namespace test
{

namespace
{

conversation of_smtp(std::string name, negotiator client, const std::string& hello)
{
    return {.name = name,
            .client = client,
            .steps = {say("220-mail.example ESMTP\r\n220 ready\r\n"), hear(hello + " [127.0.0.1]\r\n"),
                      say("250-mail.example\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n"), hear("STARTTLS\r\n"),
                      say("220 2.0.0 Ready to start TLS\r\n"), begin_tls(), hear(hello + " [127.0.0.1]\r\n"),
                      say("250-mail.example\r\n250-PIPELINING\r\n250 SIZE 1000\r\n")},
            .capabilities = {"PIPELINING", "SIZE 1000"},
            .never = {{say("220 ready\r\n"), hear(hello + " [127.0.0.1]\r\n"),
                       say("250-mail.example\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n")},
                      {"STARTTLS", "AUTH PLAIN"}},
            .not_offered = {{say("220 ready\r\n"), hear(hello + " [127.0.0.1]\r\n"),
                             say("250-mail.example\r\n250 SIZE\r\n")},
                            {"SIZE"}},
            .refusals = {{0, "554 no service\r\n", errc::request_refused},
                         {0, "421 too busy\r\n", errc::request_refused},
                         {1, "502 what?\r\n", hello == "EHLO" ? errc::tls_not_offered : errc::request_refused},
                         {1, "550 not you\r\n", errc::request_refused},
                         {1, "250-mail.example\r\n250 XSTARTTLS\r\n", errc::tls_not_offered},
                         {2, "454 4.7.0 TLS not available\r\n", errc::request_refused},
                         {2, "250 ok\r\n", errc::request_refused}},
            .endless = "220-and on\r\n"};
}

conversation of_imap()
{
    const step asks = hear("a1 CAPABILITY\r\n");
    return {.name = "imap",
            .client = us::starttls::imap,
            .steps = {say("* OK ready\r\n"), asks,
                      say("* OK still here\r\n* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\na1 OK done\r\n"),
                      hear("a2 STARTTLS\r\n"), say("* 1 EXISTS\r\na2 OK [CAPABILITY IMAP4rev1 X-PLAIN] go\r\n"),
                      begin_tls(), hear("a3 CAPABILITY\r\n"),
                      say("* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\na3 OK done\r\n")},
            .capabilities = {"IMAP4rev1", "AUTH=PLAIN"},
            .never = {{say("* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n")}, {"IMAP4rev1", "STARTTLS"}},
            .not_offered = {{say("* OK ready\r\n"), asks, say("* CAPABILITY IMAP4rev1 XSTARTTLS\r\na1 OK done\r\n")},
                            {"IMAP4rev1", "XSTARTTLS"}},
            .refusals = {{0, "* BYE too busy\r\n", errc::request_refused},
                         {0, "* NO ready\r\n", errc::reply_malformed},
                         {0, "* OK [CAPABILITY IMAP4rev1] STARTTLS\r\n", errc::tls_not_offered},
                         {0, "* PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] welcome\r\n", errc::tls_not_offered},
                         {1, "* CAPABILITY IMAP4rev1\r\na1 OK STARTTLS\r\n", errc::tls_not_offered},
                         {1, "a1 BAD what?\r\n", errc::request_refused},
                         {1, "* BYE too long\r\n", errc::request_refused},
                         {2, "a2 NO not now\r\n", errc::request_refused},
                         {2, "a1 OK go\r\n", errc::reply_malformed}},
            .endless = "* OK and on\r\n"};
}

conversation of_pop3()
{
    const step asks = hear("CAPA\r\n");
    return {.name = "pop3",
            .client = us::starttls::pop3,
            .steps = {say("+OK ready <1.2@mail.example>\r\n"), asks, say("+OK\r\nTOP\r\nSTLS\r\n.\r\n"),
                      hear("STLS\r\n"), say("+OK go\r\n"), begin_tls(), asks,
                      say("+OK list\r\nSASL PLAIN\r\n..UIDL\r\n.\r\n")},
            .capabilities = {"SASL PLAIN", ".UIDL"},
            .never = {{say("+OK ready\r\n"), asks, say("+OK\r\nSTLS\r\nUSER\r\n.\r\n")}, {"STLS", "USER"}},
            .not_offered = {{say("+OK ready\r\n"), asks, say("-ERR what?\r\n")}, {}},
            .refusals = {{0, "-ERR too busy\r\n", errc::request_refused},
                         {0, "+OKAY\r\n", errc::reply_malformed},
                         {1, "-ERR what?\r\n", errc::tls_not_offered},
                         {1, "+OK STLS\r\nXSTLS\r\nSASL STLS\r\n.\r\n", errc::tls_not_offered},
                         {2, "-ERR not now\r\n", errc::request_refused},
                         {2, "OK\r\n", errc::reply_malformed}},
            .endless = "+OK and on\r\n"};
}

conversation of_sieve()
{
    return {.name = "sieve",
            .client = us::starttls::sieve,
            .steps = {say("\"IMPLEMENTATION\" \"x\"\r\n\"SASL\" \"\"\r\n\"STARTTLS\"\r\nOK \"ready\"\r\n"),
                      hear("STARTTLS\r\n"), say("OK (WARNINGS) {3}\r\ngo\n\r\n"), begin_tls(),
                      say("\"SASL\" \"PLAIN\"\r\n\"SIEVE\" {8}\r\nfileinto\r\nOK\r\n")},
            .capabilities = {"SASL PLAIN", "SIEVE fileinto"},
            .never = {{say("\"SASL\" \"\"\r\n\"STARTTLS\"\r\nOK\r\n")}, {"SASL", "STARTTLS"}},
            .not_offered = {{say("\"SASL\" \"PLAIN\"\r\nOK \"STARTTLS\"\r\n")}, {"SASL PLAIN"}},
            .refusals = {{0, "BYE (TRYLATER) \"too busy\"\r\n", errc::request_refused},
                         {0, "\"XSTARTTLS\"\r\n\"SASL\" \"STARTTLS\"\r\nOK\r\n", errc::tls_not_offered},
                         {0, "STARTTLS\r\n", errc::reply_malformed},
                         {1, "NO {9}\r\nnot\r\nnow!\r\n", errc::request_refused},
                         {1, "BYE\r\n", errc::request_refused},
                         {1, "OKAY\r\n", errc::reply_malformed}},
            .endless = "\"X-AND\" \"on\"\r\n"};
}

conversation of_nntp()
{
    const step asks = hear("CAPABILITIES\r\n");
    return {.name = "nntp",
            .client = us::starttls::nntp,
            .steps = {say("200 ready\r\n"), asks, say("101 list\r\nVERSION 2\r\nSTARTTLS\r\n.\r\n"),
                      hear("STARTTLS\r\n"), say("382 go\r\n"), begin_tls(), asks,
                      say("101\r\nVERSION 2\r\nAUTHINFO USER\r\n.\r\n")},
            .capabilities = {"VERSION 2", "AUTHINFO USER"},
            .never = {{say("201 ready\r\n"), asks, say("101 list\r\nVERSION 2\r\nSTARTTLS\r\n.\r\n")},
                      {"VERSION 2", "STARTTLS"}},
            .not_offered = {{say("200 ready\r\n"), asks, say("500 what?\r\n")}, {}},
            .refusals = {{0, "400 too busy\r\n", errc::request_refused},
                         {0, "502 not you\r\n", errc::request_refused},
                         {0, "2000\r\n", errc::reply_malformed},
                         {1, "500 what?\r\n", errc::tls_not_offered},
                         {1, "480 who?\r\n", errc::request_refused},
                         {1, "200 STARTTLS\r\n", errc::reply_malformed},
                         {1, "101 STARTTLS\r\nXSTARTTLS\r\nX STARTTLS\r\n.\r\n", errc::tls_not_offered},
                         {2, "580 can not\r\n", errc::request_refused},
                         {2, "502 not now\r\n", errc::request_refused},
                         {2, "200 go\r\n", errc::request_refused}},
            .endless = "200 and\r\n101 on\r\n"};
}

conversation of_ftp()
{
    return {.name = "ftp",
            .client = us::starttls::ftp,
            .steps = {say("120 in 2 minutes\r\n220-\r\n hello\r\n220-\r\n221 not yet\r\n220 ready\r\n"),
                      hear("AUTH TLS\r\n"), say("234 go\r\n"), begin_tls(), hear("PBSZ 0\r\n"), say("200 0\r\n"),
                      hear("PROT P\r\n"), say("200-so\r\n200 private\r\n"), hear("FEAT\r\n"),
                      say("211-Features:\r\n UTF8\r\n211-REST STREAM\r\n211 End\r\n")},
            .capabilities = {"UTF8", "REST STREAM"},
            .never = {{say("220 ready\r\n"), hear("FEAT\r\n"), say("211-\r\n AUTH TLS\r\n211 End\r\n")}, {"AUTH TLS"}},
            .not_offered = {{say("220 ready\r\n"), hear("AUTH TLS\r\n"), say("502 what?\r\n"), hear("FEAT\r\n"),
                             say("211-\r\n SIZE\r\n211 End\r\n")},
                            {"SIZE"}},
            .refusals = {{0, "421 too busy\r\n", errc::request_refused},
                         {0, "220+ready\r\n", errc::reply_malformed},
                         {1, "500 what?\r\n", errc::tls_not_offered},
                         {1, "502 what?\r\n", errc::tls_not_offered},
                         {1, "504 TLS?\r\n", errc::tls_not_offered},
                         {1, "530-who?\r\n are you\r\n530 who?\r\n", errc::tls_not_offered},
                         {1, "534 not wanted\r\n", errc::request_refused},
                         {1, "431 not now\r\n", errc::request_refused},
                         {1, "421 bye\r\n", errc::request_refused},
                         {1, "334 ADAT=\r\n", errc::request_refused},
                         {1, "ok\r\n", errc::reply_malformed}},
            .endless = "220-and on\r\n"};
}

conversation of_irc()
{
    return {.name = "irc",
            .client = us::starttls::irc,
            .steps = {hear("STARTTLS\r\n"),
                      say(":irc.example NOTICE * :*** 670 691\r\n@a=b :irc.example PING :12 3\r\n"
                          "@a=b :irc.example 670 * :go\r\n"),
                      begin_tls()},
            .never = {},
            .not_offered = {{hear("STARTTLS\r\n"), say(":irc.example 421 * STARTTLS :Unknown command\r\n")}},
            .refusals = {{0, ":irc.example 421 * STARTTLS :Unknown command\r\n", errc::tls_not_offered},
                         {0, ":irc.example 451 * :You have not registered\r\n", errc::tls_not_offered},
                         {0, "691 * :STARTTLS failed\r\n", errc::request_refused},
                         {0, ":irc.example NOTICE * :wait\r\nERROR :too busy\r\n", errc::request_refused}},
            .endless = ":irc.example NOTICE * :and on\r\n"};
}

const std::string postgres_request("\0\0\0\x08\x04\xd2\x16\x2f", 8);

conversation of_postgres()
{
    return {.name = "postgres",
            .client = us::starttls::postgres,
            .steps = {hear(postgres_request), say("S"), begin_tls()},
            .not_offered = {{hear(postgres_request), say("N")}},
            .refusals = {{0, "N", errc::tls_not_offered},
                         {0, std::string("EFATAL: no more\n\0", 17), errc::request_refused},
                         {0, std::string("E\0\0\0\x15SFATAL\0Mno more\0\0", 22), errc::request_refused}},
            .endless = "EE"};
}

const std::string ldap_request("\x30\x1d\x02\x01\x01\x77\x18\x80\x16" "1.3.6.1.4.1.1466.20037");

/// As servers of other people say it.
std::string ldap_answer(char result)
{
    return std::string("\x30\x0c\x02\x01\x01\x78\x07\x0a\x01") + result + std::string("\x04\0\x04\0", 4);
}

/// As the library's servers say it.
std::string answer_of_ldap(char result, const std::string& words)
{
    const auto element = [](char tag, const std::string& content)
    { return std::string{tag, static_cast<char>(content.size())} + content; };
    return element('\x30', std::string("\x02\x01\x01") +
                               element('\x78', std::string("\x0a\x01") + result + std::string("\x04\0", 2) +
                                                   element('\x04', words) + element('\x8a', "1.3.6.1.4.1.1466.20037")));
}

conversation of_ldap()
{
    return {.name = "ldap",
            .client = us::starttls::ldap,
            .steps = {hear(ldap_request), say(ldap_answer(0)), begin_tls()},
            .not_offered = {{hear(ldap_request), say(ldap_answer(2))}},
            .refusals = {{0, ldap_answer(2), errc::tls_not_offered},
                         {0, ldap_answer(52), errc::tls_not_offered},
                         {0, ldap_answer(1), errc::request_refused}},
            .endless = "\x30\x84\x7f\xff\xff\xff"};
}

asio::awaitable<us::starttls::negotiated> mysql(const us::stream_reader& reader, const us::stream_writer& writer,
                                                const us::starttls::starttls_options& options)
{
    return us::starttls::mysql(reader, writer, options);
}

/// The packet of a server that has all of the lower flags but those in `less`.
std::string mysql_greeting(unsigned less)
{
    const unsigned flags = 0xffff & ~less;
    return std::string("\x4a\0\0\0\x0a" "8.0.36\0" "\x07\0\0\0" "abcdefgh\0", 25) + static_cast<char>(flags & 0xff) +
           static_cast<char>(flags >> 8) + std::string("\x2d\x02\0" "\xdf\xff\x15", 6) + std::string(10, '\0') +
           std::string("ijklmnopqrst\0" "caching_sha2_password\0", 35);
}

conversation of_mysql()
{
    const std::string greeting = mysql_greeting(0);
    return {.name = "mysql",
            .client = mysql,
            .steps = {say(greeting),
                      hear(std::string("\x20\0\0\x01" "\x05\xaa\x0a\0" "\0\0\0\x01\x2d", 13) +
                           std::string(23, '\0')),
                      begin_tls()},
            .greeting = greeting.substr(4),
            .never = {{say(greeting)}},
            .not_offered = {{say(mysql_greeting(0x800))}},
            .refusals = {{0, mysql_greeting(0x800), errc::tls_not_offered},
                         {0, std::string("\x0b\0\0\0\xff\x6a\x04" "go away!", 15), errc::request_refused}},
            .endless = std::string("\0\0\x01\0\x0a", 5)};
}

const std::string nbd_request("IHAVEOPT\0\0\0\5\0\0\0\0", 16);

std::string nbd_greeting(char flags)
{
    return std::string("NBDMAGICIHAVEOPT\0", 17) + flags;
}

/// Of a server to NBD_OPT_STARTTLS.
std::string nbd_reply(const std::string& type, const std::string& words)
{
    return std::string("\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\5", 12) + type + std::string("\0\0\0", 3) +
           static_cast<char>(words.size()) + words;
}

const std::string nbd_ack = nbd_reply(std::string("\0\0\0\1", 4), "");

std::string nbd_error(char type, const std::string& words)
{
    return nbd_reply(std::string("\x80\0\0", 3) + type, words);
}

conversation of_nbd()
{
    const step options = hear(std::string("\0\0\0\3", 4) + nbd_request);
    return {.name = "nbd",
            .client = us::starttls::nbd,
            .steps = {say(nbd_greeting(3)), options, say(nbd_ack), begin_tls()},
            .greeting = nbd_greeting(3),
            .never = {{say(nbd_greeting(3)), hear(std::string("\0\0\0\3", 4))}},
            .not_offered = {{say(nbd_greeting(3)), options, say(nbd_error(2, "not today"))}},
            .refusals = {{0, nbd_greeting(2), errc::tls_not_offered},
                         {0, std::string("NBDMAGIC\0\0\x42\2\x81\x86\x12\x53\0\0", 18), errc::reply_malformed},
                         {1, nbd_error(1, ""), errc::tls_not_offered},
                         {1, nbd_error(4, ""), errc::tls_not_offered},
                         {1, nbd_error(3, "what?"), errc::request_refused},
                         {1, nbd_error(7, "going down"), errc::request_refused}},
            .endless = nbd_greeting(3) + nbd_error(3, "").substr(0, 17) + "\x7f"};
}

conversation of_xmpp(std::string name, negotiator client, const std::string& attributes)
{
    const std::string tls = " xmlns='urn:ietf:params:xml:ns:xmpp-tls'";
    const std::string streams = " xmlns:stream='http://etherx.jabber.org/streams'";
    const std::string header = "<?xml version='1.0'?><stream:stream" + attributes + " version='1.0'" + streams + ">";
    const std::string opening =
        "<?xml version='1.0'?>\n<stream:stream from=\"localhost\"" + streams + " version='1.0'>";
    const std::string again = "<stream:stream id='2'" + streams + " version='1.0'>";
    const std::string offer =
        opening + "<stream:features>\n<starttls" + tls + "><required/></starttls></stream:features>";
    const std::string features = "<stream:features><a xmlns='urn:a'>b &gt; c</a> <d e='f > g'/></stream:features>";
    const std::vector<std::string> children = {"<a xmlns='urn:a'>b &gt; c</a>", "<d e='f > g'/>"};
    const std::string error = "<stream:error><host-unknown/></stream:error>";
    return {.name = name,
            .client = client,
            .options = {.client_name = "us.example", .domain = "localhost"},
            .steps = {hear(header), say(offer), hear("<starttls" + tls + "/>"), say("<proceed" + tls + "/>"),
                      begin_tls(), hear(header), say(again + features)},
            .capabilities = children,
            .greeting = again,
            .never = {{hear(header), say(offer)}, {"<starttls" + tls + "><required/></starttls>"}},
            .not_offered = {{hear(header), say(opening + features)}, children},
            .refusals = {{0, opening + error, errc::request_refused},
                         {0, opening + features, errc::tls_not_offered},
                         {1, "<failure" + tls + "/>", errc::request_refused},
                         {1, error, errc::request_refused}},
            .endless = opening.substr(22)};
}

/// A proxy has no offers, and this client with `attempt` a tunnel in plain text.
asio::awaitable<us::starttls::negotiated> http_connect(const us::stream_reader& reader, const us::stream_writer& writer,
                                                       const us::starttls::starttls_options& options)
{
    using us::starttls_policy;
    us::starttls::starttls_options how = options;
    how.policy = options.policy == starttls_policy::attempt ? starttls_policy::never : options.policy;
    return us::starttls::http_connect(reader, writer, "localhost", 443, how, {.user = "a", .password = "b:c"});
}

conversation of_http_connect()
{
    const step request = hear("CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n"
                              "Proxy-Authorization: Basic YTpiOmM=\r\n\r\n");
    return {.name = "http_connect",
            .client = http_connect,
            .steps = {request, say("HTTP/1.1 200 Connection established\r\nProxy-Agent: a: b\r\n\r\n"), begin_tls()},
            .never = {{request, say("HTTP/1.1 200 OK\r\n\r\n")}},
            .not_offered = {{request, say("HTTP/1.0 299 \r\n\r\n")}},
            .refusals = {{0, "HTTP/1.1 407 Proxy Authentication Required\r\n", errc::request_refused},
                         {0, "HTTP/1.0 503\r\n", errc::request_refused}},
            .endless = "HTTP/1.1 100 Continue\r\n\r\n"};
}

} // namespace

const std::vector<conversation>& conversations()
{
    static const std::vector<conversation> all = {
        of_smtp("smtp", us::starttls::smtp, "EHLO"),
        of_smtp("lmtp", us::starttls::lmtp, "LHLO"),
        of_imap(),
        of_pop3(),
        of_sieve(),
        of_nntp(),
        of_ftp(),
        of_irc(),
        of_postgres(),
        of_mysql(),
        of_nbd(),
        of_ldap(),
        of_xmpp("xmpp", us::starttls::xmpp, " xmlns='jabber:client' to='localhost'"),
        of_xmpp("xmpp_server", us::starttls::xmpp_server,
                " xmlns='jabber:server' xmlns:db='jabber:server:dialback' from='us.example' to='localhost'"),
        of_http_connect(),
    };
    return all;
}

const std::vector<answering>& answerings()
{
    static const std::vector<answering> all = {
        {.name = "smtp",
         .is_request = us::starttls::is_smtp_request,
         .answer = us::starttls::answer_smtp,
         .request = "StartTLS \r\n",
         .granted = "220 2.0.0 Ready to start TLS\r\n",
         .unavailable = "454 4.7.0 TLS not available\r\n",
         .encrypted = "503 5.5.1 TLS is active\r\n",
         .refusals = {{"STARTTLS now\r\n", "501 5.5.4 STARTTLS has no parameters\r\n"}},
         .others = {"STARTTLSX\r\n", "EHLO STARTTLS\r\n", "\r\n", ""}},
        {.name = "imap",
         .is_request = us::starttls::is_imap_request,
         .answer = us::starttls::answer_imap,
         .request = "Tag.1] StartTLS\r\n",
         .granted = "Tag.1] OK Begin TLS negotiation now\r\n",
         .unavailable = "Tag.1] NO TLS is not available\r\n",
         .encrypted = "Tag.1] BAD TLS is active\r\n",
         .refusals = {{"1 STARTTLS {3+}\r\n", "1 BAD STARTTLS has no parameters\r\n"}},
         .others = {"STARTTLS\r\n", "STARTTLS STARTTLS2\r\n", " STARTTLS\r\n", "* STARTTLS\r\n", "+ STARTTLS\r\n",
                    "a{1 STARTTLS\r\n", "a\x01 STARTTLS\r\n", "\xc3\xa4 STARTTLS\r\n", "a LOGIN STARTTLS x\r\n", "\r\n",
                    ""}},
        {.name = "pop3",
         .is_request = us::starttls::is_pop3_request,
         .answer = us::starttls::answer_pop3,
         .request = "stls\r\n",
         .granted = "+OK Begin TLS negotiation\r\n",
         .unavailable = "-ERR TLS is not available\r\n",
         .encrypted = "-ERR TLS is active\r\n",
         .refusals = {{"STLS now\r\n", "-ERR STLS has no parameters\r\n"}},
         .others = {"STARTTLS\r\n", "USER STLS\r\n", "\r\n", ""}},
        {.name = "sieve",
         .is_request = us::starttls::is_sieve_request,
         .answer = us::starttls::answer_sieve,
         .request = "StartTLS\r\n",
         .granted = "OK \"Begin TLS negotiation now\"\r\n",
         .unavailable = "NO \"TLS is not available\"\r\n",
         .encrypted = "NO \"TLS is active\"\r\n",
         .refusals = {{"STARTTLS \"now\"\r\n", "NO \"STARTTLS has no parameters\"\r\n"}},
         .others = {"STLS\r\n", "HAVESPACE STARTTLS 1\r\n", "\r\n", ""}},
        {.name = "nntp",
         .is_request = us::starttls::is_nntp_request,
         .answer = us::starttls::answer_nntp,
         .request = "StartTLS\r\n",
         .granted = "382 Continue with TLS negotiation\r\n",
         .unavailable = "580 Can not initiate TLS negotiation\r\n",
         .encrypted = "502 TLS is active\r\n",
         .refusals = {{"STARTTLS now\r\n", "501 STARTTLS has no parameters\r\n"}},
         .others = {"STLS\r\n", "GROUP STARTTLS\r\n", "\r\n", ""}},
        {.name = "ftp",
         .is_request = us::starttls::is_ftp_request,
         .answer = us::starttls::answer_ftp,
         .request = "auth tls-c\r\n",
         .granted = "234 Begin TLS negotiation\r\n",
         .unavailable = "431 TLS is not available\r\n",
         .encrypted = "503 TLS is active\r\n",
         .refusals = {{"AUTH\r\n", "501 AUTH has one parameter\r\n"},
                      {"AUTH TLS TLS\r\n", "501 AUTH has one parameter\r\n"},
                      {"AUTH SSL\r\n", "504 AUTH TLS is what there is\r\n"},
                      {"AUTH TLS-P\r\n", "504 AUTH TLS is what there is\r\n"},
                      {"AUTH GSSAPI\r\n", "504 AUTH TLS is what there is\r\n"}},
         .others = {"STARTTLS\r\n", "USER AUTH\r\n", "\r\n", ""}},
        {.name = "irc",
         .is_request = us::starttls::is_irc_request,
         .answer = [](const us::stream_reader& reader, const us::stream_writer& writer, std::string_view line,
                      const us::tls_options& options)
         { return us::starttls::answer_irc(reader, writer, line, "irc.example", options); },
         .request = "starttls\r\n",
         .granted = ":irc.example 670 * :STARTTLS successful, go ahead with TLS\r\n",
         .unavailable = ":irc.example 691 * :STARTTLS failed: TLS is not available\r\n",
         .encrypted = ":irc.example 691 * :STARTTLS failed: TLS is active\r\n",
         .refusals = {{"STARTTLS :now\r\n", ":irc.example 691 * :STARTTLS failed: it has no parameters\r\n"}},
         .others = {"NICK STARTTLS\r\n", ":STARTTLS\r\n", "\r\n", ""}},
        {.name = "postgres",
         .is_request = us::starttls::is_postgres_request,
         .answer = us::starttls::answer_postgres,
         .request = postgres_request,
         .granted = "S",
         .unavailable = "N",
         .encrypted = "N",
         .others = {"", postgres_request.substr(0, 7), postgres_request + "x",
                    std::string("\0\0\0\x08\x04\xd2\x16\x30", 8)}},
        {.name = "nbd",
         .is_request = us::starttls::is_nbd_request,
         .answer = us::starttls::answer_nbd,
         .request = nbd_request,
         .granted = nbd_ack,
         .unavailable = nbd_error(2, "TLS is not available"),
         .encrypted = nbd_error(3, "TLS is active"),
         .refusals = {{nbd_request.substr(0, 15) + "\1x", nbd_error(3, "NBD_OPT_STARTTLS has no data")}},
         .others = {"", nbd_request.substr(0, 12), nbd_request.substr(0, 15), nbd_request + "x",
                    nbd_request.substr(0, 15) + "\2x", std::string("IHAVEOPT\0\0\0\6\0\0\0\0", 16)}},
        {.name = "ldap",
         .is_request = us::starttls::is_ldap_request,
         .answer = us::starttls::answer_ldap,
         .request = ldap_request,
         .granted = answer_of_ldap('\x00', ""),
         .unavailable = answer_of_ldap('\x34', "TLS is not available"),
         .encrypted = answer_of_ldap('\x01', "TLS is active"),
         .refusals = {{std::string("\x30\x1f\x02\x01\x01\x77\x1a\x80\x16" "1.3.6.1.4.1.1466.20037\x81\0", 33),
                       answer_of_ldap('\x02', "StartTLS has no value")}},
         .others = {"", ldap_request + "x", ldap_request.substr(0, 30),
                    std::string("\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\0\x80\0", 14)}},
        {.name = "xmpp",
         .is_request = us::starttls::is_xmpp_request,
         .answer = us::starttls::answer_xmpp,
         .request = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>",
         .granted = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>",
         .unavailable = "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:stream>",
         .encrypted = "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:stream>",
         .others = {"", "<starttls/>", "<starttls xmlns='jabber:client'/>",
                    "<auth xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>",
                    "</starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'>",
                    "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'"},
         .closes = true},
    };
    return all;
}

} // namespace test
