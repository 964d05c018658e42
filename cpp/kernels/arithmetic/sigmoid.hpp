// The sigmoid function, tanh, and tanh as a cap of logits.
#pragma once

#include <cstddef>

#include "../table.hpp"
#include "block.hpp"
#include "exp.hpp"
#include "integers.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

// use(i, 1 / (1 + exp(-x(i)))), as accurate near 0 as near 1.
template <class C, class X, class Use>
FASTOPT_INLINE void sigmoid_of(X x, Use use) {
    exp_of_minus<C>(x, [&](std::size_t i, C e) { use(i, (x(i) < C{0} ? e : C{1}) / (C{1} + e)); });
}

inline float with_sign(float size, float x) { return __builtin_copysignf(size, x); }
inline double with_sign(double size, double x) { return __builtin_copysign(size, x); }

// use(i, tanh(x(i))), within 2.5 ULP. With a = exp(-2|x|) - 1, which keeps its digits for small x,
// |tanh(x)| is -a / (2 + a), and for large x 1 - 2 (1 + a) / (2 + a): the rounding errors of the
// smaller part count less. From |x| = 20 on the result is 1. -0 stays.
template <class T, class X, class Use>
FASTOPT_INLINE void tanh_of(X x, Use use) {
    exp_stages<T>(
        [&](std::size_t i) {
            const T size = x(i) < T{0} ? -x(i) : x(i);
            return T{-2} * (size > T{20} ? T{20} : size);
        },
        [&](std::size_t i, T e, Bits<T> bits) {
            const T power = power_of_two(bits);
            const T a = power * e + (power - T{1});
            const bool small = x(i) < T{0.75} && x(i) > T{-0.75};
            const T ratio = (small ? -a : T{2} * (power * e + power)) / (T{2} + a);
            use(i, with_sign(small ? ratio : T{1} - ratio, x(i)));
        });
}

// cap * tanh(x / cap) and its derivative. With a = exp(-2|x / cap|) - 1, tanh is -a / (2 + a) and
// its derivative 4 (1 + a) / (2 + a)^2, where 1 + a comes from exp itself and keeps its digits.
// use(i, value, slope) takes both.
template <class T, class X, class Use>
FASTOPT_INLINE void soft_cap(X x, T cap, Use use) {
    Block<T> argument;
    each([&](std::size_t i) {
        const T u = x(i) / cap;
        argument[i] = u < T{0} ? u * T{2} : u * T{-2};
    });
    exp_stages<T>([&](std::size_t i) { return argument[i]; },
                  [&](std::size_t i, T rest, Bits<T> bits) {
                      const T power = power_of_two(bits);
                      const T near = (power - T{1}) + power * rest;
                      const T a =
                          argument[i] < T{-40} ? T{-1} : near;  // exp(-40) does not change 1
                      const T scaled = (rest + T{1}) * power_of_two(bits + 32);
                      const T e = (argument[i] < exp_limit<T> ? T{0} : scaled) * exp_unscale<T>;
                      const T half = T{2} + a;
                      const T value = cap * (-a / half);
                      use(i, x(i) / cap < T{0} ? -value : value, T{4} * e / (half * half));
                  });
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
