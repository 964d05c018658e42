// The losses: checks, buffers and the call.
#include <cmath>
#include <optional>

#include "../runtime/cross_entropy.hpp"
#include "arrays.hpp"
#include "bindings.hpp"

namespace fastopt {
namespace {

enum class Reduction {
    mean,
    sum,
    none
};

Reduction parse_reduction(const std::string& name) {
    if (name == "mean") return Reduction::mean;
    if (name == "sum") return Reduction::sum;
    if (name == "none") return Reduction::none;
    throw py::value_error("reduction must be 'mean', 'sum' or 'none', not '" + name + "'");
}

py::object contiguous(const py::object& array) {
    return py::module_::import("numpy").attr("ascontiguousarray")(array);
}

// Element `index` of a contiguous array of float32 or float64.
double element(const py::array& array, std::int64_t index) {
    if (type_of(array) == Type::float64) return static_cast<const double*>(array.data())[index];
    return static_cast<double>(static_cast<const float*>(array.data())[index]);
}

// The targets as contiguous int64, checked against [0, classes).
py::array class_indices(const py::object& given, py::ssize_t rows, py::ssize_t classes,
                        std::int64_t ignore_index) {
    const auto numpy = py::module_::import("numpy");
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
    py::array indices = numpy.attr("ascontiguousarray")(array, "int64");
    const auto* values = static_cast<const std::int64_t*>(indices.data());
    for (py::ssize_t i = 0; i < rows; ++i) {
        // A uint64 beyond int64 has become negative here; only there can it pass for ignore_index.
        const bool wrapped = kind == 'u' && values[i] < 0;
        const bool inside = values[i] >= 0 && values[i] < classes;
        if (!inside && (wrapped || values[i] != ignore_index))
            throw py::index_error("targets[" + std::to_string(i) + "] is " +
                                  std::string(py::str(array[py::int_(i)])) + ", outside [0, " +
                                  std::to_string(classes) + ") and not ignore_index " +
                                  std::to_string(ignore_index));
    }
    return indices;
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
py::tuple cross_entropy(const py::object& logits_given, const py::object& targets_given,
                        const py::object& weight_given, std::int64_t ignore_index,
                        const std::string& reduction_name, double label_smoothing, bool want_grad,
                        const py::object& out) {
    const Reduction reduction = check_options(weight_given, reduction_name, label_smoothing);
    const py::array given = float_array(logits_given, "logits");
    if (given.ndim() != 2 || given.shape(1) == 0)
        throw py::value_error("logits must have shape (N, C) with C >= 1, not " +
                              describe_shape(given));
    const py::ssize_t rows = given.shape(0), classes = given.shape(1);
    const py::array targets = class_indices(targets_given, rows, classes, ignore_index);

    CrossEntropyBlock block{};
    block.weight_sum = static_cast<double>(classes);
    std::optional<py::array> weight;
    if (!weight_given.is_none()) {
        weight = float_array(weight_given, "weight");
        if (weight->shape(0) != classes)
            throw py::value_error("weight must have shape (" + std::to_string(classes) +
                                  ",), one for each class, not " + describe_shape(*weight));
        weight = py::array(contiguous(weight->attr("astype")(given.dtype())));
        block.weight = weight->data();
        block.weight_sum = weight->attr("sum")(py::arg("dtype") = "float64").cast<double>();
    }

    std::optional<py::array> grad;
    if (want_grad && out.is_none()) {
        grad = py::module_::import("numpy").attr("empty")(py::make_tuple(rows, classes),
                                                          given.dtype());
    } else if (want_grad) {
        grad = float_array(out, "out");
        require_like(*grad, "out", given, "logits");
        require_writeable(*grad, "out");
        if ((grad->flags() & py::array::c_style) == 0)
            throw py::value_error("out must be contiguous in C order");
        const bool in_place =
            grad->data() == given.data() && (given.flags() & py::array::c_style) != 0;
        OverlapCheck overlap;
        overlap.add(*grad, "out", true);
        if (!in_place) overlap.add(given, "logits", false);
        overlap.add(targets, "targets", false);
        if (weight) overlap.add(*weight, "weight", false);
        overlap.run();
    }

    const py::array logits = contiguous(given);
    std::vector<double> losses(static_cast<std::size_t>(rows));
    const auto* target = static_cast<const std::int64_t*>(targets.data());
    double denominator = 1.0;
    if (reduction == Reduction::mean) {
        denominator = 0.0;
        for (py::ssize_t i = 0; i < rows; ++i)
            if (target[i] != ignore_index)
                denominator += weight ? element(*weight, target[i]) : 1.0;
    }
    block.logits = logits.data();
    block.grad = grad ? const_cast<void*>(grad->data()) : nullptr;
    block.targets = target;
    block.losses = losses.data();
    block.rows = static_cast<std::size_t>(rows);
    block.classes = static_cast<std::size_t>(classes);
    block.ignore_index = ignore_index;
    block.label_smoothing = label_smoothing;
    block.grad_scale = 1.0 / denominator;
    const Type type = type_of(given);
    {
        const py::gil_scoped_release release;
        run_cross_entropy(type, block);
    }
    py::object loss;
    if (reduction == Reduction::none) {
        loss = py::array_t<double>(rows, losses.data()).attr("astype")(given.dtype());
    } else {
        double sum = 0.0;
        for (const double value : losses) sum += value;
        loss = py::float_(sum / denominator);
    }
    return py::make_tuple(loss, grad ? py::object(*grad) : py::none());
}

}  // namespace

void bind_losses(py::module_& module) {
    module.def(
        "check_cross_entropy",
        [](const py::object& weight, std::int64_t, const std::string& reduction,
           double label_smoothing) { check_options(weight, reduction, label_smoothing); },
        py::arg("weight"), py::arg("ignore_index"), py::arg("reduction"),
        py::arg("label_smoothing"));
    module.def("cross_entropy", &cross_entropy, py::arg("logits"), py::arg("targets"),
               py::arg("weight"), py::arg("ignore_index"), py::arg("reduction"),
               py::arg("label_smoothing"), py::arg("want_grad"), py::arg("out"));
}

}  // namespace fastopt
