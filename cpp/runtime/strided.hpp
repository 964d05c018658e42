// Reads an array in the memory order of another: gradients whose strides differ from those of their
// parameter.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "scratch.hpp"

namespace fastopt {

struct Dimension {
    std::int64_t size;
    std::int64_t stride;  // bytes
};

// An array in a given order of its dimensions; the last dimension is the fastest. Neighbouring
// dimensions are merged if their strides allow it.
class StridedReader {
public:
    StridedReader() = default;
    StridedReader(const void* data, const std::vector<Dimension>& dimensions,
                  std::size_t element_size);

    // Whether the elements are contiguous in memory: element i is at data_ + i * element_size_.
    bool contiguous() const { return contiguous_; }
    void move(const void* data) { data_ = static_cast<const std::byte*>(data); }

    // The number of elements to read together, so that each cache line is read once; 1 if the
    // number does not matter.
    std::size_t at_once() const { return at_once_; }

    // Calls body(pointer, count) for contiguous runs of the elements [start, start + count). A
    // contiguous array is one run; otherwise each run is copied into a buffer. All runs except the
    // last have a multiple of run_unit elements: pointwise losses add to 64 lanes.
    static constexpr std::size_t run_unit = 64;
    template <class F>
    void each_run(std::size_t start, std::size_t count, const F& body) const {
        if (contiguous_) return body(data_ + start * element_size_, count);
        alignas(64) std::byte small[small_buffer];
        std::byte* buffer = small;
        std::size_t run_size = small_buffer / element_size_;
        if (const std::size_t wanted = std::min(count, at_once_); wanted > run_size)
            if (std::byte* large = thread_scratch(wanted * element_size_)) {
                buffer = large;
                run_size = wanted;
            }
        for (const std::size_t end = start + count; start < end; start += run_size) {
            const std::size_t part = std::min(run_size, end - start);
            gather(start, part, buffer);
            body(buffer, part);
        }
    }

    // Returns the elements [start, start + count) as contiguous memory: a pointer into the array,
    // or a copy in `buffer`. Several arrays can be read together, each with a separate buffer.
    const std::byte* read(std::size_t start, std::size_t count, std::byte* buffer) const {
        if (contiguous_) return data_ + start * element_size_;
        gather(start, count, buffer);
        return buffer;
    }

    // Like each_run, but writes the changes of `body` back. The array must be writeable.
    template <class F>
    void change_runs(std::size_t start, std::size_t count, const F& body) const {
        each_run(start, count, [&](const std::byte* run, std::size_t part) {
            auto* writeable = const_cast<std::byte*>(run);
            body(writeable, part);
            if (!contiguous_) scatter(start, part, writeable);
            start += part;
        });
    }

    // Sets the elements [start, start + count) to zero. The array must be writeable.
    void fill_zero(std::size_t start, std::size_t count) const;

private:
    // Bytes. A copy on the stack, for arrays whose elements need not be read together.
    static constexpr std::size_t small_buffer = 32768;
    // Bytes. More are not read together, because the copy would not stay in the L2 cache.
    static constexpr std::size_t large_buffer = 2 << 20;

    void gather(std::size_t start, std::size_t count, std::byte* out) const;
    template <class Word>
    void gather(std::size_t start, std::size_t count, Word* out) const;
    void scatter(std::size_t start, std::size_t count, const void* in) const;

    // Calls body(pointer to the first element, count) for runs along the last dimension.
    template <class F>
    void each_row(std::size_t start, std::size_t count, const F& body) const;

    const std::byte* data_ = nullptr;
    std::vector<Dimension> dimensions_;
    std::size_t element_size_ = 0;
    bool contiguous_ = true;
    // The dimension with the smallest stride, and the distance of its neighbouring elements in the
    // given order: 1 if it is the last dimension.
    Dimension fast_{};
    std::size_t row_ = 1;
    std::size_t at_once_ = 1;
};

}  // namespace fastopt
