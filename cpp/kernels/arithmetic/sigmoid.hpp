// The sigmoid function, and tanh as a cap of logits.
#pragma once

#include <cstddef>

#include "../table.hpp"
#include "block.hpp"
#include "exp.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

// use(i, 1 / (1 + exp(-x(i)))), as accurate near 0 as near 1.
template <class C, class X, class Use>
FASTOPT_INLINE void sigmoid_of(X x, Use use) {
    exp_of_minus<C>(x, [&](std::size_t i, C e) { use(i, (x(i) < C{0} ? e : C{1}) / (C{1} + e)); });
}

// cap * tanh(x / cap) and its derivative. With a = exp(-2|x / cap|) - 1, tanh is -a / (2 + a) and
// its derivative 4 (1 + a) / (2 + a)^2, where 1 + a comes from exp itself and keeps its digits.
// use(i, value, slope) takes both.
template <class T, std::size_t size = block_size, class X, class Use>
FASTOPT_INLINE void soft_cap(X x, T cap, Use use) {
    T argument[size];
    each<size>([&](std::size_t i) {
        const T u = x(i) / cap;
        argument[i] = u < T{0} ? u * T{2} : u * T{-2};
    });
    exp_stages<T, size>([&](std::size_t i) { return argument[i]; },
                        [&](std::size_t i, T rest, Bits<T> bits) {
                            const T power = power_of_two(bits);
                            const T near = (power - T{1}) + power * rest;
                            const T a =
                                argument[i] < T{-40} ? T{-1} : near;  // exp(-40) does not change 1
                            const T scaled = (rest + T{1}) * power_of_two(bits + 32);
                            const T e = (argument[i] < exp_limit<T> ? T{0} : scaled) *
                                        static_cast<T>(1.0 / exp_scale);
                            const T half = T{2} + a;
                            const T value = cap * (-a / half);
                            use(i, x(i) / cap < T{0} ? -value : value, T{4} * e / (half * half));
                        });
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
