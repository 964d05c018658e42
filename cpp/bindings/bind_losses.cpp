// The losses: checks, buffers and the call.
#include <algorithm>
#include <limits>
#include <optional>

#include <pybind11/stl.h>

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

std::string type_name(const py::handle& object) {
    return py::str(py::type::of(object).attr("__name__"));
}

// The shape without the class axis: axis 1, or the only one.
std::vector<py::ssize_t> positions_of(const py::array& logits) {
    std::vector<py::ssize_t> shape(logits.shape(), logits.shape() + logits.ndim());
    shape.erase(shape.begin() + (shape.size() > 1));
    return shape;
}

py::tuple as_tuple(const std::vector<py::ssize_t>& shape) { return py::tuple(py::cast(shape)); }

// The targets, checked against [0, classes). A copy: what was checked is what will be used,
// whatever other threads do to the array meanwhile.
std::vector<std::int64_t> class_indices(const py::object& given, const py::array& logits,
                                        py::ssize_t classes, std::int64_t ignore_index) {
    const auto shape = positions_of(logits);
    const auto numpy = py::module_::import("numpy");
    const bool scalar = shape.empty() && PyIndex_Check(given.ptr());
    if (!scalar && !py::isinstance<py::array>(given))
        throw py::type_error("targets must be a NumPy array of integers or of probabilities, not " +
                             type_name(given));
    const py::array array = scalar ? numpy.attr("asarray")(given) : given;
    const char kind = array.dtype().kind();
    if (kind != 'i' && kind != 'u')
        throw py::type_error(
            "targets must have an integer dtype, or be probabilities of the logits' dtype and "
            "shape; they have " +
            std::string(py::str(py::object(array.dtype()))));
    if (array.ndim() != static_cast<py::ssize_t>(shape.size()) ||
        !std::equal(shape.begin(), shape.end(), array.shape()))
        throw py::value_error("targets must have shape " + std::string(py::str(as_tuple(shape))) +
                              ", one class index for each row of logits, not " +
                              describe_shape(array));
    const py::array converted = numpy.attr("ascontiguousarray")(array, "int64");
    const auto* first = static_cast<const std::int64_t*>(converted.data());
    std::vector<std::int64_t> indices(first, first + converted.size());
    // A uint64 beyond int64 has become negative here; only there can it pass for ignore_index.
    const auto is_fine = [&](std::int64_t index) {
        const bool ignored = (kind != 'u' || index >= 0) & (index == ignore_index);
        return (static_cast<std::uint64_t>(index) < static_cast<std::uint64_t>(classes)) | ignored;
    };
    bool all_fine = true;
    for (const std::int64_t index : indices) all_fine &= is_fine(index);
    for (std::size_t i = 0; !all_fine && i < indices.size(); ++i) {
        if (is_fine(indices[i])) continue;
        const py::object place = numpy.attr("unravel_index")(i, as_tuple(shape));
        std::string where;
        for (const py::handle number : place)
            where += (where.empty() ? "" : ", ") + std::string(py::str(number));
        throw py::index_error("targets[" + where + "] is " +
                              std::string(py::str(array.attr("flat")[py::int_(i)])) +
                              ", outside [0, " + std::to_string(classes) +
                              ") and not ignore_index " + std::to_string(ignore_index));
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
    require_distinct_elements(grad, "out");
    if (!class_array(grad, grad.ndim() > 1))
        throw py::value_error("out must be contiguous in C order, but for a stride of its rows");
    OverlapCheck overlap;
    overlap.add(grad, "out", true);
    const bool in_place =
        grad.data() == logits.data() &&
        std::equal(grad.strides(), grad.strides() + grad.ndim(), logits.strides());
    if (!in_place) overlap.add(logits, "logits", false);
    if (py::isinstance<py::array>(targets))
        overlap.add(py::reinterpret_borrow<py::array>(targets), "targets", false);
    if (!weight.is_none()) overlap.add(py::reinterpret_borrow<py::array>(weight), "weight", false);
    overlap.run();
    return grad;
}

void require_non_negative(double value, const char* name) {
    if (!(value >= 0.0 && value <= std::numeric_limits<double>::max()))
        throw py::value_error(std::string(name) + " must be finite and not negative, not " +
                              std::string(py::repr(py::float_(value))));
}

// Checks the options and returns the reduction.
Reduction check_options(const py::object& weight, const std::string& reduction,
                        double label_smoothing, double z_loss, double logit_softcap) {
    if (!weight.is_none()) {
        const py::array array = float_array(weight, "weight");
        if (array.ndim() != 1)
            throw py::value_error("weight must have shape (C,), one for each class, not " +
                                  describe_shape(array));
    }
    if (!(label_smoothing >= 0.0 && label_smoothing <= 1.0))
        throw py::value_error("label_smoothing must be in [0, 1], not " +
                              std::string(py::repr(py::float_(label_smoothing))));
    require_non_negative(z_loss, "z_loss");
    require_non_negative(logit_softcap, "logit_softcap");
    return parse_reduction(reduction);
}

// Loss, gradient if `want_grad` (into `out` if it is given, else into a fresh array), and if
// `want_stats` the log-sum-exp, the number of correct predictions and of positions that count.
py::tuple cross_entropy(const py::object& logits_given, const py::object& targets,
                        const py::object& weight, std::int64_t ignore_index,
                        const std::string& reduction, double label_smoothing, double z_loss,
                        double logit_softcap, bool want_grad, const py::object& out,
                        bool want_stats, std::optional<double> denominator) {
    CrossEntropyBatch batch{};
    batch.reduction = check_options(weight, reduction, label_smoothing, z_loss, logit_softcap);
    const py::array given = float_array(logits_given, "logits");
    const py::ssize_t class_axis = given.ndim() > 1;
    if (given.ndim() == 0 || given.shape(class_axis) == 0)
        throw py::value_error(
            "logits must have shape (C,), (N, C) or (N, C, d1, ...) with C >= 1, not " +
            describe_shape(given));
    const py::ssize_t classes = given.shape(class_axis);
    const auto shape = positions_of(given);
    const auto numpy = py::module_::import("numpy");

    py::array probabilities;
    const bool soft = py::isinstance<py::array>(targets) &&
                      py::reinterpret_borrow<py::array>(targets).dtype().kind() == 'f';
    if (soft) {
        probabilities = float_array(targets, "targets");
        require_like(probabilities, "targets", given, "logits");
        if (!class_array(probabilities, class_axis))
            probabilities = numpy.attr("ascontiguousarray")(probabilities);
        batch.probabilities = *class_array(probabilities, class_axis);
    } else {
        batch.targets = class_indices(targets, given, classes, ignore_index);
    }
    if (!weight.is_none())
        batch.weight = class_weights(py::reinterpret_borrow<py::array>(weight), classes);

    py::object grad = py::none(), losses = py::none(), log_sum_exp = py::none();
    if (want_grad && out.is_none())  // NumPy asks the system for huge pages
        grad = numpy.attr("empty")(given.attr("shape"), given.dtype());
    else if (want_grad)
        grad = checked_out(out, given, targets, weight);
    if (batch.reduction == Reduction::none)
        losses = numpy.attr("empty")(as_tuple(shape), given.dtype());
    if (want_stats) log_sum_exp = numpy.attr("empty")(as_tuple(shape), given.dtype());
    py::array logits = given;
    if (!class_array(logits, class_axis)) logits = numpy.attr("ascontiguousarray")(logits);

    const auto data_of = [](const py::object& array) {
        return array.is_none() ? nullptr : py::reinterpret_borrow<py::array>(array).mutable_data();
    };
    batch.type = type_of(given);
    batch.logits = *class_array(logits, class_axis);
    if (want_grad) batch.grad = *class_array(py::reinterpret_borrow<py::array>(grad), class_axis);
    batch.losses = data_of(losses);
    batch.log_sum_exp = data_of(log_sum_exp);
    batch.counts_correct = want_stats;
    batch.positions = batch.inner = 1;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        batch.positions *= static_cast<std::size_t>(shape[axis]);
        if (axis > 0) batch.inner *= static_cast<std::size_t>(shape[axis]);
    }
    batch.inner = std::max<std::size_t>(1, batch.inner);
    batch.classes = static_cast<std::size_t>(classes);
    batch.ignore_index = ignore_index;
    batch.label_smoothing = label_smoothing;
    batch.z_loss = z_loss;
    batch.softcap = logit_softcap;
    batch.denominator = denominator;
    CrossEntropyResult result{};
    {
        const GilRelease release;
        result = run_cross_entropy(batch);
    }
    py::object stats = py::none();
    if (want_stats) stats = py::make_tuple(log_sum_exp, result.correct, result.counted);
    return py::make_tuple(losses.is_none() ? py::object(py::float_(result.loss)) : losses, grad,
                          stats);
}

}  // namespace

void bind_losses(py::module_& module) {
    module.def(
        "check_cross_entropy",
        [](const py::object& weight, const std::string& reduction, double label_smoothing,
           double z_loss, double logit_softcap) {
            check_options(weight, reduction, label_smoothing, z_loss, logit_softcap);
        },
        py::arg("weight"), py::arg("reduction"), py::arg("label_smoothing"), py::arg("z_loss"),
        py::arg("logit_softcap"));
    module.def("cross_entropy", &cross_entropy, py::arg("logits"), py::arg("targets"),
               py::arg("weight"), py::arg("ignore_index"), py::arg("reduction"),
               py::arg("label_smoothing"), py::arg("z_loss"), py::arg("logit_softcap"),
               py::arg("want_grad"), py::arg("out"), py::arg("want_stats"), py::arg("denominator"));
}

}  // namespace fastopt
