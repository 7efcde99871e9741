/// @file
/// What line_client is made of: its options, connections without Asio, and the answers that they await.
#ifndef BENCH_CLIENT_CONNECTION_HPP
#define BENCH_CLIENT_CONNECTION_HPP

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

namespace bench
{

constexpr int patience = 10'000; // milliseconds, for each wait
constexpr int batch = 256 * 1024;

inline int check(int result, const char* what)
{
    if (result < 0)
        throw std::system_error(errno, std::generic_category(), what);
    return result;
}

struct options
{
    std::string work;
    std::uint16_t port = 0;
    pid_t server = 0;
    std::map<std::string, double> values = {{"--tls", 0},         {"--seconds", 1},    {"--connections", 1},
                                            {"--idle", 0},        {"--pipelined", 1},  {"--size", 0},
                                            {"--piece", 1 << 20}, {"--outstanding", 1}};

    options(int argc, char** argv)
    {
        if (argc < 4 || argc % 2 != 0)
            throw std::invalid_argument("the arguments are WORK PORT PID and pairs of an option and a number");
        work = argv[1];
        port = static_cast<std::uint16_t>(std::stoul(argv[2]));
        server = std::stoi(argv[3]);
        for (int i = 4; i < argc; i += 2)
        {
            if (!values.contains(argv[i]))
                throw std::invalid_argument(std::string("there is no option ") + argv[i]);
            values[argv[i]] = std::stod(argv[i + 1]);
        }
    }

    std::size_t operator[](const char* name) const { return static_cast<std::size_t>(values.at(name)); }
    bool bulk() const { return work == "source" || work == "sink"; }
};

/// Offers one cipher and one group, lest servers be compared that prefer different ones.
inline SSL_CTX* client_context(bool bulk)
{
    static SSL_CTX* const context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set1_groups_list(context, "X25519");
    SSL_CTX_set_read_ahead(context, 1);
    if (bulk)
        SSL_CTX_set_default_read_buffer_len(context, batch);
    else
        SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    return context;
}

class connection
{
public:
    explicit connection(const options& given)
        : socket_(check(::socket(AF_INET, SOCK_STREAM, 0), "socket")), bulk_(given.bulk())
    {
        static std::uint32_t count = 0;
        sockaddr_in own{};
        own.sin_family = AF_INET;
        own.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + count++ % 64); // one address alone would run out of ports
        sockaddr_in server{};
        server.sin_family = AF_INET;
        server.sin_port = htons(given.port);
        server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        const timeval limit = {.tv_sec = patience / 1000, .tv_usec = 0};
        const int on = 1;
        check(::setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit), "SO_SNDTIMEO");
        check(::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), "TCP_NODELAY");
        check(::setsockopt(socket_, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on), "IP_BIND_ADDRESS_NO_PORT");
        check(::bind(socket_, reinterpret_cast<const sockaddr*>(&own), sizeof own), "bind");
        check(::connect(socket_, reinterpret_cast<const sockaddr*>(&server), sizeof server), "connect");
        check(::fcntl(socket_, F_SETFL, O_NONBLOCK), "O_NONBLOCK");
    }

    connection(const connection&) = delete;
    connection& operator=(const connection&) = delete;

    ~connection()
    {
        if (ssl_ && SSL_is_init_finished(ssl_))
        {
            SSL_shutdown(ssl_);
            BIO_flush(SSL_get_wbio(ssl_));
        }
        ERR_clear_error();
        SSL_free(ssl_);
        ::close(socket_);
    }

    void write(std::string_view data)
    {
        while (!data.empty())
        {
            const auto size = static_cast<int>(std::min<std::size_t>(data.size(), ssl_ ? 16 * 1024 : batch));
            const int sent = ssl_ ? SSL_write(ssl_, data.data(), size)
                                  : static_cast<int>(::send(socket_, data.data(), static_cast<std::size_t>(size), 0));
            if (sent > 0)
                data.remove_prefix(static_cast<std::size_t>(sent));
            else
                wait(what_to_wait_for(sent, POLLOUT));
        }
        while (ssl_ && BIO_flush(SSL_get_wbio(ssl_)) <= 0)
        {
            if (!BIO_should_retry(SSL_get_wbio(ssl_)))
                throw std::runtime_error("the server closed the connection");
            wait(POLLOUT);
        }
    }

    /// Returns: 0 when there is nothing yet.
    std::size_t read_some(char* data, std::size_t size)
    {
        const int received =
            ssl_ ? SSL_read(ssl_, data, static_cast<int>(size)) : static_cast<int>(::recv(socket_, data, size, 0));
        must_wait_ = received <= 0;
        if (must_wait_)
            what_to_wait_for(received, POLLIN);
        return static_cast<std::size_t>(std::max(received, 0));
    }

    bool may_read_without_waiting() const { return ssl_ && !must_wait_ && SSL_has_pending(ssl_); }

    /// Goes on with a handshake as far as it can. Returns: whether that is over.
    bool handshake()
    {
        if (!ssl_)
        {
            ssl_ = SSL_new(client_context(bulk_));
            BIO* const socket = BIO_new_socket(socket_, BIO_NOCLOSE);
            BIO* const records = BIO_new(BIO_f_buffer()); // so that many leave in one send
            if (bulk_)
                BIO_set_write_buffer_size(records, batch);
            BIO_up_ref(socket);
            SSL_set0_rbio(ssl_, socket);
            SSL_set0_wbio(ssl_, BIO_push(records, socket));
        }
        const int result = SSL_connect(ssl_);
        if (result != 1)
            what_to_wait_for(result, POLLIN);
        return result == 1;
    }

    void wait(short events) const
    {
        pollfd awaited = {.fd = socket_, .events = events, .revents = 0};
        if (check(::poll(&awaited, 1, patience), "poll") == 0)
            throw std::runtime_error("the server is silent");
    }

    void add_to(int epoll, void* owner) const
    {
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.ptr = owner;
        check(::epoll_ctl(epoll, EPOLL_CTL_ADD, socket_, &event), "epoll_ctl");
    }

private:
    /// What an operation that did not succeed waits for; throws when it failed.
    short what_to_wait_for(int result, short events) const
    {
        const int error = ssl_ ? SSL_get_error(ssl_, result) : result == 0 ? SSL_ERROR_ZERO_RETURN : SSL_ERROR_SYSCALL;
        if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
            return error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
        if (error == SSL_ERROR_SSL)
            throw std::runtime_error(ERR_error_string(ERR_peek_error(), nullptr));
        if (error == SSL_ERROR_ZERO_RETURN)
            throw std::runtime_error("the server closed the connection");
        if (errno != EAGAIN)
            throw std::system_error(errno, std::generic_category(), "connection");
        return events;
    }

    int socket_;
    bool bulk_;
    bool must_wait_ = false;
    SSL* ssl_ = nullptr;
};

/// The answers that a connection awaits.
class answers
{
public:
    /// An `expected` that is empty stands for `size` bytes of any kind.
    answers(std::string expected, std::size_t size) : expected_(std::move(expected)), size_(size) {}
    explicit answers(const std::string& expected) : answers(expected, expected.size()) {}

    /// Reads what there is, up to the end of the answer if `one`. Returns: how many answers are complete by that.
    std::size_t read(connection& from, bool one = false)
    {
        static std::vector<char> buffer(batch);
        const std::size_t size = from.read_some(buffer.data(), one ? size_ - received_ : buffer.size());
        for (std::size_t i = 0; !expected_.empty() && i < size; ++i)
            if (buffer[i] != expected_[(received_ + i) % size_])
                throw std::runtime_error("a wrong answer");
        const std::size_t complete = (received_ + size) / size_;
        received_ = (received_ + size) % size_;
        return complete;
    }

private:
    std::string expected_;
    std::size_t size_;
    std::size_t received_ = 0;
};

inline void ping(connection& c)
{
    c.write("PING\n");
    for (answers pong("PONG\n"); pong.read(c, true) == 0;)
        c.wait(POLLIN);
}

inline std::unique_ptr<connection> open(const options& given, bool tls)
{
    auto opened = std::make_unique<connection>(given);
    ping(*opened);
    if (!tls)
        return opened;
    opened->write("STARTTLS\n");
    while (!opened->handshake())
        opened->wait(POLLIN);
    ping(*opened);
    return opened;
}

inline std::vector<std::unique_ptr<connection>> open(const options& given, std::size_t count, bool tls)
{
    std::vector<std::unique_ptr<connection>> opened(count);
    for (auto& one : opened)
        one = open(given, tls);
    return opened;
}

} // namespace bench

#endif
