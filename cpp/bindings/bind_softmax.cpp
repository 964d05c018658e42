// softmax, log_softmax and their backward forms: checks, buffers and the call.
#include "../runtime/floating_point.hpp"
#include "../runtime/run_softmax.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "gil.hpp"
#include "scalars.hpp"

namespace fastopt {
namespace {

// softmax or log_softmax of x along `axis`. With `grad`, the backward form; x is then the result.
py::object softmax(const py::object& x, const py::object& grad, const py::object& axis_given,
                   bool log, const py::object& out) {
    py::ssize_t axis = as_integer(axis_given, "axis");
    const bool backward = !grad.is_none();
    const char* const name = backward ? "y" : "x";
    std::vector<NamedArray> operands;
    if (backward) operands.push_back({"grad", float_array(grad, "grad")});
    operands.push_back({name, float_array(x, name)});
    const py::array model = operands[0].array;
    require_like(operands.back().array, name, model, operands[0].what);
    const py::ssize_t ndim = model.ndim();
    if (axis < -ndim || axis >= ndim)
        throw_error<py::value_error>("axis {} is out of range for shape {}", axis,
                                     describe_shape(model));
    if (axis < 0) axis += ndim;
    const auto numpy = py::module_::import("numpy");
    const py::array result = out.is_none()
                                 ? empty_like(model)
                                 : check_out(out, "out", operands[0], operands, operands.size());
    if (!class_array(result, axis))
        throw py::value_error(
            "out must have the axes before `axis`, and those behind it, in C order and "
            "without gaps between them, as np.empty lays them out");
    const py::object returned = out.is_none() ? py::object(result) : out;
    if (model.size() == 0) return returned;
    for (auto& [what, operand] : operands)
        if (!class_array(operand, axis)) operand = numpy.attr("ascontiguousarray")(operand);

    SoftmaxBlock whole{};
    whole.x = *class_array(operands.back().array, axis);
    if (backward) whole.grad = *class_array(operands.front().array, axis);
    whole.out = *class_array(result, axis);
    whole.classes = static_cast<std::size_t>(model.shape(axis));
    whole.total = static_cast<std::size_t>(model.size()) / whole.classes;
    whole.inner = 1;
    for (py::ssize_t a = axis + 1; a < ndim; ++a)
        whole.inner *= static_cast<std::size_t>(model.shape(a));
    const Type type = type_of(model);
    {
        const GilRelease release;
        run_softmax(whole, type, log);
    }
    return returned;
}

}  // namespace

void bind_softmax(py::module_& module) {
    module.def("softmax", &softmax, py::arg("x"), py::arg("grad"), py::arg("axis"), py::arg("log"),
               py::arg("out"), py::call_guard<DefaultFloatingPoint>());
}

}  // namespace fastopt
