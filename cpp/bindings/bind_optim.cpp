// The optimizers: parameters, states and step counters, checked and stepped in one call.
#include <pybind11/stl.h>

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
using Options = std::array<double, max_options>;

int find_optimizer(const std::string& name) {
    const Table& table = kernels();
    for (int i = 0; i < table.optimizer_count; ++i)
        if (name == table.optimizers[i].name) return i;
    throw py::value_error("there is no optimizer kernel '" + name + "'");
}

const Optimizer& row(int optimizer) { return kernels().optimizers[optimizer]; }

std::string quoted(const std::string& name) { return "'" + name + "'"; }

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

// The options of one group, checked.
Options read_options(const Optimizer& optimizer, const py::dict& group) {
    Options options{};
    for (int i = 0; i < optimizer.option_count; ++i) {
        const Option& option = optimizer.options[i];
        PyObject* value = PyDict_GetItemString(group.ptr(), option.name);
        if (value == nullptr)
            throw py::key_error("the parameter group has no option " + quoted(option.name));
        options[static_cast<std::size_t>(i)] = read_option(option, value);
    }
    if (const char* conflict = optimizer.conflict(options.data()))
        throw py::value_error(std::string(conflict));
    return options;
}

// One parameter with its gradient and states, checked and ready for the runtime.
class Plan {
public:
    explicit Plan(int optimizer) : optimizer_(optimizer) {}

    // Checks the arrays of one parameter. States that are used and not there yet are created.
    // `options` must live until run().
    void add(const Options& options, const std::string& name, const py::array& param,
             py::handle grad, States& states, std::int64_t step, bool fresh = false) {
        const std::string param_what = "parameter " + quoted(name);
        const std::string grad_what = "gradient of " + quoted(name);
        check_parameter(param, param_what);
        const py::array grad_array = float_array(grad, grad_what);
        require_like(grad_array, grad_what, param, param_what);
        const auto order = memory_order(param);

        TensorUpdate update{};
        update.type = type_of(param);
        update.count = static_cast<std::size_t>(param.size());
        update.param = static_cast<std::byte*>(const_cast<void*>(param.data()));
        update.grad = reader(grad_array, order);
        overlap_.add(param, param_what, true);
        overlap_.add(grad_array, grad_what, false);
        for (int i = 0; i < row(optimizer_).state_count; ++i) {
            if (!row(optimizer_).uses_state(options.data(), i)) continue;
            std::optional<py::array>& state = states[static_cast<std::size_t>(i)];
            if (!state) {
                state = zeros_like(param);
                fresh = true;
            } else {
                const std::string what = row(optimizer_).states[i] + (" of " + quoted(name));
                check_state(*state, what, param, param_what, order);
                overlap_.add(*state, what, true);
            }
            update.state[i] = static_cast<std::byte*>(const_cast<void*>(state->data()));
        }
        update.options = options.data();
        update.step = step;
        update.fresh = fresh;
        updates_.push_back(std::move(update));
        held_.push_back(grad_array);
    }

    void run() {
        overlap_.run();
        const GilRelease release;
        run_updates(optimizer_, updates_);
    }

    static void check_parameter(const py::array& param, const std::string& what) {
        float_array(param, what);
        require_writeable(param, what);
        require_dense(param, what);
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

private:
    int optimizer_;
    std::vector<TensorUpdate> updates_;
    std::vector<py::array> held_;  // nobody may free a gradient while the GIL is released
    OverlapCheck overlap_;
};

class OptimizerCore {
public:
    explicit OptimizerCore(const std::string& kernel) : optimizer_(find_optimizer(kernel)) {}

    void check_options(const py::dict& group) const { read_options(row(optimizer_), group); }

    // Adds the parameters of a group. All of them are checked, against those there too, first.
    void add_group(const std::vector<std::string>& names, const std::vector<py::object>& arrays,
                   const py::dict& group) {
        const Use use(*this);
        read_options(row(optimizer_), group);
        OverlapCheck overlap;
        for (const Parameter& parameter : parameters_)
            overlap.add(parameter.param, "parameter " + quoted(parameter.name), true);
        std::vector<Parameter> added;
        for (std::size_t i = 0; i < names.size(); ++i) {
            const std::string what = "parameter " + quoted(names[i]);
            const py::array param = float_array(arrays[i], what);
            Plan::check_parameter(param, what);
            overlap.add(param, what, true);
            added.push_back({names[i], param, group_count_, {}, 0});
        }
        overlap.run();
        parameters_.insert(parameters_.end(), added.begin(), added.end());
        ++group_count_;
    }

    // One step of all parameters whose gradient is not None.
    void step(const std::vector<py::dict>& groups, const py::sequence& grads) {
        const Use use(*this);
        if (groups.size() != static_cast<std::size_t>(group_count_))
            throw py::value_error("param_groups has " + std::to_string(groups.size()) +
                                  " groups, the optimizer " + std::to_string(group_count_) +
                                  "; add one with add_param_group");
        const std::vector<Options> options = read_all_options(groups);
        if (grads.size() != parameters_.size())
            throw py::value_error("there are " + std::to_string(parameters_.size()) +
                                  " parameters but " + std::to_string(grads.size()) +
                                  " gradients; pass None for a parameter without one");
        Plan plan(optimizer_);
        std::vector<std::pair<Parameter*, States>> stepped;
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            const py::object grad = grads[i];
            if (grad.is_none()) continue;
            Parameter& parameter = parameters_[i];
            States states = parameter.states;
            plan.add(options[static_cast<std::size_t>(parameter.group)], parameter.name,
                     parameter.param, grad, states, parameter.step + 1);
            stepped.emplace_back(&parameter, std::move(states));
        }
        plan.run();
        for (auto& [parameter, states] : stepped) {
            parameter->states = std::move(states);
            ++parameter->step;
        }
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

    // Replaces all states by copies of what `loaded` holds, in the order of the parameters, as
    // they are to be used with `groups`. Everything is checked first.
    void load(const std::vector<py::dict>& loaded, const std::vector<py::dict>& groups) {
        const Use use(*this);
        if (loaded.size() != parameters_.size() ||
            groups.size() != static_cast<std::size_t>(group_count_))
            throw py::value_error("the number of parameters or groups does not match");
        read_all_options(groups);
        std::vector<std::pair<States, std::int64_t>> fresh;
        fresh.reserve(loaded.size());
        for (std::size_t i = 0; i < loaded.size(); ++i)
            fresh.push_back(read_state(parameters_[i], loaded[i]));
        for (std::size_t i = 0; i < fresh.size(); ++i)
            std::tie(parameters_[i].states, parameters_[i].step) = std::move(fresh[i]);
    }

private:
    struct Parameter {
        std::string name;
        py::array param;
        int group;
        States states;
        std::int64_t step;
    };

    // Refuses a second thread while one is inside.
    class Use {
    public:
        explicit Use(OptimizerCore& core) : core_(core) {
            if (core.in_use_.test_and_set())
                throw std::runtime_error(
                    "this optimizer is in use by another thread; one step at a time");
        }
        ~Use() { core_.in_use_.clear(); }
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;

    private:
        OptimizerCore& core_;
    };

    std::vector<Options> read_all_options(const std::vector<py::dict>& groups) const {
        std::vector<Options> options;
        options.reserve(groups.size());
        for (const py::dict& group : groups)
            options.push_back(read_options(row(optimizer_), group));
        return options;
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
            require_like(given, what, parameter.param, "parameter " + quoted(parameter.name));
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
    int group_count_ = 0;
    std::vector<Parameter> parameters_;
    std::atomic_flag in_use_ = ATOMIC_FLAG_INIT;
};

// One update of one array on state that the caller owns. `states` maps names to arrays.
void update(const std::string& kernel, const py::object& param, const py::object& grad,
            const py::dict& given, std::int64_t step, const py::dict& group) {
    const int optimizer = find_optimizer(kernel);
    const Options options = read_options(row(optimizer), group);
    if (step < 1)
        throw py::value_error("step must be >= 1 (the number of this update), not " +
                              std::to_string(step));
    States states;
    for (int i = 0; i < row(optimizer).state_count; ++i) {
        const char* name = row(optimizer).states[i];
        if (!row(optimizer).uses_state(options.data(), i)) continue;
        states[static_cast<std::size_t>(i)] = float_array(given[name], name);
    }
    Plan plan(optimizer);
    plan.add(options, "param", float_array(param, "param"), grad, states, step, step == 1);
    plan.run();
}

}  // namespace

void bind_optim(py::module_& module) {
    py::class_<OptimizerCore>(module, "Optimizer",
                              "Parameters, states and step counters of one optimizer.")
        .def(py::init<const std::string&>(), py::arg("kernel"))
        .def("check_options", &OptimizerCore::check_options, py::arg("group"))
        .def("add_group", &OptimizerCore::add_group, py::arg("names"), py::arg("params"),
             py::arg("group"))
        .def("step", &OptimizerCore::step, py::arg("groups"), py::arg("grads"))
        .def("state", &OptimizerCore::state, py::arg("index"))
        .def("load", &OptimizerCore::load, py::arg("states"), py::arg("groups"));
    module.def("update", &update, py::arg("kernel"), py::arg("param"), py::arg("grad"),
               py::arg("states"), py::arg("step"), py::arg("group"));
}

}  // namespace fastopt
