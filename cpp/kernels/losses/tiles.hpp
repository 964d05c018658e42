// What the kernels over classes share: the order of their sums, and where the classes lie.
//
// The kernels along rows take positions whose classes are neighbours in memory, one position at a
// time. The kernels along columns take many positions side by side: where there are few classes,
// or where positions are the neighbours. Both give the same bits, because the index of a class
// alone fixes the order of every sum:
// - The classes are cut into tiles of 2048.
// - A tile is added up in 64 lanes of T. From tile to tile these are added to 64 lanes of double.
// - In the end the lanes are folded by halves.
// A sum of exponentials is different. exp is computed from m_t, the largest element of the tile.
// Each tile is folded for itself, its sum is weighted with exp(m_t - m), where m is the largest
// element of all, and the weighted sums are added in order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../arithmetic/block.hpp"
#include "../arithmetic/exp.hpp"
#include "../table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

constexpr std::size_t lane_count = 64;   // four vectors of float of AVX-512, which add in turn
constexpr std::size_t tile_size = 2048;  // 8 KiB of float: a tile stays in the first cache

inline std::size_t tile_count(std::size_t classes) { return (classes + tile_size - 1) / tile_size; }

// The classes of the tile that begins at `start`.
inline std::size_t tile_length(std::size_t classes, std::size_t start) {
    return classes - start < tile_size ? classes - start : tile_size;
}

template <class T>
constexpr T minus_infinity = -static_cast<T>(__builtin_inff());

// What is subtracted from the elements of a tile before exp: m_t, or 0 where all elements are
// -inf, so that exp gives 0 and not NaN.
template <class T>
T base_of(T top) {
    return top == minus_infinity<T> ? T{0} : top;
}

// The e of a tile are multiplied by `unscale` and then by `factor`. Together these are a factor of
// the position times exp(m_t - m). Where that is denormal, `factor` keeps exp_scale, which
// `unscale` takes from e.
template <class T>
struct TileFactor {
    T factor, unscale;
};

template <class T>
TileFactor<T> tile_factor(double factor, double weight) {
    const double scaled = factor * weight;
    const double size = scaled < 0.0 ? -scaled : scaled;
    const bool tiny = size < 0x1p-120 * exp_scale;
    return {static_cast<T>(tiny ? scaled : scaled * (1.0 / exp_scale)),
            static_cast<T>(tiny ? 1.0 / exp_scale : 1.0)};
}

// Cuts the working memory of a kernel into arrays. Without memory it only counts the bytes.
struct ScratchParts {
    void* memory;
    std::size_t bytes = 0;  // so far

    template <class U>
    U* take(std::size_t count) {
        U* const part = memory ? reinterpret_cast<U*>(static_cast<char*>(memory) + bytes) : nullptr;
        bytes += count * sizeof(U);
        return part;
    }
};

// The working memory of a kernel that runs.
template <class Scratch, class Block>
Scratch scratch_of(const Block& block) {
    // Tells the compiler that no array is nullptr.
    if (block.scratch == nullptr) __builtin_unreachable();
    return Scratch(block);
}

// A kernel with `Scratch`, a struct that cuts block.scratch.
template <class Scratch, class Block>
constexpr ClassKernel<Block> class_kernel(void (*run)(const Block&)) {
    return {run, [](const Block& block) { return Scratch(block).parts.bytes; }};
}

// The first class at a position of the block.
template <class T>
T* class_row(const ClassArray& array, const ClassBlock& block, std::size_t position) {
    if (array.data == nullptr) return nullptr;
    const std::size_t number = block.first + position;
    if (block.inner == 1)  // without a division, which takes as long as some 50 logits
        return static_cast<T*>(array.data) + static_cast<std::ptrdiff_t>(number) * array.run_stride;
    return static_cast<T*>(array.data) +
           static_cast<std::ptrdiff_t>(number / block.inner) * array.run_stride +
           static_cast<std::ptrdiff_t>(number % block.inner) * array.inner_stride;
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
