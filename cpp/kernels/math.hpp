// Elementary functions that give the same bits on every machine: no libm, no fused multiply-add.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastopt::FASTOPT_ISA {
namespace {

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

// exp ---------------------------------------------------------------------------------------------
// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2)/2; exp(r) = 1 + r + r^2 q(r). The
// polynomials q have the smallest largest relative error (Remez): 3.1e-9 for float, 3.6e-18 for
// double. Adding and subtracting 1.5 * 2^(mantissa bits) rounds to an integer, which then stands in
// the low bits of the sum. ln 2 is split in two so that n * ln2_high is exact.
//
// The result is scaled by 2^32: an entry of a softmax that would be denormal keeps its precision
// until it meets the other factors, and the sum of 2^31 entries is far from overflow.
constexpr double exp_scale = 0x1p32;

// exp(x) for x <= 0 or NaN is 2^n (1 + rest); n stands in the low bits of `bits`.
template <class T, class Bits>
struct ExpParts {
    T rest;
    Bits bits;
};

inline ExpParts<float, std::uint32_t> exp_parts(float x) {
    constexpr float round = 0x1.8p23f;
    const float shifted = x * 0x1.715476p+0f + round;
    const float n = shifted - round;
    const float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    float q = 0.00138146136162f;
    q = q * r + 0.00836871008881f;
    q = q * r + 0.041668387373f;
    q = q * r + 0.166665206877f;
    q = q * r + 0.499999934516f;
    return {q * (r * r) + r, __builtin_bit_cast(std::uint32_t, shifted)};
}

inline ExpParts<double, std::uint64_t> exp_parts(double x) {
    constexpr double round = 0x1.8p52;
    const double shifted = x * 0x1.71547652b82fep+0 + round;
    const double n = shifted - round;
    const double r = (x - n * 0x1.62e42fefa4p-1) - n * -0x1.8432a1b0e2634p-43;
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
    return {q * (r * r) + r, __builtin_bit_cast(std::uint64_t, shifted)};
}

// 2^n, from the bits of exp_parts.
inline float power_of_two(std::uint32_t n) { return __builtin_bit_cast(float, (n + 127u) << 23); }
inline double power_of_two(std::uint64_t n) {
    return __builtin_bit_cast(double, (n + 1023u) << 52);
}

// exp(x) * 2^32 for x <= 0 or NaN; 0 below the range where a result of type T could tell.
template <class T>
inline __attribute__((always_inline)) T exp_scaled(T x) {
    constexpr T lowest = sizeof(T) == sizeof(float) ? T{-109} : T{-730};
    const auto parts = exp_parts(x);
    const T value = (parts.rest + T{1}) * power_of_two(parts.bits + 32);
    return x < lowest ? T{0} : value;
}

// cap * tanh(x / cap) and its derivative: with a = exp(-2|x / cap|) - 1, tanh is -a / (2 + a) and
// its derivative 4 (1 + a) / (2 + a)^2, where 1 + a comes from exp itself and keeps its digits.
template <class T>
struct SoftCap {
    T value, slope;
};

template <class T>
inline __attribute__((always_inline)) SoftCap<T> soft_cap(T x, T cap) {
    const T u = x / cap;
    const T argument = u < T{0} ? u * T{2} : u * T{-2};
    const auto parts = exp_parts(argument);
    const T power = power_of_two(parts.bits);
    const T near = (power - T{1}) + power * parts.rest;
    const T a = argument < T{-40} ? T{-1} : near;
    const T e = exp_scaled(argument) * static_cast<T>(1.0 / exp_scale);
    const T half = T{2} + a;
    const T size = cap * (-a / half);
    return {u < T{0} ? -size : size, T{4} * e / (half * half)};
}

// log -------------------------------------------------------------------------------------------
// log(1 + x) for x >= 0 or NaN, within 2 ULP of double. With u = 1 + x rounded and the rounding
// error d recovered, log(1 + x) = log(u) + d / u; u = 2^k m with m in [sqrt(1/2), sqrt(2)), and
// log(m) = 2 atanh(s) = 2 s (1 + s^2/3 + s^4/5 + ...), s = (m - 1) / (m + 1), s^2 < 0.0295.
inline double log1p(double x) {
    const double u = 1.0 + x;
    const double error = u < 2.0 ? x - (u - 1.0) : 1.0 - (u - x);
    const auto bits = __builtin_bit_cast(std::uint64_t, u);
    constexpr std::uint64_t root_half = 0x3fe6a09e667f3bcdu;
    const std::uint64_t k = (bits - root_half) >> 52;
    const auto m = __builtin_bit_cast(double, bits - (k << 52));
    const double f = m - 1.0;
    const double s = f / (m + 1.0);
    const double z = s * s;
    double series = 1.0 / 21.0;
    series = series * z + 1.0 / 19.0;
    series = series * z + 1.0 / 17.0;
    series = series * z + 1.0 / 15.0;
    series = series * z + 1.0 / 13.0;
    series = series * z + 1.0 / 11.0;
    series = series * z + 1.0 / 9.0;
    series = series * z + 1.0 / 7.0;
    series = series * z + 1.0 / 5.0;
    series = series * z + 1.0 / 3.0;
    const double small = 2.0 * s * z * series + error / u;
    // k as a double: most instruction sets cannot convert 64-bit integers in vectors.
    const double exponent =
        __builtin_bit_cast(double, k | __builtin_bit_cast(std::uint64_t, 0x1p52)) - 0x1p52;
    const double value =
        exponent * 0x1.62e42fefa4p-1 + (2.0 * s + (small + exponent * -0x1.8432a1b0e2634p-43));
    return x != x ? x : value;
}

// power -------------------------------------------------------------------------------------------
// 1 - base^exponent for 0 <= base <= 1 - 2^-40 and exponent >= 1, rounded once: squarings in
// double-double arithmetic (Dekker). libm's pow differs between machines in the last bit, and
// 1 - pow(...) loses digits when base is close to 1.
struct DoubleDouble {
    double high, low;
};

inline DoubleDouble multiply(DoubleDouble a, DoubleDouble b) {
    constexpr double split = 0x1p27 + 1.0;
    const double product = a.high * b.high;
    const double a_top = split * a.high - (split * a.high - a.high);
    const double b_top = split * b.high - (split * b.high - b.high);
    const double a_rest = a.high - a_top;
    const double b_rest = b.high - b_top;
    const double error =
        ((a_top * b_top - product) + a_top * b_rest + a_rest * b_top) + a_rest * b_rest;
    const double low = error + (a.high * b.low + a.low * b.high);
    const double high = product + low;
    return {high, low - (high - product)};
}

inline double one_minus_power(double base, std::int64_t exponent) {
    DoubleDouble power{1.0, 0.0};
    for (DoubleDouble square{base, 0.0};; square = multiply(square, square)) {
        if (exponent & 1) power = multiply(power, square);
        exponent >>= 1;
        if (exponent == 0) break;
    }
    const double difference = 1.0 - power.high;
    const double error = (1.0 - difference) - power.high;
    return difference + (error - power.low);
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
