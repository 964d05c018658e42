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

// `second` rounds the second moment if it is stored in 16 bits.
template <class Kind, class Rule, class T, class Grad, class State>
FASTOPT_INLINE void run_elements(const Rule& rule, T* __restrict param, const Grad* __restrict grad,
                                 State* __restrict state0, State* __restrict state1,
                                 State* __restrict state2, std::size_t start, std::size_t end,
                                 T grad_factor, Rounding second = {}) {
    constexpr bool copies = requires { requires Rule::copies; };
    FASTOPT_INDEPENDENT
    for (std::size_t i = start; i < end; ++i) {
        const auto store = [&](State* state, int number, T value) {
            state[i] = number == Kind::second_moment ? rounded_to<State>(value, second, i)
                                                     : nearest<State>(value);
        };
        T p = param[i], g = load(grad[i]), s0{}, s1{}, s2{};
        // A product with 1 would change the bits of a signalling NaN.
        if constexpr (!copies) g = grad_factor * g;
        if constexpr (Rule::states & 1) s0 = load(state0[i]);
        if constexpr (Rule::states & 2) s1 = load(state1[i]);
        if constexpr (Rule::states & 4) s2 = load(state2[i]);
        rule(p, g, s0, s1, s2);
        param[i] = p;
        if constexpr (Rule::states & 1) store(state0, 0, s0);
        if constexpr (Rule::states & 2) store(state1, 1, s1);
        if constexpr (Rule::states & 4) store(state2, 2, s2);
    }
}

// All arrays have the type of the arithmetic.
template <class Kind, class T, class Rule>
void run_plain(const Rule rule, const Slice& slice, std::size_t count, T grad_factor) {
    T* param = static_cast<T*>(slice.param);
    const T* grad = static_cast<const T*>(slice.grad);
    T* state0 = static_cast<T*>(slice.state[0]);
    T* state1 = static_cast<T*>(slice.state[1]);
    T* state2 = static_cast<T*>(slice.state[2]);
    constexpr std::size_t block = 256 / sizeof(T);
    constexpr std::size_t distance = prefetch_distance / sizeof(T);
    std::size_t start = 0;
    for (; start + distance + block <= count; start += block) {
        const std::size_t ahead = start + distance;
        prefetch(param + ahead, block);
        prefetch(grad + ahead, block);
        if constexpr (Rule::states & 1) prefetch(state0 + ahead, block);
        if constexpr (Rule::states & 2) prefetch(state1 + ahead, block);
        if constexpr (Rule::states & 4) prefetch(state2 + ahead, block);
        run_elements<Kind>(rule, param, grad, state0, state1, state2, start, start + block,
                           grad_factor);
    }
    run_elements<Kind>(rule, param, grad, state0, state1, state2, start, count, grad_factor);
}

// How the arrays of a block are rounded.
struct BlockRounding {
    Rounding nearest, param, second_moment;
};

// Which arrays of a slice the loop cannot read by itself. It reads gradients and states of
// bfloat16; the others pass through arrays on the stack.
template <class Rule>
struct Staging {
    bool narrow = Rule::states != 0;  // all states are bfloat16
    bool param, grad, state[max_states];
    bool any;

    static constexpr bool uses(int state) { return ((Rule::states >> state) & 1) != 0; }

    explicit Staging(const Slice& slice) {
        const Storage& storage = slice.storage;
        for (int i = 0; i < max_states; ++i)
            if (uses(i)) narrow = narrow && storage.state[i] == Type::bfloat16;
        param = storage.param != Type::float32;
        grad = storage.grad == Type::float16;
        any = param || grad || slice.copy != nullptr;
        for (int i = 0; i < max_states; ++i) {
            state[i] = uses(i) && !narrow && storage.state[i] != Type::float32;
            any = any || state[i];
        }
    }
};

// `blocks` blocks of arrays of which not all are float32; one if any array is staged.
template <class Kind, class Rule>
void run_blocks(const Rule rule, const Slice& slice, std::size_t blocks, float grad_factor,
                const BlockRounding& rounding, const Staging<Rule>& staged) {
    const Storage& storage = slice.storage;
    alignas(64) Block<float> param_block, grad_block, state_block[max_states];
    auto* param = static_cast<float*>(slice.param);
    const void* grad = slice.grad;
    void* state[max_states] = {slice.state[0], slice.state[1], slice.state[2]};
    if (staged.param) {
        param = param_block;
        if (storage.split)
            join_block(slice.param, slice.remainder, param);
        else
            widen_block(storage.param, slice.param, param);
    }
    if (storage.master) take_written(storage.copy, slice.copy, param);
    if (staged.grad) {
        widen_block(storage.grad, grad, grad_block);
        grad = grad_block;
    }
    for (int i = 0; i < max_states; ++i)
        if (Staging<Rule>::uses(i) && staged.state[i]) {
            widen_block(storage.state[i], slice.state[i], state_block[i]);
            state[i] = state_block[i];
        }
    const auto run = [&](const auto* g, auto* first_state) {
        using State = decltype(first_state);
        for (std::size_t start = 0; start < blocks * block_size; start += block_size)
            run_elements<Kind>(rule, param, g, first_state, static_cast<State>(state[1]),
                               static_cast<State>(state[2]), start, start + block_size, grad_factor,
                               rounding.second_moment);
    };
    const auto run_with = [&](const auto* g) {
        if constexpr (Rule::states != 0)
            if (staged.narrow) return run(g, static_cast<bfloat16*>(state[0]));
        run(g, static_cast<float*>(state[0]));
    };
    if (storage.grad == Type::bfloat16)
        run_with(static_cast<const bfloat16*>(grad));
    else
        run_with(static_cast<const float*>(grad));
    if (!staged.any) return;
    for (int i = 0; i < max_states; ++i)
        if (Staging<Rule>::uses(i) && staged.state[i])
            narrow_block(storage.state[i], state_block[i], slice.state[i],
                         i == Kind::second_moment ? rounding.second_moment : rounding.nearest);
    if (slice.copy != nullptr) narrow_block(storage.copy, param, slice.copy, rounding.nearest);
    if (storage.split)
        split_block(param, slice.param, slice.remainder);
    else if (staged.param)
        narrow_block(storage.param, param, slice.param, rounding.param);
}

// The first `count` elements of a block.
template <class Kind, class Rule>
void run_part(const Rule& rule, const Slice& slice, std::size_t count, float grad_factor,
              const BlockRounding& rounding, const Staging<Rule>& staged) {
    alignas(64) std::byte copies[max_arrays][block_size * sizeof(float)] = {};
    Slice block = slice;
    int number = 0;
    each_array(block, [&](auto& data, std::size_t size) {
        __builtin_memcpy(copies[number], data, count * size);
        data = copies[number++];
    });
    run_blocks<Kind>(rule, block, 1, grad_factor, rounding, staged);
    block = slice;
    number = 0;
    each_array(block, [&](auto& data, std::size_t size) {
        if constexpr (requires { __builtin_memcpy(data, data, size); })
            __builtin_memcpy(data, copies[number], count * size);
        ++number;
    });
}

// An array of a slice, which is read in parts of the same size.
struct Stream {
    const void** data;
    std::size_t bytes;  // of a part: a multiple of two cache lines

    // Goes to the next part, and prefetches the one behind it.
    void advance(bool prefetches) {
        const auto* next = static_cast<const std::byte*>(*data) + bytes;
        *data = next;
        if (!prefetches) return;
        for (const std::byte* line = next + bytes; line != next + 2 * bytes; line += 128) {
            __builtin_prefetch(line);
            __builtin_prefetch(line + 64);
        }
    }
};

// Arrays of which not all are float32.
template <class Kind, class Rule>
void run_stored(const Rule rule, Slice slice, std::size_t count, float grad_factor) {
    std::uint16_t half[noise_size];
    for (std::uint16_t& add : half) add = 0x7fff;
    // A part of a block may begin anywhere, and reads a whole block.
    alignas(64) std::uint16_t noise[2][noise_size + block_size] = {};
    const bool stochastic = slice.storage.stochastic;
    const std::uint64_t base = stochastic ? noise_base(slice.noise) : 0;
    std::uint64_t end = slice.first;  // of the elements whose noise is there
    BlockRounding rounding{{half, 1}, {half, 1}, {half, 1}};
    const Staging<Rule> staged(slice);
    const std::size_t at_once = staged.any ? block_size : noise_size;
    Stream streams[max_arrays];
    Stream* last = streams;
    each_array(slice, [&](auto& data, std::size_t size) {
        *last++ = {const_cast<const void**>(&data), at_once * size};
    });
    while (count > 0) {
        if (stochastic) {
            const std::size_t place = slice.first % noise_size;
            if (slice.first >= end) {
                if (slice.storage.param == Type::bfloat16 && !slice.storage.split)
                    fill_noise(base, slice.first - place, 0, noise[0]);
                if constexpr (Kind::second_moment >= 0)
                    fill_noise(base, slice.first - place, 1, noise[1]);
                end = slice.first - place + noise_size;
            }
            rounding.param = {noise[0] + place, 0};
            rounding.second_moment = {noise[1] + place, 0};
        }
        // Up to a multiple of at_once.
        std::size_t size = at_once - slice.first % at_once;
        if (size == at_once && size <= count) {
            run_blocks<Kind>(rule, slice, at_once / block_size, grad_factor, rounding, staged);
            const bool ahead = count >= 3 * at_once;
            for (Stream* stream = streams; stream != last; ++stream) stream->advance(ahead);
            slice.first += size;
            count -= size;
            continue;
        }
        size = size < count ? size : count;
        if (size >= block_size) {
            size -= size % block_size;
            run_blocks<Kind>(rule, slice, size / block_size, grad_factor, rounding, staged);
        } else {
            run_part<Kind>(rule, slice, size, grad_factor, rounding, staged);
        }
        advance(slice, size);
        count -= size;
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
            run_plain<Kind>(rule, slice, count, grad_factor);
        else if constexpr (__is_same(T, float))
            run_stored<Kind>(rule, slice, count, grad_factor);
    }
}

// Calls `run` for parts of a slice, with zeros for state 0, which is not kept.
template <class T, class Run>
__attribute__((noinline)) void run_with_zeros(Slice rest, std::size_t count,
                                              const Coefficients& coefficients, Run run) {
    constexpr std::size_t size = 4096 / sizeof(T);  // the zeros stay in the L1 cache
    alignas(64) std::byte zeros[size * sizeof(T)];  // in any type
    rest.storage.state[0] = rest.storage.state[1];
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
