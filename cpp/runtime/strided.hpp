// Reading an array in the memory order of another: gradients whose strides differ from their
// parameter's.
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

// An array of elements seen in a given order of its dimensions, the last one fastest; neighbours
// that lie as one are merged.
class StridedReader {
public:
    StridedReader() = default;
    StridedReader(const void* data, const std::vector<Dimension>& dimensions,
                  std::size_t element_size);

    // The elements follow one another in memory: element i is at data() + i * element size.
    bool contiguous() const { return contiguous_; }
    void move(const void* data) { data_ = static_cast<const std::byte*>(data); }

    // How many elements should be read at once, for their cache lines to be read once: 1, where it
    // does not matter.
    std::size_t at_once() const { return at_once_; }

    // Calls body(pointer, count) for runs of [start, start + count) that lie one after another in
    // memory: all of it where the array is contiguous, else a part at a time, copied. All runs but
    // the last are multiples of run_unit elements.
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

    // Elements [start, start + count), one after another in memory: where they lie, or copied into
    // `buffer`. For walks over several arrays at once; each needs a buffer of its own.
    const std::byte* read(std::size_t start, std::size_t count, std::byte* buffer) const {
        if (contiguous_) return data_ + start * element_size_;
        gather(start, count, buffer);
        return buffer;
    }

    // As each_run, and what `body` has changed is written back. They must be writeable.
    template <class F>
    void change_runs(std::size_t start, std::size_t count, const F& body) const {
        each_run(start, count, [&](const std::byte* run, std::size_t part) {
            auto* writeable = const_cast<std::byte*>(run);
            body(writeable, part);
            if (!contiguous_) scatter(start, part, writeable);
            start += part;
        });
    }

    // Sets elements [start, start + count) to zero. They must be writeable.
    void fill_zero(std::size_t start, std::size_t count) const;

private:
    static constexpr std::size_t small_buffer = 32768;  // bytes
    static constexpr std::size_t large_buffer = 1 << 21;

    void gather(std::size_t start, std::size_t count, std::byte* out) const;
    template <class Word>
    void gather(std::size_t start, std::size_t count, Word* out) const;
    void scatter(std::size_t start, std::size_t count, const void* in) const;

    // Calls body(pointer to the first, count) for runs along the last dimension.
    template <class F>
    void each_row(std::size_t start, std::size_t count, const F& body) const;

    const std::byte* data_ = nullptr;
    std::vector<Dimension> dimensions_;
    std::size_t element_size_ = 0;
    bool contiguous_ = true;
    // The dimension whose elements lie closest, and the elements between two of them in the given
    // order: 1 if it is the last dimension.
    Dimension fast_{};
    std::size_t row_ = 1;
    std::size_t at_once_ = 1;
};

}  // namespace fastopt
