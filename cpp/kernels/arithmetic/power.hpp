// Square roots, and powers with the same bits on every machine.
#pragma once

#include <cstdint>

namespace fastopt::FASTOPT_ISA {
namespace {

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

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
