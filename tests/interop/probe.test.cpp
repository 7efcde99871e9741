// examples/starttls_probe.cpp, with servers that answer by starttls/.

#include "protocol_servers.hpp"
#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/openssl.hpp"
#include "support/process.hpp"
#include "support/served_client.hpp"
#include "support/temporary_directory.hpp"

#include <openssl/asn1.h>
#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <fstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using command = std::vector<std::string>;

namespace
{

/// Runs the probe with `arguments(port)`, a command or its words, against a server of this protocol.
template <typename Arguments>
test::process::outcome run_probe(std::string_view protocol, Arguments arguments,
                                 const test::issued& identity = test::localhost_certificate())
{
    const auto handler = [protocol](us::stream_reader reader, us::stream_writer writer)
    { return test::serve_protocol(protocol, std::move(reader), std::move(writer)); };
    const auto probe = [&](const std::string& port)
    {
        command all = {STARTTLS_PROBE};
        command given;
        if constexpr (std::is_same_v<decltype(arguments(port)), command>)
            given = arguments(port);
        else
            given = test::words(arguments(port));
        all.insert(all.end(), given.begin(), given.end());
        return test::run_process(all);
    };
    return test::serve(handler, probe, identity).client;
}

/// The TLSA record of a server's own key, as the openssl program has it.
std::string tlsa_record_by_openssl(const test::issued& identity)
{
    const std::string key = "openssl x509 -in " + identity.certificate_file + " -pubkey -noout";
    const auto [status, output, errors] = test::run_process(
        {"sh", "-c", key + " | openssl pkey -pubin -outform DER | openssl dgst -sha256 -r | cut -c 1-64"});
    CAPTURE(errors);
    REQUIRE(status == 0);
    return "3 1 1 " + output.substr(0, 64);
}

} // namespace

TEST_CASE("starttls_probe: a server of each protocol is verified, and what was negotiated is told")
{
    for (const std::string protocol : {"smtp", "submission", "lmtp", "imap", "pop3", "sieve", "nntp", "ftp", "irc",
                                       "xmpp", "xmpp-server", "ldap", "postgres", "nbd"})
    {
        const auto [status, output, errors] =
            run_probe(protocol == "submission" ? "smtp" : protocol,
                      [&](const std::string& port)
                      {
                          return protocol + " 127.0.0.1:" + port + " --name localhost --ca " +
                                 test::authority().ca_file();
                      });
        CAPTURE(protocol, output, errors);
        CHECK(status == 0);
        const char* const key_exchange =
            OpenSSL_version_num() < 0x30500000L ? "key exchange x25519," : "key exchange X25519MLKEM768,";
        for (const std::string told :
             {"TLSv1.3, TLS_AES_", key_exchange, "ALPN none", "certificate of CN=localhost\n",
              "for DNS:localhost, IP Address:127.0.0.1, IP Address:::1\n", " 29 days left", "ms, plain dialogue ",
              "verified for \"localhost\""})
            CHECK_THAT(output, test::contains(told));
    }
}

TEST_CASE("starttls_probe: a certificate that does not verify is shown, and the exit status is 1")
{
    const std::string ca = " --ca " + test::authority().ca_file();
    const std::pair<std::string, std::string> failures[] = {
        {" --name other.example" + ca, "the certificate is not accepted for \"other.example\": hostname mismatch"},
        {" --name localhost --ca " + test::unrelated_authority().ca_file(),
         "the certificate is not accepted for \"localhost\": unable"},
        {" --name localhost --days 31" + ca, "the certificate is good for 29 days"}};
    for (const auto& [options, failure] : failures)
    {
        const auto [status, output, errors] =
            run_probe("smtp", [&](const std::string& port) { return "smtp 127.0.0.1:" + port + options; });
        CAPTURE(options, errors);
        CHECK(status == 1);
        CHECK_THAT(output, test::contains("FAILED: " + failure));
        CHECK_THAT(output, test::contains("certificate of CN=localhost\n"));
    }
}

TEST_CASE("starttls_probe: a server is known by a TLSA record, and by no other's")
{
    const std::string right = tlsa_record_by_openssl(test::localhost_certificate());
    const std::string wrong = tlsa_record_by_openssl(test::client_certificate());
    for (const bool is_right : {true, false})
    {
        const auto [status, output, errors] = run_probe(
            "smtp",
            [&](const std::string& port)
            {
                command arguments = {"smtp", "127.0.0.1:" + port, "--name", "mail.test", "--tlsa", wrong};
                if (is_right)
                    arguments.insert(arguments.end(), {"--tlsa", right});
                return arguments;
            });
        CAPTURE(is_right, errors);
        CHECK(status == (is_right ? 0 : 1));
        CHECK_THAT(output, test::contains(is_right ? "verified for \"mail.test\"" : "(no matching DANE TLSA records)"));
    }
}

TEST_CASE("starttls_probe: what a server has in its certificate does nothing to a terminal")
{
    const test::issued hostile =
        test::authority().issue({.common_name = "\x1b[2J", .dns_names = {"localhost", "a\x1b[2J\nb"}});
    for (const std::string format : {"", " --json"})
    {
        const auto [status, output, errors] = run_probe(
            "smtp",
            [&](const std::string& port)
            { return "smtp 127.0.0.1:" + port + " --name localhost --ca " + test::authority().ca_file() + format; },
            hostile);
        CHECK(status == 0);
        CHECK(output.find('\x1b') == output.npos);
        CHECK_THAT(output, test::contains("DNS:a\\u001b[2J\\u000ab"));
    }
}

TEST_CASE("starttls_probe: a certificate with a time that is none is one target's failure, and the others go on")
{
    using test::openssl_ptr;
    const test::temporary_directory directory;
    const test::issued broken{directory.file("broken.pem"), test::localhost_certificate().key_file};
    const openssl_ptr<BIO, BIO_free> in(BIO_new_file(test::localhost_certificate().certificate_file.c_str(), "r"));
    const openssl_ptr<BIO, BIO_free> out(BIO_new_file(broken.certificate_file.c_str(), "w"));
    const openssl_ptr<X509, X509_free> certificate(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr));
    const openssl_ptr<ASN1_TIME, ASN1_TIME_free> time(ASN1_TIME_set(nullptr, 0));
    ASN1_STRING_set(time.get(), "279901000000Z", 13);
    X509_set1_notAfter(certificate.get(), time.get());
    i2d_re_X509_tbs(certificate.get(), nullptr); // forgets the encoding that it was read from
    test::openssl_check(PEM_write_bio_X509(out.get(), certificate.get()), "PEM_write_bio_X509");
    BIO_flush(out.get());
    for (const std::string format : {"", " --json"})
    {
        const auto [status, output, errors] = run_probe(
            "smtp",
            [&](const std::string& port)
            {
                std::ofstream(directory.file("targets")) << "smtp 127.0.0.1:" << port << " localhost\n"
                                                         << "smtp 127.0.0.1:1\n";
                return "--targets " + directory.file("targets") + " --at-once 1" + format;
            },
            broken);
        CAPTURE(output);
        CHECK(status == 1);
        CHECK(errors == "");
        CHECK_THAT(output, test::contains("the certificate holds a time that is none"));
        CHECK_THAT(output, test::contains("cannot connect to 127.0.0.1:1"));
    }
}

TEST_CASE("starttls_probe: the targets of a file are probed at a time, with a line of JSON for each")
{
    if (test::is_missing("Python", {"python3", "-c", "import json"}))
        return;
    const test::temporary_directory directory;
    const auto [status, output, errors] = run_probe(
        "imap",
        [&](const std::string& port)
        {
            std::ofstream file(directory.file("targets"));
            file << "# mine\n\n";
            for (int i = 0; i < 20; ++i)
                file << "imap 127.0.0.1:" << port << " localhost # " << i << '\n';
            file << "imap [127.0.0.1]:" << port << " other.example\n"
                 << "imap 127.0.0.1:1\n";
            return "--targets " + directory.file("targets") + " --json --at-once 5 --ca " + test::authority().ca_file();
        });
    CAPTURE(output, errors);
    CHECK(status == 1);
    CHECK(errors == ""); // no bar where there is no terminal
    test::process python({"python3", "-c",
                          "import json, sys\n"
                          "all = [json.loads(line) for line in sys.stdin]\n"
                          "good = [each for each in all if each['verified']]\n"
                          "print(len(all), len(good), good[0]['version'], good[0]['chain'][0]['names'],\n"
                          "      good[0]['chain'][0]['days_left'], good[0]['failure'], good[0]['capabilities'],\n"
                          "      sorted(good[0]['milliseconds']), sum('version' in each for each in all))\n"});
    python.write(output);
    CHECK(python.wait().output ==
          "22 20 TLSv1.3 ['DNS:localhost', 'IP Address:127.0.0.1', 'IP Address:::1'] 29 None ['IMAP4rev1'] "
          "['connect', 'dialogue', 'handshake'] 21\n");
}

TEST_CASE("starttls_probe: wrong arguments are told with what is right, and the exit status is 2")
{
    const test::temporary_directory directory;
    std::ofstream(directory.file("targets")) << "smtp a\nsmpt b\n";
    std::ofstream(directory.file("none")) << "# smtp a\n";
    const std::pair<std::string, std::string> wrong[] = {
        {"", "give PROTOCOL and HOST, or --targets"},
        {"smpt localhost", "there is no protocol \"smpt\""},
        {"smtp ::1", "an IPv6 address is put in brackets"},
        {"smtp [::1", "lacks a bracket"},
        {"smtp localhost:", "is not HOST[:PORT]"},
        {"http-connect localhost", "needs a target behind the proxy"},
        {"smtp localhost --days x", "\"x\" is not a number from 0 on"},
        {"smtp localhost --ca", "--ca needs a value"},
        {"smtp localhost --tls", "there is no option --tls"},
        {"smtp localhost --tlsa 3", "\"3\" is no TLSA record"},
        {"--targets " + directory.file("targets"), "targets:2: there is no protocol \"smpt\""},
        {"--targets " + directory.file("none"), "none: there is no target"}};
    for (const auto& [arguments, told] : wrong)
    {
        const auto [status, output, errors] = test::run_process(test::words(STARTTLS_PROBE " " + arguments));
        CAPTURE(arguments);
        CHECK(status == 2);
        CHECK(output == "");
        CHECK_THAT(errors, test::contains(told));
        CHECK_THAT(errors, test::contains("usage: starttls_probe"));
    }
}

TEST_CASE("starttls_probe: a CA file that is not there, and output that cannot be written: exit status 2")
{
    const std::pair<std::string, std::string> troubles[] = {
        {" smtp [::1]:1 --ca /nowhere", "CA file \"/nowhere\": No such file or directory\n"},
        {" smtp [::1]:1 >/dev/full", "the output could not be written\n"}};
    for (const auto& [arguments, told] : troubles)
    {
        const auto [status, output, errors] = test::run_process({"sh", "-c", STARTTLS_PROBE + arguments});
        CHECK(status == 2);
        CHECK(output == "");
        CHECK(errors == "starttls_probe: " + told);
    }
}

TEST_CASE("starttls_probe: an IPv6 address is shown in brackets, and --help helps wherever it stands")
{
    const test::process::outcome refused = test::run_process({STARTTLS_PROBE, "smtp", "[::1]:1"});
    CHECK(refused.status == 1);
    CHECK_THAT(refused.output, test::starts_with("smtp [::1]:1\n  FAILED: "));
    const test::process::outcome helped = test::run_process({STARTTLS_PROBE, "smtp", "--help"});
    CHECK(helped.status == 0);
    CHECK_THAT(helped.output, test::starts_with("usage: starttls_probe"));
}
