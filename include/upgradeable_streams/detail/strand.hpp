/// @file
/// A strand that is entered without an allocation when it is free.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STRAND_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STRAND_HPP

#include <asio/any_io_executor.hpp>
#include <asio/dispatch.hpp>
#include <asio/post.hpp>

#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace upgradeable_streams::detail
{

/// Runs one function at a time. Unlike asio::strand's, its owner can enter from a completion handler that runs on the
/// inner executor already, which costs two atomic operations and no more.
///
/// Lifetime: who enters keeps the strand until that has returned.
class strand : public std::enable_shared_from_this<strand>
{
public:
    explicit strand(asio::any_io_executor inner) : inner_(std::move(inner)) {}

    ~strand()
    {
        if (newest_.load(std::memory_order_relaxed))
            drop_waiting();
    }

    strand(const strand&) = delete;
    strand& operator=(const strand&) = delete;

    /// Calls the function, now if nothing else runs, else when that is done. For a thread of the inner executor.
    template <typename Function>
    void enter(Function&& function)
    {
        if (runs_here())
            return std::forward<Function>(function)();
        if (try_take())
        {
            const stay here(*this);
            return std::forward<Function>(function)();
        }
        if (auto first = take_or_add(std::forward<Function>(function)))
            start(std::move(first), [this] { run_waiting(); });
    }

    /// Calls the function from the inner executor, later or as soon as that allows.
    template <typename Function>
    void post(Function&& function)
    {
        if (auto first = take_or_add(std::forward<Function>(function)))
            start(std::move(first), [this] { go_on(); });
    }

    template <typename Function>
    void dispatch(Function&& function)
    {
        if (auto first = take_or_add(std::forward<Function>(function)))
            start(std::move(first), [this] { hand_over([this](runner r) { asio::dispatch(inner_, std::move(r)); }); });
    }

    bool runs_here() const
    {
        for (const stay* s = stay::innermost(); s; s = s->outer)
            if (&s->owner == this)
                return true;
        return false;
    }

private:
    struct link
    {
        link* next = nullptr;
    };

    struct task : link
    {
        virtual ~task() = default;
        virtual void run() = 0;
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
            handover* const now = handover::innermost();
            if (strand_ && now && &now->owner == strand_.get())
                now->is_refused = true;
            else if (strand_)
                strand_->drop_waiting();
        }

        void operator()()
        {
            const auto s = std::move(strand_);
            s->run_waiting();
        }

    private:
        std::shared_ptr<strand> strand_;
    };

    /// The time in which a thread hands a runner over to the inner executor. Exceptions do not tell it: an io_context
    /// may go while one passes.
    struct handover
    {
        explicit handover(const strand& s) : owner(s), outer(innermost()) { innermost() = this; }
        ~handover() { innermost() = outer; }

        handover(const handover&) = delete;
        handover& operator=(const handover&) = delete;

        static handover*& innermost()
        {
            static thread_local handover* current = nullptr;
            return current;
        }

        const strand& owner;
        handover* const outer;
        bool is_refused = false; ///< The runner was destroyed.
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

    bool try_take()
    {
        link* free = nullptr;
        return newest_.compare_exchange_strong(free, &taken_, std::memory_order_acquire, std::memory_order_relaxed);
    }

    bool try_free()
    {
        link* none = &taken_;
        return !first_ &&
               newest_.compare_exchange_strong(none, nullptr, std::memory_order_release, std::memory_order_relaxed);
    }

    /// Has the function wait; gives it back where the strand was free, and is now taken for it.
    template <typename Function>
    std::unique_ptr<task> take_or_add(Function&& function)
    {
        using function_type = std::decay_t<Function>;
        std::unique_ptr<task> added = std::make_unique<task_of<function_type>>(std::forward<Function>(function));
        for (;;)
        {
            added->next = newest_.load(std::memory_order_relaxed);
            if (!added->next && try_take())
                return added;
            if (added->next && newest_.compare_exchange_weak(added->next, added.get(), std::memory_order_release,
                                                             std::memory_order_relaxed))
            {
                added.release();
                return nullptr;
            }
        }
    }

    /// Drops the function for which the strand was taken when there is no memory to run it.
    template <typename Start>
    void start(std::unique_ptr<task> first, Start begin)
    {
        first_ = first.release();
        const std::size_t runs = runs_.load(std::memory_order_relaxed);
        try
        {
            begin();
        }
        catch (...)
        {
            if (runs_.load(std::memory_order_relaxed) != runs)
                throw;
            take_first();
            leave();
            throw;
        }
    }

    void leave() noexcept
    {
        if (try_free())
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
        hand_over([this](runner r) { asio::post(inner_, std::move(r)); });
    }

    /// What throws leaves what waits to its owner. An executor that has been shut down destroys what it is given.
    template <typename Give>
    void hand_over(Give give)
    {
        handover now(*this);
        give(runner(shared_from_this()));
        if (!now.is_refused)
            return;
        const auto keep = shared_from_this();
        drop_waiting();
    }

    /// What is added meanwhile has to wait for others on the inner executor.
    void run_waiting()
    {
        const stay here(*this);
        runs_.fetch_add(1, std::memory_order_relaxed);
        take_waiting();
        while (first_)
            take_first()->run();
    }

    void drop_waiting()
    {
        while (!try_free())
            for (take_waiting(); first_;)
                take_first();
    }

    /// Puts what waits behind first_, the oldest in front.
    void take_waiting()
    {
        link** end = &first_;
        while (*end)
            end = &(*end)->next;
        link* next = newest_.exchange(&taken_, std::memory_order_acquire);
        for (link* older = nullptr; next != &taken_; next = older)
        {
            older = std::exchange(next->next, *end);
            *end = next;
        }
    }

    std::unique_ptr<task> take_first()
    {
        std::unique_ptr<task> taken(static_cast<task*>(first_));
        first_ = taken->next;
        return taken;
    }

    const asio::any_io_executor inner_;
    link taken_;                         ///< Where the list of what waits ends.
    std::atomic<link*> newest_{nullptr}; ///< Of what waits, each before the next older one; null while it is free.
    link* first_ = nullptr;              ///< Of what is run next; for who has taken the strand.
    std::atomic<std::size_t> runs_{0};   ///< How often what waits was run.
};

} // namespace upgradeable_streams::detail

#endif
