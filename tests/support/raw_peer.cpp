#include "raw_peer.hpp"

#include "deadline.hpp"

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

namespace test
{
namespace
{

[[noreturn]] void throw_errno(const char* what)
{
    const int code = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINPROGRESS ? ETIMEDOUT : errno;
    throw std::system_error(code, std::system_category(), what);
}

template <typename Result>
Result check(Result result, const char* what)
{
    if (result < 0)
        throw_errno(what);
    return result;
}

/// A call on a socket with a deadline is not restarted after the process was stopped (signal(7)).
template <typename Call>
auto not_interrupted(Call call)
{
    decltype(call()) count = 0;
    do
        count = call();
    while (count < 0 && errno == EINTR);
    return count;
}

void set_deadlines(int descriptor)
{
    const timeval wait{std::chrono::duration_cast<std::chrono::seconds>(peer_deadline).count(), 0};
    check(::setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait), "SO_RCVTIMEO");
    check(::setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait), "SO_SNDTIMEO");
}

int open_socket(const any_endpoint& endpoint)
{
    const int descriptor = check(::socket(endpoint.data()->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    set_deadlines(descriptor);
    return descriptor;
}

template <typename Read>
std::string read_exactly(std::size_t size, Read read)
{
    std::string result;
    while (result.size() < size)
    {
        const std::string bytes = read(std::min<std::size_t>(size - result.size(), 65536));
        if (bytes.empty())
            break;
        result += bytes;
    }
    return result;
}

template <typename Read>
std::string read_line(Read read)
{
    std::string line;
    while (!line.ends_with('\n'))
    {
        const std::string byte = read(1);
        if (byte.empty())
            break;
        line += byte;
    }
    return line;
}

} // namespace

/// The socket as an OpenSSL BIO that never raises SIGPIPE, and that keeps back the first flight until it is whole.
struct raw_peer::transport
{
    explicit transport(int socket) noexcept : descriptor(socket) {}
    ~transport() { close(); }
    transport(const transport&) = delete;
    transport& operator=(const transport&) = delete;

    void close() noexcept
    {
        if (descriptor >= 0)
            ::close(std::exchange(descriptor, -1));
    }

    ssize_t send_all(std::string_view bytes) const noexcept
    {
        for (std::size_t sent = 0; sent < bytes.size();)
        {
            const ssize_t count = not_interrupted(
                [&] { return ::send(descriptor, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL); });
            if (count < 0)
                return count;
            sent += static_cast<std::size_t>(count);
        }
        return static_cast<ssize_t>(bytes.size());
    }

    static int write(BIO* bio, const char* data, int size)
    {
        auto& self = *static_cast<transport*>(BIO_get_data(bio));
        BIO_clear_retry_flags(bio);
        const std::string_view bytes(data, static_cast<std::size_t>(size));
        if (!self.send_flight)
            return self.send_all(bytes) < 0 ? -1 : size;
        self.flight += bytes;
        return size;
    }

    bool flush()
    {
        ssize_t result = 0;
        if (const flight_sender sender = std::exchange(send_flight, {}))
            sender(flight, [&](std::string_view bytes) { result = result < 0 ? result : send_all(bytes); });
        return result >= 0;
    }

    static int read(BIO* bio, char* data, int size)
    {
        const auto& self = *static_cast<const transport*>(BIO_get_data(bio));
        BIO_clear_retry_flags(bio);
        const ssize_t count =
            not_interrupted([&] { return ::recv(self.descriptor, data, static_cast<std::size_t>(size), 0); });
        if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            BIO_set_retry_read(bio);
        self.at_end = count == 0;
        return static_cast<int>(count);
    }

    static long control(BIO* bio, int command, long, void*)
    {
        auto& self = *static_cast<transport*>(BIO_get_data(bio));
        switch (command)
        {
        case BIO_CTRL_EOF: return self.at_end;
        case BIO_CTRL_FLUSH: return self.flush();
        default: return 0;
        }
    }

    static BIO_METHOD* method()
    {
        static const openssl_ptr<BIO_METHOD, BIO_meth_free> shared = []
        {
            openssl_ptr<BIO_METHOD, BIO_meth_free> made(
                openssl_check(BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "raw_peer"), "BIO_meth_new"));
            BIO_meth_set_write(made.get(), write);
            BIO_meth_set_read(made.get(), read);
            BIO_meth_set_ctrl(made.get(), control);
            return made;
        }();
        return shared.get();
    }

    BIO* make_bio()
    {
        BIO* bio = openssl_check(BIO_new(method()), "BIO_new");
        BIO_set_data(bio, this);
        BIO_set_init(bio, 1);
        return bio;
    }

    int descriptor;
    mutable bool at_end = false;
    flight_sender send_flight; ///< Empty once the first flight was sent.
    std::string flight;
};

raw_peer::raw_peer(int descriptor) : transport_(std::make_unique<transport>(descriptor))
{
    set_deadlines(descriptor);
    const int on = 1;
    ::setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); // refused by Unix domain sockets
}

raw_peer raw_peer::connect(const any_endpoint& endpoint)
{
    raw_peer peer(open_socket(endpoint));
    const auto size = static_cast<socklen_t>(endpoint.size());
    check(not_interrupted([&] { return ::connect(peer.descriptor(), endpoint.data(), size); }), "connect");
    return peer;
}

raw_peer::raw_peer(raw_peer&&) noexcept = default;

raw_peer& raw_peer::operator=(raw_peer&& other) noexcept
{
    ssl_ = std::move(other.ssl_);
    transport_ = std::move(other.transport_);
    return *this;
}

raw_peer::~raw_peer() = default;

int raw_peer::descriptor() const noexcept
{
    return transport_->descriptor;
}

void raw_peer::send_all(std::string_view bytes)
{
    check(transport_->send_all(bytes), "send");
}

std::string raw_peer::recv_some(std::size_t most)
{
    std::string bytes(most, '\0');
    const ssize_t count = not_interrupted([&] { return ::recv(descriptor(), bytes.data(), bytes.size(), 0); });
    bytes.resize(static_cast<std::size_t>(check(count, "recv")));
    return bytes;
}

std::string raw_peer::recv_exactly(std::size_t size)
{
    return read_exactly(size, [this](std::size_t most) { return recv_some(most); });
}

std::string raw_peer::recv_line()
{
    return read_line([this](std::size_t most) { return recv_some(most); });
}

std::string raw_peer::recv_all()
{
    return recv_exactly(std::string::npos);
}

void raw_peer::send_fin()
{
    check(::shutdown(descriptor(), SHUT_WR), "shutdown");
}

void raw_peer::tls_check(int result, const char* what)
{
    if (result > 0)
        return;
    const int saved = errno;
    const int reason = SSL_get_error(ssl_.get(), result);
    if (reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE)
        throw std::system_error(ETIMEDOUT, std::system_category(), what);
    if (reason == SSL_ERROR_SYSCALL)
    {
        errno = saved;
        throw_errno(what);
    }
    throw failure(std::string(what) + ": " + take_openssl_errors());
}

void raw_peer::start_tls(const tls_settings& settings, bool is_server)
{
    const context_ptr context = make_context(settings, is_server);
    ssl_.reset(openssl_check(SSL_new(context.get()), "SSL_new"));
    BIO* bio = transport_->make_bio();
    SSL_set_bio(ssl_.get(), bio, bio);
    transport_->flight.clear();
    transport_->send_flight = settings.send_flight;
    if (!settings.send_flight)
        transport_->send_flight = [settings](std::string_view flight, const auto& send)
        { send(settings.send_before + std::string(flight) + settings.send_after); };
    ERR_clear_error();
    if (is_server)
    {
        tls_check(SSL_accept(ssl_.get()), "tls_accept");
        return;
    }
    if (!settings.server_name.empty())
    {
        openssl_check(SSL_set_tlsext_host_name(ssl_.get(), settings.server_name.c_str()), "server_name");
        X509_VERIFY_PARAM* const expected = SSL_get0_param(ssl_.get());
        openssl_check(X509_VERIFY_PARAM_set1_host(expected, settings.server_name.c_str(), 0), "server_name");
    }
    tls_check(SSL_connect(ssl_.get()), "tls_connect");
}

void raw_peer::tls_accept(const tls_settings& settings)
{
    start_tls(settings, true);
}

void raw_peer::tls_connect(const tls_settings& settings)
{
    start_tls(settings, false);
}

void raw_peer::tls_write(std::string_view bytes)
{
    ERR_clear_error();
    std::size_t written = 0;
    if (!bytes.empty())
        tls_check(SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &written), "tls_write");
}

std::string raw_peer::tls_read_some(std::size_t most)
{
    ERR_clear_error();
    std::string bytes(most, '\0');
    std::size_t count = 0;
    const int result = SSL_read_ex(ssl_.get(), bytes.data(), bytes.size(), &count);
    if (result <= 0 && SSL_get_error(ssl_.get(), result) != SSL_ERROR_ZERO_RETURN)
        tls_check(result, "tls_read");
    bytes.resize(count);
    return bytes;
}

std::string raw_peer::tls_read_exactly(std::size_t size)
{
    return read_exactly(size, [this](std::size_t most) { return tls_read_some(most); });
}

std::string raw_peer::tls_read_line()
{
    return read_line([this](std::size_t most) { return tls_read_some(most); });
}

std::string raw_peer::tls_read_all()
{
    return tls_read_exactly(std::string::npos);
}

void raw_peer::key_update(bool request_peer)
{
    ERR_clear_error();
    tls_check(SSL_key_update(ssl_.get(), request_peer ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED),
              "key_update");
    tls_check(SSL_do_handshake(ssl_.get()), "key_update");
}

void raw_peer::session_ticket()
{
    enlarge_session_tickets(SSL_get_SSL_CTX(ssl_.get()));
    SSL_set_max_send_fragment(ssl_.get(), 512);
    tls_check(SSL_new_session_ticket(ssl_.get()), "SSL_new_session_ticket");
    tls_check(SSL_do_handshake(ssl_.get()), "session_ticket");
}

std::string raw_peer::tls_unsent(const std::function<void()>& action)
{
    BIO* const socket = SSL_get_wbio(ssl());
    BIO* const memory = openssl_check(BIO_new(BIO_s_mem()), "BIO_new");
    BIO_up_ref(socket);
    SSL_set0_wbio(ssl(), memory);
    action();
    std::string bytes(BIO_ctrl_pending(memory), '\0');
    BIO_read(memory, bytes.data(), static_cast<int>(bytes.size()));
    SSL_set0_wbio(ssl(), socket);
    return bytes;
}

void raw_peer::tls_shutdown()
{
    tls_shutdown_send_only();
    while (!tls_read_some().empty())
    {
    }
}

void raw_peer::tls_shutdown_send_only()
{
    ERR_clear_error();
    const int result = SSL_shutdown(ssl_.get());
    if (result < 0)
        tls_check(result, "tls_shutdown");
}

void raw_peer::close()
{
    ssl_.reset();
    transport_->close();
}

void reset_on_close(int descriptor)
{
    const linger abort{1, 0};
    check(::setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &abort, sizeof abort), "SO_LINGER");
}

void raw_peer::reset()
{
    reset_on_close(descriptor());
    close();
}

raw_listener::raw_listener(const any_endpoint& endpoint) : descriptor_(open_socket(endpoint))
{
    if (::bind(descriptor_, endpoint.data(), static_cast<socklen_t>(endpoint.size())) != 0 ||
        ::listen(descriptor_, SOMAXCONN) != 0)
    {
        const int code = errno;
        ::close(descriptor_);
        throw std::system_error(code, std::system_category(), "listen");
    }
}

raw_listener::~raw_listener()
{
    ::close(descriptor_);
}

any_endpoint raw_listener::endpoint() const
{
    any_endpoint bound;
    auto size = static_cast<socklen_t>(bound.capacity());
    check(::getsockname(descriptor_, bound.data(), &size), "getsockname");
    bound.resize(size);
    return bound;
}

std::uint16_t raw_listener::port() const
{
    sockaddr_in address{};
    socklen_t size = sizeof address;
    check(::getsockname(descriptor_, reinterpret_cast<sockaddr*>(&address), &size), "getsockname");
    return ntohs(address.sin_port);
}

raw_peer raw_listener::accept()
{
    return raw_peer(check(::accept4(descriptor_, nullptr, nullptr, SOCK_CLOEXEC), "accept"));
}

} // namespace test
