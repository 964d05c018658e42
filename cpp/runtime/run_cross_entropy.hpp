// Softmax cross-entropy over all positions of a batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "../kernels/table.hpp"
#include "scratch.hpp"

namespace fastopt {

enum class Reduction {
    mean,
    sum,
    none
};

// [positions], each ignore_index or in [0, classes).
struct ClassIndices {
    BlockVector<std::int64_t> values;
    std::int64_t kept = 0;  // those that are not ignored
};

// Of each class, or none for all 1: values[c] * unit, with values that are rounded to the type of
// the arithmetic and a unit that is a power of two, 1 unless the type could not hold them.
struct ClassWeights {
    std::vector<double> values;
    double unit = 1.0;
};

struct CrossEntropyBatch {
    Type type;                // of all arrays
    CrossEntropyBlock whole;  // all positions: the arrays, sizes and options
    ClassIndices targets;     // unless there are probabilities
    ClassWeights weight;
    Reduction reduction;
    std::optional<double> denominator;  // what the mean divides by, where this is part of a batch
    void* losses;                       // of `type` [positions], filled with Reduction::none
    void* log_sum_exp;                  // of the arithmetic's type [positions], or nullptr
    bool counts_correct;
};

struct CrossEntropyResult {
    double loss;           // the mean or the sum
    std::int64_t counted;  // if the batch asks: positions that are not ignored,
    std::int64_t correct;  // and whose largest logit is the target's
};

// Writes losses * unit into `out`, rounded to T, the type of the arithmetic, and then to `type`.
template <class T>
void store_losses(Type type, const BlockVector<double>& losses, double unit, void* out);

// A sum in an order that the count alone fixes.
double sum_in_order(const double* values, std::size_t count);

// What the mean of these targets divides by: their number, or the sum of their weights, rounded to
// the arithmetic of `type` and without their unit; without those that are ignored.
double cross_entropy_denominator(Type type, const ClassIndices& targets, std::int64_t ignore_index,
                                 const ClassWeights& weight);

// Everything is computed with the default floating-point environment.
CrossEntropyResult run_cross_entropy(const CrossEntropyBatch& batch);

}  // namespace fastopt
