#ifndef TEST_SUPPORT_CATCH_HPP
#define TEST_SUPPORT_CATCH_HPP

// The only file that knows whether Catch2 2 or Catch2 3 is in use.
// In both, assertions belong on the thread that runs the test case.

#if __has_include(<catch2/catch_test_macros.hpp>)
#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators_all.hpp>
#include <catch2/matchers/catch_matchers_all.hpp>
#define TEST_SUPPORT_CATCH_VERSION 3
#elif __has_include(<catch_amalgamated.hpp>)
#include <catch_amalgamated.hpp>
#define TEST_SUPPORT_CATCH_VERSION 3
#else
#include <catch2/catch.hpp>
#define TEST_SUPPORT_CATCH_VERSION 2
#endif

#include <exception>
#include <string>

namespace test
{

/// A matcher of strings that contain `text`.
inline auto contains(const std::string& text)
{
#if TEST_SUPPORT_CATCH_VERSION == 2
    return Catch::Matchers::Contains(text);
#else
    return Catch::Matchers::ContainsSubstring(text);
#endif
}

/// A matcher of strings that begin with `text`.
inline auto starts_with(const std::string& text)
{
    return Catch::Matchers::StartsWith(text);
}

/// A matcher of strings that end with `text`.
inline auto ends_with(const std::string& text)
{
    return Catch::Matchers::EndsWith(text);
}

/// A matcher of exceptions whose `what()` contains `text`, for `REQUIRE_THROWS_MATCHES`.
inline auto message_contains(const std::string& text)
{
    return Catch::Matchers::Predicate<std::exception>(
        [text](const std::exception& error) { return std::string(error.what()).find(text) != std::string::npos; },
        "has a message that contains \"" + text + '"');
}

} // namespace test

#undef TEST_SUPPORT_CATCH_VERSION

#endif
