// Sums of squares in double, and the largest magnitude, for norms.
//
// The bits of a norm: this file adds within a chunk, sum_lanes (table.hpp) adds the lanes of a
// chunk, and NormParts (runtime/run_norm.hpp) adds the chunks in their order. Chunks have
// tuning.chunk_size elements (runtime/grid.hpp).
#pragma once

#include <cstddef>

#include "../arithmetic/integers.hpp"
#include "../arithmetic/storage.hpp"
#include "../table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

// Adds (scale * x[i])^2 to lane i mod norm_lanes. Any NaN or infinity makes its lane NaN or
// infinite.
template <class T>
void add_squares(const void* data, std::size_t count, double scale, double* lanes) {
    const T* x = static_cast<const T*>(data);
    double sum[norm_lanes];
    for (std::size_t lane = 0; lane < norm_lanes; ++lane) sum[lane] = lanes[lane];
    const auto add = [&](std::size_t lane, T value) {
        const double scaled = static_cast<double>(load(value)) * scale;
        sum[lane] += scaled * scaled;
    };
    std::size_t start = 0;
    for (; start + norm_lanes <= count; start += norm_lanes)
        for (std::size_t lane = 0; lane < norm_lanes; ++lane) add(lane, x[start + lane]);
    for (std::size_t lane = 0; start + lane < count; ++lane) add(lane, x[start + lane]);
    for (std::size_t lane = 0; lane < norm_lanes; ++lane) lanes[lane] = sum[lane];
}

// The largest |x[i]|; NaN if there is one. As integers magnitudes have the order of their numbers,
// with NaN above all.
template <class T>
double largest_magnitude(const void* data, std::size_t count) {
    using Number = decltype(load(T{}));
    const T* x = static_cast<const T*>(data);
    constexpr auto magnitude_bits = static_cast<Index<Number>>(~(1ull << (8 * sizeof(Number) - 1)));
    Index<Number> best = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const auto bits = __builtin_bit_cast(Index<Number>, load(x[i])) & magnitude_bits;
        best = bits > best ? bits : best;
    }
    return static_cast<double>(__builtin_bit_cast(Number, best));
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
