// A conversation that goes well in each protocol, and how it can go wrong in that protocol's own words.

#include "conversation.hpp"

#include <upgradeable_streams/starttls/ftp.hpp>
#include <upgradeable_streams/starttls/imap.hpp>
#include <upgradeable_streams/starttls/irc.hpp>
#include <upgradeable_streams/starttls/lmtp.hpp>
#include <upgradeable_streams/starttls/nntp.hpp>
#include <upgradeable_streams/starttls/pop3.hpp>
#include <upgradeable_streams/starttls/sieve.hpp>
#include <upgradeable_streams/starttls/smtp.hpp>

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
                         {1, "502 what?\r\n", errc::request_refused},
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
                         {1, "480 who?\r\n", errc::tls_not_offered},
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
                      say(":irc.example NOTICE * :*** 670 691\r\n@a=b :irc.example PING :12 3\r\n"),
                      hear("PONG :12 3\r\n"), say("@a=b :irc.example 670 * :go\r\n"), begin_tls()},
            .never = {},
            .not_offered = {{hear("STARTTLS\r\n"), say(":irc.example 421 * STARTTLS :Unknown command\r\n")}},
            .refusals = {{0, ":irc.example 421 * STARTTLS :Unknown command\r\n", errc::tls_not_offered},
                         {0, ":irc.example 451 * :You have not registered\r\n", errc::tls_not_offered},
                         {0, "691 * :STARTTLS failed\r\n", errc::request_refused},
                         {0, ":irc.example NOTICE * :wait\r\nERROR :too busy\r\n", errc::request_refused}},
            .endless = ":irc.example NOTICE * :and on\r\n"};
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
    };
    return all;
}

} // namespace test
