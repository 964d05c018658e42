// exp with the same bits on every machine: no libm, no fused multiply-add.
#pragma once

#include <cstdint>

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

// exp(x) * 2^32 for x <= 0 or NaN. It is 0 where exp(x) is too small to change a result of type T.
// At these limits exp(x) * 2^32 is the smallest normal number.
inline float exp_scaled(float x) { return x < -109.0f ? 0.0f : exp_shifted(x, 32); }
inline double exp_scaled(double x) { return x < -730.0 ? 0.0 : exp_shifted(x, 32); }

// exp(-|x|), within 1 ULP; half a unit more where the result is denormal. NaN stays. At -104 and
// -746 exp is 0, and at 710 infinite.
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

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
