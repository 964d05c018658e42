// The kernels along rows: sums, maxima and exp over the classes of one position.
#pragma once

#include <cstddef>

#include "../arithmetic/block.hpp"
#include "../arithmetic/exp.hpp"
#include "../arithmetic/integers.hpp"
#include "../table.hpp"
#include "tiles.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

// A sum over classes, in the order of tiles.hpp.
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

    template <class T>
    void add_tile(const T (&partial)[lane_count]) {
        for (std::size_t lane = 0; lane < lane_count; ++lane)
            lanes[lane] += static_cast<double>(partial[lane]);
    }

    double total() { return sum_lanes(lanes); }
};

// b if it is larger, else a.
template <class T>
T larger(T a, T b) {
    return b > a ? b : a;
}

// The largest element. NaN is left out; without any other element it is -inf.
template <class T>
T largest(const T* x, std::size_t count) {
    T best[lane_count];
    for (T& lane : best) lane = minus_infinity<T>;
    std::size_t start = 0;
    for (; start + lane_count <= count; start += lane_count)
        for (std::size_t lane = 0; lane < lane_count; ++lane)
            best[lane] = larger(best[lane], x[start + lane]);
    for (std::size_t lane = 0; start + lane < count; ++lane)
        best[lane] = larger(best[lane], x[start + lane]);
    fold_lanes(best, lane_count / 2, [](T& a, T b) { a = larger(a, b); });
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

// The first i with x[i] == largest(x, count).
template <class T>
std::size_t largest_index(const T* x, std::size_t count) {
    T best = minus_infinity<T>;
    std::size_t tile = 0;
    for (std::size_t start = 0; start < count; start += tile_size) {
        const T top = largest(x + start, tile_length(count, start));
        tile = top > best ? start : tile;
        best = top > best ? top : best;
    }
    return tile + first_index(x + tile, tile_length(count, tile), best);
}

// The sum of e_i = exp(x[i] - base) * exp_scale for i < count, at most a tile, without element
// `left_out`, if it is less than count. Calls use(i, e_i) for all other elements; for this one, e_i
// may be 0. Prefetches what will be read, from `next` on, and what will be written, from `to` on.
// Not inlined: its speed should not depend on what is around it.
template <class T, class Use>
__attribute__((noinline)) double sum_exp(const T* x, std::size_t count, T base,
                                         std::size_t left_out, const T* next, const T* to,
                                         Use use) {
    Block<T> partial;
    each([&](std::size_t i) { partial[i] = T{0}; });
    std::size_t start = 0;
    const auto take = [&](std::size_t i, T e) {
        partial[i] += e;
        use(start + i, e);
    };
    for (; start + lane_count <= count; start += lane_count) {
        prefetch(next ? next + start : nullptr, lane_count);
        prefetch(to ? to + start : nullptr, lane_count);
        const std::size_t lane = left_out - start < lane_count ? left_out - start : 0;
        const T before = partial[lane];
        exp_scaled<T>([&](std::size_t i) { return x[start + i] - base; }, take);
        if (left_out - start < lane_count) partial[lane] = before;
    }
    if (const std::size_t n = count - start; n > 0) {
        prefetch(next ? next + start : nullptr, n);
        prefetch(to ? to + start : nullptr, n);
        Block<T> rest, e;  // a whole block, of which not all is used
        each([&](std::size_t i) { rest[i] = base; });
        for (std::size_t i = 0; i < n; ++i) rest[i] = x[start + i];
        exp_scaled<T>([&](std::size_t i) { return rest[i] - base; }, into(e));
        if (left_out - start < n) e[left_out - start] = T{0};
        for (std::size_t i = 0; i < n; ++i) take(i, e[i]);
    }
    LaneSum sum{0.0};
    sum.add_tile(partial);
    return sum.total();
}

// The place of a write that follows one to `to`: a write, too, waits for its cache line. None if x
// is replaced, which has been read.
template <class T>
const T* written_later(const T* x, const T* to) {
    constexpr std::size_t distance = 2048 / sizeof(T);  // half a page: the time of some 32 lines
    return to != x ? to + distance : nullptr;
}

// The tiles of a position.
struct RowTiles {
    RowTiles(ScratchParts& parts, std::size_t classes)
        : count(tile_count(classes)),
          tops(parts.take<double>(count)),
          sums(parts.take<double>(count)),
          weights(parts.take<double>(count)) {}

    std::size_t count;
    double* tops;     // m_t
    double* sums;     // of e
    double* weights;  // exp(m_t - m) * exp_scale

    // Sets the weights. Returns the sum of e over all tiles, each e computed from m.
    double weigh(double top) const {
        if (count == 1) {
            weights[0] = exp_scale;
            return sums[0];
        }
        for (std::size_t t = 0; t < count; ++t) weights[t] = exp_scaled(tops[t] - top);
        double total = 0.0;
        for (std::size_t t = 0; t < count; ++t) total += weights[t] * sums[t];
        return total * (1.0 / exp_scale);
    }
};

// The row after a position of the block, of the whole array's; nullptr if there is none.
template <class T>
const T* next_class_row(const ClassArray& array, const ClassBlock& block, std::size_t position) {
    return block.first + position + 1 < block.total ? class_row<const T>(array, block, position + 1)
                                                    : nullptr;
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
