/// @file
/// What an object holds that can be empty.
#ifndef UPGRADEABLE_STREAMS_DETAIL_CHECKED_PTR_HPP
#define UPGRADEABLE_STREAMS_DETAIL_CHECKED_PTR_HPP

#include <upgradeable_streams/error.hpp>

#include <memory>
#include <system_error>
#include <utility>

namespace upgradeable_streams::detail
{

/// A shared_ptr that throws errc::connection_closed when it is null and dereferenced.
template <typename T>
class checked_ptr
{
public:
    checked_ptr() = default;
    checked_ptr(std::shared_ptr<T> pointer) noexcept : pointer_(std::move(pointer)) {}

    T& operator*() const
    {
        if (!pointer_)
            throw std::system_error(errc::connection_closed, "empty, or moved from");
        return *pointer_;
    }

    T* operator->() const { return &**this; }

private:
    std::shared_ptr<T> pointer_;
};

} // namespace upgradeable_streams::detail

#endif
