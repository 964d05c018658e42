// Logarithms with the same bits on every machine: no libm, no fused multiply-add.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../table.hpp"
#include "block.hpp"

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
struct Log1pParts {
    double s, exponent, error;  // error: d / u
};

inline Log1pParts log1p_parts(double x) {
    const double u = 1.0 + x;
    const double error = u < 2.0 ? x - (u - 1.0) : 1.0 - (u - x);
    const auto bits = __builtin_bit_cast(std::uint64_t, u);
    constexpr std::uint64_t root_half = 0x3fe6a09e667f3bcdu;
    const std::uint64_t k = (bits - root_half) >> 52;
    const auto m = __builtin_bit_cast(double, bits - (k << 52));
    // 1 / u need not be exact: it only weighs a rounding error.
    const double over_u = static_cast<double>(1.0f / static_cast<float>(u));
    // k as a double: most instruction sets cannot convert 64-bit integers in vectors.
    return {(m - 1.0) / (m + 1.0),
            __builtin_bit_cast(double, k | __builtin_bit_cast(std::uint64_t, 0x1p52)) - 0x1p52,
            error * over_u};
}

inline double log1p_of(const Log1pParts& parts) {
    const auto [s, exponent, error] = parts;
    const double z = s * s;
    const double small = s * (z * atanh_series(z)) + error;
    return exponent * 0x1.62e42fefa4p-1 + (2.0 * s + (small + exponent * -0x1.8432a1b0e2634p-43));
}

inline double log1p(double x) {
    const double value = log1p_of(log1p_parts(x));
    return x != x ? x : value;
}

template <std::size_t size, class X>
FASTOPT_INLINE void log1p(X x, double (&result)[size]) {
    double s[size], exponent[size], error[size];
    each<size>([&](std::size_t i) {
        const Log1pParts parts = log1p_parts(x(i));
        s[i] = parts.s;
        exponent[i] = parts.exponent;
        error[i] = parts.error;
    });
    each<size>([&](std::size_t i) {
        const double value = log1p_of({s[i], exponent[i], error[i]});
        result[i] = x(i) != x(i) ? x(i) : value;
    });
}

// log(1 + x) for 0 <= x <= 1 or NaN, within 1 ULP. With s = x / (2 + x):
// log(1 + x) = 2 atanh(s) = x - s (x - s^2 p(s^2)); p by Remez, to 1.1e-10 for float, 1.3e-18 for
// double. x itself is exact, and what is subtracted from it is the smaller part.
inline float fraction_series(float z) {
    float p = 0.24289556f;
    p = p * z + 0.21430741f;
    p = p * z + 0.28616595f;
    p = p * z + 0.3999889f;
    p = p * z + 0.66666675f;
    return p;
}

inline double fraction_series(double z) {
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
    return p;
}

template <class T>
FASTOPT_INLINE void log1p_fraction(const Block<T>& x, Block<T>& result) {
    Block<T> s;
    each([&](std::size_t i) { s[i] = x[i] / (T{2} + x[i]); });
    each([&](std::size_t i) {
        const T z = s[i] * s[i];
        result[i] = x[i] - s[i] * (x[i] - z * fraction_series(z));
    });
}

// log(x), within 1 ULP: x = 2^k m with m in [sqrt(1/2), sqrt(2)), log(m) as above with f = m - 1,
// written as f - (f^2/2 - s (f^2/2 + s^2 p)); p to 1.3e-18. Integers are converted through the bits
// of 2^52 + k, which every instruction set can do.
template <class X, class Use>
FASTOPT_INLINE void log(X element, Use use) {
    Block<double> x, f, k, s, small;
    each([&](std::size_t i) {
        x[i] = element(i);
        const bool denormal = x[i] < 0x1p-1022;
        const double normal = denormal ? x[i] * 0x1p54 : x[i];
        constexpr std::uint64_t root_half = 0x3fe6a09e667f3bcdu, one = 0x3ff0000000000000u;
        constexpr std::uint64_t mantissa = 0x000fffffffffffffu, two_to_52 = 0x4330000000000000u;
        const std::uint64_t bits = __builtin_bit_cast(std::uint64_t, normal) + (one - root_half);
        const auto biased = __builtin_bit_cast(double, bits >> 52 | two_to_52);
        k[i] = biased - (denormal ? 0x1p52 + 1077.0 : 0x1p52 + 1023.0);
        f[i] = __builtin_bit_cast(double, (bits & mantissa) + root_half) - 1.0;
        s[i] = f[i] / (2.0 + f[i]);
    });
    each([&](std::size_t i) {
        const double z = s[i] * s[i];
        const double half_square = 0.5 * f[i] * f[i];
        small[i] = s[i] * (half_square + z * atanh_series(z)) + k[i] * -0x1.8432a1b0e2634p-43;
    });
    each([&](std::size_t i) {
        const double half_square = 0.5 * f[i] * f[i];
        const double value = k[i] * 0x1.62e42fefa4p-1 - ((half_square - small[i]) - f[i]);
        const double edge = x[i] == 0.0 ? -__builtin_inf() : x[i] > 0.0 ? x[i] : __builtin_nan("");
        use(i, x[i] > 0.0 && x[i] < __builtin_inf() ? value : edge);
    });
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
