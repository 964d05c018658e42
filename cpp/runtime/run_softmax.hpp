// softmax, log_softmax and their backward forms over all positions of an array.
#pragma once

#include <cstddef>

#include "../kernels/table.hpp"

namespace fastopt {

struct SoftmaxBatch {
    Type type;
    bool log;
    ClassArray x;     // for the backward form, the result of the forward form
    ClassArray grad;  // the backward form's, or none
    ClassArray out;   // may be one of them
    std::size_t positions;
    std::size_t inner;  // positions of a run, see ClassArray
    std::size_t classes;
};

void run_softmax(const SoftmaxBatch& batch);

}  // namespace fastopt
