#ifndef TEST_SUPPORT_DEADLINE_HPP
#define TEST_SUPPORT_DEADLINE_HPP

#include <chrono>

namespace test
{

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool under_sanitizer = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
inline constexpr bool under_sanitizer = true;
#else
inline constexpr bool under_sanitizer = false;
#endif
#else
inline constexpr bool under_sanitizer = false;
#endif

/// How long `run` and its variants let a test take.
inline constexpr std::chrono::milliseconds run_deadline = std::chrono::seconds(under_sanitizer ? 90 : 20);

/// How long a blocking peer waits for any one send or receive.
inline constexpr std::chrono::milliseconds peer_deadline = std::chrono::seconds(under_sanitizer ? 30 : 10);

/// For a time limit that is to be reached.
inline constexpr std::chrono::milliseconds soon{50};

} // namespace test

#endif
