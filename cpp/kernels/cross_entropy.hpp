// Softmax cross-entropy of rows of logits [rows, classes] with class indices, and its gradient.
//
// With m the largest logit, e_c = exp(x_c - m) and "others" the sum of e_c over c != y:
//   loss      = log(1 + others)                     where the target y is the largest,
//             = (m - x_y) + log(others + e_y)       elsewhere,
//   dloss/dx_c = e_c / (others + e_y) for c != y,   dloss/dx_y = -others / (others + e_y).
// Nothing is subtracted from 1, so a model that is sure keeps its small loss and gradient.
//
// The order of every sum is fixed by the class index alone: 64 lanes of T over a tile of 1024
// classes, folded into 64 lanes of double from tile to tile, folded by halves at the end.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math.hpp"
#include "table.hpp"

// The updates wait for the divider and run best in 256-bit vectors (CMakeLists.txt); exp does not.
#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("prefer-vector-width=512")
#endif

namespace fastopt::FASTOPT_ISA {
namespace {

constexpr std::size_t lane_count = 64;
constexpr std::size_t tile_size = 1024;

// A sum over classes, in the order that the head of this file fixes.
struct LaneSum {
    double lanes[lane_count] = {};

    // Adds term(i) for i in [0, count), count <= tile_size.
    template <class T, class Term>
    void add(std::size_t count, Term term) {
        T partial[lane_count] = {};
        std::size_t start = 0;
        for (; start + lane_count <= count; start += lane_count)
            for (std::size_t lane = 0; lane < lane_count; ++lane)
                partial[lane] += term(start + lane);
        for (std::size_t lane = 0; start + lane < count; ++lane)
            partial[lane] += term(start + lane);
        for (std::size_t lane = 0; lane < lane_count; ++lane)
            lanes[lane] += static_cast<double>(partial[lane]);
    }

    double total() {
        for (std::size_t half = lane_count / 2; half > 0; half /= 2)
            for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
        return lanes[0];
    }
};

// The largest element, NaN left out; -inf if there is none.
template <class T>
T largest(const T* x, std::size_t count) {
    T best[lane_count];
    for (T& lane : best) lane = -static_cast<T>(__builtin_inff());
    std::size_t start = 0;
    for (; start + lane_count <= count; start += lane_count)
        for (std::size_t lane = 0; lane < lane_count; ++lane)
            best[lane] = x[start + lane] > best[lane] ? x[start + lane] : best[lane];
    for (std::size_t lane = 0; start + lane < count; ++lane)
        best[lane] = x[start + lane] > best[lane] ? x[start + lane] : best[lane];
    for (std::size_t half = lane_count / 2; half > 0; half /= 2)
        for (std::size_t lane = 0; lane < half; ++lane)
            best[lane] = best[lane + half] > best[lane] ? best[lane + half] : best[lane];
    return best[0];
}

enum class Smoothing {
    none,
    uniform,
    weighted
};

template <class T, Smoothing smoothing>
void cross_entropy_rows(const CrossEntropyBlock& block) {
    const std::size_t classes = block.classes;
    const T* weight = static_cast<const T*>(block.weight);
    const double smooth = block.label_smoothing / static_cast<double>(classes);
    T scratch[tile_size];

    for (std::size_t row = 0; row < block.rows; ++row) {
        const T* logits = static_cast<const T*>(block.logits) + row * classes;
        T* grad = block.grad ? static_cast<T*>(block.grad) + row * classes : nullptr;
        if (block.targets[row] == block.ignore_index) {
            block.losses[row] = 0.0;
            if (grad)
                for (std::size_t c = 0; c < classes; ++c) grad[c] = T{0};
            continue;
        }
        const auto target = static_cast<std::size_t>(block.targets[row]);
        const T top = largest(logits, classes);
        const double deficit = static_cast<double>(top) - static_cast<double>(logits[target]);

        LaneSum others_sum, distance_sum;
        double at_target = 0.0;
        for (std::size_t start = 0; start < classes; start += tile_size) {
            const std::size_t count = classes - start < tile_size ? classes - start : tile_size;
            const T* x = logits + start;
            if constexpr (smoothing == Smoothing::uniform)
                distance_sum.add<T>(count, [&](std::size_t i) { return top - x[i]; });
            if constexpr (smoothing == Smoothing::weighted)
                distance_sum.add<T>(
                    count, [&](std::size_t i) { return weight[start + i] * (top - x[i]); });
            T* e = grad ? grad + start : scratch;
            for (std::size_t i = 0; i < count; ++i) e[i] = exp_scaled(x[i] - top);
            if (target - start < count) {
                at_target = static_cast<double>(e[target - start]);
                e[target - start] = T{0};
            }
            others_sum.add<T>(count, [&](std::size_t i) { return e[i]; });
        }
        const double others = others_sum.total();
        const double sum = others + at_target;
        const double log_sum =
            deficit == 0.0 ? log1p(others / at_target) : log1p(sum * (1.0 / exp_scale) - 1.0);

        const double target_weight = weight ? static_cast<double>(weight[target]) : 1.0;
        const double target_share = (1.0 - block.label_smoothing) * target_weight;
        double loss = target_share * (deficit + log_sum);
        if constexpr (smoothing != Smoothing::none)
            loss += smooth * (block.weight_sum * log_sum + distance_sum.total());
        block.losses[row] = loss;
        if (!grad) continue;

        const double smooth_share = smoothing == Smoothing::none ? 0.0 : smooth * block.weight_sum;
        // What turns e into the gradient. It holds 1 / exp_scale: where it would be denormal, the
        // scale is taken from e instead, exactly.
        double exact_factor = (target_share + smooth_share) / sum * block.grad_scale;
        const double size = exact_factor < 0.0 ? -exact_factor : exact_factor;
        const bool tiny = size < 0x1p-120;
        if (tiny) exact_factor *= exp_scale;
        const T unscale = tiny ? static_cast<T>(1.0 / exp_scale) : T{1};
        const T factor = static_cast<T>(exact_factor);
        const T pull = static_cast<T>(smooth * block.grad_scale);
        for (std::size_t c = 0; c < classes; ++c) {
            T value = grad[c] * unscale * factor;
            if constexpr (smoothing == Smoothing::uniform) value = value - pull;
            if constexpr (smoothing == Smoothing::weighted) value = value - pull * weight[c];
            grad[c] = value;
        }
        double target_grad = -target_share * (others / sum);
        if constexpr (smoothing != Smoothing::none)
            target_grad += smooth_share * (at_target / sum) - smooth * target_weight;
        grad[target] = static_cast<T>(target_grad * block.grad_scale);
    }
}

template <class T>
void cross_entropy(const CrossEntropyBlock& block) {
    if (block.label_smoothing == 0.0) return cross_entropy_rows<T, Smoothing::none>(block);
    if (!block.weight) return cross_entropy_rows<T, Smoothing::uniform>(block);
    cross_entropy_rows<T, Smoothing::weighted>(block);
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA

#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC pop_options
#endif
