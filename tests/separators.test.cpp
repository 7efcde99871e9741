#include <upgradeable_streams/detail/separators.hpp>

#include "support/catch.hpp"
#include "support/dice.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

using upgradeable_streams::detail::any_separator;
using upgradeable_streams::detail::match;

TEST_CASE("any_separator: of several that is found whose match ends first, wherever it is sought from")
{
    const std::initializer_list<std::string_view> sought{"abc", "ccc", "b", "aabba"};
    const any_separator separators(sought);
    test::dice dice(26);
    for (int round = 0; round < 20'000; ++round)
    {
        std::string data(dice.below(300), 'a');
        for (char& c : data)
            c = dice.one_in(40) ? "bc"[dice.below(2)] : 'a';
        const std::size_t from = dice.below(data.size() + 1);
        std::size_t end = data.npos;
        for (const std::string_view separator : sought)
            if (const std::size_t at = data.find(separator, from); at != data.npos)
                end = std::min(end, at + separator.size());
        const std::optional<match> found = separators.find(data, from);
        CAPTURE(data, from);
        REQUIRE((found ? found->end : data.npos) == end);
        if (found)
            REQUIRE(found->begin >= from);
    }
}

// Else a peer makes each of many short records cost a search through all that was received.
TEST_CASE("any_separator: one that does not come is not sought far behind the match of another")
{
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    void* const pages = ::mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(pages != MAP_FAILED);
    char* const bytes = static_cast<char*>(pages);
    std::fill_n(bytes, page, '\r');
    REQUIRE(::mprotect(bytes + page, page, PROT_NONE) == 0); // who looks there is killed
    const std::optional<match> found = any_separator({"\r\n", "\n", "\r"}).find({bytes, 2 * page}, 0);
    REQUIRE(found);
    CHECK(found->begin == 0);
    CHECK(found->end == 1);
    ::munmap(pages, 2 * page);
}
