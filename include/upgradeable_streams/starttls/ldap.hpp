/// @file
/// StartTLS in LDAP (RFC 4511 section 4.14).
#ifndef UPGRADEABLE_STREAMS_STARTTLS_LDAP_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_LDAP_HPP

#include <upgradeable_streams/detail/ber.hpp>
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
#include <optional>
#include <string>
#include <string_view>

namespace upgradeable_streams
{
namespace starttls
{

/// Sends a StartTLS request, with the messageID 1, and upgrades when the server answers with success.
///
/// A server that answers with protocolError, unavailable or a referral does not offer TLS; one that answers with
/// another code, or with a notice of disconnection, refuses.
asio::awaitable<negotiated> ldap(const stream_reader& reader, const stream_writer& writer,
                                 const starttls_options& options = {});

/// Whether a client's message, an LDAPMessage from its first byte to its last, is a StartTLS request.
bool is_ldap_request(std::string_view message);

/// Answers a StartTLS request with success and upgrades, or says why not: protocolError to a request with a value or
/// malformed controls, unavailableCriticalExtension to one with a critical control (section 4.1.11), unavailable
/// without a context, operationsError in TLS. No other operation may be outstanding (section 4.14.1).
asio::awaitable<stream_pair> answer_ldap(const stream_reader& reader, const stream_writer& writer,
                                         std::string_view message, const tls_options& options = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

inline constexpr std::string_view start_tls_oid = "1.3.6.1.4.1.1466.20037";
inline constexpr std::string_view disconnection_oid = "1.3.6.1.4.1.1466.20036";

enum ldap_tag : unsigned char
{
    ldap_boolean = 0x01,
    ldap_integer = 0x02,
    ldap_string = 0x04,
    ldap_enumerated = 0x0a,
    ldap_sequence = 0x30,
    ldap_extended_request = 0x77,
    ldap_extended_response = 0x78,
    ldap_request_name = 0x80,
    ldap_response_name = 0x8a,
    ldap_controls = 0xa0
};

enum ldap_result : unsigned char
{
    ldap_success = 0,
    ldap_operations_error = 1,
    ldap_protocol_error = 2,
    ldap_referral = 10,
    ldap_unavailable_critical_extension = 12,
    ldap_unavailable = 52
};

/// A messageID, what is in an extended operation, and what is behind it.
struct ldap_message
{
    std::string_view id;
    std::string_view operation;
    std::string_view behind;

    static std::optional<ldap_message> parse(std::string_view bytes, ldap_tag operation)
    {
        std::optional<std::string_view> content = take_ber(bytes, ldap_sequence);
        if (!content || !bytes.empty())
            return std::nullopt;
        const auto id = take_ber(*content, ldap_integer);
        const auto found = take_ber(*content, operation);
        if (!found || !id || id->empty() || id->size() > 4)
            return std::nullopt;
        return ldap_message{*id, *found, *content};
    }

    /// Whether one of the controls is critical; nothing where they are malformed.
    std::optional<bool> has_critical_control() const
    {
        std::string_view rest = behind;
        if (!rest.starts_with(static_cast<char>(ldap_controls)))
            return false;
        auto controls = take_ber(rest, ldap_controls);
        bool is_critical = false;
        while (controls && !controls->empty())
        {
            auto control = take_ber(*controls, ldap_sequence);
            if (!control || !take_ber(*control, ldap_string))
                return std::nullopt;
            const auto criticality = take_ber(*control, ldap_boolean);
            is_critical = is_critical || (criticality && *criticality != std::string_view("\0", 1));
        }
        return controls ? std::optional(is_critical) : std::nullopt;
    }
};

struct ldap_response
{
    std::uint32_t id;
    std::uint32_t result;
    std::string_view words;
    std::string_view name; ///< An OID, or empty.

    static std::optional<ldap_response> parse(std::string_view bytes)
    {
        const auto message = ldap_message::parse(bytes, ldap_extended_response);
        if (!message)
            return std::nullopt;
        std::string_view rest = message->operation;
        const auto result = take_ber(rest, ldap_enumerated);
        const auto matched = take_ber(rest, ldap_string);
        const auto words = take_ber(rest, ldap_string);
        if (!result || result->empty() || result->size() > 4 || !matched || !words)
            return std::nullopt;
        ldap_response made{parse_big_endian(message->id), parse_big_endian(*result), *words, {}};
        while (!rest.empty()) // what is unknown is to be ignored (section 4)
        {
            const auto tag = static_cast<unsigned char>(rest[0]);
            const auto content = take_ber(rest, tag);
            if (!content)
                return std::nullopt;
            if (tag == ldap_response_name)
                made.name = *content;
        }
        return made;
    }
};

inline asio::awaitable<std::string> read_ldap(starttls_dialogue& dialogue)
{
    std::string message = co_await dialogue.read(2);
    const std::optional<std::size_t> more = ber_length_size(message[1]);
    if (message[0] != ldap_sequence || !more)
        dialogue.fail(errc::reply_malformed);
    const std::string length = co_await dialogue.read(*more);
    message += length;
    const std::size_t size = parse_big_endian(std::string_view(message).substr(*more > 0 ? 2 : 1));
    const std::string content = co_await dialogue.read(size);
    co_return message + content;
}

inline asio::awaitable<void> talk_ldap(starttls_dialogue& dialogue)
{
    if (!dialogue.wants_tls(true))
        co_return;
    dialogue.ask("StartTLS", make_ber(ldap_sequence,
                                      make_ber(ldap_integer, "\x01") +
                                          make_ber(ldap_extended_request, make_ber(ldap_request_name, start_tls_oid))));
    std::string message;
    std::optional<ldap_response> response;
    do // notices that are unknown are to be ignored (section 4.4.1)
    {
        message = co_await read_ldap(dialogue);
        response = ldap_response::parse(message);
        if (!response)
            dialogue.fail(errc::reply_malformed);
        const std::string words(response->words);
        dialogue.explain("resultCode " + std::to_string(response->result) + (words.empty() ? "" : ": " + words));
        if (response->id == 0 && response->name == disconnection_oid)
            dialogue.fail(errc::request_refused);
    } while (response->id == 0);
    if (response->id != 1 || (!response->name.empty() && response->name != start_tls_oid))
        dialogue.fail(errc::reply_malformed);
    const bool is_offered = response->result != ldap_protocol_error && response->result != ldap_unavailable &&
                            response->result != ldap_referral;
    if (is_offered && response->result != ldap_success)
        dialogue.fail(errc::request_refused);
    if (dialogue.wants_tls(is_offered))
        co_await dialogue.start_tls();
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> ldap(const stream_reader& reader, const stream_writer& writer,
                                                          const starttls_options& options)
{
    return detail::starttls_dialogue::run("LDAP", reader, writer, options, detail::talk_ldap);
}

UPGRADEABLE_STREAMS_DECL bool is_ldap_request(std::string_view message)
{
    auto request = detail::ldap_message::parse(message, detail::ldap_extended_request);
    return request && static_cast<signed char>(request->id[0]) >= 0 && detail::parse_big_endian(request->id) > 0 &&
           detail::take_ber(request->operation, detail::ldap_request_name) == detail::start_tls_oid;
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair> answer_ldap(const stream_reader& reader,
                                                                  const stream_writer& writer, std::string_view message,
                                                                  const tls_options& options)
{
    using namespace detail;
    require_request(is_ldap_request(message), "answer_ldap", "a StartTLS request");
    auto request = *ldap_message::parse(message, ldap_extended_request);
    const auto answer = [&](ldap_result result, std::string_view words)
    {
        return make_ber(
            ldap_sequence,
            make_ber(ldap_integer, request.id) +
                make_ber(ldap_extended_response, make_ber(ldap_enumerated, std::string(1, static_cast<char>(result))) +
                                                     make_ber(ldap_string, "") + make_ber(ldap_string, words) +
                                                     make_ber(ldap_response_name, start_tls_oid)));
    };
    take_ber(request.operation, ldap_request_name);
    if (!request.operation.empty())
        return refuse_starttls(reader, writer, answer(ldap_protocol_error, "StartTLS has no value"));
    const auto is_critical = request.has_critical_control();
    if (!is_critical)
        return refuse_starttls(reader, writer, answer(ldap_protocol_error, "the controls are malformed"));
    if (*is_critical)
        return refuse_starttls(reader, writer,
                               answer(ldap_unavailable_critical_extension, "StartTLS has no critical controls"));
    const std::string granted = answer(ldap_success, "");
    const std::string unavailable = answer(ldap_unavailable, "TLS is not available");
    const std::string encrypted = answer(ldap_operations_error, "TLS is active");
    return answer_starttls(reader, writer, options, {granted, unavailable, encrypted});
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
