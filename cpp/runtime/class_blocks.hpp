// Runs kernels over the classes at many positions, by blocks of positions.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "../kernels/table.hpp"
#include "scratch.hpp"
#include "staged_block.hpp"
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

// The arrays of a block: their type, those that are read, and the one that is written, which may be
// one of them. All but the first may be absent.
template <class Block>
struct BlockArrays {
    Type type;
    ClassArray Block::* read[2];
    ClassArray Block::* written;
};

// Whether the kernels along rows run for the arrays of `whole`; absent ones do not matter.
template <class Block>
bool runs_along_rows(const Block& whole, const BlockArrays<Block>& arrays) {
    const auto fits = [&](ClassArray Block::* member) {
        return (whole.*member).data == nullptr || (whole.*member).class_stride == 1;
    };
    return whole.classes > few_classes && fits(arrays.read[0]) && fits(arrays.read[1]) &&
           fits(arrays.written);
}

// Calls fill(block) and then the kernel for blocks of the positions of `whole`, which has total,
// inner, classes and what is the same for all blocks. Elements of 16 bits are computed in copies of
// float32.
template <class Block, class F>
void run_class_blocks(const Block& whole, const ClassKernels<Block>& kernels,
                      const BlockArrays<Block>& arrays, const F& fill) {
    const bool along_rows = runs_along_rows(whole, arrays);
    const ClassKernel<Block>& kernel = along_rows ? kernels.rows : kernels.columns;
    std::size_t at_once = std::max<std::size_t>(1, block_logits() / whole.classes);
    if (!along_rows) at_once = (at_once + column_count - 1) / column_count * column_count;
    const std::size_t blocks = (whole.total + at_once - 1) / at_once;

    // The copies lie behind the working memory of the kernel, which writes over the first of them.
    const StagedBlock staged{arrays.type, (whole.*arrays.read[0]).class_stride == 1};
    std::size_t scratch_size = kernel.scratch(whole);
    const std::size_t copies_at = (scratch_size + 63) / 64 * 64;
    const std::size_t copy_size = std::min(at_once, whole.total) * whole.classes;
    const std::size_t copies = (whole.*arrays.read[1]).data != nullptr ? 2 : 1;
    if (is_16_bit(arrays.type)) scratch_size = copies_at + copies * copy_size * sizeof(float);
    const auto run_staged = [&](Block& block) {
        const ClassBlock place = block;
        auto* copy = reinterpret_cast<float*>(static_cast<std::byte*>(block.scratch) + copies_at);
        for (ClassArray Block::* const member : arrays.read) {
            if ((block.*member).data == nullptr) continue;
            staged.widen(block.*member, place, copy);
            block.*member = staged.array(copy, place);
            copy += copy_size;
        }
        const ClassArray written = block.*arrays.written;
        if (written.data != nullptr) block.*arrays.written = block.*arrays.read[0];
        block.first = 0;
        block.total = block.positions;
        block.inner = 1;
        kernel.run(block);
        if (written.data != nullptr)
            staged.narrow(static_cast<const float*>((block.*arrays.read[0]).data), place, written);
    };
    const auto run = [&](std::size_t index, void* scratch) {
        Block block = whole;
        block.first = index * at_once;
        block.positions = std::min(at_once, whole.total - block.first);
        block.scratch = scratch;
        fill(block);
        is_16_bit(arrays.type) ? run_staged(block) : kernel.run(block);
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
