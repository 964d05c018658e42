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

template <class Word>
void StridedReader::gather_words(std::size_t start, std::size_t count, Word* out) const {
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
    while (count > 0) {
        const auto run = std::min(count, static_cast<std::size_t>(inner.size - index[last]));
        for (std::size_t i = 0; i < run; ++i)
            std::memcpy(&out[i], source + static_cast<std::int64_t>(i) * inner.stride,
                        sizeof(Word));
        out += run;
        count -= run;
        if (count == 0) break;
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

void StridedReader::gather(std::size_t start, std::size_t count, void* out) const {
    if (element_size_ == sizeof(std::uint32_t))
        gather_words(start, count, static_cast<std::uint32_t*>(out));
    else
        gather_words(start, count, static_cast<std::uint64_t*>(out));
}

}  // namespace fastopt
