/// @file
/// Error codes and exceptions. Asio's and OpenSSL's own codes pass through unchanged beside these.
#ifndef UPGRADEABLE_STREAMS_ERROR_HPP
#define UPGRADEABLE_STREAMS_ERROR_HPP

#include <upgradeable_streams/certificate.hpp>

#include <asio/error.hpp>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace upgradeable_streams
{

/// What this library tells beside the codes of Asio and OpenSSL; README.md says what each leaves behind.
enum class errc
{
    not_upgradeable = 1,   ///< start_tls, but no TLS context was given.
    already_tls,           ///< start_tls on a connection that is encrypted already.
    upgrade_in_progress,   ///< An operation other than close and abort while start_tls or stop_tls runs.
    connection_upgraded,   ///< Such an operation through a handle from before start_tls or stop_tls.
    plaintext_injection,   ///< The peer sent plain text where TLS had to begin.
    operation_in_progress, ///< A second operation of a kind of which only one may be pending.
    connection_closed,     ///< An operation after close, after a loss, or with what is empty.
    stream_unusable,       ///< A write or a handshake was cancelled half-way; the stream can only be closed.
    handshake_timeout,     ///< The TLS handshake took longer than its deadline.
    shutdown_timeout,      ///< Sending what was queued, or closing TLS, took longer than its deadline.
    connect_timeout,       ///< Resolving and connecting took longer than connect_timeout.
    connect_failed,        ///< No address could be connected to.
    incomplete_read,       ///< The stream ended before the read was satisfied.
    limit_overrun,         ///< No separator within the reader's limit.
    alpn_not_agreed,       ///< ALPN protocols were offered and the peer chose none.
    not_tls,               ///< stop_tls, or start_tls<within_tls>, in plain text.
    tls_not_offered,       ///< starttls_policy::require, and the peer does not offer TLS.
    proxy_header_invalid,  ///< A proxy did not begin with a header of the PROXY protocol.
    proxy_header_timeout,  ///< A proxy's header took longer than its deadline.
    request_refused,       ///< The peer refused what it was asked for on the way to TLS.
    reply_malformed,       ///< The peer's reply does not keep to the protocol.
    reply_too_long,        ///< The peer's replies are longer than any that is expected.
    negotiation_timeout,   ///< What leads to TLS took longer than its deadline.
    operation_timeout,     ///< A read or a drain took longer than operation_timeout.
    tlsa_records_unusable, ///< TLSA records were given, and OpenSSL can use none of them.
};

/// The category of `errc`; the six timeouts compare equal to `std::errc::timed_out`.
inline const std::error_category& category() noexcept
{
    class errc_category final : public std::error_category
    {
    public:
        const char* name() const noexcept override { return "upgradeable_streams"; }

        std::string message(int value) const override
        {
            switch (static_cast<errc>(value))
            {
            case errc::not_upgradeable: return "no TLS context was given, so the connection cannot be upgraded";
            case errc::already_tls: return "the connection is encrypted already";
            case errc::upgrade_in_progress: return "TLS is being started or stopped on the connection";
            case errc::connection_upgraded:
                return "TLS was started or stopped since; use the reader and writer that start_tls or stop_tls "
                       "returned";
            case errc::plaintext_injection: return "the peer sent plain text where TLS had to begin";
            case errc::operation_in_progress: return "another operation is still pending";
            case errc::connection_closed: return "the connection is closed";
            case errc::stream_unusable:
                return "an earlier write or handshake was cancelled half-way; close the stream";
            case errc::handshake_timeout: return "the TLS handshake took longer than its deadline";
            case errc::shutdown_timeout: return "closing the connection took longer than its deadline";
            case errc::connect_timeout: return "connecting took longer than its deadline";
            case errc::connect_failed: return "no address could be connected to";
            case errc::incomplete_read: return "the stream ended before the read was satisfied";
            case errc::limit_overrun: return "no separator was found within the limit";
            case errc::not_tls: return "the connection is in plain text";
            case errc::tls_not_offered: return "TLS is required, and the peer does not offer it";
            case errc::alpn_not_agreed: return "the peer chose none of the application protocols offered (ALPN)";
            case errc::proxy_header_invalid: return "the proxy sent no valid header of the PROXY protocol";
            case errc::proxy_header_timeout: return "the proxy's header took longer than its deadline";
            case errc::request_refused: return "the peer refused what it was asked for";
            case errc::reply_malformed: return "the peer's reply does not keep to the protocol";
            case errc::reply_too_long: return "the peer's replies are too long";
            case errc::negotiation_timeout: return "what leads to TLS took longer than its deadline";
            case errc::operation_timeout: return "a read or a drain took longer than operation_timeout";
            case errc::tlsa_records_unusable: return "none of the TLSA records can be used";
            }
            return "unknown error";
        }

        std::error_condition default_error_condition(int value) const noexcept override
        {
            switch (static_cast<errc>(value))
            {
            case errc::handshake_timeout:
            case errc::shutdown_timeout:
            case errc::connect_timeout:
            case errc::proxy_header_timeout:
            case errc::negotiation_timeout:
            case errc::operation_timeout: return std::errc::timed_out;
            default: return {value, *this};
            }
        }
    };
    static const errc_category instance;
    return instance;
}

inline std::error_code make_error_code(errc value) noexcept
{
    return {static_cast<int>(value), category()};
}

/// The stream ended before a read was satisfied (asyncio.IncompleteReadError).
class incomplete_read_error : public std::system_error
{
public:
    incomplete_read_error(std::string partial, std::optional<std::size_t> expected)
        : std::system_error(make_error_code(errc::incomplete_read),
                            std::to_string(partial.size()) + " bytes read" +
                                (expected ? " of " + std::to_string(*expected) + " expected" : "")),
          partial_(std::move(partial)), expected_(expected)
    {
    }

    /// What was read before the end; it is no longer in the reader.
    const std::string& partial() const noexcept { return partial_; }

    /// The number of bytes asked for; empty when a separator was.
    std::optional<std::size_t> expected() const noexcept { return expected_; }

private:
    std::string partial_;
    std::optional<std::size_t> expected_;
};

/// No separator within the reader's limit (asyncio.LimitOverrunError).
class limit_overrun_error : public std::system_error
{
public:
    explicit limit_overrun_error(std::size_t consumed)
        : std::system_error(make_error_code(errc::limit_overrun), "the option limit allows no more"),
          consumed_(consumed)
    {
    }

    /// The number of bytes at the front of the buffer that hold no separator.
    std::size_t consumed() const noexcept { return consumed_; }

private:
    std::size_t consumed_;
};

/// A handshake that failed.
class tls_error : public std::system_error
{
public:
    tls_error(std::error_code code, const std::string& what, long verify_result, std::string received,
              std::optional<certificate> peer = {})
        : std::system_error(code, what), verify_result_(verify_result), received_(std::move(received)),
          peer_certificate_(std::move(peer))
    {
    }

    /// OpenSSL's X509_V_ code of the peer's certificate; X509_V_OK (0) when that was not the cause.
    long verify_result() const noexcept { return verify_result_; }

    /// The peer's, when it was not accepted.
    const std::optional<certificate>& peer_certificate() const noexcept { return peer_certificate_; }

    /// With errc::plaintext_injection, the start of what the peer sent in place of TLS, at most 512 bytes.
    const std::string& received() const noexcept { return received_; }

private:
    long verify_result_;
    std::string received_;
    std::optional<certificate> peer_certificate_;
};

/// A server with which TLS could not be negotiated (starttls/).
class starttls_error : public std::system_error
{
public:
    starttls_error(std::error_code code, const std::string& what, std::string reply)
        : std::system_error(code, what), reply_(std::move(reply))
    {
    }

    /// What the server answered last, as it was sent, at most 512 bytes.
    const std::string& reply() const noexcept { return reply_; }

private:
    std::string reply_;
};

/// No address of a host could be connected to.
class connect_error : public std::system_error
{
public:
    /// An address, with its port, and why it could not be connected to.
    struct attempt
    {
        std::string address;
        std::error_code error;
    };

    connect_error(std::error_code code, const std::string& target, std::vector<attempt> attempts)
        : std::system_error(code, describe(code, target, attempts)), attempts_(std::move(attempts))
    {
    }

    /// Each address that was tried, and its reason, in order.
    const std::vector<attempt>& attempts() const noexcept { return attempts_; }

private:
    /// Where each attempt failed with `code`, what() gives the reason once.
    static std::string describe(std::error_code code, const std::string& target, const std::vector<attempt>& attempts)
    {
        std::string text = "cannot connect to " + target;
        const char* separator = " (";
        if (attempts.empty() || attempts.front().address == target)
            return text;
        const bool differ = std::ranges::any_of(attempts, [code](const attempt& a) { return a.error != code; });
        for (const auto& [address, error] : attempts)
        {
            text += separator + address;
            if (differ)
                text += ": " + error.message();
            separator = "; ";
        }
        return text + ")";
    }

    std::vector<attempt> attempts_;
};

} // namespace upgradeable_streams

template <>
struct std::is_error_code_enum<upgradeable_streams::errc> : std::true_type
{
};

namespace upgradeable_streams::detail
{

inline void throw_if(bool condition, errc error)
{
    if (condition)
        throw std::system_error(error);
}

/// What an exception tells; one without a code tells a want of memory.
inline std::error_code code_of(const std::exception_ptr& error)
try
{
    std::rethrow_exception(error);
}
catch (const std::system_error& e)
{
    return e.code();
}
catch (...)
{
    return asio::error::no_memory;
}

} // namespace upgradeable_streams::detail

#endif
