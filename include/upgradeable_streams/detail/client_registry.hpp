/// @file
/// The connections that a server has open.
#ifndef UPGRADEABLE_STREAMS_DETAIL_CLIENT_REGISTRY_HPP
#define UPGRADEABLE_STREAMS_DETAIL_CLIENT_REGISTRY_HPP

#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/error.hpp>

#include <asio/post.hpp>

#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace upgradeable_streams::detail
{

/// The connections of a server, up to so many, until it takes no more. Safe to share between threads.
class client_registry
{
    struct client
    {
        std::weak_ptr<connection> open;
        bool is_served = false;        ///< By a handler.
        bool closed_by_server = false; ///< Its handler is told so, which is no error.
    };

public:
    /// `left` is called when a connection has gone, if that was asked for, on whatever thread; if it throws,
    /// it is called for the next.
    client_registry(std::size_t most, std::function<void()> left) : most_(most), left_(std::move(left)) {}

    /// A connection among these, for as long as this lives.
    class entry
    {
    public:
        /// Throws errc::connection_closed when no more are taken.
        explicit entry(std::shared_ptr<client_registry> registry) : registry_(std::move(registry))
        {
            const std::lock_guard lock(registry_->mutex_);
            throw_if(registry_->closed_, errc::connection_closed);
            self_ = registry_->clients_.emplace(registry_->clients_.end());
        }

        entry(entry&& other) noexcept : registry_(std::move(other.registry_)), self_(other.self_) {}
        entry& operator=(entry&&) = delete;

        ~entry()
        {
            if (registry_)
                registry_->remove(self_);
        }

        /// Throws errc::connection_closed when the server has closed its clients.
        void set(const std::shared_ptr<connection>& c) const
        {
            const std::lock_guard lock(registry_->mutex_);
            throw_if(self_->closed_by_server, errc::connection_closed);
            self_->open = c;
        }

        /// Tells that its handler has it from here on.
        void serve() const
        {
            const std::lock_guard lock(registry_->mutex_);
            self_->is_served = true;
        }

        bool closed_by_server() const
        {
            const std::lock_guard lock(registry_->mutex_);
            return self_->closed_by_server;
        }

    private:
        std::shared_ptr<client_registry> registry_;
        std::list<client>::iterator self_;
    };

    std::size_t size() const
    {
        const std::lock_guard lock(mutex_);
        return clients_.size();
    }

    /// Whether another connection may be taken; if not, `left` is called when the next one goes.
    bool has_room()
    {
        return ask_unless([this] { return clients_.size() < most_; });
    }

    /// Whether there is none; if there is, `left` is called when the next one goes.
    bool empty()
    {
        return ask_unless([this] { return clients_.empty(); });
    }

    /// Has `left` be called when the next one goes.
    void ask()
    {
        ask_unless([] { return false; });
    }

    /// Takes no more. Returns: whether it did until now.
    bool close()
    {
        const std::lock_guard lock(mutex_);
        return !std::exchange(closed_, true);
    }

    bool is_closed() const
    {
        const std::lock_guard lock(mutex_);
        return closed_;
    }

    // What the server does to each connection, where that is used:

    void abort_all()
    {
        for_each([](connection& c, bool) { c.abort(); });
    }

    /// `farewell` is for those that handlers serve.
    void close_all(std::string_view farewell)
    {
        for_each([text = std::string(farewell)](connection& c, bool is_served)
                 { c.close(is_served ? std::string_view(text) : std::string_view()); });
    }

private:
    template <typename Condition>
    bool ask_unless(Condition holds)
    {
        const std::lock_guard lock(mutex_);
        const bool answer = holds();
        is_asked_ = is_asked_ || !answer;
        return answer;
    }

    template <typename Function>
    void for_each(const Function& how)
    {
        std::vector<std::pair<std::shared_ptr<connection>, bool>> open;
        {
            const std::lock_guard lock(mutex_);
            for (client& each : clients_)
            {
                each.closed_by_server = true;
                if (auto c = each.open.lock())
                    open.emplace_back(std::move(c), each.is_served);
            }
        }
        for (auto& each : open)
        {
            const auto executor = each.first->get_executor();
            asio::post(executor, [to = std::move(each), how] { how(*to.first, to.second); });
        }
    }

    void remove(std::list<client>::iterator which) noexcept
    {
        bool is_asked = false;
        {
            const std::lock_guard lock(mutex_);
            clients_.erase(which);
            is_asked = std::exchange(is_asked_, false);
        }
        try
        {
            if (is_asked)
                left_();
        }
        catch (...)
        {
            ask();
        }
    }

    const std::size_t most_;
    const std::function<void()> left_;
    mutable std::mutex mutex_;
    std::list<client> clients_;
    bool closed_ = false;
    bool is_asked_ = false;
};

} // namespace upgradeable_streams::detail

#endif
