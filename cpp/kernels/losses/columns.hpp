// What softmax.hpp and cross_entropy.hpp do along columns: sums, maxima and exp over the classes of
// many positions side by side.
#pragma once

#include <cstddef>

#include "../arithmetic/exp.hpp"
#include "../arithmetic/integers.hpp"
#include "../arithmetic/transpose.hpp"
#include "../table.hpp"
#include "tiles.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

// A number of each of the positions side by side.
template <class T>
using Column = T[column_count];

// A number of each position, twice: for a pair of classes, which is a block. Functions of a block
// take classes in pairs. If the number of classes is odd, the last pair has one more, for which
// arrays of columns have memory. Nothing reads its result.
static_assert(2 * column_count == block_size);
template <class T>
struct Twice {
    explicit Twice(const Column<T>& column) {
        for (std::size_t i = 0; i < column_count; ++i)
            values[i] = values[column_count + i] = column[i];
    }
    T operator[](std::size_t i) const { return values[i]; }

    Block<T> values;
};

// The block's positions from `first` on that are positions of a column.
inline std::size_t column_width(const ClassBlock& block, std::size_t first) {
    const std::size_t left = block.positions - first;
    return left < column_count ? left : column_count;
}

// Prefetches for class c of neighbouring positions, `at`, and the classes after it: the class that
// is read 16 classes later, and this class of the next positions, if the cache keeps it till then.
// Where classes lie far apart, the processor itself prefetches neither.
template <class T>
FASTOPT_INLINE void prefetch_columns(const T* at, std::ptrdiff_t stride, std::size_t c,
                                     std::size_t classes) {
    constexpr std::ptrdiff_t ahead = 16;  // measured
    if (c + ahead < classes) prefetch(at + ahead * stride, column_count);
    if (classes <= tile_size) prefetch(at + column_count, column_count);
}

// starts[i] = the first class at position first + i, or at `first` where that is past the block's
// end. If all positions are neighbours, it returns true and sets starts[0] only.
template <class T>
FASTOPT_INLINE bool column_starts(const ClassArray& array, const ClassBlock& block,
                                  std::size_t first, T* (&starts)[column_count]) {
    T* start = class_row<T>(array, block, first);
    starts[0] = start;
    const std::size_t width = column_width(block, first);
    if (block.inner == 1) {
        if (array.run_stride == 1 && width == column_count) return true;
        for (std::size_t i = 0; i < column_count; ++i)
            starts[i] = start + (i < width ? static_cast<std::ptrdiff_t>(i) * array.run_stride : 0);
        return false;
    }
    std::size_t place = (block.first + first) % block.inner;
    const bool one_run = place + width <= block.inner ||
                         array.run_stride == static_cast<std::ptrdiff_t>(block.inner);
    if (array.inner_stride == 1 && width == column_count && one_run) return true;
    for (std::size_t i = 0; i < width; ++i) {
        starts[i] = start;
        start += array.inner_stride;
        if (++place < block.inner) continue;
        place = 0;
        start += array.run_stride - static_cast<std::ptrdiff_t>(block.inner) * array.inner_stride;
    }
    for (std::size_t i = width; i < column_count; ++i) starts[i] = starts[0];
    return false;
}

// to[c][i] = class c at position first + i, or at `first` past the block's end.
template <class T>
void load_columns(const ClassArray& array, const ClassBlock& block, std::size_t first,
                  Column<T>* to) {
    const T* starts[column_count];
    const std::size_t classes = block.classes;
    if (column_starts(array, block, first, starts)) {
        const T* from = starts[0];
        for (std::size_t c = 0; c < classes; ++c, from += array.class_stride) {
            prefetch_columns(from, array.class_stride, c, classes);
            for (std::size_t i = 0; i < column_count; ++i) to[c][i] = from[i];
        }
    } else if (array.class_stride == 1 && classes >= 4) {
        for (std::size_t i = 0; i < column_count; i += fours_size<T>)
            for (std::size_t c = 0; c < classes; c += 4) {
                const std::size_t at = c + 4 <= classes ? c : classes - 4;  // the last ones overlap
                Fours<T> columns[4];
                load_transposed<T>(starts + i, at, columns);
                for (std::size_t k = 0; k < 4; ++k) store_vector(columns[k], &to[at + k][i]);
            }
    } else {
        for (std::size_t i = 0; i < column_count; ++i) {
            const T* from = starts[i];
            for (std::size_t c = 0; c < classes; ++c, from += array.class_stride) to[c][i] = *from;
        }
    }
}

template <class T>
void store_columns(const Column<T>* from, const ClassArray& array, const ClassBlock& block,
                   std::size_t first) {
    T* starts[column_count];
    const std::size_t width = column_width(block, first);
    const std::size_t classes = block.classes;
    if (column_starts(array, block, first, starts)) {
        T* to = starts[0];
        for (std::size_t c = 0; c < classes; ++c, to += array.class_stride) {
            prefetch_columns(to, array.class_stride, c, classes);
            for (std::size_t i = 0; i < column_count; ++i) to[i] = from[c][i];
        }
        return;
    }
    std::size_t done = 0;
    if (array.class_stride == 1 && classes >= 4) {
        done = width / fours_size<T> * fours_size<T>;
        for (std::size_t i = 0; i < done; i += fours_size<T>)
            for (std::size_t c = 0; c < classes; c += 4) {
                const std::size_t at = c + 4 <= classes ? c : classes - 4;
                Fours<T> columns[4];
                for (std::size_t k = 0; k < 4; ++k) load_vector(&from[at + k][i], columns[k]);
                store_transposed<T>(columns, starts + i, at);
            }
    }
    for (std::size_t i = done; i < width; ++i) {
        T* to = starts[i];
        for (std::size_t c = 0; c < classes; ++c, to += array.class_stride) *to = from[c][i];
    }
}

template <class T>
void largest_columns(const Column<T>* x, std::size_t classes, Column<T>& best) {
    for (T& value : best) value = minus_infinity<T>;
    for (std::size_t c = 0; c < classes; ++c)
        for (std::size_t i = 0; i < column_count; ++i)
            best[i] = x[c][i] > best[i] ? x[c][i] : best[i];
}

// found[i] = the first c with x[c][i] == value[i]; 0 if there is none.
template <class T>
void first_index_columns(const Column<T>* x, std::size_t classes, const Column<T>& value,
                         Column<Index<T>>& found) {
    for (Index<T>& index : found) index = 0;
    for (std::size_t c = classes; c-- > 0;)
        for (std::size_t i = 0; i < column_count; ++i)
            found[i] = x[c][i] == value[i] ? static_cast<Index<T>>(c) : found[i];
}

// found[i] = x[at[i]][i].
template <class T>
void pick_columns(const Column<T>* x, const Column<Index<T>>& at, Column<T>& found) {
    std::size_t places[column_count];  // computed in vectors; a load and a store each remain
    for (std::size_t i = 0; i < column_count; ++i)
        places[i] = static_cast<std::size_t>(at[i]) * column_count + i;
    const T* const all = reinterpret_cast<const T*>(x);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < column_count; ++i) found[i] = all[places[i]];
}

// `other` if c is the class `at`, else `value`. (Writing one element of each position instead would
// delay the vectors that read it back.)
template <class T>
FASTOPT_INLINE T except_at(std::size_t c, Index<T> at, T other, T value) {
    return static_cast<Index<T>>(c) == at ? other : value;
}

// total[i] = the sum of term(c, i) over the classes, in the order of LaneSum.
template <class T, class Term>
void sum_columns(std::size_t classes, Term term, Column<double>& total) {
    Column<double> lanes[lane_count];
    std::size_t half = lane_count / 2;
    if (classes <= lane_count) {
        // Every lane is one term, so the first folding adds the terms themselves.
        while (half >= classes) half /= 2;
        if (half == 0) half = 1;
        for (std::size_t c = 0; c + half < classes; ++c)
            for (std::size_t i = 0; i < column_count; ++i)
                lanes[c][i] =
                    static_cast<double>(term(c, i)) + static_cast<double>(term(c + half, i));
        for (std::size_t c = classes > half ? classes - half : 0; c < half; ++c)
            for (std::size_t i = 0; i < column_count; ++i)
                lanes[c][i] = static_cast<double>(term(c, i));
        half /= 2;
    } else {
        Column<T> partial[lane_count];
        for (std::size_t start = 0; start < classes; start += tile_size) {
            const std::size_t count = tile_length(classes, start);
            const std::size_t filled = count < lane_count ? count : lane_count;
            for (std::size_t c = 0; c < filled; ++c)
                for (std::size_t i = 0; i < column_count; ++i) partial[c][i] = term(start + c, i);
            for (std::size_t c = filled; c < lane_count; ++c)
                for (T& value : partial[c]) value = T{0};
            for (std::size_t c = lane_count; c < count; ++c)
                for (std::size_t i = 0; i < column_count; ++i)
                    partial[c % lane_count][i] += term(start + c, i);
            for (std::size_t lane = 0; lane < lane_count; ++lane)
                for (std::size_t i = 0; i < column_count; ++i)
                    lanes[lane][i] =
                        (start == 0 ? 0.0 : lanes[lane][i]) + static_cast<double>(partial[lane][i]);
        }
    }
    fold_lanes(lanes, half, [](Column<double>& a, const Column<double>& b) {
        for (std::size_t i = 0; i < column_count; ++i) a[i] += b[i];
    });
    // LaneSum starts from 0.0, so that its sum is never -0.0.
    for (std::size_t i = 0; i < column_count; ++i) total[i] = 0.0 + lanes[0][i];
}

// A tile of classes.
template <class T>
struct ColumnTile {
    Column<T> top, base;    // m_t, and what is subtracted before exp
    Column<double> weight;  // exp(m_t - m) * exp_scale
};

// Sets the tiles, and `top` to m.
template <class T>
void find_tiles(const Column<T>* x, std::size_t classes, ColumnTile<T>* tiles, Column<T>& top) {
    for (T& value : top) value = minus_infinity<T>;
    for (std::size_t start = 0; start < classes; start += tile_size) {
        ColumnTile<T>& tile = tiles[start / tile_size];
        Column<T> best;  // a local, because for the compiler the tile may overlap x
        largest_columns(x + start, tile_length(classes, start), best);
        for (std::size_t i = 0; i < column_count; ++i) {
            tile.top[i] = best[i];
            tile.base[i] = base_of(best[i]);
            top[i] = best[i] > top[i] ? best[i] : top[i];
        }
    }
    const std::size_t count = tile_count(classes);
    for (std::size_t t = 0; t < count; ++t)
        if (count == 1)  // as RowTiles::weigh does
            for (double& weight : tiles[t].weight) weight = exp_scale;
        else
            for (std::size_t i = 0; i < column_count; ++i)
                tiles[t].weight[i] =
                    exp_scaled(static_cast<double>(tiles[t].top[i]) - static_cast<double>(top[i]));
}

// e = exp(x - base) * exp_scale, of a tile; e may be x.
template <class T>
void exp_tile(const Column<T>* x, std::size_t count, const Column<T>& base, Column<T>* e) {
    const Twice<T> less(base);
    for (std::size_t c = 0; c < count; c += 2) {
        const T* const from = x[c];
        exp_scaled<T>([&](std::size_t i) { return from[i] - less[i]; }, into(e[c]));
    }
}

// Replaces x by e. sum[i] is what RowTiles::weigh returns for the sums of term(c, i, e).
template <class T, class Term>
void exp_columns(Column<T>* x, std::size_t classes, const ColumnTile<T>* tiles, Column<double>& sum,
                 Term term) {
    for (double& value : sum) value = 0.0;
    for (std::size_t start = 0; start < classes; start += tile_size) {
        const std::size_t count = tile_length(classes, start);
        const ColumnTile<T>& tile = tiles[start / tile_size];
        exp_tile(x + start, count, tile.base, x + start);
        Column<double> of_tile;
        sum_columns<T>(
            count,
            [&](std::size_t k, std::size_t i) { return term(start + k, i, x[start + k][i]); },
            of_tile);
        for (std::size_t i = 0; i < column_count; ++i) sum[i] += tile.weight[i] * of_tile[i];
    }
    for (double& value : sum) value *= 1.0 / exp_scale;
}

// Replaces e by result(c, i, scaled), where `scaled` is e times factor[i] and the tile's weight.
template <class T, class Result>
void scale_columns(Column<T>* e, std::size_t classes, const ColumnTile<T>* tiles,
                   const Column<double>& factor, Result result) {
    for (std::size_t start = 0; start < classes; start += tile_size) {
        const std::size_t end = start + tile_length(classes, start);
        Column<T> of_tile, unscale;
        for (std::size_t i = 0; i < column_count; ++i) {
            const TileFactor<T> both =
                tile_factor<T>(factor[i], tiles[start / tile_size].weight[i]);
            of_tile[i] = both.factor;
            unscale[i] = both.unscale;
        }
        for (std::size_t c = start; c < end; ++c)
            for (std::size_t i = 0; i < column_count; ++i)
                e[c][i] = result(c, i, e[c][i] * unscale[i] * of_tile[i]);
    }
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
