// Reading an array in the memory order of another: gradients whose strides differ from their
// parameter's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace fastopt {

struct Dimension {
    std::int64_t size;
    std::int64_t stride;  // bytes
};

// An array of elements seen in a given order of its dimensions, the last one fastest; neighbours
// that lie as one are merged.
class StridedReader {
public:
    StridedReader() = default;
    StridedReader(const void* data, const std::vector<Dimension>& dimensions,
                  std::size_t element_size);

    // The elements follow one another in memory: element i is at data() + i * element size.
    bool contiguous() const { return contiguous_; }
    const std::byte* data() const { return data_; }

    // Copies elements [start, start + count) to `out`, one after another.
    void gather(std::size_t start, std::size_t count, void* out) const;

private:
    template <class Word>
    void gather_words(std::size_t start, std::size_t count, Word* out) const;

    const std::byte* data_ = nullptr;
    std::vector<Dimension> dimensions_;
    std::size_t element_size_ = 0;
    bool contiguous_ = true;
};

}  // namespace fastopt
