// softmax and log_softmax over the classes at many positions, and their backward forms.
//
// With m the largest x, e_c = exp(x_c - m), and "others" the sum of e_c without the first c where
// x_c = m, the top:
//   softmax      y_c = e_c / (1 + others),             dx_c = y_c (g_c - sum_k g_k y_k),
//   log_softmax  y_c = (x_c - m) - log(1 + others),    dx_c = g_c - exp(y_c) sum_k g_k.
// Along rows and along columns: see classes.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "classes.hpp"
#include "math.hpp"
#include "table.hpp"

// As in classes.hpp.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("schedule-insns", "sched-pressure")
#if defined(__AVX512F__)
#pragma GCC target("prefer-vector-width=512")
#endif
#endif

namespace fastopt::FASTOPT_ISA {
namespace {

template <class T>
T exp_of_log(T y) {
    return exp_scaled(y) * static_cast<T>(1.0 / exp_scale);
}

// log(1 + others / at_top), where at_top is exp_scale, or NaN.
inline double log_sum(double others, double at_top) {
    return log1p(others * (at_top * (1.0 / (exp_scale * exp_scale))));
}

template <class T, bool log>
void softmax_rows(const SoftmaxBlock& block) {
    const std::size_t classes = block.classes;
    T tile[tile_size];
    for (std::size_t row = 0; row < block.positions; ++row) {
        const T* x = class_row<const T>(block.x, block, row);
        const T* next = next_class_row<T>(block.x, block, row);
        T* out = class_row<T>(block.out, block, row);
        const Top<T> found = find_top(x, classes);
        const T top = found.value;
        const std::size_t top_at = found.index;
        T at_top{};
        LaneSum sum{0.0};
        for (std::size_t start = 0; start < classes; start += tile_size) {
            const std::size_t count = classes - start < tile_size ? classes - start : tile_size;
            T* e = log ? tile : out + start;
            exp_lanes(x + start, count, top, e, next ? next + start : nullptr);
            if (top_at - start < count) {
                at_top = e[top_at - start];
                e[top_at - start] = T{0};
            }
            sum.add<T>(count, [&](std::size_t i) { return e[i]; });
        }
        const double others = sum.total();
        if constexpr (log) {
            const T scalar = static_cast<T>(log_sum(others, static_cast<double>(at_top)));
            for (std::size_t c = 0; c < classes; ++c) out[c] = (x[c] - top) - scalar;
        } else {
            const T factor = static_cast<T>(1.0 / (others + static_cast<double>(at_top)));
            out[top_at] = at_top;
            for (std::size_t c = 0; c < classes; ++c) out[c] *= factor;
        }
    }
}

template <class T, bool log>
void softmax_backward_rows(const SoftmaxBlock& block) {
    const std::size_t classes = block.classes;
    for (std::size_t row = 0; row < block.positions; ++row) {
        const T* y = class_row<const T>(block.x, block, row);
        const T* grad = class_row<const T>(block.grad, block, row);
        T* out = class_row<T>(block.out, block, row);
        LaneSum lanes{0.0};
        for (std::size_t start = 0; start < classes; start += tile_size) {
            const std::size_t count = classes - start < tile_size ? classes - start : tile_size;
            lanes.add<T>(count, [&](std::size_t i) {
                return log ? grad[start + i] : grad[start + i] * y[start + i];
            });
        }
        const T sum = static_cast<T>(lanes.total());
        for (std::size_t c = 0; c < classes; ++c)
            out[c] = log ? grad[c] - exp_of_log(y[c]) * sum : y[c] * (grad[c] - sum);
    }
}

template <class T, bool log>
void softmax_columns(const SoftmaxBlock& block) {
    const std::size_t classes = block.classes;
    auto* const x = static_cast<Column<T>*>(block.scratch);
    for (std::size_t first = 0; first < block.positions; first += column_count) {
        load_columns(block.x, block, first, x);
        Column<T> top, at_top, scalar;
        Column<Index<T>> top_at;
        Column<double> others;
        largest_columns(x, classes, top);
        first_index_columns(x, classes, top, top_at);
        if constexpr (log) {
            pick_columns(x, top_at, at_top);
            for (std::size_t i = 0; i < column_count; ++i)
                at_top[i] = exp_scaled(at_top[i] - top[i]);
            sum_columns<T>(
                classes,
                [&](std::size_t c, std::size_t i) {
                    return except_at<T>(c, top_at[i], T{0}, exp_scaled(x[c][i] - top[i]));
                },
                others);
        } else {
            for (std::size_t c = 0; c < classes; ++c)
                for (std::size_t i = 0; i < column_count; ++i)
                    x[c][i] = exp_scaled(x[c][i] - top[i]);
            pick_columns(x, top_at, at_top);
            sum_columns<T>(
                classes,
                [&](std::size_t c, std::size_t i) {
                    return except_at<T>(c, top_at[i], T{0}, x[c][i]);
                },
                others);
        }
        for (std::size_t i = 0; i < column_count; ++i) {
            const auto at = static_cast<double>(at_top[i]);
            scalar[i] = static_cast<T>(log ? log_sum(others[i], at) : 1.0 / (others[i] + at));
        }
        for (std::size_t c = 0; c < classes; ++c)
            for (std::size_t i = 0; i < column_count; ++i)
                x[c][i] = log ? (x[c][i] - top[i]) - scalar[i] : x[c][i] * scalar[i];
        store_columns(x, block.out, block, first);
    }
}

template <class T, bool log>
void softmax_backward_columns(const SoftmaxBlock& block) {
    const std::size_t classes = block.classes;
    auto* const y = static_cast<Column<T>*>(block.scratch);
    auto* const grad = y + classes;
    for (std::size_t first = 0; first < block.positions; first += column_count) {
        load_columns(block.x, block, first, y);
        load_columns(block.grad, block, first, grad);
        Column<double> total;
        Column<T> sum;
        sum_columns<T>(
            classes,
            [&](std::size_t c, std::size_t i) { return log ? grad[c][i] : grad[c][i] * y[c][i]; },
            total);
        for (std::size_t i = 0; i < column_count; ++i) sum[i] = static_cast<T>(total[i]);
        for (std::size_t c = 0; c < classes; ++c)
            for (std::size_t i = 0; i < column_count; ++i)
                y[c][i] = log ? grad[c][i] - exp_of_log(y[c][i]) * sum[i]
                              : y[c][i] * (grad[c][i] - sum[i]);
        store_columns(y, block.out, block, first);
    }
}

template <class T>
constexpr SoftmaxKernels softmax_kernels() {
    return {{softmax_rows<T, false>, softmax_rows<T, true>},
            {softmax_columns<T, false>, softmax_columns<T, true>},
            {softmax_backward_rows<T, false>, softmax_backward_rows<T, true>},
            {softmax_backward_columns<T, false>, softmax_backward_columns<T, true>}};
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
