// The losses: checks, buffers and the call.
#include <optional>

#include "../runtime/cross_entropy.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "gil.hpp"

namespace fastopt {
namespace {

Reduction parse_reduction(const std::string& name) {
    if (name == "mean") return Reduction::mean;
    if (name == "sum") return Reduction::sum;
    if (name == "none") return Reduction::none;
    throw py::value_error("reduction must be 'mean', 'sum' or 'none', not '" + name + "'");
}

// The targets, checked against [0, classes). A copy: what was checked is what will be used,
// whatever other threads do to the array meanwhile.
std::vector<std::int64_t> class_indices(const py::object& given, py::ssize_t rows,
                                        py::ssize_t classes, std::int64_t ignore_index) {
    if (!py::isinstance<py::array>(given))
        throw py::type_error("targets must be a NumPy array of integers, not " +
                             std::string(py::str(py::type::of(given).attr("__name__"))));
    const auto array = py::reinterpret_borrow<py::array>(given);
    const char kind = array.dtype().kind();
    if (kind != 'i' && kind != 'u')
        throw py::type_error("targets must have an integer dtype, not " +
                             std::string(py::str(py::object(array.dtype()))));
    if (array.ndim() != 1 || array.shape(0) != rows)
        throw py::value_error("targets must have shape (" + std::to_string(rows) +
                              ",), one class index for each row of logits, not " +
                              describe_shape(array));
    const py::array converted =
        py::module_::import("numpy").attr("ascontiguousarray")(array, "int64");
    const auto* first = static_cast<const std::int64_t*>(converted.data());
    std::vector<std::int64_t> indices(first, first + rows);
    for (py::ssize_t i = 0; i < rows; ++i) {
        const std::int64_t index = indices[static_cast<std::size_t>(i)];
        // A uint64 beyond int64 has become negative here; only there can it pass for ignore_index.
        const bool wrapped = kind == 'u' && index < 0;
        const bool inside = index >= 0 && index < classes;
        if (!inside && (wrapped || index != ignore_index))
            throw py::index_error("targets[" + std::to_string(i) + "] is " +
                                  std::string(py::str(array[py::int_(i)])) + ", outside [0, " +
                                  std::to_string(classes) + ") and not ignore_index " +
                                  std::to_string(ignore_index));
    }
    return indices;
}

std::vector<double> class_weights(const py::array& weight, py::ssize_t classes) {
    if (weight.shape(0) != classes)
        throw py::value_error("weight must have shape (" + std::to_string(classes) +
                              ",), one for each class, not " + describe_shape(weight));
    std::vector<double> values(static_cast<std::size_t>(classes));
    for (py::ssize_t c = 0; c < classes; ++c)
        values[static_cast<std::size_t>(c)] =
            type_of(weight) == Type::float64
                ? *static_cast<const double*>(weight.data(c))
                : static_cast<double>(*static_cast<const float*>(weight.data(c)));
    return values;
}

// Where the gradient goes, checked against everything that is read.
py::array checked_out(const py::object& out, const py::array& logits, const py::object& targets,
                      const py::object& weight) {
    const py::array grad = float_array(out, "out");
    require_like(grad, "out", logits, "logits");
    require_writeable(grad, "out");
    if ((grad.flags() & py::array::c_style) == 0)
        throw py::value_error("out must be contiguous in C order");
    OverlapCheck overlap;
    overlap.add(grad, "out", true);
    const bool in_place =
        grad.data() == logits.data() && (logits.flags() & py::array::c_style) != 0;
    if (!in_place) overlap.add(logits, "logits", false);
    overlap.add(py::reinterpret_borrow<py::array>(targets), "targets", false);
    if (!weight.is_none()) overlap.add(py::reinterpret_borrow<py::array>(weight), "weight", false);
    overlap.run();
    return grad;
}

// Checks the options and returns the reduction.
Reduction check_options(const py::object& weight, const std::string& reduction,
                        double label_smoothing) {
    if (!weight.is_none()) {
        const py::array array = float_array(weight, "weight");
        if (array.ndim() != 1)
            throw py::value_error("weight must have shape (C,), one for each class, not " +
                                  describe_shape(array));
    }
    if (!(label_smoothing >= 0.0 && label_smoothing <= 1.0))
        throw py::value_error("label_smoothing must be in [0, 1], not " +
                              std::string(py::repr(py::float_(label_smoothing))));
    return parse_reduction(reduction);
}

// Loss and, if `want_grad`, the gradient: into `out` if it is given, else into a fresh array.
py::tuple cross_entropy(const py::object& logits_given, const py::object& targets,
                        const py::object& weight, std::int64_t ignore_index,
                        const std::string& reduction, double label_smoothing, bool want_grad,
                        const py::object& out) {
    CrossEntropyBatch batch{};
    batch.reduction = check_options(weight, reduction, label_smoothing);
    const py::array given = float_array(logits_given, "logits");
    if (given.ndim() != 2 || given.shape(1) == 0)
        throw py::value_error("logits must have shape (N, C) with C >= 1, not " +
                              describe_shape(given));
    const py::ssize_t rows = given.shape(0), classes = given.shape(1);
    batch.targets = class_indices(targets, rows, classes, ignore_index);
    if (!weight.is_none())
        batch.weight = class_weights(py::reinterpret_borrow<py::array>(weight), classes);

    const auto numpy = py::module_::import("numpy");
    py::object grad = py::none(), losses = py::none();
    if (want_grad && out.is_none())  // NumPy asks the system for huge pages
        grad = numpy.attr("empty")(py::make_tuple(rows, classes), given.dtype());
    else if (want_grad)
        grad = checked_out(out, given, targets, weight);
    if (batch.reduction == Reduction::none)
        losses = numpy.attr("empty")(py::make_tuple(rows), given.dtype());
    const py::array logits = numpy.attr("ascontiguousarray")(given);

    batch.type = type_of(given);
    batch.logits = logits.data();
    if (want_grad) batch.grad = py::reinterpret_borrow<py::array>(grad).mutable_data();
    if (!losses.is_none()) batch.losses = py::reinterpret_borrow<py::array>(losses).mutable_data();
    batch.rows = static_cast<std::size_t>(rows);
    batch.classes = static_cast<std::size_t>(classes);
    batch.ignore_index = ignore_index;
    batch.label_smoothing = label_smoothing;
    double loss = 0.0;
    {
        const GilRelease release;
        loss = run_cross_entropy(batch);
    }
    return py::make_tuple(losses.is_none() ? py::object(py::float_(loss)) : losses, grad);
}

}  // namespace

void bind_losses(py::module_& module) {
    module.def(
        "check_cross_entropy",
        [](const py::object& weight, const std::string& reduction, double label_smoothing) {
            check_options(weight, reduction, label_smoothing);
        },
        py::arg("weight"), py::arg("reduction"), py::arg("label_smoothing"));
    module.def("cross_entropy", &cross_entropy, py::arg("logits"), py::arg("targets"),
               py::arg("weight"), py::arg("ignore_index"), py::arg("reduction"),
               py::arg("label_smoothing"), py::arg("want_grad"), py::arg("out"));
}

}  // namespace fastopt
