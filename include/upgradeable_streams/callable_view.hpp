/// @file
/// The parameter type of calls that take a callable and keep a copy of it.
#ifndef UPGRADEABLE_STREAMS_CALLABLE_VIEW_HPP
#define UPGRADEABLE_STREAMS_CALLABLE_VIEW_HPP

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <new>
#include <type_traits>

namespace upgradeable_streams
{

template <typename Signature>
class callable_view;

/// A function, a lambda, or any other callable object, which the call that takes it copies.
///
/// An object with a destructor, such as a lambda that captures a std::string, must have a name: g++ 12 destroys the
/// temporary objects of a co_await expression twice.
///
/// Lifetime: an object that has a name must live until the call; a lambda without one is held here.
template <typename Result, typename... Arguments>
class callable_view<Result(Arguments...)>
{
public:
    using function = std::function<Result(Arguments...)>;

    callable_view() = default;

    template <typename Callable>
        requires(!std::is_same_v<std::remove_cvref_t<Callable>, callable_view> &&
                 std::is_invocable_r_v<Result, std::remove_cvref_t<Callable>&, Arguments...>)
    callable_view(Callable&& callable)
    {
        using object = std::decay_t<Callable>;
        constexpr bool is_small = std::is_trivially_copyable_v<object> && sizeof(object) <= sizeof held_ &&
                                  alignof(object) <= alignof(void*);
        static_assert(std::is_lvalue_reference_v<Callable> || is_small,
                      "give this callable a name, and pass that: g++ 12 destroys the temporary objects of a co_await "
                      "expression twice");
        if constexpr (is_small)
            ::new (static_cast<void*>(held_.data())) object(callable);
        else
            named_ = std::addressof(callable);
        copy_ = [](const void* source) { return function(*static_cast<const object*>(source)); };
    }

    /// Empty for a view of nothing.
    function copy() const { return copy_ ? copy_(named_ ? named_ : held_.data()) : function(); }

private:
    alignas(void*) std::array<std::byte, 8 * sizeof(void*)> held_ = {};
    const void* named_ = nullptr;
    function (*copy_)(const void*) = nullptr;
};

} // namespace upgradeable_streams

#endif
