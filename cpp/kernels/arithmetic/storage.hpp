// Element types of 16 bits: how they become float32, and how float32 is rounded to them.
//
// Every function compiles to the same few integer operations with every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../table.hpp"
#include "block.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

enum class bfloat16 : std::uint16_t {
};
enum class float16 : std::uint16_t {
};

inline std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }
inline float from_bits(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

// The element as a number of the arithmetic.
inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(bfloat16 x) { return from_bits(static_cast<std::uint32_t>(x) << 16); }
inline float load(float16 x) {
    constexpr std::uint32_t smallest = 113u << 23;  // 2^-14, the smallest normal number
    const auto bits = static_cast<std::uint32_t>(x);
    const std::uint32_t magnitude = bits & 0x7fff;
    const std::uint32_t shifted = magnitude << 13;
    const std::uint32_t denormal = bits_of(from_bits(shifted + smallest) - from_bits(smallest));
    const std::uint32_t normal = shifted + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23);
    return from_bits((magnitude < 0x400 ? denormal : normal) | (bits & 0x8000) << 16);
}

// float32 as a bfloat16, after `add` has been added to the 16 bits that are dropped. A NaN keeps
// its upper bits: arithmetic gives quiet ones only.
FASTOPT_INLINE bfloat16 round_bfloat16(float x, std::uint32_t add) {
    return bfloat16((bits_of(x) + (x == x ? add : 0)) >> 16);
}

// The number rounded to the nearest element, ties to even.
template <class To, class Number>
FASTOPT_INLINE To nearest(Number x) {
    if constexpr (__is_same(To, Number)) {
        return x;
    } else if constexpr (__is_same(To, bfloat16)) {
        return round_bfloat16(x, 0x7fff + (bits_of(x) >> 16 & 1));
    } else {
        constexpr std::uint32_t smallest = 113u << 23;
        const std::uint32_t sign = bits_of(x) >> 16 & 0x8000;
        const std::uint32_t magnitude = bits_of(x) & 0x7fffffff;
        // The last bit of 0.5 is the smallest denormal number.
        const std::uint32_t denormal = bits_of(from_bits(magnitude) + 0.5f) - bits_of(0.5f);
        const std::uint32_t odd = (magnitude >> 13) & 1;
        const auto normal =
            static_cast<std::int32_t>((magnitude + 0xfff + odd - (112u << 23)) >> 13);
        const std::int32_t finite = normal < 0x7c00 ? normal : 0x7c00;
        const std::uint32_t number =
            magnitude < smallest ? denormal : static_cast<std::uint32_t>(finite);
        return float16((x == x ? number : 0x7e00) | sign);
    }
}

// Elements as float32, and back.
template <class From>
void widen(const void* data, std::size_t count, float* __restrict out) {
    const From* x = static_cast<const From*>(data);
    for (std::size_t i = 0; i < count; ++i) out[i] = load(x[i]);
}
template <class To>
void narrow(const float* __restrict x, std::size_t count, void* data) {
    To* out = static_cast<To*>(data);
    constexpr std::uint32_t quiet = 1u << 22;  // without it, a NaN could become an infinity
    for (std::size_t i = 0; i < count; ++i)
        out[i] = nearest<To>(x[i] == x[i] ? x[i] : from_bits(bits_of(x[i]) | quiet));
}

// The results of arithmetic, rounded to the nearest, or to bfloat16 by random bits.
__attribute__((noinline)) void round_elements(Type type, const float* __restrict x,
                                              std::size_t count, const std::uint16_t* noise,
                                              void* data) {
    const auto store = [&](auto* out, auto rounded) {
        FASTOPT_INDEPENDENT
        for (std::size_t i = 0; i < count; ++i) out[i] = rounded(i);
    };
    if (type == Type::float16)
        store(static_cast<float16*>(data), [&](std::size_t i) { return nearest<float16>(x[i]); });
    else if (noise == nullptr)
        store(static_cast<bfloat16*>(data), [&](std::size_t i) { return nearest<bfloat16>(x[i]); });
    else
        store(static_cast<bfloat16*>(data),
              [&](std::size_t i) { return round_bfloat16(x[i], noise[i]); });
}

// Puts the elements of `data` that were written since into `master`: those that are not its
// nearest. There are mostly none, so it looks for them first.
template <class From>
void take_elements(const void* data, std::size_t count, float* __restrict master) {
    const From* x = static_cast<const From*>(data);
    std::uint32_t differences = 0;
    for (std::size_t i = 0; i < count; ++i)
        differences |=
            static_cast<std::uint32_t>(nearest<From>(master[i])) ^ static_cast<std::uint32_t>(x[i]);
    if (differences == 0) return;
    FASTOPT_INDEPENDENT
    for (std::size_t i = 0; i < count; ++i)
        master[i] = nearest<From>(master[i]) == x[i] ? master[i] : load(x[i]);
}
__attribute__((noinline)) void take_written(Type type, const void* data, std::size_t count,
                                            float* master) {
    type == Type::bfloat16 ? take_elements<bfloat16>(data, count, master)
                           : take_elements<float16>(data, count, master);
}

// float32 as a bfloat16, the nearest with ties away from zero, and a signed remainder: together
// they hold all its bits. NaN is always the same. A remainder that does not belong to the bfloat16,
// because that was written meanwhile, makes it neither another sign nor NaN: it would make zero of
// another sign NaN.
__attribute__((noinline)) void join_elements(const void* high, const void* low, std::size_t count,
                                             float* __restrict out) {
    const auto* upper = static_cast<const std::uint16_t*>(high);
    const auto* lower = static_cast<const std::int16_t*>(low);
    FASTOPT_INDEPENDENT
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t written = static_cast<std::uint32_t>(upper[i]) << 16;
        const float joined =
            from_bits(written + static_cast<std::uint32_t>(std::int32_t{lower[i]}));
        out[i] = joined == joined ? joined : from_bits(written);
    }
}
__attribute__((noinline)) void split_elements(const float* __restrict x, std::size_t count,
                                              void* high, void* low) {
    auto* upper = static_cast<std::uint16_t*>(high);
    auto* lower = static_cast<std::int16_t*>(low);
    FASTOPT_INDEPENDENT
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t bits = bits_of(x[i] == x[i] ? x[i] : from_bits(0x7fc00000));
        lower[i] = static_cast<std::int16_t>(bits);
        upper[i] = static_cast<std::uint16_t>((bits + 0x8000) >> 16);
    }
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
