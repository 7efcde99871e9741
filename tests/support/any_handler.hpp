#ifndef TEST_SUPPORT_ANY_HANDLER_HPP
#define TEST_SUPPORT_ANY_HANDLER_HPP

#include <asio/any_io_executor.hpp>
#include <asio/associated_cancellation_slot.hpp>
#include <asio/associated_executor.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/error_code.hpp>

#include <cstddef>
#include <memory>
#include <utility>

namespace test
{

/// A completion handler whose kind has been forgotten, with its executor and its cancellation slot; its allocator is
/// left behind.
class any_handler
{
public:
    using executor_type = asio::any_io_executor;
    using cancellation_slot_type = asio::cancellation_slot;

    /// Of a handler for void(asio::error_code, Size...), where there is one size or none.
    template <typename... Size, typename Handler>
    static any_handler of(Handler handler, const asio::any_io_executor& otherwise)
    {
        any_handler result(asio::get_associated_executor(handler, otherwise),
                           asio::get_associated_cancellation_slot(handler));
        result.target_ = std::make_unique<target_of<Handler, Size...>>(std::move(handler));
        return result;
    }

    executor_type get_executor() const noexcept { return executor_; }
    cancellation_slot_type get_cancellation_slot() const noexcept { return slot_; }

    void operator()(const asio::error_code& error, std::size_t size = 0)
    {
        const auto called = std::move(target_);
        called->call(error, size);
    }

private:
    struct target
    {
        virtual ~target() = default;
        virtual void call(const asio::error_code& error, std::size_t size) = 0;
    };

    template <typename Handler, typename... Size>
    struct target_of final : target
    {
        explicit target_of(Handler h) : handler(std::move(h)) {}

        void call(const asio::error_code& error, [[maybe_unused]] std::size_t size) override
        {
            std::move(handler)(error, Size(size)...);
        }

        Handler handler;
    };

    any_handler(const asio::any_io_executor& executor, const asio::cancellation_slot& slot)
        : executor_(executor), slot_(slot)
    {
    }

    asio::any_io_executor executor_;
    asio::cancellation_slot slot_;
    std::unique_ptr<target> target_;
};

} // namespace test

#endif
