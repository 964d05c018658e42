// The plan of a step: its arrays, checked and ready for the runtime, kept from step to step.
#pragma once

#include <pybind11/numpy.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../runtime/step.hpp"
#include "arrays.hpp"
#include "dlpack.hpp"
#include "options.hpp"

namespace fastopt {

// The arrays of an update, and last the master of a parameter of 16 bits: its float32, or the int16
// that makes one together with it.
constexpr std::size_t master_place = max_states;
constexpr const char* master_name = "master_param";
using States = std::array<std::optional<py::object>, max_states + 1>;

// The number of the update with this name. Throws ValueError.
int find_update(const py::object& name);

// The row of an update in the table of the instruction set in use.
const Update& update_row(int number);

// An array that is updated, of NumPy or of another library. An average or a sum is called a
// parameter here, too.
struct Parameter {
    std::string name;             // for messages
    std::uint64_t name_hash;      // of the exact name
    std::string what, grad_what;  // what messages call the array, and one that it is updated by
    py::object param;  // as it was given: the garbage collector does not see through a view
    std::size_t group;
    States states;
    std::int64_t step = 0;    // the number of steps that were taken
    std::uint64_t first = 0;  // the number that its first element has in random numbers
};
// Does not check the array.
Parameter make_parameter(const Update& update, py::handle name, py::handle array,
                         std::size_t group);

bool has_master(Type param, const TypeOptions& options);

// Throws TypeError if a parameter of this type cannot be stored as the options say.
void require_row(Type type, const std::string& what, const TypeOptions& options);

// `object` as an array that can be the state number `place` of a parameter (`param`, an array that
// was checked): its type follows from the options. Throws TypeError.
py::array state_array(py::handle object, const std::string& what, std::size_t place,
                      const py::array& param, const TypeOptions& options);

struct Group {
    GroupOptions options;
    py::object params;  // what the group's dict holds as "params"
};

constexpr std::int64_t last_step = std::numeric_limits<std::int64_t>::max();

using Extent = std::pair<const std::byte*, const std::byte*>;

// The properties of an array or a tensor that a check depends on. One with the same properties need
// not be checked again.
class Fingerprint {
public:
    Fingerprint() = default;

    // `array` is a view of the object. An array with another object for its dtype never matches.
    Fingerprint(py::handle object, const py::array& array);

    bool matches(PyObject* object) const {
        const void* data = nullptr;
        return matches_elsewhere(object, data) && data == data_;
    }

    // Whether everything except the address is the same; `data` is the address.
    __attribute__((always_inline)) bool matches_elsewhere(PyObject* object,
                                                          const void*& data) const {
        if (Py_TYPE(object) != ndarray_type()) return matches_tensor(object, data);
        const auto* fields = py::detail::array_proxy(object);
        if (fields->descr != dtype_.ptr() || fields->nd != dimensions_ ||
            (fields->flags & checked_flags) != flags_)
            return false;
        for (std::size_t i = 0; i < static_cast<std::size_t>(dimensions_); ++i)
            if (fields->dimensions[i] != shape_[i] || fields->strides[i] != strides_[i])
                return false;
        data = fields->data;
        return true;
    }

    void move(const void* data) { data_ = data; }
    bool is_set() const { return dimensions_ >= 0; }
    bool is_tensor() const { return is_set() && !dtype_; }

    // The memory of such an array at this address.
    Extent extent_at(const void* data) const;

private:
    static constexpr int max_dimensions = 5;  // arrays of more never match
    static constexpr int checked_flags =
        py::detail::npy_api::NPY_ARRAY_ALIGNED_ | py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

    static PyTypeObject* ndarray_type() { return py::detail::npy_api::get().PyArray_Type_; }
    bool matches_tensor(PyObject* object, const void*& data) const;

    const void* data_ = nullptr;
    py::object dtype_;         // of an array; null for a tensor
    dlpack::DataType type_{};  // of a tensor
    py::ssize_t item_size_ = 0;
    int flags_ = 0;
    int dimensions_ = -1;
    std::array<py::ssize_t, max_dimensions> shape_{};
    std::array<py::ssize_t, max_dimensions> strides_{};  // in bytes
};

// The invariant of a plan, between two of its calls:
// - Each entry belongs to one parameter that has a gradient, in the order of the parameters.
// - Its parameter, states and gradient have passed all checks with the properties that their
//   fingerprints hold. No array that the step writes shares memory with another array of the step.
// - A tensor's options point into the group of its parameter, so groups may not move.
// Parameters and states are kept alive by their owner. Gradients and copies are not: a plan only
// compares addresses with those of the arrays that the next step gets.
// A call that throws may leave the plan incomplete; its caller clears it.
class Plan {
public:
    explicit Plan(int number) : number_(number) {}  // of the update's row

    void clear();

    // Makes the plan fit these gradients, one for each parameter or None, and the next step of each
    // parameter. `copies` is the same for copies of the new parameters, or an empty tuple. If the
    // arrays are those of the last step, only their fingerprints are compared. A gradient that
    // differs is checked by itself, if it can be. Else everything is checked.
    void prepare(const std::vector<Parameter>& parameters, const std::vector<Group>& groups,
                 const py::tuple& grads, const py::tuple& copies, bool zero_grads);

    // Does the first of these only, and returns whether it was enough.
    bool fits(const std::vector<Parameter>& parameters, const py::tuple& grads);

    StepResult run(const GradOptions& options);
    std::optional<Misfit> misfit() { return stepper_.misfit(number_); }

    std::size_t parameter(std::size_t tensor) const { return entries_[tensor].parameter; }
    TensorUpdate& tensor(std::size_t number) { return stepper_.tensors[number]; }

    // After a step that was taken: counts it, and gives the parameters the states made for it.
    void finish(std::vector<Parameter>& parameters);

    // After a step that was skipped: drops the states made for it.
    void skip();

private:
    struct Entry {
        std::size_t parameter;
        std::vector<py::ssize_t> order;
        Fingerprint param, grad, copy;
        std::array<Fingerprint, std::tuple_size_v<States>> states;
        unsigned used = 0;     // a bit for each of them
        bool copied = false;   // whether there is a copy
        States created;        // for the current step
        bool creates = false;  // whether there is one
    };

    const Update& update() const { return update_row(number_); }
    bool refresh(const std::vector<Parameter>& parameters, const py::tuple& grads,
                 const py::tuple& copies);
    void number_steps(const std::vector<Parameter>& parameters);
    bool take_grad(std::size_t number, const Parameter& parameter, py::handle grad);
    void make(const std::vector<Parameter>& parameters, const std::vector<Group>& groups,
              const py::tuple& grads, const py::tuple& copies);
    void add(const Parameter& parameter, const GroupOptions& options, py::handle grad,
             py::handle copy, OverlapCheck& overlap);
    // `param`: the array of the parameter.
    void add_states(const Parameter& parameter, const py::array& param, const GroupOptions& options,
                    TensorUpdate& tensor, OverlapCheck& overlap);
    py::array check_grad(py::handle grad, const Parameter& parameter, const py::array& param) const;
    Fingerprint keep(py::handle object, const py::array& array, bool written);
    bool writes_with_grad(const std::vector<Parameter>& parameters, const py::tuple& grads,
                          const py::tuple& copies) const;
    bool is_written(Extent range) const;

    int number_;
    bool zero_grads_ = false;
    bool writes_tensors_ = false;  // a tensor may be written now, but perhaps not at the next step
    std::vector<py::array> held_;  // views of what cannot be compared, until the step has ended
    Stepper stepper_;
    std::vector<Entry> entries_;   // one for each tensor of the stepper
    std::vector<Extent> written_;  // the memory that the step writes: sorted, disjoint
};

}  // namespace fastopt
