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
// A position takes three passes: its sums, which need all logits once, then `finish`, then its
// gradient. m is known only when all logits have been seen. To read them from memory once, exp and
// the sums are computed tile by tile (tiles.hpp) from m_t, the largest logit of the tile. A sum of
// exp is then weighted with exp(m_t - m); to a distance m_t - x_c, m - m_t is added.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../arithmetic/block.hpp"
#include "../arithmetic/exp.hpp"
#include "../arithmetic/log.hpp"
#include "../arithmetic/sigmoid.hpp"
#include "../table.hpp"
#include "columns.hpp"
#include "rows.hpp"
#include "tiles.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

// What both kernels share ------------------------------------------------------------------------

// The sums of a position, named as at the head of this file. e_c, and the sums of them, are scaled
// by exp_scale.
struct PositionSums {
    double top, deficit, others, at_pivot;  // m, m - x_v, others, e_v
    double share, rest, distance;           // distance: the sum of pull_c (m - x_c)
    double pull_at_pivot;
};

struct PositionResult {
    double loss, log_sum_exp;
    // The gradient is e_c * factor - pull_c * grad_scale, and pivot_grad.
    double factor, pivot_grad;
};

// s - 1. Where the pivot is the largest, its e is exp_scale.
inline double sum_minus_one(double deficit, double others, double at_pivot) {
    return deficit == 0.0 ? others * (1.0 / exp_scale)
                          : (others + at_pivot) * (1.0 / exp_scale) - 1.0;
}

// `plain`: the share is 1, and nothing else pulls. The bits are those of the whole formula, because
// its zeros are positive.
template <bool plain>
inline PositionResult finish(const PositionSums& at, double log_sum,
                             const CrossEntropyOptions& options, double grad_scale) {
    const double share_of = 1.0 / (at.others + at.at_pivot);
    PositionResult result{};
    result.log_sum_exp = at.top + log_sum;
    if constexpr (plain) {
        result.loss = at.deficit + log_sum;
        result.factor = share_of * grad_scale;
        result.pivot_grad = (0.0 - at.others * share_of) * grad_scale;
    } else {
        const double z_loss = options.z_loss;
        const double pull_of_z = z_loss == 0.0 ? 0.0 : z_loss * (2.0 * result.log_sum_exp);
        // A factor of 0 is not multiplied, because the other factor may be infinite.
        const double own = at.share == 0.0 ? 0.0 : at.share * (at.deficit + log_sum);
        const double square =
            z_loss == 0.0 ? 0.0 : z_loss * (result.log_sum_exp * result.log_sum_exp);
        result.loss = own + (at.rest * log_sum + at.distance) + square;
        result.factor = (at.share + (at.rest + pull_of_z)) * share_of * grad_scale;
        result.pivot_grad = ((at.rest + pull_of_z) * (at.at_pivot * share_of) -
                             at.share * (at.others * share_of) - at.pull_at_pivot) *
                            grad_scale;
    }
    return result;
}

// What the classes of a block pull with: nothing, all alike or with their weights (the smoothing of
// class indices), or with probabilities.
template <class T>
struct Pulls {
    explicit Pulls(const CrossEntropyBlock& block)
        : soft(block.probabilities.data != nullptr),
          any(soft || block.options.label_smoothing != 0.0),
          weight(static_cast<const T*>(block.weight)),
          smooth(block.options.label_smoothing / static_cast<double>(block.classes)),
          keep(1.0 - block.options.label_smoothing),
          scale(soft ? 1.0 : smooth),
          grad_scale(static_cast<T>(scale * block.grad_scale)),
          rest(soft ? 0.0 : smooth * block.weight_sum) {}

    bool soft;        // the targets are probabilities
    bool any;         // whether there are pulls
    const T* weight;  // or nullptr for all 1
    double smooth, keep;
    double scale;  // pull_c is `scale` times what the functions return
    T grad_scale;  // the same in the gradient
    double rest;   // of a class index

    T of_class(std::size_t c) const { return weight ? weight[c] : T{1}; }
    T of_probability(std::size_t c, T probability) const {
        return of_class(c) * (static_cast<T>(keep) * probability + static_cast<T>(smooth));
    }
};

// A class that does not pull counts nothing, even if its logit is -inf.
template <class T>
T distance_term(T pull, T distance) {
    return pull == T{0} ? T{0} : pull * distance;
}

inline bool is_capped(const CrossEntropyBlock& block) { return block.options.logit_softcap != 0.0; }

// Along rows -------------------------------------------------------------------------------------

template <class T>
struct RowScratch {
    explicit RowScratch(const CrossEntropyBlock& block)
        : parts{block.scratch},
          tiles(parts, block.classes),
          pull_sums(parts.take<double>(tiles.count)),
          capped(parts.take<T>(is_capped(block) ? block.classes : 0)) {}

    ScratchParts parts;
    RowTiles tiles;
    double* pull_sums;  // of each tile, if there are several
    T* capped;          // the logits after the softcap, and then their e
};

// A position.
template <class T>
struct Row {
    const T* logits;
    const T* x;              // after the softcap
    const T* probabilities;  // or nullptr
    T* grad;                 // or nullptr
    T* e;                    // where e is stored for the gradient, or nullptr
    const T* next;           // the logits of the next position, or nullptr
    std::size_t pivot;
};

// Calls use(pull), where pull(i) is that of class start + i. `memory`: for those of probabilities.
template <class T, class Use>
FASTOPT_INLINE void with_pulls(const Pulls<T>& pulls, const T* probabilities, std::size_t start,
                               std::size_t count, T (&memory)[tile_size], Use use) {
    if (!pulls.soft && !pulls.weight) return use([](std::size_t) { return T{1}; });
    if (pulls.soft)
        for (std::size_t i = 0; i < count; ++i)
            memory[i] = pulls.of_probability(start + i, probabilities[start + i]);
    const T* const of_tile = pulls.soft ? memory : pulls.weight + start;
    use([of_tile](std::size_t i) { return of_tile[i]; });
}

// The sums of a position; e goes to row.e. `hit`: whether the pivot is the first of the largest.
template <class T>
FASTOPT_INLINE PositionSums sum_row(const CrossEntropyBlock& block, const Pulls<T>& pulls,
                                    const RowScratch<T>& scratch, const Row<T>& row, bool& hit) {
    const RowTiles& tiles = scratch.tiles;
    const bool read_before = row.probabilities || row.x != row.logits;
    const T x_at_pivot = row.x[row.pivot];
    T top = minus_infinity<T>;  // so far
    T memory[tile_size];
    LaneSum distance, rest;
    if (pulls.any) distance = rest = LaneSum{0.0};
    for (std::size_t t = 0; t < tiles.count; ++t) {
        const std::size_t start = t * tile_size;
        const std::size_t count = tile_length(block.classes, start);
        const std::size_t left_out = row.pivot - start;  // the pivot, if less than `count`
        const T* const in = row.x + start;
        const T tile_top = largest(in, count);
        const T base = base_of(tile_top);
        if (block.correct && left_out < count)
            hit = x_at_pivot > top && x_at_pivot == tile_top &&
                  first_index(in, count, tile_top) == left_out;
        tiles.tops[t] = static_cast<double>(tile_top);
        top = larger(top, tile_top);
        if (pulls.any)
            with_pulls(pulls, row.probabilities, start, count, memory, [&](auto pull) {
                distance.add<T>(
                    count, [&](std::size_t i) { return distance_term(pull(i), base - in[i]); });
                if (tiles.count == 1) return;
                LaneSum all{0.0};
                all.add<T>(count, pull);
                scratch.pull_sums[t] = all.total();
            });
        if (pulls.soft) {
            if (left_out < count) memory[left_out] = T{0};
            rest.add<T>(count, [&](std::size_t i) { return memory[i]; });
        }
        // What is read from memory next: the next tile, or the next row if this one was read
        // before.
        const T* ahead = t + 1 < tiles.count ? in + tile_size : row.next;
        if (read_before) ahead = row.next ? row.next + start : nullptr;
        if (row.e) {
            T* const to = row.e + start;
            tiles.sums[t] = sum_exp(in, count, base, left_out, ahead, written_later(in, to),
                                    [to](std::size_t i, T e) { to[i] = e; });
        } else {
            tiles.sums[t] =
                sum_exp<T>(in, count, base, left_out, ahead, nullptr, [](std::size_t, T) {});
        }
    }
    hit = hit && x_at_pivot == top;

    const auto weight = static_cast<double>(pulls.of_class(row.pivot));
    PositionSums sums{};
    sums.top = static_cast<double>(top);
    sums.deficit = sums.top - static_cast<double>(x_at_pivot);
    sums.at_pivot = static_cast<double>(exp_scaled(x_at_pivot - top));
    sums.others = tiles.weigh(sums.top);
    sums.share = pulls.keep * weight;
    sums.rest = pulls.rest;
    if (!pulls.any) return sums;
    double beyond = 0.0;  // what the distances from m_t leave out
    if (tiles.count > 1)
        for (std::size_t t = 0; t < tiles.count; ++t)
            beyond += distance_term(scratch.pull_sums[t], sums.top - tiles.tops[t]);
    sums.distance = pulls.scale * (distance.total() + beyond);
    sums.pull_at_pivot = pulls.smooth * weight;
    if (pulls.soft) {
        const T own = pulls.of_probability(row.pivot, row.probabilities[row.pivot]);
        sums.share = static_cast<double>(own);
        sums.rest = rest.total();
        sums.pull_at_pivot = 0.0;
    }
    return sums;
}

inline void store_result(const CrossEntropyBlock& block, std::size_t position,
                         const PositionResult& result, bool hit) {
    block.losses[position] = result.loss;
    if (block.log_sum_exp) block.log_sum_exp[position] = result.log_sum_exp;
    if (block.correct) block.correct[position] = hit && result.log_sum_exp == result.log_sum_exp;
}

// The gradient of a position, from e.
template <class T>
void write_row_grad(const CrossEntropyBlock& block, const Pulls<T>& pulls,
                    const RowScratch<T>& scratch, const Row<T>& row, const PositionResult& result) {
    const T cap = static_cast<T>(block.options.logit_softcap);
    const T scale = pulls.grad_scale;
    const T pivot_grad = static_cast<T>(result.pivot_grad);
    T memory[tile_size];
    T before_cap[tile_size];
    for (std::size_t start = 0; start < block.classes; start += tile_size) {
        const std::size_t count = tile_length(block.classes, start);
        const TileFactor<T> by =
            tile_factor<T>(result.factor, scratch.tiles.weights[start / tile_size]);
        const auto write = [&](const T* e, T* to) {
            const auto write_with = [&](auto pull) {
                for (std::size_t i = 0; i < count; ++i)
                    to[i] = e[i] * by.unscale * by.factor - pull(i);
            };
            if (!pulls.any) return write_with([](std::size_t) { return T{0}; });
            with_pulls(pulls, row.probabilities, start, count, memory, [&](auto pull) {
                write_with([&](std::size_t i) { return scale * pull(i); });
            });
        };
        T* const out = row.grad + start;
        if (!is_capped(block)) {
            write(out, out);  // where e is
            continue;
        }
        write(row.e + start, before_cap);
        if (row.pivot - start < count) before_cap[row.pivot - start] = pivot_grad;
        each_block<T>(
            count, [&](std::size_t i) { return row.logits[start + i]; },
            [&](auto x, auto use) {
                soft_cap<T>(x, cap, [&](std::size_t i, T, T slope) { use(i, slope); });
            },
            [&](std::size_t i, T slope) { out[i] = before_cap[i] * slope; });
    }
    if (!is_capped(block)) row.grad[row.pivot] = pivot_grad;
}

template <class T>
void cross_entropy_rows(const CrossEntropyBlock& block) {
    const std::size_t classes = block.classes;
    const Pulls<T> pulls(block);
    const auto scratch = scratch_of<RowScratch<T>>(block);
    const T cap = static_cast<T>(block.options.logit_softcap);
    for (std::size_t position = 0; position < block.positions; ++position) {
        Row<T> row{};
        row.grad = class_row<T>(block.grad, block, position);
        if (!pulls.soft && block.targets[position] == block.options.ignore_index) {
            store_result(block, position, {}, false);
            if (row.grad)
                for (std::size_t c = 0; c < classes; ++c) row.grad[c] = T{0};
            continue;
        }
        row.x = row.logits = class_row<const T>(block.logits, block, position);
        row.e = row.grad;
        row.probabilities = class_row<const T>(block.probabilities, block, position);
        row.next = next_class_row<T>(block.logits, block, position);
        if (is_capped(block)) {
            each_block<T>(
                classes, [&](std::size_t c) { return row.logits[c]; },
                [&](auto x, auto use) {
                    soft_cap<T>(x, cap, [&](std::size_t i, T value, T) { use(i, value); });
                },
                [&](std::size_t c, T value) { scratch.capped[c] = value; });
            row.x = row.e = scratch.capped;
        }
        row.pivot = pulls.soft ? largest_index(row.x, classes)
                               : static_cast<std::size_t>(block.targets[position]);
        bool hit = false;
        const PositionSums sums = sum_row(block, pulls, scratch, row, hit);
        const double log_sum = log1p(sum_minus_one(sums.deficit, sums.others, sums.at_pivot));
        const PositionResult result = finish<false>(sums, log_sum, block.options, block.grad_scale);
        if (const T* const p = row.probabilities; p && block.correct)
            hit = hit && first_index(p, classes, largest(p, classes)) == row.pivot;
        store_result(block, position, result, hit);
        if (row.grad) write_row_grad(block, pulls, scratch, row, result);
    }
}

// Along columns ----------------------------------------------------------------------------------

template <class T>
struct ColumnScratch {
    explicit ColumnScratch(const CrossEntropyBlock& block)
        : parts{block.scratch},
          x(parts.take<Column<T>>(block.classes + 1)),
          pulls(parts.take<Column<T>>(block.probabilities.data ? block.classes : 0)),
          slopes(parts.take<Column<T>>(is_capped(block) ? block.classes + 1 : 0)),
          tiles(parts.take<ColumnTile<T>>(tile_count(block.classes))) {}

    ScratchParts parts;
    Column<T>* x;       // the logits, then e, then the gradient
    Column<T>* pulls;   // of probabilities
    Column<T>* slopes;  // of the softcap
    ColumnTile<T>* tiles;
};

// Positions side by side, from `first` on. The functions are called in their order.
template <class T>
struct ColumnPass {
    explicit ColumnPass(const CrossEntropyBlock& given)
        : block(given),
          pulls(given),
          scratch(scratch_of<ColumnScratch<T>>(given)),
          classes(given.classes) {}

    const CrossEntropyBlock& block;
    const Pulls<T> pulls;
    const ColumnScratch<T> scratch;
    const std::size_t classes;
    std::size_t first;
    Column<Index<T>> pivot;
    Column<Index<T>> best;     // the first class of the largest logit
    Column<Index<T>> wanted;   // the class that `best` should be
    Column<Index<T>> ignored;  // -1, or 0
    bool any_ignored;
    // As in PositionSums.
    Column<T> top, x_at_pivot, at_pivot;
    Column<double> others, share, rest, distance, pull_at_pivot;
    // As in PositionResult.
    Column<double> loss, log_sum_exp, factor;
    Column<T> pivot_grad;

    void load_logits() {
        load_columns(block.logits, block, first, scratch.x);
        if (is_capped(block)) {
            const T cap = static_cast<T>(block.options.logit_softcap);
            for (std::size_t c = 0; c < classes; c += 2) {
                T *const x = scratch.x[c], *const slopes = scratch.slopes[c];
                soft_cap<T>([&](std::size_t i) { return x[i]; }, cap,
                            [&](std::size_t i, T value, T slope) {
                                x[i] = value;
                                slopes[i] = slope;
                            });
            }
        }
        Column<T> found;  // a local, because for the compiler what is passed on may overlap x
        find_tiles(scratch.x, classes, scratch.tiles, found);
        for (std::size_t i = 0; i < column_count; ++i) top[i] = found[i];
    }

    // Probabilities become pulls.
    void load_targets() {
        any_ignored = false;
        if (pulls.soft || block.correct) first_index_columns(scratch.x, classes, top, best);
        if (pulls.soft) {
            load_columns(block.probabilities, block, first, scratch.pulls);
            if (block.correct) {
                Column<T> likely;
                largest_columns(scratch.pulls, classes, likely);
                first_index_columns(scratch.pulls, classes, likely, wanted);
            }
            for (std::size_t i = 0; i < column_count; ++i) {
                pivot[i] = best[i];
                ignored[i] = 0;
            }
            for (std::size_t c = 0; c < classes; ++c)
                for (std::size_t i = 0; i < column_count; ++i)
                    scratch.pulls[c][i] = pulls.of_probability(c, scratch.pulls[c][i]);
            return;
        }
        const std::size_t width = column_width(block, first);
        std::int64_t targets[column_count];
        for (std::size_t i = 0; i < width; ++i) targets[i] = block.targets[first + i];
        for (std::size_t i = width; i < column_count; ++i) targets[i] = targets[0];
        Index<T> any = 0;
        for (std::size_t i = 0; i < column_count; ++i) {
            ignored[i] = targets[i] == block.options.ignore_index ? -1 : 0;
            any |= ignored[i];
            wanted[i] = pivot[i] = static_cast<Index<T>>(targets[i]) & ~ignored[i];
        }
        any_ignored = any != 0;
    }

    void sum_pulls() {
        for (std::size_t i = 0; i < column_count; ++i) {
            const auto weight = pulls.weight ? static_cast<double>(pulls.weight[pivot[i]]) : 1.0;
            share[i] = pulls.keep * weight;
            rest[i] = pulls.rest;
            distance[i] = 0.0;
            pull_at_pivot[i] = pulls.any ? pulls.smooth * weight : 0.0;
        }
        if (!pulls.any) return;
        if (!pulls.soft)
            return sum_distances([&](std::size_t c, std::size_t) { return pulls.of_class(c); });
        const auto pull = [&](std::size_t c, std::size_t i) { return scratch.pulls[c][i]; };
        sum_distances(pull);
        sum_columns<T>(
            classes,
            [&](std::size_t c, std::size_t i) {
                return except_at<T>(c, pivot[i], T{0}, pull(c, i));
            },
            rest);
        Column<T> own;
        pick_columns(scratch.pulls, pivot, own);
        for (std::size_t i = 0; i < column_count; ++i) {
            share[i] = static_cast<double>(own[i]);
            pull_at_pivot[i] = 0.0;
        }
    }

    template <class Pull>
    void sum_distances(Pull pull) {
        sum_columns<T>(
            classes,
            [&](std::size_t c, std::size_t i) {
                return distance_term(pull(c, i),
                                     scratch.tiles[c / tile_size].base[i] - scratch.x[c][i]);
            },
            distance);
        Column<double> beyond{};  // what the distances from m_t leave out
        for (std::size_t start = 0; start < classes && classes > tile_size; start += tile_size) {
            Column<double> all;
            sum_columns<T>(
                tile_length(classes, start),
                [&](std::size_t c, std::size_t i) { return pull(start + c, i); }, all);
            const Column<T>& tile_top = scratch.tiles[start / tile_size].top;
            for (std::size_t i = 0; i < column_count; ++i)
                beyond[i] += distance_term(
                    all[i], static_cast<double>(top[i]) - static_cast<double>(tile_top[i]));
        }
        for (std::size_t i = 0; i < column_count; ++i)
            distance[i] = pulls.scale * (distance[i] + beyond[i]);
    }

    // The logits become e.
    void sum_exp() {
        pick_columns(scratch.x, pivot, x_at_pivot);
        exp_scaled<T, column_count>([&](std::size_t i) { return x_at_pivot[i] - top[i]; },
                                    [&](std::size_t i, T e) { at_pivot[i] = e; });
        exp_columns(
            scratch.x, classes, scratch.tiles, others,
            [&](std::size_t c, std::size_t i, T e) { return except_at<T>(c, pivot[i], T{0}, e); });
    }

    template <bool plain>
    void finish_all() {
        Column<double> deficit, log_sum;
        for (std::size_t i = 0; i < column_count; ++i)
            deficit[i] = static_cast<double>(top[i]) - static_cast<double>(x_at_pivot[i]);
        log1p(
            [&](std::size_t i) {
                return sum_minus_one(deficit[i], others[i], static_cast<double>(at_pivot[i]));
            },
            log_sum);
        for (std::size_t i = 0; i < column_count; ++i) {
            PositionSums sums{};
            sums.top = static_cast<double>(top[i]);
            sums.deficit = deficit[i];
            sums.others = others[i];
            sums.at_pivot = static_cast<double>(at_pivot[i]);
            if constexpr (!plain) {
                sums.share = share[i];
                sums.rest = rest[i];
                sums.distance = distance[i];
                sums.pull_at_pivot = pull_at_pivot[i];
            }
            const PositionResult result =
                finish<plain>(sums, log_sum[i], block.options, block.grad_scale);
            loss[i] = ignored[i] ? 0.0 : result.loss;
            log_sum_exp[i] = ignored[i] ? 0.0 : result.log_sum_exp;
            factor[i] = result.factor;
            pivot_grad[i] = static_cast<T>(result.pivot_grad);
        }
    }

    void store_results() const {
        const std::size_t width = column_width(block, first);
        for (std::size_t i = 0; i < width; ++i) block.losses[first + i] = loss[i];
        if (block.log_sum_exp)
            for (std::size_t i = 0; i < width; ++i) block.log_sum_exp[first + i] = log_sum_exp[i];
        if (block.correct)
            for (std::size_t i = 0; i < width; ++i)
                block.correct[first + i] =
                    best[i] == wanted[i] && !ignored[i] && log_sum_exp[i] == log_sum_exp[i];
    }

    // e becomes the gradient.
    void write_grad() const {
        Column<T>* const x = scratch.x;
        const T scale = pulls.grad_scale;
        const auto set_grad = [&](auto pull) {
            scale_columns(x, classes, scratch.tiles, factor,
                          [&](std::size_t c, std::size_t i, T scaled) {
                              return except_at<T>(c, pivot[i], pivot_grad[i], scaled - pull(c, i));
                          });
        };
        if (pulls.soft)
            set_grad([&](std::size_t c, std::size_t i) { return scale * scratch.pulls[c][i]; });
        else if (pulls.any)
            set_grad([&](std::size_t c, std::size_t) { return scale * pulls.of_class(c); });
        else
            set_grad([](std::size_t, std::size_t) { return T{0}; });
        if (is_capped(block))
            for (std::size_t c = 0; c < classes; ++c)
                for (std::size_t i = 0; i < column_count; ++i) x[c][i] *= scratch.slopes[c][i];
        if (any_ignored)
            for (std::size_t c = 0; c < classes; ++c)
                for (std::size_t i = 0; i < column_count; ++i)
                    x[c][i] = ignored[i] ? T{0} : x[c][i];
        store_columns(x, block.grad, block, first);
    }
};

template <class T>
void cross_entropy_columns(const CrossEntropyBlock& block) {
    ColumnPass<T> columns(block);
    const bool plain = !columns.pulls.any && block.weight == nullptr && block.options.z_loss == 0.0;
    for (std::size_t first = 0; first < block.positions; first += column_count) {
        columns.first = first;
        columns.load_logits();
        columns.load_targets();
        if (!plain) columns.sum_pulls();
        columns.sum_exp();
        plain ? columns.template finish_all<true>() : columns.template finish_all<false>();
        columns.store_results();
        if (block.grad.data) columns.write_grad();
    }
}

template <class T>
constexpr ClassKernels<CrossEntropyBlock> cross_entropy = {
    class_kernel<RowScratch<T>>(cross_entropy_rows<T>),
    class_kernel<ColumnScratch<T>>(cross_entropy_columns<T>)};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
