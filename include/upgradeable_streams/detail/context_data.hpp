/// @file
/// What this library keeps in an SSL_CTX.
#ifndef UPGRADEABLE_STREAMS_DETAIL_CONTEXT_DATA_HPP
#define UPGRADEABLE_STREAMS_DETAIL_CONTEXT_DATA_HPP

#include <openssl/ssl.h>

#include <memory>
#include <new>
#include <utility>

namespace upgradeable_streams::detail
{

template <typename T>
int context_data_index()
{
    static const int index = SSL_CTX_get_ex_new_index(0, nullptr, nullptr, nullptr,
                                                      [](void*, void* value, CRYPTO_EX_DATA*, int, long, void*)
                                                      { delete static_cast<T*>(value); });
    return index;
}

/// Null when there is none.
template <typename T>
T* context_data(const SSL_CTX* context)
{
    return static_cast<T*>(SSL_CTX_get_ex_data(context, context_data_index<T>()));
}

/// Makes the one object of its type that an SSL_CTX may have; it is freed with the SSL_CTX.
template <typename T, typename... Args>
T& emplace_context_data(SSL_CTX* context, Args&&... args)
{
    auto made = std::make_unique<T>(std::forward<Args>(args)...);
    if (!SSL_CTX_set_ex_data(context, context_data_index<T>(), made.get()))
        throw std::bad_alloc();
    return *made.release();
}

} // namespace upgradeable_streams::detail

#endif
