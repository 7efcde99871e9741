// A conversation that goes well in each protocol, and how it can go wrong in that protocol's own words.

#include "conversation.hpp"

#include <upgradeable_streams/starttls/lmtp.hpp>
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

} // namespace

const std::vector<conversation>& conversations()
{
    static const std::vector<conversation> all = {
        of_smtp("smtp", us::starttls::smtp, "EHLO"),
        of_smtp("lmtp", us::starttls::lmtp, "LHLO"),
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
    };
    return all;
}

} // namespace test
