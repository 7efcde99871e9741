// A chat server on several threads, where what one client says is written to all others: one that is being upgraded to
// TLS loses nothing of it, and one that does not read is given up.
//
//   c++ -std=c++20 -DASIO_STANDALONE chat_server.cpp -o chat_server -lssl -lcrypto -pthread

#include <asio.hpp>
#include <upgradeable_streams.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <functional>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace us = upgradeable_streams;

constexpr std::string_view usage =
    "usage: chat_server [--host H] [--port P] [--cert FILE] [--key FILE]\n"
    "Tells each line to all other clients, upgrades to TLS at STARTTLS, and closes at QUIT.\n"
    "Defaults: localhost, 10001, ~/.keys/server.crt, ~/.keys/server.key. Port 0 picks one.\n";

// A client, used where its connection is: on the writer's executor.
class member
{
public:
    explicit member(us::stream_writer writer) : writer_(std::move(writer)) {}

    void hear(const std::string& line)
    {
        if (is_upgrading_ && missed_.size() <= most)
            missed_ += line;
        if (is_upgrading_ || writer_.is_closing())
            return;
        if (writer_.get_write_buffer_size() + missed_.size() > most)
            writer_.abort();
        else
            writer_.write(line);
    }

    asio::awaitable<us::stream_reader> start_tls()
    {
        is_upgrading_ = true;
        us::stream_reader reader;
        std::tie(reader, writer_) = co_await writer_.start_tls();
        is_upgrading_ = false;
        hear(missed_);
        missed_.clear();
        co_return reader;
    }

private:
    static constexpr std::size_t most = 1024 * 1024; // bytes that wait for a client

    us::stream_writer writer_;
    bool is_upgrading_ = false;
    std::string missed_;
};

class room
{
public:
    asio::awaitable<void> serve(us::stream_reader reader, us::stream_writer writer)
    {
        const std::string name = writer.get_extra_info<"peername">()->to_string();
        const asio::any_io_executor executor = writer.get_executor();
        const auto self = std::make_shared<member>(std::move(writer));
        const presence present(*this, self, executor);
        self->hear("welcome, " + name + "\n");
        for (std::string line; !(line = co_await reader.readline()).empty() && line != "QUIT\n";)
            if (line == "STARTTLS\n")
                reader = co_await self->start_tls();
            else
                tell_others(self, name + ": " + line);
    }

private:
    // A member is in the room for as long as this lives.
    class presence
    {
    public:
        presence(room& there, std::shared_ptr<member> who, asio::any_io_executor executor)
            : there_(there), who_(std::move(who))
        {
            const std::lock_guard lock(there_.mutex_);
            there_.members_.emplace(who_, std::move(executor));
        }

        presence(const presence&) = delete;
        presence& operator=(const presence&) = delete;

        ~presence()
        {
            const std::lock_guard lock(there_.mutex_);
            there_.members_.erase(who_);
        }

    private:
        room& there_;
        std::shared_ptr<member> who_;
    };

    void tell_others(const std::shared_ptr<member>& speaker, const std::string& line)
    {
        const std::lock_guard lock(mutex_);
        for (const auto& [who, executor] : members_)
            if (who != speaker)
                asio::post(executor, [to = who, line] { to->hear(line); });
    }

    std::mutex mutex_;
    std::map<std::shared_ptr<member>, asio::any_io_executor> members_;
};

asio::awaitable<void> serve(room& chat, const std::string& host, const std::string& port, asio::ssl::context& ssl)
{
    asio::signal_set signals(co_await asio::this_coro::executor, SIGINT, SIGTERM);
    const auto handler = std::bind_front(&room::serve, &chat);
    us::server server = co_await us::start_server(handler, host, port, {.ssl = &ssl, .upgradeable = true});
    std::cout << "listening on " << server.sockets().front().to_string() << std::endl;
    co_await signals.async_wait(asio::use_awaitable);
    co_await server.shutdown(std::chrono::seconds(5));
}

int main(int argc, char** argv)
try
{
    const std::string keys = std::string(std::getenv("HOME") ? std::getenv("HOME") : ".") + "/.keys/server.";
    std::map<std::string_view, std::string> options = {
        {"--host", "localhost"}, {"--port", "10001"}, {"--cert", keys + "crt"}, {"--key", keys + "key"}};
    for (int i = 1; i < argc; i += 2)
    {
        if (std::string_view(argv[i]) == "--help")
            return (std::cout << usage), EXIT_SUCCESS;
        if (!options.contains(argv[i]) || i + 1 == argc)
            throw std::invalid_argument(std::string(argv[i]) + " is unknown or lacks a value; see --help");
        options[argv[i]] = argv[i + 1];
    }
    room chat;
    asio::io_context io;
    asio::ssl::context ssl = us::create_server_context(
        {.identity = {.certificate_chain_file = options["--cert"], .private_key_file = options["--key"]}});
    std::exception_ptr failure;
    asio::co_spawn(io, serve(chat, options["--host"], options["--port"], ssl),
                   [&](std::exception_ptr e) { failure = e; });
    const auto run = [&]
    {
        try
        {
            io.run();
        }
        catch (...)
        {
            io.stop();
            throw;
        }
    };
    {
        std::vector<std::future<void>> threads; // joined where they are destroyed
        for (unsigned n = std::max(2u, std::thread::hardware_concurrency()); n > 0; --n)
            threads.push_back(std::async(std::launch::async, run));
        for (std::future<void>& each : threads)
            each.get();
    }
    if (failure)
        std::rethrow_exception(failure);
    return EXIT_SUCCESS;
}
catch (const std::exception& e)
{
    std::cerr << "chat_server: " << e.what() << "\n";
    return EXIT_FAILURE;
}
