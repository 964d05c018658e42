// Losses and functions of one element at a time, value and gradient in one pass.
//
// A family is a struct with the numbers of its operands and options, and run(), the mathematics of
// a block of elements as stages (block.hpp). `Compute<T>` is the type of the arithmetic for
// elements of type T. It is double where the time goes into memory anyway: a float32 gradient is
// then the true one, rounded once. A loss sets the loss and d loss / d input, times `scale`; a
// function sets its result. Absent operands are ones. The loop at the end of this file cuts arrays
// into blocks, sums and stores for all families.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../arithmetic/block.hpp"
#include "../arithmetic/exp.hpp"
#include "../arithmetic/gates.hpp"
#include "../arithmetic/log.hpp"
#include "../arithmetic/sigmoid.hpp"
#include "../arithmetic/stream.hpp"
#include "../table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

static_assert(pointwise_lanes == block_size);

// The elements of a block, converted when they are read.
template <class T, class C>
struct Operand {
    const T* first;
    C operator()(std::size_t i) const { return static_cast<C>(first[i]); }
};

// A block of a run. `adds`: losses are added to `sums`.
template <class T, class Compute, bool adds>
struct PointwiseBlock {
    using C = Compute;

    Operand<T, C> x, y, weight, positive_weight;
    T* out;
    T* losses;
    double* sums;
    const double* options;
    C scale;            // of the gradient
    std::size_t first;  // the number of element 0 in its array

    C option(std::size_t k) const { return static_cast<C>(options[k]); }

    void set(std::size_t i, C result) const { out[i] = static_cast<T>(result); }
    void set(std::size_t i, C loss, C grad) const {
        if constexpr (adds)
            sums[i] += static_cast<double>(loss);
        else
            losses[i] = static_cast<T>(loss);
        set(i, grad);
    }
};

// Losses -----------------------------------------------------------------------------------------

// The defaults. `work` is the time of an element in elements of an update: 1 without a function,
// 2 to 4 with an exp or a logarithm, 6 with two logarithms.
struct PointwiseLoss {
    static constexpr bool is_loss = true;
    static constexpr int operand_count = 2;
    static constexpr int option_count = 0;
    static constexpr bool unit_interval = false;
    static constexpr int work = 1;
    template <class T>
    using Compute = double;
};

// 1, 0 or -1 times `scale`; NaN stays.
template <class C>
C signed_scale(C x, C scale) {
    return x > C{0} ? scale : x < C{0} ? -scale : x;
}

template <class C>
C magnitude(C x) {
    return x < C{0} ? -x : x;
}

struct mse : PointwiseLoss {
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        const C slope = C{2} * at.scale;
        each([&](std::size_t i) {
            const C difference = at.x(i) - at.y(i);
            at.set(i, difference * difference, difference * slope);
        });
    }
};

struct l1 : PointwiseLoss {
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        each([&](std::size_t i) {
            const C difference = at.x(i) - at.y(i);
            at.set(i, magnitude(difference), signed_scale(difference, at.scale));
        });
    }
};

// Into [-limit, limit]; NaN stays.
template <class C>
C clamped(C x, C limit) {
    const C low = x < -limit ? -limit : x;
    return low > limit ? limit : low;
}

// d^2 / (2 beta) for |d| < beta, |d| - beta/2 elsewhere. With c = d clamped into [-beta, beta] both
// are c (d - c/2) / beta. beta is not 0 or denormal: that is l1.
struct smooth_l1 : PointwiseLoss {
    static constexpr int option_count = 1;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        const C beta = at.option(0), inverse = C{1} / beta;
        each([&](std::size_t i) {
            const C difference = at.x(i) - at.y(i);
            const C slope = clamped(difference * inverse, C{1});
            at.set(i, slope * (difference - C{0.5} * clamped(difference, beta)), slope * at.scale);
        });
    }
};

// d^2 / 2 for |d| <= delta, delta (|d| - delta/2) elsewhere. With c = d clamped into
// [-delta, delta] both are c (d - c/2).
struct huber : PointwiseLoss {
    static constexpr int option_count = 1;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        const C delta = at.option(0);
        each([&](std::size_t i) {
            const C difference = at.x(i) - at.y(i);
            const C slope = clamped(difference, delta);
            at.set(i, slope * (difference - C{0.5} * slope), slope * at.scale);
        });
    }
};

// -w (y log x + (1-y) log(1-x)), each logarithm at least -100, and the gradient that torch gives
// it: w (x-y) / max(x (1-x), 1e-12).
struct bce : PointwiseLoss {
    static constexpr bool unit_interval = true;
    static constexpr int work = 6;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        Block<C> log_x, log_rest;
        log(at.x, into(log_x));
        log([&](std::size_t i) { return C{1} - at.x(i); }, into(log_rest));
        each([&](std::size_t i) {
            const C x = at.x(i), y = at.y(i), rest = C{1} - x;
            const C error = (C{1} - rest) - x;  // log(rest + error) = log(rest) + error, nearly
            const C a = log_x[i] < C{-100} ? C{-100} : log_x[i];
            const C log_true = log_rest[i] + error;
            const C b = log_true < C{-100} ? C{-100} : log_true;
            const C variance = rest * x;
            at.set(i, at.weight(i) * -(y * a + (C{1} - y) * b),
                   at.weight(i) * (x - y) / (variance < C{1e-12} ? C{1e-12} : variance) * at.scale);
        });
    }
};

// w (v y softplus(-x) + (1-y) softplus(x)) with the weight v of positives: sums of terms of one
// sign, and in the gradient w ((1-y) sigmoid(x) - v y sigmoid(-x)) one of them is 0 where y is 0 or
// 1. Nothing is subtracted from 1.
struct bce_with_logits : PointwiseLoss {
    static constexpr int work = 3;
    template <class T>
    using Compute = T;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        Block<C> e, log_sum;
        exp_of_minus<C>(at.x, into(e));
        log1p_fraction(e, log_sum);
        each([&](std::size_t i) {
            const C x = at.x(i), weight = at.weight(i);
            const C large = C{1} / (C{1} + e[i]);
            const C small = e[i] * large;
            const C positive = at.positive_weight(i) * at.y(i), negative = C{1} - at.y(i);
            const bool below = x < C{0};
            const C softplus_minus = (below ? -x : C{0}) + log_sum[i];
            const C softplus = (x > C{0} ? x : C{0}) + log_sum[i];
            const C pull = negative * (below ? small : large) - positive * (below ? large : small);
            at.set(i, weight * (positive * softplus_minus + negative * softplus),
                   weight * pull * at.scale);
        });
    }
};

// y (log y - x) for log-probabilities x and probabilities y; 0 where y = 0.
struct kl_div : PointwiseLoss {
    static constexpr int work = 4;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        Block<C> log_y;
        log(at.y, into(log_y));
        each([&](std::size_t i) {
            const C x = at.x(i), y = at.y(i);
            const C nothing = x == x ? C{0} : x;
            at.set(i, y == C{0} ? nothing : y * (log_y[i] - x), -y * at.scale);
        });
    }
};

// The same with y = log of the probabilities.
struct kl_div_log_target : PointwiseLoss {
    static constexpr int work = 4;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        Block<C> probability;
        exp(at.y, into(probability));
        each([&](std::size_t i) {
            const C x = at.x(i), p = probability[i];
            const C nothing = x == x ? C{0} : x;
            at.set(i, p == C{0} ? nothing : p * (at.y(i) - x), -p * at.scale);
        });
    }
};

// Functions --------------------------------------------------------------------------------------

struct PointwiseFunction {
    static constexpr bool is_loss = false;
    static constexpr int operand_count = 1;
    static constexpr int option_count = 0;
    static constexpr bool unit_interval = false;
    static constexpr int work = 1;
    template <class T>
    using Compute = T;
};

struct sigmoid : PointwiseFunction {
    static constexpr int work = 2;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        sigmoid_of<C>(at.x, [&](std::size_t i, C y) { at.set(i, y); });
    }
};

struct sigmoid_backward : PointwiseFunction {
    static constexpr int operand_count = 2;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        each([&](std::size_t i) { at.set(i, at.x(i) * ((C{1} - at.y(i)) * at.y(i))); });
    }
};

struct relu : PointwiseFunction {
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        each([&](std::size_t i) { at.set(i, at.x(i) <= C{0} ? C{0} : at.x(i)); });  // NaN stays
    }
};

struct relu_backward : PointwiseFunction {
    static constexpr int operand_count = 2;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        each([&](std::size_t i) { at.set(i, at.y(i) <= C{0} ? C{0} : at.x(i)); });
    }
};

struct tanh : PointwiseFunction {
    static constexpr int work = 2;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        tanh_of<C>(at.x, [&](std::size_t i, C y) { at.set(i, y); });
    }
};

struct tanh_backward : PointwiseFunction {
    static constexpr int operand_count = 2;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        each([&](std::size_t i) { at.set(i, at.x(i) * ((C{1} - at.y(i)) * (C{1} + at.y(i)))); });
    }
};

// x F(x) with a gate F (gates.hpp), or its gradient. At |x|, both F and the derivative
// F(x) + x F'(x) are 1 minus those at -|x|, which the gate computes. -0 stays.
template <class Gate, bool is_backward>
struct Gated : PointwiseFunction {
    static constexpr int operand_count = is_backward ? 2 : 1;
    static constexpr int work = 3;
    template <class T>
    using Compute = typename Gate::template Compute<T>;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        const auto x = is_backward ? at.y : at.x;
        constexpr C limit = Gate::template limit<C>;
        Block<C> a;
        each([&](std::size_t i) { a[i] = magnitude(x(i)) > limit ? limit : magnitude(x(i)); });
        Gate::template tail<is_backward>(a, [&](std::size_t i, C tail) {
            const C small = tail * tail_unscale<C>;
            if (is_backward)
                at.set(i, at.x(i) * (x(i) < C{0} ? small : C{1} - small));
            else
                at.set(i, with_sign(x(i) < C{0} ? small : x(i) - small, x(i)));
        });
    }
};

// L / (1 + exp(-k (x - x0))). In double, for the rounding of k (x - x0) grows in the exponential.
struct logistic : PointwiseFunction {
    static constexpr int option_count = 3;
    static constexpr int work = 4;
    template <class T>
    using Compute = double;
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        const C top = at.option(0), steepness = at.option(1), middle = at.option(2);
        sigmoid_of<C>([&](std::size_t i) { return steepness * (at.x(i) - middle); },
                      [&](std::size_t i, C y) { at.set(i, top * y); });
    }
};

// x * scale, or 0 where a hash of the seed and of the element's number is below the threshold. The
// hash is a Weyl sequence from the low half of the seed, mixed with the multipliers of MurmurHash3
// (Appleby) and in one more round. The high half of the seed is added between the rounds.
struct dropout : PointwiseFunction {
    static constexpr int option_count = 4;  // threshold, scale, the seed's halves
    static constexpr int work = 2;          // a dozen integer operations
    template <class At, class C = typename At::C>
    FASTOPT_INLINE static void run(const At& at) {
        const auto threshold = static_cast<std::uint32_t>(at.options[0]);
        const C scale = at.option(1);
        const auto low = static_cast<std::uint32_t>(at.options[2]);
        // Chunks begin at multiples of their size, so the high half is the same for all of a run.
        const auto high =
            static_cast<std::uint32_t>(at.options[3]) ^ static_cast<std::uint32_t>(at.first >> 32);
        constexpr std::uint32_t weyl = 0x9e3779b9u;
        const std::uint32_t start = static_cast<std::uint32_t>(at.first) * weyl + low;
        Block<std::uint32_t> hash;
        each([&](std::size_t i) {
            std::uint32_t mixed = start + static_cast<std::uint32_t>(i) * weyl;
            mixed = (mixed ^ (mixed >> 16)) * 0x85ebca6bu;
            hash[i] = mixed ^ (mixed >> 13);
        });
        each([&](std::size_t i) {
            std::uint32_t mixed = (hash[i] + high) * 0xc2b2ae35u;
            mixed = (mixed ^ (mixed >> 16)) * 0x27d4eb2fu;
            hash[i] = mixed ^ (mixed >> 15);
        });
        each([&](std::size_t i) { at.set(i, hash[i] < threshold ? C{0} : at.x(i) * scale); });
    }
};

// The loop ---------------------------------------------------------------------------------------

template <class Family, class T, bool adds>
void run_blocks(const PointwiseRun& run) {
    PointwiseBlock<T, typename Family::template Compute<T>, adds> at{};
    const auto point_to = [&](auto operand) {
        at.x.first = operand(0);
        at.y.first = operand(1);
        at.weight.first = operand(2);
        at.positive_weight.first = operand(3);
    };
    auto* const all_out = static_cast<T*>(run.out);
    auto* const all_losses = static_cast<T*>(run.losses);
    Block<T> ones, out, losses;
    Block<double> sums;
    each([&](std::size_t i) {
        ones[i] = T{1};
        losses[i] = T{0};
        sums[i] = adds ? run.lanes[i] : 0.0;
    });
    at.sums = sums;
    at.options = run.options;
    at.scale = static_cast<typename Family::template Compute<T>>(run.grad_scale);
    const bool stream = run.stream && can_stream(all_out);
    std::size_t start = 0;
    for (; start + block_size <= run.count; start += block_size) {
        point_to([&](int k) {
            if (run.operands[k] == nullptr) return static_cast<const T*>(ones);
            const T* const x = static_cast<const T*>(run.operands[k]) + start;
            if (Family::work > 2) prefetch(x + block_size, block_size);
            return x;
        });
        at.out = stream || !all_out ? out : all_out + start;
        at.losses = all_losses ? all_losses + start : losses;
        at.first = run.first + start;
        Family::run(at);
        if (stream) stream_bytes(all_out + start, out, sizeof(out));
    }
    if (stream) finish_streaming();
    // The rest as a whole block, of which not all is used.
    if (const std::size_t count = run.count - start; count > 0) {
        Block<T> operands[max_operands];
        Block<double> added;
        for (int k = 0; k < max_operands; ++k) {
            const T* const x = static_cast<const T*>(run.operands[k]);
            for (std::size_t i = 0; i < block_size; ++i)
                operands[k][i] = x ? x[start + (i < count ? i : 0)] : T{1};
        }
        each([&](std::size_t i) { added[i] = 0.0; });
        point_to([&](int k) { return operands[k]; });
        at.out = out;
        at.losses = losses;
        at.sums = added;
        at.first = run.first + start;
        Family::run(at);
        for (std::size_t i = 0; i < count; ++i) {
            if (all_out) all_out[start + i] = out[i];
            if (all_losses) all_losses[start + i] = losses[i];
            sums[i] += added[i];
        }
    }
    if (adds) each([&](std::size_t i) { run.lanes[i] = sums[i]; });
}

template <class Family, class T>
void run_pointwise(const PointwiseRun& run) {
    if (Family::is_loss && !run.losses) return run_blocks<Family, T, true>(run);
    run_blocks<Family, T, false>(run);
}

template <class T>
bool leaves_unit_interval(const void* data, std::size_t count) {
    const T* x = static_cast<const T*>(data);
    int outside = 0;
    for (std::size_t i = 0; i < count; ++i) outside |= !(x[i] >= T{0} && x[i] <= T{1});
    return outside != 0;
}

template <class Family>
constexpr Pointwise make_pointwise(const char* name) {
    static_assert(Family::option_count <= max_pointwise_options);
    return {name,
            Family::is_loss,
            Family::operand_count,
            Family::option_count,
            Family::unit_interval,
            Family::work,
            {run_pointwise<Family, float>, run_pointwise<Family, double>}};
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
