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
// m is known only when all logits have been seen. So that they are read from memory once, exp and
// the sums are computed tile by tile (classes.hpp) from m_t, the largest logit of the tile; what
// comes of a tile is then weighed by exp(m_t - m), or m - m_t is added.
//
// Along rows and along columns: see classes.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../arithmetic/functions.hpp"
#include "../table.hpp"
#include "classes.hpp"

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
    // The gradient is e_c * factor - pull_c * grad_scale, and pivot_grad.
    double factor, pivot_grad;
};

// `plain`: the share is 1, and nothing else pulls. The bits are those of the whole formula, whose
// zeros are positive.
template <bool plain>
inline PositionResult finish(const PositionSums& at, double z_loss, double grad_scale) {
    const double sum = at.others + at.at_pivot;
    const double share_of = 1.0 / sum;  // of what all add up to
    // Where the pivot is the largest, its e is exp_scale.
    const double log_sum =
        log1p(at.deficit == 0.0 ? at.others * (1.0 / exp_scale) : sum * (1.0 / exp_scale) - 1.0);
    PositionResult result{};
    result.log_sum_exp = at.top + log_sum;
    if constexpr (plain) {
        result.loss = at.deficit + log_sum;
        result.factor = share_of * grad_scale;
        result.pivot_grad = (0.0 - at.others * share_of) * grad_scale;
    } else {
        const double pull_of_z = z_loss == 0.0 ? 0.0 : z_loss * (2.0 * result.log_sum_exp);
        // What does not count is not multiplied: its other factor may be infinite.
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
    const bool one_pass = !scalars.soft && !capped;
    const std::size_t tiles = tile_count(classes);
    double only[3];  // of each tile its largest logit, later its weight, its sum, and its pulls'
    double* const tops = block.scratch ? static_cast<double*>(block.scratch) : only;
    double* const tile_sums = tops + tiles;
    double* const tile_pulls = tile_sums + tiles;
    T* const scratch = reinterpret_cast<T*>(tile_pulls + tiles);  // if capped
    T tile[tile_size];
    T pull_tile[tile_size];  // of probabilities

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
        const T* x = logits;
        const T* next = next_class_row<T>(block.logits, block, row);
        if (capped) {
            for (std::size_t c = 0; c < classes; ++c) scratch[c] = soft_cap(logits[c], cap).value;
            x = scratch;
        }
        const std::size_t pivot =
            scalars.soft ? largest_index(x, classes) : static_cast<std::size_t>(block.targets[row]);
        const T x_at_pivot = x[pivot];
        T top = -static_cast<T>(__builtin_inff());  // so far
        bool leads = false;  // whether the pivot is the first of the largest so far
        PositionSums sums{};

        // Calls use(pull), where pull(i) is that of class start + i.
        const auto with_pulls = [&](std::size_t start, std::size_t count, auto use) {
            if (!scalars.soft && !weight) return use([](std::size_t) { return T{1}; });
            if (scalars.soft)
                for (std::size_t i = 0; i < count; ++i)
                    pull_tile[i] = scalars.pull(weight, start + i, probabilities[start + i]);
            const T* of_tile = scalars.soft ? pull_tile : weight + start;
            use([of_tile](std::size_t i) { return of_tile[i]; });
        };
        LaneSum distance, rest;
        if (scalars.pulls) distance = rest = LaneSum{0.0};
        T* e_row = capped ? scratch : grad;
        for (std::size_t start = 0; start < classes; start += tile_size) {
            const std::size_t count = tile_length(classes, start);
            const bool has_pivot = pivot - start < count;
            const T* in = x + start;
            const T tile_top = largest(in, count);
            const T base = base_of(tile_top);
            tops[start / tile_size] = static_cast<double>(tile_top);
            if (has_pivot && block.correct)
                leads = x_at_pivot > top && x_at_pivot == tile_top &&
                        first_index(in, count, tile_top) == pivot - start;
            top = tile_top > top ? tile_top : top;
            if (scalars.pulls) {
                with_pulls(start, count, [&](auto pull) {
                    distance.add<T>(
                        count, [&](std::size_t i) { return distance_term(pull(i), base - in[i]); });
                    if (tiles > 1) {
                        LaneSum all{0.0};
                        all.add<T>(count, pull);
                        tile_pulls[start / tile_size] = all.total();
                    }
                    if (!has_pivot) return;
                    const auto own = static_cast<double>(pull(pivot - start));
                    sums.share = scalars.soft ? own : 0.0;
                    sums.pull_at_pivot = scalars.soft ? 0.0 : scalars.smooth * own;
                });
                if (scalars.soft) {
                    if (has_pivot) pull_tile[pivot - start] = T{0};
                    rest.add<T>(count, [&](std::size_t i) { return pull_tile[i]; });
                }
            }
            // What is read from memory next.
            const T* ahead = next;
            if (!one_pass && next)
                ahead = next + start;
            else if (one_pass && start + tile_size < classes)
                ahead = in + tile_size;
            T at{};
            double& sum = tile_sums[start / tile_size];
            if (e_row)
                sum = sum_exp(in, count, base, pivot - start, at, ahead,
                              write_lanes(in, e_row + start));
            else
                sum = sum_exp(in, count, base, pivot - start, at, ahead,
                              [](std::size_t, const T*, std::size_t) {});
        }
        sums.top = static_cast<double>(top);
        sums.deficit = sums.top - static_cast<double>(x_at_pivot);
        sums.at_pivot = static_cast<double>(exp_scaled(x_at_pivot - top));
        if (scalars.pulls) {
            double beyond = 0.0;  // the tiles' largest logits
            if (tiles > 1)
                for (std::size_t t = 0; t < tiles; ++t)
                    beyond += distance_term(tile_pulls[t], sums.top - tops[t]);
            sums.distance = scalars.pull_scale * (distance.total() + beyond);
        }
        sums.others = weigh_tiles(tops, tile_sums, tiles, sums.top);
        const double* const weights = tops;
        sums.rest = scalars.soft ? rest.total() : scalars.rest;
        if (!scalars.soft)
            sums.share = scalars.keep * (weight ? static_cast<double>(weight[pivot]) : 1.0);

        const PositionResult result = finish<false>(sums, block.z_loss, block.grad_scale);
        block.losses[row] = result.loss;
        if (block.log_sum_exp) block.log_sum_exp[row] = result.log_sum_exp;
        if (block.correct) {
            bool hit = leads && x_at_pivot == top;
            if (scalars.soft)
                hit = hit &&
                      first_index(probabilities, classes, largest(probabilities, classes)) == pivot;
            block.correct[row] = hit && result.log_sum_exp == result.log_sum_exp;
        }
        if (!grad) continue;

        const T pull_scale = static_cast<T>(scalars.pull_scale * block.grad_scale);
        const T slope_at_pivot = capped ? soft_cap(logits[pivot], cap).slope : T{1};
        for (std::size_t start = 0; start < classes; start += tile_size) {
            const std::size_t count = tile_length(classes, start);
            const TileFactor<T> by = tile_factor<T>(result.factor, weights[start / tile_size]);
            const T* e = e_row + start;
            T* out = grad + start;
            if (scalars.pulls) {
                with_pulls(start, count, [&](auto pull) {
                    for (std::size_t i = 0; i < count; ++i)
                        tile[i] = e[i] * by.unscale * by.factor - pull_scale * pull(i);
                });
            } else if (capped) {
                for (std::size_t i = 0; i < count; ++i) tile[i] = e[i] * by.unscale * by.factor;
            } else {
                for (std::size_t i = 0; i < count; ++i) out[i] = e[i] * by.unscale * by.factor;
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
    const bool plain = !scalars.pulls && weight == nullptr && block.z_loss == 0.0;
    auto* const x = static_cast<Column<T>*>(block.scratch);  // logits, then e, then the gradient
    auto* const pulls = x + classes;                         // if the targets are probabilities
    auto* const slopes = scalars.soft ? pulls + classes : pulls;  // if capped
    auto* const tiles = reinterpret_cast<ColumnTile<T>*>(slopes + (capped ? classes : 0));

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
        find_tiles(x, classes, tiles, top);
        const auto distance_of = [&](T pull, std::size_t c, std::size_t i) {
            return distance_term(pull, tiles[c / tile_size].base[i] - x[c][i]);
        };

        // The pivots, and what hangs on the targets.
        Column<Index<T>> pivot, best, likely_at, ignored{};  // ignored: 0 or -1
        Index<T> any_ignored = 0;
        Column<T> own, x_at_pivot, at_pivot;
        Column<double> share, rest, distance, pull_at_pivot;
        // What the distances from the tiles' largest logits leave out; pull(c, i) as there.
        const auto add_beyond = [&](auto pull) {
            if (classes <= tile_size) return;
            Column<double> beyond{};
            for (std::size_t start = 0; start < classes; start += tile_size) {
                const std::size_t count = tile_length(classes, start);
                const ColumnTile<T>& tile = tiles[start / tile_size];
                Column<double> all;
                sum_columns<T>(
                    count, [&](std::size_t c, std::size_t i) { return pull(start + c, i); }, all);
                for (std::size_t i = 0; i < column_count; ++i)
                    beyond[i] += distance_term(
                        all[i], static_cast<double>(top[i]) - static_cast<double>(tile.top[i]));
            }
            for (std::size_t i = 0; i < column_count; ++i) distance[i] += beyond[i];
        };
        if (!plain)
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
                [&](std::size_t c, std::size_t i) { return distance_of(pulls[c][i], c, i); },
                distance);
            add_beyond([&](std::size_t c, std::size_t i) { return pulls[c][i]; });
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
                        return distance_of(weight ? weight[c] : T{1}, c, i);
                    },
                    distance);
                add_beyond([&](std::size_t c, std::size_t) { return weight ? weight[c] : T{1}; });
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
        Column<T> pivot_grad;
        Column<double> others, factor, losses, log_sum_exp;
        exp_columns(x, classes, tiles, others, [&](std::size_t c, std::size_t i, T e) {
            return except_at<T>(c, pivot[i], T{0}, e);
        });
        const auto finish_all = [&](auto result_of) {
            for (std::size_t i = 0; i < column_count; ++i) {
                PositionSums sums{};
                sums.top = static_cast<double>(top[i]);
                sums.deficit = sums.top - static_cast<double>(x_at_pivot[i]);
                sums.others = others[i];
                sums.at_pivot = static_cast<double>(at_pivot[i]);
                const PositionResult result = result_of(sums, i);
                losses[i] = ignored[i] ? 0.0 : result.loss;
                log_sum_exp[i] = ignored[i] ? 0.0 : result.log_sum_exp;
                pivot_grad[i] = static_cast<T>(result.pivot_grad);
                factor[i] = result.factor;
            }
        };
        if (plain)
            finish_all([&](const PositionSums& sums, std::size_t) {
                return finish<true>(sums, 0.0, block.grad_scale);
            });
        else
            finish_all([&](PositionSums& sums, std::size_t i) {
                sums.share = share[i];
                sums.rest = rest[i];
                sums.distance = distance[i];
                sums.pull_at_pivot = pull_at_pivot[i];
                return finish<false>(sums, block.z_loss, block.grad_scale);
            });
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
            scale_columns(x, classes, tiles, factor, [&](std::size_t c, std::size_t i, T scaled) {
                return except_at<T>(c, pivot[i], pivot_grad[i], scaled - pull(c, i));
            });
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
