// The examples of TLS that ends before the connection does, and of TLS within TLS, with servers in Python.

#include "support/catch.hpp"
#include "support/certificates.hpp"
#include "support/process.hpp"

#include <string>
#include <vector>

namespace
{

using command = std::vector<std::string>;

bool is_python_missing()
{
    if (test::succeeds({"python3", "-c", "import ssl"}))
        return false;
    WARN("skipped: there is no Python");
    return true;
}

/// A program in Python that first prints the port on which it listens.
class python_server
{
public:
    python_server(const std::string& script, const test::issued& identity)
        : process_({"python3", "-c", script, identity.certificate_file, identity.key_file}), port_(process_.read_line())
    {
        port_.pop_back();
    }

    const std::string& port() const { return port_; }
    test::process::outcome wait() { return process_.wait(); }

private:
    test::process process_;
    std::string port_;
};

const std::string script_head = R"(
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(*sys.argv[1:3])
listener = socket.create_server(("127.0.0.1", 0))
listener.settimeout(30)
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()

def line_of(sock):
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            break
        line += byte
    return line
)";

const std::string ftp_server = script_head + R"(
connection.sendall(b"220-hello\r\n220 ready\r\n")
seen = [line_of(connection)]
connection.sendall(b"234 begin\r\n")
tls = context.wrap_socket(connection, server_side=True)
for reply in (b"331 password\r\n", b"230 welcome\r\n", b"200 end\r\n"):
    seen.append(line_of(tls))
    tls.sendall(reply)
connection = tls.unwrap()
for reply in (b"257 \"/\"\r\n", b"221 bye\r\n"):
    seen.append(line_of(connection))
    connection.sendall(reply)
print(b"".join(seen))
)";

/// A proxy in TLS before a server in TLS, both with the same certificate.
const std::string proxy_and_server = script_head + R"(
inner = socket.create_server(("127.0.0.1", 0))

def serve():
    with context.wrap_socket(inner.accept()[0], server_side=True) as tls:
        request = line_of(tls)
        while line_of(tls) != b"\r\n":
            pass
        tls.sendall(b"HTTP/1.0 200 OK\r\n\r\nthe page for " + request)
        tls.unwrap()

def relay(source, sink):
    while data := source.recv(4096):
        sink.sendall(data)

server = threading.Thread(target=serve)
server.start()
tls = context.wrap_socket(connection, server_side=True)
request = line_of(tls)
while line_of(tls) != b"\r\n":
    pass
target = socket.create_connection(inner.getsockname())
tls.sendall(b"HTTP/1.1 200 connected\r\n\r\n")
back = threading.Thread(target=relay, args=(target, tls))
back.start()
relay(tls, target)
target.shutdown(socket.SHUT_WR)
back.join()
server.join()
tls.unwrap()
print(request)
)";

} // namespace

TEST_CASE("ftp_ccc: it logs in over TLS and goes on in plain text")
{
    if (is_python_missing())
        return;
    python_server server(ftp_server, test::localhost_certificate());
    const auto client = test::run_process(
        {FTP_CCC, "localhost", server.port(), "somebody", "secret", test::authority().ca_file()});
    CHECK(client.status == 0);
    CHECK(client.errors.empty());
    CHECK(client.output == "220-hello\r\n220 ready\r\n234 begin\r\nover TLSv1.3\n331 password\r\n230 welcome\r\n200 end\r\n"
                           "in plain text\n257 \"/\"\r\n221 bye\r\n");
    const auto outcome = server.wait();
    INFO(outcome.errors);
    CHECK(outcome.status == 0);
    CHECK(outcome.errors.empty());
    CHECK(outcome.output == R"(b'AUTH TLS\r\nUSER somebody\r\nPASS secret\r\nCCC\r\nPWD\r\nQUIT\r\n')" "\n");
}

TEST_CASE("proxy_tunnel: it gets a page from a server in TLS through a proxy in TLS")
{
    if (is_python_missing())
        return;
    python_server server(proxy_and_server, test::localhost_certificate());
    const auto client = test::run_process(
        {PROXY_TUNNEL, "localhost", server.port(), "localhost", "443", test::authority().ca_file()});
    CHECK(client.status == 0);
    CHECK(client.errors.empty());
    CHECK(client.output == "The proxy is CN=localhost\nThe server is CN=localhost\n"
                           "HTTP/1.0 200 OK\r\n\r\nthe page for GET / HTTP/1.0\r\n");
    const auto outcome = server.wait();
    INFO(outcome.errors);
    CHECK(outcome.status == 0);
    CHECK(outcome.errors.empty());
    CHECK(outcome.output == R"(b'CONNECT localhost:443 HTTP/1.1\r\n')" "\n");
}

TEST_CASE("proxy_tunnel: a server that is not who it should be is refused, and the error says so")
{
    if (is_python_missing())
        return;
    python_server server(proxy_and_server, test::localhost_certificate());
    const auto client = test::run_process(
        {PROXY_TUNNEL, "localhost", server.port(), "other.example", "443", test::authority().ca_file()});
    CHECK(client.status == 1);
    CHECK_THAT(client.errors, test::contains("CN=localhost"));
    CHECK_THAT(client.errors, test::contains("\"other.example\""));
    CHECK_THAT(client.errors, test::contains("it is for DNS:localhost"));
}

TEST_CASE("ftp_ccc, proxy_tunnel: --help tells the arguments, and too few are refused")
{
    for (const std::string program : {FTP_CCC, PROXY_TUNNEL})
    {
        const auto help = test::run_process({program, "--help"});
        CHECK(help.status == 0);
        CHECK_THAT(help.output, test::starts_with("usage: "));
        const auto few = test::run_process({program, "localhost"});
        CHECK(few.status == 1);
        CHECK_THAT(few.errors, test::starts_with("usage: "));
    }
}
