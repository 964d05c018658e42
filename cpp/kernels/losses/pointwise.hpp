// Losses and functions of one element at a time, value and gradient in one pass.
//
// A family is a struct with a name, the numbers of its operands and options, and a rule, which is
// the mathematics of one element. `Compute<T>` is the type of the arithmetic for elements of type
// T. It is double where the time goes into memory anyway: a float32 gradient is then the true one,
// rounded once. The rule of a loss gives the loss and d loss / d input, times `scale`. The rule of
// a function gives its result. Absent operands are ones. The loop at the end of this file loads,
// converts, sums and stores for all families, by blocks that are small enough for registers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../arithmetic/exp.hpp"
#include "../arithmetic/log.hpp"
#include "../arithmetic/stream.hpp"
#include "../table.hpp"

// Element i of the result depends on elements i alone, also where it replaces one of them.
#if defined(__clang__)
#define FASTOPT_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FASTOPT_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace fastopt::FASTOPT_ISA {
namespace {

// Losses -----------------------------------------------------------------------------------------

// The defaults. `work` is the time of an element in elements of an update: 1 without a function,
// 4 with an exp or a logarithm, 8 with two.
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
    static constexpr const char* name = "mse";
    template <class C>
    struct Rule {
        C slope;
        Rule(const double*, double scale) : slope(static_cast<C>(2.0 * scale)) {}
        void operator()(C x, C y, C, C, C& loss, C& grad) const {
            const C difference = x - y;
            loss = difference * difference;
            grad = difference * slope;
        }
    };
};

struct l1 : PointwiseLoss {
    static constexpr const char* name = "l1";
    template <class C>
    struct Rule {
        C scale;
        Rule(const double*, double scale_given) : scale(static_cast<C>(scale_given)) {}
        void operator()(C x, C y, C, C, C& loss, C& grad) const {
            const C difference = x - y;
            loss = magnitude(difference);
            grad = signed_scale(difference, scale);
        }
    };
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
    static constexpr const char* name = "smooth_l1";
    static constexpr int option_count = 1;
    template <class C>
    struct Rule {
        C beta, inverse, scale;
        Rule(const double* options, double scale_given)
            : beta(static_cast<C>(options[0])),
              inverse(C{1} / beta),
              scale(static_cast<C>(scale_given)) {}
        void operator()(C x, C y, C, C, C& loss, C& grad) const {
            const C difference = x - y;
            const C slope = clamped(difference * inverse, C{1});
            loss = slope * (difference - C{0.5} * clamped(difference, beta));
            grad = slope * scale;
        }
    };
};

// d^2 / 2 for |d| <= delta, delta (|d| - delta/2) elsewhere. With c = d clamped into
// [-delta, delta] both are c (d - c/2).
struct huber : PointwiseLoss {
    static constexpr const char* name = "huber";
    static constexpr int option_count = 1;
    template <class C>
    struct Rule {
        C delta, scale;
        Rule(const double* options, double scale_given)
            : delta(static_cast<C>(options[0])), scale(static_cast<C>(scale_given)) {}
        void operator()(C x, C y, C, C, C& loss, C& grad) const {
            const C difference = x - y;
            const C slope = clamped(difference, delta);
            loss = slope * (difference - C{0.5} * slope);
            grad = slope * scale;
        }
    };
};

// -w (y log x + (1-y) log(1-x)), each logarithm at least -100, and the gradient that torch gives
// it: w (x-y) / max(x (1-x), 1e-12).
struct bce : PointwiseLoss {
    static constexpr const char* name = "bce";
    static constexpr bool unit_interval = true;
    static constexpr int work = 8;
    template <class C>
    struct Rule {
        C scale;
        Rule(const double*, double scale_given) : scale(static_cast<C>(scale_given)) {}
        void operator()(C x, C y, C weight, C, C& loss, C& grad) const {
            const C rest = C{1} - x;
            const C error = (C{1} - rest) - x;  // log(rest + error) = log(rest) + error, nearly
            const C log_x = log(x), log_rest = log(rest) + error;
            const C a = log_x < C{-100} ? C{-100} : log_x;
            const C b = log_rest < C{-100} ? C{-100} : log_rest;
            loss = weight * -(y * a + (C{1} - y) * b);
            const C variance = rest * x;
            grad = weight * (x - y) / (variance < C{1e-12} ? C{1e-12} : variance) * scale;
        }
    };
};

// w (v y softplus(-x) + (1-y) softplus(x)) with the weight v of positives: sums of terms of one
// sign, and in the gradient w ((1-y) sigmoid(x) - v y sigmoid(-x)) one of them is 0 where y is 0 or
// 1. Nothing is subtracted from 1.
struct bce_with_logits : PointwiseLoss {
    static constexpr const char* name = "bce_with_logits";
    static constexpr int work = 4;
    template <class T>
    using Compute = T;
    template <class C>
    struct Rule {
        C scale;
        Rule(const double*, double scale_given) : scale(static_cast<C>(scale_given)) {}
        void operator()(C x, C y, C weight, C positive_weight, C& loss, C& grad) const {
            const C e = exp_of_minus(x);
            const C log_sum = log1p_fraction(e);
            const C large = C{1} / (C{1} + e);
            const C small = e * large;
            const C positive = positive_weight * y, negative = C{1} - y;
            const C softplus_minus = (x < C{0} ? -x : C{0}) + log_sum;
            const C softplus = (x > C{0} ? x : C{0}) + log_sum;
            loss = weight * (positive * softplus_minus + negative * softplus);
            const bool below = x < C{0};
            const C pull = negative * (below ? small : large) - positive * (below ? large : small);
            grad = weight * pull * scale;
        }
    };
};

// y (log y - x) for log-probabilities x and probabilities y; 0 where y = 0.
struct kl_div : PointwiseLoss {
    static constexpr const char* name = "kl_div";
    static constexpr int work = 4;
    template <class C>
    struct Rule {
        C scale;
        Rule(const double*, double scale_given) : scale(static_cast<C>(scale_given)) {}
        void operator()(C x, C y, C, C, C& loss, C& grad) const {
            const C nothing = x == x ? C{0} : x;
            loss = y == C{0} ? nothing : y * (log(y) - x);
            grad = -y * scale;
        }
    };
};

// The same with y = log of the probabilities.
struct kl_div_log_target : PointwiseLoss {
    static constexpr const char* name = "kl_div_log_target";
    static constexpr int work = 4;
    template <class C>
    struct Rule {
        C scale;
        Rule(const double*, double scale_given) : scale(static_cast<C>(scale_given)) {}
        void operator()(C x, C y, C, C, C& loss, C& grad) const {
            const C probability = exp(y);
            const C nothing = x == x ? C{0} : x;
            loss = probability == C{0} ? nothing : probability * (y - x);
            grad = -probability * scale;
        }
    };
};

// Functions --------------------------------------------------------------------------------------

struct PointwiseFunction {
    static constexpr bool is_loss = false;
    static constexpr bool numbered = false;  // whether the rule takes the element's number
    static constexpr int operand_count = 1;
    static constexpr int option_count = 0;
    static constexpr bool unit_interval = false;
    static constexpr int work = 1;
    template <class T>
    using Compute = T;
};

// 1 / (1 + exp(-x)), as accurate near 0 as near 1.
template <class C>
C sigmoid_of(C x) {
    const C e = exp_of_minus(x);
    return (x < C{0} ? e : C{1}) / (C{1} + e);
}

struct sigmoid : PointwiseFunction {
    static constexpr const char* name = "sigmoid";
    static constexpr int work = 4;
    template <class C>
    struct Rule {
        Rule(const double*, double) {}
        C operator()(C x, C) const { return sigmoid_of(x); }
    };
};

struct sigmoid_backward : PointwiseFunction {
    static constexpr const char* name = "sigmoid_backward";
    static constexpr int operand_count = 2;
    template <class C>
    struct Rule {
        Rule(const double*, double) {}
        C operator()(C grad, C y) const { return grad * ((C{1} - y) * y); }
    };
};

struct relu : PointwiseFunction {
    static constexpr const char* name = "relu";
    template <class C>
    struct Rule {
        Rule(const double*, double) {}
        C operator()(C x, C) const { return x <= C{0} ? C{0} : x; }  // NaN stays
    };
};

struct relu_backward : PointwiseFunction {
    static constexpr const char* name = "relu_backward";
    static constexpr int operand_count = 2;
    template <class C>
    struct Rule {
        Rule(const double*, double) {}
        C operator()(C grad, C x) const { return x <= C{0} ? C{0} : grad; }
    };
};

// L / (1 + exp(-k (x - x0))). In double, for the rounding of k (x - x0) grows in the exponential.
struct logistic : PointwiseFunction {
    static constexpr const char* name = "logistic";
    static constexpr int option_count = 3;
    static constexpr int work = 4;
    template <class T>
    using Compute = double;
    template <class C>
    struct Rule {
        C top, steepness, middle;
        Rule(const double* options, double)
            : top(static_cast<C>(options[0])),
              steepness(static_cast<C>(options[1])),
              middle(static_cast<C>(options[2])) {}
        C operator()(C x, C) const { return top * sigmoid_of(steepness * (x - middle)); }
    };
};

// x * scale, or 0 where a hash of the seed and of the element's number is below the threshold. The
// hash is a Weyl sequence from the low half of the seed, mixed with the multipliers of MurmurHash3
// (Appleby) and in one more round. The high half of the seed is added between the rounds.
struct dropout : PointwiseFunction {
    static constexpr const char* name = "dropout";
    static constexpr bool numbered = true;
    static constexpr int option_count = 4;  // threshold, scale, the seed's halves
    static constexpr int work = 2;          // a dozen integer operations
    template <class C>
    struct Rule {
        std::uint32_t threshold;
        C scale;
        std::uint32_t low, high;
        Rule(const double* options, double)
            : threshold(static_cast<std::uint32_t>(options[0])),
              scale(static_cast<C>(options[1])),
              low(static_cast<std::uint32_t>(options[2])),
              high(static_cast<std::uint32_t>(options[3])) {}
        C operator()(C x, std::uint32_t number, std::uint32_t high_number) const {
            std::uint32_t hash = number * 0x9e3779b9u + low;
            hash = (hash ^ (hash >> 16)) * 0x85ebca6bu;
            hash = ((hash ^ (hash >> 13)) + (high ^ high_number)) * 0xc2b2ae35u;
            hash = (hash ^ (hash >> 16)) * 0x27d4eb2fu;
            return (hash ^ (hash >> 15)) < threshold ? C{0} : x * scale;
        }
    };
};

// The loop ---------------------------------------------------------------------------------------

template <class T>
constexpr T pointwise_ones[pointwise_lanes] = {
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// Elements [start, start + count) of a run, count <= pointwise_lanes.
template <class Family, class T, bool with_losses, class Rule>
FASTOPT_INLINE void pointwise_block(const Rule& rule, const PointwiseRun& run, double* sums,
                                    std::size_t start, std::size_t count, bool stream) {
    using C = typename Family::template Compute<T>;
    const auto operand = [&](int index) {
        const T* first = static_cast<const T*>(run.operands[index]);
        return first ? first + start : pointwise_ones<T>;
    };
    T block[pointwise_lanes];
    T* to = run.out ? static_cast<T*>(run.out) + start : block;
    T* out = stream ? block : to;
    const T *x = operand(0), *y = operand(1);
    if constexpr (Family::is_loss) {
        const T *weight = operand(2), *positive_weight = operand(3);
        C losses[pointwise_lanes];
        FASTOPT_INDEPENDENT
        for (std::size_t i = 0; i < count; ++i) {
            C loss, grad;
            rule(static_cast<C>(x[i]), static_cast<C>(y[i]), static_cast<C>(weight[i]),
                 static_cast<C>(positive_weight[i]), loss, grad);
            if constexpr (with_losses)
                losses[i] = loss;
            else
                sums[i] += static_cast<double>(loss);
            out[i] = static_cast<T>(grad);
        }
        if constexpr (with_losses) {
            T* kept = static_cast<T*>(run.losses) + start;
            for (std::size_t i = 0; i < count; ++i) kept[i] = static_cast<T>(losses[i]);
        }
    } else {
        // Chunks begin at multiples of their size, so the high half is the same for all of a run.
        auto number = static_cast<std::uint32_t>(run.first + start);
        const auto high_number = static_cast<std::uint32_t>((run.first + start) >> 32);
        FASTOPT_INDEPENDENT
        for (std::size_t i = 0; i < count; ++i) {
            if constexpr (Family::numbered)
                out[i] = static_cast<T>(rule(static_cast<C>(x[i]), number++, high_number));
            else
                out[i] = static_cast<T>(rule(static_cast<C>(x[i]), static_cast<C>(y[i])));
        }
    }
    if (stream) stream_bytes(to, block, count * sizeof(T));
}

template <class Family, class T, bool with_losses>
void run_blocks(const PointwiseRun& run) {
    const typename Family::template Rule<typename Family::template Compute<T>> rule(run.options,
                                                                                    run.grad_scale);
    double sums[pointwise_lanes];
    if constexpr (!with_losses)
        for (std::size_t lane = 0; lane < pointwise_lanes; ++lane) sums[lane] = run.lanes[lane];
    const bool stream = run.stream && can_stream(run.out);
    std::size_t start = 0;
    for (; start + pointwise_lanes <= run.count; start += pointwise_lanes)
        pointwise_block<Family, T, with_losses>(rule, run, sums, start, pointwise_lanes, stream);
    if (stream) finish_streaming();
    if (start < run.count)
        pointwise_block<Family, T, with_losses>(rule, run, sums, start, run.count - start, false);
    if constexpr (!with_losses)
        for (std::size_t lane = 0; lane < pointwise_lanes; ++lane) run.lanes[lane] = sums[lane];
}

template <class Family, class T>
void run_pointwise(const PointwiseRun& run) {
    if constexpr (Family::is_loss) {
        if (!run.losses) return run_blocks<Family, T, false>(run);
    }
    run_blocks<Family, T, true>(run);
}

template <class T>
bool leaves_unit_interval(const void* data, std::size_t count) {
    const T* x = static_cast<const T*>(data);
    int outside = 0;
    for (std::size_t i = 0; i < count; ++i) outside |= !(x[i] >= T{0} && x[i] <= T{1});
    return outside != 0;
}

template <class Family>
constexpr Pointwise make_pointwise() {
    static_assert(Family::option_count <= max_pointwise_options);
    return {Family::name,
            Family::is_loss,
            Family::operand_count,
            Family::option_count,
            Family::unit_interval,
            Family::work,
            {run_pointwise<Family, float>, run_pointwise<Family, double>}};
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
