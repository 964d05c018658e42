// The loop that every optimizer shares, and the row that an optimizer adds to the table.
//
// An optimizer is a struct with its options, its states, `prepare` (the scalars of a step, in
// double), `ranges` (what of them must fit into the element type) and `with_rule`, which picks a
// rule and hands it to its callback. A rule is the mathematics of one element: it takes param and
// states by reference, the gradient by value, and says in `states` (one bit each) which states it
// reads and writes. Loading, converting and storing happen here and only here. What is no optimizer
// but updates arrays by others gives its own labels for the arrays.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

template <bool constant>
struct Bool {
    static constexpr bool value = constant;
};

// Calls `body` with the flag as a type, so that it can choose a template by it.
template <class Body>
void with_flag(bool flag, Body body) {
    flag ? body(Bool<true>{}) : body(Bool<false>{});
}

// Asks for what the loop will read `prefetch_distance` bytes from now: processors fetch ahead by
// themselves, but too little of four streams at once, and not across pages. Measured on Sapphire
// Rapids: 5 to 9 % for arrays out of cache.
constexpr std::size_t block_bytes = 256;
constexpr std::size_t prefetch_distance = 512;

template <class T>
void prefetch_block(const T* block) {
    const auto* ahead = reinterpret_cast<const char*>(block) + prefetch_distance;
    for (std::size_t line = 0; line < block_bytes; line += 64)
        __builtin_prefetch(ahead + line, 0, 3);
}

template <class T, class Rule>
inline __attribute__((always_inline)) void run_elements(const Rule& rule, T* __restrict param,
                                                        const T* __restrict grad,
                                                        T* __restrict state0, T* __restrict state1,
                                                        T* __restrict state2, std::size_t start,
                                                        std::size_t end, T grad_factor) {
    for (std::size_t i = start; i < end; ++i) {
        T p = param[i], g = grad[i], s0{}, s1{}, s2{};
        // Even a product with 1 would change the bits of a signalling NaN.
        if constexpr (!requires { Rule::reads_bits; }) g = grad_factor * g;
        if constexpr (Rule::states & 1) s0 = state0[i];
        if constexpr (Rule::states & 2) s1 = state1[i];
        if constexpr (Rule::states & 4) s2 = state2[i];
        rule(p, g, s0, s1, s2);
        param[i] = p;
        if constexpr (Rule::states & 1) state0[i] = s0;
        if constexpr (Rule::states & 2) state1[i] = s1;
        if constexpr (Rule::states & 4) state2[i] = s2;
    }
}

template <class T, class Rule>
void run_rule(const Rule rule, const Slice& slice, std::size_t count, T grad_factor) {
    T* param = static_cast<T*>(slice.param);
    const T* grad = static_cast<const T*>(slice.grad);
    T* state0 = static_cast<T*>(slice.state[0]);
    T* state1 = static_cast<T*>(slice.state[1]);
    T* state2 = static_cast<T*>(slice.state[2]);
    constexpr std::size_t block = block_bytes / sizeof(T);
    constexpr std::size_t ahead = prefetch_distance / sizeof(T) + block;
    std::size_t start = 0;
    // Not beyond the run: what follows it may be in the cache of the thread that is writing it.
    for (; start + ahead <= count; start += block) {
        prefetch_block(param + start);
        prefetch_block(grad + start);
        if constexpr (Rule::states & 1) prefetch_block(state0 + start);
        if constexpr (Rule::states & 2) prefetch_block(state1 + start);
        if constexpr (Rule::states & 4) prefetch_block(state2 + start);
        run_elements(rule, param, grad, state0, state1, state2, start, start + block, grad_factor);
    }
    run_elements(rule, param, grad, state0, state1, state2, start, count, grad_factor);
}

template <class Family>
void prepare(const double* options, std::int64_t step, bool fresh, Coefficients& out) {
    static_assert(sizeof(typename Family::Scalars) <= sizeof(out.bytes));
    const auto scalars = Family::prepare(options, step, fresh);
    __builtin_memcpy(out.bytes, &scalars, sizeof(scalars));
    out.grad_factor = 1.0;
    if constexpr (requires { Family::maximize; })
        if (options[Family::maximize] != 0.0) out.grad_factor = -1.0;
}

// What may become of a scalar when it is rounded to the element type. None may become infinite. A
// factor may become 0, as its products do for all but huge gradients; a divisor must not.
enum class Small {
    may_vanish,
    must_not_vanish
};

template <class Scalars>
struct Range {
    const char* name;
    double Scalars::* scalar;
    Small small;
};

template <class T>
bool fits(double value, Small small) {
    constexpr double largest = sizeof(T) == sizeof(float) ? __FLT_MAX__ : __DBL_MAX__;
    if (small == Small::must_not_vanish && value != 0.0 && static_cast<T>(value) == T{0})
        return false;
    return value >= -largest && value <= largest;
}

template <class Family>
Unfit unfit(const Coefficients& coefficients, Type type) {
    typename Family::Scalars scalars;
    __builtin_memcpy(&scalars, coefficients.bytes, sizeof(scalars));
    for (const auto& range : Family::ranges) {
        const double value = scalars.*range.scalar;
        const bool fine = type == Type::float32 ? fits<float>(value, range.small)
                                                : fits<double>(value, range.small);
        if (!fine) return {range.name, value};
    }
    return {nullptr, 0.0};
}

template <class Family, class T>
void update(const Slice& slice, std::size_t count, const Coefficients& coefficients) {
    typename Family::Scalars scalars;
    __builtin_memcpy(&scalars, coefficients.bytes, sizeof(scalars));
    const T grad_factor = static_cast<T>(coefficients.grad_factor);
    Family::template with_rule<T>(scalars,
                                  [&](auto rule) { run_rule<T>(rule, slice, count, grad_factor); });
}

// The base of what keeps nothing but the arrays that it writes.
struct stateless {
    static constexpr int state_count = 0;
    static constexpr const char* const* states = nullptr;
    static const char* conflict(const double*) { return nullptr; }
    static bool uses_state(const double*, int) { return false; }
};

template <class Family>
constexpr Words words_of() {
    if constexpr (requires { Family::words; })
        return Family::words;
    else
        return {"optimizer", "parameter", "gradient of"};
}

template <class Family>
constexpr Optimizer make_row() {
    static_assert(Family::option_count <= max_options);
    static_assert(Family::state_count <= max_states);
    return {Family::name,
            words_of<Family>(),
            Family::options,
            Family::option_count,
            Family::states,
            Family::state_count,
            Family::conflict,
            Family::uses_state,
            prepare<Family>,
            unfit<Family>,
            {update<Family, float>, update<Family, double>}};
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
