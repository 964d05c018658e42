// Gathering strided elements.
#include "strided.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace fastopt {

namespace {

// Bytes of a cache line.
constexpr std::size_t line_bytes = 64;

// Bytes. Elements that need to be read together are read in at least this amount. Measured with
// transposed gradients.
constexpr std::size_t usual_buffer = 1 << 20;

}  // namespace

StridedReader::StridedReader(const void* data, const std::vector<Dimension>& dimensions,
                             std::size_t element_size)
    : data_(static_cast<const std::byte*>(data)), element_size_(element_size) {
    for (const Dimension& dimension : dimensions) {
        if (dimension.size == 0) return;  // no elements: nothing will be read
    }
    for (const Dimension& dimension : dimensions) {
        if (dimension.size == 1) continue;
        if (!dimensions_.empty() &&
            dimensions_.back().stride == dimension.size * dimension.stride) {
            dimensions_.back() = {dimensions_.back().size * dimension.size, dimension.stride};
        } else {
            dimensions_.push_back(dimension);
        }
    }
    std::size_t fast = dimensions_.empty() ? 0 : dimensions_.size() - 1;
    for (std::size_t d = fast; d-- > 0;) {
        const auto inner = std::abs(dimensions_[fast].stride);
        const auto outer = std::abs(dimensions_[d].stride);
        if (inner > static_cast<std::int64_t>(element_size) && outer != 0 && outer < inner)
            fast = d;
    }
    for (std::size_t d = fast + 1; d < dimensions_.size(); ++d)
        row_ *= static_cast<std::size_t>(dimensions_[d].size);
    if (!dimensions_.empty()) fast_ = dimensions_[fast];
    if (row_ > 1) {
        const std::size_t lines = line_bytes / element_size_ * row_;
        at_once_ = std::clamp((lines + run_unit - 1) / run_unit * run_unit,
                              usual_buffer / element_size_, large_buffer / element_size_);
    }
    contiguous_ =
        dimensions_.empty() || (dimensions_.size() == 1 &&
                                dimensions_[0].stride == static_cast<std::int64_t>(element_size));
}

template <class F>
void StridedReader::each_row(std::size_t start, std::size_t count, const F& body) const {
    std::int64_t index[64];  // NumPy's largest number of dimensions
    const std::size_t last = dimensions_.size() - 1;
    auto rest = static_cast<std::int64_t>(start);
    const std::byte* source = data_;
    for (std::size_t d = dimensions_.size(); d-- > 0;) {
        index[d] = rest % dimensions_[d].size;
        rest /= dimensions_[d].size;
        source += index[d] * dimensions_[d].stride;
    }
    const Dimension& inner = dimensions_[last];
    while (true) {
        const auto run = std::min(count, static_cast<std::size_t>(inner.size - index[last]));
        body(source, run);
        count -= run;
        if (count == 0) return;
        source -= index[last] * inner.stride;
        index[last] = 0;
        for (std::size_t d = last; d-- > 0;) {
            source += dimensions_[d].stride;
            if (++index[d] < dimensions_[d].size) break;
            source -= dimensions_[d].size * dimensions_[d].stride;
            index[d] = 0;
        }
    }
}

namespace {

// Columns. Processors do not prefetch such strides by themselves.
constexpr std::int64_t columns_ahead = 16;

template <class Word>
Word load(const std::byte* source) {
    Word word;
    std::memcpy(&word, source, sizeof(Word));
    return word;
}

template <class Word>
constexpr std::size_t line_size = line_bytes / sizeof(Word);

// The transpose of kernels/arithmetic joins these vectors to wider ones. Here that takes 10 to 45 %
// longer, because the shuffles are the bottleneck.
using Four = std::uint32_t __attribute__((vector_size(16)));

// Picks elements of `a` (numbers 0 to 3) and `b` (numbers 4 to 7).
template <std::uint32_t... number>
Four pick(Four a, Four b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, number...);
#else
    return __builtin_shuffle(a, b, Four{number...});
#endif
}

// tile[r][c] = the element r of the line at source + c * stride, for a square of `line_size`.
void transpose_lines(const std::byte* source, std::int64_t stride, std::uint32_t* tile) {
    for (std::size_t c = 0; c < line_size<std::uint32_t>; c += 4, source += 4 * stride) {
        for (std::int64_t column = 0; column < 4; ++column)
            __builtin_prefetch(source + (columns_ahead + column) * stride);
        for (std::size_t r = 0; r < line_size<std::uint32_t>; r += 4) {
            const std::byte* corner = source + r * sizeof(std::uint32_t);
            Four columns[4];
            for (std::int64_t i = 0; i < 4; ++i) columns[i] = load<Four>(corner + i * stride);
            const Four low01 = pick<0, 4, 1, 5>(columns[0], columns[1]);
            const Four low23 = pick<0, 4, 1, 5>(columns[2], columns[3]);
            const Four high01 = pick<2, 6, 3, 7>(columns[0], columns[1]);
            const Four high23 = pick<2, 6, 3, 7>(columns[2], columns[3]);
            const Four rows[] = {pick<0, 1, 4, 5>(low01, low23), pick<2, 3, 6, 7>(low01, low23),
                                 pick<0, 1, 4, 5>(high01, high23),
                                 pick<2, 3, 6, 7>(high01, high23)};
            for (std::size_t i = 0; i < 4; ++i)
                std::memcpy(tile + (r + i) * line_size<std::uint32_t> + c, &rows[i], sizeof(Four));
        }
    }
}

template <class Word>
void transpose_lines(const std::byte* source, std::int64_t stride, Word* tile) {
    for (std::size_t c = 0; c < line_size<Word>; ++c, source += stride) {
        __builtin_prefetch(source + columns_ahead * stride);
        for (std::size_t r = 0; r < line_size<Word>; ++r)
            tile[r * line_size<Word> + c] = load<Word>(source + r * sizeof(Word));
    }
}

// out[r * row + c] = the element at source + r * row_stride + c * column_stride. It copies through
// a tile, so that each cache line is read once and written once.
template <class Word>
void copy_block(const std::byte* source, std::int64_t row_stride, std::int64_t column_stride,
                std::size_t rows, std::size_t columns, std::size_t row, Word* out) {
    constexpr std::size_t side = line_size<Word>;
    alignas(line_bytes) Word tile[side * side];
    for (std::size_t c0 = 0; c0 < columns; c0 += side) {
        const std::size_t width = std::min(side, columns - c0);
        for (std::size_t r0 = 0; r0 < rows; r0 += side) {
            const std::size_t height = std::min(side, rows - r0);
            const std::byte* corner = source + static_cast<std::int64_t>(r0) * row_stride +
                                      static_cast<std::int64_t>(c0) * column_stride;
            Word* next = out + r0 * row + c0;
            if (height == side && width == side && row_stride == sizeof(Word)) {
                transpose_lines(corner, column_stride, tile);
                for (std::size_t r = 0; r < side; ++r)
                    std::memcpy(next + r * row, tile + r * side, line_bytes);
                continue;
            }
            for (std::size_t c = 0; c < width; ++c, corner += column_stride) {
                __builtin_prefetch(corner + columns_ahead * column_stride);
                for (std::size_t r = 0; r < height; ++r)
                    next[r * row + c] =
                        load<Word>(corner + static_cast<std::int64_t>(r) * row_stride);
            }
        }
    }
}

}  // namespace

template <class Word>
void StridedReader::gather(std::size_t start, std::size_t count, Word* out) const {
    const std::int64_t last_stride = dimensions_.back().stride;
    if (row_ == 1) {
        each_row(start, count, [&](const std::byte* source, std::size_t run) {
            if (last_stride == sizeof(Word))
                std::memcpy(out, source, run * sizeof(Word));
            else
                for (std::size_t i = 0; i < run; ++i)
                    out[i] = load<Word>(source + static_cast<std::int64_t>(i) * last_stride);
            out += run;
        });
        return;
    }
    // The elements are rows of a plane: the end of row `first`, all of the next rows, and the
    // beginning of row `last`. So each column has its own first and last row.
    const std::size_t plane = row_ * static_cast<std::size_t>(fast_.size);
    while (count > 0) {
        const std::size_t begin = start % plane;
        const std::size_t part = std::min(count, plane - begin);
        const std::size_t end = begin + part;
        const std::size_t edges[] = {0, std::min(begin % row_, end % row_),
                                     std::max(begin % row_, end % row_), row_};
        for (int i = 0; i < 3; ++i) {
            const std::size_t column = edges[i];
            const std::size_t first = begin / row_ + (column < begin % row_);
            const std::size_t last = end / row_ + (column < end % row_);
            if (edges[i + 1] == column || last <= first) continue;
            Word* next = out + first * row_ + column - begin;
            each_row(start - begin + column, edges[i + 1] - column,
                     [&](const std::byte* source, std::size_t run) {
                         copy_block(source + static_cast<std::int64_t>(first) * fast_.stride,
                                    fast_.stride, last_stride, last - first, run, row_, next);
                         next += run;
                     });
        }
        start += part;
        count -= part;
        out += part;
    }
}

void StridedReader::gather(std::size_t start, std::size_t count, std::byte* out) const {
    if (element_size_ == sizeof(std::uint16_t))
        gather(start, count, reinterpret_cast<std::uint16_t*>(out));
    else if (element_size_ == sizeof(std::uint32_t))
        gather(start, count, reinterpret_cast<std::uint32_t*>(out));
    else
        gather(start, count, reinterpret_cast<std::uint64_t*>(out));
}

void StridedReader::scatter(std::size_t start, std::size_t count, const void* in) const {
    const auto* next = static_cast<const std::byte*>(in);
    auto* writeable = const_cast<std::byte*>(data_);
    const std::int64_t stride = dimensions_.back().stride;
    each_row(start, count, [&](const std::byte* row, std::size_t run) {
        for (std::size_t i = 0; i < run; ++i, next += element_size_)
            std::memcpy(writeable + (row - data_) + static_cast<std::int64_t>(i) * stride, next,
                        element_size_);
    });
}

void StridedReader::fill_zero(std::size_t start, std::size_t count) const {
    auto* writeable = const_cast<std::byte*>(data_);
    if (contiguous_) {
        std::memset(writeable + start * element_size_, 0, count * element_size_);
        return;
    }
    const std::int64_t stride = dimensions_.back().stride;
    each_row(start, count, [&](const std::byte* row, std::size_t run) {
        for (std::size_t i = 0; i < run; ++i)
            std::memset(writeable + (row - data_) + static_cast<std::int64_t>(i) * stride, 0,
                        element_size_);
    });
}

}  // namespace fastopt
