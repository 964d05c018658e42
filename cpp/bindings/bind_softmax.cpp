// softmax, log_softmax and their backward forms: checks, buffers and the call.
#include "../runtime/floating_point.hpp"
#include "../runtime/run_softmax.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "gil.hpp"
#include "scalars.hpp"

namespace fastopt {
namespace {

// Where the result goes, checked against the operands; it may be one of them.
py::array checked_out(const py::object& given, const std::vector<py::array>& operands,
                      const std::vector<std::string>& names, py::ssize_t axis) {
    const py::array out = float_array(given, "out");
    require_like(out, "out", operands[0], names[0]);
    require_writeable(out, "out");
    require_distinct_elements(out, "out");
    if (!class_array(out, axis))
        throw py::value_error(
            "out must have the axes before `axis`, and those behind it, in C order and "
            "without gaps between them, as np.empty lays them out");
    OverlapCheck overlap;
    overlap.add(out, "out", true);
    for (std::size_t i = 0; i < operands.size(); ++i) {
        const py::array& operand = operands[i];
        if (!same_elements(out, operand)) overlap.add(operand, names[i], false);
    }
    overlap.run();
    return out;
}

// softmax or log_softmax of x along `axis`; with `grad`, the backward form, whose x is the result.
py::object softmax(const py::object& x, const py::object& grad, const py::object& axis_given,
                   bool log, const py::object& out) {
    py::ssize_t axis = as_integer(axis_given, "axis");
    const bool backward = !grad.is_none();
    std::vector<py::array> operands;
    std::vector<std::string> names;
    if (backward) {
        operands.push_back(float_array(grad, "grad"));
        names.emplace_back("grad");
    }
    operands.push_back(float_array(x, backward ? "y" : "x"));
    names.emplace_back(backward ? "y" : "x");
    const py::array model = operands[0];
    require_like(operands.back(), names.back(), model, names[0]);
    const py::ssize_t ndim = model.ndim();
    if (axis < -ndim || axis >= ndim)
        throw py::value_error("axis " + std::to_string(axis) + " is out of range for shape " +
                              describe_shape(model));
    if (axis < 0) axis += ndim;
    const auto numpy = py::module_::import("numpy");
    const py::array result =
        out.is_none() ? empty_like(model) : checked_out(out, operands, names, axis);
    const py::object returned = out.is_none() ? py::object(result) : out;
    if (model.size() == 0) return returned;
    for (py::array& operand : operands)
        if (!class_array(operand, axis)) operand = numpy.attr("ascontiguousarray")(operand);

    SoftmaxBatch batch{};
    batch.type = type_of(model);
    batch.log = log;
    batch.x = *class_array(operands.back(), axis);
    if (backward) batch.grad = *class_array(operands.front(), axis);
    batch.out = *class_array(result, axis);
    batch.classes = static_cast<std::size_t>(model.shape(axis));
    batch.positions = static_cast<std::size_t>(model.size()) / batch.classes;
    batch.inner = 1;
    for (py::ssize_t a = axis + 1; a < ndim; ++a)
        batch.inner *= static_cast<std::size_t>(model.shape(a));
    {
        const GilRelease release;
        run_softmax(batch);
    }
    return returned;
}

}  // namespace

void bind_softmax(py::module_& module) {
    module.def("softmax", &softmax, py::arg("x"), py::arg("grad"), py::arg("axis"), py::arg("log"),
               py::arg("out"), py::call_guard<DefaultFloatingPoint>());
}

}  // namespace fastopt
