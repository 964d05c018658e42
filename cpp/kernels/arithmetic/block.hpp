// Stages: loops over a block of elements, with arrays between them.
//
// A processor looks ahead over some 100 operations. The operations of one element, if each waits
// for the one before, fill that window alone: exp, a division and a logarithm are 80. Cut into
// stages of 10 to 25, each a loop over a block, the operations of many elements overlap, in every
// instruction set. Stores and loads between the stages cost next to nothing.
//
// A function of a block is written as its stages, and a rule that uses it as a list of functions.
// Their argument and their result are callables: x(i) is element i, and use(i, y) takes its result.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../table.hpp"

// Element i of the result depends on elements i alone, also where it replaces one of them.
#if defined(__clang__)
#define FASTOPT_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FASTOPT_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace fastopt::FASTOPT_ISA {
namespace {

constexpr std::size_t block_size = 64;  // at least four vectors of any instruction set

template <class T>
using Block = T[block_size];

// For use(): stores a block.
template <class T>
auto into(Block<T>& block) {
    return [&block](std::size_t i, T value) { block[i] = value; };
}

// stage(i) for each element of a block.
template <std::size_t size = block_size, class Stage>
FASTOPT_INLINE void each(Stage stage) {
    FASTOPT_INDEPENDENT
    for (std::size_t i = 0; i < size; ++i) stage(i);
}

// An unsigned integer as wide as an element.
template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
    using type = std::uint32_t;
};
template <>
struct BitsOf<double> {
    using type = std::uint64_t;
};
template <class T>
using Bits = typename BitsOf<T>::type;

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
