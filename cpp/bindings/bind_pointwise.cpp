// Pointwise losses and functions: checks, buffers and the call.
#include <utility>

#include <pybind11/stl.h>

#include "../runtime/isa.hpp"
#include "../runtime/pointwise.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "gil.hpp"

namespace fastopt {
namespace {

const Pointwise& find_kernel(const std::string& name, const std::vector<double>& options) {
    const Table& table = kernels();
    for (int i = 0; i < table.pointwise_count; ++i) {
        const Pointwise& kernel = table.pointwise[i];
        if (name != kernel.name) continue;
        if (options.size() != static_cast<std::size_t>(kernel.option_count))
            throw py::value_error("'" + name + "' takes " + std::to_string(kernel.option_count) +
                                  " options, not " + std::to_string(options.size()));
        return kernel;
    }
    throw py::value_error("there is no pointwise kernel '" + name + "'");
}

bool c_contiguous(const py::array& array) { return (array.flags() & py::array::c_style) != 0; }

// A weight of the loss's elements, in the dtype and shape of `input`.
py::array broadcast_weight(const py::array& weight, const std::string& what,
                           const py::array& input) {
    bool fits = weight.ndim() <= input.ndim();
    for (py::ssize_t axis = 1; fits && axis <= weight.ndim(); ++axis) {
        const py::ssize_t size = weight.shape(weight.ndim() - axis);
        fits = size == 1 || size == input.shape(input.ndim() - axis);
    }
    if (!fits)
        throw py::value_error(what + " has shape " + describe_shape(weight) +
                              ", which cannot be broadcast to the input's shape " +
                              describe_shape(input));
    require_range(weight, what, input, "input");
    const auto numpy = py::module_::import("numpy");
    return numpy.attr("broadcast_to")(weight.attr("astype")(input.dtype(), py::arg("copy") = false),
                                      input.attr("shape"));
}

double divisor_of(const std::string& reduction, const py::array& input) {
    if (reduction == "mean") return static_cast<double>(input.size());
    if (reduction == "sum" || reduction == "none") return 1.0;
    if (reduction != "batchmean")
        throw py::value_error("reduction must be 'mean', 'sum', 'none' or 'batchmean', not '" +
                              reduction + "'");
    if (input.ndim() == 0)
        throw py::value_error("reduction 'batchmean' needs an input of at least one axis");
    return static_cast<double>(input.shape(0));
}

// Where the result goes, checked against what is read; it may be one of the first `may_be`
// operands.
py::array checked_out(const py::object& given,
                      const std::vector<std::pair<std::string, py::array>>& operands,
                      std::size_t may_be) {
    const auto& [model_what, model] = operands[0];
    const py::array out = float_array(given, "out");
    require_like(out, "out", model, model_what);
    require_writeable(out, "out");
    if (!c_contiguous(out)) throw py::value_error("out must be contiguous in C order");
    OverlapCheck overlap;
    overlap.add(out, "out", true);
    for (std::size_t i = 0; i < operands.size(); ++i) {
        const auto& [what, array] = operands[i];
        const bool same = i < may_be && array.data() == out.data() && c_contiguous(array);
        if (!same) overlap.add(array, what, false);
    }
    overlap.run();
    return out;
}

[[noreturn]] void throw_outside(const py::array& input, std::size_t index) {
    throw py::value_error("input" + describe_place(index, input.attr("shape")) + " is " +
                          std::string(py::str(input.attr("flat")[py::int_(index)])) +
                          ", outside [0, 1]: BCELoss needs probabilities (BCEWithLogitsLoss takes "
                          "logits)");
}

PointwiseResult run(const PointwiseBatch& batch) {
    const GilRelease release;
    return run_pointwise(batch);
}

// Loss and, if `want_grad`, the gradient: into `out` if it is given, else into a fresh array.
py::tuple pointwise_loss(const std::string& kernel, const py::object& input_given,
                         const py::object& target_given, const py::object& weight,
                         const py::object& pos_weight, const std::vector<double>& options,
                         const std::string& reduction, bool want_grad, const py::object& out) {
    PointwiseBatch batch{};
    batch.kernel = &find_kernel(kernel, options);
    if (!batch.kernel->is_loss) throw py::value_error("'" + kernel + "' is not a loss");
    std::copy(options.begin(), options.end(), batch.options.begin());
    const py::array input = float_array(input_given, "input");
    const py::array target = float_array(target_given, "target");
    require_like(target, "target", input, "input");
    std::vector<std::pair<std::string, py::array>> operands{{"input", input}, {"target", target}};
    batch.operands[0] = c_order_reader(input);
    batch.operands[1] = c_order_reader(target);
    std::vector<py::array> alive;
    const auto add_weight = [&](const py::object& given, const char* what, std::size_t number) {
        if (given.is_none()) return;
        operands.emplace_back(what, float_array(given, what));
        alive.push_back(broadcast_weight(operands.back().second, what, input));
        batch.operands[number] = c_order_reader(alive.back());
    };
    add_weight(weight, "weight", 2);
    add_weight(pos_weight, "pos_weight", 3);
    batch.type = type_of(input);
    batch.count = static_cast<std::size_t>(input.size());
    batch.divisor = divisor_of(reduction, input);

    py::object grad = py::none(), losses = py::none();
    if (want_grad) {
        py::array array = out.is_none() ? empty_like(input) : checked_out(out, operands, 1);
        batch.out = array.mutable_data();
        batch.out_apart = batch.out != input.data();
        grad = std::move(array);
    }
    if (reduction == "none") {
        py::array array = empty_like(input);
        batch.losses = array.mutable_data();
        losses = std::move(array);
    }
    const PointwiseResult result = run(batch);
    if (result.outside) throw_outside(input, *result.outside);
    return py::make_tuple(losses.is_none() ? py::object(py::float_(result.loss)) : losses, grad);
}

// A function of operands of one shape, into `out` if it is given, which may be one of them.
py::array pointwise_function(const std::string& kernel,
                             const std::vector<std::pair<std::string, py::object>>& given,
                             const std::vector<double>& options, const py::object& out) {
    PointwiseBatch batch{};
    batch.kernel = &find_kernel(kernel, options);
    if (batch.kernel->is_loss ||
        given.size() != static_cast<std::size_t>(batch.kernel->operand_count))
        throw py::value_error("'" + kernel + "' is not a function of " +
                              std::to_string(given.size()) + " arrays");
    std::copy(options.begin(), options.end(), batch.options.begin());
    std::vector<std::pair<std::string, py::array>> operands;
    for (const auto& [what, object] : given) {
        operands.emplace_back(what, float_array(object, what));
        const py::array& array = operands.back().second;
        require_like(array, what, operands[0].second, operands[0].first);
        batch.operands[operands.size() - 1] = c_order_reader(array);
    }
    const py::array& model = operands[0].second;
    batch.type = type_of(model);
    batch.count = static_cast<std::size_t>(model.size());
    py::array result =
        out.is_none() ? empty_like(model) : checked_out(out, operands, operands.size());
    batch.out = result.mutable_data();
    batch.out_apart = true;
    for (const auto& [what, array] : operands) batch.out_apart &= array.data() != batch.out;
    run(batch);
    return result;
}

}  // namespace

void bind_pointwise(py::module_& module) {
    module.def("pointwise_loss", &pointwise_loss, py::arg("kernel"), py::arg("input"),
               py::arg("target"), py::arg("weight"), py::arg("pos_weight"), py::arg("options"),
               py::arg("reduction"), py::arg("want_grad"), py::arg("out"));
    module.def("pointwise_function", &pointwise_function, py::arg("kernel"), py::arg("operands"),
               py::arg("options"), py::arg("out"));
}

}  // namespace fastopt
