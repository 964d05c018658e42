// The updates: arrays with their states and step counters, checked and stepped in one call.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>

#include "../runtime/floating_point.hpp"
#include "../runtime/isa.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "collected.hpp"
#include "dlpack.hpp"
#include "late.hpp"
#include "options.hpp"
#include "plan.hpp"
#include "scalars.hpp"
#include "single_user.hpp"

namespace fastopt {
namespace {

// Throws if there is a scalar that the element type of `array` cannot hold.
void require_fit(const Unfit& scalar, const py::array& array, const std::string& what) {
    if (scalar.name == nullptr) return;
    const bool wide = type_of(array) == arithmetic_type(type_of(array));
    throw_error<py::value_error>(
        "{} is {!r}, out of the range of {}{}; choose another value, or arrays of float64",
        scalar.name, scalar.value, wide ? dtype_name(array) : "float32",
        (wide ? ", the dtype of " : ", the type that computes ") + what);
}

using Changes = std::vector<std::pair<py::dict, py::dict>>;

// Gives the first dict of each pair the contents of the second: in all pairs or in none. start()
// does everything that may need memory; the destructor undoes it unless finish() has been called.
// Keys are exact strings, so that no code of the caller runs.
class DictChanges {
public:
    explicit DictChanges(const Changes& changes) : changes_(changes) {}

    ~DictChanges() {
        if (finished_) return;
        for (std::size_t i = 0; i < before_.size(); ++i)
            remove(changes_[i].first, changes_[i].second, before_[i]);
    }
    DictChanges(const DictChanges&) = delete;
    DictChanges& operator=(const DictChanges&) = delete;

    // Gives each first dict the keys of the second.
    void start() {
        before_.reserve(changes_.size());
        for (const auto& [target, source] : changes_) {
            for (const auto& dict : {target, source})
                for (const auto& [key, value] : dict)
                    if (!PyUnicode_CheckExact(key.ptr()))
                        throw_error<py::type_error>(
                            "the options of a group must have strings as names, not {}",
                            short_repr(key));
            before_.emplace_back(new_object(PyDict_Copy(target.ptr())));
            if (PyDict_Merge(target.ptr(), source.ptr(), 0) != 0) throw py::error_already_set();
        }
    }

    // Replaces values of existing keys and deletes keys. Neither needs memory. The copies keep the
    // old values alive, so that no destructor runs meanwhile.
    void finish() {
        for (std::size_t i = 0; i < changes_.size(); ++i) {
            const auto& [target, source] = changes_[i];
            for (const auto& [key, value] : source)
                ok(PyDict_SetItem(target.ptr(), key.ptr(), value.ptr()));
            remove(target, before_[i], source);
        }
        finished_ = true;
    }

private:
    static void ok(int result) {
        if (result != 0) PyErr_Clear();
    }

    // Deletes the keys of `gone` that `kept` does not have.
    static void remove(const py::dict& target, const py::dict& gone, const py::dict& kept) {
        for (const auto& [key, value] : gone)
            if (PyDict_Contains(kept.ptr(), key.ptr()) == 0)
                ok(PyDict_DelItem(target.ptr(), key.ptr()));
    }

    const Changes& changes_;
    std::vector<py::dict> before_;
    bool finished_ = false;
};

class Updater {
public:
    Updater(int number, py::object step_info)
        : update_(update_row(number)), step_info_(std::move(step_info)), plan_(number) {}

    void check_options(const py::dict& group) const { GroupOptions(update_, group); }

    // Adds the parameters of a group, and the group to the list `groups`. All of them are checked
    // first, also against those that are there. `starts` may hold the number of the first element
    // of each, in a larger array.
    void add_group(const py::list& names, const py::list& arrays, const py::dict& group,
                   const py::list& groups, const py::list& starts) {
        const SingleUse use(user_, update_.words.owner);
        Group added_group{GroupOptions(update_, group), group["params"]};
        OverlapCheck overlap;
        for (const Parameter& parameter : parameters_)
            overlap.add(plain_array(as_array(parameter.param, parameter.what)), parameter.what,
                        true);
        std::vector<Parameter> added;
        for (std::size_t i = 0; i < names.size(); ++i) {
            added.push_back(make_parameter(update_, names[i], arrays[i], groups_.size()));
            Parameter& parameter = added.back();
            if (starts.size() != 0)
                parameter.first = static_cast<std::uint64_t>(as_integer(starts[i], "starts"));
            const py::array param =  // not yet written
                parameter_array(as_array(parameter.param, parameter.what, true), parameter.what);
            if (update_.has_types)
                require_row(type_of(param), parameter.what, added_group.options.types());
            require_fit(added_group.options.unfit(1, type_of(param)), param, parameter.what);
            overlap.add(param, parameter.what, true);
        }
        overlap.run();
        plan_.clear();  // it points at the options
        groups_.reserve(groups_.size() + 1);
        parameters_.reserve(parameters_.size() + added.size());
        if (PyList_Append(groups.ptr(), group.ptr()) != 0) throw py::error_already_set();
        groups_.push_back(std::move(added_group));
        std::move(added.begin(), added.end(), std::back_inserter(parameters_));
    }

    // Removes group number `index` with its parameters and their states, and from the list
    // `groups`.
    void remove_group(std::size_t index, const py::list& groups) {
        const SingleUse use(user_, update_.words.owner);
        const auto place = static_cast<std::ptrdiff_t>(index);
        check_groups(groups);
        if (index >= groups_.size()) throw py::index_error("there is no such group");
        plan_.clear();
        if (PyList_SetSlice(groups.ptr(), place, place + 1, nullptr) != 0)
            throw py::error_already_set();
        std::rotate(groups_.begin() + place, groups_.begin() + place + 1, groups_.end());
        std::size_t count = 0;  // those that stay come first, in their order
        for (Parameter& parameter : parameters_)
            if (parameter.group != index) std::swap(parameters_[count++], parameter);
        for (Parameter& parameter : parameters_)
            if (parameter.group > index) --parameter.group;
        // One by one: the destructor of an array may run code that looks at the others.
        while (parameters_.size() > count) parameters_.pop_back();
        groups_.pop_back();
    }

    // One step of all parameters whose gradient is not None. Returns None, or with max_norm or
    // skip_nonfinite a StepInfo.
    py::object step(const py::object& groups, const py::object& given, const py::object& max_norm,
                    const py::object& norm_type, const py::object& grad_scale,
                    const py::object& skip_nonfinite, const py::object& zero_grads,
                    const py::object& out, const py::object& total_norm) {
        const SingleUse use(user_, update_.words.owner);
        const GradOptions options =
            grad_options(max_norm, norm_type, grad_scale, skip_nonfinite, zero_grads, total_norm);
        read_groups(groups);
        // A separate tuple: no other thread may free a gradient while the GIL is released.
        const py::tuple grads = one_for_each(given, "grads", "gradient", "gradients");
        const py::tuple copies =
            out.is_none() ? py::tuple() : one_for_each(out, "out", "copy", "copies");
        // The result is made before the step, and filled after it: nothing can fail then.
        std::optional<LateFloat> norm;
        std::optional<LateTuple> info;
        if (options.clip || options.skip_nonfinite)
            info.emplace(step_info_, py::make_tuple(norm.emplace().object(), false));
        StepResult result;
        try {
            plan_.prepare(parameters_, groups_, grads, copies, options.zero);
            result = plan_.run(options);
            if (result.misfit) {
                const Parameter& parameter = parameters_[plan_.parameter(result.misfit->tensor)];
                require_fit(result.misfit->scalar, plain_array(parameter.param), parameter.what);
            }
        } catch (...) {
            plan_.clear();
            throw;
        }
        result.skipped ? plan_.skip() : plan_.finish(parameters_);
        if (!info) return py::none();
        norm->set(result.grad_norm);
        info->set(1, py::bool_(result.skipped));
        return info->get();
    }

    // The step counter and the arrays of parameter number `index`, by name; not copies.
    py::dict state(std::size_t index) {
        const SingleUse use(user_, update_.words.owner);
        const Parameter& parameter = parameters_.at(index);
        py::dict result;
        result["step"] = parameter.step;
        for (int i = 0; i < update_.state_count; ++i)
            if (const auto& state = parameter.states[static_cast<std::size_t>(i)])
                result[update_.states[i]] = *state;
        if (const auto& master = parameter.states[master_place]) result[master_name] = *master;
        return result;
    }

    // Replaces all states by copies of what `loaded` holds, in the order of the parameters (None
    // keeps one as it is), and what is in the dicts of `groups` by what is in those of
    // `loaded_groups`. `values` may hold arrays, or None, to be copied into the parameters.
    // Everything is checked first, and nothing can fail once something changes.
    void load(const py::list& loaded, const py::list& groups, const py::list& loaded_groups,
              const py::list& values) {
        const SingleUse use(user_, update_.words.owner);
        check_groups(groups);
        if (loaded.size() != parameters_.size() || loaded_groups.size() != groups_.size() ||
            (values.size() != 0 && values.size() != parameters_.size()))
            throw py::value_error("the number of parameters or groups does not match");
        Changes changes;
        std::vector<GroupOptions> options;
        for (std::size_t g = 0; g < groups_.size(); ++g) {
            changes.emplace_back(py::dict(groups[g]), py::dict(loaded_groups[g]));
            options.emplace_back(update_, changes.back().second);
        }
        std::vector<std::pair<States, std::int64_t>> fresh;
        fresh.reserve(loaded.size());
        for (std::size_t i = 0; i < loaded.size(); ++i) {
            const Parameter& parameter = parameters_[i];
            const py::object entry = loaded[i];
            const GroupOptions& group = options[parameter.group];
            const py::array param = plain_array(as_array(parameter.param, parameter.what));
            if (update_.has_types) require_row(type_of(param), parameter.what, group.types());
            if (entry.is_none()) {
                require_states(parameter, param, group);
                fresh.emplace_back(parameter.states, parameter.step);
            } else {
                fresh.push_back(read_state(parameter, param, py::dict(entry), group));
            }
            const std::int64_t step = std::max<std::int64_t>(1, fresh.back().second);
            require_fit(group.unfit(step, type_of(param)), param, parameter.what);
        }
        std::vector<std::pair<py::array, py::array>> copies;  // from, to
        for (std::size_t i = 0; i < values.size(); ++i) {
            const py::object value = values[i];
            if (value.is_none()) continue;
            const Parameter& parameter = parameters_[i];
            const py::array param =
                parameter_array(parameter.param, parameter.what, Taken::arithmetic);
            const py::array array =
                float_array(value, parameter.what, Purpose::input, Taken::arithmetic);
            require_like(array, parameter.what, param, parameter.grad_what);
            copies.emplace_back(copy_like(array, param), param);
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
        plan_.clear();  // it points at the options
        for (std::size_t g = 0; g < groups_.size(); ++g) std::swap(groups_[g].options, options[g]);
    }

    int traverse(visitproc visit, void* arg) const {
        Py_VISIT(step_info_.ptr());
        for (const Parameter& parameter : parameters_) {
            Py_VISIT(parameter.param.ptr());
            for (const auto& state : parameter.states)
                if (state) Py_VISIT(state->ptr());
        }
        for (const Group& group : groups_) {
            Py_VISIT(group.params.ptr());
            if (const int result = group.options.traverse(visit, arg)) return result;
        }
        return 0;
    }

    void clear() {
        plan_.clear();
        const auto parameters = std::exchange(parameters_, {});
        const auto groups = std::exchange(groups_, {});
    }

private:
    // Throws unless these are the groups that were added and not removed since, in their order.
    // `groups` is a list or a tuple.
    void check_groups(const py::object& groups) const {
        const auto count = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(groups.ptr()));
        if (count != groups_.size())
            throw_error<py::value_error>(
                "param_groups has {}, the {} {}; {}", counted(count, "group"), update_.words.owner,
                groups_.size(),
                count > groups_.size() ? "add one with add_param_group"
                                       : "remove one with remove_param_group");
        for (std::size_t g = 0; g < groups_.size(); ++g) {
            const py::handle group = item(groups, g);
            if (!PyDict_CheckExact(group.ptr()))
                throw_error<py::type_error>("param_groups[{}] must be a dict, not {}", g,
                                            short_repr(group));
            PyObject* params = PyDict_GetItemWithError(group.ptr(), params_key_.ptr());
            if (params == groups_[g].params.ptr()) continue;
            if (PyErr_Occurred()) throw py::error_already_set();
            throw py::value_error(
                "the 'params' of a group cannot be replaced, nor the groups reordered; use "
                "remove_param_group and add_param_group");
        }
    }

    static py::handle item(const py::object& sequence, std::size_t number) {
        return PySequence_Fast_GET_ITEM(sequence.ptr(), static_cast<py::ssize_t>(number));
    }

    // Reads the options of all groups. The plan falls if other states are used now.
    void read_groups(const py::object& groups) {
        if (!PyList_Check(groups.ptr()))
            throw_error<py::type_error>("param_groups must be a list, not {}", short_repr(groups));
        // A copy: an option may run code of the caller's, which may change the list.
        const py::tuple copy(new_object(PyList_AsTuple(groups.ptr())));
        check_groups(copy);
        for (std::size_t g = 0; g < groups_.size(); ++g)
            if (groups_[g].options.read(py::reinterpret_borrow<py::dict>(item(copy, g))))
                plan_.clear();
    }

    // A tuple with an array or None for each parameter. It is separate: no other thread may free an
    // array while the GIL is released.
    py::tuple one_for_each(const py::object& given, const char* name, const char* noun,
                           const char* nouns) const {
        auto arrays = py::reinterpret_steal<py::tuple>(PySequence_Tuple(given.ptr()));
        if (!arrays) throw py::error_already_set();
        if (arrays.size() != parameters_.size())
            throw_error<py::value_error>(
                "{} has {} for {}; pass None for a parameter without one", name,
                std::to_string(arrays.size()) + " " + (arrays.size() == 1 ? noun : nouns),
                counted(parameters_.size(), "parameter"));
        // Of an array that only DLPack can read, the tuple holds a view: it keeps the memory.
        const auto is_kept = [](py::handle object) {
            dlpack::Tensor tensor;
            return object.is_none() || py::isinstance<py::array>(object) ||
                   torch::read(object.ptr(), tensor);
        };
        if (std::all_of(arrays.begin(), arrays.end(), is_kept)) return arrays;
        py::tuple views(arrays.size());
        for (std::size_t i = 0; i < views.size(); ++i) {
            const std::string what = noun + (" of '" + parameters_[i].name + "'");
            views[i] = is_kept(arrays[i]) ? py::object(arrays[i]) : as_array(arrays[i], what);
        }
        return views;
    }

    // Throws unless the states that a parameter has fit the options of a loaded group.
    static void require_states(const Parameter& parameter, const py::array& param,
                               const GroupOptions& group) {
        const bool needs_master = has_master(type_of(param), group.types());
        const bool has_one = parameter.states[master_place].has_value();
        if (parameter.step > 0 && needs_master != has_one)
            throw_error<py::value_error>(
                "the state of '{}' is not loaded and has {} master_param, but the loaded options "
                "need {}; load its state too",
                parameter.name, has_one ? "a" : "no", has_one ? "none" : "one");
        for (std::size_t i = 0; i < parameter.states.size(); ++i)
            if (const auto& state = parameter.states[i])
                state_array(*state, "a state of '" + parameter.name + "', which is not loaded,", i,
                            param, group.types());
    }

    // The states and the step counter that an entry of a state dict holds.
    std::pair<States, std::int64_t> read_state(const Parameter& parameter, const py::array& param,
                                               const py::dict& entry,
                                               const GroupOptions& group) const {
        const std::string owner = "state of '" + parameter.name + "'";
        if (!entry.contains("step")) throw_names("the " + owner + " has no 'step'");
        const std::string step_what = "'step' in the " + owner;
        const py::object step_object = entry["step"];
        const std::int64_t step = as_integer(step_object, step_what);
        if (step < 0 || step == last_step)
            throw_error<py::value_error>("{} must be >= 0 and below 2**63 - 1, not {}", step_what,
                                         short_repr(step_object));
        States states;
        py::set unknown(entry.attr("keys")());
        unknown.attr("remove")("step");
        const auto take = [&](std::size_t place, const char* name, bool needed) {
            if (!entry.contains(name)) {
                if (step > 0 && needed) throw_names("the " + owner + " has no '" + name + "'");
                return;
            }
            unknown.attr("discard")(name);
            const std::string what = name + (" of '" + parameter.name + "'");
            const py::array given = state_array(entry[name], what, place, param, group.types());
            require_same_shape(given, what, param, parameter.what);
            states[place] = copy_like(given, param);
        };
        for (int i = 0; i < update_.state_count; ++i)
            take(static_cast<std::size_t>(i), update_.states[i], group.needs_state(i));
        if (has_master(type_of(param), group.types())) take(master_place, master_name, true);
        for (const py::handle key : unknown)
            throw_names("the " + owner + " has " + short_repr(key) + ", which this " +
                        update_.words.owner + " does not know");
        return {std::move(states), step};
    }

    const Update& update_;
    py::object step_info_;  // the type
    std::vector<Parameter> parameters_;
    std::vector<Group> groups_;
    py::str params_key_{"params"};
    Plan plan_;
    User user_ = 0;
};

// One update of one array, with states that the caller keeps. `given` maps names to arrays.
void update(const py::object& kernel, const py::object& param, const py::object& grad,
            const py::dict& given, const py::object& step_given, const py::dict& group) {
    const int number = find_update(kernel);
    const Update& update = update_row(number);
    const py::array param_array = float_array(param, "param");
    TypeOptions types;
    const GroupOptions plain_options(update, group, types);
    for (int i = 0; i < update.state_count; ++i) {
        if (!plain_options.uses_state(i)) continue;
        const py::object state = given.attr("get")(update.states[i]);
        if (state.is_none()) continue;
        const py::array array = float_array(state, update.states[i]);
        if (type_of(array) == Type::bfloat16) types.set_states(Type::bfloat16);
    }
    const py::object master = as_array(given.attr("get")(master_name), master_name);
    if (!master.is_none())
        types.master =
            py::isinstance<py::array>(master) && plain_array(master).dtype().kind() == 'i'
                ? TypeOptions::Master::split
                : TypeOptions::Master::float32;
    require_row(type_of(param_array), "param", types);
    if (!master.is_none() && !has_master(type_of(param_array), types))
        throw_error<py::type_error>(
            "master_param is for a param of bfloat16 or float16, and this one has dtype {}; use "
            "master_param=None",
            dtype_name(param_array));
    const std::vector<Group> groups{{GroupOptions(update, group, types), {}}};
    const GroupOptions& options = groups[0].options;
    const std::int64_t step = as_integer(step_given, "step");
    if (step < 1)
        throw_error<py::value_error>("step must be >= 1 (the number of this update), not {}",
                                     short_repr(step_given));
    States states;
    for (int i = 0; i < update.state_count; ++i) {
        if (!options.uses_state(i)) continue;
        const char* name = update.states[i];
        const py::object state = given[name];
        const std::string reason = state.is_none() ? options.reason_for_state(i, group) : "";
        if (!reason.empty())
            throw_error<py::type_error>("{} is None, but {} needs it", name, reason);
        states[static_cast<std::size_t>(i)] =
            state_array(state, name, static_cast<std::size_t>(i), param_array, types);
    }
    if (has_master(type_of(param_array), types))
        states[master_place] = state_array(master, master_name, master_place, param_array, types);
    std::vector<Parameter> parameters{make_parameter(update, py::str("param"), param_array, 0)};
    parameters[0].states = std::move(states);
    parameters[0].step = step - 1;
    const py::tuple grads = py::make_tuple(float_array(grad, parameters[0].grad_what));
    Plan plan(number);
    plan.prepare(parameters, groups, grads, py::tuple(), false);
    plan.tensor(0).fresh = step == 1;
    const StepResult result = plan.run({});
    if (result.misfit) require_fit(result.misfit->scalar, param_array, "param");
}

}  // namespace

void bind_updates(py::module_& module) {
    using Guard = py::call_guard<DefaultFloatingPoint>;
    py::class_<Updater>(module, "Updater", "Arrays with their states and step counters.",
                        collected<Updater>())
        .def(py::init([](const py::object& kernel, py::object step_info) {
                 return std::make_unique<Updater>(find_update(kernel), std::move(step_info));
             }),
             py::arg("kernel"), py::arg("step_info") = py::none())
        .def("check_options", &Updater::check_options, py::arg("group"), Guard())
        .def("add_group", &Updater::add_group, py::arg("names"), py::arg("params"),
             py::arg("group"), py::arg("groups"), py::arg("starts") = py::list(), Guard())
        .def("remove_group", &Updater::remove_group, py::arg("index"), py::arg("groups"))
        .def("step", &Updater::step, py::arg("groups"), py::arg("grads"),
             py::arg("max_norm") = py::none(), py::arg("norm_type") = 2.0,
             py::arg("grad_scale") = 1.0, py::arg("skip_nonfinite") = false,
             py::arg("zero_grads") = false, py::arg("out") = py::none(),
             py::arg("total_norm") = py::none(), Guard())
        .def("state", &Updater::state, py::arg("index"))
        .def("load", &Updater::load, py::arg("states"), py::arg("groups"), py::arg("loaded_groups"),
             py::arg("values") = py::list(), Guard());
    module.def("update", &update, py::arg("kernel"), py::arg("param"), py::arg("grad"),
               py::arg("states"), py::arg("step"), py::arg("group"), Guard());
}

}  // namespace fastopt
