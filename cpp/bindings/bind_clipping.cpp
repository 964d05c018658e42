// Norms and clipping of gradients outside a step.
#include <pybind11/stl.h>

#include <cmath>
#include <stdexcept>

#include "../runtime/norm.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "gil.hpp"

namespace fastopt {
namespace {

// The arrays, each in the order of its memory, checked; to be written, too, if `written`.
std::vector<GradView> views(const std::vector<std::pair<std::string, py::object>>& grads,
                            bool written) {
    std::vector<GradView> result;
    OverlapCheck overlap;
    for (const auto& [name, object] : grads) {
        if (object.is_none()) continue;
        const std::string what = "gradient '" + name + "'";
        const py::array grad = float_array(object, what);
        if (written) {
            require_writeable(grad, what);
            require_distinct_elements(grad, what);
            overlap.add(grad, what, true);
        }
        result.push_back({type_of(grad), static_cast<std::size_t>(grad.size()),
                          reader(grad, memory_order(grad))});
    }
    overlap.run();
    return result;
}

double grad_norm(const std::vector<std::pair<std::string, py::object>>& grads) {
    const auto arrays = views(grads, false);
    const GilRelease release;
    return total_norm(arrays).value;
}

double clip_grad_norm(const std::vector<std::pair<std::string, py::object>>& grads, double max_norm,
                      bool error_if_nonfinite) {
    if (!(max_norm >= 0))
        throw py::value_error("max_norm must be >= 0, not " +
                              std::string(py::repr(py::float_(max_norm))));
    const auto arrays = views(grads, true);
    Norm norm;
    {
        const GilRelease release;
        norm = total_norm(arrays);
        if (std::isfinite(norm.value) || !error_if_nonfinite) {
            const double clip = max_norm / (norm.value + 1e-6);
            scale_all(arrays, clip > 1.0 ? 1.0 : clip);  // NaN stays
            return norm.value;
        }
    }
    throw std::runtime_error("the norm of the gradients is " + std::to_string(norm.value) +
                             "; nothing was clipped (error_if_nonfinite)");
}

void clip_grad_value(const std::vector<std::pair<std::string, py::object>>& grads,
                     double clip_value) {
    if (!(clip_value >= 0))
        throw py::value_error("clip_value must be >= 0, not " +
                              std::string(py::repr(py::float_(clip_value))));
    const auto arrays = views(grads, true);
    const GilRelease release;
    clamp_all(arrays, clip_value);
}

}  // namespace

void bind_clipping(py::module_& module) {
    module.def("grad_norm", &grad_norm, py::arg("grads"));
    module.def("clip_grad_norm", &clip_grad_norm, py::arg("grads"), py::arg("max_norm"),
               py::arg("error_if_nonfinite"));
    module.def("clip_grad_value", &clip_grad_value, py::arg("grads"), py::arg("clip_value"));
}

}  // namespace fastopt
