/// @file
/// STARTTLS for C++20 coroutines: connections that start in plain text and are upgraded to TLS in place.
#ifndef UPGRADEABLE_STREAMS_HPP
#define UPGRADEABLE_STREAMS_HPP

#include <upgradeable_streams/callable_view.hpp>
#include <upgradeable_streams/certificate.hpp>
#include <upgradeable_streams/channel_binding.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/open_connection.hpp>
#include <upgradeable_streams/proxy_protocol.hpp>
#include <upgradeable_streams/server_name.hpp>
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
