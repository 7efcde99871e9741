/// @file
/// NBD_OPT_STARTTLS of network block devices (the NBD protocol's section "TLS support").
#ifndef UPGRADEABLE_STREAMS_STARTTLS_NBD_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_NBD_HPP

#include <upgradeable_streams/detail/byte_order.hpp>
#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/starttls_answer.hpp>
#include <upgradeable_streams/detail/starttls_dialogue.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/starttls/negotiation.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace upgradeable_streams
{
namespace starttls
{

/// Reads the server's handshake flags, sends the client's, asks for TLS as the first option and upgrades: another
/// option is next. In plain text with a server without NBD_FLAG_FIXED_NEWSTYLE that is NBD_OPT_EXPORT_NAME and no
/// other.
///
/// NBD offers nothing beforehand but the means to ask: a server without NBD_FLAG_FIXED_NEWSTYLE, or that answers
/// NBD_REP_ERR_UNSUP, _POLICY or _PLATFORM, does not offer TLS. Whatever the policy, any other error is
/// errc::request_refused, and an oldstyle server errc::reply_malformed. The connection is then closed without
/// NBD_OPT_ABORT.
///
/// Returns: `greeting` is what the server sent first, 18 bytes, of which the last 2 are its flags. The client has those
/// of NBD_FLAG_FIXED_NEWSTYLE and NBD_FLAG_NO_ZEROES that the server has. They came in plain text, where an attacker
/// may have changed them; NBD_OPT_GO does not depend on the second, as NBD_OPT_EXPORT_NAME does.
asio::awaitable<negotiated> nbd(const stream_reader& reader, const stream_writer& writer,
                                const starttls_options& options = {});

/// Whether a client's option, header and data, is NBD_OPT_STARTTLS.
bool is_nbd_request(std::string_view option);

/// Answers NBD_OPT_STARTTLS with NBD_REP_ACK and upgrades, or says why not: NBD_REP_ERR_POLICY without a context,
/// _INVALID in TLS and for data.
///
/// What the client's options did before (structured replies, metadata contexts) is to be forgotten (CVE-2021-3716); its
/// flags stay, and without NBD_FLAG_C_FIXED_NEWSTYLE the caller answers with an error of its own. A server that demands
/// TLS closes the connection at NBD_OPT_EXPORT_NAME, which no error can answer, answers NBD_OPT_ABORT as ever, and
/// other options with NBD_REP_ERR_TLS_REQD.
asio::awaitable<stream_pair> answer_nbd(const stream_reader& reader, const stream_writer& writer,
                                        std::string_view option, const tls_options& options = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

inline constexpr std::string_view nbd_magic = "NBDMAGICIHAVEOPT";
inline constexpr char nbd_fixed_newstyle = 1;
inline constexpr char nbd_no_zeroes = 2;
inline constexpr std::string_view nbd_start_tls("IHAVEOPT\0\0\0\5\0\0\0\0", 16);
inline constexpr std::string_view nbd_start_tls_reply("\0\3\xe8\x89\x04\x55\x65\xa9\0\0\0\5", 12);

enum class nbd_reply : std::uint32_t
{
    ack = 1,
    unsupported = 0x8000'0001,
    policy = 0x8000'0002,
    invalid = 0x8000'0003,
    platform = 0x8000'0004
};

inline asio::awaitable<void> talk_nbd(starttls_dialogue& dialogue)
{
    dialogue.greeting = co_await dialogue.read(nbd_magic.size() + 2);
    if (!dialogue.greeting.starts_with(nbd_magic))
        dialogue.fail(errc::reply_malformed);
    const char flags = static_cast<char>(dialogue.greeting.back() & (nbd_fixed_newstyle | nbd_no_zeroes));
    const std::string own_flags = {0, 0, 0, flags};
    if (!dialogue.wants_tls(flags & nbd_fixed_newstyle))
    {
        dialogue.writer().write(own_flags);
        co_return;
    }
    dialogue.ask("NBD_OPT_STARTTLS", own_flags + std::string(nbd_start_tls));

    const std::string header = co_await dialogue.read(nbd_start_tls_reply.size() + 8);
    const std::string_view type_and_size = std::string_view(header).substr(nbd_start_tls_reply.size());
    const std::uint32_t type = parse_big_endian(type_and_size.substr(0, 4));
    const std::uint32_t size = parse_big_endian(type_and_size.substr(4));
    const bool is_error = type & 0x8000'0000;
    const bool is_granted = nbd_reply(type) == nbd_reply::ack && size == 0;
    if (!header.starts_with(nbd_start_tls_reply) || (!is_error && !is_granted))
        dialogue.fail(errc::reply_malformed);
    if (is_granted)
    {
        co_await dialogue.start_tls();
        co_return;
    }
    const std::string words = co_await dialogue.read(size);
    dialogue.explain("error " + std::to_string(type & 0x7fff'ffff) + (words.empty() ? "" : ": " + words));
    const auto error = nbd_reply(type);
    if (error != nbd_reply::unsupported && error != nbd_reply::policy && error != nbd_reply::platform)
        dialogue.fail(errc::request_refused);
    dialogue.refused(errc::tls_not_offered);
}

inline std::string make_nbd_reply(nbd_reply type, std::string_view words)
{
    return std::string(nbd_start_tls_reply) + to_big_endian(std::uint32_t(type), 4) +
           to_big_endian(static_cast<std::uint32_t>(words.size()), 4) + std::string(words);
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> nbd(const stream_reader& reader, const stream_writer& writer,
                                                         const starttls_options& options)
{
    return detail::starttls_dialogue::run("NBD", reader, writer, options, detail::talk_nbd);
}

UPGRADEABLE_STREAMS_DECL bool is_nbd_request(std::string_view option)
{
    constexpr std::size_t before_size = detail::nbd_start_tls.size() - 4;
    return option.size() >= detail::nbd_start_tls.size() &&
           option.starts_with(detail::nbd_start_tls.substr(0, before_size)) &&
           detail::parse_big_endian(option.substr(before_size, 4)) == option.size() - detail::nbd_start_tls.size();
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair> answer_nbd(const stream_reader& reader,
                                                                 const stream_writer& writer, std::string_view option,
                                                                 const tls_options& options)
{
    using namespace detail;
    require_request(is_nbd_request(option), "answer_nbd", "NBD_OPT_STARTTLS");
    if (option != nbd_start_tls)
        return refuse_starttls(reader, writer, make_nbd_reply(nbd_reply::invalid, "NBD_OPT_STARTTLS has no data"));
    const std::string granted = make_nbd_reply(nbd_reply::ack, "");
    const std::string unavailable = make_nbd_reply(nbd_reply::policy, "TLS is not available");
    const std::string encrypted = make_nbd_reply(nbd_reply::invalid, "TLS is active");
    return answer_starttls(reader, writer, options, {granted, unavailable, encrypted});
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
