// exp with the same bits on every machine: no libm, no fused multiply-add.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../table.hpp"
#include "block.hpp"
#include "integers.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2; exp(r) = 1 + r + r^2 q(r). The
// polynomials q have the smallest largest relative error (Remez): 3.1e-9 for float, 3.6e-18 for
// double. Adding and subtracting 1.5 * 2^(mantissa bits) rounds to an integer, which then stands in
// the low bits of the sum. ln 2 is split in two so that n * ln2_high is exact.
//
// The result is scaled by 2^32. An entry of a softmax that would be denormal then keeps its digits
// until the other factors are applied, and a sum of 2^31 entries is still far from overflow.
constexpr double exp_scale = 0x1p32;
template <class T>
constexpr T exp_unscale = static_cast<T>(1.0 / exp_scale);

// x = n ln 2 + r; n stands in the low bits of `bits`.
template <class T>
struct Reduced {
    T r;
    Bits<T> bits;
};

inline Reduced<float> reduce(float x) {
    constexpr float round = 0x1.8p23f;
    const float shifted = x * 0x1.715476p+0f + round;
    const float n = shifted - round;
    return {(x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f,
            __builtin_bit_cast(std::uint32_t, shifted)};
}

inline Reduced<double> reduce(double x) {
    constexpr double round = 0x1.8p52;
    const double shifted = x * 0x1.71547652b82fep+0 + round;
    const double n = shifted - round;
    return {(x - n * 0x1.62e42fefa4p-1) - n * -0x1.8432a1b0e2634p-43,
            __builtin_bit_cast(std::uint64_t, shifted)};
}

// A number as a sum, for an argument that needs more digits than T has; `low` is much smaller.
template <class T>
struct Sum {
    T high, low;
};

template <class T>
Reduced<T> reduce(Sum<T> x) {
    const Reduced<T> reduced = reduce(x.high);
    return {reduced.r + x.low, reduced.bits};
}

// exp(r) - 1.
inline float exp_minus_one(float r) {
    float q = 0.00138146136162f;
    q = q * r + 0.00836871008881f;
    q = q * r + 0.041668387373f;
    q = q * r + 0.166665206877f;
    q = q * r + 0.499999934516f;
    return q * (r * r) + r;
}

inline double exp_minus_one(double r) {
    double q = 2.5000067274192575067e-8;
    q = q * r + 2.7630233871620585336e-7;
    q = q * r + 2.7557586281051927642e-6;
    q = q * r + 2.4801493136321799866e-5;
    q = q * r + 1.9841269506764925494e-4;
    q = q * r + 1.3888888943597565899e-3;
    q = q * r + 8.333333333494338877e-3;
    q = q * r + 4.1666666666530266493e-2;
    q = q * r + 0.16666666666666412768;
    q = q * r + 0.50000000000000106167;
    return q * (r * r) + r;
}

// 2^n, from the bits of reduce().
inline float power_of_two(std::uint32_t n) { return __builtin_bit_cast(float, (n + 127u) << 23); }
inline double power_of_two(std::uint64_t n) {
    return __builtin_bit_cast(double, (n + 1023u) << 52);
}

// exp(x) * exp_scale for x <= 0 or NaN. It is 0 below this limit, where it would soon be denormal,
// and where exp(x) is too small to change a result of type T.
template <class T>
constexpr T exp_limit = sizeof(T) == 4 ? T{-109} : T{-730};

template <class T>
T exp_scaled(T x) {
    const Reduced<T> reduced = reduce(x);
    const T e = (exp_minus_one(reduced.r) + T{1}) * power_of_two(reduced.bits + 32);
    return x < exp_limit<T> ? T{0} : e;
}

template <class T, std::size_t size = block_size, class X, class Use>
FASTOPT_INLINE void exp_scaled(X x, Use use) {
    T r[size], e[size], power[size];
    each<size>([&](std::size_t i) {
        const T at = x(i);
        const bool tiny = at < exp_limit<T>;
        const Reduced<T> reduced = reduce(at);
        r[i] = tiny ? T{0} : reduced.r;
        power[i] = tiny ? T{0} : power_of_two(reduced.bits + 32);
    });
    each<size>([&](std::size_t i) { e[i] = exp_minus_one(r[i]); });
    each<size>([&](std::size_t i) { use(i, (e[i] + T{1}) * power[i]); });
}

// use(i, e, bits) with exp(x(i)) = 2^n (1 + e), n in the low bits of `bits`. x(i) is a T or a
// Sum<T>.
template <class T, class X, class Use>
FASTOPT_INLINE void exp_stages(X x, Use use) {
    Block<T> r, e;
    Block<Bits<T>> bits;
    each([&](std::size_t i) {
        const Reduced<T> reduced = reduce(x(i));
        r[i] = reduced.r;
        bits[i] = reduced.bits;
    });
    each([&](std::size_t i) { e[i] = exp_minus_one(r[i]); });
    each([&](std::size_t i) { use(i, e[i], bits[i]); });
}

// use(i, e, power) with exp(x(i)) = (1 + e) * power * tail_unscale<T>, for -tail_end<T> <= x(i) <=
// 0 or NaN. It keeps its digits where exp(x) is denormal. Beyond the end exp(x) is 0, even times
// 1000.
template <class T>
constexpr T tail_end = sizeof(T) == 4 ? T{130} : T{796};
template <class T>
constexpr T tail_unscale = sizeof(T) == 4 ? T{0x1p-64} : T{0x1p-128};

template <class T, class X, class Use>
FASTOPT_INLINE void exp_tail(X x, Use use) {
    constexpr Bits<T> shift = sizeof(T) == 4 ? 64 : 128;
    exp_stages<T>(x,
                  [&](std::size_t i, T e, Bits<T> bits) { use(i, e, power_of_two(bits + shift)); });
}

// exp(-|x|), within 1 ULP; half a unit more where the result is denormal. NaN stays.
template <class T, class X, class Use>
FASTOPT_INLINE void exp_of_minus(X x, Use use) {
    exp_tail<T>(
        [&](std::size_t i) {
            const T size = x(i) < T{0} ? -x(i) : x(i);
            return -(size > tail_end<T> ? tail_end<T> : size);
        },
        [&](std::size_t i, T e, T power) { use(i, (e + T{1}) * power * tail_unscale<T>); });
}

// exp(x) for any x, as accurate. At -746 exp is 0, and at 710 infinite.
template <class X, class Use>
FASTOPT_INLINE void exp(X x, Use use) {
    exp_stages<double>(
        [&](std::size_t i) {
            const double low = x(i) < -746.0 ? -746.0 : x(i);
            return low > 710.0 ? 710.0 : low;
        },
        [&](std::size_t i, double e, std::uint64_t bits) {
            // 2^n as the product of two powers, because it may be denormal or infinite.
            const std::uint64_t biased = (bits + 2046) & 0xfff, half = biased >> 1;
            const auto power = __builtin_bit_cast(double, half << 52);
            const auto other = __builtin_bit_cast(double, (biased - half) << 52);
            use(i, (e + 1.0) * power * other);
        });
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
