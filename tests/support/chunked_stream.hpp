#ifndef TEST_SUPPORT_CHUNKED_STREAM_HPP
#define TEST_SUPPORT_CHUNKED_STREAM_HPP

#include <asio/async_result.hpp>
#include <asio/buffer.hpp>
#include <asio/error.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

namespace test
{

/// For `GENERATE(from_range(test::chunk_sizes))`.
inline constexpr std::array<std::size_t, 5> chunk_sizes{1, 5, 64, 1024, 0};

/// How much, but no more than `most`, passes through chunks of this size in little time. It is more than a TLS record.
constexpr std::size_t much_in_chunks_of(std::size_t chunk, std::size_t most)
{
    return chunk == 0 ? most : std::min(most, std::max<std::size_t>(20'000, 4'000 * chunk));
}

/// An AsyncStream and SyncStream that passes at most n bytes to and from the next layer with each operation; 0 means
/// any number.
template <typename NextLayer>
class chunked_stream
{
public:
    using next_layer_type = std::remove_reference_t<NextLayer>;
    using lowest_layer_type = typename next_layer_type::lowest_layer_type;
    using executor_type = typename next_layer_type::executor_type;

    explicit chunked_stream(NextLayer next, std::size_t chunk = 0)
        : next_(std::forward<NextLayer>(next)), read_chunk_(chunk), write_chunk_(chunk)
    {
    }

    executor_type get_executor() { return next_.get_executor(); }
    next_layer_type& next_layer() { return next_; }
    const next_layer_type& next_layer() const { return next_; }
    lowest_layer_type& lowest_layer() { return next_.lowest_layer(); }
    const lowest_layer_type& lowest_layer() const { return next_.lowest_layer(); }

    void read_chunk(std::size_t size) { read_chunk_ = size; }
    void write_chunk(std::size_t size) { write_chunk_ = size; }

    /// How many reads and writes were started.
    std::size_t reads() const { return reads_; }
    std::size_t writes() const { return writes_; }

    template <typename MutableBufferSequence,
              typename CompletionToken = asio::default_completion_token_t<executor_type>>
    auto async_read_some(const MutableBufferSequence& buffers, CompletionToken&& token = CompletionToken())
    {
        ++reads_;
        return next_.async_read_some(first<asio::mutable_buffer>(buffers, read_chunk_),
                                     std::forward<CompletionToken>(token));
    }

    template <typename ConstBufferSequence, typename CompletionToken = asio::default_completion_token_t<executor_type>>
    auto async_write_some(const ConstBufferSequence& buffers, CompletionToken&& token = CompletionToken())
    {
        ++writes_;
        return next_.async_write_some(first<asio::const_buffer>(buffers, write_chunk_),
                                      std::forward<CompletionToken>(token));
    }

    template <typename MutableBufferSequence>
    std::size_t read_some(const MutableBufferSequence& buffers, asio::error_code& error)
    {
        ++reads_;
        return next_.read_some(first<asio::mutable_buffer>(buffers, read_chunk_), error);
    }

    template <typename ConstBufferSequence>
    std::size_t write_some(const ConstBufferSequence& buffers, asio::error_code& error)
    {
        ++writes_;
        return next_.write_some(first<asio::const_buffer>(buffers, write_chunk_), error);
    }

private:
    template <typename Buffer, typename BufferSequence>
    static std::vector<Buffer> first(const BufferSequence& buffers, std::size_t chunk)
    {
        std::size_t rest = chunk == 0 ? asio::buffer_size(buffers) : chunk;
        std::vector<Buffer> result;
        for (auto it = asio::buffer_sequence_begin(buffers); it != asio::buffer_sequence_end(buffers) && rest > 0; ++it)
        {
            result.push_back(asio::buffer(Buffer(*it), rest));
            rest -= result.back().size();
        }
        return result;
    }

    NextLayer next_;
    std::size_t read_chunk_;
    std::size_t write_chunk_;
    std::size_t reads_ = 0;
    std::size_t writes_ = 0;
};

} // namespace test

#endif
