#include <upgradeable_streams/string_list.hpp>

#include "support/catch.hpp"

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace us = upgradeable_streams;

namespace
{

std::vector<std::string> copy(const us::string_list& list)
{
    std::vector<std::string> strings;
    for (std::size_t i = 0; i < list.size(); ++i)
        strings.emplace_back(list[i]);
    CHECK(list.copy() == strings);
    return strings;
}

using strings = std::vector<std::string>;

} // namespace

TEST_CASE("string_list: none, one and several strings can be given")
{
    const std::string text = "text";
    CHECK(copy({}) == strings{});
    CHECK(copy("literal") == strings{"literal"});
    CHECK(copy(text) == strings{"text"});
    CHECK(copy(std::string_view("view")) == strings{"view"});
    CHECK(copy({"a", text, std::string_view("c")}) == strings{"a", "text", "c"});
}

TEST_CASE("string_list: a span of string_views can be given, or what is one")
{
    std::array<std::string_view, 3> views{"a", "b", "c"};
    CHECK(copy(views) == strings{"a", "b", "c"});
    CHECK(copy(std::span(views)) == strings{"a", "b", "c"});
    CHECK(copy(std::vector<std::string_view>{"a", "b"}) == strings{"a", "b"});
    CHECK(copy(std::vector<std::string_view>()).empty());
    CHECK(copy(std::span<const std::string_view>(views)) == strings{"a", "b", "c"});
    CHECK(copy(std::span<const std::string_view>(views).subspan(1)) == strings{"b", "c"});
}

TEST_CASE("string_list: strings that are owned elsewhere, as a configuration's, can be given")
{
    const strings owned{"a", "", std::string("b\0c", 3)};
    CHECK(copy(owned) == owned);
    CHECK(copy(std::span(owned).first(1)) == strings{"a"});
    CHECK(copy(std::array<std::string, 2>{"a", "b"}) == strings{"a", "b"});
    CHECK(copy(strings()).empty());
}

TEST_CASE("string_list: it is empty when it holds no strings, not when it holds an empty one")
{
    CHECK(us::string_list().empty());
    CHECK(us::string_list(std::span<const std::string_view>()).empty());
    CHECK(!us::string_list("").empty());
    CHECK(us::string_list("").size() == 1);
    CHECK(us::string_list({"", ""}).size() == 2);
    CHECK_FALSE(us::string_list().is_given());
    CHECK(us::string_list("").is_given());
    CHECK(us::string_list(strings()).is_given());
    CHECK(us::string_list(std::span<const std::string_view>()).is_given());
}

TEST_CASE("string_list: strings with NULs in them are whole")
{
    using namespace std::string_view_literals;
    CHECK(copy("a\0b"sv) == strings{std::string("a\0b"sv)});
    CHECK(copy({"\r\n"sv, "\0"sv}) == strings{"\r\n", std::string(1, '\0')});
}

TEST_CASE("string_list: it can be a member of options that a coroutine takes by value")
{
    CHECK(std::is_trivially_destructible_v<us::string_list>);
    CHECK(std::is_trivially_copyable_v<us::string_list>);
}
