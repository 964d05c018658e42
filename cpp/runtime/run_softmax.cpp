// Chooses the kernel and splits an array into blocks of positions.
#include "run_softmax.hpp"

#include "class_blocks.hpp"
#include "grid.hpp"
#include "isa.hpp"

namespace fastopt {

void run_softmax(const SoftmaxBatch& batch) {
    const bool backward = batch.grad.data != nullptr;
    const bool along_rows = runs_along_rows(batch.classes, batch.x, batch.grad, batch.out);
    const SoftmaxKernels& table = loss_kernels().softmax[static_cast<int>(batch.type)];
    const auto& regime = along_rows ? (backward ? table.backward_rows : table.rows)
                                    : (backward ? table.backward_columns : table.columns);
    const auto kernel = regime[batch.log];
    SoftmaxBlock whole{};
    whole.total = batch.positions;
    whole.inner = batch.inner;
    whole.classes = batch.classes;
    whole.x = batch.x;
    whole.grad = batch.grad;
    whole.out = batch.out;
    const std::size_t tiles = backward ? 0 : tile_count(batch.classes);
    std::size_t scratch_size = 0;
    if (!along_rows)
        scratch_size = column_scratch(batch.type, batch.classes * (1 + backward), tiles);
    else if (tiles > 1)
        scratch_size = row_scratch(batch.type, 0, tiles);
    each_class_block(whole, along_rows, scratch_size, kernel);
}

}  // namespace fastopt
