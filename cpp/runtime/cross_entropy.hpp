// Softmax cross-entropy over all rows of a batch.
#pragma once

#include "../kernels/table.hpp"

namespace fastopt {

// Fills block.losses and, if it is not null, block.grad, for all of block.rows.
void run_cross_entropy(Type type, const CrossEntropyBlock& block) noexcept;

}  // namespace fastopt
