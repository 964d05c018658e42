// Cutting what runs over the classes at many positions into blocks of positions.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>

#include "../kernels/table.hpp"
#include "parallel.hpp"
#include "scratch.hpp"
#include "tuning.hpp"

namespace fastopt {

// Up to so many classes, positions are taken side by side even if their classes are neighbours.
constexpr std::size_t few_classes = 128;

// Whether the kernels along rows are to be used for these arrays; absent ones do not matter.
template <class... Arrays>
bool runs_along_rows(std::size_t classes, const Arrays&... arrays) {
    return classes > few_classes &&
           ((arrays.data == nullptr || arrays.class_stride == 1) && ... && true);
}

// Calls body(block) for blocks of `whole`'s positions, a `Block` derived from ClassBlock, with
// `scratch_size` bytes of scratch each. `whole` has total, inner and classes.
template <class Block, class F>
void each_class_block(const Block& whole, bool along_rows, std::size_t scratch_size,
                      const F& body) {
    // A thread that gets no memory of its own waits for this.
    const std::unique_ptr<std::byte[]> spare(new std::byte[scratch_size]);
    std::mutex spare_taken;
    std::size_t at_once = std::max<std::size_t>(1, tuning.chunk_size / whole.classes);
    if (!along_rows) at_once = (at_once + column_count - 1) / column_count * column_count;
    const std::size_t blocks = (whole.total + at_once - 1) / at_once;
    parallel_for(blocks, 8 * whole.total * whole.classes, [&](std::size_t index) {
        Block block = whole;
        block.first = index * at_once;
        block.positions = std::min(at_once, whole.total - block.first);
        std::unique_lock<std::mutex> lock(spare_taken, std::defer_lock);
        if (scratch_size > 0) block.scratch = thread_scratch(scratch_size);
        if (scratch_size > 0 && block.scratch == nullptr) {
            lock.lock();
            block.scratch = spare.get();
        }
        body(block);
    });
}

}  // namespace fastopt
