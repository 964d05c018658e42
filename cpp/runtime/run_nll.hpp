// The negative log-likelihood of given log-probabilities over all positions of a batch.
#pragma once

#include "run_cross_entropy.hpp"

namespace fastopt {

struct NllBatch {
    Type type;  // of all arrays
    ClassArray log_probs;
    ClassArray grad;  // may be `log_probs`; values only if there is none
    ClassIndices targets;
    ClassWeights weight;
    std::size_t positions;
    std::size_t inner;  // positions of a run, see ClassArray
    std::size_t classes;
    std::int64_t ignore_index;
    Reduction reduction;
    void* losses;     // of `type` [positions], filled with Reduction::none
    bool grad_fresh;  // `grad` holds zeros already
};

// The mean or the sum. Everything is computed with the default floating-point environment.
double run_nll(const NllBatch& batch);

}  // namespace fastopt
