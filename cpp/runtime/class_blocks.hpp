// Runs kernels over the classes at many positions, by blocks of positions.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "../kernels/table.hpp"
#include "scratch.hpp"
#include "thread_pool.hpp"
#include "tuning.hpp"

namespace fastopt {

// Up to this number of classes the kernels along columns are faster, whatever the strides: a row
// of so few classes is a few vectors, and most of its time goes into folding sums.
constexpr std::size_t few_classes = 192;

// The time of a logit in elements of an update, the unit of parallel_for.
constexpr std::size_t logit_work = 8;

// The logits of a block: fewer than a chunk has elements, because a logit takes longer. The time of
// a block is then near that of a chunk.
inline std::size_t block_logits() { return tuning.chunk_size / 4; }

// Whether the kernels along rows run for these arrays; absent ones do not matter.
template <class... Arrays>
bool runs_along_rows(std::size_t classes, const Arrays&... arrays) {
    return classes > few_classes &&
           ((arrays.data == nullptr || arrays.class_stride == 1) && ... && true);
}

// Calls fill(block) and then the kernel for blocks of the positions of `whole`, which has total,
// inner, classes and what is the same for all blocks.
template <class Block, class F>
void run_class_blocks(const Block& whole, const ClassKernels<Block>& kernels, bool along_rows,
                      const F& fill) {
    const ClassKernel<Block>& kernel = along_rows ? kernels.rows : kernels.columns;
    const std::size_t scratch_size = kernel.scratch(whole);
    std::size_t at_once = std::max<std::size_t>(1, block_logits() / whole.classes);
    if (!along_rows) at_once = (at_once + column_count - 1) / column_count * column_count;
    const std::size_t blocks = (whole.total + at_once - 1) / at_once;
    const auto run = [&](std::size_t index, void* scratch) {
        Block block = whole;
        block.first = index * at_once;
        block.positions = std::min(at_once, whole.total - block.first);
        block.scratch = scratch;
        fill(block);
        kernel.run(block);
    };
    // A block whose thread gets no memory is done at the end, with this memory.
    const std::unique_ptr<std::byte[]> spare(new std::byte[scratch_size]);
    std::vector<unsigned char> left(blocks);
    parallel_for(blocks, logit_work * whole.total * whole.classes, [&](std::size_t index) {
        std::byte* const scratch = thread_scratch(scratch_size);
        left[index] = scratch == nullptr;
        if (scratch != nullptr) run(index, scratch);
    });
    for (std::size_t index = 0; index < blocks; ++index)
        if (left[index]) with_default_floating_point([&] { run(index, spare.get()); });
}

}  // namespace fastopt
