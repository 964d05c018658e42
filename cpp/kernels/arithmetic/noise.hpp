// Random bits for stochastic rounding: 16 for each element, which depend on its number and a key.
//
// Philox2x16 (Salmon et al. 2011) with 6 rounds. Its multiplications of 16 bits are vector
// instructions of every instruction set. Each call gives the bits of two elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../table.hpp"
#include "block.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

constexpr std::size_t noise_size = 256;  // elements whose bits are computed together
constexpr int noise_key_shift = 17;      // 2^17 elements share a key: the calls count in 16 bits

// The last part of SplitMix64 (Steele et al. 2014).
inline std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

// The part of the key that all elements of an array share.
inline std::uint64_t noise_base(const NoiseKey& key) {
    return mix(mix(mix(key.seed) + key.step) + key.tensor);
}

// Stream 0 is for parameters, stream 1 for second moments. `first` is a multiple of noise_size.
inline void fill_noise(std::uint64_t base, std::uint64_t first, unsigned stream,
                       std::uint16_t* __restrict out) {
    constexpr std::size_t calls = noise_size / 2;
    const std::uint64_t number = mix(base + 2 * (first >> noise_key_shift) + stream);
    std::uint16_t key[4];
    for (int i = 0; i < 4; ++i) key[i] = static_cast<std::uint16_t>(number >> (16 * i));
    // As 16-bit numbers from memory: vectors of indices would be 64-bit ones.
    std::uint16_t number_of[calls];
    for (std::size_t i = 0; i < calls; ++i)
        number_of[i] = static_cast<std::uint16_t>(first / 2 + i);
    each<calls>([&](std::size_t i) {
        std::uint16_t left = number_of[i];
        std::uint16_t right = key[0];
        for (unsigned round = 0; round < 6; ++round) {
            // The two halves of a product, one vector instruction each. The second factors differ
            // by 2^16, or GCC would compute the product in 32 bits and pack its halves.
            const auto high = static_cast<std::uint16_t>((std::uint32_t{left} * 0xd2b5) >> 16);
            const auto low = static_cast<std::uint16_t>(std::int32_t{left} * (0xd2b5 - 0x10000));
            const auto round_key = static_cast<std::uint16_t>(key[1 + round % 3] + round * 0x9e37);
            left = static_cast<std::uint16_t>(high ^ round_key ^ right);
            right = low;
        }
        out[i] = left;
        out[i + calls] = right;
    });
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
