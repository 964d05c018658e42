// The updates: arrays with their states and step counters, checked and stepped in one call.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <optional>
#include <stdexcept>

#include "../runtime/floating_point.hpp"
#include "../runtime/isa.hpp"
#include "../runtime/step.hpp"
#include "../runtime/thread_pool.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "collected.hpp"
#include "gil.hpp"
#include "late.hpp"
#include "scalars.hpp"

namespace fastopt {
namespace {

using States = std::array<std::optional<py::array>, max_states>;

int find_update(const std::string& name) {
    const UpdateTable& table = update_kernels();
    for (int i = 0; i < table.update_count; ++i)
        if (name == table.updates[i].name) return i;
    throw py::value_error("there is no update '" + name + "'");
}

const Update& row(int number) { return update_kernels().updates[number]; }

std::string quoted(const std::string& name) { return "'" + name + "'"; }

// What messages call an array that update `number` writes, and one that it reads.
std::string param_label(int number, const std::string& name) {
    return std::string(row(number).words.param) + ' ' + quoted(name);
}
std::string grad_label(int number, const std::string& name) {
    return std::string(row(number).words.grad) + ' ' + quoted(name);
}

[[noreturn]] void throw_option(const std::string& what, py::handle value, const char* taken) {
    throw py::value_error(what + " must be " + taken + ", not " + short_repr(value));
}

// KeyError, whose text prints without quotes.
[[noreturn]] void throw_names(const std::string& message) {
    const py::object error = py::module_::import("fastopt._checks").attr("NamesError");
    PyErr_SetString(error.ptr(), message.c_str());
    throw py::error_already_set();
}

// Throws if there is a scalar that the element type of `array` cannot hold.
void require_fit(const Unfit& scalar, const py::array& array, const std::string& what) {
    if (scalar.name == nullptr) return;
    const std::string type = py::str(py::object(array.dtype()));
    throw py::value_error(scalar.name + (" is " + std::string(py::repr(py::float_(scalar.value)))) +
                          ", out of the range of " + type + ", the dtype of " + what +
                          "; choose another value, or arrays of float64");
}

// Item number `item` of a pair such as betas.
py::object pair_item(py::handle value, const std::string& what, int item) {
    py::object items;
    if (PySequence_Check(value.ptr()) && !PyUnicode_Check(value.ptr())) {
        items = py::reinterpret_steal<py::object>(PySequence_Fast(value.ptr(), ""));
        if (!items && PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw py::error_already_set();
        PyErr_Clear();
    }
    if (!items || PySequence_Fast_GET_SIZE(items.ptr()) != 2)
        throw py::type_error(what + " must be a pair of numbers, not " + short_repr(value));
    return py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(items.ptr(), item));
}

double read_option(const Option& option, py::handle value) {
    std::string what = option.name;
    py::object item = py::reinterpret_borrow<py::object>(value);
    if (option.item >= 0) {
        item = pair_item(value, what, option.item);
        what += "[" + std::to_string(option.item) + "]";
    }
    if (option.domain == Domain::choice) {
        for (int i = 0; i < 2; ++i)
            if (PyUnicode_Check(item.ptr()) && as_text(item, what) == option.choices[i]) return i;
        throw py::value_error(what + " must be " + quoted(option.choices[0]) + " or " +
                              quoted(option.choices[1]) + ", not " + short_repr(item));
    }
    if (option.domain == Domain::flag) return as_flag(item, what) ? 1.0 : 0.0;
    const double number = as_number(item, what);
    switch (option.domain) {
        case Domain::finite:
            if (!std::isfinite(number)) throw_option(what, item, "finite");
            break;
        case Domain::non_negative:
            if (!(std::isfinite(number) && number >= 0))
                throw_option(what, item, "finite and >= 0");
            break;
        case Domain::fraction:
            if (!(number >= 0 && number <= 1)) throw_option(what, item, "in [0, 1]");
            break;
        case Domain::decay_rate:
            if (!(number >= 0 && number < 1)) throw_option(what, item, "in [0, 1)");
            break;
        case Domain::flag:
        case Domain::choice: break;
    }
    return number;
}

// The options of one group, kept while the group holds the same objects.
class GroupOptions {
public:
    GroupOptions(const Update& kind, const py::dict& group) {
        for (int i = 0; i < kind.option_count; ++i) {
            keys_.push_back(py::reinterpret_steal<py::object>(
                PyUnicode_InternFromString(kind.options[i].name)));
            if (!keys_.back()) throw py::error_already_set();
        }
        seen_.resize(keys_.size());
        read(kind, group);
    }

    // Reads and checks the options. Returns whether they use other states than before.
    bool read(const Update& kind, const py::dict& group) {
        pending_.clear();
        std::array<double, max_options> fresh = values;
        bool changed = false;
        for (std::size_t i = 0; i < keys_.size(); ++i) {
            const auto value = py::reinterpret_borrow<py::object>(
                PyDict_GetItemWithError(group.ptr(), keys_[i].ptr()));
            const Option& option = kind.options[i];
            if (!value) {
                if (PyErr_Occurred()) throw py::error_already_set();
                throw_names("the parameter group has no option " + quoted(option.name));
            }
            if (value.is(seen_[i])) continue;
            fresh[i] = read_option(option, value);
            changed = true;
            pending_.emplace_back(i, immutable(value) ? value : py::object());
        }
        if (changed) {
            const char* conflict = kind.conflict(fresh.data());
            if (conflict == nullptr) {
                values = fresh;
                for (auto& [i, value] : pending_) seen_[i] = std::move(value);
            }
            if (conflict != nullptr) throw py::value_error(conflict + given(kind, conflict, group));
        }
        if (!changed) return false;
        unsigned used = 0;
        for (int i = 0; i < kind.state_count; ++i)
            if (kind.uses_state(values.data(), i)) used |= 1u << i;
        return std::exchange(used_, used) != used;
    }

    int traverse(visitproc visit, void* arg) const {
        for (const py::object& value : seen_) Py_VISIT(value.ptr());
        return 0;
    }

    std::array<double, max_options> values{};

private:
    // The values of the options that a message names.
    static std::string given(const Update& kind, const std::string& message,
                             const py::dict& group) {
        std::string result;
        for (int i = 0; i < kind.option_count; ++i) {
            const char* name = kind.options[i].name;
            if (message.find(name) == std::string::npos) continue;
            result.append(result.empty() ? ", not " : ", ").append(name).append("=");
            result.append(short_repr(group[name]));
        }
        return result;
    }

    // Whether the object will always hold the value it holds now.
    static bool immutable(const py::object& value) {
        PyObject* object = value.ptr();
        if (PyTuple_CheckExact(object)) {
            for (const py::handle item : value)
                if (!PyFloat_CheckExact(item.ptr()) && !PyLong_CheckExact(item.ptr())) return false;
            return true;
        }
        return PyFloat_CheckExact(object) || PyBool_Check(object) || PyLong_CheckExact(object) ||
               PyUnicode_CheckExact(object);
    }

    unsigned used_ = 0;  // a bit for each state
    std::vector<py::object> keys_;
    std::vector<py::object> seen_;  // null where it has to be read again
    std::vector<std::pair<std::size_t, py::object>> pending_;
};

// What a check of an array saw. While it matches, the check need not be repeated.
class Fingerprint {
public:
    Fingerprint() = default;

    // `dtype` must outlive this; an array with another object for its dtype never matches.
    Fingerprint(const py::array& array, PyObject* dtype) {
        const auto* fields = py::detail::array_proxy(array.ptr());
        if (Py_TYPE(array.ptr()) != ndarray_type() || fields->descr != dtype ||
            fields->nd > max_dimensions)
            return;
        data_ = fields->data;
        dtype_ = fields->descr;
        flags_ = fields->flags & seen_flags;
        dimensions_ = fields->nd;
        std::copy_n(fields->dimensions, fields->nd, shape_.begin());
        std::copy_n(fields->strides, fields->nd, strides_.begin());
    }

    bool matches(PyObject* object) const {
        return matches_elsewhere(object) && py::detail::array_proxy(object)->data == data_;
    }

    // Whether all but the address is the same.
    __attribute__((always_inline)) bool matches_elsewhere(PyObject* object) const {
        if (Py_TYPE(object) != ndarray_type()) return false;
        const auto* fields = py::detail::array_proxy(object);
        if (fields->descr != dtype_ || fields->nd != dimensions_ ||
            (fields->flags & seen_flags) != flags_)
            return false;
        for (std::size_t i = 0; i < static_cast<std::size_t>(dimensions_); ++i)
            if (fields->dimensions[i] != shape_[i] || fields->strides[i] != strides_[i])
                return false;
        return true;
    }

    void move(const void* data) { data_ = data; }

private:
    static constexpr int max_dimensions = 4;
    static constexpr int seen_flags =
        py::detail::npy_api::NPY_ARRAY_ALIGNED_ | py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

    static PyTypeObject* ndarray_type() { return py::detail::npy_api::get().PyArray_Type_; }

    const void* data_ = nullptr;
    const PyObject* dtype_ = nullptr;
    int flags_ = 0;
    int dimensions_ = -1;
    std::array<py::ssize_t, max_dimensions> shape_{};
    std::array<py::ssize_t, max_dimensions> strides_{};
};

PyObject* dtype_of(const py::array& array) { return py::detail::array_proxy(array.ptr())->descr; }

// The arrays of a step, checked and ready for the runtime. Kept from step to step: the same arrays
// are recognized by their fingerprints, a gradient that moved is checked by itself.
class Plan {
public:
    explicit Plan(int number) : number_(number) {}

    void clear() {
        stepper_.tensors.clear();
        entries_.clear();
        overlap_ = {};
    }

    std::size_t size() const { return entries_.size(); }

    // Checks the arrays of one parameter. States that are used and not there yet are created.
    // `options` must live as long as the plan. With `zero_grads` the gradient is written too.
    void add(const double* options, const std::string& name, const py::array& param,
             py::handle grad, States& states, bool fresh, bool zero_grads) {
        const std::string param_what = param_label(number_, name);
        const py::array plain = parameter_array(param, param_what);
        Entry entry;
        entry.order = memory_order(plain);
        entry.param = {param, dtype_of(param)};
        TensorUpdate update{};
        update.param = static_cast<std::byte*>(const_cast<void*>(plain.data()));
        overlap_.add(plain, param_what, true);
        const py::array grad_array = check_grad(grad, name, param, zero_grads);
        overlap_.add(grad_array, grad_label(number_, name), zero_grads);
        update.grad = view(grad_array, entry.order);
        entry.grad = {grad_array, dtype_of(param)};
        for (int i = 0; i < row(number_).state_count; ++i) {
            if (!row(number_).uses_state(options, i)) continue;
            std::optional<py::array>& state = states[static_cast<std::size_t>(i)];
            const std::string what = row(number_).states[i] + (" of " + quoted(name));
            if (!state) {
                state = zeros_like(param);
                fresh = true;
            } else {
                float_array(*state, what);
                require_twin(*state, what, param, param_what);
            }
            overlap_.add(*state, what, true);
            update.state[i] = static_cast<std::byte*>(const_cast<void*>(state->data()));
            entry.states[static_cast<std::size_t>(i)] = {*state, dtype_of(param)};
        }
        update.options = options;
        update.fresh = fresh;
        stepper_.tensors.push_back(std::move(update));
        entries_.push_back(std::move(entry));
    }

    // After the last add(): the checks that concern several arrays.
    void finish() {
        overlap_.run();
        written_ = overlap_.written();
        overlap_ = {};
        stepper_.cut();
    }

    // Whether parameter and states of entry `number` are as they were when it was added.
    bool still_holds(std::size_t number, const py::array& param, const States& states) const {
        const Entry& entry = entries_[number];
        if (!entry.param.matches(param.ptr())) return false;
        for (std::size_t i = 0; i < states.size(); ++i) {
            if (stepper_.tensors[number].state[i] == nullptr) continue;
            if (!states[i] || !entry.states[i].matches(states[i]->ptr())) return false;
        }
        return true;
    }

    // Takes another gradient for entry `number`. Returns false if only a new plan can tell whether
    // it may be used.
    bool take_grad(std::size_t number, py::handle grad, const std::string& name,
                   const py::array& param, bool zero_grads) {
        Entry& entry = entries_[number];
        if (entry.grad.matches(grad.ptr())) return true;
        if (zero_grads) return false;
        TensorUpdate& tensor = stepper_.tensors[number];
        if (entry.grad.matches_elsewhere(grad.ptr())) {
            if (touches(extent(py::reinterpret_borrow<py::array>(grad)))) return false;
            tensor.grad.reader.move(py::detail::array_proxy(grad.ptr())->data);
            entry.grad.move(py::detail::array_proxy(grad.ptr())->data);
            return true;
        }
        const py::array array = check_grad(grad, name, param, zero_grads);
        if (touches(extent(array))) return false;
        GradView grad_view = view(array, entry.order);
        // The pieces were cut for the layout of before.
        if (grad_view.reader.at_once() != tensor.grad.reader.at_once()) return false;
        tensor.grad = std::move(grad_view);
        entry.grad = {array, dtype_of(param)};
        return true;
    }

    TensorUpdate& tensor(std::size_t number) { return stepper_.tensors[number]; }

    StepResult run(const GradOptions& options) {
        const GilRelease release;
        return stepper_.run(number_, options);
    }

private:
    struct Entry {
        std::vector<py::ssize_t> order;
        Fingerprint param, grad;
        std::array<Fingerprint, max_states> states;
    };

    static GradView view(const py::array& grad, const std::vector<py::ssize_t>& order) {
        return {type_of(grad), static_cast<std::size_t>(grad.size()), reader(grad, order)};
    }

    py::array check_grad(py::handle grad, const std::string& name, const py::array& param,
                         bool zero_grads) const {
        const std::string what = grad_label(number_, name);
        py::array array = float_array(grad, what);
        require_like(array, what, param, param_label(number_, name));
        if (zero_grads) {
            require_writeable(array, what);
            require_distinct_elements(array, what);
        }
        return array;
    }

    // Whether a gradient's extent meets that of an array which the step writes.
    bool touches(std::pair<const std::byte*, const std::byte*> range) const {
        const auto [begin, end] = range;
        const auto after = std::lower_bound(
            written_.begin(), written_.end(), end,
            [](const auto& written, const std::byte* limit) { return written.first < limit; });
        return begin != end && after != written_.begin() && std::prev(after)->second > begin;
    }

    int number_;  // of the update
    Stepper stepper_;
    std::vector<Entry> entries_;
    OverlapCheck overlap_;
    std::vector<std::pair<const std::byte*, const std::byte*>> written_;  // sorted, disjoint
};

// What a step is given nearly always, without making a string of the name.
double number_of(py::handle value, const char* name) {
    return PyFloat_CheckExact(value.ptr()) ? PyFloat_AS_DOUBLE(value.ptr())
                                           : as_number(value, name);
}
bool flag_of(py::handle value, const char* name) {
    return value.ptr() != Py_False && (value.ptr() == Py_True || as_flag(value, name));
}

GradOptions grad_options(const py::object& max_norm, const py::object& norm_type,
                         const py::object& grad_scale, const py::object& skip_nonfinite,
                         const py::object& zero_grads) {
    GradOptions options;
    options.scale = number_of(grad_scale, "grad_scale");
    if (!(std::isfinite(options.scale) && options.scale > 0))
        throw_option("grad_scale", grad_scale, "finite and > 0");
    options.skip_nonfinite = flag_of(skip_nonfinite, "skip_nonfinite");
    options.zero = flag_of(zero_grads, "zero_grads");
    options.clip = !max_norm.is_none();
    if (options.clip) options.max_norm = number_of(max_norm, "max_norm");
    if (!PyFloat_CheckExact(norm_type.ptr()) || PyFloat_AS_DOUBLE(norm_type.ptr()) != 2.0)
        options.norm_type = as_norm_type(norm_type, "norm_type");
    if (!(options.max_norm >= 0)) throw_option("max_norm", max_norm, ">= 0");
    return options;
}

// What a step returns. It is made before the step, and the numbers are written into it afterwards:
// nothing can fail then.
class StepInfo {
public:
    explicit StepInfo(const py::object& type) : info_(type(norm_.object(), false)) {
        if (!PyTuple_Check(info_.ptr()) || PyTuple_GET_ITEM(info_.ptr(), 0) != norm_.object().ptr())
            throw py::type_error("a StepInfo must be a tuple of norm and flag");
        PyObject_GC_UnTrack(info_.ptr());  // nobody finds it before it is filled
    }
    py::object with(const StepResult& result) && {
        norm_.set(result.grad_norm);
        PyObject* skipped = result.skipped ? Py_True : Py_False;
        PyObject* before = PyTuple_GET_ITEM(info_.ptr(), 1);
        PyTuple_SET_ITEM(info_.ptr(), 1, py::handle(skipped).inc_ref().ptr());
        Py_DECREF(before);
        return std::move(info_);
    }

private:
    LateFloat norm_;
    py::object info_;
};

// Makes dicts hold what others hold, without a failure half-way: start() does what may need memory,
// and is undone unless finish() is reached.
class DictChanges {
public:
    explicit DictChanges(const std::vector<std::pair<py::dict, py::dict>>& changes)
        : changes_(changes) {}

    // Gives each first dict the keys of the second. Keys are exact strings: nothing runs code of
    // the caller's here.
    void start() {
        for (const auto& [target, source] : changes_) {
            for (const auto& dict : {target, source})
                for (const auto& [key, value] : dict)
                    if (!PyUnicode_CheckExact(key.ptr()))
                        throw py::type_error(
                            "the options of a group must have strings as names, not " +
                            short_repr(key));
            for (const auto& [key, value] : target) {
                before_.push_back(py::reinterpret_borrow<py::object>(value));
                if (!source.contains(key))
                    surplus_.emplace_back(target, py::reinterpret_borrow<py::object>(key));
            }
            for (const auto& [key, value] : source) {
                if (target.contains(key)) continue;
                added_.emplace_back(target, py::reinterpret_borrow<py::object>(key));
                if (PyDict_SetItem(target.ptr(), key.ptr(), value.ptr()) != 0)
                    throw py::error_already_set();
            }
        }
    }
    // Replaces values of keys that are there, and deletes keys: neither needs memory.
    void finish() {
        for (const auto& [target, source] : changes_)
            for (const auto& [key, value] : source)
                ok(PyDict_SetItem(target.ptr(), key.ptr(), value.ptr()));
        for (const auto& [target, key] : surplus_) ok(PyDict_DelItem(target.ptr(), key.ptr()));
        added_.clear();
    }
    ~DictChanges() {
        for (const auto& [target, key] : added_) ok(PyDict_DelItem(target.ptr(), key.ptr()));
    }
    DictChanges(const DictChanges&) = delete;
    DictChanges& operator=(const DictChanges&) = delete;

private:
    using Place = std::pair<py::dict, py::object>;

    static void ok(int result) {
        if (result != 0) PyErr_Clear();
    }

    const std::vector<std::pair<py::dict, py::dict>>& changes_;
    std::vector<Place> added_, surplus_;
    std::vector<py::object> before_;  // so that nothing dies, and runs code, within finish()
};

class Updater {
public:
    Updater(const py::object& kernel, py::object step_info)
        : number_(find_update(as_text(kernel, "kernel"))),
          step_info_(std::move(step_info)),
          plan_(number_) {}

    void check_options(const py::dict& group) const { GroupOptions(row(number_), group); }

    // Adds the parameters of a group, and the group to the list `groups`. All of them are checked,
    // against those there too, first.
    void add_group(const py::list& names, const py::list& arrays, const py::dict& group,
                   const py::list& groups) {
        const Use use(*this);
        GroupOptions options(row(number_), group);
        py::object params = group["params"];
        OverlapCheck overlap;
        for (const Parameter& parameter : parameters_)
            overlap.add(float_array(parameter.param, ""), param_label(number_, parameter.name),
                        true);
        std::vector<Parameter> added;
        for (std::size_t i = 0; i < names.size(); ++i) {
            const auto name = as_text(py::object(names[i]), "the name of a parameter");
            const std::string what = param_label(number_, name);
            const py::array param = parameter_array(py::object(arrays[i]), what);
            require_fit(unfit(options, 1, param), param, what);
            overlap.add(param, what, true);
            // What was given, not a plain view of it: the collector would not see through that.
            added.push_back({name, py::object(arrays[i]), options_.size(), {}, 0});
        }
        overlap.run();
        forget_plan();  // it points at the options
        options_.reserve(options_.size() + 1);
        group_params_.reserve(group_params_.size() + 1);
        parameters_.reserve(parameters_.size() + added.size());
        if (PyList_Append(groups.ptr(), group.ptr()) != 0) throw py::error_already_set();
        options_.push_back(std::move(options));
        group_params_.push_back(std::move(params));
        std::move(added.begin(), added.end(), std::back_inserter(parameters_));
    }

    // Removes group number `index` with its parameters and their states, and from the list
    // `groups`.
    void remove_group(std::size_t index, const py::list& groups) {
        const Use use(*this);
        const auto place = static_cast<std::ptrdiff_t>(index);
        check_groups(groups);
        if (index >= options_.size()) throw py::index_error("there is no such group");
        forget_plan();
        if (PyList_SetSlice(groups.ptr(), place, place + 1, nullptr) != 0)
            throw py::error_already_set();
        std::rotate(options_.begin() + place, options_.begin() + place + 1, options_.end());
        std::rotate(group_params_.begin() + place, group_params_.begin() + place + 1,
                    group_params_.end());
        std::size_t count = 0;  // those that stay come first, in their order
        for (Parameter& parameter : parameters_)
            if (parameter.group != index) std::swap(parameters_[count++], parameter);
        for (Parameter& parameter : parameters_)
            if (parameter.group > index) --parameter.group;
        // One by one: what dies may run code that looks at the others.
        while (parameters_.size() > count) parameters_.pop_back();
        options_.pop_back();
        group_params_.pop_back();
    }

    // One step of all parameters whose gradient is not None. Returns None, or with max_norm or
    // skip_nonfinite a StepInfo.
    py::object step(const py::object& groups, const py::object& grads, const py::object& max_norm,
                    const py::object& norm_type, const py::object& grad_scale,
                    const py::object& skip_nonfinite, const py::object& zero_grads) {
        const Use use(*this);
        const GradOptions options =
            grad_options(max_norm, norm_type, grad_scale, skip_nonfinite, zero_grads);
        read_groups(groups);
        const auto sequence = py::reinterpret_steal<py::object>(
            PySequence_Fast(grads.ptr(), "grads must be a sequence"));
        if (!sequence) throw py::error_already_set();
        const auto count = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence.ptr()));
        if (count != parameters_.size())
            throw py::value_error("grads has " + counted(count, "gradient") + " for " +
                                  counted(parameters_.size(), "parameter") +
                                  "; pass None for a parameter without one");
        std::vector<py::object> held;  // nobody may free a gradient while the GIL is released
        held.reserve(count);
        for (std::size_t i = 0; i < count; ++i)
            held.push_back(py::reinterpret_borrow<py::object>(
                PySequence_Fast_GET_ITEM(sequence.ptr(), static_cast<py::ssize_t>(i))));
        std::optional<StepInfo> info;
        if (options.clip || options.skip_nonfinite) info.emplace(step_info_);
        StepResult result;
        try {
            if (plan_zeroes_ != options.zero || !refresh_plan(held, options.zero))
                make_plan(held, options.zero);
            for (std::size_t k = 0; k < planned_.size(); ++k) {
                const Parameter& parameter = parameters_[planned_[k]];
                if (parameter.step == last_step)
                    throw py::value_error("the step counter of " +
                                          param_label(number_, parameter.name) +
                                          " is at its end (2**63 - 1)");
                plan_.tensor(k).step = parameter.step + 1;
            }
            result = plan_.run(options);
            if (result.misfit) {
                const Parameter& parameter = parameters_[planned_[result.misfit->tensor]];
                require_fit(result.misfit->scalar, parameter.param,
                            param_label(number_, parameter.name));
            }
        } catch (...) {
            forget_created();
            forget_plan();  // it may hold gradients
            throw;
        }
        if (result.skipped) {
            forget_created();
        } else {
            for (const std::size_t index : planned_) ++parameters_[index].step;
            for (const auto& [parameter, state] : created_)
                plan_.tensor(parameter->planned_as).fresh = false;
        }
        created_.clear();
        return info ? std::move(*info).with(result) : py::none();
    }

    // The step counter and the arrays of parameter number `index`, by name; not copies.
    py::dict state(std::size_t index) {
        const Use use(*this);
        const Parameter& parameter = parameters_.at(index);
        py::dict result;
        result["step"] = parameter.step;
        for (int i = 0; i < row(number_).state_count; ++i)
            if (const auto& state = parameter.states[static_cast<std::size_t>(i)])
                result[row(number_).states[i]] = *state;
        return result;
    }

    // Replaces all states by copies of what `loaded` holds, in the order of the parameters (None
    // keeps one as it is), and what is in the dicts of `groups` by what is in those of
    // `loaded_groups`. `values` may hold arrays, or None, to be copied into the parameters.
    // Everything is checked first, and nothing can fail once something changes.
    void load(const py::list& loaded, const py::list& groups, const py::list& loaded_groups,
              const py::list& values) {
        const Use use(*this);
        check_groups(groups);
        if (loaded.size() != parameters_.size() || loaded_groups.size() != options_.size() ||
            (values.size() != 0 && values.size() != parameters_.size()))
            throw py::value_error("the number of parameters or groups does not match");
        std::vector<std::pair<py::dict, py::dict>> changes;
        std::vector<GroupOptions> options;
        for (std::size_t g = 0; g < options_.size(); ++g) {
            changes.emplace_back(py::dict(groups[g]), py::dict(loaded_groups[g]));
            options.emplace_back(row(number_), changes.back().second);
        }
        std::vector<std::pair<States, std::int64_t>> fresh;
        fresh.reserve(loaded.size());
        for (std::size_t i = 0; i < loaded.size(); ++i) {
            const Parameter& parameter = parameters_[i];
            const py::object entry = loaded[i];
            fresh.push_back(entry.is_none() ? std::pair(parameter.states, parameter.step)
                                            : read_state(parameter, py::dict(entry)));
            require_fit(unfit(options[parameter.group],
                              std::max<std::int64_t>(1, fresh.back().second), parameter.param),
                        parameter.param, param_label(number_, parameter.name));
        }
        std::vector<std::pair<py::array, py::array>> copies;  // from, to
        for (std::size_t i = 0; i < values.size(); ++i) {
            const py::object value = values[i];
            if (value.is_none()) continue;
            const Parameter& parameter = parameters_[i];
            const std::string what = param_label(number_, parameter.name);
            parameter_array(parameter.param, what);
            const py::array array = float_array(value, what);
            require_like(array, what, parameter.param, grad_label(number_, parameter.name));
            copies.emplace_back(copy_like(array, parameter.param), parameter.param);
        }
        DictChanges exchange(changes);
        exchange.start();
        for (std::size_t i = 0; i < fresh.size(); ++i) {
            std::swap(parameters_[i].states, fresh[i].first);
            parameters_[i].step = fresh[i].second;
        }
        for (const auto& [from, to] : copies)
            std::memcpy(const_cast<void*>(to.data()), from.data(),
                        static_cast<std::size_t>(to.nbytes()));
        exchange.finish();
        forget_plan();
    }

    int traverse(visitproc visit, void* arg) const {
        Py_VISIT(step_info_.ptr());
        for (const Parameter& parameter : parameters_) {
            Py_VISIT(parameter.param.ptr());
            for (const auto& state : parameter.states)
                if (state) Py_VISIT(state->ptr());
        }
        for (const py::object& params : group_params_) Py_VISIT(params.ptr());
        for (const GroupOptions& options : options_)
            if (const int result = options.traverse(visit, arg)) return result;
        return 0;
    }

    void clear() {
        forget_plan();
        const auto parameters = std::move(parameters_);
        const auto options = std::move(options_);
        const auto params = std::move(group_params_);
        parameters_.clear();
        options_.clear();
        group_params_.clear();
    }

private:
    struct Parameter {
        std::string name;
        py::array param;
        std::size_t group;
        States states;
        std::int64_t step;
        std::size_t planned_as = 0;  // its number in the plan, if it is there
    };

    // Refuses a second thread while one is inside.
    class Use {
    public:
        explicit Use(Updater& core) : core_(core) {
            unsigned user = 0;
            if (core.user_.compare_exchange_strong(user, 1 + fork_count())) return;
            const std::string owner = row(core.number_).words.owner;
            throw std::runtime_error(
                user == 1 + fork_count()
                    ? "this " + owner + " is in use by another thread; one step at a time"
                    : "the process was forked while another thread used this " + owner +
                          ", whose arrays may be half written; make a new one");
        }
        ~Use() { core_.user_.store(0); }
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;

    private:
        Updater& core_;
    };

    static constexpr std::int64_t last_step = std::numeric_limits<std::int64_t>::max();

    // The first scalar of step number `step` that the element type of `param` cannot hold.
    Unfit unfit(const GroupOptions& options, std::int64_t step, const py::array& param) const {
        Coefficients coefficients;
        row(number_).prepare(options.values.data(), step, true, coefficients);
        return row(number_).unfit(coefficients, type_of(param));
    }

    // States that were made for a step which was not taken have never been: the next step is the
    // first.
    void forget_created() {
        for (const auto& [parameter, state] : created_) parameter->states[state].reset();
        if (!created_.empty()) forget_plan();
        created_.clear();
    }

    void forget_plan() {
        plan_.clear();
        planned_.clear();
        plan_stands_ = false;
    }

    // Throws unless these are the groups that were added and not removed since, in their order.
    // `groups` is a list or a tuple.
    void check_groups(const py::object& groups) const {
        const auto count = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(groups.ptr()));
        if (count != options_.size())
            throw py::value_error("param_groups has " + counted(count, "group") +
                                  ", the optimizer " + std::to_string(options_.size()) +
                                  (count > options_.size()
                                       ? "; add one with add_param_group"
                                       : "; remove one with remove_param_group"));
        for (std::size_t g = 0; g < options_.size(); ++g) {
            const py::handle group = item(groups, g);
            if (!PyDict_CheckExact(group.ptr()))
                throw py::type_error("param_groups[" + std::to_string(g) +
                                     "] must be a dict, not " + short_repr(group));
            PyObject* params = PyDict_GetItemWithError(group.ptr(), params_key_.ptr());
            if (params == group_params_[g].ptr()) continue;
            if (PyErr_Occurred()) throw py::error_already_set();
            throw py::value_error(
                "the 'params' of a group cannot be replaced, nor the groups reordered; use "
                "remove_param_group and add_param_group");
        }
    }

    static py::handle item(const py::object& sequence, std::size_t number) {
        return PySequence_Fast_GET_ITEM(sequence.ptr(), static_cast<py::ssize_t>(number));
    }

    // Reads the options of all groups. Where other states are used now, the plan falls.
    void read_groups(const py::object& groups) {
        if (!PyList_Check(groups.ptr()))
            throw py::type_error("param_groups must be a list, not " + short_repr(groups));
        // A copy: an option may run code of the caller's, which may change the list.
        const auto copy = py::reinterpret_steal<py::tuple>(PyList_AsTuple(groups.ptr()));
        if (!copy) throw py::error_already_set();
        check_groups(copy);
        for (std::size_t g = 0; g < options_.size(); ++g) {
            if (options_[g].read(row(number_), py::reinterpret_borrow<py::dict>(item(copy, g))))
                plan_stands_ = false;
        }
    }

    // Whether the plan is still right for these gradients, or could be made so.
    bool refresh_plan(const std::vector<py::object>& grads, bool zero_grads) {
        if (!plan_stands_) return false;
        std::size_t k = 0;
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            const bool planned = k < planned_.size() && planned_[k] == i;
            if (grads[i].is_none() == planned) return false;
            if (!planned) continue;
            const Parameter& parameter = parameters_[i];
            if (!plan_.still_holds(k, parameter.param, parameter.states) ||
                !plan_.take_grad(k, grads[i], parameter.name, parameter.param, zero_grads))
                return false;
            ++k;
        }
        return true;
    }

    // Checks everything and makes the plan for these gradients.
    void make_plan(const std::vector<py::object>& grads, bool zero_grads) {
        forget_plan();
        created_.clear();
        std::vector<std::pair<Parameter*, States>> planned;
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            if (grads[i].is_none()) continue;
            Parameter& parameter = parameters_[i];
            States states = parameter.states;
            parameter.planned_as = plan_.size();
            plan_.add(options_[parameter.group].values.data(), parameter.name, parameter.param,
                      grads[i], states, false, zero_grads);
            planned.emplace_back(&parameter, std::move(states));
            planned_.push_back(i);
        }
        plan_.finish();
        created_.reserve(planned.size() * max_states);  // nothing fails from here on
        for (auto& [parameter, states] : planned) {
            for (std::size_t i = 0; i < states.size(); ++i)
                if (states[i] && !parameter->states[i]) created_.emplace_back(parameter, i);
            parameter->states = std::move(states);
        }
        plan_zeroes_ = zero_grads;
        plan_stands_ = true;
    }

    std::pair<States, std::int64_t> read_state(const Parameter& parameter,
                                               const py::dict& entry) const {
        const Update& kind = row(number_);
        const std::string owner = "state of " + quoted(parameter.name);
        if (!entry.contains("step")) throw_names("the " + owner + " has no 'step'");
        const std::string step_what = "'step' in the " + owner;
        const py::object step_object = entry["step"];
        const std::int64_t step = as_integer(step_object, step_what);
        if (step < 0 || step == last_step)
            throw_option(step_what, step_object, ">= 0 and below 2**63 - 1");
        // A state that an option needs may have been switched on since: it starts afresh.
        static constexpr double no_options[max_options] = {};
        States states;
        std::size_t found = 1;
        for (int i = 0; i < kind.state_count; ++i) {
            const char* name = kind.states[i];
            if (!entry.contains(name)) {
                if (step > 0 && kind.uses_state(no_options, i))
                    throw_names("the " + owner + " has no " + quoted(name));
                continue;
            }
            ++found;
            const std::string what = name + (" of " + quoted(parameter.name));
            const py::array given = float_array(entry[name], what);
            require_like(given, what, parameter.param, param_label(number_, parameter.name));
            states[static_cast<std::size_t>(i)] = copy_like(given, parameter.param);
        }
        if (found != entry.size())
            for (const auto& item : entry) {
                const std::string key = short_repr(item.first);
                bool known = key == "'step'";
                for (int i = 0; i < kind.state_count; ++i) known |= key == quoted(kind.states[i]);
                if (known) continue;
                throw_names(std::string("the ").append(owner).append(" has ").append(key).append(
                    ", which this optimizer does not know"));
            }
        return {std::move(states), step};
    }

    int number_;            // of the update
    py::object step_info_;  // the type
    std::vector<Parameter> parameters_;
    std::vector<GroupOptions> options_;  // of each group
    std::vector<py::object> group_params_;
    py::str params_key_{"params"};
    Plan plan_;
    std::vector<std::size_t> planned_;  // the parameters in the plan
    bool plan_stands_ = false;
    bool plan_zeroes_ = false;
    std::vector<std::pair<Parameter*, std::size_t>> created_;  // states made for the current step
    std::atomic<unsigned> user_ = 0;  // 0, or 1 + the forks when a call began
};

// One update of one array on state that the caller owns. `given` maps names to arrays.
void update(const py::object& kernel, const py::object& param, const py::object& grad,
            const py::dict& given, const py::object& step_given, const py::dict& group) {
    const int number = find_update(as_text(kernel, "kernel"));
    const GroupOptions options(row(number), group);
    const std::int64_t step = as_integer(step_given, "step");
    if (step < 1) throw_option("step", step_given, ">= 1 (the number of this update)");
    States states;
    for (int i = 0; i < row(number).state_count; ++i) {
        const char* name = row(number).states[i];
        if (!row(number).uses_state(options.values.data(), i)) continue;
        states[static_cast<std::size_t>(i)] = float_array(given[name], name);
    }
    const py::array param_array = float_array(param, "param");
    Plan plan(number);
    plan.add(options.values.data(), "param", param_array, grad, states, step == 1, false);
    plan.finish();
    plan.tensor(0).step = step;
    const StepResult result = plan.run({});
    if (result.misfit) require_fit(result.misfit->scalar, param_array, "param");
}

}  // namespace

void bind_updates(py::module_& module) {
    using Guard = py::call_guard<DefaultFloatingPoint>;
    py::class_<Updater>(module, "Updater", "Arrays with their states and step counters.",
                        collected<Updater>())
        .def(py::init<const py::object&, py::object>(), py::arg("kernel"),
             py::arg("step_info") = py::none())
        .def("check_options", &Updater::check_options, py::arg("group"), Guard())
        .def("add_group", &Updater::add_group, py::arg("names"), py::arg("params"),
             py::arg("group"), py::arg("groups"), Guard())
        .def("remove_group", &Updater::remove_group, py::arg("index"), py::arg("groups"))
        .def("step", &Updater::step, py::arg("groups"), py::arg("grads"),
             py::arg("max_norm") = py::none(), py::arg("norm_type") = 2.0,
             py::arg("grad_scale") = 1.0, py::arg("skip_nonfinite") = false,
             py::arg("zero_grads") = false, Guard())
        .def("state", &Updater::state, py::arg("index"))
        .def("load", &Updater::load, py::arg("states"), py::arg("groups"), py::arg("loaded_groups"),
             py::arg("values") = py::list(), Guard());
    module.def("update", &update, py::arg("kernel"), py::arg("param"), py::arg("grad"),
               py::arg("states"), py::arg("step"), py::arg("group"), Guard());
}

}  // namespace fastopt
