/// @file
/// STARTTLS for C++20 coroutines: connections that start in plain text and are upgraded to TLS in place.
#ifndef UPGRADEABLE_STREAMS_HPP
#define UPGRADEABLE_STREAMS_HPP

#if !defined(_MSVC_LANG) && __cplusplus < 202002L
#error "upgradeable_streams is for C++20: compile with -std=c++20"
#endif
#ifndef __cpp_exceptions
#error "upgradeable_streams throws: compile without -fno-exceptions"
#endif

#include <asio/awaitable.hpp>
#ifndef ASIO_HAS_CO_AWAIT
#error "Asio has no coroutines here: clang with Asio before 1.26 needs ASIO_HAS_CO_AWAIT and ASIO_HAS_STD_COROUTINE"
#endif

#include <upgradeable_streams/callable_view.hpp>
#include <upgradeable_streams/certificate.hpp>
#include <upgradeable_streams/channel_binding.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/open_connection.hpp>
#include <upgradeable_streams/proxy_protocol.hpp>
#include <upgradeable_streams/server.hpp>
#include <upgradeable_streams/start_server.hpp>
#include <upgradeable_streams/starttls/policy.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/tls.hpp>
#include <upgradeable_streams/tls_context.hpp>
#include <upgradeable_streams/tls_stream.hpp>
#include <upgradeable_streams/tlsa_record.hpp>
#include <upgradeable_streams/upgradeable_stream.hpp>

#endif
