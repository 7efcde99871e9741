#include "ssl_pair.hpp"

namespace test
{
namespace
{

void check(SSL* ssl, int result, std::string& error)
{
    if (result > 0 || !error.empty())
        return;
    const int reason = SSL_get_error(ssl, result);
    if (reason != SSL_ERROR_WANT_READ && reason != SSL_ERROR_WANT_WRITE)
        error = take_openssl_errors();
}

void step(SSL* ssl, std::string& error)
{
    if (!error.empty())
        return;
    ERR_clear_error();
    check(ssl, SSL_do_handshake(ssl), error);
}

void say(SSL* ssl, std::string& error)
{
    ERR_clear_error();
    if (error.empty())
        check(ssl, SSL_write(ssl, "x", 1), error);
}

/// Whether it has heard what the other said.
bool hear(SSL* ssl, std::string& error)
{
    char byte = 0;
    ERR_clear_error();
    const int result = SSL_read(ssl, &byte, 1);
    check(ssl, result, error);
    return result == 1;
}

} // namespace

ssl_pair::ssl_pair(SSL* client, SSL* server)
    : client_(openssl_check(client, "SSL_new")), server_(openssl_check(server, "SSL_new"))
{
    for (SSL* const ssl : {client, server})
        SSL_set_bio(ssl, BIO_new(BIO_s_mem()), nullptr);
    for (SSL* const ssl : {client, server})
    {
        BIO* const other = SSL_get_rbio(ssl == client ? server : client);
        BIO_set_mem_eof_return(other, -1);
        BIO_up_ref(other);
        SSL_set0_wbio(ssl, other);
    }
    SSL_set_connect_state(client);
    SSL_set_accept_state(server);
}

void ssl_pair::step_client()
{
    step(client(), client_error_);
}

void ssl_pair::step_server()
{
    step(server(), server_error_);
}

bool ssl_pair::connect()
{
    for (int i = 0; i < 4; ++i)
    {
        step_client();
        step_server();
    }
    if (SSL_is_init_finished(server()))
        say(server(), server_error_);
    const bool client_heard = SSL_is_init_finished(client()) && hear(client(), client_error_);
    if (SSL_is_init_finished(client()))
        say(client(), client_error_);
    const bool server_heard = SSL_is_init_finished(server()) && hear(server(), server_error_);
    return client_heard && server_heard;
}

std::string ssl_pair::take_from_client()
{
    BIO* const bio = SSL_get_rbio(server());
    std::string bytes(BIO_ctrl_pending(bio), '\0');
    BIO_read(bio, bytes.data(), static_cast<int>(bytes.size()));
    return bytes;
}

void ssl_pair::give_to_server(std::string_view bytes)
{
    BIO_write(SSL_get_rbio(server()), bytes.data(), static_cast<int>(bytes.size()));
}

void ssl_pair::shut_down()
{
    SSL_shutdown(client());
    SSL_shutdown(server());
}

} // namespace test
