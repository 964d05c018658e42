// Splits a batch into blocks of rows. A row's result does not depend on its block.
#include "cross_entropy.hpp"

#include <algorithm>

#include "grid.hpp"
#include "isa.hpp"
#include "parallel.hpp"

namespace fastopt {

void run_cross_entropy(Type type, const CrossEntropyBlock& batch) noexcept {
    const std::size_t rows_at_once =
        std::max<std::size_t>(1, chunk_size / std::max<std::size_t>(1, batch.classes));
    const std::size_t blocks = (batch.rows + rows_at_once - 1) / rows_at_once;
    const auto kernel = kernels().cross_entropy[static_cast<int>(type)];
    parallel_for(blocks, batch.rows * batch.classes < serial_size / 8, [&](std::size_t index) {
        const std::size_t row = index * rows_at_once;
        const std::size_t offset = row * batch.classes * size_of(type);
        CrossEntropyBlock block = batch;
        block.rows = std::min(rows_at_once, batch.rows - row);
        block.logits = static_cast<const std::byte*>(batch.logits) + offset;
        if (batch.grad != nullptr) block.grad = static_cast<std::byte*>(batch.grad) + offset;
        block.targets += row;
        block.losses += row;
        kernel(block);
    });
}

}  // namespace fastopt
