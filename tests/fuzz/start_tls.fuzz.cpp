// An upgrade, in either role, whose peer sends arbitrary bytes, or plays its part with bytes changed on the way.

#include "input.hpp"
#include "support/openssl.hpp"
#include "support/socket_pair.hpp"
#include "support/stream_links.hpp"
#include "support/task.hpp"
#include "support/tls_settings.hpp"

#include <upgradeable_streams/open_connection.hpp>

#include <asio/awaitable.hpp>
#include <asio/io_context.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/write.hpp>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;

namespace
{

const std::string line = "STARTTLS\n";
const std::string secret = "hello\n";

/// The connection under test: what its upgrade came to, and what it read in TLS.
struct upgrade
{
    us::tls_role role;
    bool done = false;
    std::error_code error{};
    std::string injected{};
    std::string read{};
    bool handles_are_void = false;
};

/// Whether a handle from before the upgrade refuses to write, with this error.
bool is_void(us::stream_writer writer, us::errc expected)
try
{
    writer.write("plain text");
    return false;
}
catch (const std::system_error& error)
{
    return error.code() == expected;
}

asio::awaitable<void> run(upgrade& u, asio::local::stream_protocol::socket socket)
{
    const bool is_client = u.role == us::tls_role::client;
    auto [reader, writer] = co_await us::open_connection(
        std::move(socket), {.ssl = is_client ? &test::client_context() : &test::server_context(),
                            .upgradeable = true,
                            .server_hostname = is_client ? "localhost" : "",
                            .role = u.role});
    const std::string first = co_await reader.readline();
    fuzz::require(first == line, "the line in plain text is read");
    const us::stream_writer plain = writer;
    try
    {
        std::tie(reader, writer) = co_await writer.start_tls();
        u.done = true;
        u.handles_are_void = is_void(plain, us::errc::connection_upgraded);
        writer.write("over TLS\n");
        while (!reader.at_eof())
            u.read += co_await reader.read(64);
    }
    catch (const us::tls_error& error)
    {
        u.injected = error.received();
        u.error = error.code();
    }
    catch (const std::system_error& error)
    {
        u.error = error.code();
    }
    if (!u.done)
        u.handles_are_void = is_void(plain, us::errc::connection_closed);
}

/// An endpoint of TLS in memory, which sends `secret` once the handshake is done, and then closes.
class tls_peer
{
public:
    tls_peer(bool is_server, bool tls12) : ssl_(SSL_new(context(is_server)))
    {
        SSL_set_max_proto_version(ssl_.get(), tls12 ? TLS1_2_VERSION : TLS1_3_VERSION);
        SSL_set_bio(ssl_.get(), BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
        if (is_server)
            SSL_set_accept_state(ssl_.get());
        else
            SSL_set_connect_state(ssl_.get());
    }

    /// Takes what came, and returns what is to be sent.
    std::string exchange(std::string_view received)
    {
        BIO_write(SSL_get_rbio(ssl_.get()), received.data(), static_cast<int>(received.size()));
        ERR_clear_error();
        if (SSL_do_handshake(ssl_.get()) == 1 && !std::exchange(finished_, true))
        {
            SSL_write(ssl_.get(), secret.data(), static_cast<int>(secret.size()));
            SSL_shutdown(ssl_.get());
        }
        std::string sent(BIO_ctrl_pending(SSL_get_wbio(ssl_.get())), '\0');
        if (!sent.empty())
            BIO_read(SSL_get_wbio(ssl_.get()), sent.data(), static_cast<int>(sent.size()));
        return sent;
    }

private:
    static SSL_CTX* context(bool is_server)
    {
        static const test::context_ptr server = test::make_context(test::localhost_server(), true);
        static const test::context_ptr client = test::make_context(test::localhost_client(), false);
        return is_server ? server.get() : client.get();
    }

    test::openssl_ptr<SSL, SSL_free> ssl_;
    bool finished_ = false;
};

/// Whether bytes are whole TLS records; OpenSSL answers a record of an unknown minor version with one of the same.
bool are_records(std::string_view bytes)
{
    while (bytes.size() >= 5 && bytes[0] >= 20 && bytes[0] <= 23 && bytes[1] == 3)
    {
        const std::size_t size = 5 + 256u * static_cast<unsigned char>(bytes[3]) + static_cast<unsigned char>(bytes[4]);
        if (size > bytes.size())
            return false;
        bytes.remove_prefix(size);
    }
    return bytes.empty();
}

/// Changes a stream of bytes at given places.
class mutations
{
public:
    explicit mutations(fuzz::input& input) : list_(input.below(5))
    {
        for (auto& each : list_)
        {
            each.offset = input.below(4096);
            each.what = static_cast<decltype(each.what)>(input.below(mutation::count));
            each.bytes = input.bytes(input.below(24));
        }
        std::ranges::sort(list_, {}, &mutation::offset);
    }

    bool empty() const { return list_.empty(); }

    std::string apply(const std::string& bytes)
    {
        std::string made;
        for (const char byte : bytes)
        {
            std::size_t removed = removing_;
            char changed = byte;
            for (; next_ < list_.size() && list_[next_].offset == offset_; ++next_)
            {
                const mutation& m = list_[next_];
                if (m.what == mutation::insert)
                    made += m.bytes;
                else if (m.what == mutation::remove)
                    removed += m.bytes.size();
                else if (!m.bytes.empty())
                    changed = static_cast<char>(changed ^ m.bytes.front());
            }
            ++offset_;
            if (removed == 0)
                made += changed;
            removing_ = removed == 0 ? 0 : removed - 1;
        }
        return made;
    }

private:
    struct mutation
    {
        std::size_t offset;
        enum
        {
            change,
            insert,
            remove,
            count
        } what;
        std::string bytes;
    };

    std::vector<mutation> list_;
    std::size_t next_ = 0;
    std::size_t offset_ = 0;
    std::size_t removing_ = 0;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    fuzz::input input(data, size);
    const std::uint8_t flags = input.byte();
    const bool is_client = flags & 1;
    const bool arbitrary = flags & 2;
    const bool tls12 = flags & 4;
    const bool same_segment = flags & 8;
    const std::size_t chunk = flags & 16 ? 1 + input.below(2000) : 1u << 20;
    const std::string appended(input.bytes(flags & 32 ? input.below(600) : 0));
    mutations changes(input);
    const bool honest = !arbitrary && appended.empty() && changes.empty();

    asio::io_context io;
    auto [socket, peer] = test::local_pair(io.get_executor());
    peer.non_blocking(true);
    upgrade u{.role = is_client ? us::tls_role::client : us::tls_role::server};
    const auto running = test::spawn(io.get_executor(), [&, own = &socket] { return run(u, std::move(*own)); });
    tls_peer tls(is_client, tls12);
    std::string sent = appended; // behind the line
    std::string received;        // all that the connection under test sent
    std::string waiting = line + appended;
    const auto send = [&](std::string_view bytes)
    {
        asio::error_code closed;
        for (; !bytes.empty() && !closed; bytes.remove_prefix(std::min(chunk, bytes.size())))
        {
            asio::write(peer, asio::buffer(bytes.substr(0, chunk)), closed);
            io.restart();
            io.poll();
        }
    };
    if (!same_segment)
        send(std::exchange(waiting, {}));
    const auto play = [&](std::string_view came)
    {
        const std::string bytes = !arbitrary ? changes.apply(tls.exchange(came)) : std::string(input.bytes(1 << 16));
        sent += bytes;
        waiting += bytes;
        const bool sends = !waiting.empty();
        send(std::exchange(waiting, {}));
        return sends;
    };
    bool ended = false;
    for (int round = 0; !running.done(); ++round)
    {
        fuzz::require(round < 1000, "an upgrade ends when its peer has");
        io.restart();
        io.poll();
        std::array<char, 65536> buffer;
        asio::error_code nothing;
        const std::size_t came = ended ? 0 : peer.read_some(asio::buffer(buffer), nothing);
        received.append(buffer.data(), came);
        if (!play({buffer.data(), came}) && came == 0 && !std::exchange(ended, true))
            peer.shutdown(asio::socket_base::shutdown_send, nothing);
    }
    running.result();
    for (asio::error_code end; !end;)
    {
        std::array<char, 65536> buffer;
        received.append(buffer.data(), peer.read_some(asio::buffer(buffer), end));
    }

    fuzz::require(u.handles_are_void, "the handles from before the upgrade are void");
    fuzz::require(are_records(received), "nothing but TLS is sent after the line");
    fuzz::require(secret.starts_with(u.read), "nothing is read but what came through TLS");
    fuzz::require(u.done || u.error, "an upgrade succeeds or fails");
    fuzz::require(!arbitrary || !u.done, "arbitrary bytes are no handshake");
    fuzz::require(!honest || (u.done && u.read == secret && !u.error), "an honest peer is understood");
    fuzz::require((u.error == us::errc::plaintext_injection) == !u.injected.empty() && u.injected.size() <= 512 &&
                      sent.find(u.injected) != sent.npos,
                  "plain text in place of TLS is told");
    if (is_client && same_segment && !appended.empty())
        fuzz::require(u.error == us::errc::plaintext_injection, "a client accepts nothing behind the line");
    return 0;
}
