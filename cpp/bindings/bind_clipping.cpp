// Norms and clipping of gradients outside a step.
#include <cmath>
#include <stdexcept>

#include "../runtime/floating_point.hpp"
#include "../runtime/run_norm.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "gil.hpp"
#include "late.hpp"
#include "scalars.hpp"

namespace fastopt {
namespace {

// Checks the arrays of pairs (name, array or None), and returns each in the order of its memory;
// `held` keeps them. If `written`, they must also be writeable.
std::vector<GradView> views(const py::list& grads, bool written, std::vector<py::array>& held) {
    std::vector<GradView> result;
    OverlapCheck overlap;
    for (const py::handle item : grads) {
        const auto pair = py::reinterpret_borrow<py::tuple>(item);
        if (pair[1].is_none()) continue;
        const std::string what = "gradient '" + short_text(py::str(pair[0])) + "'";
        const py::array grad = float_array(pair[1], what);
        if (written) {
            require_writeable(grad, what);
            require_distinct_elements(grad, what);
            overlap.add(grad, what, true);
        }
        result.push_back({type_of(grad), static_cast<std::size_t>(grad.size()),
                          reader(grad, memory_order(grad))});
        held.push_back(grad);
    }
    overlap.run();
    return result;
}

double limit_of(const py::object& given, const char* name) {
    const double number = as_number(given, name);
    if (!(number >= 0))
        throw_error<py::value_error>("{} must be >= 0, not {}", name, short_repr(given));
    return number;
}

py::object grad_norm(const py::list& grads, const py::object& norm_type) {
    const NormType type = as_norm_type(norm_type, "norm_type");
    std::vector<py::array> held;
    const auto arrays = views(grads, false, held);
    double norm = 0.0;
    {
        const GilRelease release;
        norm = total_norm(arrays, type).value;
    }
    return new_float(norm);
}

py::object clip_grad_norm(const py::list& grads, const py::object& max_norm_given,
                          const py::object& norm_type, const py::object& error_if_nonfinite) {
    const double max_norm = limit_of(max_norm_given, "max_norm");
    const NormType type = as_norm_type(norm_type, "norm_type");
    const bool must_be_finite = as_flag(error_if_nonfinite, "error_if_nonfinite");
    std::vector<py::array> held;
    const auto arrays = views(grads, true, held);
    LateFloat norm;
    double value = 0.0;
    {
        const GilRelease release;
        value = total_norm(arrays, type).value;
        if (std::isfinite(value) || !must_be_finite)
            scale_all(arrays, clipping(max_norm, value, 1.0));
    }
    if (!std::isfinite(value) && must_be_finite)
        throw std::runtime_error(std::string("the norm of the gradients is ") +
                                 (std::isnan(value) ? "nan" : "inf") +
                                 ", but error_if_nonfinite takes finite norms only; nothing was "
                                 "clipped (pass error_if_nonfinite=False to clip all the same)");
    norm.set(value);
    return norm.object();
}

void clip_grad_value(const py::list& grads, const py::object& clip_value) {
    const double limit = limit_of(clip_value, "clip_value");
    std::vector<py::array> held;
    const auto arrays = views(grads, true, held);
    const GilRelease release;
    clamp_all(arrays, limit);
}

}  // namespace

void bind_clipping(py::module_& module) {
    module.def("grad_norm", &grad_norm, py::arg("grads"), py::arg("norm_type"),
               py::call_guard<DefaultFloatingPoint>());
    module.def("clip_grad_norm", &clip_grad_norm, py::arg("grads"), py::arg("max_norm"),
               py::arg("norm_type"), py::arg("error_if_nonfinite"),
               py::call_guard<DefaultFloatingPoint>());
    module.def("clip_grad_value", &clip_grad_value, py::arg("grads"), py::arg("clip_value"),
               py::call_guard<DefaultFloatingPoint>());
}

}  // namespace fastopt
