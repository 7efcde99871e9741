// What is XMPP's own: XML in every form that XMPP allows and in none that it does not, and domains.

#include "conversation.hpp"
#include "support/catch.hpp"
#include "support/contexts.hpp"
#include "support/stream_links.hpp"

#include <upgradeable_streams/starttls/xmpp.hpp>
#include <upgradeable_streams/tls_context.hpp>

#include <asio/awaitable.hpp>

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace us = upgradeable_streams;
using test::hear;
using test::say;
using us::errc;

namespace
{

const std::string xmpp_header =
    "<?xml version='1.0'?><stream:stream xmlns='jabber:client' to='localhost' version='1.0' "
    "xmlns:stream='http://etherx.jabber.org/streams'>";
const std::string xmpp_opening =
    "<stream:stream xmlns:stream='http://etherx.jabber.org/streams' version='1.0' from='localhost'>";
const std::string xmpp_offer = "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>";
const std::string xmpp_request = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

test::outcome open_xmpp_client(const std::vector<test::step>& steps,
                               us::starttls_policy policy = us::starttls_policy::require)
{
    return test::negotiate(us::starttls::xmpp, steps, {.policy = policy, .domain = "localhost"});
}

} // namespace

TEST_CASE("xmpp: streams, features and the go-ahead are taken in every form of XML that XMPP allows")
{
    const std::string tls = "xmlns = \"urn:ietf:params:xml:ns:xmpp-tls\"";
    for (const std::string& first :
         {"<?xml version=\"1.0\" encoding='UTF-8'?>\r\n" + xmpp_opening + xmpp_offer,
          " \n\t" + xmpp_opening + xmpp_offer, "<?xml\tversion='1.0'?>" + xmpp_opening + xmpp_offer,
          "<?xml\nversion='1.0'\n?>" + xmpp_opening + xmpp_offer,
          "<stream:stream\n id='a>b\"' xmlns:stream\n=\n\"http://etherx.jabber.org/streams\"\nversion='1.0'\n>\n" +
              xmpp_offer,
          xmpp_opening + "<stream:features><a>&lt;&gt;&amp;&apos;&quot;&#9;&#x41; > </a>\n<starttls " + tls +
              " ><required ></required ></starttls ></stream:features >"})
        for (const std::string& proceed :
             {"<proceed " + tls + "/>", "\n<proceed " + tls + " />", "<proceed " + tls + "></proceed>",
              "<proceed " + tls + ">\n <a/> b</proceed >"})
        {
            const test::outcome result =
                open_xmpp_client({hear(xmpp_header), say(first), hear(xmpp_request), say(proceed), test::begin_tls(),
                                  hear(xmpp_header), say(xmpp_opening + "<stream:features/>")});
            CAPTURE(first, proceed);
            CHECK(result.what == "");
            CHECK(result.is_tls);
            CHECK(result.capabilities.empty());
        }
}

TEST_CASE("xmpp: a request may come behind blanks, as elements do")
{
    for (const std::string blanks : {"", " ", "\n", "\r\n\t "})
        CHECK(us::starttls::is_xmpp_request(blanks + xmpp_request));
    for (const std::string none : {"", " ", "\n<a/>", "a<starttls/>"})
        CHECK_FALSE(us::starttls::is_xmpp_request(none));
}

TEST_CASE("xmpp: what XMPP excludes, and what is no XML, is malformed")
{
    const std::string bomb = "<!DOCTYPE a [<!ENTITY b \"&c;&c;\"><!ENTITY c \"&d;&d;\">]>";
    std::vector<std::string> firsts = {
        bomb,
        bomb + xmpp_opening,
        "<!-- a -->" + xmpp_opening,
        "<?a b?>" + xmpp_opening,
        "\n<?xml version='1.0'?>" + xmpp_opening,
        "<?xml version='1.0'?><?xml version='1.0'?>" + xmpp_opening,
        "\xef\xbb\xbf" + xmpp_opening,
        "220 ready\r\n",
        "<stream:stream version='1.0'>",
        "<stream:stream xmlns:stream='jabber:client' version='1.0'>",
        "<stream:stream version='1.0' version='1.0' xmlns:stream='http://etherx.jabber.org/streams'>",
        "<a xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>",
        "</stream:stream>",
        "< >",
        "<>",
        "</>",
        "<//>",
        "<a b>",
        "<a b=c>",
        "<a b='c'd='e'>",
        "<a 'b'>",
        "<a =''>",
        "<a b='&c;'>",
        "<a b='&lt'>",
        "<a b='\x01'>"};
    std::string many = "<stream:stream xmlns:stream='http://etherx.jabber.org/streams' version='1.0'";
    for (int i = 0; i < 5000; ++i)
        many += " a" + std::to_string(i) + "=''";
    firsts.push_back(many + ">");
    for (const std::string inside :
         {"<!-- a -->", "<?a b?>", "<![CDATA[a]]>", "<!DOCTYPE a>", "<a>&b;</a>", "<a>&#;</a>", "<a>&#x;</a>",
          "<a>&#1f;</a>", "<a>& </a>", "<a></b>", "</a>", "<a><b></a></b>", "<a b='1' b='2'/>", "<a b='<'/>", "\x01", "</a b='c'>", "</a/>"})
        firsts.push_back(xmpp_opening + "<stream:features>" + inside + "</stream:features>");
    for (const std::string beside :
         {"a<stream:features/>", "&lt;\n", "<features/>", "<message>a</message>", "</message>"})
        firsts.push_back(xmpp_opening + beside);
    for (const std::string& first : firsts)
    {
        const test::outcome result = open_xmpp_client({hear(xmpp_header), say(first), {test::step::kind::finish}});
        CAPTURE(first);
        CHECK(result.error == errc::reply_malformed);
        CHECK(result.heard == xmpp_header);
    }
    for (const std::string answer : {"<proceed/>", "<proceed xmlns='jabber:client'/>", "<failure/>", "<message/>",
                                     "</proceed>", "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'></failure>"})
    {
        const test::outcome result = open_xmpp_client({hear(xmpp_header),
                                                       say(xmpp_opening + xmpp_offer),
                                                       hear(xmpp_request),
                                                       say(answer),
                                                       {test::step::kind::finish}});
        CAPTURE(answer);
        CHECK(result.error == errc::reply_malformed);
    }
}

TEST_CASE("xmpp: elements that are nested or long without an end are cut off")
{
    for (const std::string& endless : {std::string("<a>"), std::string("<a b='"), std::string("\n"),
                                       std::string("<a/>"), "<stream:stream" + std::string(100, ' ')})
    {
        const test::outcome result = open_xmpp_client(
            {hear(xmpp_header), say(xmpp_opening + "<stream:features>"), {test::step::kind::say_on, endless}});
        CAPTURE(endless);
        CHECK((result.error == errc::reply_too_long || result.error == errc::reply_malformed));
        CHECK(result.grown < 4 * 1024 * 1024);
    }
}

TEST_CASE("xmpp: a stream without a version has no features, and a lookalike of the offer is none")
{
    const std::string old = "<stream:stream xmlns:stream='http://etherx.jabber.org/streams'>";
    for (const std::string& first :
         {old, xmpp_opening + "<stream:features><starttls/></stream:features>",
          xmpp_opening + "<stream:features><a>" + xmpp_request + "</a></stream:features>",
          xmpp_opening + "<stream:features a=\"" +
              std::string("&lt;starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>") + "\"/>"})
    {
        CAPTURE(first);
        CHECK(open_xmpp_client({hear(xmpp_header), say(first), {test::step::kind::finish}}).error ==
              errc::tls_not_offered);
        const test::outcome result = open_xmpp_client({hear(xmpp_header), say(first)}, us::starttls_policy::attempt);
        CHECK(result.what == "");
        CHECK(result.goes_on);
    }
}

TEST_CASE("xmpp: the words of an error are shown, and not those of the stream's header")
{
    const test::outcome result = open_xmpp_client(
        {hear(xmpp_header), say(xmpp_opening + "<stream:error><host-unknown/></stream:error></stream:stream>")});
    CHECK(result.error == errc::request_refused);
    CHECK_THAT(result.what, test::starts_with("XMPP: to \"<stream:stream>\" localhost answered "
                                              "\"<stream:error><host-unknown/></stream:error>\""));
}

TEST_CASE("xmpp: a server that ends its stream refuses")
{
    const test::outcome result = open_xmpp_client({hear(xmpp_header), say(xmpp_opening + "\n</stream:stream>")});
    CHECK(result.error == errc::request_refused);
    CHECK_THAT(result.what, test::contains("answered \"</stream:stream>\""));
    const test::outcome later = open_xmpp_client(
        {hear(xmpp_header), say(xmpp_opening + xmpp_offer), hear(xmpp_request), say("</stream:stream>")});
    CHECK(later.error == errc::request_refused);
}

TEST_CASE("xmpp: where the connection began with TLS, its certificate must have been verified for the domain")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::connection_options how = test::options_of(true);
            how.other_hostnames = {"im.example", "chat.example"};
            test::raw_link link = co_await test::link_with_raw_peer(how);
            const auto ask_for = [&](std::string_view domain, std::string_view name = {})
            {
                return us::starttls::xmpp(
                    link.reader, link.writer,
                    {.policy = us::starttls_policy::never, .tls = {.server_hostname = name}, .domain = domain});
            };
            CHECK_THROWS_MATCHES(ask_for("bank.example"), std::invalid_argument,
                                 test::message_contains("verified for \"localhost\", not for \"bank.example\""));
            CHECK_THROWS_AS(ask_for("localhost", "bank.example"), std::invalid_argument);
            CHECK_FALSE(link.writer.is_closing());
            CHECK_NOTHROW(ask_for("bank.example", "localhost"));
            CHECK_NOTHROW(ask_for("Im.Example"));
            CHECK_NOTHROW(ask_for("localhost."));
        });
}

TEST_CASE("xmpp: where the server is known by its key alone, its name is nothing that was verified")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            us::connection_options how = test::options_of(true);
            test::raw_link known = co_await test::link_with_raw_peer(how);
            const std::string pin = known.writer.get_extra_info<"peercert">()->public_key_pin();
            auto context = us::create_client_context({.verify_peer = false, .public_key_pins = pin});
            how.ssl = &context;
            test::raw_link link = co_await test::link_with_raw_peer(how);
            CHECK_NOTHROW(us::starttls::xmpp(link.reader, link.writer,
                                             {.policy = us::starttls_policy::never, .domain = "bank.example"}));
        });
}

TEST_CASE("xmpp: the certificate must be for the domain, whatever host was connected to, unless another name is given")
{
    const std::string header =
        "<?xml version='1.0'?><stream:stream xmlns='jabber:client' to='im.example' version='1.0' "
        "xmlns:stream='http://etherx.jabber.org/streams'>";
    const std::vector<test::step> steps = {hear(header),
                                           say(xmpp_opening + xmpp_offer),
                                           hear(xmpp_request),
                                           say("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"),
                                           test::begin_tls(),
                                           hear(header),
                                           say(xmpp_opening + "<stream:features/>")};
    const test::outcome refused = test::negotiate(us::starttls::xmpp, steps, {.domain = "im.example"});
    CHECK_THAT(refused.what, test::contains("not accepted for \"im.example\""));
    const test::outcome taken =
        test::negotiate(us::starttls::xmpp, steps, {.tls = {.server_hostname = "localhost"}, .domain = "im.example"});
    CHECK(taken.what == "");
    CHECK(taken.is_tls);
}

TEST_CASE("xmpp: domains that would make other XML are refused at the call, and so is a server without a name")
{
    test::run(
        []() -> asio::awaitable<void>
        {
            const us::connection_options how = test::upgradeable_options();
            test::raw_link link = co_await test::link_with_raw_peer(how);
            for (const std::string_view domain :
                 {"", "a b", "a'b", "a\"b", "a<b", "a>b", "a&amp;b", "a\nb", "user@a", "a/b"})
            {
                CAPTURE(domain);
                CHECK_THROWS_AS(us::starttls::xmpp(link.reader, link.writer, {.domain = domain}),
                                std::invalid_argument);
                CHECK_THROWS_AS(
                    us::starttls::xmpp_server(link.reader, link.writer, {.client_name = domain, .domain = "localhost"}),
                    std::invalid_argument);
            }
            CHECK_FALSE(link.writer.is_closing());
        });
}
