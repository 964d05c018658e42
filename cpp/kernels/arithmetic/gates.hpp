// The gates F of the functions x F(x): SiLU, GELU and its approximation by tanh.
//
// Each F is a distribution function with F(-x) = 1 - F(x). A gate computes a F(-a) for
// 0 <= a <= limit or NaN, with all its digits where F is tiny; with `slope` the derivative of x
// F(x) at -a, F(-a) - a F'(a). use(i, t) takes it divided by tail_unscale. At the limit both are 0
// after rounding. No libm, no fused multiply-add.
//
// The bounds in ULP: SiLU 2.5, GELU 3.5, their derivatives 5. A derivative is 0 at one a, where
// terms cancel: near it the bound is 4 ULP of 1/2. The approximation by tanh is computed in double.
#pragma once

#include <cstddef>

#include "../table.hpp"
#include "block.hpp"
#include "exp.hpp"
#include "integers.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

// top * (1 + e) * power, with one rounding less.
template <class T>
T times_exp(T top, T e, T power) {
    const T product = top * power;
    return product + product * e;
}

// F(-a) = 1 / (1 + exp(u(a))), and v(a) = a u'(a).
template <bool slope, class T, class U, class V, class Use>
FASTOPT_INLINE void logistic_tail(const Block<T>& a, U u, V v, Use use) {
    exp_tail<T>([&](std::size_t i) { return -u(i); },
                [&](std::size_t i, T e, T power) {
                    const T sum = T{1} + (e + T{1}) * (power * tail_unscale<T>);
                    const T top = slope ? sum - v(i) : a[i];
                    use(i, times_exp(top, e, power) / (slope ? sum * sum : sum));
                });
}

// 1 / (1 + exp(-x)).
struct LogisticGate {
    template <class T>
    using Compute = T;
    template <class T>
    static constexpr T limit = tail_end<T>;
    template <bool slope, class T, class Use>
    FASTOPT_INLINE static void tail(const Block<T>& a, Use use) {
        const auto u = [&](std::size_t i) { return a[i]; };
        logistic_tail<slope>(a, u, u, use);
    }
};

// (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. In double: the rounding of the argument grows in
// the exponential. A tail e^-u of type double is within 3 (1 + u) ULP.
struct TanhGate {
    template <class T>
    using Compute = double;
    template <class T>
    static constexpr T limit = T{22};
    template <bool slope, class T, class Use>
    FASTOPT_INLINE static void tail(const Block<T>& a, Use use) {
        constexpr T k = T{1.5957691216057308};  // 2 sqrt(2 / pi)
        constexpr T cubic = T{0.044715};
        logistic_tail<slope>(
            a, [&](std::size_t i) { return k * (a[i] + cubic * (a[i] * a[i] * a[i])); },
            [&](std::size_t i) { return k * (a[i] + T{3} * cubic * (a[i] * a[i] * a[i])); }, use);
    }
};

// The normal distribution: F(-a) = exp(-a^2 / 2) M(a) with Mills' ratio
// M(a) = exp(a^2 / 2) erfc(a / sqrt(2)) / 2 = 1 / (sqrt(2 pi) a + p(a) / q(a)). The quotient has
// the smallest largest relative error in M up to the limit (Remez): 6e-9 for float, 1.4e-17 for
// double, with rounded coefficients. All of them are positive: nothing cancels.
template <class T>
struct MillsParts {
    T p, q;
};

inline MillsParts<float> mills_parts(float a) {
    float p = 0.0063905353f;
    p = p * a + 0.0759546f;
    p = p * a + 0.42078397f;
    p = p * a + 1.2690169f;
    p = p * a + 2.0f;
    float q = 0.0025492418f;
    q = q * a + 0.030312626f;
    q = q * a + 0.17271645f;
    q = q * a + 0.5701614f;
    q = q * a + 1.089938f;
    q = q * a + 1.0f;
    return {p, q};
}

inline MillsParts<double> mills_parts(double a) {
    double p = 1.4486755581273038e-06;
    p = p * a + 4.340932816820408e-05;
    p = p * a + 0.0006394854444771252;
    p = p * a + 0.006006714099867133;
    p = p * a + 0.03942862033951977;
    p = p * a + 0.1873326782230634;
    p = p * a + 0.6459611513531558;
    p = p * a + 1.570433451554442;
    p = p * a + 2.478475377178887;
    p = p * a + 2.0;
    double q = 5.779379307651149e-07;
    q = q * a + 1.7317816361691934e-05;
    q = q * a + 0.000256273658092375;
    q = q * a + 0.0024309678155721875;
    q = q * a + 0.016236512989312592;
    q = q * a + 0.07942364872045268;
    q = q * a + 0.2876549506767908;
    q = q * a + 0.7623209820650074;
    q = q * a + 1.4203985482849353;
    q = q * a + 1.6946672651020775;
    q = q * a + 1.0;
    return {p, q};
}

// -a^2 / 2 with the rounding error of the square: it would grow in the exponential.
template <class T>
Sum<T> minus_half_square(T a) {
    constexpr Bits<T> upper = ~Bits<T>{0} << (sizeof(T) == 4 ? 12 : 27);
    const T top = __builtin_bit_cast(T, __builtin_bit_cast(Bits<T>, a) & upper);
    const T square = a * a;
    return {T{-0.5} * square, T{-0.5} * ((top * top - square) + (a - top) * (a + top))};
}

// (1/2 - F(-a)) / a of z = a^2, for a <= 1 in float, where the quotient of Mills' ratio rounds more
// often. To 2.6e-10 (Remez).
inline float half_series(float z) {
    float p = -7.664679e-06f;
    p = p * z + 0.000113512666f;
    p = p * z - 0.001186353f;
    p = p * z + 0.009973331f;
    p = p * z - 0.06649036f;
    p = p * z + 0.3989423f;
    return p;
}

struct NormalGate {
    template <class T>
    using Compute = T;
    template <class T>
    static constexpr T limit = sizeof(T) == 4 ? T{16} : T{39.5};
    template <bool slope, class T, class Use>
    FASTOPT_INLINE static void tail(const Block<T>& a, Use use) {
        constexpr T root = static_cast<T>(2.5066282746310002);     // sqrt(2 pi)
        constexpr T density = static_cast<T>(0.3989422804014327);  // 1 / sqrt(2 pi)
        Block<T> top, bottom, half;
        each([&](std::size_t i) {
            const auto [p, q] = mills_parts(a[i]);
            const T product = a[i] * q;
            bottom[i] = root * product + p;
            top[i] = slope ? q - a[i] * (product + density * p) : product;
        });
        if constexpr (sizeof(T) == 4)
            each([&](std::size_t i) { half[i] = half_series(a[i] * a[i]); });
        exp_tail<T>([&](std::size_t i) { return minus_half_square(a[i]); },
                    [&](std::size_t i, T e, T power) {
                        T result = times_exp(top[i], e, power) / bottom[i];
                        if constexpr (sizeof(T) == 4) {
                            const T bell = (e + T{1}) * (power * tail_unscale<T>);
                            const T near = slope ? T{0.5} - a[i] * (half[i] + density * bell)
                                                 : a[i] * (T{0.5} - a[i] * half[i]);
                            result = a[i] < T{1} ? near / tail_unscale<T> : result;
                        }
                        use(i, result);
                    });
    }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
