/// @file
/// STARTTLS in XMPP (RFC 6120 section 5), of clients and between servers.
#ifndef UPGRADEABLE_STREAMS_STARTTLS_XMPP_HPP
#define UPGRADEABLE_STREAMS_STARTTLS_XMPP_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/starttls_answer.hpp>
#include <upgradeable_streams/detail/starttls_dialogue.hpp>
#include <upgradeable_streams/detail/xml.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/starttls/negotiation.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace upgradeable_streams
{
namespace starttls
{

/// Opens a stream to `domain` and reads the features, upgrades, and opens a new one.
///
/// Returns: `capabilities` are the features of the stream that is open now, each as its element's XML; `greeting` is
/// the tag with which the server opened that stream, whose `id` dialback takes (XEP-0220). The client's own has no
/// `from` (RFC 6120 section 4.7.1).
asio::awaitable<negotiated> xmpp(const stream_reader& reader, const stream_writer& writer,
                                 const starttls_options& options);

/// As `xmpp` from the server of `client_name` to that of `domain`.
asio::awaitable<negotiated> xmpp_server(const stream_reader& reader, const stream_writer& writer,
                                        const starttls_options& options);

/// Whether an element, which blanks may precede, is `<starttls/>`; its namespace is declared in it.
bool is_xmpp_request(std::string_view element);

/// Answers a client's `<starttls/>` with `<proceed/>` and upgrades, after which the client opens a new stream; or says
/// `<failure/>`, without a context and in TLS, ends the stream and closes the connection (section 5.4.2.2).
asio::awaitable<stream_pair> answer_xmpp(const stream_reader& reader, const stream_writer& writer,
                                         std::string_view element, const tls_options& options = {});

} // namespace starttls

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

namespace detail
{

inline constexpr std::string_view xmpp_tls = "urn:ietf:params:xml:ns:xmpp-tls";
inline constexpr std::string_view xmpp_streams = "http://etherx.jabber.org/streams";

struct xmpp_element
{
    std::string text;
    std::vector<std::string> children;

    bool is(std::string_view name, std::string_view name_space) const
    {
        const std::optional<xml_tag> tag = first_xml_tag(text);
        return tag->name == name && (name_space.empty() || tag->attribute("xmlns") == name_space);
    }
};

/// Reads to the end of the next tag. Returns: it, with the text in front of it, which must be white space outside of an
/// element.
inline asio::awaitable<std::string> read_xmpp_tag(starttls_dialogue& dialogue, bool is_in_element)
{
    std::string text;
    xml_position position;
    for (bool is_whole = false; !is_whole;)
    {
        const std::string piece = co_await dialogue.read_until({">", "\n"}); // text, the one tag, or a part of either
        const std::string_view before = std::string_view(piece).substr(0, position.is_in_tag() ? 0 : piece.find('<'));
        if (!is_xml_text(before) || (!is_in_element && before.find_first_not_of(xml_space) != before.npos))
            dialogue.fail(errc::reply_malformed);
        is_whole = std::ranges::count_if(piece, [&](char c) { return position.pass(c); }) > 0;
        text += piece;
    }
    co_return text;
}

/// Reads the stream's next element. Errors: errc::request_refused for the one that ends the stream, and for its end.
inline asio::awaitable<xmpp_element> read_xmpp_element(starttls_dialogue& dialogue)
{
    xmpp_element element;
    std::vector<std::string> open;
    std::size_t child = 0;
    do
    {
        const std::string text = co_await read_xmpp_tag(dialogue, !open.empty());
        const std::size_t begin = text.find('<');
        const std::optional<xml_tag> tag = xml_tag::parse(std::string_view(text).substr(begin));
        if (tag && tag->is_end && open.empty() && tag->name == "stream:stream")
        {
            dialogue.explain(text.substr(begin));
            dialogue.fail(errc::request_refused);
        }
        if (!tag || (tag->is_end && (open.empty() || open.back() != tag->name)))
            dialogue.fail(errc::reply_malformed);
        const std::size_t depth = open.size();
        if (depth == 1)
            child = element.text.size() + begin;
        element.text += depth > 0 ? text : text.substr(begin);
        if (tag->is_end)
            open.pop_back();
        else if (!tag->is_empty)
            open.emplace_back(tag->name);
        if (depth > 0 && open.size() == 1)
            element.children.push_back(element.text.substr(child));
    } while (!open.empty());
    dialogue.explain(element.text);
    if (element.is("stream:error", {}))
        dialogue.fail(errc::request_refused);
    co_return element;
}

/// Opens a stream. Returns: its features.
inline asio::awaitable<std::vector<std::string>> open_xmpp_stream(starttls_dialogue& dialogue,
                                                                  const std::string& header)
{
    dialogue.ask("<stream:stream>", header);
    std::string text = co_await read_xmpp_tag(dialogue, false);
    if (text.starts_with("<?xml") && xml_space.find(text[5]) != xml_space.npos && text.ends_with("?>"))
        text = co_await read_xmpp_tag(dialogue, false);
    const std::optional<xml_tag> tag = xml_tag::parse(std::string_view(text).substr(text.find('<')));
    if (!tag || tag->is_end || tag->is_empty || tag->name != "stream:stream" ||
        tag->attribute("xmlns:stream") != xmpp_streams)
        dialogue.fail(errc::reply_malformed);
    dialogue.greeting = text.substr(text.find('<'));
    xmpp_element features;
    if (tag->attribute("version").empty()) // is older than features (section 4.7.5)
        co_return features.children;
    features = co_await read_xmpp_element(dialogue);
    if (!features.is("stream:features", {}))
        dialogue.fail(errc::reply_malformed);
    co_return features.children;
}

inline asio::awaitable<void> talk_xmpp(starttls_dialogue& dialogue, std::string header)
{
    dialogue.capabilities = co_await open_xmpp_stream(dialogue, header);
    if (!dialogue.wants_tls(std::ranges::any_of(dialogue.capabilities, starttls::is_xmpp_request)))
        co_return;
    dialogue.ask("<starttls/>", "<starttls xmlns='" + std::string(xmpp_tls) + "'/>");
    const xmpp_element answer = co_await read_xmpp_element(dialogue);
    if (!answer.is("proceed", xmpp_tls))
        dialogue.fail(answer.is("failure", xmpp_tls) ? errc::request_refused : errc::reply_malformed);
    co_await dialogue.start_tls();
    dialogue.capabilities = co_await open_xmpp_stream(dialogue, header);
}

inline std::string make_xmpp_attribute(const char* name, std::string_view domain, const char* option)
{
    const auto is_control = [](unsigned char c) { return c <= ' ' || c == 0x7f; };
    if (domain.empty() || std::ranges::any_of(domain, is_control) || domain.find_first_of("<>&'\"/@") != domain.npos)
        throw std::invalid_argument(std::string(option) + " must be the domain of an XMPP server");
    return std::string(" ") + name + "='" + std::string(domain) + "'";
}

inline asio::awaitable<starttls::negotiated> negotiate_xmpp(const stream_reader& reader, const stream_writer& writer,
                                                            starttls::starttls_options options,
                                                            const std::string& attributes)
{
    const std::string header = "<?xml version='1.0'?><stream:stream" + attributes +
                               make_xmpp_attribute("to", options.domain, "domain") + " version='1.0' xmlns:stream='" +
                               std::string(xmpp_streams) + "'>";
    if (options.tls.server_hostname.empty())
        options.tls.server_hostname = options.domain;
    return starttls_dialogue::run("XMPP", reader, writer, options, talk_xmpp, header);
}

} // namespace detail

namespace starttls
{

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated> xmpp(const stream_reader& reader, const stream_writer& writer,
                                                          const starttls_options& options)
{
    return detail::negotiate_xmpp(reader, writer, options, " xmlns='jabber:client'");
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<negotiated>
xmpp_server(const stream_reader& reader, const stream_writer& writer, const starttls_options& options)
{
    return detail::negotiate_xmpp(reader, writer, options,
                                  " xmlns='jabber:server' xmlns:db='jabber:server:dialback'" +
                                      detail::make_xmpp_attribute("from", options.client_name, "client_name"));
}

UPGRADEABLE_STREAMS_DECL bool is_xmpp_request(std::string_view element)
{
    element.remove_prefix(std::min(element.find_first_not_of(detail::xml_space), element.size()));
    const std::optional<detail::xml_tag> tag = detail::first_xml_tag(element);
    return tag && !tag->is_end && tag->name == "starttls" && tag->attribute("xmlns") == detail::xmpp_tls;
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<stream_pair> answer_xmpp(const stream_reader& reader,
                                                                  const stream_writer& writer, std::string_view element,
                                                                  const tls_options& options)
{
    detail::require_request(is_xmpp_request(element), "answer_xmpp", "<starttls/>");
    constexpr std::string_view failure = "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:stream>";
    return detail::answer_starttls(reader, writer, options,
                                   {.granted = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>",
                                    .unavailable = failure,
                                    .encrypted = failure,
                                    .closes = true});
}

} // namespace starttls

#endif

} // namespace upgradeable_streams

#endif
