// Pointwise losses and functions over whole arrays, with the same bits for any number of threads.
#pragma once

#include <array>
#include <cstddef>
#include <optional>

#include "../kernels/table.hpp"
#include "strided.hpp"

namespace fastopt {

struct PointwiseBatch {
    const Pointwise* kernel;
    Type type;                                                        // of the arithmetic
    std::size_t count;                                                // of elements in each
    std::array<std::optional<StridedReader>, max_operands> operands;  // absent: all 1
    std::array<Type, max_operands> types{};  // of the operands: `type`, or one of 16 bits
    std::array<double, max_pointwise_options> options{};
    // Of the type of the first operand.
    void* out = nullptr;     // the gradient or the function, contiguous; may be an operand
    bool out_apart = false;  // it is none
    void* losses = nullptr;  // contiguous; nullptr: only their sum is wanted
    double divisor = 1.0;    // of the sum and of the gradient
};

struct PointwiseResult {
    double loss = 0.0;  // the sum of a loss over all elements / divisor
    // The first element of an operand that leaves the range it must lie in: nothing was written.
    std::optional<std::size_t> outside;
};

PointwiseResult run_pointwise(const PointwiseBatch& batch);

}  // namespace fastopt
