// Cutting what runs over the classes at many positions into blocks of positions.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <memory>
#include <vector>

#include "../kernels/table.hpp"
#include "grid.hpp"
#include "scratch.hpp"
#include "thread_pool.hpp"
#include "tuning.hpp"

namespace fastopt {

// Up to so many classes, positions are taken side by side even if their classes are neighbours.
constexpr std::size_t few_classes = 192;

// Whether the kernels along rows are to be used for these arrays; absent ones do not matter.
template <class... Arrays>
bool runs_along_rows(std::size_t classes, const Arrays&... arrays) {
    return classes > few_classes &&
           ((arrays.data == nullptr || arrays.class_stride == 1) && ... && true);
}

// Bytes of scratch for so many columns of classes, and of tiles; for so many elements of a row.
inline std::size_t column_scratch(Type type, std::size_t classes, std::size_t tiles) {
    return column_count * (size_of(type) * (classes + 2 * tiles) + sizeof(double) * tiles);
}
inline std::size_t row_scratch(Type type, std::size_t classes, std::size_t tiles) {
    return sizeof(double) * 3 * tiles + size_of(type) * classes;
}

// Calls body(block) for blocks of `whole`'s positions, a `Block` derived from ClassBlock, with
// `scratch_size` bytes of scratch each. `whole` has total, inner and classes.
template <class Block, class F>
void each_class_block(const Block& whole, bool along_rows, std::size_t scratch_size, const F& body,
                      std::size_t most_threads = std::numeric_limits<std::size_t>::max()) {
    // A logit is several times the work of an element of an update.
    std::size_t at_once = std::max<std::size_t>(1, tuning.chunk_size / 4 / whole.classes);
    if (!along_rows) at_once = (at_once + column_count - 1) / column_count * column_count;
    const std::size_t blocks = (whole.total + at_once - 1) / at_once;
    const auto run = [&](std::size_t index, void* scratch) {
        Block block = whole;
        block.first = index * at_once;
        block.positions = std::min(at_once, whole.total - block.first);
        block.scratch = scratch;
        body(block);
    };
    // Blocks whose thread got no memory of its own are done here in the end.
    const std::unique_ptr<std::byte[]> spare(new std::byte[scratch_size]);
    std::vector<unsigned char> left(scratch_size > 0 ? blocks : 0);
    // No more shares than threads: then no more have scratch.
    const std::size_t shares = std::min(blocks, most_threads);
    parallel_for(shares, 8 * whole.total * whole.classes, [&](std::size_t share) {
        for (std::size_t index = share * blocks / shares; index < (share + 1) * blocks / shares;
             ++index) {
            std::byte* scratch = scratch_size > 0 ? thread_scratch(scratch_size) : nullptr;
            if (scratch_size > 0 && scratch == nullptr)
                left[index] = 1;
            else
                run(index, scratch);
        }
    });
    for (std::size_t index = 0; index < left.size(); ++index)
        if (left[index]) with_default_floating_point([&] { run(index, spare.get()); });
}

}  // namespace fastopt
