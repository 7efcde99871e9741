#include "stepped_peer.hpp"

#include "failure.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

namespace test
{
namespace
{

context_ptr make_context(bool is_server, int version)
{
    tls_settings settings = is_server ? localhost_server() : localhost_client();
    settings.max_version = version;
    context_ptr made = make_context(settings, is_server);
    SSL_CTX_set_num_tickets(made.get(), 1);
    enlarge_session_tickets(made.get());
    return made;
}

} // namespace

stepped_peer::stepped_peer(socket_type socket, bool is_server, int version)
    : context_(make_context(is_server, version)), socket_(std::move(socket)),
      ssl_(openssl_check(SSL_new(context_.get()), "SSL_new"))
{
    input_ = openssl_check(BIO_new(BIO_s_mem()), "BIO_new");
    output_ = openssl_check(BIO_new(BIO_s_mem()), "BIO_new");
    SSL_set_bio(ssl_.get(), input_, output_);
    is_server ? SSL_set_accept_state(ssl_.get()) : SSL_set_connect_state(ssl_.get());
    SSL_do_handshake(ssl_.get());
}

void stepped_peer::write(std::size_t size)
{
    const std::string bytes = outgoing.bytes(std::exchange(sent_, sent_ + size), size);
    openssl_check(SSL_write(ssl_.get(), bytes.data(), static_cast<int>(size)), "SSL_write");
}

void stepped_peer::update_keys(bool both)
{
    SSL_key_update(ssl_.get(), both ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
    openssl_check(SSL_do_handshake(ssl_.get()), "KeyUpdate");
}

void stepped_peer::send_ticket()
{
    SSL_set_max_send_fragment(ssl_.get(), 512);
    openssl_check(SSL_new_session_ticket(ssl_.get()), "SSL_new_session_ticket");
    openssl_check(SSL_do_handshake(ssl_.get()), "NewSessionTicket");
}

void stepped_peer::end()
{
    SSL_shutdown(ssl_.get());
}

bool stepped_peer::deliver(std::size_t most)
{
    std::array<char, 4096> bytes;
    for (int size = 0; (size = BIO_read(output_, bytes.data(), bytes.size())) > 0;)
        wire_.append(bytes.data(), static_cast<std::size_t>(size));
    const auto sent =
        ::send(socket_.native_handle(), wire_.data(), std::min(most, wire_.size()), MSG_DONTWAIT | MSG_NOSIGNAL);
    wire_.erase(0, static_cast<std::size_t>(std::max<ssize_t>(sent, 0)));
    return sent > 0;
}

bool stepped_peer::receive(std::size_t most)
{
    std::array<char, 16 * 1024> bytes;
    const auto size = ::recv(socket_.native_handle(), bytes.data(), std::min(most, bytes.size()), MSG_DONTWAIT);
    if (size <= 0)
        return false;
    if (was_ended())
        throw failure("something was sent behind the close_notify");
    BIO_write(input_, bytes.data(), static_cast<int>(size));
    ERR_clear_error();
    if (!is_open() && SSL_do_handshake(ssl_.get()) <= 0)
        return true;
    int result = 0;
    while ((result = SSL_read(ssl_.get(), bytes.data(), bytes.size())) > 0)
    {
        const std::string_view read(bytes.data(), static_cast<std::size_t>(result));
        if (incoming.check(received_, read))
            throw failure("other bytes were sent");
        received_ += read.size();
    }
    const int reason = SSL_get_error(ssl_.get(), result);
    if (reason != SSL_ERROR_WANT_READ && reason != SSL_ERROR_ZERO_RETURN)
        throw failure("what was sent is no TLS: " + take_openssl_errors());
    return true;
}

} // namespace test
