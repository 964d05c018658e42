// softmax and log_softmax over the classes at many positions, and their backward forms.
//
// With m the largest x, e_c = exp(x_c - m), and "others" the sum of e_c without the first c where
// x_c = m, the top:
//   softmax      y_c = e_c / sum_k e_k,                dx_c = y_c (g_c - sum_k g_k y_k),
//   log_softmax  y_c = (x_c - m) - log(1 + others),    dx_c = g_c - exp(y_c) sum_k g_k.
// exp is computed by tiles, as in cross_entropy.hpp. log_softmax leaves the top of each tile out of
// the tile's sum, as it may be the top of all; the tops of the other tiles are added last.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../arithmetic/block.hpp"
#include "../arithmetic/exp.hpp"
#include "../arithmetic/log.hpp"
#include "../table.hpp"
#include "columns.hpp"
#include "rows.hpp"
#include "tiles.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

// log(1 + others), which are scaled by exp_scale; NaN if the largest x is infinite.
template <class T>
T log_sum_of(double others, T top) {
    const auto at_top = static_cast<double>(exp_scaled(top - top));
    return static_cast<T>(log1p(others * (at_top * (1.0 / (exp_scale * exp_scale)))));
}

struct SoftmaxRowScratch {
    explicit SoftmaxRowScratch(const SoftmaxBlock& block)
        : parts{block.scratch},
          tiles(parts, block.classes),
          at_tops(parts.take<double>(tiles.count)) {}

    ScratchParts parts;
    RowTiles tiles;
    double* at_tops;  // e of the top of each tile
};

template <class T, bool log>
void softmax_rows(const SoftmaxBlock& block) {
    const std::size_t classes = block.classes;
    const auto scratch = scratch_of<SoftmaxRowScratch>(block);
    const RowTiles& tiles = scratch.tiles;
    for (std::size_t row = 0; row < block.positions; ++row) {
        const T* x = class_row<const T>(block.x, block, row);
        const T* next = next_class_row<T>(block.x, block, row);
        T* out = class_row<T>(block.out, block, row);
        T top = minus_infinity<T>;  // so far
        std::size_t top_tile = 0;
        for (std::size_t t = 0; t < tiles.count; ++t) {
            const std::size_t start = t * tile_size;
            const std::size_t count = tile_length(classes, start);
            const T* in = x + start;
            const T tile_top = largest(in, count);
            tiles.tops[t] = static_cast<double>(tile_top);
            top_tile = tile_top > top ? t : top_tile;
            top = larger(top, tile_top);
            const T* ahead = t + 1 < tiles.count ? in + tile_size : next;
            const T base = base_of(tile_top);
            const std::size_t left_out = log ? first_index(in, count, tile_top) : count;
            // log_softmax copies x while it is in the first cache, and while the memory waits for
            // exp.
            T* const to = out + start;
            tiles.sums[t] = sum_exp(in, count, base, left_out, ahead, written_later(in, to),
                                    [&](std::size_t i, T e) { to[i] = log ? in[i] : e; });
            if constexpr (log)
                scratch.at_tops[t] = static_cast<double>(exp_scaled(in[left_out] - base));
        }
        if constexpr (log) {
            for (std::size_t t = 0; t < tiles.count; ++t)
                if (t != top_tile) tiles.sums[t] += scratch.at_tops[t];
            const double others = tiles.weigh(static_cast<double>(top));
            const T scalar = log_sum_of(others, top);
            for (std::size_t c = 0; c < classes; ++c) out[c] = (out[c] - top) - scalar;
        } else {
            const double all = tiles.weigh(static_cast<double>(top));
            for (std::size_t t = 0; t < tiles.count; ++t) {
                const std::size_t start = t * tile_size;
                const std::size_t end = start + tile_length(classes, start);
                const TileFactor<T> by = tile_factor<T>(1.0 / all, tiles.weights[t]);
                for (std::size_t c = start; c < end; ++c) out[c] = out[c] * by.unscale * by.factor;
            }
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
            const std::size_t count = tile_length(classes, start);
            lanes.add<T>(count, [&](std::size_t i) {
                return log ? grad[start + i] : grad[start + i] * y[start + i];
            });
        }
        const T sum = static_cast<T>(lanes.total());
        if constexpr (log)
            each_block<T>(
                classes, [&](std::size_t c) { return y[c]; },
                [](auto x, auto use) { exp_scaled<T>(x, use); },
                [&](std::size_t c, T e) { out[c] = grad[c] - e * exp_unscale<T> * sum; });
        else
            for (std::size_t c = 0; c < classes; ++c) out[c] = y[c] * (grad[c] - sum);
    }
}

template <class T>
struct SoftmaxColumnScratch {
    explicit SoftmaxColumnScratch(const SoftmaxBlock& block)
        : parts{block.scratch},
          x(parts.take<Column<T>>(block.classes + 1)),
          other(parts.take<Column<T>>(
              (block.grad.data ? block.classes : tile_length(block.classes, 0)) + 1)),
          tiles(parts.take<ColumnTile<T>>(block.grad.data ? 0 : tile_count(block.classes))) {}

    ScratchParts parts;
    Column<T>* x;      // and then the result
    Column<T>* other;  // grad, or e of a tile of log_softmax
    ColumnTile<T>* tiles;
};

template <class T>
void softmax_columns(const SoftmaxBlock& block) {
    const std::size_t classes = block.classes;
    const auto scratch = scratch_of<SoftmaxColumnScratch<T>>(block);
    Column<T>* const x = scratch.x;
    ColumnTile<T>* const tiles = scratch.tiles;
    for (std::size_t first = 0; first < block.positions; first += column_count) {
        load_columns(block.x, block, first, x);
        Column<T> top;
        Column<double> all;
        find_tiles(x, classes, tiles, top);
        exp_columns(x, classes, tiles, all, [](std::size_t, std::size_t, T e) { return e; });
        for (double& value : all) value = 1.0 / value;
        scale_columns(x, classes, tiles, all,
                      [](std::size_t, std::size_t, T scaled) { return scaled; });
        store_columns(x, block.out, block, first);
    }
}

template <class T>
void log_softmax_columns(const SoftmaxBlock& block) {
    const std::size_t classes = block.classes;
    const auto scratch = scratch_of<SoftmaxColumnScratch<T>>(block);
    Column<T>* const x = scratch.x;
    Column<T>* const e = scratch.other;
    ColumnTile<T>* const tiles = scratch.tiles;
    for (std::size_t first = 0; first < block.positions; first += column_count) {
        load_columns(block.x, block, first, x);
        Column<T> top, scalar;
        Column<double> others{};
        find_tiles(x, classes, tiles, top);
        bool seen[column_count]{};  // the largest of all
        for (std::size_t start = 0; start < classes; start += tile_size) {
            const std::size_t count = tile_length(classes, start);
            const Column<T>* const in = x + start;
            const ColumnTile<T> tile = tiles[start / tile_size];
            Column<Index<T>> top_at;
            Column<double> sum;
            first_index_columns(in, count, tile.top, top_at);
            exp_tile(in, count, tile.base, e);
            sum_columns<T>(
                count,
                [&](std::size_t c, std::size_t i) {
                    return except_at<T>(c, top_at[i], T{0}, e[c][i]);
                },
                sum);
            if (classes > tile_size) {
                Column<T> at_top;
                pick_columns(e, top_at, at_top);
                for (std::size_t i = 0; i < column_count; ++i) {
                    const bool is_top = !seen[i] && tile.top[i] == top[i];
                    seen[i] = seen[i] || is_top;
                    sum[i] = is_top ? sum[i] : sum[i] + static_cast<double>(at_top[i]);
                }
            }
            for (std::size_t i = 0; i < column_count; ++i) others[i] += tile.weight[i] * sum[i];
        }
        for (std::size_t i = 0; i < column_count; ++i)
            scalar[i] = log_sum_of(others[i] * (1.0 / exp_scale), top[i]);
        for (std::size_t c = 0; c < classes; ++c)
            for (std::size_t i = 0; i < column_count; ++i) x[c][i] = (x[c][i] - top[i]) - scalar[i];
        store_columns(x, block.out, block, first);
    }
}

template <class T, bool log>
void softmax_backward_columns(const SoftmaxBlock& block) {
    const std::size_t classes = block.classes;
    const auto scratch = scratch_of<SoftmaxColumnScratch<T>>(block);
    Column<T>*const y = scratch.x, *const grad = scratch.other;
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
        if constexpr (log) {
            const Twice<T> by(sum);
            for (std::size_t c = 0; c < classes; c += 2) {
                T *const at = y[c], *const g = grad[c];
                exp_scaled<T>(
                    [&](std::size_t i) { return at[i]; },
                    [&](std::size_t i, T e) { at[i] = g[i] - e * exp_unscale<T> * by[i]; });
            }
        } else {
            for (std::size_t c = 0; c < classes; ++c)
                for (std::size_t i = 0; i < column_count; ++i)
                    y[c][i] = y[c][i] * (grad[c][i] - sum[i]);
        }
        store_columns(y, block.out, block, first);
    }
}

template <class T>
constexpr ClassKernels<SoftmaxBlock> softmax = {
    class_kernel<SoftmaxRowScratch>(softmax_rows<T, false>),
    class_kernel<SoftmaxColumnScratch<T>>(softmax_columns<T>)};

template <class T>
constexpr ClassKernels<SoftmaxBlock> log_softmax = {
    class_kernel<SoftmaxRowScratch>(softmax_rows<T, true>),
    class_kernel<SoftmaxColumnScratch<T>>(log_softmax_columns<T>)};

template <class T, bool log>
constexpr ClassKernels<SoftmaxBlock> softmax_backward = {
    class_kernel<SoftmaxRowScratch>(softmax_backward_rows<T, log>),
    class_kernel<SoftmaxColumnScratch<T>>(softmax_backward_columns<T, log>)};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
