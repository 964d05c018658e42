// What runs over the classes at many positions: sums, the largest, exp, columns of positions.
//
// Two regimes: along rows, whose classes are neighbours in memory; and along columns, many
// positions side by side, for few classes or where positions are the neighbours. They agree to the
// bit: the order of every sum is fixed by the class index alone: 64 lanes of T over a tile of 2048
// classes, folded into 64 lanes of double from tile to tile, folded by halves at the end. Sums of
// exp are folded at the end of each tile, and the tiles added up in order: exp is computed from the
// largest element of the tile, m_t, and weighed by exp(m_t - m), with m the largest of all.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../arithmetic/functions.hpp"
#include "../arithmetic/index.hpp"
#include "../arithmetic/transpose.hpp"
#include "../table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

constexpr std::size_t lane_count = 64;

// A sum over classes, in the order that the head of this file fixes.
struct LaneSum {
    double lanes[lane_count];

    LaneSum() = default;  // not a sum yet
    explicit LaneSum(double start) {
        for (double& lane : lanes) lane = start;
    }

    // Adds term(i) for i in [0, count), count <= tile_size.
    template <class T, class Term>
    void add(std::size_t count, Term term) {
        T partial[lane_count];
        for (T& lane : partial) lane = T{0};
        std::size_t start = 0;
        for (; start + lane_count <= count; start += lane_count)
            for (std::size_t lane = 0; lane < lane_count; ++lane)
                partial[lane] += term(start + lane);
        for (std::size_t lane = 0; start + lane < count; ++lane)
            partial[lane] += term(start + lane);
        add_tile(partial);
    }

    // Adds the lanes of a tile.
    template <class T>
    void add_tile(const T (&partial)[lane_count]) {
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

// The first i < count with x[i] == value; 0 if there is none.
template <class T>
std::size_t first_index(const T* x, std::size_t count, T value) {
    for (std::size_t start = 0; start < count; start += lane_count) {
        const std::size_t end = start + lane_count < count ? start + lane_count : count;
        Index<T> found = 0;  // as wide as T, or the loop would not be vectorized
        for (std::size_t i = start; i < end; ++i) found |= x[i] == value ? 1 : 0;
        if (!found) continue;
        for (std::size_t i = start; i < end; ++i)
            if (x[i] == value) return i;
    }
    return 0;
}

// Where the largest element, as `largest` finds it, comes first.
template <class T>
std::size_t largest_index(const T* x, std::size_t count) {
    T best = -static_cast<T>(__builtin_inff());
    std::size_t tile = 0;
    for (std::size_t start = 0; start < count; start += tile_size) {
        const T top = largest(x + start, tile_length(count, start));
        tile = top > best ? start : tile;
        best = top > best ? top : best;
    }
    return tile + first_index(x + tile, tile_length(count, tile), best);
}

// What exp(x - m_t) of a tile is computed from: m_t, its largest element; 0 where all are -inf, so
// that their exp are 0 and not NaN.
template <class T>
T base_of(T top) {
    return top == -static_cast<T>(__builtin_inff()) ? T{0} : top;
}

// How far before a write its place is asked for, in elements.
template <class T>
constexpr std::size_t write_ahead = 2048 / sizeof(T);

// Asks for `count` elements that will be read soon, unless they are nullptr.
template <class T>
inline __attribute__((always_inline)) void prefetch(const T* x, std::size_t count) {
    if (x == nullptr) return;
    for (std::size_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(x + i, 0, 3);
}

// The sum of e_i = exp(x[i] - base) * exp_scale for i < count, at most a tile, without the one at
// left_out, if that is less than count. Calls use(start, e, n), 64 classes at a time, with n of
// them from `start` on; the one left out is 0 there, and stored in `at`. Prefetches what lies at
// `next`.
template <class T, class Use>
inline __attribute__((always_inline)) double sum_exp(const T* x, std::size_t count, T base,
                                                     std::size_t left_out, T& at, const T* next,
                                                     Use use) {
    T partial[lane_count];
    for (T& lane : partial) lane = T{0};
    T e[lane_count];
    const auto take_all = [&](std::size_t start, const T* values, std::size_t n) {
        for (std::size_t i = 0; i < n; ++i) partial[i] += values[i];
        use(start, values, n);
    };
    const auto take = [&](std::size_t start, std::size_t n) {
        if (left_out - start >= n) return take_all(start, e, n);
        T others[lane_count];  // e itself stays in registers if it is never indexed
        for (std::size_t i = 0; i < lane_count; ++i) others[i] = e[i];
        at = others[left_out - start];
        others[left_out - start] = T{0};
        take_all(start, others, n);
    };
    std::size_t start = 0;
    for (; start + lane_count <= count; start += lane_count) {
        prefetch(next ? next + start : nullptr, lane_count);
        for (std::size_t i = 0; i < lane_count; ++i) e[i] = exp_scaled(x[start + i] - base);
        take(start, lane_count);
    }
    if (start < count) {
        // The rest by whole vectors too, of which not all is used.
        prefetch(next ? next + start : nullptr, count - start);
        for (T& value : e) value = base;
        for (std::size_t i = 0; start + i < count; ++i) e[i] = x[start + i];
        for (std::size_t i = 0; i < lane_count; ++i) e[i] = exp_scaled(e[i] - base);
        take(start, count - start);
    }
    LaneSum sum{0.0};
    sum.add_tile(partial);
    return sum.total();
}

// For sum_exp: writes what it is called with to `to`, which may be x. Prefetches what lies
// write_ahead further: a write, too, waits for what was there.
template <class T>
auto write_lanes(const T* x, T* to) {
    T* const ahead = to != x ? to + write_ahead<T> : nullptr;
    return [=](std::size_t start, const T* e, std::size_t n) {
        prefetch(ahead ? ahead + start : nullptr, lane_count);
        for (std::size_t i = 0; i < n; ++i) to[start + i] = e[i];
    };
}

// The tiles of a position, from the largest element of each and the sum of its e: sets the weights
// exp(m_t - m) * exp_scale in the place of the former, and returns the sum of all.
inline double weigh_tiles(double* tops, const double* sums, std::size_t tiles, double top) {
    if (tiles == 1) {
        tops[0] = exp_scale;
        return sums[0];
    }
    for (std::size_t t = 0; t < tiles; ++t) tops[t] = exp_scaled(tops[t] - top);
    double total = 0.0;
    for (std::size_t t = 0; t < tiles; ++t) total += tops[t] * sums[t];
    return total * (1.0 / exp_scale);
}

// What e of a tile is multiplied by, first by `unscale`: the position's factor times the tile's
// weight, without the weight's exp_scale. Where that would be denormal it stays, and is taken from
// e instead.
template <class T>
struct TileFactor {
    T factor, unscale;
};

template <class T>
TileFactor<T> tile_factor(double factor, double weight) {
    const double scaled = factor * weight;
    const double size = scaled < 0.0 ? -scaled : scaled;
    const bool tiny = size < 0x1p-120 * exp_scale;
    return {static_cast<T>(tiny ? scaled : scaled * (1.0 / exp_scale)),
            static_cast<T>(tiny ? 1.0 / exp_scale : 1.0)};
}

// The first class at a position of the block.
template <class T>
T* class_row(const ClassArray& array, const ClassBlock& block, std::size_t position) {
    if (array.data == nullptr) return nullptr;
    const std::size_t number = block.first + position;
    if (block.inner == 1)  // a division takes as long as some 50 logits
        return static_cast<T*>(array.data) + static_cast<std::ptrdiff_t>(number) * array.run_stride;
    return static_cast<T*>(array.data) +
           static_cast<std::ptrdiff_t>(number / block.inner) * array.run_stride +
           static_cast<std::ptrdiff_t>(number % block.inner) * array.inner_stride;
}

// The row after a position of the block, of the whole array's; nullptr if there is none.
template <class T>
const T* next_class_row(const ClassArray& array, const ClassBlock& block, std::size_t position) {
    return block.first + position + 1 < block.total ? class_row<const T>(array, block, position + 1)
                                                    : nullptr;
}

// A class, or its sum, at positions side by side.
template <class T>
using Column = T[column_count];

// Where class c of neighbouring positions is read or written: asks for the class that has its turn
// soon, and for this one of the next positions, if all those stay in cache till then. The processor
// itself foresees neither where the classes lie far apart.
template <class T>
inline __attribute__((always_inline)) void prefetch_columns(const T* at, std::ptrdiff_t stride,
                                                            std::size_t c, std::size_t classes) {
    constexpr std::ptrdiff_t ahead = 16;
    if (c + ahead < classes) prefetch(at + ahead * stride, column_count);
    if (classes <= tile_size) prefetch(at + column_count, column_count);
}

// starts[i] = the first class at position first + i, or at `first` where that is past the block's
// end. If all are neighbours it returns true, and only the first is set.
template <class T>
inline __attribute__((always_inline)) bool column_starts(const ClassArray& array,
                                                         const ClassBlock& block, std::size_t first,
                                                         T* (&starts)[column_count]) {
    T* start = class_row<T>(array, block, first);
    starts[0] = start;
    const std::size_t left = block.positions - first;
    const std::size_t width = left < column_count ? left : column_count;
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

// to[c][i] = class c at position first + i, and the one at `first` past the block's end.
template <class T>
void load_columns(const ClassArray& array, const ClassBlock& block, std::size_t first,
                  Column<T>* to) {
    const T* starts[column_count];
    const bool neighbours = column_starts(array, block, first, starts);
    const std::size_t classes = block.classes;
    if (neighbours) {
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
    const std::size_t left = block.positions - first;
    const std::size_t width = left < column_count ? left : column_count;
    const bool neighbours = column_starts(array, block, first, starts);
    const std::size_t classes = block.classes;
    std::size_t done = 0;
    if (neighbours) {
        T* to = starts[0];
        for (std::size_t c = 0; c < classes; ++c, to += array.class_stride) {
            prefetch_columns(to, array.class_stride, c, classes);
            for (std::size_t i = 0; i < column_count; ++i) to[i] = from[c][i];
        }
        return;
    }
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
    for (T& value : best) value = -static_cast<T>(__builtin_inff());
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
    std::size_t places[column_count];  // in vectors; what is left is a load and a store each
    for (std::size_t i = 0; i < column_count; ++i)
        places[i] = static_cast<std::size_t>(at[i]) * column_count + i;
    const T* const all = reinterpret_cast<const T*>(x);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < column_count; ++i) found[i] = all[places[i]];
}

// `other` at the class at[i], `value` at all the others. (To write one element of each position
// instead would hold up the vectors that read it back.)
template <class T>
inline __attribute__((always_inline)) T except_at(std::size_t c, Index<T> at, T other, T value) {
    return static_cast<Index<T>>(c) == at ? other : value;
}

// total[i] = the sum of term(c, i) over the classes, in the order of LaneSum.
template <class T, class Term>
void sum_columns(std::size_t classes, Term term, Column<double>& total) {
    Column<double> lanes[lane_count];
    std::size_t half = lane_count / 2;
    if (classes <= lane_count) {
        // Every lane is one term, and the first folding meets the terms themselves.
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
    for (; half > 0; half /= 2)
        for (std::size_t lane = 0; lane < half; ++lane)
            for (std::size_t i = 0; i < column_count; ++i) lanes[lane][i] += lanes[lane + half][i];
    // LaneSum starts from 0.0, so that its sum is never -0.0.
    for (std::size_t i = 0; i < column_count; ++i) total[i] = 0.0 + lanes[0][i];
}

// A tile of classes at positions side by side, as along rows.
template <class T>
struct ColumnTile {
    Column<T> top, base;
    Column<double> weight;
};

// Sets the tiles, and top to the largest of all.
template <class T>
void find_tiles(const Column<T>* x, std::size_t classes, ColumnTile<T>* tiles, Column<T>& top) {
    for (T& value : top) value = -static_cast<T>(__builtin_inff());
    for (std::size_t start = 0; start < classes; start += tile_size) {
        ColumnTile<T>& tile = tiles[start / tile_size];
        Column<T> best;  // not the tile's, which x might overlap for all that the compiler knows
        largest_columns(x + start, tile_length(classes, start), best);
        for (std::size_t i = 0; i < column_count; ++i) {
            tile.top[i] = best[i];
            tile.base[i] = base_of(best[i]);
            top[i] = best[i] > top[i] ? best[i] : top[i];
        }
    }
    const std::size_t count = tile_count(classes);
    for (std::size_t t = 0; t < count; ++t)
        if (count == 1)  // as in weigh_tiles
            for (double& weight : tiles[t].weight) weight = exp_scale;
        else
            for (std::size_t i = 0; i < column_count; ++i)
                tiles[t].weight[i] =
                    exp_scaled(static_cast<double>(tiles[t].top[i]) - static_cast<double>(top[i]));
}

// x becomes e; sum[i] = what weigh_tiles returns of the sums of term(c, i, e).
template <class T, class Term>
void exp_columns(Column<T>* x, std::size_t classes, const ColumnTile<T>* tiles, Column<double>& sum,
                 Term term) {
    for (double& value : sum) value = 0.0;
    for (std::size_t start = 0; start < classes; start += tile_size) {
        const std::size_t count = tile_length(classes, start);
        const ColumnTile<T>& tile = tiles[start / tile_size];
        Column<T> base;  // not the tile's, which x might overlap for all that the compiler knows
        for (std::size_t i = 0; i < column_count; ++i) base[i] = tile.base[i];
        for (std::size_t c = start; c < start + count; ++c)
            for (std::size_t i = 0; i < column_count; ++i) x[c][i] = exp_scaled(x[c][i] - base[i]);
        Column<double> of_tile;
        sum_columns<T>(
            count,
            [&](std::size_t c, std::size_t i) { return term(start + c, i, x[start + c][i]); },
            of_tile);
        for (std::size_t i = 0; i < column_count; ++i) sum[i] += tile.weight[i] * of_tile[i];
    }
    for (double& value : sum) value *= 1.0 / exp_scale;
}

// e becomes result(c, i, e * factor[i] * the tile's weight).
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
