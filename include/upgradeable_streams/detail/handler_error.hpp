/// @file
/// What a handler threw.
#ifndef UPGRADEABLE_STREAMS_DETAIL_HANDLER_ERROR_HPP
#define UPGRADEABLE_STREAMS_DETAIL_HANDLER_ERROR_HPP

#include <upgradeable_streams/error.hpp>

#include <asio/error.hpp>
#include <asio/multiple_exceptions.hpp>

#include <exception>
#include <string>
#include <system_error>

namespace upgradeable_streams::detail
{

/// What an exception says, of several operations' the first.
inline std::string message_of(const std::exception_ptr& error)
try
{
    std::rethrow_exception(error);
}
catch (const asio::multiple_exceptions& several)
{
    return message_of(several.first_exception());
}
catch (const std::exception& e)
{
    return e.what();
}
catch (...)
{
    return "unknown exception";
}

/// Whether that is what a connection tells that was closed on this side, at which its peer may well go.
inline bool tells_closed(const std::exception_ptr& error)
try
{
    std::rethrow_exception(error);
}
catch (const asio::multiple_exceptions& several)
{
    return tells_closed(several.first_exception());
}
catch (const std::system_error& e)
{
    return e.code() == errc::connection_closed || e.code() == errc::shutdown_timeout ||
           e.code() == asio::error::operation_aborted || e.code() == asio::error::connection_reset ||
           e.code() == asio::error::broken_pipe;
}
catch (...)
{
    return false;
}

} // namespace upgradeable_streams::detail

#endif
