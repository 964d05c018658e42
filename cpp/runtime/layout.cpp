// Gathering strided elements.
#include "layout.hpp"

#include <algorithm>
#include <cstring>

namespace fastopt {

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

template <class Word>
void copy_row(const std::byte* source, std::int64_t stride, std::size_t count, std::byte* out) {
    for (std::size_t i = 0; i < count; ++i)
        std::memcpy(out + i * sizeof(Word), source + static_cast<std::int64_t>(i) * stride,
                    sizeof(Word));
}

}  // namespace

void StridedReader::gather(std::size_t start, std::size_t count, void* out) const {
    auto* next = static_cast<std::byte*>(out);
    const std::int64_t stride = dimensions_.back().stride;
    const auto copy = element_size_ == sizeof(float) ? copy_row<float> : copy_row<double>;
    each_row(start, count, [&](const std::byte* source, std::size_t run) {
        copy(source, stride, run, next);
        next += run * element_size_;
    });
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
