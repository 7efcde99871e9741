/// @file
/// What programs that define `UPGRADEABLE_STREAMS_SEPARATE_COMPILATION`, in all of their files, compile once: one file
/// includes this and nothing of the library before it.
#if defined(UPGRADEABLE_STREAMS_DETAIL_COMPILATION_HPP) && !defined(UPGRADEABLE_STREAMS_SRC_HPP)
#error "upgradeable_streams/src.hpp is to be included before the library's other headers"
#endif
#ifndef UPGRADEABLE_STREAMS_SEPARATE_COMPILATION
#define UPGRADEABLE_STREAMS_SEPARATE_COMPILATION
#endif
#ifndef UPGRADEABLE_STREAMS_SRC_HPP
#define UPGRADEABLE_STREAMS_SRC_HPP

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsubobject-linkage" // which GCC leaves out in a source file, where these belong
#endif

#include <asio.hpp> // first, as in most programs: what Asio takes the platform to have depends on what came before

#include <upgradeable_streams.hpp>
#include <upgradeable_streams/starttls/ftp.hpp>
#include <upgradeable_streams/starttls/http_connect.hpp>
#include <upgradeable_streams/starttls/imap.hpp>
#include <upgradeable_streams/starttls/irc.hpp>
#include <upgradeable_streams/starttls/ldap.hpp>
#include <upgradeable_streams/starttls/mysql.hpp>
#include <upgradeable_streams/starttls/nbd.hpp>
#include <upgradeable_streams/starttls/nntp.hpp>
#include <upgradeable_streams/starttls/pop3.hpp>
#include <upgradeable_streams/starttls/postgres.hpp>
#include <upgradeable_streams/starttls/sieve.hpp>
#include <upgradeable_streams/starttls/smtp.hpp>
#include <upgradeable_streams/starttls/xmpp.hpp>

#include <string>

namespace upgradeable_streams
{

template class detail::stream_connection<asio::generic::stream_protocol::socket>;
template asio::awaitable<std::string> stream_reader::read_match(shared_handle, detail::newline);
template asio::awaitable<std::string> stream_reader::read_match(shared_handle, detail::any_separator);

} // namespace upgradeable_streams

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif
