#include "duplex.hpp"

#include "deadline.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <system_error>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

namespace test
{
namespace
{

constexpr std::size_t high_water = 256 * 1024;

/// One exchange. TLS writes into memory, so that it never stands with half a record sent when a read
/// wants to answer a KeyUpdate; `flush` takes the records to the socket.
class duplex
{
public:
    duplex(raw_peer& peer, const duplex_plan& plan)
        : plan_(plan), ssl_(peer.ssl()), descriptor_(peer.descriptor()), flags_(::fcntl(descriptor_, F_GETFL)),
          socket_(SSL_get_wbio(ssl_)), memory_(openssl_check(BIO_new(BIO_s_mem()), "BIO_new"))
    {
        ::fcntl(descriptor_, F_SETFL, flags_ | O_NONBLOCK);
        BIO_up_ref(socket_);
        SSL_set0_wbio(ssl_, memory_);
    }

    ~duplex()
    {
        SSL_set0_wbio(ssl_, socket_);
        ::fcntl(descriptor_, F_SETFL, flags_);
    }

    duplex(const duplex&) = delete;
    duplex& operator=(const duplex&) = delete;

    duplex_result run()
    {
        while (!finished())
        {
            const bool received = receive();
            const bool sent = send();
            const bool flushed = flush();
            if (!received && !sent && !flushed)
                wait();
        }
        return result_;
    }

private:
    bool finished() const
    {
        const bool complete = result_.sent == plan_.bytes_to_send && result_.received == plan_.bytes_to_receive;
        return !result_.ok() || (complete && unsent() == 0);
    }

    std::size_t unsent() const { return records_.size() - flushed_ + BIO_ctrl_pending(memory_); }

    bool receive()
    {
        if (result_.received == plan_.bytes_to_receive)
            return false;
        ERR_clear_error();
        std::array<char, 16384> buffer;
        const auto most =
            static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), plan_.bytes_to_receive - result_.received));
        std::size_t count = 0;
        if (const int status = SSL_read_ex(ssl_, buffer.data(), most, &count); status <= 0)
        {
            const int reason = SSL_get_error(ssl_, status);
            if (reason != SSL_ERROR_WANT_READ)
                fail(reason == SSL_ERROR_ZERO_RETURN ? "close_notify" : take_openssl_errors());
            return false;
        }
        result_.mismatch = plan_.received.check(result_.received, std::span(buffer.data(), count));
        result_.received += count;
        return true;
    }

    bool send()
    {
        if (result_.sent == plan_.bytes_to_send || unsent() >= high_water)
            return false;
        ERR_clear_error();
        const auto size =
            static_cast<std::size_t>(std::min<std::uint64_t>(plan_.write_size, plan_.bytes_to_send - result_.sent));
        const std::string bytes = plan_.sent.bytes(result_.sent, size);
        std::size_t count = 0;
        if (SSL_write_ex(ssl_, bytes.data(), bytes.size(), &count) <= 0)
        {
            fail(take_openssl_errors());
            return false;
        }
        result_.sent += count;
        const bool between_writes = result_.sent < plan_.bytes_to_send;
        if (between_writes && plan_.key_update_every != 0 &&
            result_.sent / plan_.key_update_every > result_.key_updates)
            update_key();
        return true;
    }

    void update_key()
    {
        if (SSL_key_update(ssl_, plan_.request_peer ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED) <= 0 ||
            SSL_do_handshake(ssl_) <= 0)
            fail(take_openssl_errors());
        ++result_.key_updates;
    }

    bool flush()
    {
        if (flushed_ == records_.size())
        {
            records_.resize(BIO_ctrl_pending(memory_));
            flushed_ = 0;
            if (records_.empty())
                return false;
            BIO_read(memory_, records_.data(), static_cast<int>(records_.size()));
        }
        const ssize_t count =
            ::send(descriptor_, records_.data() + flushed_, records_.size() - flushed_, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count < 0)
        {
            if (errno != EAGAIN && errno != EWOULDBLOCK)
                fail(std::system_category().message(errno));
            return false;
        }
        flushed_ += static_cast<std::size_t>(count);
        return true;
    }

    void wait()
    {
        if (!result_.ok())
            return;
        const short events = static_cast<short>(unsent() > 0 ? POLLIN | POLLOUT : POLLIN);
        pollfd entry{descriptor_, events, 0};
        if (::poll(&entry, 1, static_cast<int>(peer_deadline.count())) == 0)
            fail("no progress for " + std::to_string(peer_deadline.count()) + " ms");
    }

    void fail(const std::string& reason)
    {
        if (result_.error.empty())
            result_.error = reason + " after " + std::to_string(result_.sent) + " bytes sent and " +
                            std::to_string(result_.received) + " received";
    }

    const duplex_plan& plan_;
    SSL* ssl_;
    int descriptor_;
    int flags_;
    BIO* socket_;
    BIO* memory_; // owned by ssl_ while the exchange lasts
    std::vector<char> records_;
    std::size_t flushed_ = 0;
    duplex_result result_;
};

} // namespace

duplex_result exchange(raw_peer& peer, const duplex_plan& plan)
{
    return duplex(peer, plan).run();
}

} // namespace test
