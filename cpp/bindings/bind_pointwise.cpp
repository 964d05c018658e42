// Pointwise losses and functions: checks, buffers and the call.
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "../runtime/floating_point.hpp"
#include "../runtime/isa.hpp"
#include "../runtime/run_pointwise.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "gil.hpp"
#include "late.hpp"
#include "scalars.hpp"

namespace fastopt {
namespace {

// Puts a kernel and its options into a batch.
void set_kernel(PointwiseBatch& batch, const py::object& name_given,
                const py::object& options_given) {
    const py::tuple options(options_given);
    const std::string name = as_text(name_given, "kernel");
    const LossTable& table = loss_kernels();
    for (int i = 0; i < table.pointwise_count; ++i) {
        const Pointwise& kernel = table.pointwise[i];
        if (name != kernel.name) continue;
        if (options.size() != static_cast<std::size_t>(kernel.option_count))
            throw_error<py::value_error>("'{}' takes {} options, not {}", name, kernel.option_count,
                                         options.size());
        batch.kernel = &kernel;
        for (std::size_t k = 0; k < options.size(); ++k)
            batch.options[k] = as_number(options[k], "options[" + std::to_string(k) + "]");
        return;
    }
    throw py::value_error("there is no pointwise kernel '" + name + "'");
}

// Throws ValueError unless it can be a weight for the elements of `input`.
void check_weight(const py::array& weight, const std::string& what, const py::array& input) {
    bool fits = weight.ndim() <= input.ndim();
    for (py::ssize_t axis = 1; fits && axis <= weight.ndim(); ++axis) {
        const py::ssize_t size = weight.shape(weight.ndim() - axis);
        fits = size == 1 || size == input.shape(input.ndim() - axis);
    }
    if (!fits)
        throw_error<py::value_error>(
            "{} has shape {}, which cannot be broadcast to the input's shape {}", what,
            describe_shape(weight), describe_shape(input));
    require_range(weight, what, input, "input");
}

// Whether a number of the array is not 0, but so small that float32 cannot hold all its digits.
bool is_too_small(const py::array& array) {
    if (type_of(array) != Type::float64) return false;
    bool found = false;
    const auto size = static_cast<std::size_t>(array.size());
    c_order_reader(array).each_run(0, size, [&](const std::byte* run, std::size_t count) {
        const auto* values = reinterpret_cast<const double*>(run);
        for (std::size_t i = 0; i < count; ++i) {
            const double value = std::abs(values[i]);
            found |= value > 0 && value < static_cast<double>(std::numeric_limits<float>::min());
        }
    });
    return found;
}

double divisor_of(const std::string& reduction, const py::array& input) {
    if (reduction == "mean") return static_cast<double>(input.size());
    if (reduction == "sum" || reduction == "none") return 1.0;
    if (reduction != "batchmean")
        throw_error<py::value_error>(
            "reduction must be 'mean', 'sum', 'none' or 'batchmean', not '{}'", reduction);
    if (input.ndim() == 0)
        throw py::value_error("reduction 'batchmean' needs an input of at least one axis");
    return static_cast<double>(input.shape(0));
}

// Where the result goes; it may be one of the first `replaceable` operands.
py::array result_array(const py::object& given, const std::vector<NamedArray>& operands,
                       std::size_t replaceable) {
    if (given.is_none()) return empty_like(operands[0].array);
    const py::array out = check_out(given, "out", operands[0], operands, replaceable);
    if ((out.flags() & py::array::c_style) == 0)
        throw py::value_error("out must be contiguous in C order");
    return out;
}

[[noreturn]] void throw_outside(const py::array& input, std::size_t index) {
    throw_error<py::value_error>(
        "input{} is {}, outside [0, 1]: BCELoss needs probabilities "
        "(BCEWithLogitsLoss takes logits)",
        describe_place(index, input.attr("shape")), py::str(input.attr("flat")[py::int_(index)]));
}

PointwiseResult run(const PointwiseBatch& batch) {
    const GilRelease release;
    return run_pointwise(batch);
}

// The loss, and with `want_grad` the gradient: in `out` if it is given, otherwise in a new array.
py::object pointwise_loss(const py::object& kernel, const py::object& input_given,
                          const py::object& target_given, const py::object& weight_given,
                          const py::object& pos_weight_given, const py::object& options,
                          const py::object& reduction_given, bool want_grad,
                          const py::object& out) {
    PointwiseBatch batch{};
    set_kernel(batch, kernel, options);
    if (!batch.kernel->is_loss)
        throw py::value_error("'" + as_text(kernel, "") + "' is not a loss");
    const std::string reduction = as_text(reduction_given, "reduction");
    const py::array input = float_array(input_given, "input");
    const py::array target = float_array(target_given, "target");
    require_like(target, "target", input, "input");
    std::vector<NamedArray> operands{{"input", input}, {"target", target}};
    std::array<std::optional<py::array>, max_operands> arrays{input, target};
    // Everything is computed in float64 if the arithmetic of the input cannot hold a weight.
    const Type type = arithmetic_type(type_of(input));
    batch.type = type;
    const auto add_weight = [&](const py::object& given, const char* what, std::size_t number) {
        if (given.is_none()) return;
        const py::array weight = float_array(given, what);
        check_weight(weight, what, input);
        if (is_too_small(weight)) batch.type = Type::float64;
        operands.push_back({what, weight});
        arrays[number] = weight;
    };
    add_weight(weight_given, "weight", 2);
    add_weight(pos_weight_given, "pos_weight", 3);
    const bool wide = batch.type != type;
    batch.count = static_cast<std::size_t>(input.size());
    batch.divisor = divisor_of(reduction, input);
    for (std::size_t i = 0; i < arrays.size(); ++i) {
        if (!arrays[i]) continue;
        if (batch.type == Type::float64 || !is_16_bit(type_of(*arrays[i])))
            arrays[i] = as_type(*arrays[i], batch.type);
        batch.types[i] = type_of(*arrays[i]);
        batch.operands[i] = broadcast_reader(*arrays[i], input);
    }

    // The returned array, and the array in which it is computed.
    std::optional<py::array> grad, losses, grad_computed, losses_computed;
    if (want_grad) {
        grad = result_array(out, operands, 1);
        grad_computed = wide ? empty_like(input, batch.type) : *grad;
        batch.out = grad_computed->mutable_data();
        batch.out_apart = batch.out != input.data();
    }
    if (reduction == "none") {
        losses = empty_like(input);
        losses_computed = wide ? empty_like(input, batch.type) : *losses;
        batch.losses = losses_computed->mutable_data();
    }
    LateFloat loss;
    const py::object value = losses ? py::object(*losses) : py::object(loss.object());
    LateTuple both(2);
    both.set(0, value);
    if (want_grad) both.set(1, out.is_none() ? py::object(*grad) : out);
    const PointwiseResult result = run(batch);
    if (result.outside) throw_outside(input, *result.outside);
    if (wide && losses) copy_rounded(*losses_computed, *losses);
    if (wide && grad) copy_rounded(*grad_computed, *grad);  // the last operation that can fail
    loss.set(result.loss);
    return want_grad ? both.get() : value;
}

// A function of operands of one shape, which are pairs of a name and an array. The result is in
// `out` if it is given, which may be an operand.
py::object pointwise_function(const py::object& kernel, const py::list& given,
                              const py::object& options, const py::object& out) {
    PointwiseBatch batch{};
    set_kernel(batch, kernel, options);
    if (batch.kernel->is_loss ||
        given.size() != static_cast<std::size_t>(batch.kernel->operand_count))
        throw_error<py::value_error>("'{}' is not a function of {} arrays", kernel, given.size());
    std::vector<NamedArray> operands;
    for (const py::handle item : given) {
        const auto pair = py::reinterpret_borrow<py::tuple>(item);
        const std::string what = as_text(pair[0], "the name");
        operands.push_back({what, float_array(pair[1], what)});
        const py::array& array = operands.back().array;
        require_like(array, what, operands[0].array, operands[0].what);
        batch.operands[operands.size() - 1] = c_order_reader(array);
        batch.types[operands.size() - 1] = type_of(array);
    }
    const py::array& model = operands[0].array;
    batch.type = arithmetic_type(type_of(model));
    batch.count = static_cast<std::size_t>(model.size());
    py::array result = result_array(out, operands, operands.size());
    batch.out = result.mutable_data();
    batch.out_apart = true;
    for (const auto& [what, array] : operands) batch.out_apart &= array.data() != batch.out;
    run(batch);
    return out.is_none() ? py::object(result) : out;
}

}  // namespace

void bind_pointwise(py::module_& module) {
    module.def("pointwise_loss", &pointwise_loss, py::arg("kernel"), py::arg("input"),
               py::arg("target"), py::arg("weight"), py::arg("pos_weight"), py::arg("options"),
               py::arg("reduction"), py::arg("want_grad"), py::arg("out"),
               py::call_guard<DefaultFloatingPoint>());
    module.def("pointwise_function", &pointwise_function, py::arg("kernel"), py::arg("operands"),
               py::arg("options"), py::arg("out"), py::call_guard<DefaultFloatingPoint>());
}

}  // namespace fastopt
