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

#include "../arithmetic/noise.hpp"
#include "../arithmetic/storage.hpp"
#include "../table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct update_defaults {
    static constexpr Words words = {"optimizer", "parameter", "gradient of"};
    static constexpr int state_count = 0;
    static constexpr const char* const* states = nullptr;
    static constexpr int second_moment = -1;
    static constexpr bool has_types = true;
    static constexpr bool first_is_optional = false;  // state 0 may be absent: it counts as zeros
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
// pages. Prefetching made arrays out of cache 5 to 9 % faster on Sapphire Rapids. There is no
// prefetch beyond the run: another thread may be writing there.
constexpr std::size_t prefetch_distance = 512;  // bytes of an array of float32 or float64

// No pointer is __restrict: GCC would store the states earlier, and AdamW take 3 % longer.
template <class Rule, class T, class Grad>
FASTOPT_INLINE void run_elements(const Rule& rule, T* param, const Grad* grad, T* state0, T* state1,
                                 T* state2, std::size_t start, std::size_t end, T grad_factor) {
    constexpr bool copies = requires { requires Rule::copies; };
    FASTOPT_INDEPENDENT
    for (std::size_t i = start; i < end; ++i) {
        T p = param[i], g = load(grad[i]), s0{}, s1{}, s2{};
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

// `reach` elements may be prefetched: prefetch_distance more than `count`, unless the run ends
// before.
template <class Rule, class T, class Grad>
FASTOPT_INLINE void run_arrays(const Rule& rule, T* param, const Grad* grad, T* state0, T* state1,
                               T* state2, std::size_t count, std::size_t reach, T grad_factor) {
    constexpr std::size_t block = 256 / sizeof(T);
    constexpr std::size_t distance = prefetch_distance / sizeof(T);
    std::size_t start = 0;
    for (; start + distance + block <= reach; start += block) {
        const std::size_t ahead = start + distance;
        prefetch(param + ahead, block);
        prefetch(grad + ahead, block);
        if constexpr (Rule::states & 1) prefetch(state0 + ahead, block);
        if constexpr (Rule::states & 2) prefetch(state1 + ahead, block);
        if constexpr (Rule::states & 4) prefetch(state2 + ahead, block);
        run_elements(rule, param, grad, state0, state1, state2, start, start + block, grad_factor);
    }
    run_elements(rule, param, grad, state0, state1, state2, start, count, grad_factor);
}

// All arrays have the type of the arithmetic.
template <class T, class Rule>
void run_plain(const Rule rule, const Slice& slice, std::size_t count, T grad_factor) {
    run_arrays(rule, static_cast<T*>(slice.param), static_cast<const T*>(slice.grad),
               static_cast<T*>(slice.state[0]), static_cast<T*>(slice.state[1]),
               static_cast<T*>(slice.state[2]), count, count, grad_factor);
}

// A rule over arrays of float32, with gradients of float32 or of bfloat16.
struct WideRule {
    using Run = void (*)(const void* rule, float* param, const void* grad, float* state0,
                         float* state1, float* state2, std::size_t count, std::size_t reach,
                         float grad_factor);
    const void* rule;
    Run run, run_bfloat16;
    int second_moment;
};
template <class Rule, class Grad>
void run_wide(const void* rule_data, float* param, const void* grad, float* state0, float* state1,
              float* state2, std::size_t count, std::size_t reach, float grad_factor) {
    const Rule rule = *static_cast<const Rule*>(rule_data);
    run_arrays(rule, param, static_cast<const Grad*>(grad), state0, state1, state2, count, reach,
               grad_factor);
}

// Random bits that round a parameter and a second moment, or nullptr: they go to the nearest.
struct Noise {
    const std::uint16_t* param;
    const std::uint16_t* second_moment;
};

constexpr std::size_t part_size = noise_size;  // elements that are converted together

// Runs a rule over the elements start, start + 1, ...: `count` of `rest`. Arrays that it cannot
// read pass through others on the stack, and then there are at most part_size elements. Conversions
// have loops of their own: in the rule's, they would wait for its root and its division. The slice
// stays as it is: a pair of pointers that is loaded at once, after each was stored, waits for the
// stores of the part before.
FASTOPT_INLINE void run_part(const WideRule& rule, const Slice& slice, std::size_t start,
                             std::size_t count, std::size_t rest, float grad_factor, Noise noise) {
    const Storage& storage = slice.storage;
    alignas(64) float wide_param[part_size], wide_grad[part_size];
    alignas(64) float wide_state[max_states][part_size];
    const auto wide = [start](void* data) { return static_cast<float*>(data) + start; };
    // The part of an array of 16 bits. The next part is prefetched.
    const auto narrow = [&](auto* data) {
        auto* const part = moved(data, 2 * start);
        if (rest >= 2 * part_size)
            prefetch(static_cast<const float16*>(moved(part, 2 * part_size)), part_size);
        return part;
    };
    void* const copy = slice.copy == nullptr ? nullptr : narrow(slice.copy);
    void* const remainder = storage.split ? narrow(slice.remainder) : nullptr;
    void* narrow_param = nullptr;
    float* param = wide_param;
    if (storage.param == Type::float32) {
        param = wide(slice.param);
        if (storage.master) take_written(storage.copy, copy, count, param);
    } else {
        narrow_param = narrow(slice.param);
        if (storage.split)
            join_elements(narrow_param, remainder, count, param);
        else
            widen<bfloat16>(narrow_param, count, param);
    }
    const void* grad = moved(slice.grad, start * size_of(storage.grad));
    if (storage.grad == Type::float16) {
        widen<float16>(narrow(slice.grad), count, wide_grad);
        grad = wide_grad;
    }
    float* state[max_states] = {};
    void* narrow_state[max_states] = {};
    for (int i = 0; i < max_states; ++i) {
        if (slice.state[i] == nullptr) continue;
        if (storage.state[i] == Type::float32) {
            state[i] = wide(slice.state[i]);
        } else {
            state[i] = wide_state[i];
            narrow_state[i] = narrow(slice.state[i]);
            widen<bfloat16>(narrow_state[i], count, state[i]);
        }
    }
    const auto run = storage.grad == Type::bfloat16 ? rule.run_bfloat16 : rule.run;
    const std::size_t reach = count + prefetch_distance / sizeof(float);
    run(rule.rule, param, grad, state[0], state[1], state[2], count, reach < rest ? reach : rest,
        grad_factor);

    for (int i = 0; i < max_states; ++i)
        if (narrow_state[i] != nullptr)
            round_elements(Type::bfloat16, state[i], count,
                           i == rule.second_moment ? noise.second_moment : nullptr,
                           narrow_state[i]);
    if (copy != nullptr) round_elements(storage.copy, param, count, nullptr, copy);
    if (storage.split)
        split_elements(param, count, narrow_param, remainder);
    else if (narrow_param != nullptr)
        round_elements(Type::bfloat16, param, count, noise.param, narrow_param);
}

// Arrays of which not all are float32.
__attribute__((noinline)) void run_stored(const WideRule& rule, const Slice& slice,
                                          std::size_t count, float grad_factor) {
    const Storage& storage = slice.storage;
    bool converts =
        storage.param != Type::float32 || storage.grad == Type::float16 || slice.copy != nullptr;
    bool rounds_moment = false;
    for (int i = 0; i < max_states; ++i) {
        if (slice.state[i] == nullptr || storage.state[i] == Type::float32) continue;
        converts = true;
        rounds_moment = rounds_moment || i == rule.second_moment;
    }
    const bool rounds_param = storage.param == Type::bfloat16 && !storage.split;
    const std::uint64_t base = storage.stochastic ? noise_base(slice.noise) : 0;
    alignas(64) std::uint16_t param_noise[noise_size], moment_noise[noise_size];
    for (std::size_t start = 0, size; start < count; start += size) {
        const std::uint64_t first = slice.first + start;
        const std::size_t place = first % part_size;
        const std::size_t rest = count - start;
        size = converts && part_size - place < rest ? part_size - place : rest;
        Noise noise{};
        if (storage.stochastic) {
            if (rounds_param) fill_noise(base, first - place, 0, param_noise);
            if (rounds_moment) fill_noise(base, first - place, 1, moment_noise);
            noise = {param_noise + place, moment_noise + place};
        }
        run_part(rule, slice, start, size, rest, grad_factor, noise);
    }
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
        const bool fine = arithmetic_type(type) == Type::float32 ? fits<float>(value, range.small)
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
        const Rule rule{rounded<T>(step.scalars)};
        if (slice.storage.plain)
            run_plain(rule, slice, count, grad_factor);
        else if constexpr (__is_same(T, float))
            run_stored(
                {&rule, run_wide<Rule, float>, run_wide<Rule, bfloat16>, Kind::second_moment},
                slice, count, grad_factor);
    }
}

// Calls `run` for parts of a slice, with zeros for state 0, which is not kept.
template <class T, class Run>
__attribute__((noinline)) void run_with_zeros(Slice rest, std::size_t count,
                                              const Coefficients& coefficients, Run run) {
    constexpr std::size_t size = 4096 / sizeof(T);  // the zeros stay in the L1 cache
    alignas(64) std::byte zeros[size * sizeof(T)];
    rest.storage.state[0] = sizeof(T) == sizeof(float) ? Type::float32 : Type::float64;
    for (std::size_t part; count > 0; count -= part) {
        part = count < size ? count : size;
        __builtin_memset(zeros, 0, sizeof(zeros));
        Slice slice = rest;
        slice.state[0] = zeros;
        run(slice, part, coefficients);
        advance(rest, part);
    }
}

template <class Kind, class T>
void run(const Slice& slice, std::size_t count, const Coefficients& coefficients) {
    if constexpr (Kind::first_is_optional)
        if (slice.state[0] == nullptr)
            return run_with_zeros<T>(slice, count, coefficients, run<Kind, T>);
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
            Kind::second_moment,
            Kind::has_types,
            Kind::conflict,
            Kind::uses_state,
            prepare<Kind>,
            unfit<Kind>,
            {run<Kind, float>, run<Kind, double>}};
}

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
