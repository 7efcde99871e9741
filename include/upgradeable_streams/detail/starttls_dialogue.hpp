/// @file
/// What the clients of starttls/ have in common: a dialogue that leads to TLS, or ends the connection.
#ifndef UPGRADEABLE_STREAMS_DETAIL_STARTTLS_DIALOGUE_HPP
#define UPGRADEABLE_STREAMS_DETAIL_STARTTLS_DIALOGUE_HPP

#include <upgradeable_streams/detail/compilation.hpp>
#include <upgradeable_streams/detail/deadline.hpp>
#include <upgradeable_streams/detail/text.hpp>
#include <upgradeable_streams/detail/tls_settings.hpp>
#include <upgradeable_streams/error.hpp>
#include <upgradeable_streams/starttls/negotiation.hpp>
#include <upgradeable_streams/starttls/policy.hpp>
#include <upgradeable_streams/stream_reader.hpp>
#include <upgradeable_streams/stream_writer.hpp>
#include <upgradeable_streams/string_list.hpp>
#include <upgradeable_streams/tls.hpp>

#include <asio/awaitable.hpp>
#include <asio/error.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

namespace upgradeable_streams::detail
{

class starttls_dialogue
{
public:
    /// Errors: those that a negotiator has at the call.
    starttls_dialogue(std::string_view protocol, const stream_reader& reader, const stream_writer& writer,
                      const starttls::starttls_options& options);

    stream_writer& writer() { return writer_; }

    /// Sends a request; for errors it is called `name`.
    void ask(std::string_view name, std::string_view bytes);

    /// As much as a reply to the last request may have.
    asio::awaitable<std::string> read(std::size_t size);

    /// The next line without its end, which is CRLF or LF. Control characters but these are errc::reply_malformed.
    asio::awaitable<std::string> read_line(std::string_view controls = "\t");
    void refuse_controls(std::string_view text, std::string_view but = "\t") const;

    /// The lines up to one that is a dot, without what they were stuffed with (RFC 1939 section 3, RFC 3977 section
    /// 3.1.1).
    asio::awaitable<std::vector<std::string>> read_lines_to_dot();

    /// Up to and with one of the separators.
    asio::awaitable<std::string> read_until(string_list separators);

    /// What errors show in place of a reply that is not for people's eyes.
    void explain(std::string words) { words_ = std::move(words); }

    /// Whether to ask for TLS. Errors: errc::tls_not_offered where it is required.
    bool wants_tls(bool is_offered) const
    {
        if (!is_offered)
            refused(errc::tls_not_offered);
        return is_offered && policy_ != starttls_policy::never;
    }

    /// To be called when the server has refused what it had not offered. Errors: the reason, where TLS is required.
    void refused(errc reason) const;

    /// What was said before is not shown as if it had come over TLS.
    asio::awaitable<void> start_tls();

    /// What is in plain text now leads to another server.
    void turn_to(std::string_view server)
    {
        if (!reader_.is_tls())
            writer_.handle_->connection()->turn_to(server);
    }

    /// Throws a starttls_error with what the server answered.
    [[noreturn]] void fail(const std::error_code& reason) const;

    /// Has `talk(dialogue, given...)` lead a dialogue, and closes the connection if it fails. Errors at the call: those
    /// that all clients have.
    template <typename Talk, typename... Given>
    static asio::awaitable<starttls::negotiated>
    run(std::string_view protocol, const stream_reader& reader, const stream_writer& writer,
        const starttls::starttls_options& options, Talk talk, const Given&... given)
    {
        const auto dialogue = std::make_shared<starttls_dialogue>(protocol, reader, writer, options);
        return run(dialogue, talk(*dialogue, given...));
    }

    std::vector<std::string> capabilities; ///< Of negotiated.
    std::string greeting;                  ///< Of negotiated.

private:
    static constexpr std::size_t most_replies = 64 * 1024;
    static constexpr std::size_t most_shown = 512;

    static asio::awaitable<starttls::negotiated> run(std::shared_ptr<starttls_dialogue> dialogue,
                                                     asio::awaitable<void> talk);

    void hear(std::string_view bytes);
    void start_clock();

    /// In a handler: closes the connection, and throws what was caught with what the server answered.
    [[noreturn]] void give_up();

    const std::string protocol_;
    stream_reader reader_;
    stream_writer writer_;
    std::string server_; ///< What errors call it.
    starttls_policy policy_;
    const std::chrono::steady_clock::duration timeout_;
    std::optional<asio::awaitable<stream_pair>> upgrade_;
    std::optional<deadline> within_; ///< Of what is said, before the handshake and after it.
    std::string asked_;
    std::string reply_; ///< The first `most_shown` bytes.
    std::string words_; ///< Of the reply, if it was explained.
    std::size_t replies_size_ = 0;
};

#ifdef UPGRADEABLE_STREAMS_DEFINITIONS

UPGRADEABLE_STREAMS_DECL starttls_dialogue::starttls_dialogue(std::string_view protocol, const stream_reader& reader,
                                                              const stream_writer& writer,
                                                              const starttls::starttls_options& options)
    : protocol_(protocol), reader_(reader), writer_(writer), server_("the server"), policy_(options.policy),
      timeout_(options.timeout)
{
    require_positive(timeout_, "timeout");
    const tls_settings& known = writer_.handle_->connection()->settings();
    const std::string_view asked_for = options.tls.server_hostname;
    if (!known.server_hostname.empty() && (asked_for.empty() || asked_for == known.server_hostname))
        server_ = printable(known.server_hostname);
    const bool is_known_by_dns = !known.tlsa_records.empty() || !options.tls.tlsa_records.empty();
    if (policy_ == starttls_policy::never)
    {
        if (!options.tls.tlsa_records.empty() || (is_known_by_dns && !reader_.is_tls()))
            throw std::invalid_argument("tlsa_records come to nothing with starttls_policy::never; give them where TLS "
                                        "begins");
        if (reader_.is_tls() && !asked_for.empty() &&
            !known.was_verified_for(asked_for, writer_.handle_->connection()->ssl()))
            throw std::invalid_argument(protocol_ + ": the certificate was verified for \"" + known.server_hostname +
                                        "\", not for \"" + std::string(asked_for) +
                                        "\"; give that as server_hostname, or among other_hostnames, where TLS begins");
        return;
    }
    if (reader_.is_tls())
        throw std::system_error(errc::already_tls, protocol_ + ": what begins in TLS needs starttls_policy::never");
    if (!options.tls.ssl && !writer_.is_upgradeable())
        throw std::system_error(errc::not_upgradeable);
    if (options.tls.role.value_or(writer_.role()) != tls_role::client)
        throw std::invalid_argument("who asks for STARTTLS is the client in TLS too, and verifies the server: give "
                                    "tls.role, and in tls.ssl a client's context");
    if (is_known_by_dns)
        policy_ = starttls_policy::require; // they say that the server offers TLS (RFC 7672 section 2.2)
    upgrade_.emplace(writer_.start_tls(options.tls)); // begins when it is awaited; what it refuses it refuses now
}

UPGRADEABLE_STREAMS_DECL void starttls_dialogue::ask(std::string_view name, std::string_view bytes)
{
    asked_ = name;
    reply_.clear();
    words_.clear();
    writer_.write(bytes);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<std::string> starttls_dialogue::read(std::size_t size)
{
    if (size > most_replies - replies_size_)
        fail(errc::reply_too_long);
    std::string bytes = co_await reader_.readexactly(size);
    hear(bytes);
    co_return bytes;
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<std::string> starttls_dialogue::read_line(std::string_view controls)
{
    std::string line = co_await reader_.readline();
    hear(line);
    if (!line.ends_with('\n'))
        fail(errc::incomplete_read);
    line.resize(line.size() - (line.ends_with("\r\n") ? 2 : 1));
    refuse_controls(line, controls);
    co_return line;
}

UPGRADEABLE_STREAMS_DECL void starttls_dialogue::refuse_controls(std::string_view text, std::string_view but) const
{
    const auto is_refused = [&](unsigned char c)
    { return (c < ' ' || c == 0x7f) && but.find(static_cast<char>(c)) == but.npos; };
    if (std::ranges::any_of(text, is_refused))
        fail(errc::reply_malformed);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<std::vector<std::string>> starttls_dialogue::read_lines_to_dot()
{
    std::vector<std::string> lines;
    for (;;)
    {
        std::string line = co_await read_line();
        if (line == ".")
            co_return lines;
        lines.push_back(line.starts_with('.') ? line.substr(1) : std::move(line));
    }
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<std::string> starttls_dialogue::read_until(string_list separators)
{
    std::string bytes = co_await reader_.readuntil(separators);
    hear(bytes);
    co_return bytes;
}

UPGRADEABLE_STREAMS_DECL void starttls_dialogue::refused(errc reason) const
{
    if (policy_ == starttls_policy::require)
        fail(reason);
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<void> starttls_dialogue::start_tls()
{
    within_.reset();
    std::tie(reader_, writer_) = co_await *std::move(upgrade_);
    capabilities.clear();
    asked_.clear();
    reply_.clear();
    words_.clear();
    start_clock();
}

UPGRADEABLE_STREAMS_DECL void starttls_dialogue::fail(const std::error_code& reason) const
{
    std::string shown = printable(words_.empty() ? reply_ : words_);
    for (std::size_t at; (at = shown.find("\\x0d\\x0a")) != shown.npos;)
        shown.replace(at, 8, " / ");
    std::string what = protocol_ + ": ";
    if (!asked_.empty())
        what += "to \"" + asked_ + "\" ";
    what += server_ + " answered ";
    what += reply_.empty() ? "nothing" : '"' + shown + '"';
    if (reply_.empty() && asked_.empty() && reason == errc::negotiation_timeout &&
        !writer_.handle_->connection()->is_tls())
        what += " (on a port where TLS begins at once, a server waits for that)";
    throw starttls_error(reason, what, reply_);
}

UPGRADEABLE_STREAMS_DECL void starttls_dialogue::hear(std::string_view bytes)
{
    reply_ += bytes.substr(0, most_shown - reply_.size());
    replies_size_ += bytes.size();
    if (replies_size_ > most_replies)
        fail(errc::reply_too_long);
}

UPGRADEABLE_STREAMS_DECL void starttls_dialogue::start_clock()
{
    within_.emplace(writer_.get_executor(), timeout_, [this] { writer_.abort(); });
}

UPGRADEABLE_STREAMS_DECL void starttls_dialogue::give_up()
{
    const bool is_late = within_ && within_->has_expired();
    within_.reset();
    writer_.abort();
    try
    {
        throw;
    }
    catch (const starttls_error&)
    {
        throw;
    }
    catch (const tls_error&)
    {
        throw;
    }
    catch (const limit_overrun_error&)
    {
        fail(errc::reply_too_long);
    }
    catch (const incomplete_read_error& error)
    {
        hear(error.partial());
        fail(errc::incomplete_read);
    }
    catch (const std::system_error& error)
    {
        hear(writer_.handle_->connection()->received());
        if (is_late || error.code() == errc::operation_timeout)
            fail(errc::negotiation_timeout);
        const bool is_callers = error.code().category() == category() ||
                                error.code() == asio::error::operation_aborted ||
                                error.code() == asio::error::no_memory;
        if (!is_callers)
            fail(error.code());
        throw;
    }
}

UPGRADEABLE_STREAMS_DECL asio::awaitable<starttls::negotiated>
starttls_dialogue::run(std::shared_ptr<starttls_dialogue> dialogue, asio::awaitable<void> talk)
{
    try
    {
        dialogue->start_clock();
        co_await std::move(talk);
    }
    catch (...)
    {
        dialogue->give_up();
    }
    dialogue->within_.reset();
    co_return starttls::negotiated{dialogue->reader_, dialogue->writer_, std::move(dialogue->capabilities),
                                   std::move(dialogue->greeting)};
}

#endif

} // namespace upgradeable_streams::detail

#endif
