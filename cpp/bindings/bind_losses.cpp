// The losses: checks, buffers and the call.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>

#include "../runtime/floating_point.hpp"
#include "../runtime/isa.hpp"
#include "../runtime/run_cross_entropy.hpp"
#include "../runtime/run_nll.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "dlpack.hpp"
#include "gil.hpp"
#include "late.hpp"
#include "scalars.hpp"

namespace fastopt {
namespace {

Reduction parse_reduction(const py::object& given) {
    const std::string name = as_text(given, "reduction");
    if (name == "mean") return Reduction::mean;
    if (name == "sum") return Reduction::sum;
    if (name == "none") return Reduction::none;
    throw py::value_error("reduction must be 'mean', 'sum' or 'none', not " + short_repr(given));
}

using Shape = std::vector<py::ssize_t>;

// What messages about the targets of a loss say of its other arrays.
struct TargetWords {
    const char* row;               // what has one class index
    const char* axis;              // where its classes are, if that may be unclear
    const char* or_probabilities;  // what the targets may be instead
};
constexpr TargetWords logits_words{"row of logits", " (whose classes are along axis 1)",
                                   ", or be probabilities of the logits' dtype and shape"};
constexpr TargetWords log_probs_words{"row of log_probs", " (whose classes are along axis 1)", ""};
constexpr TargetWords hidden_words{
    "row of hidden", "", ", or be probabilities of hidden's dtype with a last axis of all classes"};

py::tuple as_tuple(const Shape& shape) {
    py::tuple result(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) result[i] = shape[i];
    return result;
}

// Classes at positions: the class axis is axis 1, or the only one.
struct ClassShape {
    // Throws ValueError unless there is a class.
    ClassShape(const py::array& array, const char* what)
        : positions(array.shape(), array.shape() + array.ndim()) {
        const auto axis = static_cast<std::ptrdiff_t>(positions.size() > 1);
        if (positions.empty() || positions[static_cast<std::size_t>(axis)] == 0)
            throw_error<py::value_error>(
                "{} must have shape (C,), (N, C) or (N, C, d1, ...) with C >= 1, not {}", what,
                describe_shape(array));
        classes = positions[static_cast<std::size_t>(axis)];
        positions.erase(positions.begin() + axis);
    }

    std::size_t inner() const {  // positions of a run, see ClassArray
        std::size_t product = 1;
        for (std::size_t axis = 1; axis < positions.size(); ++axis)
            product *= static_cast<std::size_t>(positions[axis]);
        return std::max<std::size_t>(1, product);
    }

    py::ssize_t classes = 0;
    Shape positions;  // the shape without the class axis
};

std::size_t size_of_shape(const Shape& shape) {
    std::size_t product = 1;
    for (const py::ssize_t size : shape) product *= static_cast<std::size_t>(size);
    return product;
}

bool is_floating(const py::object& object) {
    if (!py::isinstance<py::array>(object)) return false;
    const py::dtype dtype = py::reinterpret_borrow<py::array>(object).dtype();
    return dtype.kind() == 'f' || find_type(dtype);  // bfloat16 has another kind
}

bool has_shape(const py::array& array, const Shape& shape) {
    return array.ndim() == static_cast<py::ssize_t>(shape.size()) &&
           std::equal(shape.begin(), shape.end(), array.shape());
}

// Whether the targets are to be read as probabilities. Floating numbers in the shape of class
// indices are neither; class_indices() refuses them.
bool are_probabilities(const py::object& targets, const Shape& shape) {
    return is_floating(targets) && !has_shape(py::reinterpret_borrow<py::array>(targets), shape);
}

// The array of scores; keras and scikit-learn have the targets first.
py::array score_array(const py::object& scores, const char* what, const py::object& targets) {
    const py::object given = as_array(scores, what);
    if (py::isinstance<py::array>(given) && !is_floating(given) && is_floating(targets))
        throw_error<py::type_error>(
            "{0} must have dtype float32, float64, bfloat16 or float16, not {1}; were {0} and "
            "targets swapped?",
            what, dtype_name(py::reinterpret_borrow<py::array>(given)));
    return float_array(given, what);
}

// The targets, checked against [0, classes). A copy: what was checked is what will be used,
// whatever other threads do to the array meanwhile.
ClassIndices class_indices(const py::object& given, const Shape& shape, py::ssize_t classes,
                           std::int64_t ignore_index, const TargetWords& words) {
    const auto numpy = py::module_::import("numpy");
    const bool scalar = shape.empty() && PyIndex_Check(given.ptr());
    if (!scalar && !py::isinstance<py::array>(given))
        throw_no_array(given, "targets",
                       *words.or_probabilities ? "a NumPy array of integers or of probabilities"
                                               : "a NumPy array of integers",
                       "");
    if (!scalar) require_no_mask(given, "targets");
    const py::array array = plain_array(scalar ? numpy.attr("asarray")(given) : given);
    const char kind = array.dtype().kind();
    if (kind != 'i' && kind != 'u')
        throw_error<py::type_error>(
            "targets must have an integer dtype{}; they have {} (convert "
            "class indices with .astype(np.int64))",
            words.or_probabilities, dtype_name(array));
    if (!has_shape(array, shape))
        throw_error<py::value_error>(
            "targets must have shape {}, one class index for each {}{}{}; "
            "they have {} and shape {}",
            as_tuple(shape), words.row, shape.size() > 1 ? words.axis : "", words.or_probabilities,
            dtype_name(array), describe_shape(array));
    const py::array converted = numpy.attr("ascontiguousarray")(array, "int64");
    const auto* first = static_cast<const std::int64_t*>(converted.data());
    ClassIndices indices;
    indices.values = BlockVector<std::int64_t>(static_cast<std::size_t>(converted.size()));
    // A uint64 beyond int64 has become negative here; only there can it pass for ignore_index.
    const bool none_ignored = kind == 'u' && ignore_index < 0;
    const CheckedTargets checked = loss_kernels().copy_targets(
        first, indices.values.size(), classes, ignore_index, none_ignored, indices.values.data());
    indices.kept = checked.kept;
    if (checked.fine) return indices;
    for (std::size_t i = 0; i < indices.values.size(); ++i) {
        const std::int64_t index = indices.values[i];
        if ((index >= 0 && index < classes) || (index == ignore_index && !none_ignored)) continue;
        throw_error<py::index_error>("targets{} is {}, outside [0, {}) and not ignore_index {}",
                                     describe_place(i, as_tuple(shape)),
                                     array.attr("flat")[py::int_(i)], classes, ignore_index);
    }
    return indices;
}

// The weights of the classes, in a unit that makes them numbers of the model's arithmetic.
ClassWeights class_weights(const py::object& given, py::ssize_t classes, const py::array& model,
                           const char* model_name) {
    if (given.is_none()) return {};
    const py::array weight = float_array(given, "weight");
    if (weight.shape(0) != classes)
        throw_error<py::value_error>("weight must have shape ({},), one for each class, not {}",
                                     classes, describe_shape(weight));
    require_range(weight, "weight", model, model_name);
    const py::array numbers = as_type(weight, Type::float64);
    ClassWeights weights{std::vector<double>(static_cast<std::size_t>(classes))};
    double least = std::numeric_limits<double>::infinity(), largest = 0.0;
    py::ssize_t least_at = 0;
    for (py::ssize_t c = 0; c < classes; ++c) {
        const double value = *static_cast<const double*>(numbers.data(c)), size = std::abs(value);
        weights.values[static_cast<std::size_t>(c)] = value;
        if (size > 0 && size < least) {
            least = size;
            least_at = c;
        }
        if (size > largest && std::isfinite(size)) largest = size;
    }
    // Powers of two. Products, sums and quotients of weights between 2^lowest and 2^highest neither
    // overflow nor underflow; a float has 2^-126 to 2^128, a double 2^-1022 to 2^1024.
    const bool narrow = type_of(model) != Type::float64;
    const int lowest = narrow ? -100 : -900, highest = -lowest;
    int shift = 0;
    if (least < std::ldexp(1.0, lowest)) shift = lowest - std::ilogb(least);
    if (!narrow && largest > std::ldexp(1.0, highest)) shift = highest - std::ilogb(largest);
    if (shift == 0) return weights;
    const bool spread = std::ldexp(largest, shift) > std::ldexp(1.0, highest + 1) ||
                        std::ldexp(least, shift) < std::ldexp(1.0, lowest);
    if (spread) {
        const bool held = least >= std::numeric_limits<float>::min() ||
                          static_cast<double>(static_cast<float>(least)) == least;
        if (narrow && !held)
            throw_error<py::value_error>(
                "weight[{}] is {}, too small for float32, {}, beside a weight of {}", least_at,
                least, float32_reason(model, model_name), largest);
        return weights;
    }
    for (double& value : weights.values) value = std::ldexp(value, shift);
    weights.unit = std::ldexp(1.0, -shift);
    return weights;
}

// Adds the object to the arrays that are read, if it is one.
void add_array(std::vector<NamedArray>& read, const char* what, const py::object& given) {
    const py::object object = as_array(given, what);
    if (py::isinstance<py::array>(object))
        read.push_back({what, py::reinterpret_borrow<py::array>(object)});
}

// `out` as the array of the gradient, which may replace the scores.
py::array grad_array(const py::object& out, const char* scores_name, const py::array& scores,
                     const py::object& targets, const py::object& weight) {
    std::vector<NamedArray> read{{scores_name, scores}};
    add_array(read, "targets", targets);
    add_array(read, "weight", weight);
    const py::array grad = check_out(out, "out", read[0], read, 1);
    if (!class_array(grad, grad.ndim() > 1))
        throw py::value_error(
            "out must have the axes behind the class axis in C order and without gaps "
            "between them, as np.empty lays them out");
    return grad;
}

void check_weight(const py::object& weight) {
    if (weight.is_none()) return;
    const py::array array = float_array(weight, "weight");
    if (array.ndim() != 1)
        throw py::value_error("weight must have shape (C,), one for each class, not " +
                              describe_shape(array));
}

// The names of the options as strings of Python, which take longer to make than to look up. They
// live as long as the process.
struct OptionNames {
    static py::handle intern(const char* name) {
        return new_object(PyUnicode_InternFromString(name)).release();
    }
    OptionNames() {
        for (std::size_t i = 0; i < std::size(ranges); ++i)
            ranges[i] = intern(cross_entropy_ranges[i].name);
    }

    py::handle weight = intern("weight"), reduction = intern("reduction");
    py::handle ignore_index = intern("ignore_index");
    py::handle ranges[std::size(cross_entropy_ranges)];
};

const OptionNames& option_names() {
    static const OptionNames names;
    return names;
}

// The options of a loss, which may have changed since it was made.
CrossEntropyOptions cross_entropy_options(const py::object& loss) {
    CrossEntropyOptions options{};
    options.ignore_index = as_integer(loss.attr(option_names().ignore_index), "ignore_index");
    for (std::size_t i = 0; i < std::size(cross_entropy_ranges); ++i) {
        const CrossEntropyRange& range = cross_entropy_ranges[i];
        const py::object given = loss.attr(option_names().ranges[i]);
        const double value = options.*range.value = as_number(given, range.name);
        if (!(value == 0.0 || (value >= range.least && value <= range.most)))
            throw_error<py::value_error>("{} must be {}, not {}", range.name, range.words,
                                         short_repr(given));
    }
    return options;
}

void* data_of(const py::object& array) {
    return array.is_none() ? nullptr : py::reinterpret_borrow<py::array>(array).mutable_data();
}

// What a loss returns, made before the kernels run: the loss or the losses; a pair of it and the
// gradient; or a tuple of the type `stats`, which holds both, the log-sum-exp and two numbers.
class LossResult {
public:
    // What is not wanted is None.
    LossResult(const py::object& losses, const py::object& grad, const py::object& stats,
               const py::object& log_sum_exp)
        : first_(losses.is_none() ? loss_.object() : losses) {
        if (!stats.is_none()) {
            items_.emplace(stats,
                           py::make_tuple(first_, grad, log_sum_exp, py::none(), py::none()));
        } else if (!grad.is_none()) {
            items_.emplace(2);
            items_->set(0, first_);
            items_->set(1, grad);
        }
    }

    void set_loss(double loss) { loss_.set(loss); }

    void set_stats(std::int64_t correct, std::int64_t counted) {
        items_->set(3, correct_.make(correct));
        items_->set(4, counted_.make(counted));
    }

    py::object get() const { return items_ ? items_->get() : first_; }

private:
    LateFloat loss_;
    LateInteger correct_, counted_;
    py::object first_;
    std::optional<LateTuple> items_;
};

// The loss, its gradient if `want_grad` (into `out` if it is given, else into a fresh array), and
// with `stats`, a tuple type: the log-sum-exp, how many predictions are correct, how many count.
py::object cross_entropy(const py::object& loss, const py::object& logits_given,
                         const py::object& targets_given, bool want_grad, const py::object& out,
                         const py::object& stats, const py::object& denominator) {
    const py::object targets = as_array(targets_given, "targets");
    CrossEntropyBatch batch{};
    CrossEntropyBlock& whole = batch.whole;
    const py::object weight = loss.attr(option_names().weight);
    check_weight(weight);
    batch.reduction = parse_reduction(loss.attr(option_names().reduction));
    whole.options = cross_entropy_options(loss);
    if (!denominator.is_none()) batch.denominator = as_number(denominator, "denominator");
    const py::array given = score_array(logits_given, "logits", targets);
    const ClassShape shape(given, "logits");
    const py::ssize_t class_axis = given.ndim() > 1;
    const auto numpy = py::module_::import("numpy");

    py::array probabilities;
    if (are_probabilities(targets, shape.positions)) {
        probabilities = float_array(targets, "targets");
        require_like(probabilities, "targets", given, "logits");
        if (!class_array(probabilities, class_axis))
            probabilities = numpy.attr("ascontiguousarray")(probabilities);
        whole.probabilities = *class_array(probabilities, class_axis);
    } else {
        batch.targets = class_indices(targets, shape.positions, shape.classes,
                                      whole.options.ignore_index, logits_words);
    }
    batch.weight = class_weights(weight, shape.classes, given, "logits");

    py::object grad = py::none(), losses = py::none(), log_sum_exp = py::none();
    py::object grad_view;  // keeps memory of another library
    if (want_grad) {
        const py::array array =
            out.is_none() ? empty_like(given) : grad_array(out, "logits", given, targets, weight);
        whole.grad = *class_array(array, class_axis);
        grad = out.is_none() ? array : out;
        grad_view = array;
    }
    if (batch.reduction == Reduction::none)
        losses = numpy.attr("empty")(as_tuple(shape.positions), dtype_of(type_of(given), given));
    if (!stats.is_none())
        log_sum_exp = numpy.attr("empty")(as_tuple(shape.positions),
                                          dtype_of(arithmetic_type(type_of(given)), given));
    py::array logits = given;
    if (!class_array(logits, class_axis)) logits = numpy.attr("ascontiguousarray")(logits);

    batch.type = type_of(given);
    batch.losses = data_of(losses);
    batch.log_sum_exp = data_of(log_sum_exp);
    batch.counts_correct = !stats.is_none();
    whole.logits = *class_array(logits, class_axis);
    whole.total = size_of_shape(shape.positions);
    whole.inner = shape.inner();
    whole.classes = static_cast<std::size_t>(shape.classes);
    LossResult result(losses, grad, stats, log_sum_exp);
    CrossEntropyResult computed{};
    {
        const GilRelease release;
        computed = run_cross_entropy(batch);
    }
    result.set_loss(computed.loss);
    if (!stats.is_none()) result.set_stats(computed.correct, computed.counted);
    return result.get();
}

// Loss, and the gradient if `want_grad`: into `out` if it is given, else into a fresh array.
py::object nll_loss(const py::object& log_probs_given, const py::object& targets_given,
                    const py::object& weight, const py::object& ignore_index,
                    const py::object& reduction, bool want_grad, const py::object& out) {
    const py::object targets = as_array(targets_given, "targets");
    NllBatch batch{};
    check_weight(weight);
    batch.reduction = parse_reduction(reduction);
    batch.ignore_index = as_integer(ignore_index, "ignore_index");
    const py::array given = score_array(log_probs_given, "log_probs", targets);
    const ClassShape shape(given, "log_probs");
    const py::ssize_t class_axis = given.ndim() > 1;
    batch.targets =
        class_indices(targets, shape.positions, shape.classes, batch.ignore_index, log_probs_words);
    batch.weight = class_weights(weight, shape.classes, given, "log_probs");

    const auto numpy = py::module_::import("numpy");
    py::object grad = py::none(), losses = py::none();
    py::object grad_view;  // keeps memory of another library
    batch.grad_fresh = want_grad && out.is_none();
    if (want_grad) {
        // The system hands out zeroed pages: most are never touched.
        const py::array array = batch.grad_fresh
                                    ? py::array(numpy.attr("zeros")(
                                          given.attr("shape"), dtype_of(type_of(given), given)))
                                    : grad_array(out, "log_probs", given, targets, weight);
        batch.grad = *class_array(array, class_axis);
        grad = batch.grad_fresh ? array : out;
        grad_view = array;
    }
    if (batch.reduction == Reduction::none)
        losses = numpy.attr("empty")(as_tuple(shape.positions), dtype_of(type_of(given), given));
    py::array log_probs = given;
    if (!class_array(log_probs, class_axis)) log_probs = numpy.attr("ascontiguousarray")(log_probs);

    batch.type = type_of(given);
    batch.log_probs = *class_array(log_probs, class_axis);
    batch.losses = data_of(losses);
    batch.positions = size_of_shape(shape.positions);
    batch.inner = shape.inner();
    batch.classes = static_cast<std::size_t>(shape.classes);
    LossResult result(losses, grad, py::none(), py::none());
    double loss = 0.0;
    {
        const GilRelease release;
        loss = run_nll(batch);
    }
    result.set_loss(loss);
    return result.get();
}

void require_shape(const py::array& array, const std::string& what, const Shape& shape,
                   const std::string& why) {
    if (has_shape(array, shape)) return;
    throw_error<py::value_error>("{} must have shape {}, {}, not {}", what, as_tuple(shape), why,
                                 describe_shape(array));
}

// Everything that can be wrong with a linear layer under cross-entropy, before its first chunk.
// Returns the class indices, copied (what was checked is what will be used) and flat, or None for
// probabilities; what the mean of the whole batch divides by; and `out` as a tuple.
py::tuple check_linear_cross_entropy(const py::object& hidden_given,
                                     const py::object& linear_weight_given,
                                     const py::object& targets_given, const py::object& linear_bias,
                                     const py::object& weight, const py::object& ignore_index_given,
                                     const py::object& out_given) {
    const py::object targets = as_array(targets_given, "targets");
    const std::int64_t ignore_index = as_integer(ignore_index_given, "ignore_index");
    const py::array hidden = float_array(hidden_given, "hidden");
    const py::array linear_weight = float_array(linear_weight_given, "linear_weight");
    require_type(linear_weight, "linear_weight", hidden, "hidden");
    if (hidden.ndim() == 0) throw py::value_error("hidden must have shape (N, D), not ()");
    const py::ssize_t width = hidden.shape(hidden.ndim() - 1);
    if (linear_weight.ndim() != 2 || linear_weight.shape(0) == 0 || linear_weight.shape(1) != width)
        throw_error<py::value_error>(
            "linear_weight must have shape (V, {}) with V >= 1, for hidden "
            "of shape {}, not {}",
            width, describe_shape(hidden), describe_shape(linear_weight));
    const py::ssize_t classes = linear_weight.shape(0);
    std::vector<NamedArray> read{{"hidden", hidden}, {"linear_weight", linear_weight}};
    if (!linear_bias.is_none()) {
        const py::array bias = float_array(linear_bias, "linear_bias");
        require_type(bias, "linear_bias", hidden, "hidden");
        require_shape(bias, "linear_bias", {classes}, "one for each class");
        read.push_back({"linear_bias", bias});
    }
    check_weight(weight);
    const ClassWeights weights = class_weights(weight, classes, hidden, "hidden");

    Shape shape(hidden.shape(), hidden.shape() + hidden.ndim() - 1);
    py::object indices = py::none();
    auto denominator = static_cast<double>(size_of_shape(shape));
    if (are_probabilities(targets, shape)) {
        const py::array probabilities = float_array(targets, "targets");
        require_type(probabilities, "targets", hidden, "hidden");
        shape.push_back(classes);
        require_shape(probabilities, "targets", shape, "one probability for each row and class");
    } else {
        const auto checked = class_indices(targets, shape, classes, ignore_index, hidden_words);
        denominator = cross_entropy_denominator(type_of(hidden), checked, ignore_index, weights);
        indices = py::array_t<std::int64_t>(static_cast<py::ssize_t>(checked.values.size()),
                                            checked.values.data());
    }
    const std::size_t count = read.size();  // of the gradients
    add_array(read, "weight", weight);
    add_array(read, "targets", targets);

    py::tuple out;  // what is checked is what is used, whatever becomes of a list
    if (!out_given.is_none()) {
        const bool listed =
            py::isinstance<py::list>(out_given) || py::isinstance<py::tuple>(out_given);
        if (listed) out = py::tuple(out_given);
        if (!listed || out.size() != count)
            throw_error<py::type_error>(
                "out must be a tuple of {}, not {}{}",
                count == 2 ? "two arrays, for the gradients of hidden and linear_weight"
                           : "three arrays, for the gradients of hidden, linear_weight "
                             "and linear_bias",
                type_name(out_given), listed ? " of " + std::to_string(out.size()) : std::string());
        for (std::size_t i = 0; i < count; ++i) {
            const std::string what = "out[" + std::to_string(i) + "]";
            const py::array grad = check_out(out[i], what, read[i], read, 0);
            require_dense(grad, what);
            if (i == 0 && (grad.flags() & py::array::c_style) == 0)
                throw py::value_error(what + " must be contiguous in C order");
            read.push_back({what, grad});
        }
    }
    return py::make_tuple(indices, denominator, out);
}

}  // namespace

void bind_losses(py::module_& module) {
    module.def(
        "check_cross_entropy",
        [](const py::object& loss) {
            check_weight(loss.attr(option_names().weight));
            parse_reduction(loss.attr(option_names().reduction));
            cross_entropy_options(loss);
        },
        py::arg("loss"), py::call_guard<DefaultFloatingPoint>());
    module.def("cross_entropy", &cross_entropy, py::arg("loss"), py::arg("logits"),
               py::arg("targets"), py::arg("want_grad"), py::arg("out"), py::arg("stats"),
               py::arg("denominator") = py::none(), py::call_guard<DefaultFloatingPoint>());
    module.def(
        "check_nll_loss",
        [](const py::object& weight, const py::object& reduction) {
            check_weight(weight);
            parse_reduction(reduction);
        },
        py::arg("weight"), py::arg("reduction"), py::call_guard<DefaultFloatingPoint>());
    module.def("nll_loss", &nll_loss, py::arg("log_probs"), py::arg("targets"), py::arg("weight"),
               py::arg("ignore_index"), py::arg("reduction"), py::arg("want_grad"), py::arg("out"),
               py::call_guard<DefaultFloatingPoint>());
    module.def("check_linear_cross_entropy", &check_linear_cross_entropy, py::arg("hidden"),
               py::arg("linear_weight"), py::arg("targets"), py::arg("linear_bias"),
               py::arg("weight"), py::arg("ignore_index"), py::arg("out"),
               py::call_guard<DefaultFloatingPoint>());
    module.def(
        "as_numpy",
        [](const py::object& given, const std::string& what) {
            py::object object = as_array(given, what, true);
            if (!py::isinstance<py::array>(object))
                throw_no_array(object, what, "a NumPy array", "");
            const auto array = py::reinterpret_borrow<py::array>(object);
            if (!is_own_bfloat16(array.dtype())) return object;
            return py::object(array.attr("view")(dtype_of(Type::bfloat16, array)));
        },
        py::arg("array"), py::arg("name"));
    module.def(
        "copy_rounded",
        [](const py::object& array, const py::object& out_given) {
            const py::array from = float_array(array, "array");
            const py::array out = parameter_array(out_given, "out");
            require_same_shape(out, "out", from, "array");
            copy_rounded(from, out);
        },
        py::arg("array"), py::arg("out"), py::call_guard<DefaultFloatingPoint>());
}

}  // namespace fastopt
