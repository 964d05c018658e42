// Logarithms with the same bits on every machine: no libm, no fused multiply-add.
#pragma once

#include <cstdint>

namespace fastopt::FASTOPT_ISA {
namespace {

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

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
