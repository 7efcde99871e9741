#ifndef TEST_SUPPORT_OPERATIONS_HPP
#define TEST_SUPPORT_OPERATIONS_HPP

#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>

#include <asio/awaitable.hpp>

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace test
{

using named_operation = std::pair<std::string, std::function<asio::awaitable<void>()>>;

/// Reads of each kind, through a handle that must outlive what is returned.
inline std::vector<named_operation> reads_of(upgradeable_streams::stream_reader& reader)
{
    using asio::awaitable;
    return {
        {"read", [&]() -> awaitable<void> { co_await reader.read(1); }},
        {"read to the end", [&]() -> awaitable<void> { co_await reader.read(); }},
        {"readinto",
         [&]() -> awaitable<void>
         {
             static char memory[1];
             co_await reader.readinto(memory);
         }},
        {"readline", [&]() -> awaitable<void> { co_await reader.readline(); }},
        {"readexactly", [&]() -> awaitable<void> { co_await reader.readexactly(1); }},
        {"readuntil", [&]() -> awaitable<void> { co_await reader.readuntil("x"); }},
    };
}

/// Every read, every write and the upgrade, through handles that must outlive what is returned.
inline std::vector<named_operation> operations_of(upgradeable_streams::stream_reader& reader,
                                                  upgradeable_streams::stream_writer& writer)
{
    using asio::awaitable;
    std::vector<named_operation> operations = reads_of(reader);
    operations.insert(operations.end(), {{"read nothing", [&]() -> awaitable<void> { co_await reader.read(0); }},
                                         {"readinto nothing",
                                          [&]() -> awaitable<void> { co_await reader.readinto({}); }},
                                         {"write",
                                          [&]() -> awaitable<void>
                                          {
                                              writer.write("x");
                                              co_return;
                                          }},
                                         {"writelines",
                                          [&]() -> awaitable<void>
                                          {
                                              writer.writelines({"x"});
                                              co_return;
                                          }},
                                         {"write_eof",
                                          [&]() -> awaitable<void>
                                          {
                                              writer.write_eof();
                                              co_return;
                                          }},
                                         {"start_tls", [&]() -> awaitable<void> { co_await writer.start_tls(); }}});
    return operations;
}

} // namespace test

#endif
