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
    const double pull_of_z = z_loss == 0.0 ? 0.0 : 2.0 * z_loss * result.log_sum_exp;
    // What does not count is not multiplied: its other factor may be infinite.
    const double own = at.share == 0.0 ? 0.0 : at.share * (at.deficit + log_sum);
    const double square = z_loss == 0.0 ? 0.0 : z_loss * (result.log_sum_exp * result.log_sum_exp);
    result.loss = own + (at.rest * log_sum + at.distance) + square;
    const double factor = (at.share + (at.rest + pull_of_z)) * share_of * grad_scale;
    const double size = factor < 0.0 ? -factor : factor;
    result.factor = size < 0x1p-120 ? factor * exp_scale : factor;
    result.unscale = size < 0x1p-120 ? 1.0 / exp_scale : 1.0;
    result.pivot_grad = ((at.rest + pull_of_z) * (at.at_pivot * share_of) -
                         at.share * (at.others * share_of) - at.pull_at_pivot) *
                        grad_scale;
    return result;
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
        const T* next = next_class_row<T>(block.logits, block, row);
        if (capped) {
            for (std::size_t c = 0; c < classes; ++c) scratch[c] = soft_cap(logits[c], cap).value;
            x = scratch;
        }
        const Top<T> found = scalars.soft ? find_top(x, classes) : Top<T>{largest(x, classes), 0};
        const T top = found.value;
        const std::size_t pivot =
            scalars.soft ? found.index : static_cast<std::size_t>(block.targets[row]);
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
        LaneSum others{0.0}, distance, rest;
        if (scalars.pulls) distance = rest = LaneSum{0.0};
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
            exp_lanes(in, count, top, e, next ? next + start : nullptr);
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
            } else if (capped) {
                for (std::size_t i = 0; i < count; ++i) tile[i] = e[i] * unscale * factor;
            } else {
                for (std::size_t i = 0; i < count; ++i) out[i] = e[i] * unscale * factor;
                continue;
            }
            // Apart, or the slope of every logit would be computed without a cap as well.
            if (capped)
                for (std::size_t i = 0; i < count; ++i)
                    out[i] = tile[i] * soft_cap(logits[start + i], cap).slope;
            else
                for (std::size_t i = 0; i < count; ++i) out[i] = tile[i];
        }
        grad[pivot] = static_cast<T>(result.pivot_grad) * slope_at_pivot;
    }
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
        Column<Index<T>> pivot, best, likely_at, ignored{};  // ignored: 0 or -1
        Index<T> any_ignored = 0;
        Column<T> own, x_at_pivot, at_pivot;
        Column<double> share, rest, distance, pull_at_pivot;
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
            pick_columns(pulls, pivot, own);
            sum_columns<T>(
                classes,
                [&](std::size_t c, std::size_t i) {
                    return except_at<T>(c, pivot[i], T{0}, pulls[c][i]);
                },
                rest);
            for (std::size_t i = 0; i < column_count; ++i) share[i] = static_cast<double>(own[i]);
        } else {
            std::int64_t targets[column_count];
            for (std::size_t i = 0; i < width; ++i) targets[i] = block.targets[first + i];
            for (std::size_t i = width; i < column_count; ++i) targets[i] = targets[0];
            for (std::size_t i = 0; i < column_count; ++i) {
                ignored[i] = targets[i] == block.ignore_index ? -1 : 0;
                any_ignored |= ignored[i];
                pivot[i] = static_cast<Index<T>>(targets[i]) & ~ignored[i];
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

        pick_columns(x, pivot, x_at_pivot);
        for (std::size_t i = 0; i < column_count; ++i)
            at_pivot[i] = exp_scaled(x_at_pivot[i] - top[i]);
        for (std::size_t c = 0; c < classes; ++c)
            for (std::size_t i = 0; i < column_count; ++i) x[c][i] = exp_scaled(x[c][i] - top[i]);
        Column<T> factor, unscale, pivot_grad;
        Column<double> others, losses, log_sum_exp;
        sum_columns<T>(
            classes,
            [&](std::size_t c, std::size_t i) { return except_at<T>(c, pivot[i], T{0}, x[c][i]); },
            others);
        for (std::size_t i = 0; i < column_count; ++i) {
            const double at_top = static_cast<double>(top[i]);
            const PositionSums sums{at_top,      at_top - static_cast<double>(x_at_pivot[i]),
                                    others[i],   static_cast<double>(at_pivot[i]),
                                    share[i],    rest[i],
                                    distance[i], pull_at_pivot[i]};
            const PositionResult result = finish(sums, block.z_loss, block.grad_scale);
            losses[i] = ignored[i] ? 0.0 : result.loss;
            log_sum_exp[i] = ignored[i] ? 0.0 : result.log_sum_exp;
            pivot_grad[i] = static_cast<T>(result.pivot_grad);
            factor[i] = static_cast<T>(result.factor);
            unscale[i] = static_cast<T>(result.unscale);
        }
        for (std::size_t i = 0; i < width; ++i) block.losses[first + i] = losses[i];
        if (block.log_sum_exp)
            for (std::size_t i = 0; i < width; ++i) block.log_sum_exp[first + i] = log_sum_exp[i];
        if (block.correct)
            for (std::size_t i = 0; i < width; ++i) {
                const bool hit = scalars.soft ? likely_at[i] == pivot[i] : best[i] == pivot[i];
                block.correct[first + i] = hit && !ignored[i] && log_sum_exp[i] == log_sum_exp[i];
            }
        if (block.grad.data == nullptr) continue;

        const T scale = static_cast<T>(scalars.pull_scale * block.grad_scale);
        const auto set_grad = [&](auto pull) {
            for (std::size_t c = 0; c < classes; ++c)
                for (std::size_t i = 0; i < column_count; ++i)
                    x[c][i] = except_at<T>(c, pivot[i], pivot_grad[i],
                                           x[c][i] * unscale[i] * factor[i] - pull(c, i));
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
        store_columns(x, block.grad, block, first);
    }
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
