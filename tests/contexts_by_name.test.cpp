#include <upgradeable_streams/tls.hpp>
#include <upgradeable_streams/tls_context.hpp>

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/contexts.hpp"
#include "support/openssl.hpp"
#include "support/ssl_pair.hpp"

#include <openssl/ssl.h>

#include <array>
#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using namespace std::string_literals;
using namespace std::string_view_literals;

namespace
{

using context_ptr = test::openssl_ptr<SSL_CTX, SSL_CTX_free>;
using session_ptr = test::openssl_ptr<SSL_SESSION, SSL_SESSION_free>;

/// A certificate whose subject tells which it is; it is for the names that the tests ask for, too.
us::server_context_options identified(const std::string& who)
{
    static std::map<std::string, test::issued> issued;
    auto found = issued.find(who);
    if (found == issued.end())
        found = issued.emplace(who, test::authority().issue({.common_name = who, .dns_names = {who + ".test"}})).first;
    return {.identity = {.certificate_chain_file = found->second.certificate_file,
                         .private_key_file = found->second.key_file}};
}

asio::ssl::context context_of(const std::string& who)
{
    return us::create_server_context(identified(who));
}

asio::ssl::context front_of(std::span<const us::named_context> contexts, bool refuse_unknown = false)
{
    auto options = identified("own");
    options.contexts_by_name = contexts;
    options.refuse_unknown_names = refuse_unknown;
    return us::create_server_context(options);
}

/// A client that verifies nothing, so that it sees every certificate.
struct client
{
    explicit client(int version = TLS1_3_VERSION) : context(SSL_CTX_new(TLS_client_method()))
    {
        SSL_CTX_set_min_proto_version(context.get(), version);
        SSL_CTX_set_max_proto_version(context.get(), version);
    }

    void identify(const test::issued& issued)
    {
        SSL_CTX_use_certificate_chain_file(context.get(), issued.certificate_file.c_str());
        SSL_CTX_use_PrivateKey_file(context.get(), issued.key_file.c_str(), SSL_FILETYPE_PEM);
    }

    test::ssl_pair meet(asio::ssl::context& server, const std::optional<std::string>& name,
                        SSL_SESSION* session = nullptr) const
    {
        SSL* const ssl = SSL_new(context.get());
        if (name)
            SSL_set_tlsext_host_name(ssl, name->c_str());
        if (session)
            SSL_set_session(ssl, session);
        return {ssl, SSL_new(server.native_handle())};
    }

    context_ptr context;
};

std::string shown_certificate(SSL* ssl)
{
    return us::tls_session(ssl).peer_certificate.value().subject();
}

/// The certificate that a client with this name is shown, once the server has told the name too.
std::string certificate_for(asio::ssl::context& server, const std::optional<std::string>& name,
                            int version = TLS1_3_VERSION)
{
    auto pair = client(version).meet(server, name);
    if (!pair.connect())
        return pair.client_error();
    CHECK(us::tls_session(pair.server()).server_name == name);
    return shown_certificate(pair.client());
}

/// The session that a client can resume after a connection.
session_ptr session_after(test::ssl_pair& pair)
{
    REQUIRE(pair.connect());
    session_ptr session(SSL_get1_session(pair.client()));
    REQUIRE(SSL_SESSION_is_resumable(session.get()));
    pair.shut_down();
    return session;
}

} // namespace

TEST_CASE("contexts_by_name: the certificate is that of the name asked for, and the server tells the name")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto mail = context_of("mail");
    auto any = context_of("any");
    auto deep = context_of("deep");
    const us::named_context contexts[] = {{"Mail.Example", &mail}, {"*.example", &any}, {"*.b.example.", &deep}};
    auto front = front_of(contexts);
    CHECK(certificate_for(front, "mail.example", version) == "CN=mail");
    CHECK(certificate_for(front, "MAIL.eXaMple", version) == "CN=mail");
    CHECK(certificate_for(front, "mail.example.", version) == "CN=mail");
    CHECK(certificate_for(front, "www.example", version) == "CN=any");
    CHECK(certificate_for(front, "b.example", version) == "CN=any");
    CHECK(certificate_for(front, "a.b.example", version) == "CN=deep");
    for (const std::string unknown : {"example", "a.a.example", "a.a.b.example", "mail.example.net", "x"})
        CHECK(certificate_for(front, unknown, version) == "CN=own");
    CHECK(certificate_for(front, std::nullopt, version) == "CN=own");
}

TEST_CASE("contexts_by_name: the contexts may go once the server's was made, and it may go before its connections")
{
    std::optional<asio::ssl::context> front;
    {
        auto mail = context_of("mail");
        const std::string name = "mail.example";
        const us::named_context contexts[] = {{name, &mail}};
        front = front_of(contexts);
    }
    auto pair = client().meet(*front, "mail.example");
    front.reset();
    CHECK(pair.connect());
    CHECK(shown_certificate(pair.client()) == "CN=mail");
}

TEST_CASE("refuse_unknown_names: no name and an unknown one are refused with an alert, which both ends tell")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto mail = context_of("mail");
    const us::named_context contexts[] = {{"mail.example", &mail}};
    auto front = front_of(contexts, true);
    CHECK(certificate_for(front, "mail.example", version) == "CN=mail");
    for (const std::optional<std::string>& name : {std::optional("www.example"s), std::optional<std::string>()})
    {
        auto pair = client(version).meet(front, name);
        CHECK(!pair.connect());
        CHECK_THAT(pair.client_error(), test::contains("unrecognized name"));
        CHECK_THAT(pair.server_error(), test::contains("unrecognized name"));
    }
}

TEST_CASE("refuse_unknown_names: what the server's own certificate is for is known, also without contexts_by_name")
{
    auto front = front_of({}, true);
    CHECK(certificate_for(front, "own.test") == "CN=own");
    CHECK(certificate_for(front, "OWN.test.") == "CN=own");
    CHECK_THAT(certificate_for(front, "mail.test"), test::contains("unrecognized name"));
    CHECK_THAT(certificate_for(front, "own"), test::contains("unrecognized name")); // the common name
    CHECK_THAT(certificate_for(front, std::nullopt), test::contains("unrecognized name"));
}

TEST_CASE("refuse_unknown_names: a wildcard of the server's own certificate is for names of one more label")
{
    const auto own = test::authority().issue({.common_name = "own", .dns_names = {"*.wild.test", "Single"}});
    auto front = us::create_server_context({.identity = {.certificate_chain_file = own.certificate_file,
                                                         .private_key_file = own.key_file},
                                            .refuse_unknown_names = true});
    for (const std::string name : {"a.wild.test", "A.Wild.Test", "single"})
        CHECK(certificate_for(front, name) == "CN=own");
    for (const std::string name : {"wild.test", "a.b.wild.test", "a.other.test", "double"})
        CHECK_THAT(certificate_for(front, name), test::contains("unrecognized name"));
}

// What the named context demands

TEST_CASE("contexts_by_name: client certificates are demanded by the named context only, and of its authorities")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const std::string unrelated = test::unrelated_authority().ca_file();
    auto options = identified("closed");
    options.client_ca_file = unrelated;
    auto closed = us::create_server_context(options);
    auto open = context_of("open");
    const us::named_context contexts[] = {{"closed.test", &closed}, {"open.test", &open}};
    auto front = front_of(contexts);

    for (const std::optional<std::string>& name : {std::optional("open.test"s), std::optional<std::string>()})
        CHECK_THAT(certificate_for(front, name, version), test::starts_with("CN=o"));
    auto without = client(version).meet(front, "closed.test");
    CHECK(!without.connect());
    CHECK_THAT(without.server_error(), test::contains("peer did not return a certificate"));

    client stranger(version);
    stranger.identify(test::client_certificate());
    auto refused = stranger.meet(front, "closed.test");
    CHECK(!refused.connect());
    CHECK_THAT(refused.server_error(), test::contains("certificate verify failed"));

    client member(version);
    member.identify(test::unrelated_authority().issue({.common_name = "member", .client_auth = true}));
    auto accepted = member.meet(front, "closed.test");
    REQUIRE(accepted.connect());
    CHECK(shown_certificate(accepted.server()) == "CN=member");
    const auto* const names = SSL_get0_peer_CA_list(accepted.client());
    REQUIRE(sk_X509_NAME_num(names) == 1);
    const auto* const entry = X509_NAME_get_entry(sk_X509_NAME_value(names, 0), 0);
    const auto* const name = X509_NAME_ENTRY_get_data(entry);
    const std::string_view text(reinterpret_cast<const char*>(ASN1_STRING_get0_data(name)),
                                static_cast<std::size_t>(ASN1_STRING_length(name)));
    CHECK(text == "unrelated test CA");
}

TEST_CASE("contexts_by_name: a named context that demands no certificate is not bound by the server's own demand")
{
    auto open = context_of("open");
    const us::named_context contexts[] = {{"open.test", &open}};
    auto options = identified("own");
    const std::string ca_file = test::authority().ca_file();
    options.client_ca_file = ca_file;
    options.contexts_by_name = contexts;
    auto front = us::create_server_context(options);
    CHECK(certificate_for(front, "open.test") == "CN=open");
    CHECK(!client().meet(front, "own.test").connect());
    CHECK(!client().meet(front, std::nullopt).connect());
}

TEST_CASE("contexts_by_name: ALPN is that of the named context, and so is the refusal")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto options = identified("mail");
    options.alpn_protocols = "imap";
    auto mail = us::create_server_context(options);
    auto web = context_of("web");
    const us::named_context contexts[] = {{"mail.test", &mail}, {"web.test", &web}};
    options = identified("own");
    options.alpn_protocols = "smtp";
    options.contexts_by_name = contexts;
    auto front = us::create_server_context(options);
    const auto chosen = [&](const std::string& name, std::string_view offered)
    {
        client offering(version);
        SSL_CTX_set_alpn_protos(offering.context.get(), reinterpret_cast<const unsigned char*>(offered.data()),
                                unsigned(offered.size()));
        auto pair = offering.meet(front, name);
        return pair.connect() ? us::tls_session(pair.client()).alpn_protocol.value_or("none") : "refused";
    };
    CHECK(chosen("mail.test", "\x04imap") == "imap");
    CHECK(chosen("mail.test", "\x04smtp") == "refused");
    CHECK(chosen("own.test", "\x04smtp") == "smtp");
    CHECK(chosen("own.test", "\x04imap") == "refused");
    CHECK(chosen("web.test", "\x04imap") == "none");
}

TEST_CASE("contexts_by_name: the versions, ciphers and options of the named context hold")
{
    auto modern = context_of("modern");
    SSL_CTX_set_min_proto_version(modern.native_handle(), TLS1_3_VERSION);
    auto old = context_of("old");
    SSL_CTX_set_max_proto_version(old.native_handle(), TLS1_2_VERSION);
    SSL_CTX_set_cipher_list(old.native_handle(), "ECDHE-ECDSA-CHACHA20-POLY1305");
    auto no_tickets = context_of("no tickets");
    no_tickets.set_options(SSL_OP_NO_TICKET);
    SSL_CTX_set_num_tickets(no_tickets.native_handle(), 0);
    const us::named_context contexts[] = {
        {"modern.test", &modern}, {"old.test", &old}, {"no-tickets.test", &no_tickets}};
    auto front = front_of(contexts);
    CHECK(certificate_for(front, "modern.test", TLS1_3_VERSION) == "CN=modern");
    CHECK_THAT(certificate_for(front, "modern.test", TLS1_2_VERSION), test::contains("protocol version"));
    CHECK_THAT(certificate_for(front, "old.test", TLS1_3_VERSION), test::contains("protocol version"));
    auto pair = client(TLS1_2_VERSION).meet(front, "old.test");
    CHECK(pair.connect());
    CHECK(us::tls_session(pair.client()).cipher.name == "ECDHE-ECDSA-CHACHA20-POLY1305");

    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto without = client(version).meet(front, "no-tickets.test");
    CHECK(without.connect());
    CHECK(!SSL_SESSION_has_ticket(SSL_get_session(without.client())));

    front.set_options(SSL_OP_NO_TICKET | asio::ssl::context::no_tlsv1_3); // its own affair
    auto with = client(TLS1_3_VERSION).meet(front, "modern.test");
    CHECK(with.connect());
    CHECK(SSL_SESSION_has_ticket(SSL_get_session(with.client())));
    CHECK_THAT(certificate_for(front, "own.test", TLS1_3_VERSION), test::contains("protocol version"));
}

TEST_CASE("contexts_by_name: how certificates are verified is the named context's affair")
{
    const std::string ca_file = test::authority().ca_file();
    const auto with_flags = [&](unsigned long flags, us::server_context_options options)
    {
        options.client_ca_file = ca_file;
        auto context = us::create_server_context(options);
        X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(context.native_handle()), flags);
        return context;
    };
    auto plain = with_flags(0, identified("plain"));
    auto strict = with_flags(X509_V_FLAG_CRL_CHECK, identified("strict"));
    const us::named_context contexts[] = {{"plain.test", &plain}, {"strict.test", &strict}};
    auto options = identified("own");
    options.contexts_by_name = contexts;
    client known;
    known.identify(test::client_certificate());
    for (const unsigned long flags : {0ul, static_cast<unsigned long>(X509_V_FLAG_CRL_CHECK)})
    {
        auto front = with_flags(flags, options);
        CHECK(known.meet(front, "plain.test").connect());
        CHECK(!known.meet(front, "strict.test").connect()); // there is no CRL
        CHECK(known.meet(front, "own.test").connect() == (flags == 0));
    }
}

TEST_CASE("contexts_by_name: what was set on the SSL object itself stays")
{
    auto open = context_of("open");
    const us::named_context contexts[] = {{"open.test", &open}};
    auto front = front_of(contexts);
    static int calls;
    calls = 0;
    auto pair = client().meet(front, "open.test");
    SSL_set_verify(pair.server(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    CHECK(!pair.connect());
    CHECK_THAT(pair.server_error(), test::contains("peer did not return a certificate"));

    client known;
    known.identify(test::client_certificate());
    auto verifying = known.meet(front, "open.test");
    SSL_set_verify(verifying.server(), SSL_VERIFY_PEER, [](int, X509_STORE_CTX*) { return ++calls; });
    CHECK(verifying.connect());
    CHECK(calls > 0);

    const std::string ca_file = test::authority().ca_file();
    us::server_context_options verified = identified("verified");
    verified.client_ca_file = ca_file;
    auto verified_context = us::create_server_context(verified);
    const us::named_context of_clients[] = {{"verified.test", &verified_context}};
    auto other_front = front_of(of_clients);
    client deep;
    const auto issued = test::authority().issue({.common_name = "deep", .client_auth = true, .by_intermediate = true});
    deep.identify(issued);
    CHECK(deep.meet(other_front, "verified.test").connect());
    auto shallow = deep.meet(other_front, "verified.test");
    SSL_set_verify_depth(shallow.server(), 0);
    CHECK_FALSE(shallow.connect());
}

TEST_CASE("contexts_by_name: a verify callback of the named context is called, and none of the server's own")
{
    const bool own_calls = GENERATE(false, true);
    const std::string ca_file = test::authority().ca_file();
    static std::string called;
    const auto with_callback = [&](us::server_context_options options, const std::string& who)
    {
        options.client_ca_file = ca_file;
        auto context = us::create_server_context(options);
        if (!who.empty())
            context.set_verify_callback([who](bool, asio::ssl::verify_context&) { return called = who, true; });
        return context;
    };
    auto calling = with_callback(identified("calling"), "calling");
    auto silent = with_callback(identified("silent"), "");
    const us::named_context contexts[] = {{"calling.test", &calling}, {"silent.test", &silent}};
    auto options = identified("own");
    options.contexts_by_name = contexts;
    auto front = with_callback(options, own_calls ? "own" : "");
    client stranger;
    stranger.identify(test::unrelated_authority().issue({.common_name = "stranger", .client_auth = true}));
    client known;
    known.identify(test::client_certificate());
    for (const std::string who : {"calling", "silent", "own"})
    {
        CHECK(known.meet(front, who + ".test").connect());
        called.clear();
        const bool calls = who == "calling" || (who == "own" && own_calls);
        CHECK(stranger.meet(front, who + ".test").connect() == calls);
        CHECK(called == (calls ? who : ""));
    }
}

TEST_CASE("contexts_by_name: what the server's own context tolerates a named one does not")
{
    const std::string ca_file = test::authority().ca_file();
    auto strict_options = identified("strict");
    strict_options.client_ca_file = ca_file;
    auto strict = us::create_server_context(strict_options);
    const us::named_context contexts[] = {{"strict.test", &strict}};
    client stranger;
    stranger.identify(test::unrelated_authority().issue({.common_name = "stranger", .client_auth = true}));
    auto accepting = front_of(contexts);
    SSL_CTX_set_verify(accepting.native_handle(), SSL_VERIFY_PEER, [](int, X509_STORE_CTX*) { return 1; });
    CHECK(stranger.meet(accepting, "own.test").connect());
    CHECK_FALSE(stranger.meet(accepting, "strict.test").connect());

    client server_as_client;
    server_as_client.identify(test::localhost_certificate());
    auto of_any_purpose = front_of(contexts);
    SSL_CTX_set_purpose(of_any_purpose.native_handle(), X509_PURPOSE_ANY);
    CHECK_FALSE(server_as_client.meet(of_any_purpose, "strict.test").connect());
}

// Sessions

TEST_CASE("contexts_by_name: a session is resumed under its name, which the server tells again")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto mail = context_of("mail");
    const us::named_context contexts[] = {{"mail.example", &mail}};
    auto front = front_of(contexts);
    const client caller(version);
    for (const std::optional<std::string>& name :
         {std::optional("mail.example"s), std::optional("unknown.example"s), std::optional<std::string>()})
    {
        auto first = caller.meet(front, name);
        const auto session = session_after(first);
        auto second = caller.meet(front, name, session.get());
        CHECK(second.connect());
        CHECK(SSL_session_reused(second.client()));
        const us::tls_session told(second.server());
        CHECK(told.session_reused);
        CHECK(told.server_name == name);
        CHECK(shown_certificate(second.client()) == (name == "mail.example" ? "CN=mail" : "CN=own"));
    }
}

TEST_CASE("contexts_by_name: a session of one name is not resumed under another, whichever context is behind it")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const std::string ca_file = test::authority().ca_file();
    auto options = identified("closed");
    options.client_ca_file = ca_file;
    auto closed = us::create_server_context(options);
    auto open = context_of("open");
    asio::ssl::context foreign(asio::ssl::context::tls_server); // has no session id context
    foreign.use_certificate_chain_file(test::localhost_certificate().certificate_file);
    foreign.use_private_key_file(test::localhost_certificate().key_file, asio::ssl::context::pem);
    const us::named_context contexts[] = {
        {"closed.test", &closed}, {"open.test", &open}, {"*.test", &open}, {"foreign.test", &foreign}};
    auto front = front_of(contexts);
    const client anonymous(version);
    client known(version);
    known.identify(test::client_certificate());
    const std::optional<std::string> names[] = {"closed.test", "open.test", "a.test", "b.test",
                                                "foreign.test", "unknown", std::nullopt};
    for (const auto& name : names)
    {
        auto first = (name == "closed.test" ? known : anonymous).meet(front, name);
        const auto session = session_after(first);
        for (const auto& other : names)
        {
            if (other == name)
                continue;
            INFO(name.value_or("none") << ", " << other.value_or("none"));
            auto second = anonymous.meet(front, other, session.get());
            CHECK(second.connect() == (other != "closed.test"));
            CHECK(!SSL_session_reused(second.server()));
            if (other == "closed.test")
                CHECK_THAT(second.server_error(), test::contains("peer did not return a certificate"));
            session_ptr again(SSL_SESSION_dup(session.get())); // OpenSSL gives up those of failed handshakes
            auto third = known.meet(front, name, again.get());
            CHECK(third.connect());
            CHECK(SSL_session_reused(third.client()));
            third.shut_down();
        }
    }
}

TEST_CASE("contexts_by_name: a session is not resumed with another server's context")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto mail = context_of("mail");
    const us::named_context contexts[] = {{"mail.example", &mail}};
    auto one = front_of(contexts);
    auto two = front_of(contexts);
    std::array<unsigned char, 80> keys{}; // as of servers that share their tickets
    for (asio::ssl::context* const each : {&one, &two})
        REQUIRE(SSL_CTX_set_tlsext_ticket_keys(each->native_handle(), keys.data(), long(keys.size())));
    const client caller(version);
    auto first = caller.meet(one, "mail.example");
    const auto session = session_after(first);
    auto second = caller.meet(two, "mail.example", session.get());
    CHECK(second.connect());
    CHECK(!SSL_session_reused(second.server()));
}

// Hostile clients

TEST_CASE("contexts_by_name: a malformed server_name is refused with decode_error")
{
    auto mail = context_of("mail");
    const us::named_context contexts[] = {{"mail.example", &mail}};
    auto front = front_of(contexts);
    const std::string name = "mail.example";
    const auto refused = [&](const std::function<void(std::string&, std::size_t)>& spoil)
    {
        auto pair = client().meet(front, name);
        pair.step_client();
        std::string hello = pair.take_from_client();
        spoil(hello, hello.find(name));
        pair.give_to_server(hello);
        pair.step_server();
        pair.step_client();
        return std::pair(pair.server_error(), pair.client_error());
    };
    CHECK(refused([](std::string&, std::size_t) {}).first.empty());
    // before the name: extension type, its size, the list's, the entry's type and size
    for (const auto& spoil : std::vector<std::function<void(std::string&, std::size_t)>>{
             [](std::string& hello, std::size_t at) { ++hello[at - 1]; }, // sizes that run over the end
             [](std::string& hello, std::size_t at) { --hello[at - 1]; }, // something behind the name
             [](std::string& hello, std::size_t at) { ++hello[at - 4]; },
             [](std::string& hello, std::size_t at) { --hello[at - 4]; },
             [](std::string& hello, std::size_t at) { hello[at - 3] = 1; }, // an unknown type
             [](std::string& hello, std::size_t at) { hello[at - 2] = '\x7f'; },
             [](std::string& hello, std::size_t at) { hello[at + 4] = '\0'; },
             [](std::string& hello, std::size_t at) { hello[at + 1] = '/'; },
             [](std::string& hello, std::size_t at) { hello[at + 1] = '\n'; },
             [](std::string& hello, std::size_t at) { hello[at + 1] = '*'; },
             [](std::string& hello, std::size_t at) { hello[at] = '.'; },
             [](std::string& hello, std::size_t at) { hello[at + 3] = '.'; },
             [](std::string& hello, std::size_t at)
             { hello[at - 4] = hello[at - 1] = 0; }, // an empty list with much behind it
         })
    {
        const auto [server_error, client_error] = refused(spoil);
        CHECK_THAT(server_error, test::contains("bad extension"));
        CHECK_THAT(client_error, test::contains("decode error"));
    }
}

TEST_CASE("contexts_by_name: the second ClientHello cannot ask for another name than the first")
{
    const std::string ca_file = test::authority().ca_file();
    auto options = identified("closed");
    options.client_ca_file = ca_file;
    auto closed = us::create_server_context(options);
    auto open = context_of("open");
    const us::named_context contexts[] = {{"closed.test", &closed}, {"open.test", &open}};
    auto front = front_of(contexts);
    client asking_twice; // its first key share is of a group that the server does not have
    REQUIRE(SSL_CTX_set1_groups_list(asking_twice.context.get(), "ffdhe2048:X25519"));
    const auto meet = [&](const std::string& first, const char* second)
    {
        auto pair = asking_twice.meet(front, first);
        pair.step_client();
        pair.step_server();
        SSL_set_tlsext_host_name(pair.client(), second);
        return std::pair(pair.connect(), pair.server_error());
    };
    CHECK(meet("open.test", "open.test").first);
    CHECK(meet("unknown.test", "unknown.test").first);
    CHECK(meet("open.test", "OPEN.test").first);
    for (const char* const other : {"closed.test", "unknown.test", static_cast<const char*>(nullptr)})
    {
        const auto [connected, error] = meet("open.test", other);
        CHECK(!connected);
        CHECK_THAT(error, test::contains("bad extension"));
    }
    CHECK_THAT(meet("unknown.test", "closed.test").second, test::contains("peer did not return a certificate"));
}

// Wrong options

TEST_CASE("contexts_by_name: what cannot be is std::invalid_argument, and the name is told")
{
    auto mail = context_of("mail");
    const auto refused = [](std::vector<us::named_context> contexts, const std::string& reason)
    { CHECK_THROWS_MATCHES(front_of(contexts), std::invalid_argument, test::message_contains(reason)); };
    const std::string long_name = std::string(250, 'a') + ".test";
    refused({{"", &mail}}, "is empty");
    refused({{".", &mail}}, "is empty");
    for (const std::string_view bad : {"*", "*.", "*..", "*a.test", "a*.test", "a.*.test", "*.*.test", "mail.*"})
        refused({{bad, &mail}}, "\"" + std::string(bad) + "\" is no wildcard");
    for (const std::string_view bad : {".test", "a..test", "a.test..", "*..test"})
        refused({{bad, &mail}}, "\"" + std::string(bad) + "\" has an empty label");
    for (const std::string_view bad : {"a\tb.test"sv, "\xc3\xa4.test"sv, "a\n.test"sv})
        refused({{bad, &mail}}, "printable ASCII");
    refused({{"a b.test", &mail}}, "holds a space");
    refused({{"a\0b.test"sv, &mail}}, "contexts_by_name: \"a"); // and what() ends
    refused({{long_name, &mail}}, "longer than");
    for (const std::string_view bad : {"127.0.0.1", "::1"})
        refused({{bad, &mail}}, "is an address");
    for (const std::string_view bad : {"a!b.test", "a/b", "*.a:b"})
        refused({{bad, &mail}}, "\"" + std::string(bad) + "\" holds a character that no client asks for");
    refused({{"mail.test", nullptr}}, "has no context");
    auto of_a_client = us::create_client_context({.verify_peer = false});
    refused({{"mail.test", &of_a_client}}, "without a certificate");
    refused({{"mail.test", &mail}, {"Mail.Test.", &mail}}, "is named twice");
    refused({{"*.test", &mail}, {"*.TEST", &mail}}, "is named twice");
    const us::named_context contexts[] = {{"mail.test", &mail}, {"*.mail.test", &mail}};
    auto front = front_of(contexts);
    refused({{"mail.test", &front}}, "chooses by name itself");
}
