#ifndef TEST_SUPPORT_OPENSSL_HPP
#define TEST_SUPPORT_OPENSSL_HPP

#include "failure.hpp"

#include <openssl/err.h>

#include <array>
#include <memory>
#include <string>

namespace test
{

template <auto Free>
struct freed_by
{
    template <typename T>
    void operator()(T* pointer) const noexcept
    {
        Free(pointer);
    }
};

/// A `std::unique_ptr` for OpenSSL's types: `openssl_ptr<X509, X509_free>`.
template <typename T, auto Free>
using openssl_ptr = std::unique_ptr<T, freed_by<Free>>;

/// Effects: empties this thread's OpenSSL error queue. Returns: its text.
inline std::string take_openssl_errors()
{
    std::string text;
    while (const unsigned long code = ERR_get_error())
    {
        std::array<char, 256> line{};
        ERR_error_string_n(code, line.data(), line.size());
        text += text.empty() ? "" : "; ";
        text += line.data();
    }
    return text.empty() ? "no OpenSSL error queued" : text;
}

/// Returns: `pointer`. Errors: `failure` where it is null.
template <typename T>
T* openssl_check(T* pointer, const char* what)
{
    if (pointer == nullptr)
        throw failure(std::string(what) + ": " + take_openssl_errors());
    return pointer;
}

/// Errors: `failure` where `result` is not positive.
inline void openssl_check(long result, const char* what)
{
    if (result <= 0)
        throw failure(std::string(what) + ": " + take_openssl_errors());
}

} // namespace test

#endif
