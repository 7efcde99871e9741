#ifndef TEST_SUPPORT_SSL_PAIR_HPP
#define TEST_SUPPORT_SSL_PAIR_HPP

#include "openssl.hpp"

#include <openssl/ssl.h>

#include <string>
#include <string_view>

namespace test
{

using ssl_ptr = openssl_ptr<SSL, SSL_free>;

/// A client and a server in memory, for facts about their contexts.
class ssl_pair
{
public:
    /// Takes ownership of both SSL objects, as SSL_new returns them.
    ssl_pair(SSL* client, SSL* server);

    SSL* client() const { return client_.get(); }
    SSL* server() const { return server_.get(); }

    /// Lets both shake hands and each say something, so that tickets and late alerts arrive. Returns: whether all went
    /// well.
    bool connect();

    /// One step of the client's handshake, and one of the server's.
    void step_client();
    void step_server();

    /// What the client has sent and the server has not taken yet.
    std::string take_from_client();
    void give_to_server(std::string_view bytes);

    /// OpenSSL's text of the first error of each; empty when there was none.
    const std::string& client_error() const { return client_error_; }
    const std::string& server_error() const { return server_error_; }

    /// Ends both in order.
    void shut_down();

private:
    ssl_ptr client_;
    ssl_ptr server_;
    std::string client_error_;
    std::string server_error_;
};

} // namespace test

#endif
