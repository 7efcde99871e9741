// Clients that others wrote, as far as this machine has them, with servers that answer by starttls/.

#include "protocol_servers.hpp"
#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/process.hpp"
#include "support/served_client.hpp"
#include "support/temporary_directory.hpp"

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;
using command = std::vector<std::string>;

namespace
{

/// Runs a client, given the port and the file of certificates to trust, against the server of this protocol.
template <typename MakeCommand>
test::process::outcome run_client(std::string_view protocol, const std::string& ca_file, MakeCommand make_command)
{
    const auto handler = [protocol](us::stream_reader reader, us::stream_writer writer)
    { return test::serve_protocol(protocol, std::move(reader), std::move(writer)); };
    auto [client, errors] =
        test::serve(handler, [&](const std::string& port) { return test::run_process(make_command(port, ca_file)); });
    for (const auto& error : errors)
        client.errors += "\nthe server: " + error.what;
    return client;
}

/// The client comes to its end where it trusts the server, writing `proof`, and not where it does not.
template <typename MakeCommand>
void check_client(std::string_view protocol, const std::string& proof, MakeCommand make_command)
{
    CAPTURE(protocol);
    const auto trusting = run_client(protocol, test::authority().ca_file(), make_command);
    CAPTURE(trusting.output, trusting.errors);
    CHECK(trusting.status == 0);
    CHECK_THAT(trusting.output + trusting.errors, test::contains(proof));
    const auto other = run_client(protocol, test::unrelated_authority().ca_file(), make_command);
    CAPTURE(other.output, other.errors);
    CHECK(other.status != 0);
}

/// As check_client, of one that is given a directory, in which the certificates to trust are ca-cert.pem.
template <typename MakeCommand>
void check_client_with_ca_directory(std::string_view protocol, const std::string& proof, MakeCommand make_command)
{
    const test::temporary_directory directory;
    check_client(protocol, proof,
                 [&](const std::string& port, const std::string& ca_file)
                 {
                     std::filesystem::copy_file(ca_file, directory.file("ca-cert.pem"),
                                                std::filesystem::copy_options::overwrite_existing);
                     return make_command(port, directory.path());
                 });
}

} // namespace

TEST_CASE("real clients: openssl s_client, of every protocol")
{
    for (const std::string protocol : {"smtp", "lmtp", "imap", "pop3", "sieve", "nntp", "ftp", "irc", "xmpp",
                                       "xmpp-server", "ldap", "postgres"})
        check_client(protocol, "Verify return code: 0 (ok)",
                     [&](const std::string& port, const std::string& ca_file)
                     {
                         return test::words("openssl s_client -starttls " + protocol + " -connect 127.0.0.1:" + port +
                                            " -CAfile " + ca_file + " -verify_return_error -verify_hostname localhost" +
                                            (protocol.starts_with("xmpp") ? " -xmpphost localhost" : ""));
                     });
}

TEST_CASE("real clients: gnutls-cli --starttls-proto")
{
    if (test::is_missing("gnutls-cli", {"gnutls-cli", "--version"}))
        return;
    for (const std::string protocol :
         {"smtp", "lmtp", "imap", "pop3", "sieve", "nntp", "ftp", "xmpp", "ldap", "postgres"})
        check_client(protocol, "- Description: (TLS",
                     [&](const std::string& port, const std::string& ca_file)
                     {
                         return test::words("gnutls-cli --starttls-proto " + protocol + " --port " + port +
                                            " --x509cafile " + ca_file +
                                            " --verify-hostname localhost --sni-hostname localhost 127.0.0.1");
                     });
}

TEST_CASE("real clients: curl")
{
    if (test::is_missing("curl", {"curl", "--version"}))
        return;
    const std::pair<std::string, std::string> transfers[] = {
        {"smtp", " -X NOOP smtp://"}, {"imap", " -X NOOP imap://"}, {"pop3", " -l pop3://"}, {"ftp", " -I ftp://"}};
    for (const auto& [protocol, transfer] : transfers)
        check_client(protocol, "SSL certificate verify ok",
                     [&](const std::string& port, const std::string& ca_file)
                     {
                         return test::words("curl -v -sS -4 -m 20 --ssl-reqd --cacert " + ca_file +
                                            (protocol == "smtp" ? "" : " -u user:password") + transfer +
                                            "localhost:" + port + "/");
                     });
}

TEST_CASE("real clients: swaks")
{
    if (test::is_missing("swaks", {"swaks", "--version"}))
        return;
    check_client("smtp", "250 2.0.0 Ok",
                 [&](const std::string& port, const std::string& ca_file)
                 {
                     return test::words("swaks --server 127.0.0.1 --port " + port + " --tls --tls-verify" +
                                        " --tls-ca-path " + ca_file +
                                        " --helo localhost --from a@localhost --to b@localhost");
                 });
}

TEST_CASE("real clients: ldapsearch -ZZ")
{
    if (test::is_missing("ldapsearch", {"ldapsearch", "-VV"}))
        return;
    check_client("ldap", "result: 0 Success",
                 [&](const std::string& port, const std::string& ca_file)
                 {
                     return test::words("env LDAPTLS_CACERT=" + ca_file + " LDAPTLS_REQCERT=demand" +
                                        " ldapsearch -ZZ -x -H ldap://127.0.0.1:" + port + " -b dc=test -s base");
                 });
}

TEST_CASE("real clients: psql with sslmode=verify-full")
{
    if (test::is_missing("psql", {"psql", "--version"}))
        return;
    check_client("postgres", "over TLSv1.3",
                 [&](const std::string& port, const std::string& ca_file)
                 {
                     return command{"psql",
                                    "host=localhost hostaddr=127.0.0.1 port=" + port +
                                        " user=u dbname=d gssencmode=disable" +
                                        " sslmode=verify-full sslrootcert=" + ca_file,
                                    "-c",
                                    ";",
                                    "-c",
                                    "\\echo over TLSv1.3"};
                 });
}

TEST_CASE("real clients: nbdinfo")
{
    if (test::is_missing("nbdinfo", {"nbdinfo", "--version"}))
        return;
    check_client_with_ca_directory(
        "nbd", "export-size: 1048576", [&](const std::string& port, const std::string& directory)
        { return command{"nbdinfo", "--no-content", "nbds://localhost:" + port + "/?tls-certificates=" + directory}; });
}

TEST_CASE("real clients: qemu-img")
{
    if (test::is_missing("qemu-img", {"qemu-img", "--version"}))
        return;
    check_client_with_ca_directory(
        "nbd", "virtual size: 1 MiB",
        [&](const std::string& port, const std::string& directory)
        {
            return test::words(
                "qemu-img info --object tls-creds-x509,id=tls,endpoint=client,verify-peer=yes,dir=" + directory +
                " --image-opts driver=nbd,host=127.0.0.1,tls-creds=tls," + "tls-hostname=localhost,port=" + port);
        });
}

TEST_CASE("real clients: Python's smtplib, imaplib, poplib and ftplib")
{
    if (test::is_missing("Python", {"python3", "-c", "import ssl"}))
        return;
    const std::pair<std::string, std::string> scripts[] = {
        {"smtp", "import smtplib\n"
                 "client = smtplib.SMTP('localhost', port)\n"
                 "client.starttls(context=tls)\n"
                 "version = client.sock.version()\n"
                 "client.sendmail('a@localhost', 'b@localhost', 'Subject: x\\n\\ny\\n')\n"
                 "client.quit()\n"},
        {"imap", "import imaplib\n"
                 "client = imaplib.IMAP4('localhost', port)\n"
                 "client.starttls(tls)\n"
                 "version = client.sock.version()\n"
                 "client.login('user', 'password')\n"
                 "client.logout()\n"},
        {"pop3", "import poplib\n"
                 "client = poplib.POP3('localhost', port)\n"
                 "client.stls(tls)\n"
                 "version = client.sock.version()\n"
                 "client.user('user')\n"
                 "client.pass_('password')\n"
                 "client.quit()\n"},
        {"ftp", "import ftplib\n"
                "client = ftplib.FTP_TLS(context=tls)\n"
                "client.connect('localhost', port)\n"
                "client.login('user', 'password')\n"
                "version = client.sock.version()\n"
                "client.prot_p()\n"
                "client.quit()\n"}};
    for (const auto& [protocol, script] : scripts)
        check_client(protocol, "over TLSv1.3",
                     [&](const std::string& port, const std::string& ca_file)
                     {
                         return command{"python3", "-c",
                                        "import ssl, sys\n"
                                        "port = int(sys.argv[1])\n"
                                        "tls = ssl.create_default_context(cafile=sys.argv[2])\n" +
                                            script + "print('over', version)\n",
                                        port, ca_file};
                     });
}
