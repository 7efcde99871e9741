#include <upgradeable_streams/detail/second_look.hpp>

#include "support/catch.hpp"

using upgradeable_streams::detail::second_look;

namespace
{

/// Returns: how many of so many waits are looks in vain.
int looks_in_vain(second_look& look, int waits)
{
    int looks = 0;
    for (int i = 0; i < waits; ++i)
    {
        if (!look.is_due())
            continue;
        ++looks;
        CHECK(!look.is_due()); // having found nothing one waits
    }
    return looks;
}

} // namespace

TEST_CASE("second_look: not due at once, and then each time that the last one found something")
{
    second_look look;
    CHECK(!look.is_due());
    CHECK(!look.is_due());
    for (int i = 0; i < 1000; ++i)
    {
        REQUIRE(look.is_due());
        look.found();
    }
}

TEST_CASE("second_look: in vain it becomes rarer, up to one in 65 waits")
{
    second_look look;
    CHECK(looks_in_vain(look, 2000) > 25);
    CHECK(looks_in_vain(look, 6500) == 100);
}

TEST_CASE("second_look: what is found without one changes nothing, and one that finds something makes it common again")
{
    second_look look;
    looks_in_vain(look, 2000);
    look.found();
    CHECK(looks_in_vain(look, 64) <= 1);
    while (!look.is_due())
    {
    }
    look.found();
    CHECK(looks_in_vain(look, 64) >= 4);
}
