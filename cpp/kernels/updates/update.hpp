// The loop that all updates share, and the row of the table that describes an update.
//
// An update changes arrays by others, element by element: an optimizer changes parameters by their
// gradients. It is a struct that derives from update_defaults and has
//   options, states   their names, and how options are checked
//   Scalars<T>        the numbers that its arithmetic needs
//   prepare           computes the numbers of one step in double, and flags that choose a rule
//   ranges            the numbers that must fit into the element type
//   Rule<T, flags...> the arithmetic of one element. It takes the parameter and the states by
//                     reference and the gradient by value. Bit i of `states` says whether it uses
//                     state number i.
// All loads, stores and conversions are in this file.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct update_defaults {
    static constexpr Words words = {"optimizer", "parameter", "gradient of"};
    static constexpr int state_count = 0;
    static constexpr const char* const* states = nullptr;
    static const char* conflict(const double*) { return nullptr; }
    static bool uses_state(const double*, int) { return true; }
};

constexpr int no_item = Option{}.item;

template <template <class> class Scalars, int count = 0>
struct Prepared {
    static constexpr int flag_count = count;
    Scalars<double> scalars;
    // In the order of the rule's template parameters. The last is unused: an array needs one.
    bool flags[count + 1] = {};
};

// What the element type must be able to hold. No number may become infinite. A factor may become 0,
// because its products do so too for all but huge gradients. A divisor must not.
enum class Small {
    may_vanish,
    must_not_vanish
};

template <template <class> class Scalars>
struct Range {
    const char* name;
    double Scalars<double>::* scalar;
    Small small = Small::may_vanish;
};

// Each number rounded to the element type.
template <class T, template <class> class Scalars>
Scalars<T> rounded(const Scalars<double>& scalars) {
    constexpr std::size_t count = sizeof(scalars) / sizeof(double);
    static_assert(sizeof(Scalars<T>) == count * sizeof(T), "Scalars<T> holds nothing but T");
    double from[count];
    T to[count];
    __builtin_memcpy(from, &scalars, sizeof(from));
    for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<T>(from[i]);
    Scalars<T> result;
    __builtin_memcpy(&result, to, sizeof(to));
    return result;
}

// Processors fetch ahead by themselves, but not far enough for four arrays at once, and not across
// pages. Prefetching made arrays out of cache 5 to 9 % faster on Sapphire Rapids.
constexpr std::size_t block_bytes = 256;        // of each array, between two rounds of prefetches
constexpr std::size_t prefetch_distance = 512;  // bytes

template <class T>
void prefetch_block(const T* block) {
    const auto* ahead = reinterpret_cast<const char*>(block) + prefetch_distance;
    for (std::size_t line = 0; line < block_bytes; line += 64)
        __builtin_prefetch(ahead + line, 0, 3);
}

template <class T, class Rule>
FASTOPT_INLINE void run_elements(const Rule& rule, T* __restrict param, const T* __restrict grad,
                                 T* __restrict state0, T* __restrict state1, T* __restrict state2,
                                 std::size_t start, std::size_t end, T grad_factor) {
    constexpr bool copies = requires { requires Rule::copies; };
    for (std::size_t i = start; i < end; ++i) {
        T p = param[i], g = grad[i], s0{}, s1{}, s2{};
        // A product with 1 would change the bits of a signalling NaN.
        if constexpr (!copies) g = grad_factor * g;
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
    // No prefetch beyond the run: another thread may be writing there.
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

template <class Kind>
void prepare(const double* options, std::int64_t step, bool fresh, Coefficients& out) {
    const auto prepared = Kind::prepare(options, step, fresh);
    static_assert(sizeof(prepared) <= sizeof(out.bytes));
    __builtin_memcpy(out.bytes, &prepared, sizeof(prepared));
    out.grad_factor = 1.0;
    if constexpr (requires { Kind::maximize; })
        if (options[Kind::maximize] != 0.0) out.grad_factor = -1.0;
}

template <class Kind>
auto prepared(const Coefficients& coefficients) {
    decltype(Kind::prepare(nullptr, 1, true)) result;
    __builtin_memcpy(&result, coefficients.bytes, sizeof(result));
    return result;
}

template <class T>
bool fits(double value, Small small) {
    constexpr double largest = sizeof(T) == sizeof(float) ? __FLT_MAX__ : __DBL_MAX__;
    if (small == Small::must_not_vanish && value != 0.0 && static_cast<T>(value) == T{0})
        return false;
    return value >= -largest && value <= largest;
}

template <class Kind>
Unfit unfit(const Coefficients& coefficients, Type type) {
    const auto scalars = prepared<Kind>(coefficients).scalars;
    for (const auto& range : Kind::ranges) {
        const double value = scalars.*range.scalar;
        const bool fine = type == Type::float32 ? fits<float>(value, range.small)
                                                : fits<double>(value, range.small);
        if (!fine) return {range.name, value};
    }
    return {nullptr, 0.0};
}

// Runs the rule that the flags choose. `flags` are those already turned into template arguments.
template <class Kind, class T, bool... flags, class Step>
void run_chosen(const Step& step, const Slice& slice, std::size_t count, T grad_factor) {
    if constexpr (sizeof...(flags) < Step::flag_count) {
        if (step.flags[sizeof...(flags)])
            run_chosen<Kind, T, flags..., true>(step, slice, count, grad_factor);
        else
            run_chosen<Kind, T, flags..., false>(step, slice, count, grad_factor);
    } else if constexpr (requires { typename Kind::template Rule<T, flags...>; }) {
        using Rule = typename Kind::template Rule<T, flags...>;
        run_rule(Rule{rounded<T>(step.scalars)}, slice, count, grad_factor);
    }
}

template <class Kind, class T>
void run(const Slice& slice, std::size_t count, const Coefficients& coefficients) {
    run_chosen<Kind, T>(prepared<Kind>(coefficients), slice, count,
                        static_cast<T>(coefficients.grad_factor));
}

template <class Kind>
constexpr Update make_row() {
    static_assert(Kind::option_count <= max_options);
    static_assert(Kind::option_count == sizeof(Kind::options) / sizeof(Option));
    static_assert(Kind::state_count <= max_states);
    if constexpr (Kind::state_count > 0)
        static_assert(Kind::state_count == sizeof(Kind::states) / sizeof(Kind::states[0]));
    return {Kind::name,
            Kind::words,
            Kind::options,
            Kind::option_count,
            Kind::states,
            Kind::state_count,
            Kind::conflict,
            Kind::uses_state,
            prepare<Kind>,
            unfit<Kind>,
            {run<Kind, float>, run<Kind, double>}};
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
