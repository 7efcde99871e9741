// Looks at servers that go over to TLS: what they negotiate, whose certificate they show, whether it verifies, how long
// that takes, and how many days are left.
//
//   c++ -std=c++20 -DASIO_STANDALONE starttls_probe.cpp -o starttls_probe -lssl -lcrypto -pthread

#include <asio.hpp>
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

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <future>
#include <iostream>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <unistd.h>

namespace us = upgradeable_streams;
using steady = std::chrono::steady_clock;

constexpr std::string_view usage =
    "usage: starttls_probe PROTOCOL HOST[:PORT] [OPTIONS]\n"
    "       starttls_probe --targets FILE [OPTIONS]\n"
    "Tells what a server negotiates after STARTTLS and whether its certificate verifies. The exit status is 0 if so,\n"
    "1 if a target fails, and 2 if the arguments are wrong or the output cannot be written.\n"
    "PROTOCOL is smtp, submission, lmtp, imap, pop3, sieve, nntp, ftp, irc, xmpp, xmpp-server, ldap, postgres, mysql,\n"
    "nbd, or http-connect, where HOST is the proxy.\n"
    "  --ca FILE        trust the certificates of this PEM file, in place of the system's\n"
    "  --name NAME      what the certificate must be for (HOST); of xmpp also the domain to ask for\n"
    "  --tlsa RECORD    know the server by this TLSA record (DANE), as \"3 1 1 0b9f...\"; may be given several times\n"
    "  --target H:P     of http-connect: the server behind the proxy\n"
    "  --targets FILE   one target on each line: PROTOCOL HOST[:PORT] [NAME, or the target of http-connect]\n"
    "  --days N         a certificate that is good for less than N days does not do (0)\n"
    "  --timeout S      seconds for connecting, for the dialogue and for the handshake, each (10)\n"
    "  --at-once N      how many targets are probed at a time (16)\n"
    "  --json           one line of JSON for each target\n";

struct usage_error : std::runtime_error
{
    using std::runtime_error::runtime_error;
};

using client = asio::awaitable<us::starttls::negotiated>(const us::stream_reader&, const us::stream_writer&,
                                                          const us::starttls::starttls_options&);

asio::awaitable<us::starttls::negotiated> mysql(const us::stream_reader& reader, const us::stream_writer& writer,
                                                const us::starttls::starttls_options& options)
{
    return us::starttls::mysql(reader, writer, options);
}

struct protocol
{
    std::string_view name;
    std::string_view port;
    client* talk; ///< None of http-connect, which is told more.
};

constexpr std::array protocols = {
    protocol{"smtp", "25", us::starttls::smtp},
    protocol{"submission", "587", us::starttls::smtp},
    protocol{"lmtp", "24", us::starttls::lmtp},
    protocol{"imap", "143", us::starttls::imap},
    protocol{"pop3", "110", us::starttls::pop3},
    protocol{"sieve", "4190", us::starttls::sieve},
    protocol{"nntp", "119", us::starttls::nntp},
    protocol{"ftp", "21", us::starttls::ftp},
    protocol{"irc", "6667", us::starttls::irc},
    protocol{"xmpp", "5222", us::starttls::xmpp},
    protocol{"xmpp-server", "5269", us::starttls::xmpp_server},
    protocol{"ldap", "389", us::starttls::ldap},
    protocol{"postgres", "5432", us::starttls::postgres},
    protocol{"mysql", "3306", mysql},
    protocol{"nbd", "10809", us::starttls::nbd},
    protocol{"http-connect", "3128", nullptr},
};

struct endpoint
{
    std::string host;
    std::string port;

    /// Of HOST, HOST:PORT, [IPv6] or [IPv6]:PORT.
    static endpoint parse(std::string_view text, std::string_view default_port)
    {
        const bool is_bracketed = text.starts_with('[');
        const std::size_t end = is_bracketed ? text.find(']') : text.find(':');
        if (is_bracketed && end == text.npos)
            throw usage_error("\"" + std::string(text) + "\" lacks a bracket");
        const std::string_view host = is_bracketed ? text.substr(1, end - 1) : text.substr(0, end);
        const std::string_view rest = end == text.npos ? "" : text.substr(end + (is_bracketed ? 1 : 0));
        if (host.empty() || (!rest.empty() && (rest[0] != ':' || rest.size() < 2 || rest.find(':', 1) != rest.npos)))
            throw usage_error("\"" + std::string(text) + "\" is not HOST[:PORT]; an IPv6 address is put in brackets");
        return {std::string(host), std::string(rest.empty() ? default_port : rest.substr(1))};
    }

    std::string to_string() const
    {
        return (host.find(':') == host.npos ? host : '[' + host + ']') + ':' + port;
    }
};

struct target
{
    const protocol* spoken;
    endpoint server;
    std::string name;               ///< That the certificate must be for.
    std::optional<endpoint> beyond; ///< The proxy.

    static target parse(std::string_view protocol_name, std::string_view server, std::string_view name,
                        std::string_view beyond)
    {
        const auto* const spoken = std::ranges::find(protocols, protocol_name, &protocol::name);
        if (spoken == protocols.end())
            throw usage_error("there is no protocol \"" + std::string(protocol_name) + "\"");
        target made{spoken, endpoint::parse(server, spoken->port), std::string(name), {}};
        if (!spoken->talk)
        {
            if (beyond.empty())
                throw usage_error("http-connect needs a target behind the proxy");
            made.beyond = endpoint::parse(beyond, "443");
        }
        if (made.name.empty())
            made.name = made.beyond ? made.beyond->host : made.server.host;
        return made;
    }
};

struct settings
{
    std::string ca_file;
    std::string name;
    std::vector<us::tlsa_record> tlsa;
    std::string beyond;
    std::string targets_file;
    long days = 0;
    std::chrono::seconds timeout{10};
    std::size_t at_once = 16;
    bool json = false;
    std::vector<target> targets;
};

/// When a phase began and ended.
struct phases
{
    steady::time_point begin, connected, handshake_begin, handshake_end;
};

struct report
{
    std::string peer;
    std::optional<us::tls_session> session;
    std::string key_exchange;
    std::vector<us::certificate> chain;
    std::vector<std::string> capabilities;
    phases times;
    std::string failure; ///< Empty when all is well.
};

/// Notes when a context's first handshake begins and ends.
class handshake_watch
{
public:
    handshake_watch(SSL_CTX* context, phases& times) : context_(context)
    {
        SSL_CTX_set_ex_data(context_, index(), &times);
        SSL_CTX_set_info_callback(context_, note);
    }

    ~handshake_watch() { SSL_CTX_set_ex_data(context_, index(), nullptr); }
    handshake_watch(const handshake_watch&) = delete;
    handshake_watch& operator=(const handshake_watch&) = delete;

private:
    static int index()
    {
        static const int made = SSL_CTX_get_ex_new_index(0, nullptr, nullptr, nullptr, nullptr);
        return made;
    }

    static void note(const SSL* ssl, int where, int)
    {
        auto* const times = static_cast<phases*>(SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), index()));
        if (times && where & SSL_CB_HANDSHAKE_START && times->handshake_begin == steady::time_point())
            times->handshake_begin = steady::now();
        if (times && where & SSL_CB_HANDSHAKE_DONE && times->handshake_end == steady::time_point())
            times->handshake_end = steady::now();
    }

    SSL_CTX* context_;
};

std::string key_exchange_of(SSL* ssl)
{
    if (const char* const group = SSL_group_to_name(ssl, int(SSL_get_negotiated_group(ssl))))
        return group;
    return "unknown";
}

std::chrono::days::rep days_left(const us::certificate& certificate)
{
    return std::chrono::floor<std::chrono::days>(certificate.not_after() - std::chrono::system_clock::now()).count();
}

/// As far as it comes.
asio::awaitable<void> probe(const target& wanted, const settings& how, report& made)
{
    asio::ssl::context ssl = us::create_client_context({.ca_file = how.ca_file});
    ssl.set_verify_mode(asio::ssl::verify_none); // nothing is sent to this server: it is to be seen, and judged below
    const handshake_watch watch(ssl.native_handle(), made.times);

    made.times.begin = steady::now();
    us::connection_options connecting;
    connecting.ssl = &ssl;
    connecting.upgradeable = true;
    connecting.server_hostname = wanted.name;
    connecting.connect_timeout = how.timeout;
    connecting.ssl_handshake_timeout = how.timeout;
    connecting.ssl_shutdown_timeout = std::chrono::seconds(1); // nobody waits for what a server says at the end
    auto [reader, writer] = co_await us::open_connection(wanted.server.host, wanted.server.port, connecting);
    made.times.connected = steady::now();
    made.peer = writer.get_extra_info<"peername">()->to_string();

    us::starttls::starttls_options options;
    options.timeout = how.timeout;
    options.domain = wanted.name;
    options.client_name = wanted.spoken->name == "xmpp-server" ? "probe.invalid" : "";
    options.tls.tlsa_records = how.tlsa;
    if (wanted.beyond)
        options.tls.server_hostname = wanted.name;
    auto dialogue = wanted.beyond
                        ? us::starttls::http_connect(reader, writer, wanted.beyond->host, wanted.beyond->port, options)
                        : wanted.spoken->talk(reader, writer, options);
    us::starttls::negotiated connection = co_await std::move(dialogue);

    SSL* const native = connection.writer.get_extra_info<"ssl_object">();
    made.session = connection.writer.session();
    made.key_exchange = key_exchange_of(native);
    made.capabilities = connection.capabilities;
    const STACK_OF(X509)* const sent = SSL_get_peer_cert_chain(native);
    std::vector<us::certificate> chain;
    for (int i = 0; i < sk_X509_num(sent); ++i)
    {
        const us::certificate& each = chain.emplace_back(sk_X509_value(sent, i));
        static_cast<void>(each.not_before()); // these throw when it is no time at all, which is one target's failure
        static_cast<void>(each.not_after());
    }
    made.chain = std::move(chain);
    if (made.session->verify_result != X509_V_OK)
        made.failure = std::string("the certificate is not accepted for \"") + wanted.name + "\": " +
                       X509_verify_cert_error_string(made.session->verify_result);
    else if (days_left(made.chain.at(0)) < how.days)
        made.failure = "the certificate is good for " + std::to_string(days_left(made.chain.at(0))) + " days";
    connection.writer.close();
}

/// What a server sent, as it can be shown on a terminal or within a JSON string.
std::string escaped(std::string_view text)
{
    std::string shown;
    for (const char c : text)
    {
        const auto value = static_cast<unsigned char>(c);
        constexpr std::string_view digits = "0123456789abcdef";
        if (value < ' ' || value >= 0x7f)
            (shown += "\\u00") += {digits[value / 16], digits[value % 16]};
        else if (c == '"' || c == '\\')
            (shown += '\\') += c;
        else
            shown += c;
    }
    return shown;
}

std::string json_string(std::string_view text)
{
    return '"' + escaped(text) + '"';
}

/// `write(item)` of each, with commas between.
template <typename Range, typename Write>
std::string joined(const Range& range, Write write, std::string_view separator = ", ")
{
    std::string all;
    for (const auto& item : range)
        (all += all.empty() ? "" : separator) += write(item);
    return all;
}

std::string date(std::chrono::sys_seconds time)
{
    const std::chrono::year_month_day day(std::chrono::floor<std::chrono::days>(time));
    const auto two = [](unsigned n) { return (n < 10 ? "0" : "") + std::to_string(n); };
    return std::to_string(int(day.year())) + '-' + two(unsigned(day.month())) + '-' + two(unsigned(day.day()));
}

std::string milliseconds(steady::time_point from, steady::time_point to)
{
    const bool both = from != steady::time_point() && to != steady::time_point();
    std::ostringstream out;
    out.precision(1);
    out << std::fixed << (both ? std::chrono::duration<double, std::milli>(to - from).count() : 0.0);
    return out.str();
}

std::string as_text(const target& wanted, const report& made)
{
    std::ostringstream out;
    out << wanted.spoken->name << ' ' << wanted.server.to_string();
    if (wanted.beyond)
        out << " to " << wanted.beyond->to_string();
    if (!made.peer.empty())
        out << " (" << made.peer << ')';
    out << '\n';
    if (made.session)
    {
        out << "  " << made.session->version << ", " << made.session->cipher.name << ", key exchange "
            << made.key_exchange << ", ALPN " << escaped(made.session->alpn_protocol.value_or("none")) << '\n';
        for (const us::certificate& each : made.chain)
            out << "  certificate of " << escaped(each.subject()) << '\n'
                << "    for " << joined(each.subject_alt_names(), escaped) << '\n'
                << "    issued by " << escaped(each.issuer()) << ", good from " << date(each.not_before()) << " to "
                << date(each.not_after()) << ", " << days_left(each) << " days left\n";
        out << "  connect " << milliseconds(made.times.begin, made.times.connected) << " ms, plain dialogue "
            << milliseconds(made.times.connected, made.times.handshake_begin) << " ms, handshake "
            << milliseconds(made.times.handshake_begin, made.times.handshake_end) << " ms\n";
    }
    out << (made.failure.empty() ? "  verified for " + json_string(wanted.name) : "  FAILED: " + made.failure) << '\n';
    return out.str();
}

std::string as_json(const target& wanted, const report& made)
{
    std::ostringstream out;
    out << "{\"protocol\": " << json_string(wanted.spoken->name) << ", \"host\": " << json_string(wanted.server.host)
        << ", \"port\": " << json_string(wanted.server.port);
    if (wanted.beyond)
        out << ", \"target\": " << json_string(wanted.beyond->to_string());
    out << ", \"name\": " << json_string(wanted.name) << ", \"address\": " << json_string(made.peer)
        << ", \"verified\": " << (made.session && made.session->verify_result == X509_V_OK ? "true" : "false")
        << ", \"failure\": " << (made.failure.empty() ? std::string("null") : json_string(made.failure));
    if (made.session)
    {
        const us::tls_session& session = *made.session;
        out << ", \"version\": " << json_string(session.version) << ", \"cipher\": " << json_string(session.cipher.name)
            << ", \"key_exchange\": " << json_string(made.key_exchange)
            << ", \"alpn\": " << (session.alpn_protocol ? json_string(*session.alpn_protocol) : std::string("null"))
            << ", \"capabilities\": [" << joined(made.capabilities, json_string) << ']';
        const auto certificate = [](const us::certificate& each)
        {
            return "{\"subject\": " + json_string(each.subject()) + ", \"issuer\": " + json_string(each.issuer()) +
                   ", \"names\": [" + joined(each.subject_alt_names(), json_string) + "], \"not_before\": " +
                   json_string(date(each.not_before())) + ", \"not_after\": " + json_string(date(each.not_after())) +
                   ", \"days_left\": " + std::to_string(days_left(each)) +
                   ", \"public_key_pin\": " + json_string(each.public_key_pin()) + '}';
        };
        out << ", \"chain\": [" << joined(made.chain, certificate) << ']'
            << ", \"milliseconds\": {\"connect\": " << milliseconds(made.times.begin, made.times.connected)
            << ", \"dialogue\": " << milliseconds(made.times.connected, made.times.handshake_begin)
            << ", \"handshake\": " << milliseconds(made.times.handshake_begin, made.times.handshake_end) << '}';
    }
    out << "}\n";
    return out.str();
}

/// On a terminal, and where there is more than one target.
class progress_bar
{
public:
    explicit progress_bar(std::size_t all) : all_(all), is_shown_(all > 1 && ::isatty(STDERR_FILENO) == 1) {}

    /// Takes the bar away, so that a report can be written.
    void clear() const
    {
        if (is_shown_)
            std::cerr << "\r\x1b[K" << std::flush;
    }

    void show(std::size_t done) const
    {
        constexpr std::size_t width = 40;
        if (is_shown_ && done < all_)
            std::cerr << '[' << std::string(width * done / all_, '#') << std::string(width - width * done / all_, '.')
                      << "] " << done << " of " << all_ << std::flush;
    }

private:
    std::size_t all_;
    bool is_shown_;
};

/// Probes all targets, several at a time.
class survey
{
public:
    explicit survey(const settings& how) : how_(how), bar_(how.targets.size()) {}

    /// Returns: how many failed.
    std::size_t run()
    {
        bar_.show(0);
        std::vector<std::future<void>> threads; // joined where they are destroyed
        for (std::size_t i = 0; i < std::min(how_.at_once, how_.targets.size()); ++i)
            threads.push_back(std::async(std::launch::async, [this] { work(); }));
        for (std::future<void>& each : threads)
            each.get();
        return failed_;
    }

private:
    /// Each target has an io_context of its own: those of one context wait for each other's names to be resolved.
    void work()
    {
        for (std::size_t i; (i = next_++) < how_.targets.size();)
        {
            report made;
            try
            {
                asio::io_context io;
                asio::co_spawn(io, probe(how_.targets[i], how_, made),
                               [](std::exception_ptr e)
                               {
                                   if (e)
                                       std::rethrow_exception(e);
                               });
                io.run();
            }
            catch (const std::exception& error)
            {
                made.failure = error.what();
            }
            tell(how_.targets[i], made);
        }
    }

    void tell(const target& probed, const report& made)
    {
        const std::string text = how_.json ? as_json(probed, made) : as_text(probed, made);
        const std::lock_guard lock(output_);
        failed_ += made.failure.empty() ? 0 : 1;
        bar_.clear();
        std::cout << text << std::flush;
        bar_.show(++done_);
    }

    const settings& how_;
    std::atomic<std::size_t> next_ = 0;
    std::mutex output_; ///< Guards what is below.
    progress_bar bar_;
    std::size_t done_ = 0;
    std::size_t failed_ = 0;
};

template <typename Number>
Number number(std::string_view text, Number least)
{
    Number value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < least)
        throw usage_error("\"" + std::string(text) + "\" is not a number from " + std::to_string(least) + " on");
    return value;
}

us::tlsa_record record(std::string_view text)
try
{
    return us::tlsa_record::parse(text);
}
catch (const std::invalid_argument& error)
{
    throw usage_error(error.what());
}

std::vector<target> read_targets(const std::string& file)
{
    std::ifstream in(file);
    if (!in)
        throw std::system_error(errno, std::generic_category(), file);
    std::vector<target> targets;
    std::size_t count = 0;
    for (std::string line; std::getline(in, line);)
    try
    {
        ++count;
        std::istringstream words(line.substr(0, line.find('#')));
        std::string protocol, server, name, rest;
        if (words >> protocol)
        {
            if (!(words >> server) || (words >> name && words >> rest))
                throw usage_error("a target is PROTOCOL HOST[:PORT] [NAME]");
            const bool has_beyond = protocol == "http-connect";
            targets.push_back(target::parse(protocol, server, has_beyond ? "" : name, has_beyond ? name : ""));
        }
    }
    catch (const usage_error& error)
    {
        throw usage_error(file + ":" + std::to_string(count) + ": " + error.what());
    }
    return targets;
}

settings parse(const std::vector<std::string_view>& arguments)
{
    settings made;
    std::vector<std::string_view> words;
    for (std::size_t i = 0; i < arguments.size(); ++i)
    {
        const std::string_view option = arguments[i];
        const auto value = [&]
        {
            if (++i == arguments.size())
                throw usage_error(std::string(option) + " needs a value");
            return arguments[i];
        };
        if (option == "--json")
            made.json = true;
        else if (option == "--ca")
            made.ca_file = value();
        else if (option == "--name")
            made.name = value();
        else if (option == "--tlsa")
            made.tlsa.push_back(record(value()));
        else if (option == "--target")
            made.beyond = value();
        else if (option == "--targets")
            made.targets_file = value();
        else if (option == "--days")
            made.days = number<long>(value(), 0);
        else if (option == "--timeout")
            made.timeout = std::chrono::seconds(number<int>(value(), 1));
        else if (option == "--at-once")
            made.at_once = number<std::size_t>(value(), 1);
        else if (option.starts_with("--"))
            throw usage_error("there is no option " + std::string(option));
        else
            words.push_back(option);
    }
    if (words.size() != (made.targets_file.empty() ? 2 : 0))
        throw usage_error("give PROTOCOL and HOST, or --targets");
    if (made.targets_file.empty())
        made.targets.push_back(target::parse(words[0], words[1], made.name, made.beyond));
    else if (!made.name.empty() || !made.beyond.empty() || !made.tlsa.empty())
        throw usage_error("with --targets the names are in the file, and TLSA records are of one server");
    else
        made.targets = read_targets(made.targets_file);
    if (made.targets.empty())
        throw usage_error(made.targets_file + ": there is no target");
    return made;
}

int main(int argc, char** argv)
try
{
    const std::vector<std::string_view> arguments(argv + 1, argv + argc);
    if (std::ranges::count(arguments, "--help") > 0)
    {
        std::cout << usage;
        return EXIT_SUCCESS;
    }
    const settings how = parse(arguments);
    us::create_client_context({.ca_file = how.ca_file}); // a file that will not do is told once
    const std::size_t failed = survey(how).run();
    if (!std::cout)
        throw std::runtime_error("the output could not be written");
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
catch (const usage_error& e)
{
    std::cerr << "starttls_probe: " << e.what() << "\n\n" << usage;
    return 2;
}
catch (const std::exception& e)
{
    std::cerr << "starttls_probe: " << e.what() << "\n";
    return 2;
}
