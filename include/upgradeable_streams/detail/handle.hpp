/// @file
/// What a reader and its writer hold together.
#ifndef UPGRADEABLE_STREAMS_DETAIL_HANDLE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_HANDLE_HPP

#include <upgradeable_streams/detail/connection.hpp>
#include <upgradeable_streams/error.hpp>

#include <asio/post.hpp>

#include <memory>
#include <utility>

namespace upgradeable_streams::detail
{

/// When the last handle goes, on whatever thread, the connection is closed.
class handle
{
public:
    handle(std::shared_ptr<detail::connection> c, unsigned epoch) : connection_(std::move(c)), epoch_(epoch) {}

    ~handle()
    {
        if (epoch_ != connection_->epoch() || connection_->is_closed())
            return;
        try
        {
            asio::post(connection_->get_executor(),
                       [c = connection_, epoch = epoch_]
                       {
                           if (epoch == c->epoch())
                               c->close();
                       });
        }
        catch (...)
        {
            connection_->abort();
        }
    }

    handle(const handle&) = delete;
    handle& operator=(const handle&) = delete;

    const std::shared_ptr<detail::connection>& connection() const { return connection_; }
    unsigned epoch() const { return epoch_; }

    /// The connection, for what can no longer be done through a handle from before a change.
    detail::connection& current() const
    {
        check_epoch();
        return *connection_;
    }

    void check_epoch() const { throw_if(!connection_->is_current(epoch_), errc::connection_upgraded); }

private:
    std::shared_ptr<detail::connection> connection_;
    unsigned epoch_;
};

} // namespace upgradeable_streams::detail

#endif
