/// @file
/// A strand that is entered without an allocation when it is free.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STRAND_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STRAND_HPP

#include <asio/any_io_executor.hpp>
#include <asio/dispatch.hpp>
#include <asio/execution/blocking.hpp>
#include <asio/post.hpp>
#include <asio/prefer.hpp>
#include <asio/query.hpp>
#include <asio/require.hpp>

#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>

namespace upgradeable_streams::detail
{

/// Runs one function at a time. Unlike asio::strand's, its owner can enter from a completion handler that runs on the
/// inner executor already, which costs a lock and no more.
class strand : public std::enable_shared_from_this<strand>
{
public:
    explicit strand(asio::any_io_executor inner) : inner_(std::move(inner)) {}

    strand(const strand&) = delete;
    strand& operator=(const strand&) = delete;

    /// Calls the function, now if nothing else runs, else when that is done. For a thread of the inner executor.
    template <typename Function>
    void enter(Function&& function)
    {
        if (runs_here())
            return std::forward<Function>(function)();
        if (!take_or_add(function))
            return;
        const auto keep = shared_from_this();
        const stay here(*this);
        std::forward<Function>(function)();
    }

    /// Calls the function from the inner executor, later or as soon as that allows.
    template <typename Function>
    void post(Function&& function)
    {
        if (const auto runs = add_and_take(std::forward<Function>(function)))
            start(*runs, [this] { go_on(); });
    }

    template <typename Function>
    void dispatch(Function&& function)
    {
        if (const auto runs = add_and_take(std::forward<Function>(function)))
            start(*runs, [this] { asio::dispatch(inner_, runner(shared_from_this())); });
    }

    bool runs_here() const
    {
        for (const stay* s = stay::innermost(); s; s = s->outer)
            if (&s->owner == this)
                return true;
        return false;
    }

private:
    struct task
    {
        virtual ~task() = default;
        virtual void run() = 0;

        std::unique_ptr<task> next;
    };

    template <typename Function>
    struct task_of final : task
    {
        template <typename Given>
        explicit task_of(Given&& given) : function(std::forward<Given>(given))
        {
        }

        void run() override { std::move(function)(); }

        Function function;
    };

    /// Runs what waits. Destroyed with an io_context it destroys that, which may own the strand.
    class runner
    {
    public:
        explicit runner(std::shared_ptr<strand> s) : strand_(std::move(s)) {}
        runner(runner&&) noexcept = default;
        runner& operator=(runner&&) = delete;

        ~runner()
        {
            if (strand_ && std::uncaught_exceptions() == exceptions_)
                strand_->drop_waiting();
        }

        void operator()()
        {
            const auto s = std::move(strand_);
            s->run_waiting();
        }

    private:
        std::shared_ptr<strand> strand_;
        int exceptions_ = std::uncaught_exceptions();
    };

    /// The time that a thread is in the strand, which it leaves to what waits, or free.
    struct stay
    {
        explicit stay(strand& s) : owner(s), outer(innermost()) { innermost() = this; }

        ~stay()
        {
            innermost() = outer;
            owner.leave();
        }

        stay(const stay&) = delete;
        stay& operator=(const stay&) = delete;

        static stay*& innermost()
        {
            static thread_local stay* current = nullptr;
            return current;
        }

        strand& owner;
        stay* const outer;
    };

    template <typename Function>
    bool take_or_add(Function& function)
    {
        const std::lock_guard lock(mutex_);
        if (!std::exchange(busy_, true))
            return true;
        add(std::move(function));
        return false;
    }

    /// Empty unless the strand was free, else how often run_waiting was called.
    template <typename Function>
    std::optional<std::size_t> add_and_take(Function&& function)
    {
        const std::lock_guard lock(mutex_);
        add(std::forward<Function>(function));
        return std::exchange(busy_, true) ? std::nullopt : std::optional(runs_);
    }

    /// Takes back the function that was added when there is no memory to run it.
    template <typename Start>
    void start(std::size_t runs, Start begin)
    try
    {
        begin();
    }
    catch (...)
    {
        if (has_run(runs))
            throw;
        take_waiting();
        leave();
        throw;
    }

    bool has_run(std::size_t runs)
    {
        const std::lock_guard lock(mutex_);
        return runs_ != runs;
    }

    template <typename Function>
    void add(Function&& function)
    {
        std::unique_ptr<task>& end = last_ ? last_->next : first_;
        end = std::make_unique<task_of<std::decay_t<Function>>>(std::forward<Function>(function));
        last_ = end.get();
    }

    /// Sets the strand free unless something waits.
    bool release()
    {
        const std::lock_guard lock(mutex_);
        busy_ = first_ != nullptr;
        return !busy_;
    }

    void leave() noexcept
    {
        if (release())
            return;
        try
        {
            go_on();
        }
        catch (const std::bad_alloc&)
        {
            run_waiting();
        }
    }

    void go_on()
    {
        asio::post(inner_, runner(shared_from_this()));
    }

    /// What is added meanwhile has to wait for others on the inner executor.
    void run_waiting()
    {
        const stay here(*this);
        const task* const last = begin_run();
        for (bool more = true; more;)
        {
            const std::unique_ptr<task> next = take_waiting();
            more = next.get() != last;
            next->run();
        }
    }

    /// The last of what waits.
    const task* begin_run()
    {
        const std::lock_guard lock(mutex_);
        ++runs_;
        return last_;
    }

    void drop_waiting()
    {
        while (!release())
            take_waiting();
    }

    std::unique_ptr<task> take_waiting()
    {
        const std::lock_guard lock(mutex_);
        std::unique_ptr<task> taken = std::move(first_);
        first_ = std::move(taken->next);
        if (!first_)
            last_ = nullptr;
        return taken;
    }

    const asio::any_io_executor inner_;
    std::mutex mutex_; ///< Guards what follows.
    bool busy_ = false;
    std::size_t runs_ = 0;
    std::unique_ptr<task> first_; ///< Of those that wait.
    task* last_ = nullptr;
};

/// An executor of a strand, in the sense of asio::strand.
template <typename Inner>
class strand_executor
{
public:
    strand_executor(Inner inner, std::shared_ptr<strand> s) : inner_(std::move(inner)), strand_(std::move(s)) {}

    template <typename Property>
        requires asio::can_query_v<const Inner&, Property>
    decltype(auto) query(const Property& property) const
    {
        return asio::query(inner_, property);
    }

    template <typename Property>
        requires asio::can_require_v<const Inner&, Property>
    auto require(const Property& property) const
    {
        return of(asio::require(inner_, property));
    }

    template <typename Property>
        requires asio::can_prefer_v<const Inner&, Property>
    auto prefer(const Property& property) const
    {
        return of(asio::prefer(inner_, property));
    }

    template <typename Function>
    void execute(Function&& function) const
    {
        if (asio::query(inner_, asio::execution::blocking) == asio::execution::blocking.never)
            strand_->post(std::forward<Function>(function));
        else if (strand_->runs_here())
            std::forward<Function>(function)();
        else
            strand_->dispatch(std::forward<Function>(function));
    }

    friend bool operator==(const strand_executor& a, const strand_executor& b) noexcept
    {
        return a.strand_ == b.strand_;
    }

private:
    template <typename Other>
    strand_executor<Other> of(Other other) const
    {
        return {std::move(other), strand_};
    }

    Inner inner_;
    std::shared_ptr<strand> strand_;
};

} // namespace upgradeable_streams::detail

#endif
