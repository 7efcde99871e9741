#ifndef TEST_STARTTLS_CONVERSATION_HPP
#define TEST_STARTTLS_CONVERSATION_HPP

// What servers say to the clients of starttls/, played by a raw peer, and how the clients take it.

#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/starttls/negotiation.hpp>

#include <asio/awaitable.hpp>

#include <cstddef>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace test
{

/// What a server does next.
struct step
{
    enum class kind
    {
        say,
        say_on, ///< Over and over, until the connection is closed or 64 MiB are sent.
        hear,   ///< Exactly this.
        tls,
        finish, ///< Says no more, and reads to the end, as after the last step.
        stall,  ///< Reads to the end without a word.
        dawdle  ///< Does nothing for a while.
    };

    kind what;
    std::string bytes = {};
};

inline step say(std::string bytes) { return {step::kind::say, std::move(bytes)}; }
inline step hear(std::string bytes) { return {step::kind::hear, std::move(bytes)}; }
inline step begin_tls() { return {step::kind::tls}; }

using negotiator = asio::awaitable<upgradeable_streams::starttls::negotiated> (*)(
    const upgradeable_streams::stream_reader&, const upgradeable_streams::stream_writer&,
    const upgradeable_streams::starttls::starttls_options&);

/// A conversation that goes well, and answers that do not.
struct conversation
{
    /// In place of what the server says as the nth thing, counted from 0.
    struct refusal
    {
        std::size_t nth;
        std::string answer;
        upgradeable_streams::errc error;
    };

    std::string name;
    negotiator client;
    upgradeable_streams::starttls::starttls_options options = {}; ///< Its views are of literals.
    std::vector<step> steps;
    std::vector<std::string> capabilities = {}; ///< That the client has in the end.
    std::string greeting = {};

    /// One that does not end in TLS.
    struct plain
    {
        std::vector<step> steps;
        std::vector<std::string> capabilities = {};
    };

    plain never = {};       ///< With starttls_policy::never.
    plain not_offered = {}; ///< With starttls_policy::attempt.

    std::vector<refusal> refusals;
    std::string endless; ///< What a server can go on saying without an end, from the first thing that it says.
};

/// How a negotiation ended, on both sides.
struct outcome
{
    std::error_code error;
    std::string what;       ///< Of the exception.
    std::string reply;      ///< Of a starttls_error, or what a tls_error received.
    bool is_closed = false; ///< The pair that was given, after an error.
    bool is_tls = false;    ///< The pair that was returned; of it are the next two.
    std::vector<std::string> capabilities;
    std::string greeting;
    bool goes_on = false; ///< A line went both ways over that pair.

    std::string heard;        ///< By the server, in plain text.
    std::string trouble;      ///< Of the server: what it heard in place of what it should have.
    std::size_t grown = 0;    ///< Bytes that were allocated while it said something over and over, at most.
};

/// Has a client talk with a server of these steps; what passes is cut to `chunk` bytes on the client's side.
outcome negotiate(negotiator client, const std::vector<step>& steps,
                  const upgradeable_streams::starttls::starttls_options& options = {}, std::size_t chunk = 0);

/// The nth thing that is said, counted from 0.
const step& said(const std::vector<step>& steps, std::size_t nth);

/// How many things are said in plain text.
std::size_t count_said(const std::vector<step>& steps);

/// The steps up to the nth thing that is said, then these.
std::vector<step> instead(const std::vector<step>& steps, std::size_t nth, const std::vector<step>& others);

/// All that the server should hear in plain text, up to the nth thing that is said.
std::string heard_before(const std::vector<step>& steps, std::size_t nth);

/// One of each protocol.
const std::vector<conversation>& conversations();
const conversation& conversation_of(std::string_view name);

/// How a server answers clients that ask for TLS.
struct answering
{
    /// A request that has something wrong with it, and the answer.
    struct refusal
    {
        std::string request;
        std::string answer;
    };

    std::string name;
    bool (*is_request)(std::string_view);
    asio::awaitable<std::pair<upgradeable_streams::stream_reader, upgradeable_streams::stream_writer>> (*answer)(
        const upgradeable_streams::stream_reader&, const upgradeable_streams::stream_writer&, std::string_view,
        const upgradeable_streams::tls_options&);
    std::string request;
    std::string granted;
    std::string unavailable; ///< Without a context.
    std::string encrypted;   ///< In TLS.
    std::vector<refusal> refusals = {};
    std::vector<std::string> others; ///< Which do not ask for TLS.
    bool closes = false;             ///< The connection, when the answer is no.
};

/// One of each protocol.
const std::vector<answering>& answerings();

} // namespace test

#endif
