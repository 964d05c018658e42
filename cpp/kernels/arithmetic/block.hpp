// Stages: loops over a block of elements, with arrays between them.
//
// A processor holds some 100 operations that wait for others. The operations of one element, if
// each waits for the one before, fill this window alone: exp, a division and a logarithm are 80. In
// stages of 10 to 25, each a loop over a block, the operations of many elements overlap, with every
// instruction set. Stores and loads between the stages cost next to nothing.
//
// A function of a block is written as its stages, and a rule that uses it as a list of functions.
// Their argument and their result are callables: x(i) is element i, and use(i, y) takes its result.
#pragma once

#include <cstddef>

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
auto into(T* block) {
    return [block](std::size_t i, T value) { block[i] = value; };
}

// stage(i) for each element of a block.
template <std::size_t size = block_size, class Stage>
FASTOPT_INLINE void each(Stage stage) {
    FASTOPT_INDEPENDENT
    for (std::size_t i = 0; i < size; ++i) stage(i);
}

// Calls run(x, use), a function of a block, for `count` elements. Past the last one, it repeats the
// first of its block.
template <class T, class X, class Run, class Use>
FASTOPT_INLINE void each_block(std::size_t count, X x, Run run, Use use) {
    std::size_t start = 0;
    for (; start + block_size <= count; start += block_size)
        run([&](std::size_t i) { return x(start + i); },
            [&](std::size_t i, T value) { use(start + i, value); });
    if (start == count) return;
    Block<T> rest, result;
    const T filler = x(start);
    each([&](std::size_t i) { rest[i] = filler; });
    for (std::size_t i = 0; start + i < count; ++i) rest[i] = x(start + i);
    run([&](std::size_t i) { return rest[i]; }, into(result));
    for (std::size_t i = 0; start + i < count; ++i) use(start + i, result[i]);
}

// Prefetches `count` elements that will be read soon, unless x is nullptr.
template <class T>
FASTOPT_INLINE void prefetch(const T* x, std::size_t count) {
    constexpr std::size_t line = 64 / sizeof(T);  // elements of a cache line
    if (x == nullptr) return;
    for (std::size_t i = 0; i < count; i += line) __builtin_prefetch(x + i, 0, 3);
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
