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

// exp(x) * 2^shift, while that is neither denormal nor infinite.
inline float exp_shifted(float x, std::uint32_t shift) {
    const auto parts = exp_parts(x);
    return (parts.rest + 1.0f) * power_of_two(parts.bits + shift);
}
inline double exp_shifted(double x, std::uint64_t shift) {
    const auto parts = exp_parts(x);
    return (parts.rest + 1.0) * power_of_two(parts.bits + shift);
}

// exp(x) * 2^32 for x <= 0 or NaN; 0 below the range where a result of type T could tell.
inline float exp_scaled(float x) { return x < -109.0f ? 0.0f : exp_shifted(x, 32); }
inline double exp_scaled(double x) { return x < -730.0 ? 0.0 : exp_shifted(x, 32); }

// exp(-|x|), within 1 ULP; half a unit more where the result is denormal. NaN stays.
inline float exp_of_minus(float x) {
    const float size = x < 0.0f ? -x : x;
    return exp_shifted(-(size > 104.0f ? 104.0f : size), 32) * 0x1p-32f;
}
inline double exp_of_minus(double x) {
    const double size = x < 0.0 ? -x : x;
    return exp_shifted(-(size > 746.0 ? 746.0 : size), 64) * 0x1p-64;
}

// exp(x) for any x, as accurate.
inline double exp(double x) {
    const double low = x < -746.0 ? -746.0 : x;
    const std::uint64_t shift = x < 0.0 ? 64u : std::uint64_t{0} - 64u;
    const double unshift = __builtin_bit_cast(double, (1023u - shift) << 52);
    return exp_shifted(low > 710.0 ? 710.0 : low, shift) * unshift;
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
// (2 atanh(s) - 2 s) / s^3 of z = s^2 < 0.0295, to 1.3e-18 (Remez).
inline double atanh_series(double z) {
    double p = 0.14795472990411626;
    p = p * z + 0.15314099044618046;
    p = p * z + 0.18183562397340222;
    p = p * z + 0.22222198610924326;
    p = p * z + 0.28571428742014254;
    p = p * z + 0.39999999999416375;
    p = p * z + 0.6666666666666734;
    return p;
}

// log(1 + x) for x >= 0 or NaN, within 2 ULP of double. With u = 1 + x rounded and the rounding
// error d recovered, log(1 + x) = log(u) + d / u; u = 2^k m with m in [sqrt(1/2), sqrt(2)), and
// log(m) = 2 atanh(s), s = (m - 1) / (m + 1).
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
    // 1 / u need not be exact: it only weighs a rounding error.
    const double over_u = static_cast<double>(1.0f / static_cast<float>(u));
    const double small = s * (z * atanh_series(z)) + error * over_u;
    // k as a double: most instruction sets cannot convert 64-bit integers in vectors.
    const double exponent =
        __builtin_bit_cast(double, k | __builtin_bit_cast(std::uint64_t, 0x1p52)) - 0x1p52;
    const double value =
        exponent * 0x1.62e42fefa4p-1 + (2.0 * s + (small + exponent * -0x1.8432a1b0e2634p-43));
    return x != x ? x : value;
}

// log(1 + x) for 0 <= x <= 1 or NaN, within 1 ULP. With s = x / (2 + x):
// log(1 + x) = 2 atanh(s) = x - s (x - s^2 p(s^2)); p by Remez, to 1.1e-10 for float, 1.3e-18 for
// double. x itself is exact, and what is subtracted from it is the smaller part.
inline float log1p_fraction(float x) {
    const float s = x / (2.0f + x);
    const float z = s * s;
    float p = 0.24289556f;
    p = p * z + 0.21430741f;
    p = p * z + 0.28616595f;
    p = p * z + 0.3999889f;
    p = p * z + 0.66666675f;
    return x - s * (x - z * p);
}

inline double log1p_fraction(double x) {
    const double s = x / (2.0 + x);
    const double z = s * s;
    double p = 0.17009750186693828;
    p = p * z + 0.08344974974617508;
    p = p * z + 0.12104944116949201;
    p = p * z + 0.13301121476121194;
    p = p * z + 0.1538654838562188;
    p = p * z + 0.18181744479383255;
    p = p * z + 0.22222223953638418;
    p = p * z + 0.2857142854811812;
    p = p * z + 0.40000000000155117;
    p = p * z + 0.6666666666666631;
    return x - s * (x - z * p);
}

// log(x), within 1 ULP: x = 2^k m with m in [sqrt(1/2), sqrt(2)), log(m) as above with f = m - 1,
// written as f - (f^2/2 - s (f^2/2 + s^2 p)); p to 1.3e-18. Integers are converted through the bits
// of 2^52 + k, which every instruction set can do.
inline double log(double x) {
    const bool denormal = x < 0x1p-1022;
    const double normal = denormal ? x * 0x1p54 : x;
    constexpr std::uint64_t root_half = 0x3fe6a09e667f3bcdu, one = 0x3ff0000000000000u;
    constexpr std::uint64_t mantissa_bits = 0x000fffffffffffffu, two_to_52 = 0x4330000000000000u;
    const std::uint64_t bits = __builtin_bit_cast(std::uint64_t, normal) + (one - root_half);
    const auto biased = __builtin_bit_cast(double, bits >> 52 | two_to_52);
    const double k = biased - (denormal ? 0x1p52 + 1077.0 : 0x1p52 + 1023.0);
    const double f = __builtin_bit_cast(double, (bits & mantissa_bits) + root_half) - 1.0;
    const double s = f / (2.0 + f);
    const double z = s * s;
    const double p = atanh_series(z);
    const double half_square = 0.5 * f * f;
    const double small = s * (half_square + z * p) + k * -0x1.8432a1b0e2634p-43;
    const double value = k * 0x1.62e42fefa4p-1 - ((half_square - small) - f);
    const double edge = x == 0.0 ? -__builtin_inf() : x > 0.0 ? x : __builtin_nan("");
    return x > 0.0 && x < __builtin_inf() ? value : edge;
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

inline double one_minus_power(double base, std::int64_t step) {
    auto exponent = static_cast<std::uint64_t>(step);
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
