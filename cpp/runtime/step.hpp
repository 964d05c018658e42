// One optimizer step over many tensors as one list of chunks.
#pragma once

#include <cstddef>
#include <vector>

#include "../kernels/table.hpp"
#include "layout.hpp"

namespace fastopt {

struct TensorUpdate {
    Type type;
    std::size_t count;
    std::byte* param;
    std::byte* state[max_states];  // dense, in the parameter's order; nullptr where unused
    StridedReader grad;            // in the parameter's order
    const double* options;         // of its group
    std::int64_t step;             // the number of this step, from 1
    bool fresh;                    // its state has just been created
};

// Updates all tensors with optimizer number `optimizer` of the kernel table.
void run_updates(int optimizer, const std::vector<TensorUpdate>& tensors);

}  // namespace fastopt
