#include <upgradeable_streams/detail/credentials.hpp>
#include <upgradeable_streams/detail/revocation.hpp>
#include <upgradeable_streams/detail/ticket_keys.hpp>
#include <upgradeable_streams/tls_context.hpp>
#include <upgradeable_streams/tls_stream.hpp>
#include <upgradeable_streams/upgradeable_stream.hpp>

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/hex.hpp"
#include "support/openssl.hpp"
#include "support/process.hpp"
#include "support/raw_peer.hpp"
#include "support/run.hpp"
#include "support/ssl_pair.hpp"
#include "support/temporary_directory.hpp"
#include "support/thread.hpp"
#include "support/tlsa_records.hpp"

#include <asio/ip/tcp.hpp>
#include <asio/read.hpp>
#include <asio/redirect_error.hpp>
#include <asio/ssl/stream.hpp>
#include <asio/use_awaitable.hpp>
#include <openssl/conf.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using asio::ip::tcp;
using us::tls_role;
using namespace std::chrono_literals;
using namespace std::string_literals;
using namespace std::string_view_literals;

namespace
{

us::key_pair_options identity_of(const test::issued& issued)
{
    return {.certificate_chain_file = issued.certificate_file, .private_key_file = issued.key_file};
}

us::server_context_options localhost()
{
    return {.identity = identity_of(test::localhost_certificate())};
}

const std::string& ca_file()
{
    static const std::string file = test::authority().ca_file();
    return file;
}

struct encounter
{
    std::error_code error; ///< Of start_tls.
    std::optional<us::tls_session> session;
    std::string session_id_context;
    std::string received;
    std::error_code end; ///< Of the last read.
    std::string peer_error;
    std::optional<us::tls_session> peer_session;
};

/// Lets a stream with `context` meet a raw peer, and tells how it went for both.
encounter meet(asio::ssl::context& context, tls_role role, const test::tls_settings& settings,
               const std::function<void(test::raw_peer&)>& then = {})
{
    return test::run(
        [&]() -> asio::awaitable<encounter>
        {
            test::raw_listener listener;
            tcp::socket socket(co_await asio::this_coro::executor);
            socket.connect(test::loopback(listener.port()));
            auto peer = test::run_in_thread(
                [&, raw = listener.accept()]() mutable
                {
                    test::raw_peer mine = std::move(raw);
                    std::pair<std::string, std::optional<us::tls_session>> result;
                    try
                    {
                        role == tls_role::client ? mine.tls_accept(settings) : mine.tls_connect(settings);
                        result.second.emplace(mine.ssl());
                        if (then)
                            then(mine);
                        mine.tls_shutdown();
                    }
                    catch (const std::exception& error)
                    {
                        result.first = error.what();
                    }
                    return result;
                });
            encounter result;
            {
                us::upgradeable_stream<tcp::socket> stream(
                    std::move(socket), {.ssl = &context, .role = role, .server_hostname = "localhost"});
                try
                {
                    co_await stream.start_tls();
                    result.session = stream.session();
                    unsigned size = 0;
                    const unsigned char* id =
                        SSL_SESSION_get0_id_context(SSL_get_session(stream.native_handle()), &size);
                    result.session_id_context.assign(id, id + size);
                    asio::error_code end;
                    co_await asio::async_read(stream, asio::dynamic_buffer(result.received),
                                              asio::redirect_error(asio::use_awaitable, end));
                    result.end = end;
                    co_await stream.async_shutdown({}, asio::redirect_error(asio::use_awaitable, end));
                }
                catch (const std::system_error& error)
                {
                    result.error = error.code();
                }
            }
            std::tie(result.peer_error, result.peer_session) = co_await test::joined(std::move(peer));
            co_return result;
        });
}

test::tls_settings peer_of(tls_role role)
{
    return role == tls_role::client ? test::localhost_server() : test::localhost_client();
}

asio::ssl::context context_of(tls_role role)
{
    if (role == tls_role::client)
        return us::create_client_context({.ca_file = ca_file()});
    return us::create_server_context(localhost());
}

std::string slurp(const std::string& file)
{
    std::ifstream stream(file);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

/// A copy of the key in `file`, encrypted with `password`.
std::string encrypted_key(const test::temporary_directory& directory, const std::string& file, const char* password)
{
    const test::openssl_ptr<BIO, BIO_free_all> in(BIO_new_file(file.c_str(), "r"));
    const test::openssl_ptr<EVP_PKEY, EVP_PKEY_free> key(PEM_read_bio_PrivateKey(in.get(), nullptr, nullptr, nullptr));
    const test::openssl_ptr<BIO, BIO_free_all> out(BIO_new(BIO_s_mem()));
    test::openssl_check(PEM_write_bio_PKCS8PrivateKey(out.get(), key.get(), EVP_aes_256_cbc(), password,
                                                      int(std::string_view(password).size()), nullptr, nullptr),
                        "PEM_write_bio_PKCS8PrivateKey");
    char* data = nullptr;
    const long size = BIO_get_mem_data(out.get(), &data);
    return directory.write("encrypted.key", std::string_view(data, std::size_t(size)));
}

void offer_alpn(test::tls_settings& client, std::string_view wire)
{
    client.adjust = [wire](SSL_CTX* context)
    { SSL_CTX_set_alpn_protos(context, reinterpret_cast<const unsigned char*>(wire.data()), unsigned(wire.size())); };
}

/// Whether `create` fails with an error of OpenSSL's that names `what`.
void refused_by_openssl(const std::function<void()>& create, const std::string& what)
{
    CHECK_THROWS_MATCHES(create(), std::system_error, test::message_contains(what));
    try
    {
        create();
    }
    catch (const std::system_error& error)
    {
        CHECK(error.code().category() == asio::error::get_ssl_category());
        CHECK(error.code().value() != 0);
    }
}

} // namespace

// Protocol settings

TEST_CASE("contexts: TLS 1.2 and 1.3 are spoken, TLS 1.1 is refused")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    auto context = context_of(role);
    auto settings = peer_of(role);
    settings.min_version = settings.max_version = TLS1_2_VERSION;
    CHECK(meet(context, role, settings).session->version == "TLSv1.2");
    settings.min_version = settings.max_version = TLS1_3_VERSION;
    CHECK(meet(context, role, settings).session->version == "TLSv1.3");
    settings.min_version = settings.max_version = TLS1_1_VERSION;
    const auto refused = meet(context, role, settings);
    CHECK(refused.error.category() == asio::error::get_ssl_category());
    CHECK(!refused.session);
    CHECK_THAT(refused.peer_error, test::contains("protocol"));
}

TEST_CASE("contexts: in TLS 1.2 only ECDHE with AEAD ciphers is spoken")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    auto context = context_of(role);
    auto settings = peer_of(role);
    settings.max_version = TLS1_2_VERSION;
    const auto meet_with = [&](const char* ciphers)
    {
        settings.adjust = [ciphers](SSL_CTX* c) { test::openssl_check(SSL_CTX_set_cipher_list(c, ciphers), ciphers); };
        return meet(context, role, settings);
    };
    for (const char* cipher :
         {"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"})
    {
        const auto met = meet_with(cipher);
        REQUIRE(met.session);
        CHECK(met.session->cipher.name == cipher);
    }
    for (const char* cipher : {"ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA", "ECDHE-ECDSA-AES128-CCM"})
        CHECK(meet_with(cipher).error);
}

TEST_CASE("contexts: in TLS 1.3 key exchange is over elliptic curves only")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    auto context = context_of(role);
    auto settings = peer_of(role);
    const auto meet_with = [&](const char* group)
    {
        settings.adjust = [group](SSL_CTX* c) { test::openssl_check(SSL_CTX_set1_groups_list(c, group), group); };
        return meet(context, role, settings);
    };
    for (const char* group : {"X25519", "P-256", "P-384"})
        CHECK(meet_with(group).session);
    for (const char* group : {"ffdhe2048", "ffdhe8192"})
        CHECK(meet_with(group).error);
}

TEST_CASE("create_server_context: the server's order of ciphers decides, not the client's")
{
    auto context = us::create_server_context(localhost());
    auto settings = test::localhost_client();
    settings.max_version = TLS1_2_VERSION;
    std::string chosen[2];
    const char* const orders[2] = {"ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384",
                                   "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"};
    for (int i = 0; i < 2; ++i)
    {
        settings.adjust = [order = orders[i]](SSL_CTX* c) { SSL_CTX_set_cipher_list(c, order); };
        chosen[i] = meet(context, tls_role::server, settings).session->cipher.name;
    }
    CHECK(chosen[0] == "ECDHE-ECDSA-AES256-GCM-SHA384");
    CHECK(chosen[1] == chosen[0]);
}

TEST_CASE("contexts: renegotiation is refused")
{
    const auto role = GENERATE(tls_role::client, tls_role::server);
    auto context = context_of(role);
    auto settings = peer_of(role);
    settings.max_version = TLS1_2_VERSION;
    const auto met = meet(context, role, settings,
                          [](test::raw_peer& peer)
                          {
                              ERR_clear_error();
                              test::openssl_check(SSL_renegotiate(peer.ssl()), "SSL_renegotiate");
                              test::openssl_check(SSL_do_handshake(peer.ssl()), "SSL_do_handshake");
                              peer.tls_write("x");
                              peer.tls_read_some();
                          });
    CHECK(met.session);
    CHECK_THAT(met.peer_error, test::contains("no renegotiation"));
}

TEST_CASE("contexts: no compression, no early data, and TLS 1.2 at least")
{
    auto context = context_of(GENERATE(tls_role::client, tls_role::server));
    SSL_CTX* const handle = context.native_handle();
    CHECK((SSL_CTX_get_options(handle) & SSL_OP_NO_COMPRESSION) != 0);
    CHECK((SSL_CTX_get_options(handle) & SSL_OP_NO_RENEGOTIATION) != 0);
    CHECK(SSL_CTX_get_max_early_data(handle) == 0);
    CHECK(SSL_CTX_get_min_proto_version(handle) == TLS1_2_VERSION);
}

TEST_CASE("create_server_context: a TLS 1.3 client gets one session ticket, without early data")
{
    auto context = us::create_server_context(localhost());
    auto settings = test::localhost_client();
    static int tickets;
    static std::uint32_t early_data;
    tickets = 0;
    early_data = 1;
    settings.adjust = [](SSL_CTX* c)
    {
        SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_CLIENT);
        SSL_CTX_sess_set_new_cb(c,
                                [](SSL*, SSL_SESSION* session)
                                {
                                    ++tickets;
                                    early_data = SSL_SESSION_get_max_early_data(session);
                                    return 0;
                                });
    };
    const auto met = meet(context, tls_role::server, settings);
    CHECK(met.peer_error == "");
    CHECK(tickets == 1);
    CHECK(early_data == 0);
}

// Sessions

namespace
{

using session_ptr = test::openssl_ptr<SSL_SESSION, SSL_SESSION_free>;

/// Connects to a stream with `server`, and offers `session` if there is one. Returns whether it was resumed, the
/// session for the next time, and whether the server knows the client's certificate.
struct resumption
{
    bool reused = false;
    bool server_knows_client = false;
    session_ptr session;
};

resumption resume(asio::ssl::context& server, SSL_CTX* client, SSL_SESSION* session)
{
    return test::run(
        [&]() -> asio::awaitable<resumption>
        {
            test::raw_listener listener;
            tcp::socket socket(co_await asio::this_coro::executor);
            socket.connect(test::loopback(listener.port()));
            auto peer = test::run_in_thread(
                [&, raw = listener.accept()]
                {
                    resumption result;
                    const test::openssl_ptr<SSL, SSL_free> ssl(SSL_new(client));
                    if (session)
                        SSL_set_session(ssl.get(), session);
                    SSL_set_fd(ssl.get(), raw.descriptor());
                    test::openssl_check(SSL_connect(ssl.get()), "SSL_connect");
                    char byte = 0;
                    test::openssl_check(SSL_read(ssl.get(), &byte, 1), "SSL_read");
                    result.reused = SSL_session_reused(ssl.get()) == 1;
                    result.session.reset(SSL_get1_session(ssl.get()));
                    SSL_shutdown(ssl.get());
                    SSL_read(ssl.get(), &byte, 1);
                    return result;
                });
            us::upgradeable_stream<tcp::socket> stream(std::move(socket), {.ssl = &server, .role = tls_role::server});
            co_await stream.start_tls();
            co_await stream.async_write_some(asio::buffer("x", 1), asio::use_awaitable);
            const auto told = stream.session();
            co_await stream.async_shutdown({}, asio::use_awaitable);
            resumption result = co_await test::joined(std::move(peer));
            CHECK(told->session_reused == result.reused);
            result.server_knows_client = told->peer_certificate.has_value();
            co_return result;
        });
}

} // namespace

namespace
{

/// A client of the library and a server in memory, before their handshake.
test::ssl_pair meeting(asio::ssl::context& client, asio::ssl::context& server, std::string_view name = "localhost")
{
    us::detail::tls_settings settings({.ssl = &client, .server_hostname = name});
    us::detail::openssl_ptr<SSL> ssl = settings.make_ssl();
    settings.offer_known_session(ssl.get());
    return {ssl.release(), SSL_new(server.native_handle())};
}

bool is_resumed(const test::ssl_pair& pair)
{
    return SSL_session_reused(pair.client());
}

test::openssl_ptr<X509_STORE, X509_STORE_free> empty_store()
{
    return test::openssl_ptr<X509_STORE, X509_STORE_free>(X509_STORE_new());
}

} // namespace

TEST_CASE("create_server_context: a client with a certificate can resume its session, and is still known")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    CAPTURE(version);
    auto options = localhost();
    options.client_ca_file = ca_file();
    auto server = us::create_server_context(options);
    auto other = us::create_server_context(options);
    const test::openssl_ptr<SSL_CTX, SSL_CTX_free> client(SSL_CTX_new(TLS_client_method()));
    SSL_CTX_set_max_proto_version(client.get(), version);
    SSL_CTX_use_certificate_chain_file(client.get(), test::client_certificate().certificate_file.c_str());
    SSL_CTX_use_PrivateKey_file(client.get(), test::client_certificate().key_file.c_str(), SSL_FILETYPE_PEM);

    const auto first = resume(server, client.get(), nullptr);
    CHECK(!first.reused);
    CHECK(first.server_knows_client);
    const auto second = resume(server, client.get(), first.session.get());
    CHECK(second.reused);
    CHECK(second.server_knows_client);
    const auto elsewhere = resume(other, client.get(), second.session.get());
    CHECK(!elsewhere.reused);
    CHECK(elsewhere.server_knows_client);
}

TEST_CASE("create_server_context: the session id context is unique to the context")
{
    auto one = us::create_server_context(localhost());
    auto two = us::create_server_context(localhost());
    const auto first = meet(one, tls_role::server, test::localhost_client());
    const auto again = meet(one, tls_role::server, test::localhost_client());
    const auto other = meet(two, tls_role::server, test::localhost_client());
    CHECK(!first.session_id_context.empty());
    CHECK(first.session_id_context == again.session_id_context);
    CHECK(first.session_id_context != other.session_id_context);
}

TEST_CASE("create_server_context: a session without the client certificate that is demanded now is not resumed")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto options = localhost();
    options.client_ca_file = ca_file();
    options.require_client_certificate = false;
    auto server = us::create_server_context(options);
    auto client = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
    SSL_CTX_set_max_proto_version(client.native_handle(), version);
    auto pair = meeting(client, server);
    REQUIRE(pair.connect());
    auto again = meeting(client, server);
    REQUIRE(again.connect());
    CHECK(is_resumed(again));

    server.set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert);
    auto demanded = meeting(client, server);
    CHECK(!demanded.connect());
    CHECK_THAT(demanded.server_error(), test::contains("peer did not return a certificate"));
}

TEST_CASE("create_server_context: a session with a client certificate that is no longer accepted is not resumed")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const bool is_by_list = GENERATE(true, false);
    const std::string before = test::authority().revocation_list();
    const std::string since = test::authority().revocation_list(
        {.revoked = {test::client_certificate()}, .valid_from = std::chrono::days(-5)});
    auto options = localhost();
    options.client_ca_file = ca_file();
    if (is_by_list)
        options.client_crl_data = before;
    auto server = us::create_server_context(options);
    for (const bool is_accepted : {true, false})
    {
        CAPTURE(version, is_by_list, is_accepted);
        auto client = us::create_client_context(
            {.ca_file = ca_file(), .identity = identity_of(test::client_certificate()), .max_sessions = 8});
        SSL_CTX_set_max_proto_version(client.native_handle(), version);
        auto first = meeting(client, server);
        REQUIRE(first.connect());
        if (!is_accepted && is_by_list)
            us::detail::refuse_revoked(server, us::detail::pem_source("client CRL", {}, since));
        else if (!is_accepted) // there is no CRL
            X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(server.native_handle()), X509_V_FLAG_CRL_CHECK);
        auto again = meeting(client, server);
        CHECK(again.connect() == is_accepted);
        CHECK(is_resumed(again) == is_accepted);
    }
}

TEST_CASE("create_server_context: a session with a client certificate that has expired is not resumed")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto options = localhost();
    options.client_ca_file = ca_file();
    auto server = us::create_server_context(options);
    server.set_verify_callback([](bool, asio::ssl::verify_context&) { return true; });
    for (const std::chrono::days until : {std::chrono::days(1), std::chrono::days(-1)})
    {
        const auto issued = test::authority().issue(
            {.common_name = "c", .valid_from = std::chrono::days(-2), .valid_until = until, .client_auth = true});
        auto client =
            us::create_client_context({.ca_file = ca_file(), .identity = identity_of(issued), .max_sessions = 8});
        SSL_CTX_set_max_proto_version(client.native_handle(), version);
        for (const bool expected : {false, until.count() > 0})
        {
            auto pair = meeting(client, server);
            REQUIRE(pair.connect());
            CHECK(is_resumed(pair) == expected);
        }
    }
}

TEST_CASE("create_server_context: the keys of tickets are the process's and change daily, and yesterday's still open")
{
    const auto ticket_key_of = [](asio::ssl::context& server)
    {
        auto client = us::create_client_context({.ca_file = ca_file()});
        SSL_CTX_set_max_proto_version(client.native_handle(), TLS1_2_VERSION);
        auto pair = meeting(client, server);
        REQUIRE(pair.connect());
        const unsigned char* ticket = nullptr;
        std::size_t size = 0;
        SSL_SESSION_get0_ticket(SSL_get0_session(pair.client()), &ticket, &size);
        return std::string(reinterpret_cast<const char*>(ticket), std::min<std::size_t>(size, 16));
    };
    auto one = us::create_server_context(localhost());
    auto other = us::create_server_context(localhost());
    CHECK(ticket_key_of(one).size() == 16);
    CHECK(ticket_key_of(one) == ticket_key_of(other));

    const test::openssl_ptr<EVP_CIPHER_CTX, EVP_CIPHER_CTX_free> cipher(EVP_CIPHER_CTX_new());
    const test::openssl_ptr<EVP_MAC, EVP_MAC_free> hmac(EVP_MAC_fetch(nullptr, "HMAC", nullptr));
    const test::openssl_ptr<EVP_MAC_CTX, EVP_MAC_CTX_free> mac(EVP_MAC_CTX_new(hmac.get()));
    const auto process = [&](const std::string& text)
    {
        std::string processed(text.size() + EVP_MAX_BLOCK_LENGTH, '\0');
        const auto out = reinterpret_cast<unsigned char*>(processed.data());
        int size = 0, rest = 0;
        REQUIRE(EVP_CipherUpdate(cipher.get(), out, &size, reinterpret_cast<const unsigned char*>(text.data()),
                                 int(text.size())) == 1);
        REQUIRE(EVP_CipherFinal_ex(cipher.get(), out + size, &rest) == 1);
        processed.resize(std::size_t(size + rest));
        return processed;
    };
    const auto authenticate = [&](const std::string& text)
    {
        std::string code(EVP_MAX_MD_SIZE, '\0');
        std::size_t size = 0;
        REQUIRE(EVP_MAC_init(mac.get(), nullptr, 0, nullptr) == 1);
        REQUIRE(EVP_MAC_update(mac.get(), reinterpret_cast<const unsigned char*>(text.data()), text.size()) == 1);
        REQUIRE(EVP_MAC_final(mac.get(), reinterpret_cast<unsigned char*>(code.data()), &size, code.size()) == 1);
        return code.substr(0, size);
    };
    us::detail::ticket_keys keys;
    const auto begin = us::detail::ticket_keys::clock::now();
    std::array<unsigned char, 16> name{}, iv{};
    REQUIRE(keys.encrypt(name.data(), iv.data(), cipher.get(), mac.get(), begin) == 1);
    const std::string sealed = process("the session");
    const std::string code = authenticate(sealed);
    for (const auto& [age, expected] :
         {std::pair(0min, 1), std::pair(24h - 1min, 1), std::pair(24h + 0min, 2), std::pair(48h - 1min, 2)})
    {
        CAPTURE(age.count());
        REQUIRE(keys.decrypt(name.data(), iv.data(), cipher.get(), mac.get(), begin + age) == expected);
        CHECK(process(sealed) == "the session");
        CHECK(authenticate(sealed) == code);
    }
    CHECK(keys.decrypt(name.data(), iv.data(), cipher.get(), mac.get(), begin + 48h) == 0);
    std::array<unsigned char, 16> next{}, far{};
    REQUIRE(keys.encrypt(next.data(), iv.data(), cipher.get(), mac.get(), begin + 48h) == 1);
    CHECK(next != name);
    CHECK(process("the session") != sealed);
    REQUIRE(keys.encrypt(far.data(), iv.data(), cipher.get(), mac.get(), begin + 480h) == 1);
    CHECK(keys.decrypt(next.data(), iv.data(), cipher.get(), mac.get(), begin + 480h) == 0);
}

TEST_CASE("resume_from: leaves the session that the context has kept to another connection")
{
    auto client = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
    auto server = us::create_server_context(localhost());
    auto first = meeting(client, server);
    REQUIRE(first.connect());
    us::detail::tls_settings settings({.ssl = &client, .server_hostname = "localhost", .resume_from = first.client()});
    const auto resuming = settings.make_ssl();
    settings.offer_known_session(resuming.get());
    auto next = meeting(client, server);
    REQUIRE(next.connect());
    CHECK(us::tls_session(next.client()).session_reused);
}

TEST_CASE("resume_from: a server that was known by tlsa_records is so again, and not taken without them")
{
    auto client = us::create_client_context({.verify_peer = false});
    auto server = us::create_server_context(localhost());
    const us::certificate own(SSL_CTX_get0_certificate(server.native_handle()));
    const std::vector<us::tlsa_record> records{test::record_of(own, test::tlsa::dane_ee)};
    const us::detail::tls_settings known({.ssl = &client, .server_hostname = "localhost", .tlsa_records = records});
    test::ssl_pair pair(known.make_ssl().release(), SSL_new(server.native_handle()));
    REQUIRE(pair.connect());
    us::tls_options next{.ssl = &client, .server_hostname = "localhost", .resume_from = pair.client()};
    CHECK_THROWS_WITH(us::detail::tls_settings(next), test::contains("tlsa_records"));
    next.tlsa_records = records;
    CHECK_NOTHROW(us::detail::tls_settings(next));
}

TEST_CASE("make_ssl: the common name of a certificate that names no host is not the name of one")
{
    const auto issued = test::authority().issue({.common_name = "common.test"});
    auto client = us::create_client_context({.ca_file = ca_file()});
    auto server = us::create_server_context({.identity = identity_of(issued)});
    auto pair = meeting(client, server, "common.test");
    CHECK_FALSE(pair.connect());
    CHECK(SSL_get_verify_result(pair.client()) == X509_V_ERR_HOSTNAME_MISMATCH);
}

TEST_CASE("resume_from: names and addresses are the same however they are written")
{
    auto client = us::create_client_context({.ca_file = ca_file()});
    SSL_CTX_set_max_proto_version(client.native_handle(), TLS1_2_VERSION);
    auto server = us::create_server_context(localhost());
    for (const auto& [name, again] : {std::pair("LocalHost", "localhost."), std::pair("::1", "[0:0:0:0:0:0:0:1]"),
                                      std::pair("[::1]", "::1"), std::pair("127.0.0.1", "127.0.0.1")})
    {
        CAPTURE(name);
        const us::detail::tls_settings first({.ssl = &client, .server_hostname = name});
        test::ssl_pair pair(first.make_ssl().release(), SSL_new(server.native_handle()));
        REQUIRE(pair.connect());
        us::detail::tls_settings next({.ssl = &client, .server_hostname = again, .resume_from = pair.client()});
        test::ssl_pair other(next.make_ssl().release(), SSL_new(server.native_handle()));
        next.offer_known_session(other.client());
        REQUIRE(other.connect());
        CHECK(us::tls_session(other.server()).session_reused);
    }
}

// Sessions that a client keeps

TEST_CASE("max_sessions: without it nothing is resumed, with it a session is, and both ends tell the same of it")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto options = localhost();
    options.client_ca_file = ca_file();
    auto server = us::create_server_context(options);
    for (const std::size_t most : {0u, 1u})
    {
        auto client = us::create_client_context(
            {.ca_file = ca_file(), .identity = identity_of(test::client_certificate()), .max_sessions = most});
        SSL_CTX_set_max_proto_version(client.native_handle(), version);
        for (int i = 0; i < 3; ++i)
        {
            auto pair = meeting(client, server);
            REQUIRE(pair.connect());
            // what TLS 1.2 resumes is put back by the operation that has shaken hands
            const bool expected = most > 0 && (version == TLS1_3_VERSION ? i > 0 : i == 1);
            const us::tls_session at_client(pair.client());
            const us::tls_session at_server(pair.server());
            CHECK(at_client.session_reused == expected);
            CHECK(at_server.session_reused == expected);
            CHECK(at_client.peer_certificate.value().subject() == "CN=localhost");
            CHECK(at_server.peer_certificate.value().subject() == "CN=test client");
            CHECK(at_client.verify_result == X509_V_OK);
            CHECK(at_server.verify_result == X509_V_OK);
        }
    }
}

TEST_CASE("max_sessions: a session with more certificates than any peer needs is not kept")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const auto added = GENERATE(0, 90);
    CAPTURE(version, added);
    auto server = us::create_server_context(localhost());
    X509* const certificate = SSL_CTX_get0_certificate(server.native_handle());
    for (int i = 0; i < added; ++i)
        REQUIRE(SSL_CTX_add1_chain_cert(server.native_handle(), certificate));
    auto client = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
    SSL_CTX_set_max_proto_version(client.native_handle(), version);
    auto first = meeting(client, server);
    REQUIRE(first.connect());
    auto second = meeting(client, server);
    REQUIRE(second.connect());
    CHECK(is_resumed(second) == (added == 0));
}

TEST_CASE("max_sessions: a session is for one connection, and of several each is used")
{
    auto server = us::create_server_context(localhost());
    SSL_CTX_set_num_tickets(server.native_handle(), 3);
    auto client = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
    auto first = meeting(client, server);
    REQUIRE(first.connect());
    std::vector<test::ssl_pair> at_once;
    for (int i = 0; i < 4; ++i)
        at_once.push_back(meeting(client, server));
    for (int i = 0; i < 4; ++i)
    {
        REQUIRE(at_once[std::size_t(i)].connect());
        CHECK(is_resumed(at_once[std::size_t(i)]) == (i < 3));
    }
}

TEST_CASE("max_sessions: a session whose handshake failed is not tried again")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto server = us::create_server_context(localhost());
    auto client = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
    SSL_CTX_set_max_proto_version(client.native_handle(), version);
    auto first = meeting(client, server);
    REQUIRE(first.connect());
    {
        auto cut_off = meeting(client, server);
        cut_off.step_client();
    }
    auto next = meeting(client, server);
    REQUIRE(next.connect());
    CHECK(!is_resumed(next));
}

TEST_CASE("max_sessions: sessions are not shared across contexts or names, and none is kept without a name")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto server = us::create_server_context(localhost());
    auto client = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
    auto other = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
    for (asio::ssl::context* const each : {&client, &other})
        SSL_CTX_set_max_proto_version(each->native_handle(), version);
    const auto resumed = [&](asio::ssl::context& from, std::string_view name)
    {
        auto pair = meeting(from, server, name);
        REQUIRE(pair.connect());
        return is_resumed(pair);
    };
    CHECK(!resumed(client, "localhost"));
    CHECK(!resumed(other, "localhost"));
    CHECK(!resumed(client, "127.0.0.1"));
    CHECK(!resumed(client, "::1"));
    CHECK(resumed(client, "localhost"));
    CHECK(resumed(client, "127.0.0.1"));
    CHECK(resumed(client, "[::1]"));
    CHECK(resumed(other, "localhost."));

    auto trusting = us::create_client_context({.verify_peer = false, .max_sessions = 8});
    CHECK(!resumed(trusting, ""));
    CHECK(!resumed(trusting, ""));
    CHECK(!resumed(trusting, "localhost"));
    CHECK(resumed(trusting, "localhost"));
}

TEST_CASE("max_sessions: when it is reached, a name's own oldest session goes, else the oldest of all")
{
    auto server = us::create_server_context(localhost());
    SSL_CTX_set_num_tickets(server.native_handle(), 5);
    auto client = us::create_client_context({.verify_peer = false, .max_sessions = 3});
    const auto keep = [&](std::string_view name)
    {
        auto pair = meeting(client, server, name);
        REQUIRE(pair.connect());
        return is_resumed(pair);
    };
    keep("a.test"); // five come, three stay
    SSL_CTX_set_num_tickets(server.native_handle(), 1);
    keep("b.test");
    SSL_CTX_set_num_tickets(server.native_handle(), 5);
    keep("c.test"); // of five one stays
    SSL_CTX_set_num_tickets(server.native_handle(), 0);
    for (const std::string_view name : {"a.test", "b.test", "c.test"})
    {
        CHECK(keep(name));
        CHECK(!keep(name));
    }
}

TEST_CASE("max_sessions: a session that has expired is not offered")
{
    us::detail::session_cache cache(8);
    for (const long timeout : {100, 0})
    {
        us::detail::openssl_ptr<SSL_SESSION> session(SSL_SESSION_new());
        SSL_SESSION_set_timeout(session.get(), timeout);
        cache.put("a.test", std::move(session));
    }
    CHECK(SSL_SESSION_get_timeout(cache.take("a.test").get()) == 100);
    CHECK(!cache.take("a.test"));
}

TEST_CASE("max_sessions: a server of TLS 1.2 that keeps the sessions itself knows them again")
{
    auto server = us::create_server_context(localhost());
    server.set_options(SSL_OP_NO_TICKET | asio::ssl::context::no_tlsv1_3);
    SSL_CTX_set_session_cache_mode(server.native_handle(), SSL_SESS_CACHE_SERVER);
    auto client = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
    for (const bool expected : {false, true})
    {
        auto pair = meeting(client, server);
        REQUIRE(pair.connect());
        CHECK(is_resumed(pair) == expected);
        pair.shut_down();
    }
}

TEST_CASE("max_sessions: a server that does not know the session is verified in full")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto server = us::create_server_context(localhost());
    auto other = us::create_server_context(localhost());
    const auto impostor_files =
        test::unrelated_authority().issue({.common_name = "impostor", .dns_names = {"localhost"}});
    auto impostor = us::create_server_context({.identity = identity_of(impostor_files)});
    auto client = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
    SSL_CTX_set_max_proto_version(client.native_handle(), version);
    auto first = meeting(client, server);
    REQUIRE(first.connect());
    auto full = meeting(client, other);
    REQUIRE(full.connect());
    CHECK(!is_resumed(full));
    auto refused = meeting(client, impostor);
    CHECK(!refused.connect());
    CHECK_THAT(refused.client_error(), test::contains("certificate verify failed"));
}

TEST_CASE("max_sessions: what a context has come to demand is demanded of a resumed session's server too")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    auto server = us::create_server_context(localhost());
    const auto refused_after = [&](const std::function<void(asio::ssl::context&)>& change)
    {
        auto client = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
        SSL_CTX_set_max_proto_version(client.native_handle(), version);
        auto first = meeting(client, server);
        REQUIRE(first.connect());
        change(client);
        auto second = meeting(client, server);
        const bool connected = second.connect();
        CHECK(is_resumed(second) == connected);
        if (!connected)
            CHECK_THAT(second.client_error(), test::contains("certificate verify failed"));
        return !connected;
    };
    CHECK(!refused_after([](asio::ssl::context&) {}));
    CHECK(refused_after([](asio::ssl::context& c)
                        { c.set_verify_callback([](bool, asio::ssl::verify_context&) { return false; }); }));
    CHECK(refused_after([](asio::ssl::context& c) { SSL_CTX_set_cert_store(c.native_handle(), X509_STORE_new()); }));
    CHECK(refused_after([](asio::ssl::context& c)
                        { SSL_CTX_set1_verify_cert_store(c.native_handle(), empty_store().get()); }));
    CHECK(refused_after([](asio::ssl::context& c) // a date on which the certificate has expired
                        { X509_VERIFY_PARAM_set_time(SSL_CTX_get0_param(c.native_handle()), 2'147'483'647); }));

    auto stricter = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
    SSL_CTX_set_max_proto_version(stricter.native_handle(), version);
    REQUIRE(meeting(stricter, server).connect());
    SSL_CTX_set_security_level(stricter.native_handle(), 4); // for which a key of P-256 is not enough
    CHECK_FALSE(meeting(stricter, server).connect());

    auto client = us::create_client_context({.ca_file = ca_file(), .max_sessions = 8});
    const std::string unrelated = test::unrelated_authority().ca_file();
    auto mistrusting = us::create_client_context({.ca_file = unrelated, .max_sessions = 8});
    for (asio::ssl::context* const each : {&client, &mistrusting})
    {
        SSL_CTX_set_max_proto_version(each->native_handle(), version);
        each->set_verify_mode(asio::ssl::verify_none);
        auto unverified = meeting(*each, server);
        REQUIRE(unverified.connect());
        each->set_verify_mode(asio::ssl::verify_peer);
    }
    auto verified = meeting(client, server);
    REQUIRE(verified.connect());
    CHECK(is_resumed(verified));
    CHECK(!meeting(mistrusting, server).connect());
    mistrusting.set_verify_mode(asio::ssl::verify_none);
    CHECK(meeting(mistrusting, server).connect());
    mistrusting.set_verify_mode(asio::ssl::verify_peer);
    mistrusting.load_verify_file(ca_file());
    auto trusting = meeting(mistrusting, server);
    REQUIRE(trusting.connect());
    CHECK(is_resumed(trusting));
    CHECK(SSL_get_verify_result(trusting.client()) == X509_V_OK);
}

TEST_CASE("max_sessions: a server of another mind about ALPN refuses a session as it refuses a client")
{
    auto options = localhost();
    options.alpn_protocols = "imap";
    auto server = us::create_server_context(options);
    auto client = us::create_client_context({.ca_file = ca_file(), .alpn_protocols = "imap", .max_sessions = 8});
    auto first = meeting(client, server);
    REQUIRE(first.connect());
    auto second = meeting(client, server);
    REQUIRE(second.connect());
    CHECK(is_resumed(second));
    CHECK(us::tls_session(second.client()).alpn_protocol == "imap");
    SSL_CTX_set_alpn_protos(client.native_handle(), reinterpret_cast<const unsigned char*>("\x04pop3"), 5);
    auto third = meeting(client, server);
    CHECK(!third.connect());
    CHECK_THAT(third.client_error(), test::contains("no application protocol"));
}

// Public key pins

namespace
{

std::string pin_of(const std::string& file)
{
    return test::certificates_in(file).at(0).public_key_pin();
}

/// The second certificate of a file.
std::string second_pin_of(const std::string& file)
{
    return test::certificates_in(file).at(1).public_key_pin();
}

} // namespace

TEST_CASE("public_key_pins: the key of some certificate of the chain must be pinned")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const auto issued =
        test::authority().issue({.common_name = "host", .dns_names = {"localhost"}, .by_intermediate = true});
    auto server = us::create_server_context({.identity = identity_of(issued)});
    const std::string leaf = pin_of(issued.certificate_file);
    const std::string intermediate = second_pin_of(issued.certificate_file);
    const std::string root = pin_of(ca_file());
    const std::string other = pin_of(test::localhost_certificate().certificate_file);
    const auto meet_with = [&](us::string_list pins)
    {
        auto client = us::create_client_context({.ca_file = ca_file(), .public_key_pins = pins});
        SSL_CTX_set_max_proto_version(client.native_handle(), version);
        return meeting(client, server);
    };
    for (const std::string& pin : {leaf, intermediate, root})
    {
        CHECK(meet_with(pin).connect());
        CHECK(meet_with({other, pin}).connect());
    }
    auto refused = meet_with({other, pin_of(test::unrelated_authority().ca_file())});
    CHECK(!refused.connect());
    CHECK_THAT(refused.client_error(), test::contains("certificate verify failed"));
    CHECK(SSL_get_verify_result(refused.client()) == X509_V_ERR_APPLICATION_VERIFICATION);
    CHECK_THAT(refused.server_error(), test::contains("alert handshake failure"));
}

TEST_CASE("public_key_pins: chain and name must be right as well")
{
    const auto issued = test::unrelated_authority().issue({.common_name = "host", .dns_names = {"localhost"}});
    auto stranger = us::create_server_context({.identity = identity_of(issued)});
    const std::string strangers = pin_of(issued.certificate_file);
    auto client = us::create_client_context({.ca_file = ca_file(), .public_key_pins = strangers});
    auto pair = meeting(client, stranger);
    CHECK(!pair.connect());
    CHECK(SSL_get_verify_result(pair.client()) == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY);

    auto server = us::create_server_context(localhost());
    const std::string pin = pin_of(test::localhost_certificate().certificate_file);
    auto knowing = us::create_client_context({.ca_file = ca_file(), .public_key_pins = pin});
    CHECK(meeting(knowing, server).connect());
    auto misnamed = meeting(knowing, server, "other.test");
    CHECK(!misnamed.connect());
    CHECK(SSL_get_verify_result(misnamed.client()) == X509_V_ERR_HOSTNAME_MISMATCH);
}

TEST_CASE("public_key_pins: a certificate that was sent and is not of the verified chain does not count")
{
    auto server = us::create_server_context(localhost());
    const std::string unrelated = test::unrelated_authority().ca_file();
    const test::openssl_ptr<BIO, BIO_free_all> in(BIO_new_file(unrelated.c_str(), "r"));
    REQUIRE(SSL_CTX_add_extra_chain_cert(server.native_handle(),
                                         PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr)));
    const std::string pin = pin_of(unrelated);
    auto client = us::create_client_context({.ca_file = ca_file(), .public_key_pins = pin});
    auto pair = meeting(client, server);
    CHECK(!pair.connect());
    CHECK(SSL_get_verify_result(pair.client()) == X509_V_ERR_APPLICATION_VERIFICATION);
}

TEST_CASE("public_key_pins: with verify_peer = false it is the server's own key, and neither chain nor name")
{
    const auto version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const auto issued =
        test::unrelated_authority().issue({.common_name = "host", .dns_names = {"a.test"}, .by_intermediate = true});
    auto server = us::create_server_context({.identity = identity_of(issued)});
    const auto meet_with = [&](const std::string& pin, std::string_view name)
    {
        auto client = us::create_client_context({.verify_peer = false, .public_key_pins = pin, .max_sessions = 8});
        SSL_CTX_set_max_proto_version(client.native_handle(), version);
        bool connected = false;
        for (int i = 0; i < 2; ++i)
        {
            auto pair = meeting(client, server, name);
            connected = pair.connect();
            CHECK(is_resumed(pair) == (connected && i > 0 && !name.empty()));
            CHECK((SSL_get_verify_result(pair.client()) == X509_V_OK) == connected);
        }
        return connected;
    };
    for (const std::string_view name : {"", "b.test"})
    {
        CHECK(meet_with(pin_of(issued.certificate_file), name));
        CHECK(!meet_with(second_pin_of(issued.certificate_file), name));
        CHECK(!meet_with(pin_of(test::unrelated_authority().ca_file()), name));
        CHECK(!meet_with(pin_of(test::localhost_certificate().certificate_file), name));
    }
}

TEST_CASE("public_key_pins: a verify callback can refuse what is pinned, and not accept what is not")
{
    const bool with_chain = GENERATE(true, false);
    const bool allows = GENERATE(true, false);
    auto server = us::create_server_context(localhost());
    const std::string own = pin_of(test::localhost_certificate().certificate_file);
    const std::string other = pin_of(test::client_certificate().certificate_file);
    for (const std::string& pin : {own, other})
    {
        us::client_context_options options{.verify_peer = with_chain, .public_key_pins = pin};
        if (with_chain)
            options.ca_file = ca_file();
        auto client = us::create_client_context(options);
        std::string seen;
        client.set_verify_callback(
            [&](bool, asio::ssl::verify_context& context)
            {
                seen = us::certificate(X509_STORE_CTX_get_current_cert(context.native_handle())).subject();
                return allows;
            });
        CHECK(meeting(client, server).connect() == (allows && pin == own));
        if (pin == own && allows)
            CHECK(seen == "CN=localhost");
    }
}

TEST_CASE("public_key_pins: in a chain that a verify callback has tolerated only the server's own key counts")
{
    const auto issued = test::unrelated_authority().issue({.common_name = "host", .dns_names = {"localhost"}});
    auto server = us::create_server_context({.identity = identity_of(issued)});
    const std::string unrelated = test::unrelated_authority().ca_file();
    const test::openssl_ptr<BIO, BIO_free_all> in(BIO_new_file(unrelated.c_str(), "r"));
    REQUIRE(SSL_CTX_add_extra_chain_cert(server.native_handle(),
                                         PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr)));
    for (const std::string& file : {issued.certificate_file, unrelated})
    {
        const std::string pin = pin_of(file);
        auto client = us::create_client_context({.ca_file = ca_file(), .public_key_pins = pin});
        client.set_verify_callback([](bool, asio::ssl::verify_context&) { return true; });
        CHECK(meeting(client, server).connect() == (file == issued.certificate_file));
    }
}

TEMPLATE_TEST_CASE("public_key_pins: a stream's own verify callback does not replace them", "",
                   asio::ssl::stream<tcp::socket>, us::tls_stream<tcp::socket>)
{
    const std::string pin = pin_of((GENERATE(true, false) ? test::localhost_certificate() : test::client_certificate())
                                       .certificate_file);
    auto context = us::create_client_context({.ca_file = ca_file(), .public_key_pins = pin});
    const bool is_pinned = pin == pin_of(test::localhost_certificate().certificate_file);
    asio::io_context io;
    test::raw_listener listener;
    tcp::socket socket(io);
    socket.connect(test::loopback(listener.port()));
    auto peer = test::run_in_thread(
        [raw = listener.accept()]() mutable -> std::string
        {
            try
            {
                raw.tls_accept(test::localhost_server());
                return {};
            }
            catch (const test::failure& failure)
            {
                return failure.what();
            }
        });
    TestType stream(std::move(socket), context);
    stream.set_verify_callback([](bool, asio::ssl::verify_context&) { return true; });
    asio::error_code error;
    stream.handshake(TestType::client, error);
    CHECK(!error == is_pinned);
    CHECK(peer.get().empty() == is_pinned);
}

TEST_CASE("public_key_pins: what is not the base64 of 32 bytes is std::invalid_argument, and told")
{
    const std::string good = pin_of(ca_file());
    const auto refused = [](const std::string& pin)
    {
        const us::client_context_options options{.ca_file = ca_file(), .public_key_pins = pin};
        CHECK_THROWS_MATCHES(us::create_client_context(options), std::invalid_argument,
                             test::message_contains("\"" + pin + "\" is no public key pin"));
    };
    for (const std::string& bad :
         {""s, good.substr(0, 43), good + "=", "sha256//" + good, good.substr(0, 40) + "AAAA",
          good.substr(0, 42) + "==", " " + good.substr(1), good.substr(0, 43) + "\n", good.substr(0, 42) + "B=",
          std::string(44, '='), std::string(44, '-')})
        refused(bad);
    us::client_context_options second{.ca_file = ca_file(), .public_key_pins = {good, "x"}};
    CHECK_THROWS_AS(us::create_client_context(second), std::invalid_argument);
}

// ALPN

TEST_CASE("ALPN: a server chooses by its own preference, and both ends tell the same")
{
    auto options = localhost();
    const std::string_view protocols[] = {"second", "first"};
    options.alpn_protocols = std::span<const std::string_view>(protocols);
    auto context = us::create_server_context(options);
    auto settings = test::localhost_client();
    offer_alpn(settings, "\x05"
                         "first"
                         "\x06"
                         "second");
    const auto met = meet(context, tls_role::server, settings);
    REQUIRE(met.session);
    CHECK(met.session->alpn_protocol == "second");
    CHECK(met.peer_session->alpn_protocol == "second");
}

TEST_CASE("ALPN: a server refuses a client of whose protocols it has none, and accepts one that offers none")
{
    auto options = localhost();
    options.alpn_protocols = "imap";
    auto context = us::create_server_context(options);
    auto settings = test::localhost_client();
    offer_alpn(settings, "\x04"
                         "pop3");
    const auto refused = meet(context, tls_role::server, settings);
    CHECK(refused.error);
    CHECK(!refused.session);
    CHECK_THAT(refused.peer_error, test::contains("no application protocol"));

    const auto accepted = meet(context, tls_role::server, test::localhost_client());
    REQUIRE(accepted.session);
    CHECK(!accepted.session->alpn_protocol);
}

TEST_CASE("ALPN: a client tells what the server chose")
{
    const std::string_view protocols[] = {"imap", "smtp"};
    auto context = us::create_client_context(
        {.ca_file = ca_file(), .alpn_protocols = std::span<const std::string_view>(protocols)});
    auto settings = test::localhost_server();
    settings.adjust = [](SSL_CTX* c)
    {
        SSL_CTX_set_alpn_select_cb(
            c,
            [](SSL*, const unsigned char** out, unsigned char* size, const unsigned char* offered, unsigned all, void*)
            {
                if (std::string_view(reinterpret_cast<const char*>(offered), all) != "\x04imap\x04smtp")
                    return SSL_TLSEXT_ERR_ALERT_FATAL;
                *out = offered + 6;
                *size = 4;
                return SSL_TLSEXT_ERR_OK;
            },
            nullptr);
    };
    const auto met = meet(context, tls_role::client, settings);
    REQUIRE(met.session);
    CHECK(met.session->alpn_protocol == "smtp");
}

TEST_CASE("ALPN: a client whose protocols the server ignores fails with alpn_not_agreed")
{
    auto context = us::create_client_context({.ca_file = ca_file(), .alpn_protocols = "imap"});
    const auto met = meet(context, tls_role::client, test::localhost_server());
    CHECK(met.error == us::errc::alpn_not_agreed);
    CHECK(!met.session);
}

TEST_CASE("ALPN: without protocols none is offered, and none is chosen")
{
    auto client = us::create_client_context({.ca_file = ca_file()});
    CHECK(!meet(client, tls_role::client, test::localhost_server()).session->alpn_protocol);
    auto server = us::create_server_context(localhost());
    auto settings = test::localhost_client();
    offer_alpn(settings, "\x04"
                         "imap");
    const auto met = meet(server, tls_role::server, settings);
    REQUIRE(met.session);
    CHECK(!met.session->alpn_protocol);
}

// Verification

TEST_CASE("create_client_context: a server is verified against the CA file given")
{
    auto context = us::create_client_context({.ca_file = ca_file()});
    CHECK(!meet(context, tls_role::client, test::localhost_server()).error);
    const std::string unrelated = test::unrelated_authority().ca_file();
    auto other = us::create_client_context({.ca_file = unrelated});
    const auto refused = meet(other, tls_role::client, test::localhost_server());
    CHECK(refused.error);
    CHECK_THAT(refused.peer_error, test::contains("unknown ca"));
}

TEST_CASE("create_client_context: without a CA file the system's trust store decides")
{
    auto unknown = us::create_client_context();
    CHECK(meet(unknown, tls_role::client, test::localhost_server()).error);
    ::setenv(X509_get_default_cert_file_env(), ca_file().c_str(), 1); // Where OpenSSL takes the system's store from.
    auto trusted = us::create_client_context();
    ::unsetenv(X509_get_default_cert_file_env());
    CHECK(!meet(trusted, tls_role::client, test::localhost_server()).error);
}

TEST_CASE("create_client_context: verify_peer = false accepts any server")
{
    auto context = us::create_client_context({.verify_peer = false});
    const auto met = meet(context, tls_role::client, test::localhost_server());
    CHECK(!met.error);
    CHECK(met.session->verify_result != X509_V_OK);
}

TEST_CASE("create_server_context: with a client CA file, clients with its certificates are accepted and known")
{
    auto options = localhost();
    options.client_ca_file = ca_file();
    options.require_client_certificate = GENERATE(true, false);
    auto context = us::create_server_context(options);
    const auto met = meet(context, tls_role::server, test::localhost_client(test::client_certificate()));
    REQUIRE(met.session);
    REQUIRE(met.session->peer_certificate);
    CHECK(met.session->peer_certificate->subject() == "CN=test client");
    CHECK(met.session->verify_result == X509_V_OK);
}

TEST_CASE("create_server_context: a client without a certificate is refused, unless none is required")
{
    auto options = localhost();
    options.client_ca_file = ca_file();
    auto strict = us::create_server_context(options);
    const auto refused = meet(strict, tls_role::server, test::localhost_client());
    CHECK(refused.error);
    CHECK_THAT(refused.peer_error, test::contains("certificate required"));

    options.require_client_certificate = false;
    auto lenient = us::create_server_context(options);
    const auto accepted = meet(lenient, tls_role::server, test::localhost_client());
    REQUIRE(accepted.session);
    CHECK(!accepted.session->peer_certificate);
}

TEST_CASE("create_server_context: a client with a certificate of another CA is refused, required or not")
{
    auto options = localhost();
    options.client_ca_file = ca_file();
    options.require_client_certificate = GENERATE(true, false);
    auto context = us::create_server_context(options);
    const auto stranger = test::unrelated_authority().issue({.common_name = "stranger", .client_auth = true});
    const auto refused = meet(context, tls_role::server, test::localhost_client(stranger));
    CHECK(refused.error);
    CHECK(!refused.session);
    CHECK_THAT(refused.peer_error, test::contains("unknown ca"));
}

TEST_CASE("create_server_context: without a client CA file no certificate is asked for")
{
    auto context = us::create_server_context(localhost());
    const auto met = meet(context, tls_role::server, test::localhost_client(test::client_certificate()));
    REQUIRE(met.session);
    CHECK(!met.session->peer_certificate);
}

TEST_CASE("crl_file, client_crl_file: who has a certificate that was revoked is refused, and told; others are not")
{
    const bool is_file = GENERATE(true, false);
    const bool is_revoked = GENERATE(true, false);
    CAPTURE(is_file, is_revoked);
    std::vector<test::issued> revoked{test::authority().issue({.common_name = "some other"})};
    if (is_revoked)
        revoked.insert(revoked.end(), {test::localhost_certificate(), test::client_certificate()});
    const std::string list = test::authority().revocation_list({.revoked = revoked});
    const auto told = test::contains(is_revoked ? "certificate revoked" : "");
    const test::temporary_directory directory;
    const std::string path = directory.write("crl.pem", "of an authority:\n" + list);
    const std::string_view file = is_file ? std::string_view(path) : std::string_view();
    const std::string_view data = is_file ? std::string_view() : std::string_view(list);

    auto client = us::create_client_context({.ca_file = ca_file(), .crl_file = file, .crl_data = data});
    const auto server = meet(client, tls_role::client, test::localhost_server());
    CHECK(bool(server.session) != is_revoked);
    CHECK_THAT(server.peer_error, told);

    auto options = localhost();
    options.client_ca_file = ca_file();
    options.client_crl_file = file;
    options.client_crl_data = data;
    options.require_client_certificate = GENERATE(true, false);
    auto context = us::create_server_context(options);
    const auto met = meet(context, tls_role::server, test::localhost_client(test::client_certificate()));
    CHECK(bool(met.session) != is_revoked);
    CHECK_THAT(met.peer_error, told);
}

TEST_CASE("crl_file: of every authority in the chain a list is needed, and one that is not out of date")
{
    test::certificate_authority& authority = test::authority();
    const auto issued =
        authority.issue({.common_name = "chained", .dns_names = {"localhost"}, .by_intermediate = true});
    const std::string of_root = authority.revocation_list();
    const std::string of_intermediate = authority.revocation_list({.by_intermediate = true});
    const std::string outdated =
        authority.revocation_list({.valid_until = std::chrono::days(-1), .by_intermediate = true});
    const std::string revoking = authority.revocation_list({.revoked = {issued}, .by_intermediate = true});
    for (const auto& [lists, reason] : std::vector<std::pair<std::string, std::string>>{
             {of_root + of_intermediate, "ok"},
             {of_root, "unable to get certificate CRL"},
             {of_intermediate, "unable to get certificate CRL"},
             {of_root + outdated, "CRL has expired"},
             {of_root + revoking, "certificate revoked"}})
    {
        CAPTURE(reason);
        auto client = us::create_client_context({.ca_file = ca_file(), .crl_data = lists});
        auto server = us::create_server_context({.identity = identity_of(issued)});
        auto pair = meeting(client, server);
        CHECK(pair.connect() == (reason == "ok"));
        CHECK(X509_verify_cert_error_string(SSL_get_verify_result(pair.client())) == reason);
    }
}

TEST_CASE("crl_data: a list that is not complete, or an empty text, is refused, lest a certificate be taken for good")
{
    const auto kind = GENERATE(test::crl_request::delta, test::crl_request::indirect, test::crl_request::by_reason,
                               test::crl_request::unknown);
    const std::string partial = test::authority().revocation_list({.kind = kind});
    const std::string lists = test::authority().revocation_list() + partial;
    CHECK_THROWS_MATCHES(us::create_client_context({.ca_file = ca_file(), .crl_data = lists}), std::system_error,
                         test::message_contains("CRL data holds a list that is a delta, indirect or partial"));
    CHECK_THROWS_AS(us::create_client_context({.ca_file = ca_file(), .crl_data = ""}), std::invalid_argument);
    auto options = localhost();
    options.client_ca_file = ca_file();
    options.client_crl_data = "";
    CHECK_THROWS_AS(us::create_server_context(options), std::invalid_argument);
    options.client_crl_data = partial;
    CHECK_THROWS_AS(us::create_server_context(options), std::system_error);
}

TEST_CASE("crl_file: of several lists of one authority the newest that is in date counts")
{
    const auto list_of = [](bool is_revoking, int from, int until)
    {
        test::crl_request request{.valid_from = std::chrono::days(from), .valid_until = std::chrono::days(until)};
        if (is_revoking)
            request.revoked = {test::localhost_certificate()};
        return test::authority().revocation_list(request);
    };
    const bool is_revoked = GENERATE(true, false);
    const bool is_newest_first = GENERATE(true, false);
    const std::string newest = list_of(is_revoked, -5, 30);
    const std::string others = list_of(!is_revoked, -10, 30) + list_of(!is_revoked, -3, -1);
    const std::string all = is_newest_first ? newest + others : others + newest;
    auto client = us::create_client_context({.ca_file = ca_file(), .crl_data = all});
    auto server = us::create_server_context(localhost());
    auto pair = meeting(client, server);
    CHECK(pair.connect() != is_revoked);
}

TEST_CASE("create_client_context: a client's own certificate is shown to a server that asks for one")
{
    auto context =
        us::create_client_context({.ca_file = ca_file(), .identity = identity_of(test::client_certificate())});
    auto settings = test::localhost_server();
    settings.ca_file = ca_file();
    const auto met = meet(context, tls_role::client, settings);
    CHECK(met.end == asio::error::eof);
    REQUIRE(met.peer_session);
    CHECK(met.peer_session->peer_certificate->subject() == "CN=test client");
}

TEST_CASE("create_server_context: the whole chain is sent, intermediate certificates too")
{
    const auto issued =
        test::authority().issue({.common_name = "test", .dns_names = {"localhost"}, .by_intermediate = true});
    auto context = us::create_server_context({.identity = identity_of(issued)});
    CHECK(meet(context, tls_role::server, test::localhost_client()).peer_error == "");
}

namespace
{

/// The lower byte of the least version of contexts in a process of its own, whose OpenSSL has this MinProtocol in its
/// configuration; another number when something fails.
int least_version_under(const std::string& min_protocol)
{
    const test::temporary_directory directory;
    const std::string file = directory.write("openssl.cnf", "openssl_conf = begin\n[begin]\nssl_conf = ssl\n[ssl]\n"
                                                            "system_default = all\n[all]\nMinProtocol = " +
                                                                min_protocol + "\n");
    const us::server_context_options options = localhost();
    return test::run_forked(
        [&]
        {
            const bool is_loaded = CONF_modules_load_file(file.c_str(), nullptr, 0) > 0;
            auto client = us::create_client_context({.verify_peer = false});
            auto server = us::create_server_context(options);
            const auto least = SSL_CTX_get_min_proto_version(client.native_handle());
            return is_loaded && least == SSL_CTX_get_min_proto_version(server.native_handle()) ? int(least & 0xff) : 0;
        });
}

} // namespace

TEST_CASE("contexts: a higher minimum of the protocol version in OpenSSL's configuration holds")
{
    CHECK(least_version_under("TLSv1.3") == (TLS1_3_VERSION & 0xff));
    CHECK(least_version_under("TLSv1") == (TLS1_2_VERSION & 0xff));
}

// Keys and certificates

TEST_CASE("create_server_context: a private key that the group or others can read is refused, unless it is allowed")
{
    const test::temporary_directory directory;
    const auto mode = GENERATE(0640u, 0604u, 0644u, 0440u);
    CAPTURE(mode);
    const std::string key = directory.write("open.key", slurp(test::localhost_certificate().key_file), mode);
    auto options = localhost();
    options.identity.private_key_file = key;
    CHECK_THROWS_MATCHES(us::create_server_context(options), std::system_error, test::message_contains(key));
    CHECK_THROWS_MATCHES(us::create_server_context(options), std::system_error, test::message_contains("chmod 600"));
    options.identity.allow_readable_private_key = true;
    auto context = us::create_server_context(options);
    CHECK(!meet(context, tls_role::server, test::localhost_client()).error);
}

TEST_CASE("contexts: a directory that is given in the place of a file is told to be one")
{
    const test::temporary_directory directory;
    const std::string path = directory.file("");
    const auto is_told = [&](const std::string& role)
    {
        return test::message_contains(role + " file \"" + path +
                                      "\": " + std::make_error_code(std::errc::is_a_directory).message());
    };
    auto options = localhost();
    options.identity.private_key_file = path;
    CHECK_THROWS_MATCHES(us::create_server_context(options), std::system_error, is_told("private key"));
    options.identity = {path, path};
    CHECK_THROWS_MATCHES(us::create_server_context(options), std::system_error, is_told("certificate"));
    CHECK_THROWS_MATCHES(us::create_client_context({.ca_file = path}), std::system_error, is_told("CA"));
    CHECK_THROWS_MATCHES(us::create_client_context({.ca_file = ca_file(), .crl_file = path}), std::system_error,
                         is_told("CRL"));
}

TEST_CASE("create_server_context: a private key that only its owner can read is accepted, by way of a link too")
{
    const test::temporary_directory directory;
    const std::string content = slurp(test::localhost_certificate().key_file);
    auto options = localhost();
    for (const unsigned mode : {0600u, 0400u})
    {
        const std::string key = directory.write("mode" + std::to_string(mode), content, mode);
        options.identity.private_key_file = key;
        CHECK_NOTHROW(us::create_server_context(options));
    }
    const std::string open = directory.write("open.key", content, 0644);
    const std::string link = directory.file("link.key");
    REQUIRE(::symlink(open.c_str(), link.c_str()) == 0);
    options.identity.private_key_file = link;
    CHECK_THROWS_AS(us::create_server_context(options), std::system_error);
}

TEST_CASE("contexts: an encrypted private key needs its password, and nobody is asked for it")
{
    const test::temporary_directory directory;
    const std::string key = encrypted_key(directory, test::localhost_certificate().key_file, "secret");
    auto options = localhost();
    options.identity.private_key_file = key;
    CHECK_THROWS_MATCHES(us::create_server_context(options), std::system_error, test::message_contains(key));
    options.identity.private_key_password = "wrong";
    CHECK_THROWS_MATCHES(us::create_server_context(options), std::system_error, test::message_contains(key));
    options.identity.private_key_password = "secret";
    auto context = us::create_server_context(options);
    CHECK(!meet(context, tls_role::server, test::localhost_client()).error);

    CHECK_NOTHROW(us::create_client_context({.identity = options.identity}));
}

TEST_CASE("contexts: a file that is missing is named, with the reason")
{
    const test::temporary_directory directory;
    const std::string missing = directory.file("missing.pem");
    const std::string reason = std::make_error_code(std::errc::no_such_file_or_directory).message();
    const auto names_it = [&](const std::function<void()>& create)
    {
        CHECK_THROWS_MATCHES(create(), std::system_error, test::message_contains(missing));
        CHECK_THROWS_MATCHES(create(), std::system_error, test::message_contains(reason));
    };
    auto no_certificate = localhost();
    no_certificate.identity.certificate_chain_file = missing;
    names_it([&] { us::create_server_context(no_certificate); });
    auto no_key = localhost();
    no_key.identity.private_key_file = missing;
    names_it([&] { us::create_server_context(no_key); });
    auto no_client_ca = localhost();
    no_client_ca.client_ca_file = missing;
    names_it([&] { us::create_server_context(no_client_ca); });
    names_it([&] { us::create_client_context({.ca_file = missing}); });
    names_it([&] { us::create_client_context({.ca_file = ca_file(), .crl_file = missing}); });
    names_it([&] { us::create_client_context({.ca_file = ca_file(), .identity = no_key.identity}); });
}

TEST_CASE("contexts: a file that holds no certificate or key is named, with the reason")
{
    const test::temporary_directory directory;
    const std::string bad =
        directory.write("bad.pem", GENERATE(""s, "no PEM at all\n"s,
                                            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"s));
    const auto names_it = [&](const std::function<void()>& create) { refused_by_openssl(create, bad); };
    auto bad_certificate = localhost();
    bad_certificate.identity.certificate_chain_file = bad;
    names_it([&] { us::create_server_context(bad_certificate); });
    auto bad_key = localhost();
    bad_key.identity.private_key_file = bad;
    names_it([&] { us::create_server_context(bad_key); });
    auto bad_client_ca = localhost();
    bad_client_ca.client_ca_file = bad;
    names_it([&] { us::create_server_context(bad_client_ca); });
    names_it([&] { us::create_client_context({.ca_file = bad}); });
    names_it([&] { us::create_client_context({.ca_file = ca_file(), .crl_file = bad}); });
}

TEST_CASE("contexts: what is not PEM is said to hold none, and a directory to be one")
{
    const test::temporary_directory directory;
    const std::string bad = directory.write("bad.pem", "no PEM at all\n");
    auto swapped = localhost();
    std::swap(swapped.identity.certificate_chain_file, swapped.identity.private_key_file);
    CHECK_THROWS_WITH(us::create_server_context(swapped), test::contains("holds no certificate in PEM"));
    auto bad_key = localhost();
    bad_key.identity.private_key_file = bad;
    CHECK_THROWS_WITH(us::create_server_context(bad_key), test::contains("holds no private key in PEM"));
    bad_key.identity.private_key_file = directory.path();
    CHECK_THROWS_WITH(us::create_server_context(bad_key), test::contains("Is a directory"));
    bad_key.identity.private_key_file = {};
    bad_key.identity.private_key_data = "no PEM at all";
    CHECK_THROWS_WITH(us::create_server_context(bad_key), test::contains("private key data holds no private key"));
    CHECK_THROWS_WITH(us::create_client_context({.ca_data = "no PEM at all"}), test::contains("holds no CA in PEM"));
    CHECK_THROWS_WITH(us::create_client_context({.ca_file = bad}), test::contains("holds no CA in PEM"));
    CHECK_THROWS_WITH(us::create_client_context({.crl_file = bad}), test::contains("holds no CRL in PEM"));
    const std::string half =
        test::authority().revocation_list() + "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    CHECK_THROWS_AS(us::create_client_context({.crl_data = half}), std::system_error);
}

TEST_CASE("contexts: a key that does not fit its certificate is named, and so is the certificate")
{
    auto options = localhost();
    options.identity.private_key_file = test::client_certificate().key_file;
    CHECK_THROWS_MATCHES(us::create_server_context(options), std::system_error,
                         test::message_contains(test::client_certificate().key_file));
    CHECK_THROWS_MATCHES(us::create_server_context(options), std::system_error,
                         test::message_contains(test::localhost_certificate().certificate_file));
    CHECK_THROWS_MATCHES(us::create_server_context(options), std::system_error, test::message_contains("mismatch"));
    CHECK_THROWS_AS(us::create_client_context({.identity = options.identity}), std::system_error);
}

TEST_CASE("contexts: certificates, keys and authorities may be given as text in place of files")
{
    const std::string trusted = slurp(ca_file());
    const auto issued =
        test::authority().issue({.common_name = "test", .dns_names = {"localhost"}, .by_intermediate = true});
    const std::string chain = slurp(issued.certificate_file);
    const std::string key = slurp(issued.key_file);
    auto server = us::create_server_context(
        {.identity = {.certificate_chain_data = chain, .private_key_data = key}, .client_ca_data = trusted});
    const auto met = meet(server, tls_role::server, test::localhost_client(test::client_certificate()));
    CHECK(met.peer_error == "");
    REQUIRE(met.session);
    CHECK(met.session->peer_certificate->subject() == "CN=test client");
    CHECK(met.session->peer_verified);

    const std::string own_chain = slurp(test::client_certificate().certificate_file);
    const std::string own_key = slurp(test::client_certificate().key_file);
    auto client = us::create_client_context(
        {.ca_data = trusted, .identity = {.certificate_chain_data = own_chain, .private_key_data = own_key}});
    auto asks = test::localhost_server();
    asks.ca_file = ca_file();
    const auto shown = meet(client, tls_role::client, asks);
    REQUIRE(shown.peer_session);
    CHECK(shown.peer_session->peer_certificate->subject() == "CN=test client");
    const std::string unrelated = slurp(test::unrelated_authority().ca_file());
    auto other = us::create_client_context({.ca_data = unrelated});
    CHECK_THAT(meet(other, tls_role::client, test::localhost_server()).peer_error, test::contains("unknown ca"));
}

TEST_CASE("contexts: an encrypted private key may be given as text")
{
    const test::temporary_directory directory;
    const std::string key = slurp(encrypted_key(directory, test::localhost_certificate().key_file, "secret"));
    auto options = localhost();
    options.identity.private_key_file = {};
    options.identity.private_key_data = key;
    CHECK_THROWS_WITH(us::create_server_context(options), test::contains("private key data is encrypted"));
    for (int i = 0; i < 1000; ++i) // one of 256 opens it, as far as the padding tells
    {
        const std::string wrong = std::to_string(i);
        options.identity.private_key_password = wrong;
        CHECK_THROWS_WITH(us::create_server_context(options), test::contains("does not open it"));
    }
    options.identity.private_key_password = "secret";
    CHECK_NOTHROW(us::create_server_context(options));
    const std::string other = slurp(encrypted_key(directory, test::client_certificate().key_file, "secret"));
    options.identity.private_key_data = other;
    CHECK_THROWS_WITH(us::create_server_context(options),
                      test::contains("for certificate") && test::contains("mismatch"));
}

TEST_CASE("contexts: a text that holds no certificate or key, or a key of another certificate, is named as such")
{
    const auto bad = GENERATE("no PEM at all\n"sv,
                              "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"sv);
    auto bad_certificate = localhost();
    bad_certificate.identity.certificate_chain_file = {};
    bad_certificate.identity.certificate_chain_data = bad;
    refused_by_openssl([&] { us::create_server_context(bad_certificate); }, "certificate data");
    auto bad_key = localhost();
    bad_key.identity.private_key_file = {};
    bad_key.identity.private_key_data = bad;
    refused_by_openssl([&] { us::create_server_context(bad_key); }, "private key data");
    const std::string other_key = slurp(test::client_certificate().key_file);
    bad_key.identity.private_key_data = other_key;
    refused_by_openssl([&] { us::create_server_context(bad_key); }, "private key data");
    auto bad_client_ca = localhost();
    bad_client_ca.client_ca_data = bad;
    refused_by_openssl([&] { us::create_server_context(bad_client_ca); }, "client CA data");
    refused_by_openssl([&] { us::create_client_context({.ca_data = bad}); }, "CA data");
}

TEST_CASE("contexts: a file and a text for the same, or a text in a file's place, are std::invalid_argument")
{
    const std::string key = slurp(test::localhost_certificate().key_file);
    auto both = localhost();
    both.identity.private_key_data = key;
    CHECK_THROWS_AS(us::create_server_context(both), std::invalid_argument);
    CHECK_THROWS_AS(us::create_client_context({.ca_file = ca_file(), .ca_data = key}), std::invalid_argument);
    auto misplaced = localhost();
    misplaced.identity.private_key_file = key;
    CHECK_THROWS_MATCHES(us::create_server_context(misplaced), std::invalid_argument,
                         test::message_contains("private key file is PEM text") && !test::message_contains(key));
}

TEST_CASE("key_log_file: both ends append the secrets of each session, to a file that only its owner can read")
{
    const int version = GENERATE(TLS1_2_VERSION, TLS1_3_VERSION);
    const test::temporary_directory directory;
    const auto sorted_lines = [](const std::string& path)
    {
        std::ifstream file(path);
        std::vector<std::string> lines;
        for (std::string line; std::getline(file, line);)
        {
            std::ranges::transform(line, line.begin(), [](unsigned char c) { return char(std::toupper(c)); });
            lines.push_back(line);
        }
        std::ranges::sort(lines);
        return lines;
    };
    const std::string client_log = directory.file("client.keys");
    const std::string server_log = directory.write("server.keys", "# BEGUN BY ANOTHER\n");
    us::server_context_options options = localhost();
    options.key_log_file = server_log;
    asio::ssl::context server = us::create_server_context(options);
    asio::ssl::context client = us::create_client_context({.ca_file = ca_file(), .key_log_file = client_log});
    SSL_CTX_set_max_proto_version(client.native_handle(), version);
    for (int session = 0; session < 2; ++session)
    {
        test::ssl_pair pair(SSL_new(client.native_handle()), SSL_new(server.native_handle()));
        REQUIRE(pair.connect());
        std::string random(SSL3_RANDOM_SIZE, '\0');
        SSL_get_client_random(pair.client(), reinterpret_cast<unsigned char*>(random.data()), random.size());
        std::string secret(version == TLS1_2_VERSION ? SSL_MAX_MASTER_KEY_LENGTH : 0, '\0');
        SSL_SESSION_get_master_key(SSL_get_session(pair.client()), reinterpret_cast<unsigned char*>(secret.data()),
                                   secret.size());
        const std::string label = version == TLS1_2_VERSION ? "CLIENT_RANDOM " : "CLIENT_TRAFFIC_SECRET_0 ";
        const std::string logged = label + test::hex(random) + " " + test::hex(secret);
        CHECK(std::ranges::count_if(sorted_lines(client_log),
                                    [&](const std::string& line) { return line.starts_with(logged); }) == 1);
    }
    std::vector<std::string> lines = sorted_lines(client_log);
    lines.insert(lines.begin(), "# BEGUN BY ANOTHER");
    CHECK(lines == sorted_lines(server_log));
    struct ::stat status;
    REQUIRE(::stat(client_log.c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0600);
}

TEST_CASE("key_log_file: one that cannot be opened is named, with the reason; without one there is none")
{
    const test::temporary_directory directory;
    const std::string missing = directory.file("missing/keys");
    const auto create = [&] { us::create_client_context({.verify_peer = false, .key_log_file = missing}); };
    CHECK_THROWS_WITH(create(), test::contains("key log file \"" + missing + "\"") &&
                                    test::contains("No such file or directory"));
    for (const unsigned mode : {0640u, 0604u, 0620u})
    {
        const std::string open = directory.write(std::to_string(mode), "", mode);
        const auto log_to_open = [&] { us::create_client_context({.verify_peer = false, .key_log_file = open}); };
        CHECK_THROWS_WITH(log_to_open(), test::contains("key log file \"" + open +
                                                        "\" is another user's or can be read "
                                                        "by others; chmod 600 it"));
    }
    CHECK_NOTHROW(us::create_client_context({.verify_peer = false, .key_log_file = "/dev/null"}));
    const std::string pipe = directory.path() + "/pipe"; // whose reader may be anybody
    REQUIRE(::mkfifo(pipe.c_str(), 0666) == 0);
    REQUIRE(::chmod(pipe.c_str(), 0666) == 0);
    const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
    const auto log_to_pipe = [&] { us::create_client_context({.verify_peer = false, .key_log_file = pipe}); };
    CHECK_THROWS_WITH(log_to_pipe(), test::contains("can be read by others"));
    ::close(reader);
    const auto cut = [] { us::create_client_context({.verify_peer = false, .key_log_file = "a\0b"sv}); };
    CHECK_THROWS_AS(cut(), std::invalid_argument);
    asio::ssl::context server = us::create_server_context(localhost());
    CHECK(SSL_CTX_get_keylog_callback(server.native_handle()) == nullptr);
}

TEST_CASE("contexts: authorities or pins that are given and empty are refused, lest anybody be trusted")
{
    const std::string no_text;
    const std::vector<std::string> no_pins;
    CHECK_THROWS_MATCHES(us::create_client_context({.ca_data = no_text}), std::invalid_argument,
                         test::message_contains("CA data is empty; leave it out where none is wanted"));
    CHECK_THROWS_MATCHES(us::create_client_context({.verify_peer = false, .public_key_pins = no_pins}),
                         std::invalid_argument, test::message_contains("public_key_pins hold no pin"));
    CHECK_NOTHROW(us::create_client_context({.ca_data = {}, .public_key_pins = {}}));
    auto options = localhost();
    options.client_ca_data = no_text;
    CHECK_THROWS_MATCHES(us::create_server_context(options), std::invalid_argument,
                         test::message_contains("client CA data is empty"));
}

TEST_CASE("contexts: options that make no sense are std::invalid_argument")
{
    CHECK_THROWS_AS(us::create_server_context({}), std::invalid_argument);
    auto options = localhost();
    options.identity.private_key_file = {};
    CHECK_THROWS_AS(us::create_server_context(options), std::invalid_argument);
    CHECK_THROWS_AS(us::create_client_context({.identity = options.identity}), std::invalid_argument);
    options = localhost();
    options.identity.certificate_chain_file = {};
    CHECK_THROWS_AS(us::create_server_context(options), std::invalid_argument);
    CHECK_THROWS_AS(us::create_client_context({.identity = options.identity}), std::invalid_argument);
    CHECK_THROWS_AS(us::create_client_context({.ca_file = ca_file(), .verify_peer = false}), std::invalid_argument);
    CHECK_THROWS_AS(us::create_client_context({.crl_file = ca_file(), .verify_peer = false}), std::invalid_argument);
    options = localhost();
    options.client_crl_file = ca_file();
    CHECK_THROWS_AS(us::create_server_context(options), std::invalid_argument);
    options = localhost();
    options.require_client_certificate = true;
    CHECK_THROWS_AS(us::create_server_context(options), std::invalid_argument);

    const std::string long_name(256, 'x');
    for (const std::string_view name : {""sv, std::string_view(long_name)})
    {
        CHECK_THROWS_AS(us::create_client_context({.alpn_protocols = name}), std::invalid_argument);
        auto server = localhost();
        server.alpn_protocols = name;
        CHECK_THROWS_AS(us::create_server_context(server), std::invalid_argument);
    }
    CHECK_NOTHROW(us::create_client_context({.alpn_protocols = std::string_view(long_name).substr(1)}));
}
