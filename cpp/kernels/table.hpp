// The two tables of function pointers that the kernels export for each instruction set, and the
// plain structs that their functions take.
#pragma once

#include <cstddef>
#include <cstdint>

// For functions whose callers are vectorized only if they are inlined, or are faster then.
#define FASTOPT_INLINE inline __attribute__((always_inline))

namespace fastopt {

// The element types, as an index into the tables below. The first are also those of arithmetic.
enum class Type : int {
    float32,
    float64,
    bfloat16,
    float16
};
constexpr int arithmetic_count = 2;
constexpr int type_count = 4;

// The type in which elements of this type are computed.
constexpr Type arithmetic_type(Type type) {
    return type == Type::float64 ? Type::float64 : Type::float32;
}
constexpr bool is_16_bit(Type type) { return arithmetic_type(type) != type; }
constexpr std::size_t size_of(Type type) {
    return is_16_bit(type) ? 2 : type == Type::float64 ? 8 : 4;
}

constexpr int max_options = 12;  // of an update
constexpr int max_states = 3;    // of an update
// Partial sums of a norm, part of its bits: four vectors of eight double, the widest there are.
constexpr std::size_t norm_lanes = 32;
// Positions that the kernels along columns take side by side: two to eight vectors of float.
constexpr std::size_t column_count = 32;

// No linkage: each instruction set needs its own copy.
namespace {

// Folds lanes by halves into lanes[0]: 2 * half lanes, where half is a power of two.
template <class Lane, class Combine>
FASTOPT_INLINE void fold_lanes(Lane* lanes, std::size_t half, Combine combine) {
    for (; half > 0; half /= 2)
        for (std::size_t lane = 0; lane < half; ++lane) combine(lanes[lane], lanes[lane + half]);
}

// The sum of lanes, which are lost.
template <std::size_t count>
FASTOPT_INLINE double sum_lanes(double (&lanes)[count]) {
    fold_lanes(lanes, count / 2, [](double& a, double b) { a += b; });
    return lanes[0];
}

}  // namespace

// The values that an option may take.
enum class Domain : int {
    finite,        // any finite number
    non_negative,  // finite and >= 0
    fraction,      // 0 <= x <= 1
    decay_rate,    // 0 <= x < 1
    flag,          // True or False, as 1 or 0
    choice,        // one of `choices`, as its index
};

// One number that an update reads from a parameter group.
struct Option {
    const char* name;  // the key in the group
    Domain domain;
    int item = -1;  // position inside a tuple such as betas, or -1 for a plain value
    const char* choices[2] = {};
};

// The scalars of one step for one parameter, in double: the kernel rounds each once.
struct Coefficients {
    double grad_factor;                  // multiplies every gradient: -1 to maximize
    alignas(8) unsigned char bytes[88];  // the update's own struct; Adam's is the largest
};

// A scalar that an element type cannot hold, with its words in messages.
struct Unfit {
    const char* name;
    double value;
};

// How the arrays of a parameter are stored, where they are not all of its arithmetic type.
struct Storage {
    Type param;
    Type grad;
    Type state[max_states];  // not float16
    Type copy;
    bool master;      // the slice's param is the master of its copy, which is the parameter
    bool plain;       // all arrays have the type of the arithmetic, and there is no copy
    bool split;       // a bfloat16 parameter and its remainder hold a float32
    bool stochastic;  // a bfloat16 parameter without remainder, and a second moment, are rounded so
};

// What random bits depend on, beside the number of the element.
struct NoiseKey {
    std::uint64_t seed, step, tensor;
};

// Pointers to the first element of a run of one parameter.
struct Slice {
    void* param;
    const void* grad;
    void* state[max_states];
    void* remainder;  // int16, of a split parameter, or nullptr
    void* copy;       // gets the parameter in another type, or nullptr
    Storage storage;
    NoiseKey noise;
    std::uint64_t first;  // the number of the first element in its array
};

namespace {

FASTOPT_INLINE const void* moved(const void* data, std::size_t bytes) {
    return static_cast<const std::byte*>(data) + bytes;
}
FASTOPT_INLINE void* moved(void* data, std::size_t bytes) {
    return static_cast<std::byte*>(data) + bytes;
}

// Leaves out the first `count` elements of a slice.
FASTOPT_INLINE void advance(Slice& slice, std::size_t count) {
    const auto advance_one = [count](auto& data, Type type) {
        if (data != nullptr) data = moved(data, count * size_of(type));
    };
    const Storage& storage = slice.storage;
    advance_one(slice.param, storage.param);
    advance_one(slice.grad, storage.grad);
    for (int i = 0; i < max_states; ++i) advance_one(slice.state[i], storage.state[i]);
    advance_one(slice.remainder, Type::bfloat16);  // int16 has its size
    advance_one(slice.copy, storage.copy);
    slice.first += count;
}

}  // namespace

// The words of messages.
struct Words {
    const char* owner;  // of the arrays
    const char* param;  // before the name of an array that is updated
    const char* grad;   // before the name of an array that it is updated by
};

// The properties of an update (an optimizer, an average or a sum) for the runtime and the bindings.
struct Update {
    const char* name;
    Words words;
    const Option* options;
    int option_count;
    const char* const* states;  // the names of the state arrays
    int state_count;
    int second_moment;  // the state that moves in steps too small for 16 bits, or -1
    bool has_types;     // whether its groups have the options of types: state_dtype, master, ...
    // The reason why these options cannot be combined, or nullptr.
    const char* (*conflict)(const double* options);
    // Whether state number `index` is used with these options.
    bool (*uses_state)(const double* options, int index);
    // The scalars of step number `step` (1, 2, ...), in double. `fresh`: the state has just been
    // created, and this is its first gradient.
    void (*prepare)(const double* options, std::int64_t step, bool fresh, Coefficients& out);
    // The first of these scalars that cannot be rounded to `type`; its name is nullptr if there is
    // none.
    Unfit (*unfit)(const Coefficients& scalars, Type type);
    void (*run[arithmetic_count])(const Slice& slice, std::size_t count,
                                  const Coefficients& scalars);
};

// The table of updates, what is computed from gradients before an update, and conversions.
struct UpdateTable {
    const Update* updates;
    int update_count;
    // Elements of 16 bits as float32, and back: rounded to the nearest, ties to even. nullptr for
    // other types.
    void (*widen[type_count])(const void* x, std::size_t count, float* out);
    void (*narrow[type_count])(const float* x, std::size_t count, void* out);
    // (x / divisor) * multiplier, computed in double, in the type of the arithmetic.
    void (*rescale[type_count])(const void* x, std::size_t count, double divisor, double multiplier,
                                void* out);
    // The same, x * factor, and x clamped into [-limit, limit], in place.
    void (*rescale_in_place[type_count])(void* x, std::size_t count, double divisor,
                                         double multiplier);
    void (*scale[type_count])(void* x, std::size_t count, double factor);
    void (*clamp[type_count])(void* x, std::size_t count, double limit);
    // Adds (scale * x[i])^2 to lanes[i mod norm_lanes].
    void (*add_squares[type_count])(const void* x, std::size_t count, double scale, double* lanes);
    // The largest |x[i]|; NaN if there is one.
    double (*largest_magnitude[type_count])(const void* x, std::size_t count);
};

// An array of classes at positions. Position p is number p % inner of a run, the runs are p /
// inner. Strides are in elements, and the first position is number 0.
struct ClassArray {
    void* data;  // nullptr: there is none
    std::ptrdiff_t run_stride;
    std::ptrdiff_t inner_stride;
    std::ptrdiff_t class_stride;
};

// A block of positions of such arrays.
struct ClassBlock {
    std::size_t first, positions;  // of `total`
    std::size_t total;
    std::size_t inner;
    std::size_t classes;
    void* scratch;  // working memory
};

// A kernel over the classes of a block of positions.
template <class Block>
struct ClassKernel {
    void (*run)(const Block& block);
    std::size_t (*scratch)(const Block& block);  // the bytes of working memory that run() needs
};

// Along rows, for classes that are neighbours in memory, and along columns, for all classes.
template <class Block>
struct ClassKernels {
    ClassKernel<Block> rows, columns;
};

struct CrossEntropyOptions {
    std::int64_t ignore_index;
    double label_smoothing;
    double z_loss;
    double logit_softcap;
};

// The range of an option that is a number. 0 is always allowed, and switches the option off.
struct CrossEntropyRange {
    const char* name;
    double CrossEntropyOptions::* value;
    double least, most;
    const char* words;  // in a message: "z_loss must be ..."
};
constexpr CrossEntropyRange cross_entropy_ranges[] = {
    {"label_smoothing", &CrossEntropyOptions::label_smoothing, 0.0, 1.0, "in [0, 1]"},
    {"z_loss", &CrossEntropyOptions::z_loss, 0.0, __DBL_MAX__, "finite and not negative"},
    // Within what float32 holds with all its digits, as are the logits divided by it.
    {"logit_softcap", &CrossEntropyOptions::logit_softcap, 1e-30, 1e30,
     "0 (none) or in [1e-30, 1e30]"},
};

// A block of cross-entropy. `T` is the element type of the table's entry.
struct CrossEntropyBlock : ClassBlock {
    CrossEntropyOptions options;
    ClassArray logits;            // T
    ClassArray grad;              // T, may be `logits`; values only if there is none
    ClassArray probabilities;     // T, or none
    const std::int64_t* targets;  // [positions], each ignore_index or in [0, classes), or nullptr
    const void* weight;           // T [classes], or nullptr for all 1
    double* losses;               // [positions]; 0 where ignored
    double* log_sum_exp;          // [positions], or nullptr; 0 where ignored
    unsigned char* correct;  // [positions], or nullptr: whether the largest logit is the target
    double weight_sum;       // of all classes
    double grad_scale;       // 1 / the denominator of the mean, or 1
};

constexpr int max_operands = 4;
constexpr int max_pointwise_options = 4;
// Partial sums of a pointwise loss, part of its bits: four to sixteen vectors of float.
constexpr std::size_t pointwise_lanes = 64;

// A run of elements of a pointwise loss or function. `T` is the element type of the table's entry.
struct PointwiseRun {
    const void* operands[max_operands];  // T [count] each; nullptr: all 1
    void* out;      // T [count], the gradient or the function; may be an operand; nullptr: unwanted
    void* losses;   // T [count], or nullptr for their sums:
    double* lanes;  // loss i is added to lanes[i mod pointwise_lanes]
    std::size_t count;
    std::size_t first;  // the number of element 0 in its array
    const double* options;
    double grad_scale;  // multiplies the gradient of a loss
    bool stream;        // past the caches: `out` will not be read soon
};

// The properties of a pointwise loss or function for the runtime and the bindings.
struct Pointwise {
    const char* name;
    bool is_loss;
    int operand_count;  // those that cannot be left out; a loss's are its input and target
    int option_count;
    bool unit_interval;  // the first operand must lie in [0, 1]
    int work;            // of one element, in elements of an update
    void (*run[arithmetic_count])(const PointwiseRun& run);
};

// A block of softmax, log_softmax or their backward forms.
struct SoftmaxBlock : ClassBlock {
    ClassArray x;     // T; the result of the forward form for the backward form
    ClassArray grad;  // T, the backward form's
    ClassArray out;   // T, may be one of them
};

// What copy_targets found.
struct CheckedTargets {
    bool fine;          // each is ignore_index or in [0, classes)
    std::int64_t kept;  // those that are not ignored
};

// The table of losses.
struct LossTable {
    ClassKernels<CrossEntropyBlock> cross_entropy[arithmetic_count];
    // softmax and log_softmax.
    ClassKernels<SoftmaxBlock> softmax[arithmetic_count][2];
    ClassKernels<SoftmaxBlock> softmax_backward[arithmetic_count][2];
    // Copies class indices, and checks the copies. `none_ignored`: ignore_index has no meaning.
    CheckedTargets (*copy_targets)(const std::int64_t* from, std::size_t count,
                                   std::int64_t classes, std::int64_t ignore_index,
                                   bool none_ignored, std::int64_t* to);
    const Pointwise* pointwise;
    int pointwise_count;
    // Whether an element is not in [0, 1], or NaN.
    bool (*leaves_unit_interval[arithmetic_count])(const void* x, std::size_t count);
};

}  // namespace fastopt
