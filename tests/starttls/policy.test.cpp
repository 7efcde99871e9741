#include <upgradeable_streams/starttls/policy.hpp>

#include "support/catch.hpp"

#include <system_error>

namespace us = upgradeable_streams;
using us::starttls_policy;

TEST_CASE("starttls_policy: what is offered is asked for unless never, and what is required must be offered")
{
    CHECK_FALSE(us::wants_tls(starttls_policy::never, false));
    CHECK_FALSE(us::wants_tls(starttls_policy::never, true));
    CHECK_FALSE(us::wants_tls(starttls_policy::attempt, false));
    CHECK(us::wants_tls(starttls_policy::attempt, true));
    CHECK(us::wants_tls(starttls_policy::require, true));
    try
    {
        us::wants_tls(starttls_policy::require, false);
        FAIL("TLS was required and not offered");
    }
    catch (const std::system_error& error)
    {
        CHECK(error.code() == us::errc::tls_not_offered);
    }
}
