// The examples, run as the programs that they are.

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/process.hpp"
#include "support/raw_peer.hpp"
#include "support/socket_pair.hpp"
#include "support/temporary_directory.hpp"
#include "support/thread.hpp"

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <sys/stat.h>

using namespace std::string_literals;

namespace
{

const std::string ping_server = PING_SERVER;
const std::string ping_client = PING_CLIENT;
const std::string one_port = ONE_PORT;
const std::string chat_server = CHAT_SERVER;
const std::string several_certificates = SEVERAL_CERTIFICATES;
const std::string mutual_tls = MUTUAL_TLS;
const std::string starttls_relay = STARTTLS_RELAY;

using command = std::vector<std::string>;

command joined(command first, const command& second)
{
    first.insert(first.end(), second.begin(), second.end());
    return first;
}

/// The port in a server's line "listening on host:port".
std::uint16_t port_of(std::string_view line)
{
    std::uint16_t port = 0;
    const std::string_view digits = line.substr(line.rfind(':') + 1);
    std::from_chars(digits.data(), digits.data() + digits.size(), port);
    return port;
}

/// A server, by default that of ping, on a free port of 127.0.0.1, once it listens.
class running_server
{
public:
    explicit running_server(const command& more = {}, const std::string& host = "127.0.0.1",
                            const std::string& program = ping_server)
        : process_(
              joined({program, "--host", host, "--port", "0", "--cert",
                      test::localhost_certificate().certificate_file, "--key", test::localhost_certificate().key_file},
                     more)),
          first_line_(process_.read_line())
    {
    }

    const std::string& first_line() const { return first_line_; }
    std::uint16_t port() const { return port_of(first_line_); }
    test::raw_peer connect() const { return test::raw_peer::connect(test::loopback(port())); }

    test::process::outcome stop(int signal_number = SIGTERM)
    {
        process_.send_signal(signal_number);
        return process_.wait();
    }

private:
    test::process process_;
    std::string first_line_;
};

command client_of(std::uint16_t port, const std::string& ca_file = test::authority().ca_file(),
                  const std::string& host = "localhost")
{
    return {ping_client, "--host", host, "--port", std::to_string(port), "--ca", ca_file};
}

/// Whether a program told its failure in one sentence on a line of its own, and in nothing else.
bool is_one_sentence(const std::string& errors, const std::string& program)
{
    return errors.starts_with(program + ": ") && errors.size() > program.size() + 10 && errors.ends_with("\n") &&
           std::ranges::count(errors, '\n') == 1;
}

/// A client of the chat server, and the name by which it is known there.
std::pair<test::raw_peer, std::string> chatting(const running_server& server)
{
    test::raw_peer peer = server.connect();
    const std::string welcome = peer.recv_line();
    const std::string before = "welcome, ";
    REQUIRE_THAT(welcome, test::starts_with(before));
    return {std::move(peer), welcome.substr(before.size(), welcome.size() - before.size() - 1)};
}

/// A peer that has upgraded its connection with the server.
test::raw_peer upgraded(const running_server& server)
{
    test::raw_peer peer = server.connect();
    test::tls_settings settings = test::localhost_client();
    settings.send_before = "STARTTLS\n";
    peer.tls_connect(settings);
    return peer;
}

/// An SMTP server's side of what a relay says to it before it relays.
test::raw_peer served_relay(test::raw_listener& listener)
{
    test::raw_peer peer = listener.accept();
    for (const std::string_view answer :
         {"220 backend\r\n", "250-backend\r\n250 STARTTLS\r\n", "220 go ahead\r\n"})
    {
        peer.send_all(answer);
        if (!answer.starts_with("220 g"))
            peer.recv_line();
    }
    peer.tls_accept(test::localhost_server());
    peer.tls_read_line();
    peer.tls_write("250 backend\r\n");
    return peer;
}

} // namespace

TEST_CASE("ping: server and client go through plain text, the upgrade and TLS, and exit with 0")
{
    running_server server;
    CHECK(server.first_line() == "listening on 127.0.0.1:" + std::to_string(server.port()) + "\n");
    CHECK(server.port() != 0);

    const auto client = test::run_process(client_of(server.port(), test::authority().ca_file(), "127.0.0.1"));
    INFO(client.output);
    CHECK(client.status == 0);
    CHECK(client.errors.empty());
    const std::string& out = client.output;
    const auto plain = out.find("none yet");
    const auto first_pong = out.find("PONG");
    const auto starttls = out.find("STARTTLS");
    const auto version = out.find("TLSv1.3");
    const auto cipher = out.find("TLS_");
    const auto certificate = out.find("CN=");
    const auto second_pong = out.rfind("PONG");
    const auto quit = out.find("QUIT");
    CHECK(plain < first_pong);
    CHECK(first_pong < starttls);
    CHECK(starttls < version);
    CHECK(version < cipher);
    CHECK(cipher < certificate);
    CHECK(certificate < second_pong);
    CHECK(second_pong < quit);
    CHECK(quit != std::string::npos);

    const auto stopped = server.stop();
    CHECK(stopped.status == 0);
    CHECK(stopped.errors.empty());
}

TEST_CASE("ping: by default both use localhost")
{
    const test::process::outcome help = test::run_process({ping_server, "--help"});
    CHECK_THAT(help.output, test::contains("localhost, 10001"));
    running_server server({}, "localhost");
    CHECK(server.first_line() == "listening on localhost:" + std::to_string(server.port()) + "\n");
    const auto client =
        test::run_process({ping_client, "--port", std::to_string(server.port()), "--ca", test::authority().ca_file()});
    CHECK(client.status == 0);
    CHECK(server.stop().status == 0);
}

TEST_CASE("ping: the server finds its certificate in ~/.keys")
{
    const test::temporary_directory home;
    REQUIRE(::mkdir(home.file(".keys").c_str(), 0700) == 0);
    REQUIRE(test::succeeds({"cp", test::localhost_certificate().certificate_file, home.file(".keys/server.crt")}));
    REQUIRE(test::succeeds({"cp", "-p", test::localhost_certificate().key_file, home.file(".keys/server.key")}));
    test::process server({"env", "HOME=" + home.path(), ping_server, "--port", "0"});
    CHECK_THAT(server.read_line(), test::starts_with("listening on localhost:"));
    server.send_signal(SIGTERM);
    CHECK(server.wait().status == 0);

    const test::temporary_directory empty;
    const auto failed = test::run_process({"env", "HOME=" + empty.path(), ping_server, "--port", "0"});
    CHECK(failed.status == 1);
    CHECK(is_one_sentence(failed.errors, "ping_server"));
    CHECK_THAT(failed.errors, test::contains(empty.file(".keys/server.")));
}

TEST_CASE("ping: the server answers PING, and an unknown line with an error after which it goes on")
{
    running_server server;
    test::raw_peer peer = server.connect();
    for (int i = 0; i < 2; ++i)
    {
        peer.send_all("PING\n");
        CHECK(peer.recv_line() == "PONG\n");
        for (const std::string line : {"HELP\n", "ping\n", "PING \n", "PING\r\n", "\n"})
        {
            peer.send_all(line);
            CHECK(peer.recv_line() == "ERROR unknown command\n");
        }
    }
    peer.send_all("QUIT\n");
    CHECK(peer.recv_all().empty());
    CHECK(server.stop().status == 0);
}

TEST_CASE("ping: STARTTLS gets no answer in plain text, also when the ClientHello is in the same segment")
{
    const bool together = GENERATE(true, false);
    running_server server;
    test::raw_peer peer = server.connect();
    peer.send_all("PING\n");
    CHECK(peer.recv_line() == "PONG\n");
    test::tls_settings settings = test::localhost_client();
    if (together)
        settings.send_before = "STARTTLS\n";
    else
        peer.send_all("STARTTLS\n");
    peer.tls_connect(settings); // fails over any byte that is not TLS
    peer.tls_write("PING\n");
    CHECK(peer.tls_read_line() == "PONG\n");
    peer.tls_write("STOP\n");
    CHECK(peer.tls_read_line() == "ERROR unknown command\n");
    peer.tls_write("PING\nQUIT\n");
    CHECK(peer.tls_read_all() == "PONG\n"); // to the close_notify
    peer.tls_shutdown();
    CHECK(server.stop().status == 0);
}

TEST_CASE("ping: plain text behind STARTTLS closes the connection, and the server goes on")
{
    running_server server;
    test::raw_peer peer = server.connect();
    peer.send_all("STARTTLS\nPING\n");
    CHECK_THAT(peer.recv_all(), !test::contains("PONG"));
    test::raw_peer next = upgraded(server);
    next.tls_write("PING\n");
    CHECK(next.tls_read_line() == "PONG\n");
    next.tls_shutdown();
    const auto stopped = server.stop();
    CHECK(stopped.status == 0);
    CHECK(std::ranges::count(stopped.errors, '\n') == 1);
}

TEST_CASE("ping: the server serves many clients at once")
{
    running_server server;
    std::vector<std::unique_ptr<test::process>> clients;
    std::vector<test::raw_peer> peers;
    for (int i = 0; i < 8; ++i)
    {
        peers.push_back(server.connect());
        peers.push_back(upgraded(server));
        clients.push_back(std::make_unique<test::process>(client_of(server.port())));
    }
    for (const auto& client : clients)
        CHECK(client->wait().status == 0);
    for (test::raw_peer& peer : peers)
    {
        if (peer.ssl() == nullptr)
        {
            peer.send_all("PING\n");
            CHECK(peer.recv_line() == "PONG\n");
        }
        else
        {
            peer.tls_write("PING\n");
            CHECK(peer.tls_read_line() == "PONG\n");
            peer.tls_shutdown();
        }
    }
    CHECK(server.stop().status == 0);
}

TEST_CASE("ping: SIGINT and SIGTERM close the server cleanly while clients are connected")
{
    const int signal_number = GENERATE(SIGINT, SIGTERM);
    running_server server;
    test::raw_peer plain = server.connect();
    plain.send_all("PING\n");
    CHECK(plain.recv_line() == "PONG\n");
    test::raw_peer secure = upgraded(server);
    secure.tls_write("PING\n");
    CHECK(secure.tls_read_line() == "PONG\n");
    test::raw_peer in_handshake = server.connect();
    in_handshake.send_all("PING\nSTARTTLS\n");
    CHECK(in_handshake.recv_line() == "PONG\n");

    test::process::outcome stopped;
    {
        auto stopping = std::async(std::launch::async, [&] { return server.stop(signal_number); });
        CHECK(plain.recv_all().empty());
        CHECK(secure.tls_read_all().empty());
        secure.tls_shutdown();
        secure.close();
        stopped = stopping.get();
    }
    CHECK(stopped.status == 0);
    CHECK(stopped.errors.empty());
    CHECK_THROWS_AS(server.connect(), std::system_error);
}

TEST_CASE("ping: a client that says STARTTLS and nothing more is dropped after --handshake-timeout")
{
    running_server server({"--handshake-timeout", "1"});
    test::raw_peer silent = server.connect();
    silent.send_all("STARTTLS\n");
    CHECK(silent.recv_all().empty());
    CHECK(server.stop().status == 0);
}

TEST_CASE("ping: the client sends STARTTLS and upgrades without waiting for an answer")
{
    test::raw_listener listener;
    test::process client(client_of(listener.port(), test::authority().ca_file(), "127.0.0.1"));
    test::raw_peer peer = listener.accept();
    CHECK(peer.recv_line() == "PING\n");
    peer.send_all("PONG\n");
    CHECK(peer.recv_line() == "STARTTLS\n");
    peer.tls_accept(test::localhost_server());
    CHECK(peer.tls_read_line() == "PING\n");
    peer.tls_write("PONG\n");
    CHECK(peer.tls_read_line() == "QUIT\n");
    peer.tls_shutdown();
    peer.close();
    CHECK(client.wait().status == 0);
}

TEST_CASE("ping: the client fails, in one sentence, when the server does not play its part")
{
    const std::string what =
        GENERATE(as<std::string>(), "wrong answer", "closes", "plain text for TLS", "closes in TLS");
    INFO(what);
    test::raw_listener listener;
    test::process client(client_of(listener.port(), test::authority().ca_file(), "127.0.0.1"));
    {
        test::raw_peer peer = listener.accept();
        CHECK(peer.recv_line() == "PING\n");
        if (what != "closes")
            peer.send_all(what == "wrong answer" ? "what?\n" : "PONG\n");
        if (what == "plain text for TLS")
        {
            CHECK(peer.recv_line() == "STARTTLS\n");
            peer.send_all("454 TLS not available\n");
        }
        if (what == "closes in TLS")
        {
            CHECK(peer.recv_line() == "STARTTLS\n");
            peer.tls_accept(test::localhost_server());
            CHECK(peer.tls_read_line() == "PING\n");
        }
        peer.send_fin();
        try
        {
            peer.recv_all();
        }
        catch (const std::system_error&) // a reset is as good
        {
        }
    }
    const auto outcome = client.wait();
    CHECK(outcome.status == 1);
    INFO(outcome.errors);
    CHECK(is_one_sentence(outcome.errors, "ping_client"));
}

TEST_CASE("ping: the client refuses a server that its CA file does not vouch for, and sends nothing after")
{
    running_server server;
    const auto client = test::run_process(client_of(server.port(), test::unrelated_authority().ca_file(), "127.0.0.1"));
    CHECK(client.status == 1);
    INFO(client.errors);
    CHECK(is_one_sentence(client.errors, "ping_client"));
    CHECK_THAT(client.errors, test::contains("certificate"));
    CHECK(client.output.find("PONG") == client.output.rfind("PONG"));
    const auto next = test::run_process(client_of(server.port(), test::authority().ca_file(), "127.0.0.1"));
    CHECK(next.status == 0);
    const auto stopped = server.stop();
    CHECK(stopped.status == 0);
    CHECK(std::ranges::count(stopped.errors, '\n') == 1);
}

TEST_CASE("ping: the client refuses a server whose certificate is for another name")
{
    running_server server({}, "127.0.0.2");
    const auto client = test::run_process(client_of(server.port(), test::authority().ca_file(), "127.0.0.2"));
    CHECK(client.status == 1);
    CHECK(is_one_sentence(client.errors, "ping_client"));
    CHECK_THAT(client.errors, test::contains("127.0.0.2"));
    CHECK(server.stop().status == 0);
}

TEST_CASE("ping: --help tells the options on standard output and exits with 0")
{
    const auto server = test::run_process({ping_server, "--help"});
    CHECK(server.status == 0);
    CHECK(server.errors.empty());
    for (const std::string option : {"--host", "--port", "--cert", "--key", "--handshake-timeout"})
        CHECK_THAT(server.output, test::contains(option));

    const auto client = test::run_process({ping_client, "--help"});
    CHECK(client.status == 0);
    CHECK(client.errors.empty());
    for (const std::string option : {"--host", "--port", "--ca"})
        CHECK_THAT(client.output, test::contains(option));
}

TEST_CASE("ping: bad options are told in one sentence on standard error, with a status that is not 0")
{
    const std::string certificate = test::localhost_certificate().certificate_file;
    const std::string key = test::localhost_certificate().key_file;
    const command good = {ping_server, "--host", "127.0.0.1", "--port", "0", "--cert", certificate, "--key", key};
    const std::vector<command> bad_servers = {
        {ping_server, "--unknown", "x"},
        {ping_server, "--port"},
        {ping_server, "serve"},
        joined(good, {"--port", "65536"}),
        joined(good, {"--port", "-1"}),
        joined(good, {"--port", "no-such-service"}),
        joined(good, {"--host", "no such host"}),
        joined(good, {"--cert", "/no/such/file"}),
        joined(good, {"--key", "/no/such/file"}),
        joined(good, {"--key", certificate}),
        joined(good, {"--handshake-timeout", "0"}),
        joined(good, {"--handshake-timeout", "-1"}),
        joined(good, {"--handshake-timeout", "soon"}),
    };
    for (const command& bad : bad_servers)
    {
        const auto outcome = test::run_process(bad);
        INFO(bad[bad.size() - 1] << ": " << outcome.errors);
        CHECK(outcome.status == 1);
        CHECK(outcome.output.empty());
        CHECK(is_one_sentence(outcome.errors, "ping_server"));
    }

    const std::vector<command> bad_clients = {
        {ping_client, "--unknown", "x"},
        {ping_client, "--ca"},
        {ping_client, "--ca", "/no/such/file"},
        {ping_client, "--ca", key},
    };
    for (const command& bad : bad_clients)
    {
        const auto outcome = test::run_process(bad);
        INFO(bad[bad.size() - 1] << ": " << outcome.errors);
        CHECK(outcome.status == 1);
        CHECK(is_one_sentence(outcome.errors, "ping_client"));
    }
}

TEST_CASE("ping: a port that is taken, or where nobody listens, is told in one sentence")
{
    std::optional<running_server> server(std::in_place);
    const auto second = test::run_process({ping_server, "--host", "127.0.0.1", "--port", std::to_string(server->port()),
                                           "--cert", test::localhost_certificate().certificate_file, "--key",
                                           test::localhost_certificate().key_file});
    CHECK(second.status == 1);
    CHECK(is_one_sentence(second.errors, "ping_server"));
    const std::string address = "127.0.0.1:" + std::to_string(server->port());
    CHECK_THAT(second.errors, test::contains(address));

    CHECK(server->stop().status == 0);
    const auto client = test::run_process(client_of(server->port(), test::authority().ca_file(), "127.0.0.1"));
    CHECK(client.status == 1);
    CHECK(is_one_sentence(client.errors, "ping_client"));
    CHECK_THAT(client.errors, test::contains(address));
}

TEST_CASE("several_certificates: openssl s_client is shown the certificate of the name that it asks for")
{
    const auto mail = test::authority().issue({.common_name = "mail", .dns_names = {"mail.test"}});
    const auto other = test::authority().issue({.common_name = "other", .dns_names = {"a.test"}});
    const auto& own = test::localhost_certificate();
    test::process server({several_certificates, "0", own.certificate_file, own.key_file, "mail.test",
                          mail.certificate_file, mail.key_file, "*.test", other.certificate_file, other.key_file});
    const std::string address = "localhost:" + std::to_string(port_of(server.read_line()));
    for (const auto& [name, common_name] :
         {std::pair("mail.test", "mail"), {"a.test", "other"}, {"localhost", "localhost"}, {"elsewhere", "localhost"}})
    {
        const auto client = test::run_process(
            joined(test::words("openssl s_client -ign_eof -connect " + address), {"-servername", name}));
        INFO(name << "\n" << client.output << client.errors);
        CHECK_THAT(client.output, test::contains("subject=CN = "s + common_name + "\n"));
        CHECK_THAT(client.output, test::contains("You have asked for "s + name + "\n"));
    }
    server.send_signal(SIGTERM);
    const auto stopped = server.wait();
    CHECK(stopped.status == 0);
    CHECK(stopped.errors.empty());
}

TEST_CASE("mutual_tls: a client is greeted by its certificate's subject, and told why it is refused without one")
{
    const auto& own = test::localhost_certificate();
    const auto& clients = test::client_certificate();
    const std::string ca_file = test::authority().ca_file();
    test::process server({mutual_tls, "server", "0", ca_file, own.certificate_file, own.key_file});
    const std::string port = std::to_string(port_of(server.read_line()));
    const auto greeted =
        test::run_process({mutual_tls, "client", port, ca_file, clients.certificate_file, clients.key_file});
    CHECK(greeted.status == 0);
    CHECK(greeted.output == "Hello, CN=test client\n");
    CHECK(greeted.errors.empty());
    const auto refused = test::run_process({mutual_tls, "client", port, ca_file});
    CHECK(refused.status == 1);
    CHECK(is_one_sentence(refused.errors, "mutual_tls"));
    CHECK_THAT(refused.errors, test::contains("certificate required"));
    server.send_signal(SIGINT);
    const auto stopped = server.wait();
    CHECK(stopped.status == 0);
    CHECK_THAT(stopped.errors, test::contains("peer did not return a certificate"));
}

TEST_CASE("several_certificates, mutual_tls: --help tells how to call them, and a wrong call is one sentence")
{
    for (const auto& [program, name] :
         {std::pair(several_certificates, "several_certificates"s), {mutual_tls, "mutual_tls"s}})
    {
        const auto help = test::run_process({program, "--help"});
        CHECK(help.status == 0);
        CHECK(help.errors.empty());
        CHECK_THAT(help.output, test::starts_with("usage: " + name + " "));
        for (const command& bad :
             {command{program}, {program, "x"}, {program, "client", "1", "2", "3"}, {program, "0", "1", "2"}})
        {
            const auto outcome = test::run_process(bad);
            CHECK(outcome.status == 1);
            CHECK(is_one_sentence(outcome.errors, name));
        }
    }
}

TEST_CASE("one_port: TLS, plain text and upgrades are served on one port, and each client is told what it has")
{
    running_server server({}, "127.0.0.1", one_port);
    CHECK(server.first_line() == "listening on 127.0.0.1:" + std::to_string(server.port()) + "\n");
    test::raw_peer peer = server.connect();
    peer.send_all("PING\nHELP\n");
    CHECK(peer.recv_line() == "PONG in plain text\n");
    CHECK(peer.recv_line() == "ERROR unknown command\n");
    test::tls_settings settings = test::localhost_client();
    settings.send_before = "STARTTLS\n";
    peer.tls_connect(settings);
    peer.tls_write("PING\nQUIT\n");
    CHECK(peer.tls_read_all() == "PONG in TLS after an upgrade\n");
    peer.tls_shutdown();

    test::process secure(test::words("openssl s_client -quiet -verify_return_error -CAfile " +
                                     test::authority().ca_file() + " -connect 127.0.0.1:" +
                                     std::to_string(server.port())));
    secure.write("PING\nSTARTTLS\n");
    CHECK(secure.read_line() == "PONG in TLS from the first byte\n");
    CHECK(secure.read_line() == "ERROR unknown command\n");
    secure.write("QUIT\n");
    CHECK(secure.wait().status == 0);

    const auto stopped = server.stop();
    CHECK(stopped.status == 0);
    CHECK(stopped.errors.empty());
}

TEST_CASE("chat_server: what one client says reaches the others, in plain text, over TLS, and in an upgrade")
{
    running_server server({}, "127.0.0.1", chat_server);
    auto [plain, plain_name] = chatting(server);
    auto [secure, secure_name] = chatting(server);
    plain.send_all("1\n");
    CHECK(secure.recv_line() == plain_name + ": 1\n");
    secure.send_all("2\nSTARTTLS\n");
    CHECK(plain.recv_line() == secure_name + ": 2\n");
    plain.send_all("3\n4\n");
    secure.tls_connect(test::localhost_client());
    CHECK(secure.tls_read_line() == plain_name + ": 3\n");
    CHECK(secure.tls_read_line() == plain_name + ": 4\n");
    secure.tls_write("5\nQUIT\n");
    CHECK(plain.recv_line() == secure_name + ": 5\n");
    CHECK(secure.tls_read_all().empty());

    const auto stopped = server.stop();
    CHECK(stopped.status == 0);
    CHECK(stopped.errors.empty());
}

TEST_CASE("chat_server: a client that does not read is given up, and the others go on")
{
    running_server server({}, "127.0.0.1", chat_server);
    auto silent = chatting(server);
    auto [speaker, name] = chatting(server);
    auto listener = chatting(server);
    const std::string line = std::string(60000, 'x') + "\n";
    const std::string heard = name + ": " + line;
    constexpr std::size_t lines = 500; // more than the sockets' buffers take
    for (std::size_t n = 0; n < lines; ++n)
    {
        speaker.send_all(line);
        REQUIRE(listener.first.recv_exactly(heard.size()) == heard);
    }
    CHECK(silent.first.recv_all().size() < lines * heard.size());
    CHECK(server.stop().status == 0);
}

TEST_CASE("starttls_relay: both sides upgrade, bytes pass whole, and what is cut short on one side looks so on the other")
{
    const bool client_ends = GENERATE(false, true);
    const bool is_cut = GENERATE(false, true);
    CAPTURE(client_ends, is_cut);
    const auto end = [is_cut](test::raw_peer& peer) { is_cut ? peer.send_fin() : peer.tls_shutdown_send_only(); };
    const auto check_end = [is_cut](test::raw_peer& peer)
    {
        std::string rest;
        const auto read = [&] { rest = peer.tls_read_all(); };
        if (is_cut)
            CHECK_THROWS_AS(read(), std::runtime_error);
        else
            CHECK_NOTHROW(read());
        CHECK(rest.empty());
    };
    const std::string message(100'000, 'x');
    test::raw_listener listener;
    running_server relay({"--backend-port", std::to_string(listener.port()), "--backend-ca", test::authority().ca_file()},
                         "127.0.0.1", starttls_relay);
    auto serving = test::run_in_thread([&] { return served_relay(listener); });
    test::raw_peer client = relay.connect();
    CHECK(client.recv_line() == "220 relay ESMTP\r\n");
    client.send_all("EHLO client\r\n");
    CHECK(client.recv_line() == "250-relay\r\n");
    CHECK(client.recv_line() == "250 STARTTLS\r\n");
    client.send_all("MAIL FROM:<a@b>\r\n");
    CHECK_THAT(client.recv_line(), test::starts_with("530 "));
    client.send_all("STARTTLS\r\n");
    CHECK_THAT(client.recv_line(), test::starts_with("220 "));
    client.tls_connect(test::localhost_client());
    test::raw_peer backend = serving.get();
    client.tls_write(message);
    CHECK((backend.tls_read_exactly(message.size()) == message));
    backend.tls_write(message);
    CHECK((client.tls_read_exactly(message.size()) == message));
    end(client_ends ? client : backend);
    check_end(client_ends ? backend : client);
    if (!is_cut)
    {
        end(client_ends ? backend : client); // one direction ended without the other
        check_end(client_ends ? client : backend);
    }
    const auto stopped = relay.stop();
    CHECK(stopped.status == 0);
    CHECK(stopped.errors.empty() == !is_cut);
}

TEST_CASE("starttls_relay: what comes in plain text behind STARTTLS never reaches the server, and is told")
{
    test::raw_listener listener;
    running_server relay({"--backend-port", std::to_string(listener.port())}, "127.0.0.1", starttls_relay);
    test::raw_peer client = relay.connect();
    client.recv_line();
    client.send_all("STARTTLS\r\nMAIL FROM:<injected@example>\r\n");
    CHECK_THAT(client.recv_all(), test::starts_with("220 "));
    const auto stopped = relay.stop();
    CHECK(stopped.status == 0);
    CHECK_THAT(stopped.errors, test::contains("MAIL FROM:<injected@example>"));
}

TEST_CASE("one_port, chat_server, starttls_relay: --help tells the options, and a bad one is told in one sentence")
{
    for (const auto& [program, name] : {std::pair(one_port, "one_port"s),
                                        {chat_server, "chat_server"s},
                                        {starttls_relay, "starttls_relay"s}})
    {
        const auto help = test::run_process({program, "--help"});
        CHECK(help.status == 0);
        for (const std::string option : {"--host", "--port", "--cert", "--key"})
            CHECK_THAT(help.output, test::contains(option));
        for (const command& bad : {command{program, "--unknown", "x"}, command{program, "--port"},
                                   command{program, "--port", "0", "--cert", "/no/such/file"}})
        {
            const auto outcome = test::run_process(bad);
            CHECK(outcome.status == 1);
            CHECK(is_one_sentence(outcome.errors, name));
        }
    }
}
