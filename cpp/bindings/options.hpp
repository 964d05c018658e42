// The options of a parameter group and of a step: read from Python objects, and checked.
//
// Each update states the ranges of its options (kernels/updates/adam.hpp, say); those of
// cross-entropy are in kernels/table.hpp.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "../kernels/table.hpp"
#include "../runtime/step.hpp"

namespace fastopt {

namespace py = pybind11;

// Throws KeyError, whose text prints without quotes.
[[noreturn]] void throw_names(const std::string& message);

// The options of one group. They are read again only if the group holds other objects.
class GroupOptions {
public:
    GroupOptions(const Update& update, const py::dict& group);

    // Reads and checks the options. Returns whether they use other states than before. Throws
    // KeyError, TypeError or ValueError, and changes no value then.
    bool read(const py::dict& group);

    const double* values() const { return values_.data(); }
    bool uses_state(int index) const { return update_->uses_state(values(), index); }

    // The name and value of the option that makes the update use this state: "amsgrad=True". Empty
    // if it always uses the state.
    std::string reason_for_state(int index, const py::dict& group) const;

    // The first scalar of step number `step` that the element type cannot hold.
    Unfit unfit(std::int64_t step, Type type) const;

    int traverse(visitproc visit, void* arg) const;

private:
    const Update* update_;
    std::array<double, max_options> values_{};
    unsigned used_ = 0;  // a bit for each state
    std::vector<py::object> keys_;
    std::vector<py::object> seen_;  // the objects that were read; null: the option is read again
};

// The options of a step for the gradients.
GradOptions grad_options(const py::object& max_norm, const py::object& norm_type,
                         const py::object& grad_scale, const py::object& skip_nonfinite,
                         const py::object& zero_grads);

}  // namespace fastopt
