/// @file
/// What a read goes up to.
#ifndef UPGRADEABLE_STREAMS_DETAIL_SEPARATORS_HPP
#define UPGRADEABLE_STREAMS_DETAIL_SEPARATORS_HPP

#include <upgradeable_streams/string_list.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace upgradeable_streams::detail
{

struct match
{
    std::size_t begin;
    std::size_t end;
};

struct newline
{
    static constexpr bool ends_lines = true; ///< One that is too long is dropped, the last may lack its end.
    std::size_t longest = 1;

    std::optional<match> find(std::string_view data, std::size_t from) const
    {
        const std::size_t at = data.find('\n', from);
        return at == data.npos ? std::nullopt : std::optional<match>({at, at + 1});
    }
};

struct any_separator
{
    static constexpr bool ends_lines = false;
    std::vector<std::string> separators;
    std::size_t longest = 0;

    explicit any_separator(const string_list& given)
    {
        for (std::size_t i = 0; i < given.size(); ++i)
        {
            separators.emplace_back(given[i]);
            longest = std::max(longest, given[i].size());
            if (given[i].empty())
                throw std::invalid_argument("readuntil: a separator must have at least one byte");
        }
        if (separators.empty())
            throw std::invalid_argument("readuntil: at least one separator is needed");
    }

    std::optional<match> find(std::string_view data, std::size_t from) const
    {
        std::optional<match> first;
        std::string_view window; // a separator that does not come is not sought in all there is for each record anew
        for (std::size_t size = 64; !first && window.size() < data.size(); size *= 2)
        {
            window = data.substr(0, from + size);
            for (const std::string& separator : separators)
            {
                const std::size_t at = window.find(separator, from);
                if (at != window.npos && (!first || at + separator.size() < first->end))
                    first = {at, at + separator.size()};
            }
            from = std::max(from, std::max(window.size() + 1, longest) - longest);
        }
        return first;
    }
};

} // namespace upgradeable_streams::detail

#endif
