// Softmax cross-entropy of `classes` logits at each of many positions, and its gradient.
//
// With m the largest logit, e_c = exp(x_c - m), s the sum of all e_c, and one class v, the pivot:
//   log(s) = log(1 + others / e_v)                  where the pivot is the largest,
//          = log(s)                                 elsewhere; "others" is the sum of e_c, c != v;
//   loss   = share (m - x_v + log s) + sum_c pull_c (m - x_c) + rest log s + z_loss (m + log s)^2,
//   dloss/dx_c = (share + rest + 2 z_loss (m + log s)) e_c / s - pull_c for c != v,
//   dloss/dx_v = -share others / s + (rest + 2 z_loss (m + log s)) e_v / s - pull_v.
// For a class index y: v = y, share = (1 - smoothing) w_y, pull_c = w_c smoothing / classes, rest
// is the sum of the pulls. For a row of probabilities t: v is the largest logit, pull_c =
// w_c ((1 - smoothing) t_c + smoothing / classes), but share = pull_v, pull_v is taken as 0, and
// rest is the sum of the others. Nothing is subtracted from 1, so a model that is sure keeps its
// small loss and gradient.
//
// Two regimes: along rows, whose classes are neighbours in memory; and along columns, many
// positions side by side, for few classes or where positions are the neighbours. They agree to the
// bit: the order of every sum is fixed by the class index alone: 64 lanes of T over a tile of 1024
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

template <class T>
void prefetch_lanes(const T* x) {
    for (std::size_t lane = 0; lane < lane_count; lane += 64 / sizeof(T))
        __builtin_prefetch(x + lane, 0, 2);
}

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
        bool found = false;
        for (std::size_t i = start; i < end; ++i) found |= x[i] == value;
        if (!found) continue;
        for (std::size_t i = start; i < end; ++i)
            if (x[i] == value) return i;
    }
    return 0;
}

// The scalars of a position, named as at the head of this file; e_c and all that is made of them
// are scaled by exp_scale.
struct PositionSums {
    double top, deficit, others, at_pivot;  // m, m - x_v, others, e_v
    double share, rest, distance;           // distance: the sum of pull_c (m - x_c)
    double pull_at_pivot;
};

struct PositionResult {
    double loss, log_sum_exp;
    // The gradient is e_c * unscale * factor - pull_c * grad_scale, and pivot_grad. The factor
    // holds 1 / exp_scale: where it would be denormal, the scale is taken from e_c instead,
    // exactly.
    double factor, unscale, pivot_grad;
};

inline PositionResult finish(const PositionSums& at, double z_loss, double grad_scale) {
    const double sum = at.others + at.at_pivot;
    const double share_of = 1.0 / sum;  // of what all add up to
    // Where the pivot is the largest, its e is exp_scale.
    const double log_sum =
        log1p(at.deficit == 0.0 ? at.others * (1.0 / exp_scale) : sum * (1.0 / exp_scale) - 1.0);
    PositionResult result{};
    result.log_sum_exp = at.top + log_sum;
    const double pull_of_z = 2.0 * z_loss * result.log_sum_exp;
    result.loss = at.share * (at.deficit + log_sum) + (at.rest * log_sum + at.distance) +
                  z_loss * (result.log_sum_exp * result.log_sum_exp);
    const double factor = (at.share + (at.rest + pull_of_z)) * share_of * grad_scale;
    const double size = factor < 0.0 ? -factor : factor;
    result.factor = size < 0x1p-120 ? factor * exp_scale : factor;
    result.unscale = size < 0x1p-120 ? 1.0 / exp_scale : 1.0;
    result.pivot_grad = ((at.rest + pull_of_z) * (at.at_pivot * share_of) -
                         at.share * (at.others * share_of) - at.pull_at_pivot) *
                        grad_scale;
    return result;
}

// The first class at a position of the block.
template <class T>
T* class_row(const ClassArray& array, const CrossEntropyBlock& block, std::size_t position) {
    if (array.data == nullptr) return nullptr;
    const std::size_t number = block.first + position;
    return static_cast<T*>(array.data) +
           static_cast<std::ptrdiff_t>(number / block.inner) * array.run_stride +
           static_cast<std::ptrdiff_t>(number % block.inner) * array.inner_stride;
}

// What is the same for all positions of a block.
template <class T>
struct CrossEntropyScalars {
    explicit CrossEntropyScalars(const CrossEntropyBlock& block)
        : smooth(block.label_smoothing / static_cast<double>(block.classes)),
          keep(1.0 - block.label_smoothing),
          soft(block.targets == nullptr),
          pulls(soft || block.label_smoothing != 0.0),
          pull_scale(soft ? 1.0 : smooth),
          rest(soft ? 0.0 : smooth * block.weight_sum) {}

    double smooth, keep;
    bool soft;
    bool pulls;         // whether there are any
    double pull_scale;  // pull_c = pull_scale * what `pull` returns
    double rest;        // of a class index

    T pull(const T* weight, std::size_t c, T probability) const {
        const T w = weight ? weight[c] : T{1};
        return soft ? w * (static_cast<T>(keep) * probability + static_cast<T>(smooth)) : w;
    }
};

// An entry that is not wanted at all counts nothing, however far its logit is.
template <class T>
T distance_term(T pull, T distance) {
    return pull == T{0} ? T{0} : pull * distance;
}

template <class T>
void cross_entropy_rows(const CrossEntropyBlock& block) {
    const std::size_t classes = block.classes;
    const CrossEntropyScalars<T> scalars(block);
    const T* weight = static_cast<const T*>(block.weight);
    const T cap = static_cast<T>(block.softcap);
    const bool capped = block.softcap != 0.0;
    T tile[tile_size];

    for (std::size_t row = 0; row < block.positions; ++row) {
        const T* logits = class_row<const T>(block.logits, block, row);
        const T* probabilities = class_row<const T>(block.probabilities, block, row);
        T* grad = class_row<T>(block.grad, block, row);
        if (!scalars.soft && block.targets[row] == block.ignore_index) {
            block.losses[row] = 0.0;
            if (block.log_sum_exp) block.log_sum_exp[row] = 0.0;
            if (block.correct) block.correct[row] = 0;
            if (grad)
                for (std::size_t c = 0; c < classes; ++c) grad[c] = T{0};
            continue;
        }
        T* scratch = static_cast<T*>(block.scratch);
        const T* x = logits;
        const T* next = block.first + row + 1 < block.total
                            ? class_row<const T>(block.logits, block, row + 1)
                            : nullptr;
        if (capped) {
            for (std::size_t c = 0; c < classes; ++c) scratch[c] = soft_cap(logits[c], cap).value;
            x = scratch;
        }
        const T top = largest(x, classes);
        const std::size_t pivot = scalars.soft ? first_index(x, classes, top)
                                               : static_cast<std::size_t>(block.targets[row]);
        if (block.correct) {
            const bool hit = x[pivot] == top;
            if (scalars.soft) {
                const T likely = largest(probabilities, classes);
                block.correct[row] = hit && first_index(probabilities, classes, likely) == pivot;
            } else {
                block.correct[row] = hit && first_index(x, pivot + 1, top) == pivot;
            }
        }
        PositionSums sums{};
        sums.top = static_cast<double>(top);
        sums.deficit = static_cast<double>(top) - static_cast<double>(x[pivot]);

        const auto pulls = [&](std::size_t start, std::size_t count) {
            for (std::size_t i = 0; i < count; ++i)
                tile[i] =
                    scalars.pull(weight, start + i, scalars.soft ? probabilities[start + i] : T{0});
        };
        LaneSum others, distance, rest;
        T* e_row = capped ? scratch : grad;
        for (std::size_t start = 0; start < classes; start += tile_size) {
            const std::size_t count = classes - start < tile_size ? classes - start : tile_size;
            const bool has_pivot = pivot - start < count;
            const T* in = x + start;
            if (scalars.pulls) {
                pulls(start, count);
                distance.add<T>(count,
                                [&](std::size_t i) { return distance_term(tile[i], top - in[i]); });
                if (has_pivot) {
                    const auto own = static_cast<double>(tile[pivot - start]);
                    sums.share = scalars.soft ? own : 0.0;
                    sums.pull_at_pivot = scalars.soft ? 0.0 : scalars.smooth * own;
                    tile[pivot - start] = T{0};
                }
                if (scalars.soft) rest.add<T>(count, [&](std::size_t i) { return tile[i]; });
            }
            T* e = e_row ? e_row + start : tile;
            std::size_t done = 0;
            for (; done + lane_count <= count; done += lane_count) {
                if (next != nullptr) prefetch_lanes(next + start + done);
                T values[lane_count];  // e may be x
                for (std::size_t lane = 0; lane < lane_count; ++lane)
                    values[lane] = exp_scaled(in[done + lane] - top);
                for (std::size_t lane = 0; lane < lane_count; ++lane) e[done + lane] = values[lane];
            }
            for (; done < count; ++done) e[done] = exp_scaled(in[done] - top);
            if (has_pivot) {
                sums.at_pivot = static_cast<double>(e[pivot - start]);
                e[pivot - start] = T{0};
            }
            others.add<T>(count, [&](std::size_t i) { return e[i]; });
        }
        sums.others = others.total();
        sums.rest = scalars.soft ? rest.total() : scalars.rest;
        sums.distance = scalars.pulls ? scalars.pull_scale * distance.total() : 0.0;
        if (!scalars.soft)
            sums.share = scalars.keep * (weight ? static_cast<double>(weight[pivot]) : 1.0);

        const PositionResult result = finish(sums, block.z_loss, block.grad_scale);
        block.losses[row] = result.loss;
        if (block.log_sum_exp) block.log_sum_exp[row] = result.log_sum_exp;
        if (block.correct && result.log_sum_exp != result.log_sum_exp) block.correct[row] = 0;
        if (!grad) continue;

        const T unscale = static_cast<T>(result.unscale);
        const T factor = static_cast<T>(result.factor);
        const T pull = static_cast<T>(scalars.pull_scale * block.grad_scale);
        const T slope_at_pivot = capped ? soft_cap(logits[pivot], cap).slope : T{1};
        for (std::size_t start = 0; start < classes; start += tile_size) {
            const std::size_t count = classes - start < tile_size ? classes - start : tile_size;
            const T* e = e_row + start;
            T* out = grad + start;
            if (scalars.pulls) {
                pulls(start, count);
                for (std::size_t i = 0; i < count; ++i)
                    tile[i] = e[i] * unscale * factor - pull * tile[i];
                for (std::size_t i = 0; i < count; ++i)
                    out[i] = capped ? tile[i] * soft_cap(logits[start + i], cap).slope : tile[i];
            } else if (capped) {
                for (std::size_t i = 0; i < count; ++i)
                    out[i] = e[i] * unscale * factor * soft_cap(logits[start + i], cap).slope;
            } else {
                for (std::size_t i = 0; i < count; ++i) out[i] = e[i] * unscale * factor;
            }
        }
        grad[pivot] = static_cast<T>(result.pivot_grad) * slope_at_pivot;
    }
}

// A class, or its sum, at positions side by side.
template <class T>
using Column = T[column_count];

// An index of the elements' width, for comparisons in vectors, and four elements in memory.
template <class T>
struct VectorsOf;
template <>
struct VectorsOf<float> {
    using index = std::int32_t;
    using four = float __attribute__((vector_size(16), aligned(4), may_alias));
    using four_indices = std::int32_t __attribute__((vector_size(16)));
};
template <>
struct VectorsOf<double> {
    using index = std::int64_t;
    using four = double __attribute__((vector_size(32), aligned(8), may_alias));
    using four_indices = std::int64_t __attribute__((vector_size(32)));
};
template <class T>
using Index = typename VectorsOf<T>::index;
template <class T>
using Four = typename VectorsOf<T>::four;

// starts[i] = the first class at position first + i, or at `first` where that is past the block's
// end. Returns whether they are neighbours.
template <class T>
bool column_starts(const ClassArray& array, const CrossEntropyBlock& block, std::size_t first,
                   T* (&starts)[column_count]) {
    T* start = class_row<T>(array, block, first);
    const std::size_t left = block.positions - first;
    const std::size_t width = left < column_count ? left : column_count;
    if (block.inner == 1) {
        for (std::size_t i = 0; i < width; ++i)
            starts[i] = start + static_cast<std::ptrdiff_t>(i) * array.run_stride;
    } else {
        std::size_t place = (block.first + first) % block.inner;
        for (std::size_t i = 0; i < width; ++i) {
            starts[i] = start;
            start += array.inner_stride;
            if (++place < block.inner) continue;
            place = 0;
            start +=
                array.run_stride - static_cast<std::ptrdiff_t>(block.inner) * array.inner_stride;
        }
    }
    for (std::size_t i = width; i < column_count; ++i) starts[i] = starts[0];
    bool neighbours = true;
    for (std::size_t i = 1; i < column_count; ++i) neighbours &= starts[i] == starts[0] + i;
    return neighbours;
}

// rows[r][c] becomes rows[c][r].
template <class T>
inline __attribute__((always_inline)) void transpose(Four<T> (&rows)[4]) {
#if defined(__clang__)
    const Four<T> low01 = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
    const Four<T> low23 = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
    const Four<T> high01 = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
    const Four<T> high23 = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
    rows[0] = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
    rows[1] = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
    rows[2] = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
    rows[3] = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
#else
    using Mask = typename VectorsOf<T>::four_indices;
    const Four<T> low01 = __builtin_shuffle(rows[0], rows[1], Mask{0, 4, 1, 5});
    const Four<T> low23 = __builtin_shuffle(rows[2], rows[3], Mask{0, 4, 1, 5});
    const Four<T> high01 = __builtin_shuffle(rows[0], rows[1], Mask{2, 6, 3, 7});
    const Four<T> high23 = __builtin_shuffle(rows[2], rows[3], Mask{2, 6, 3, 7});
    rows[0] = __builtin_shuffle(low01, low23, Mask{0, 1, 4, 5});
    rows[1] = __builtin_shuffle(low01, low23, Mask{2, 3, 6, 7});
    rows[2] = __builtin_shuffle(high01, high23, Mask{0, 1, 4, 5});
    rows[3] = __builtin_shuffle(high01, high23, Mask{2, 3, 6, 7});
#endif
}

// to[c][i] = class c at position first + i, and the one at `first` past the block's end.
template <class T>
void load_columns(const ClassArray& array, const CrossEntropyBlock& block, std::size_t first,
                  Column<T>* to) {
    const T* starts[column_count];
    const bool neighbours = column_starts(array, block, first, starts);
    const std::size_t classes = block.classes;
    if (neighbours) {
        const T* from = starts[0];
        for (std::size_t c = 0; c < classes; ++c, from += array.class_stride)
            for (std::size_t i = 0; i < column_count; ++i) to[c][i] = from[i];
    } else if (array.class_stride == 1 && classes >= 4) {
        for (std::size_t i = 0; i < column_count; i += 4)
            for (std::size_t c = 0; c < classes; c += 4) {
                const std::size_t at = c + 4 <= classes ? c : classes - 4;  // the last ones overlap
                Four<T> rows[4];
                for (std::size_t r = 0; r < 4; ++r)
                    rows[r] = *reinterpret_cast<const Four<T>*>(starts[i + r] + at);
                transpose<T>(rows);
                for (std::size_t r = 0; r < 4; ++r)
                    *reinterpret_cast<Four<T>*>(&to[at + r][i]) = rows[r];
            }
    } else {
        for (std::size_t i = 0; i < column_count; ++i) {
            const T* from = starts[i];
            for (std::size_t c = 0; c < classes; ++c, from += array.class_stride) to[c][i] = *from;
        }
    }
}

template <class T>
void store_columns(const Column<T>* from, const ClassArray& array, const CrossEntropyBlock& block,
                   std::size_t first, std::size_t width) {
    T* starts[column_count];
    const bool neighbours = column_starts(array, block, first, starts);
    const std::size_t classes = block.classes;
    std::size_t done = 0;
    if (neighbours) {
        T* to = starts[0];
        for (std::size_t c = 0; c < classes; ++c, to += array.class_stride)
            for (std::size_t i = 0; i < column_count; ++i) to[i] = from[c][i];
        return;
    }
    if (array.class_stride == 1 && classes >= 4) {
        done = width / 4 * 4;
        for (std::size_t i = 0; i < done; i += 4)
            for (std::size_t c = 0; c < classes; c += 4) {
                const std::size_t at = c + 4 <= classes ? c : classes - 4;
                Four<T> rows[4];
                for (std::size_t r = 0; r < 4; ++r)
                    rows[r] = *reinterpret_cast<const Four<T>*>(&from[at + r][i]);
                transpose<T>(rows);
                for (std::size_t r = 0; r < 4; ++r)
                    *reinterpret_cast<Four<T>*>(starts[i + r] + at) = rows[r];
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

// picked[i] = x[at[i]][i], which then becomes `after`.
template <class T>
void replace_columns(Column<T>* x, std::size_t classes, const Column<Index<T>>& at,
                     const Column<T>& after, Column<T>& picked) {
    for (T& value : picked) value = T{0};
    for (std::size_t c = 0; c < classes; ++c)
        for (std::size_t i = 0; i < column_count; ++i) {
            const bool here = at[i] == static_cast<Index<T>>(c);
            picked[i] = here ? x[c][i] : picked[i];
            x[c][i] = here ? after[i] : x[c][i];
        }
}

// total[i] = the sum of term(c, i) over the classes, in the order of LaneSum.
template <class T, class Term>
void sum_columns(std::size_t classes, Term term, Column<double>& total) {
    Column<double> lanes[lane_count];
    const std::size_t used = classes < lane_count ? classes : lane_count;
    if (classes <= lane_count) {
        for (std::size_t c = 0; c < classes; ++c)
            for (std::size_t i = 0; i < column_count; ++i)
                lanes[c][i] = static_cast<double>(T{0} + term(c, i));
    } else {
        Column<T> partial[lane_count];
        for (std::size_t start = 0; start < classes; start += tile_size) {
            const std::size_t count = classes - start < tile_size ? classes - start : tile_size;
            for (std::size_t c = 0; c < lane_count; ++c)
                for (std::size_t i = 0; i < column_count; ++i)
                    partial[c][i] = c < count ? T{0} + term(start + c, i) : T{0};
            for (std::size_t c = lane_count; c < count; ++c)
                for (std::size_t i = 0; i < column_count; ++i)
                    partial[c % lane_count][i] += term(start + c, i);
            for (std::size_t lane = 0; lane < lane_count; ++lane)
                for (std::size_t i = 0; i < column_count; ++i)
                    lanes[lane][i] =
                        (start == 0 ? 0.0 : lanes[lane][i]) + static_cast<double>(partial[lane][i]);
        }
    }
    for (std::size_t half = lane_count / 2; half > 0; half /= 2)
        for (std::size_t lane = 0; lane < half && lane + half < used; ++lane)
            for (std::size_t i = 0; i < column_count; ++i) lanes[lane][i] += lanes[lane + half][i];
    for (std::size_t i = 0; i < column_count; ++i) total[i] = lanes[0][i];
}

template <class T>
void cross_entropy_columns(const CrossEntropyBlock& block) {
    const std::size_t classes = block.classes;
    const CrossEntropyScalars<T> scalars(block);
    const T* weight = static_cast<const T*>(block.weight);
    const T cap = static_cast<T>(block.softcap);
    const bool capped = block.softcap != 0.0;
    auto* const x = static_cast<Column<T>*>(block.scratch);  // logits, then e, then the gradient
    auto* const pulls = x + classes;                         // if the targets are probabilities
    auto* const slopes = scalars.soft ? pulls + classes : pulls;  // if capped
    const Column<T> zeros{};

    for (std::size_t first = 0; first < block.positions; first += column_count) {
        const std::size_t left = block.positions - first;
        const std::size_t width = left < column_count ? left : column_count;
        load_columns(block.logits, block, first, x);
        if (capped)
            for (std::size_t c = 0; c < classes; ++c)
                for (std::size_t i = 0; i < column_count; ++i) {
                    const SoftCap<T> soft = soft_cap(x[c][i], cap);
                    x[c][i] = soft.value;
                    slopes[c][i] = soft.slope;
                }
        Column<T> top;
        largest_columns(x, classes, top);

        // The pivots, and what hangs on the targets.
        Column<Index<T>> pivot, best, likely_at;
        Column<T> own, at_pivot;
        Column<double> share, rest, distance, pull_at_pivot;
        bool ignored[column_count] = {}, any_ignored = false;
        for (std::size_t i = 0; i < column_count; ++i) {
            rest[i] = scalars.rest;
            share[i] = scalars.keep;
            distance[i] = pull_at_pivot[i] = 0.0;
        }
        if (scalars.soft || block.correct) first_index_columns(x, classes, top, best);
        if (scalars.soft) {
            load_columns(block.probabilities, block, first, pulls);
            if (block.correct) {
                Column<T> likely;
                largest_columns(pulls, classes, likely);
                first_index_columns(pulls, classes, likely, likely_at);
            }
            for (std::size_t i = 0; i < column_count; ++i) pivot[i] = best[i];
            for (std::size_t c = 0; c < classes; ++c)
                for (std::size_t i = 0; i < column_count; ++i)
                    pulls[c][i] = scalars.pull(weight, c, pulls[c][i]);
            sum_columns<T>(
                classes,
                [&](std::size_t c, std::size_t i) {
                    return distance_term(pulls[c][i], top[i] - x[c][i]);
                },
                distance);
            replace_columns(pulls, classes, pivot, zeros, own);
            sum_columns<T>(
                classes, [&](std::size_t c, std::size_t i) { return pulls[c][i]; }, rest);
            for (std::size_t i = 0; i < column_count; ++i) share[i] = static_cast<double>(own[i]);
        } else {
            for (std::size_t i = 0; i < column_count; ++i) {
                const std::int64_t target = block.targets[first + (i < width ? i : 0)];
                ignored[i] = target == block.ignore_index;
                any_ignored |= ignored[i];
                pivot[i] = ignored[i] ? Index<T>{0} : static_cast<Index<T>>(target);
            }
            if (weight)
                for (std::size_t i = 0; i < column_count; ++i)
                    share[i] = scalars.keep * static_cast<double>(weight[pivot[i]]);
            if (scalars.pulls) {
                sum_columns<T>(
                    classes,
                    [&](std::size_t c, std::size_t i) {
                        return distance_term(weight ? weight[c] : T{1}, top[i] - x[c][i]);
                    },
                    distance);
                for (std::size_t i = 0; i < column_count; ++i) {
                    distance[i] *= scalars.pull_scale;
                    pull_at_pivot[i] =
                        scalars.smooth * (weight ? static_cast<double>(weight[pivot[i]]) : 1.0);
                }
            }
        }

        Column<T> x_at_pivot;
        for (T& value : x_at_pivot) value = T{0};
        for (T& value : at_pivot) value = T{0};
        for (std::size_t c = 0; c < classes; ++c)
            for (std::size_t i = 0; i < column_count; ++i) {
                const bool here = pivot[i] == static_cast<Index<T>>(c);
                const T e = exp_scaled(x[c][i] - top[i]);
                x_at_pivot[i] = here ? x[c][i] : x_at_pivot[i];
                at_pivot[i] = here ? e : at_pivot[i];
                x[c][i] = here ? T{0} : e;
            }
        Column<double> others, losses, log_sum_exp;
        Column<T> factor, unscale, pivot_grad;
        sum_columns<T>(classes, [&](std::size_t c, std::size_t i) { return x[c][i]; }, others);
        for (std::size_t i = 0; i < column_count; ++i) {
            const double at_top = static_cast<double>(top[i]);
            const PositionSums sums{at_top,      at_top - static_cast<double>(x_at_pivot[i]),
                                    others[i],   static_cast<double>(at_pivot[i]),
                                    share[i],    rest[i],
                                    distance[i], pull_at_pivot[i]};
            const PositionResult result = finish(sums, block.z_loss, block.grad_scale);
            losses[i] = result.loss;
            log_sum_exp[i] = result.log_sum_exp;
            pivot_grad[i] = static_cast<T>(result.pivot_grad);
            factor[i] = static_cast<T>(result.factor);
            unscale[i] = static_cast<T>(result.unscale);
        }
        for (std::size_t i = 0; i < width; ++i)
            block.losses[first + i] = ignored[i] ? 0.0 : losses[i];
        if (block.log_sum_exp)
            for (std::size_t i = 0; i < width; ++i)
                block.log_sum_exp[first + i] = ignored[i] ? 0.0 : log_sum_exp[i];
        if (block.correct)
            for (std::size_t i = 0; i < width; ++i) {
                const bool hit = scalars.soft ? likely_at[i] == pivot[i] : best[i] == pivot[i];
                block.correct[first + i] = hit && !ignored[i] && log_sum_exp[i] == log_sum_exp[i];
            }
        if (block.grad.data == nullptr) continue;

        const T scale = static_cast<T>(scalars.pull_scale * block.grad_scale);
        const auto set_grad = [&](auto pull) {
            for (std::size_t c = 0; c < classes; ++c)
                for (std::size_t i = 0; i < column_count; ++i) {
                    const T value = x[c][i] * unscale[i] * factor[i] - pull(c, i);
                    x[c][i] = pivot[i] == static_cast<Index<T>>(c) ? pivot_grad[i] : value;
                }
        };
        if (scalars.soft)
            set_grad([&](std::size_t c, std::size_t i) { return scale * pulls[c][i]; });
        else if (scalars.pulls)
            set_grad([&](std::size_t c, std::size_t) {
                return weight ? scale * weight[c] : scale * T{1};
            });
        else
            set_grad([](std::size_t, std::size_t) { return T{0}; });
        if (capped)
            for (std::size_t c = 0; c < classes; ++c)
                for (std::size_t i = 0; i < column_count; ++i) x[c][i] *= slopes[c][i];
        if (any_ignored)
            for (std::size_t c = 0; c < classes; ++c)
                for (std::size_t i = 0; i < column_count; ++i)
                    x[c][i] = ignored[i] ? T{0} : x[c][i];
        store_columns(x, block.grad, block, first, width);
    }
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA

#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC pop_options
#endif
