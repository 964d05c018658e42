// Softmax cross-entropy over all rows of a batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../kernels/table.hpp"

namespace fastopt {

enum class Reduction {
    mean,
    sum,
    none
};

struct CrossEntropyBatch {
    Type type;                          // of logits and grad
    const void* logits;                 // [rows, classes]
    void* grad;                         // [rows, classes], may be `logits`; nullptr: values only
    std::vector<std::int64_t> targets;  // [rows], each ignore_index or in [0, classes)
    std::vector<double> weight;         // [classes], or empty for all 1; rounded to `type`
    std::size_t rows;
    std::size_t classes;
    std::int64_t ignore_index;
    double label_smoothing;
    Reduction reduction;
    void* losses;  // of `type` [rows], filled with Reduction::none
};

// Returns the mean or the sum; everything is computed with the default floating-point environment.
double run_cross_entropy(const CrossEntropyBatch& batch);

}  // namespace fastopt
