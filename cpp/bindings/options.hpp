// The options of a parameter group and of a step: read from Python objects, and checked.
//
// Each update states the ranges of its options (kernels/updates/adam.hpp, say); those of
// cross-entropy are in kernels/table.hpp.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../kernels/table.hpp"
#include "../runtime/step.hpp"

namespace fastopt {

namespace py = pybind11;

// Throws KeyError, whose text prints without quotes.
[[noreturn]] void throw_names(const std::string& message);

// The options of a group that say how its parameters and states are stored.
struct TypeOptions {
    enum class Master {
        none,
        float32,  // a separate float32
        split     // an int16 beside the bfloat16
    };

    std::array<Type, max_states> state{};  // of parameters that are not float64,
    bool state_given = false;              // which take no option
    Master master = Master::none;
    bool stochastic = false;
    std::uint64_t seed = 0;

    void set_states(Type type) { state.fill(type); }
    bool operator==(const TypeOptions&) const = default;
};

// The options of one group. They are read again only if the group holds other objects.
class GroupOptions {
public:
    GroupOptions(const Update& update, const py::dict& group);
    // Options of types that the group does not hold.
    GroupOptions(const Update& update, const py::dict& group, const TypeOptions& types);

    // Reads and checks the options. Returns whether they use other states than before. Throws
    // KeyError, TypeError or ValueError, and changes no value then. The options of types are read
    // once: a later change is refused.
    bool read(const py::dict& group);

    const double* values() const { return values_.data(); }
    const TypeOptions& types() const { return types_; }
    bool uses_state(int index) const { return update_->uses_state(values(), index); }
    // Whether a state dict must hold this state: it is used, and not only because of an option that
    // may have been switched on since.
    bool needs_state(int index) const;

    // The name and value of the option that makes the update use this state: "amsgrad=True". Empty
    // if it always uses the state.
    std::string reason_for_state(int index, const py::dict& group) const;

    // The first scalar of step number `step` that the element type cannot hold.
    Unfit unfit(std::int64_t step, Type type) const;

    int traverse(visitproc visit, void* arg) const;

private:
    GroupOptions(const Update& update, const TypeOptions& types);
    bool is_as_seen(const py::dict& group) const;
    void remember(const py::dict& group);
    bool read_changed(const py::dict& group);
    void read_types(const py::dict& group);
    void check_types(const py::dict& group) const;

    const Update* update_;
    TypeOptions types_;
    std::vector<std::pair<py::object, py::object>> type_values_;  // keys and values
    std::array<double, max_options> values_{};
    unsigned used_ = 0;  // a bit for each state
    std::vector<py::object> keys_;
    std::vector<py::object> seen_;  // the objects that were read; null: the option is read again
    // The keys and values of the whole dict in its order, if all options in it are such objects.
    std::vector<std::pair<PyObject*, PyObject*>> items_;
};

// The options of a step for the gradients.
GradOptions grad_options(const py::object& max_norm, const py::object& norm_type,
                         const py::object& grad_scale, const py::object& skip_nonfinite,
                         const py::object& zero_grads, const py::object& total_norm);

}  // namespace fastopt
