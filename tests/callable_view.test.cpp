#include "support/catch.hpp"

#include <upgradeable_streams/callable_view.hpp>

#include <memory>
#include <string>
#include <type_traits>

namespace us = upgradeable_streams;

namespace
{

using view = us::callable_view<int(int)>;

int doubled(int value)
{
    return 2 * value;
}

} // namespace

static_assert(std::is_trivially_destructible_v<view>);
static_assert(std::is_trivially_copyable_v<view>);
static_assert(!std::is_constructible_v<view, int>);
static_assert(!std::is_constructible_v<view, int (*)(std::string)>);

TEST_CASE("callable_view: a view of nothing copies to an empty function")
{
    CHECK_FALSE(view().copy());
}

TEST_CASE("callable_view: a function and a pointer to one are taken")
{
    CHECK(view(doubled).copy()(3) == 6);
    CHECK(view(&doubled).copy()(4) == 8);
}

TEST_CASE("callable_view: a lambda without a name is held by the view and by its copies")
{
    int factor = 3;
    const view tripled = [&factor](int value) { return factor * value; };
    const view again = tripled;
    const auto function = again.copy();
    factor = 5;
    CHECK(function(2) == 10);
}

TEST_CASE("callable_view: an object with a name and a destructor is copied at the call, and only then")
{
    auto shared = std::make_shared<int>(7);
    const auto add = [shared](int value) { return *shared + value; };
    CHECK(shared.use_count() == 2);
    const view named = add;
    CHECK(shared.use_count() == 2);
    const auto function = named.copy();
    CHECK(shared.use_count() == 3);
    CHECK(function(1) == 8);
}

TEST_CASE("callable_view: the copy outlives the callable that it was made of")
{
    std::function<int(int)> function;
    {
        const std::string text = "four";
        const auto lengthened = [text](int value) { return int(text.size()) + value; };
        function = view(lengthened).copy();
    }
    CHECK(function(1) == 5);
}
