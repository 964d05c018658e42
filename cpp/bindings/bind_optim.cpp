// The optimizers: parameters, states and step counters, checked and stepped in one call.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <optional>
#include <stdexcept>

#include "../runtime/isa.hpp"
#include "../runtime/step.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "gil.hpp"

namespace fastopt {
namespace {

using States = std::array<std::optional<py::array>, max_states>;

int find_optimizer(const std::string& name) {
    const Table& table = kernels();
    for (int i = 0; i < table.optimizer_count; ++i)
        if (name == table.optimizers[i].name) return i;
    throw py::value_error("there is no optimizer kernel '" + name + "'");
}

const Optimizer& row(int optimizer) { return kernels().optimizers[optimizer]; }

std::string quoted(const std::string& name) { return "'" + name + "'"; }

// What messages call the array that optimizer number `optimizer` writes, and the one that it reads.
std::string param_label(int optimizer, const std::string& name) {
    return std::string(row(optimizer).words.param) + ' ' + quoted(name);
}
std::string grad_label(int optimizer, const std::string& name) {
    return std::string(row(optimizer).words.grad) + ' ' + quoted(name);
}

[[noreturn]] void throw_option(const std::string& what, py::handle value, const char* taken) {
    throw py::value_error(what + " must be " + taken + ", not " + std::string(py::repr(value)));
}

double read_option(const Option& option, py::handle value) {
    std::string what = option.name;
    py::object item = py::reinterpret_borrow<py::object>(value);
    if (option.item >= 0) {
        if (!py::isinstance<py::sequence>(value) || py::isinstance<py::str>(value) ||
            py::len(value) != 2)
            throw py::type_error(what + " must be a pair of numbers, not " +
                                 std::string(py::repr(value)));
        item = value[py::int_(option.item)];
        what += "[" + std::to_string(option.item) + "]";
    }
    if (option.domain == Domain::choice) {
        for (int i = 0; i < 2; ++i)
            if (item.equal(py::str(option.choices[i]))) return i;
        throw py::value_error(what + " must be " + quoted(option.choices[0]) + " or " +
                              quoted(option.choices[1]) + ", not " + std::string(py::repr(item)));
    }
    const double number = PyFloat_AsDouble(item.ptr());
    if (number == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        throw py::type_error(what + " must be a number, not " + std::string(py::repr(item)));
    }
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
            if (number != 0 && number != 1) throw_option(what, item, "True or False");
            break;
        case Domain::choice: break;
    }
    return number;
}

// The options of one group, kept while the group holds the same objects.
class GroupOptions {
public:
    GroupOptions(const Optimizer& optimizer, const py::dict& group) {
        for (int i = 0; i < optimizer.option_count; ++i)
            keys_.push_back(py::reinterpret_steal<py::object>(
                PyUnicode_InternFromString(optimizer.options[i].name)));
        seen_.resize(keys_.size());
        read(optimizer, group);
    }

    // Reads and checks the options. Returns whether they use other states than before.
    bool read(const Optimizer& optimizer, const py::dict& group) {
        pending_.clear();
        std::array<double, max_options> fresh = values;
        bool changed = false;
        for (std::size_t i = 0; i < keys_.size(); ++i) {
            const auto value = py::reinterpret_borrow<py::object>(
                PyDict_GetItemWithError(group.ptr(), keys_[i].ptr()));
            const Option& option = optimizer.options[i];
            if (!value) {
                if (PyErr_Occurred()) throw py::error_already_set();
                throw py::key_error("the parameter group has no option " + quoted(option.name));
            }
            if (value.is(seen_[i])) continue;
            fresh[i] = read_option(option, value);
            changed = true;
            pending_.emplace_back(i, immutable(value) ? value : py::object());
        }
        if (changed) {
            const char* conflict = optimizer.conflict(fresh.data());
            if (conflict == nullptr) {
                values = fresh;
                for (auto& [i, value] : pending_) seen_[i] = std::move(value);
            }
            if (conflict != nullptr) throw py::value_error(std::string(conflict));
        }
        if (!changed) return false;
        unsigned used = 0;
        for (int i = 0; i < optimizer.state_count; ++i)
            if (optimizer.uses_state(values.data(), i)) used |= 1u << i;
        return std::exchange(used_, used) != used;
    }

    std::array<double, max_options> values{};

private:
    // Whether the object will always hold the value it holds now.
    static bool immutable(const py::object& value) {
        PyObject* object = value.ptr();
        if (PyTuple_CheckExact(object)) {
            for (const py::handle item : value)
                if (!PyFloat_CheckExact(item.ptr())) return false;
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
    bool matches_elsewhere(PyObject* object) const {
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
    explicit Plan(int optimizer) : optimizer_(optimizer) {}

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
        const std::string param_what = param_label(optimizer_, name);
        check_parameter(param, param_what);
        Entry entry;
        entry.order = memory_order(param);
        entry.param = {param, dtype_of(param)};
        TensorUpdate update{};
        update.param = static_cast<std::byte*>(const_cast<void*>(param.data()));
        overlap_.add(param, param_what, true);
        const py::array grad_array = check_grad(grad, name, param, zero_grads);
        overlap_.add(grad_array, grad_label(optimizer_, name), zero_grads);
        update.grad = view(grad_array, entry.order);
        entry.grad = {grad_array, dtype_of(param)};
        for (int i = 0; i < row(optimizer_).state_count; ++i) {
            if (!row(optimizer_).uses_state(options, i)) continue;
            std::optional<py::array>& state = states[static_cast<std::size_t>(i)];
            const std::string what = row(optimizer_).states[i] + (" of " + quoted(name));
            if (!state) {
                state = zeros_like(param);
                fresh = true;
            } else {
                check_state(*state, what, param, param_what, entry.order);
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
        return stepper_.run(optimizer_, options);
    }

    static void check_parameter(const py::array& param, const std::string& what) {
        float_array(param, what);
        require_writeable(param, what);
        require_dense(param, what);
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
        const std::string what = grad_label(optimizer_, name);
        py::array array = float_array(grad, what);
        require_like(array, what, param, param_label(optimizer_, name));
        if (zero_grads) {
            require_writeable(array, what);
            require_distinct_elements(array, what);
        }
        return array;
    }

    static void check_state(const py::array& state, const std::string& what, const py::array& param,
                            const std::string& param_what, const std::vector<py::ssize_t>& order) {
        float_array(state, what);
        require_like(state, what, param, param_what);
        require_writeable(state, what);
        require_dense(state, what);
        if (!reader(state, order).contiguous())
            throw py::value_error(what + " is laid out otherwise in memory than " + param_what +
                                  "; give both the same order");
    }

    // Whether a gradient's extent meets that of an array which the step writes.
    bool touches(std::pair<const std::byte*, const std::byte*> range) const {
        const auto [begin, end] = range;
        const auto after = std::lower_bound(
            written_.begin(), written_.end(), end,
            [](const auto& written, const std::byte* limit) { return written.first < limit; });
        return begin != end && after != written_.begin() && std::prev(after)->second > begin;
    }

    int optimizer_;
    Stepper stepper_;
    std::vector<Entry> entries_;
    OverlapCheck overlap_;
    std::vector<std::pair<const std::byte*, const std::byte*>> written_;  // sorted, disjoint
};

GradOptions grad_options(const py::object& max_norm, double grad_scale, bool skip_nonfinite,
                         bool zero_grads) {
    GradOptions options;
    if (!(std::isfinite(grad_scale) && grad_scale > 0))
        throw py::value_error("grad_scale must be finite and > 0, not " +
                              std::string(py::repr(py::float_(grad_scale))));
    options.scale = grad_scale;
    options.skip_nonfinite = skip_nonfinite;
    options.zero = zero_grads;
    if (!max_norm.is_none()) {
        options.clip = true;
        options.max_norm = max_norm.cast<double>();
        if (!(options.max_norm >= 0))
            throw py::value_error("max_norm must be >= 0, not " + std::string(py::repr(max_norm)));
    }
    return options;
}

class OptimizerCore {
public:
    explicit OptimizerCore(const std::string& kernel)
        : optimizer_(find_optimizer(kernel)), plan_(optimizer_) {}

    void check_options(const py::dict& group) const { GroupOptions(row(optimizer_), group); }

    // Adds the parameters of a group. All of them are checked, against those there too, first.
    void add_group(const std::vector<std::string>& names, const std::vector<py::object>& arrays,
                   const py::dict& group) {
        const Use use(*this);
        GroupOptions options(row(optimizer_), group);
        OverlapCheck overlap;
        for (const Parameter& parameter : parameters_)
            overlap.add(parameter.param, param_label(optimizer_, parameter.name), true);
        std::vector<Parameter> added;
        for (std::size_t i = 0; i < names.size(); ++i) {
            const std::string what = param_label(optimizer_, names[i]);
            const py::array param = float_array(arrays[i], what);
            Plan::check_parameter(param, what);
            overlap.add(param, what, true);
            added.push_back({names[i], param, options_.size(), {}, 0});
        }
        overlap.run();
        options_.push_back(std::move(options));
        group_params_.push_back(py::object(group["params"]));
        parameters_.insert(parameters_.end(), added.begin(), added.end());
        forget_plan();
    }

    // One step of all parameters whose gradient is not None. Returns None, or with max_norm or
    // skip_nonfinite the norm of the gradients and whether the step was skipped.
    py::object step(const py::list& groups, const py::object& grads, const py::object& max_norm,
                    double grad_scale, bool skip_nonfinite, bool zero_grads) {
        const Use use(*this);
        const GradOptions options = grad_options(max_norm, grad_scale, skip_nonfinite, zero_grads);
        read_groups(groups);
        const auto sequence = py::reinterpret_steal<py::object>(
            PySequence_Fast(grads.ptr(), "grads must be a sequence"));
        if (!sequence) throw py::error_already_set();
        const auto count = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence.ptr()));
        if (count != parameters_.size())
            throw py::value_error("there are " + std::to_string(parameters_.size()) +
                                  " parameters but " + std::to_string(count) +
                                  " gradients; pass None for a parameter without one");
        std::vector<py::object> held;  // nobody may free a gradient while the GIL is released
        held.reserve(count);
        for (std::size_t i = 0; i < count; ++i)
            held.push_back(py::reinterpret_borrow<py::object>(
                PySequence_Fast_GET_ITEM(sequence.ptr(), static_cast<py::ssize_t>(i))));
        if (plan_zeroes_ != zero_grads || !refresh_plan(held, zero_grads))
            make_plan(held, zero_grads);

        for (std::size_t k = 0; k < planned_.size(); ++k)
            plan_.tensor(k).step = parameters_[planned_[k]].step + 1;
        const StepResult result = plan_.run(options);
        if (result.skipped) {
            // States that were made for this step have never been: the next one is the first.
            for (const auto& [parameter, state] : created_) parameter->states[state].reset();
            if (!created_.empty()) forget_plan();
        } else {
            for (const std::size_t index : planned_) ++parameters_[index].step;
            for (const auto& [parameter, state] : created_)
                plan_.tensor(parameter->planned_as).fresh = false;
        }
        created_.clear();
        if (!options.clip && !options.skip_nonfinite) return py::none();
        return py::make_tuple(result.grad_norm, result.skipped);
    }

    // The step counter and the arrays of parameter number `index`, by name; not copies.
    py::dict state(std::size_t index) {
        const Use use(*this);
        const Parameter& parameter = parameters_.at(index);
        py::dict result;
        result["step"] = parameter.step;
        for (int i = 0; i < row(optimizer_).state_count; ++i)
            if (const auto& state = parameter.states[static_cast<std::size_t>(i)])
                result[row(optimizer_).states[i]] = *state;
        return result;
    }

    // Replaces all states by copies of what `loaded` holds, in the order of the parameters, to be
    // used with the options of `groups`. Everything is checked first.
    void load(const std::vector<py::dict>& loaded, const std::vector<py::dict>& groups) {
        const Use use(*this);
        if (loaded.size() != parameters_.size() || groups.size() != options_.size())
            throw py::value_error("the number of parameters or groups does not match");
        for (const py::dict& group : groups) check_options(group);
        std::vector<std::pair<States, std::int64_t>> fresh;
        fresh.reserve(loaded.size());
        for (std::size_t i = 0; i < loaded.size(); ++i)
            fresh.push_back(read_state(parameters_[i], loaded[i]));
        for (std::size_t i = 0; i < fresh.size(); ++i)
            std::tie(parameters_[i].states, parameters_[i].step) = std::move(fresh[i]);
        forget_plan();
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
        explicit Use(OptimizerCore& core) : core_(core) {
            if (core.in_use_.test_and_set())
                throw std::runtime_error(std::string("this ") + row(core.optimizer_).words.owner +
                                         " is in use by another thread; one step at a time");
        }
        ~Use() { core_.in_use_.clear(); }
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;

    private:
        OptimizerCore& core_;
    };

    void forget_plan() {
        plan_.clear();
        planned_.clear();
        plan_stands_ = false;
    }

    // Reads the options of all groups. Where other states are used now, the plan falls.
    void read_groups(const py::list& groups) {
        if (groups.size() != options_.size())
            throw py::value_error("param_groups has " + std::to_string(groups.size()) +
                                  " groups, the optimizer " + std::to_string(options_.size()) +
                                  "; add one with add_param_group");
        for (std::size_t g = 0; g < options_.size(); ++g) {
            const py::handle group = PyList_GET_ITEM(groups.ptr(), static_cast<py::ssize_t>(g));
            if (!PyDict_Check(group.ptr()))
                throw py::type_error("param_groups[" + std::to_string(g) +
                                     "] must be a dict, not " + std::string(py::repr(group)));
            const auto dict = py::reinterpret_borrow<py::dict>(group);
            if (PyDict_GetItemWithError(group.ptr(), params_key_.ptr()) != group_params_[g].ptr())
                throw py::value_error(
                    "the 'params' of a group cannot be replaced; use add_param_group");
            if (options_[g].read(row(optimizer_), dict)) plan_stands_ = false;
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
        const Optimizer& optimizer = row(optimizer_);
        const std::string owner = "state of " + quoted(parameter.name);
        if (!entry.contains("step")) throw py::key_error("the " + owner + " has no 'step'");
        const py::object step_object = entry["step"];
        if (!PyIndex_Check(step_object.ptr()))
            throw py::type_error("'step' in the " + owner + " must be an integer, not " +
                                 std::string(py::repr(step_object)));
        const auto step = py::int_(step_object).cast<std::int64_t>();
        if (step < 0)
            throw py::value_error("'step' in the " + owner + " must be >= 0, not " +
                                  std::to_string(step));
        // A state that some option asks for may have been switched on since: it starts afresh.
        static constexpr double no_options[max_options] = {};
        States states;
        std::size_t found = 1;
        for (int i = 0; i < optimizer.state_count; ++i) {
            const char* name = optimizer.states[i];
            if (!entry.contains(name)) {
                if (step > 0 && optimizer.uses_state(no_options, i))
                    throw py::key_error("the " + owner + " has no " + quoted(name));
                continue;
            }
            ++found;
            const std::string what = name + (" of " + quoted(parameter.name));
            const py::array given = float_array(entry[name], what);
            require_like(given, what, parameter.param, param_label(optimizer_, parameter.name));
            py::array copy = zeros_like(parameter.param);
            py::module_::import("numpy").attr("copyto")(copy, given);
            states[static_cast<std::size_t>(i)] = copy;
        }
        if (found != entry.size())
            for (const auto& item : entry) {
                const auto key = py::str(item.first).cast<std::string>();
                bool known = key == "step";
                for (int i = 0; i < optimizer.state_count; ++i) known |= key == optimizer.states[i];
                if (!known)
                    throw py::key_error("the " + owner + " has " + quoted(key) +
                                        ", which this optimizer does not know");
            }
        return {std::move(states), step};
    }

    int optimizer_;
    std::vector<Parameter> parameters_;
    std::vector<GroupOptions> options_;  // of each group
    std::vector<py::object> group_params_;
    py::str params_key_{"params"};
    Plan plan_;
    std::vector<std::size_t> planned_;  // the parameters in the plan
    bool plan_stands_ = false;
    bool plan_zeroes_ = false;
    std::vector<std::pair<Parameter*, std::size_t>> created_;  // states made for the current step
    std::atomic_flag in_use_ = ATOMIC_FLAG_INIT;
};

// One update of one array on state that the caller owns. `states` maps names to arrays.
void update(const std::string& kernel, const py::object& param, const py::object& grad,
            const py::dict& given, std::int64_t step, const py::dict& group) {
    const int optimizer = find_optimizer(kernel);
    const GroupOptions options(row(optimizer), group);
    if (step < 1)
        throw py::value_error("step must be >= 1 (the number of this update), not " +
                              std::to_string(step));
    States states;
    for (int i = 0; i < row(optimizer).state_count; ++i) {
        const char* name = row(optimizer).states[i];
        if (!row(optimizer).uses_state(options.values.data(), i)) continue;
        states[static_cast<std::size_t>(i)] = float_array(given[name], name);
    }
    Plan plan(optimizer);
    plan.add(options.values.data(), "param", float_array(param, "param"), grad, states, step == 1,
             false);
    plan.finish();
    plan.tensor(0).step = step;
    plan.run({});
}

}  // namespace

void bind_optim(py::module_& module) {
    py::class_<OptimizerCore>(module, "Optimizer",
                              "Parameters, states and step counters of one optimizer.")
        .def(py::init<const std::string&>(), py::arg("kernel"))
        .def("check_options", &OptimizerCore::check_options, py::arg("group"))
        .def("add_group", &OptimizerCore::add_group, py::arg("names"), py::arg("params"),
             py::arg("group"))
        .def("step", &OptimizerCore::step, py::arg("groups"), py::arg("grads"), py::arg("max_norm"),
             py::arg("grad_scale"), py::arg("skip_nonfinite"), py::arg("zero_grads"))
        .def("state", &OptimizerCore::state, py::arg("index"))
        .def("load", &OptimizerCore::load, py::arg("states"), py::arg("groups"));
    module.def("update", &update, py::arg("kernel"), py::arg("param"), py::arg("grad"),
               py::arg("states"), py::arg("step"), py::arg("group"));
}

}  // namespace fastopt
