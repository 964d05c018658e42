// Updates of torch's tensors, whose states belong to an optimizer of torch or to the caller. All of
// them may be replaced between two steps. So a step looks at everything anew, and keeps only names
// and the properties that it compares.
#include <array>
#include <cmath>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../runtime/floating_point.hpp"
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

// A step counter: a tensor of one number, which must outlive this.
class StepCounter {
public:
    // None if the tensor is not one of float32, float64 or int64 with one element.
    static std::optional<StepCounter> find(py::handle tensor) {
        StepCounter counter;
        return counter.read(tensor) ? std::optional(counter) : std::nullopt;
    }

    // Throws TypeError if there is none.
    static StepCounter get(py::handle tensor, const Parameter& parameter) {
        if (const auto counter = find(tensor)) return *counter;
        throw_error<py::type_error>(
            "step of '{}' must be a tensor of one number, of float32, float64 or int64, not {}",
            parameter.name, short_repr(tensor));
    }

    std::int64_t steps(const Parameter& parameter) const {
        double number = 0.0;
        visit([&number](const auto* data) { number = static_cast<double>(*data); });
        return checked(number, parameter);
    }

    // Throws ValueError unless the parameter can have taken so many steps.
    static std::int64_t checked(double steps, const Parameter& parameter) {
        if (!(steps >= 0 && steps < 0x1p53 && steps == std::floor(steps)))
            throw_error<py::value_error>("step of '{}' must be a number of steps, not {}",
                                         parameter.name, steps);
        return static_cast<std::int64_t>(steps);
    }

    void set(std::int64_t steps) const {
        visit([steps](auto* data) { *data = static_cast<std::decay_t<decltype(*data)>>(steps); });
    }

private:
    StepCounter() = default;

    bool read(py::handle tensor) {
        if (dlpack::Tensor found; torch::read_again(tensor.ptr(), found)) {
            if (dlpack::element_count(found) != 1) return false;
            kind_ = dlpack::kind_of(found.dtype);
            size_ = found.dtype.bits / 8;
            data_ = found.data;
        } else if (torch::is_tensor(tensor)) {  // of torch < 2.10
            const py::array array = plain_array(as_array(tensor, "step"));
            if (array.size() != 1 || !array.writeable()) return false;
            kind_ = array.dtype().kind();
            size_ = array.itemsize();
            data_ = const_cast<void*>(array.data());
        }
        return kind_ == 'f' ? size_ == 4 || size_ == 8 : kind_ == 'i' && size_ == 8;
    }

    template <class Visit>
    void visit(Visit use) const {
        if (kind_ == 'i')
            use(static_cast<std::int64_t*>(data_));
        else if (size_ == 4)
            use(static_cast<float*>(data_));
        else
            use(static_cast<double*>(data_));
    }

    char kind_ = 0;
    py::ssize_t size_ = 0;
    void* data_ = nullptr;
};

// Arrays with gaps, or with another order of the axes than their parameter: an update changes dense
// copies of them, which are copied back.
class DenseCopies {
public:
    // A copy of `array` in the memory order of `model`.
    py::array add(const py::array& array, const py::array& model, const std::string& what) {
        require_writeable(array, what);
        require_distinct_elements(array, what);
        const py::array dense = zeros_like(model, array.dtype());
        copy_to_dense(array, dense);
        copies_.push_back({dense, array, what});
        return dense;
    }

    bool empty() const { return copies_.empty(); }

    // Adds the arrays that will be written in the end.
    void add_to(OverlapCheck& overlap) const {
        for (const Copy& copy : copies_) overlap.add(copy.array, copy.what, true);
    }

    void copy_back() const {
        for (const Copy& copy : copies_) copy_from_dense(copy.dense, copy.array);
    }

private:
    struct Copy {
        py::array dense, array;
        std::string what;
    };
    std::vector<Copy> copies_;
};

std::string state_name(const Update& update, std::size_t place, const Parameter& parameter) {
    return (place == master_place ? master_name : update.states[place]) +
           (" of '" + parameter.name + "'");
}

// Calls visit(place, array, what) for each state that the parameter has.
template <class Visit>
void each_state(const Update& update, const Parameter& parameter, Visit visit) {
    for (std::size_t place = 0; place < parameter.states.size(); ++place) {
        const auto& state = parameter.states[place];
        if (!state) continue;
        const std::string what = state_name(update, place, parameter);
        const py::object array = as_array(*state, what);
        if (!py::isinstance<py::array>(array))
            throw_error<py::type_error>("{} must be a tensor, not {}", what, short_repr(array));
        visit(place, plain_array(array), what);
    }
}

// Throws ValueError if an array that is copied shares memory with another one of the step. A plan
// sees the copies only.
void check_overlap(const Update& update, const DenseCopies& copies,
                   const std::vector<Parameter>& parameters, const py::tuple& grads,
                   const py::tuple& out) {
    if (copies.empty()) return;
    OverlapCheck overlap;
    copies.add_to(overlap);
    for (std::size_t k = 0; k < parameters.size(); ++k) {
        overlap.add(plain_array(parameters[k].param), parameters[k].what, true);
        overlap.add(plain_array(as_array(grads[k], parameters[k].grad_what)),
                    parameters[k].grad_what, false);
        if (out.size() != 0 && !py::object(out[k]).is_none())
            overlap.add(plain_array(as_array(out[k], "out")), "out of " + parameters[k].what, true);
        each_state(update, parameters[k],
                   [&](std::size_t, const py::array& state, const std::string& what) {
                       overlap.add(state, what, true);
                   });
    }
    overlap.run();
}

// Takes the types of the states as they are found.
void find_types(const Update& update, const Parameter& parameter, TypeOptions& types) {
    each_state(update, parameter, [&](std::size_t place, const py::array& state, const auto& what) {
        const auto type = find_type(state.dtype());
        if (place == master_place)
            types.master = state.dtype().kind() == 'i' ? TypeOptions::Master::split
                                                       : TypeOptions::Master::float32;
        else if (type == Type::float16)
            throw_error<py::type_error>(
                "{} has dtype float16; states are float32 or bfloat16 (float64 for parameters of "
                "float64)",
                what);
        else if (type && *type != Type::float64)
            types.state[place] = *type;
    });
}

// Replaces what an update cannot change in place by dense copies.
void make_dense(const Update& update, Parameter& parameter, DenseCopies& copies) {
    const py::array param = float_array(parameter.param, parameter.what);
    py::array dense = param;
    if (!is_dense(param)) parameter.param = dense = copies.add(param, param, parameter.what);
    each_state(update, parameter,
               [&](std::size_t place, const py::array& state, const std::string& what) {
                   require_same_shape(state, what, param, parameter.what);
                   if (!is_dense(state) || !has_order(state, dense))
                       parameter.states[place] = copies.add(state, dense, what);
               });
}

[[noreturn]] void throw_misfit(const Misfit& misfit, const Parameter& parameter) {
    throw_error<py::value_error>(
        "{} is {!r}, out of the range of the type that computes {}; choose another value, or "
        "tensors of float64",
        misfit.scalar.name, misfit.scalar.value, parameter.what);
}

py::object key(const char* name) { return new_object(PyUnicode_InternFromString(name)); }

// An item of a dict; a null object if there is none, or if it is None.
py::object find(const py::object& dict, const py::object& name) {
    PyObject* const found = PyDict_GetItemWithError(dict.ptr(), name.ptr());
    if (found == nullptr && PyErr_Occurred()) throw py::error_already_set();
    return found == Py_None ? py::object() : py::reinterpret_borrow<py::object>(found);
}

// The keys of groups and states.
struct Keys {
    explicit Keys(const Update& update) {
        for (int i = 0; i < update.state_count; ++i)
            states[static_cast<std::size_t>(i)] = key(update.states[i]);
        states[master_place] = key(master_name);
    }

    // Reads the options of the random numbers, if the group has them.
    void read_noise(const py::dict& group, TypeOptions& types) const {
        if (const py::object given = find(group, stochastic))
            types.stochastic = as_flag(given, "stochastic_rounding");
        if (const py::object given = find(group, seed))
            types.seed = static_cast<std::uint64_t>(as_integer(given, "seed"));
    }

    py::object params = key("params"), names = key("param_names"), grad = key("grad");
    py::object step = key("step");
    std::array<py::object, std::tuple_size_v<States>> states;  // null: there is no such state
    py::object stochastic = key("stochastic_rounding"), seed = key("seed");
    py::object master_weights = key("master_weights");
};

// The states of an optimizer by parameter. To look up a tensor calls its __hash__, which is Python
// code. The parameters mostly come in the order of the dict, so its next item is tried first.
class StateDict {
public:
    explicit StateDict(const py::object& state) : state_(state) {}

    // What the parameter has; a null object if it has nothing.
    py::object find_item(const py::object& param) {
        if (PyObject* const value = next(param)) return py::reinterpret_borrow<py::object>(value);
        if (PyDict_Check(state_.ptr())) return find(state_, param);
        const py::object found = state_.attr("get")(param);
        return found.is_none() ? py::object() : found;
    }

    // The value of the next item if it is that of the parameter, which is passed then; or nullptr.
    PyObject* next(const py::object& param) {
        if (!PyDict_Check(state_.ptr())) return nullptr;
        PyObject *key = nullptr, *value = nullptr;
        Py_ssize_t position = position_;
        if (PyDict_Next(state_.ptr(), &position, &key, &value) == 0 || key != param.ptr())
            return nullptr;
        position_ = position;
        return value;
    }

private:
    py::object state_;
    Py_ssize_t position_ = 0;
};

// Reads the attribute `grad` of objects. A quarter of the time is the search in the type. Most
// objects have the type of the last one, so its getter is called without a search.
class GradReader {
public:
    explicit GradReader(const py::object& name) : name_(name) {}

    py::object operator()(PyObject* object) {
        if (Py_TYPE(object) != type_) look_at(Py_TYPE(object));
        return new_object(getter_ != nullptr ? getter_->get(object, getter_->closure)
                                             : PyObject_GetAttr(object, name_.ptr()));
    }

private:
    void look_at(PyTypeObject* type) {
        type_ = type;
        getter_ = nullptr;
        PyObject* const found = _PyType_Lookup(type, name_.ptr());
        if (type->tp_getattro == PyObject_GenericGetAttr && found != nullptr &&
            Py_IS_TYPE(found, &PyGetSetDescr_Type))
            getter_ = reinterpret_cast<PyGetSetDescrObject*>(found)->d_getset;
    }

    const py::object& name_;
    PyTypeObject* type_ = nullptr;
    PyGetSetDef* getter_ = nullptr;
};

// Steps for an optimizer of torch.
class TensorUpdater {
public:
    TensorUpdater(int number, py::object step_info)
        : update_(update_row(number)),
          keys_(update_),
          step_info_(std::move(step_info)),
          plan_(number) {}

    // One step of all parameters that have a gradient. `state` maps a parameter to a dict of its
    // states; those that are missing are made by make_state(parameter, group, name). Parameters
    // that the kernels do not take are left to step_others, which is called before the first write
    // with a list of them, each with the number of its group. Calls increment_version with a tuple
    // of those that were changed. Returns like Updater::step.
    py::object step(const py::list& given_groups, const py::object& state,
                    const py::object& make_state, const py::object& step_others,
                    const py::object& increment_version, const py::object& max_norm,
                    const py::object& grad_scale, const py::object& skip_nonfinite) {
        const SingleUse use(user_, update_.words.owner);
        const GradOptions options = grad_options(max_norm, py::float_(2.0), grad_scale,
                                                 skip_nonfinite, py::bool_(false), py::none());
        std::optional<LateFloat> norm;
        std::optional<LateTuple> info;
        if (options.clip || options.skip_nonfinite)
            info.emplace(step_info_, py::make_tuple(norm.emplace().object(), false));
        // A copy: code of the caller may run, and change the list.
        py::tuple groups(new_object(PyList_AsTuple(given_groups.ptr())));
        const Release release(*this);
        StepResult result;
        py::tuple changed;
        try {
            if (!collect(groups, state) || !fits(groups)) {
                items_.clear();
                collect(groups, state);
                make_plan(groups, make_state, step_others, options.clip || options.skip_nonfinite);
            }
            changed = tuple_of(&Item::param);
            insert_created(state);
            result = plan_.run(options);
            if (result.misfit)
                throw_misfit(*result.misfit, parameters_[plan_.parameter(result.misfit->tensor)]);
        } catch (...) {
            drop(state);
            throw;
        }
        if (result.skipped)
            drop(state);
        else
            finish();
        if (!result.skipped && changed.size() != 0) increment_version(changed);
        if (!info) return py::none();
        norm->set(result.grad_norm);
        info->set(1, py::bool_(result.skipped));
        return info->get();
    }

    int traverse(visitproc visit, void* arg) const {
        Py_VISIT(step_info_.ptr());
        for (const Group& group : groups_)
            if (const int result = group.options.traverse(visit, arg)) return result;
        return 0;
    }

    void clear() {
        plan_.clear();
        const auto groups = std::exchange(groups_, {});
    }

private:
    // A parameter with a gradient. What is not a number or a name is there for one step only.
    struct Item {
        std::size_t group, index;  // the place
        py::object name;           // in `param_names`, or null
        // How the plan uses it.
        std::size_t options = 0;  // the number in groups_
        bool has_master = false, counts = false, fresh = false;
        unsigned reads = ~0u;  // a bit for each state that may be used

        py::object param, grad, step;  // step: null if there is none
        py::dict entry;                // its states
        bool has_entry = false;
        std::optional<StepCounter> counter;
    };

    // The group of torch that a group of the plan comes from, and the objects that chose the types.
    struct Source {
        std::size_t group;
        std::array<py::object, 3> objects;
    };

    struct Created {
        std::size_t item;
        py::object key, value, before;  // before: what the value replaces, or null
        bool inserted = false;
    };

    // Lets go of all tensors when the step ends.
    class Release {
    public:
        explicit Release(TensorUpdater& updater) : updater_(updater) {}
        ~Release() {
            for (Item& item : updater_.items_) {
                item.param = py::object();
                item.grad = py::object();
                item.step = py::object();
                item.entry = py::reinterpret_steal<py::dict>(py::handle());
                item.counter.reset();
            }
            for (Parameter& parameter : updater_.parameters_) {
                parameter.param = py::object();
                for (auto& state : parameter.states) state.reset();
            }
            updater_.created_.clear();
            updater_.copies_ = {};
        }
        Release(const Release&) = delete;
        Release& operator=(const Release&) = delete;

    private:
        TensorUpdater& updater_;
    };

    static py::dict group_at(const py::tuple& groups, std::size_t number) {
        const py::object group = groups[number];
        if (!PyDict_Check(group.ptr()))
            throw_error<py::type_error>("param_groups[{}] must be a dict, not {}", number,
                                        short_repr(group));
        return py::reinterpret_borrow<py::dict>(group);
    }

    std::array<py::object, 3> type_objects(const py::dict& group) const {
        return {find(group, keys_.stochastic), find(group, keys_.seed),
                find(group, keys_.master_weights)};
    }

    // Takes the parameters that have a gradient, and their states. Returns whether they are in the
    // same places as at the last step.
    bool collect(const py::tuple& groups, const py::object& state) {
        bool same = true;
        std::size_t count = 0, number = 0;
        StateDict states(state);
        GradReader grad_of(keys_.grad);
        for (std::size_t g = 0; g < groups.size(); ++g) {
            const py::dict group = group_at(groups, g);
            const py::object given = find(group, keys_.params), names = find(group, keys_.names);
            if (!given) throw_names("param_groups[" + std::to_string(g) + "] has no 'params'");
            const py::tuple params(new_object(PySequence_Tuple(given.ptr())));
            for (std::size_t i = 0; i < params.size(); ++i, ++number) {
                py::object param = params[i];
                py::object grad = grad_of(param.ptr());
                if (grad.is_none()) {
                    states.next(param);
                    continue;
                }
                const py::object name = names ? py::object(names[py::int_(i)]) : py::object();
                const bool known = count < items_.size() && items_[count].group == g &&
                                   items_[count].index == i && items_[count].name.is(name);
                if (!known) {
                    same = false;
                    items_.resize(count);
                    parameters_.resize(count, make_parameter(update_, py::str(), param, 0));
                    items_.emplace_back();
                    items_.back().group = g;
                    items_.back().index = i;
                    items_.back().name = name;
                    parameters_.push_back(make_parameter(
                        update_, name ? name : py::str(std::to_string(number)), param, 0));
                }
                items_[count].param = param;
                items_[count].grad = std::move(grad);
                take(items_[count], parameters_[count], states);
                ++count;
            }
        }
        same = same && count == items_.size();
        items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(count), items_.end());
        parameters_.erase(parameters_.begin() + static_cast<std::ptrdiff_t>(count),
                          parameters_.end());
        return same;
    }

    // Takes what the dict of a parameter holds.
    void take(Item& item, Parameter& parameter, StateDict& states) const {
        const py::object entry = states.find_item(item.param);
        if (entry && !PyDict_Check(entry.ptr()))
            throw_error<py::type_error>("the state of {} must be a dict, not {}", parameter.what,
                                        short_repr(entry));
        item.has_entry = static_cast<bool>(entry);
        item.entry = entry ? py::reinterpret_borrow<py::dict>(entry) : py::dict();
        parameter.param = item.param;
        item.step = py::object();
        for (auto& state : parameter.states) state.reset();
        // Mostly the keys are the same objects, and to compare them takes less time than a search.
        PyObject *key = nullptr, *value = nullptr;
        Py_ssize_t position = 0;
        while (PyDict_Next(item.entry.ptr(), &position, &key, &value) != 0)
            if (!take(item, parameter, key, value)) return find_all(item, parameter);
    }

    // Takes a value if the key is known. Returns whether it is.
    bool take(Item& item, Parameter& parameter, PyObject* key, PyObject* value) const {
        if (key == keys_.step.ptr()) {
            if (value != Py_None) item.step = py::reinterpret_borrow<py::object>(value);
            return true;
        }
        for (std::size_t s = 0; s < parameter.states.size(); ++s) {
            if (key != keys_.states[s].ptr()) continue;
            if (value != Py_None && (item.reads >> s & 1) != 0)
                parameter.states[s] = py::reinterpret_borrow<py::object>(value);
            return true;
        }
        return false;
    }

    void find_all(Item& item, Parameter& parameter) const {
        item.step = find(item.entry, keys_.step);
        for (std::size_t s = 0; s < parameter.states.size(); ++s) {
            parameter.states[s].reset();
            if (!keys_.states[s] || (item.reads >> s & 1) == 0) continue;
            if (py::object value = find(item.entry, keys_.states[s]))
                parameter.states[s] = std::move(value);
        }
    }

    // Whether the plan of the last step fits this one.
    bool fits(const py::tuple& groups) {
        if (!planned_) return false;
        for (std::size_t i = 0; i < groups_.size(); ++i) {
            const py::dict group = group_at(groups, sources_[i].group);
            const auto objects = type_objects(group);
            for (std::size_t o = 0; o < objects.size(); ++o)
                if (!objects[o].is(sources_[i].objects[o])) return false;
            if (groups_[i].options.read(group)) return false;
        }
        for (std::size_t k = 0; k < items_.size(); ++k) {
            const Item& item = items_[k];
            if (parameters_[k].states[master_place].has_value() != item.has_master ||
                static_cast<bool>(item.step) != item.counts)
                return false;
            if (!read_steps(k) || !is_placed_like(item.param, item.grad)) return false;
        }
        try {
            return plan_.fits(parameters_, grads());
        } catch (const std::exception&) {
            return false;  // a new plan raises it again, or leaves the gradient to torch
        }
    }

    // Reads the counter of item number k. Returns false if it needs one and has none.
    bool read_steps(std::size_t k) {
        Item& item = items_[k];
        item.counter.reset();
        parameters_[k].step = 0;
        if (!item.counts) return true;
        if (item.step) item.counter = StepCounter::find(item.step);
        if (item.counter) parameters_[k].step = item.counter->steps(parameters_[k]);
        return item.counter.has_value();
    }

    py::tuple grads() const { return tuple_of(&Item::grad); }

    py::tuple tuple_of(py::object Item::* member) const {
        py::tuple result(items_.size());
        for (std::size_t k = 0; k < items_.size(); ++k)
            PyTuple_SET_ITEM(result.ptr(), static_cast<py::ssize_t>(k),
                             py::object(items_[k].*member).release().ptr());
        return result;
    }

    void make_plan(const py::tuple& groups, const py::object& make_state,
                   const py::object& step_others, bool needs_all) {
        plan_.clear();
        planned_ = false;
        groups_.clear();
        sources_.clear();
        std::vector<GroupOptions> options;
        options.reserve(groups.size());
        for (std::size_t g = 0; g < groups.size(); ++g)
            options.emplace_back(update_, group_at(groups, g), TypeOptions{});
        std::size_t count = 0;
        py::list others;
        for (std::size_t k = 0; k < items_.size(); ++k) {
            const py::dict group = group_at(groups, items_[k].group);
            if (!takes(k, group)) {
                if (needs_all)
                    throw_error<py::type_error>(
                        "{} is left to torch (on another device, complex, sparse, of float16 "
                        "without a master, or of another class), so max_norm and skip_nonfinite "
                        "cannot include it; use torch.nn.utils.clip_grad_norm_",
                        parameters_[k].what);
                others.append(py::make_tuple(items_[k].group, items_[k].param));
                continue;
            }
            std::swap(items_[k], items_[count]);
            std::swap(parameters_[k], parameters_[count]);
            add(count, group, options[items_[count].group], make_state);
            ++count;
        }
        const bool all = count == items_.size();
        items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(count), items_.end());
        parameters_.erase(parameters_.begin() + static_cast<std::ptrdiff_t>(count),
                          parameters_.end());
        check_overlap(update_, copies_, parameters_, grads(), py::tuple());
        plan_.prepare(parameters_, groups_, grads(), py::tuple(), false);
        for (std::size_t k = 0; k < count; ++k) plan_.tensor(k).fresh = items_[k].fresh;
        if (others.size() != 0) {
            if (const auto misfit = plan_.misfit())
                throw_misfit(*misfit, parameters_[plan_.parameter(misfit->tensor)]);
            step_others(others);
        }
        planned_ = all && copies_.empty();
    }

    // Whether the kernels take a parameter with its gradient.
    bool takes(std::size_t k, const py::dict& group) const {
        const auto type_of_tensor = [](py::handle tensor) -> std::optional<Type> {
            try {
                return find_type(plain_array(as_array(tensor, "a tensor")).dtype());
            } catch (const py::builtin_exception&) {
                return std::nullopt;  // no memory that can be read
            } catch (py::error_already_set& error) {
                if (!error.matches(PyExc_TypeError)) throw;
                return std::nullopt;
            }
        };
        const Item& item = items_[k];
        const auto type = type_of_tensor(item.param);
        if (!type || !type_of_tensor(item.grad) || !is_placed_like(item.param, item.grad))
            return false;
        for (const auto& state : parameters_[k].states)
            if (state && !is_placed_like(item.param, *state)) return false;
        return *type != Type::float16 || wants_master(k, group);
    }

    // Whether two DTensors have the same parts in the same processes.
    static bool is_placed_like(const py::object& param, const py::object& other) {
        if (!torch::is_distributed(param) || !torch::is_distributed(other)) return true;
        for (const char* name : {"placements", "device_mesh"}) {
            const py::object own = attribute(param, name), theirs = attribute(other, name);
            if (!own || !theirs || !own.equal(theirs)) return false;
        }
        return true;
    }

    bool wants_master(std::size_t k, const py::dict& group) const {
        if (parameters_[k].states[master_place]) return true;
        const py::object wanted = find(group, keys_.master_weights);
        return wanted && as_flag(wanted, "master_weights");
    }

    // Completes item number k: its states, its counter, its options.
    void add(std::size_t k, const py::dict& group, const GroupOptions& options,
             const py::object& make_state) {
        Item& item = items_[k];
        Parameter& parameter = parameters_[k];
        const bool is_narrow = is_16_bit(type_of(float_array(item.param, parameter.what)));
        item.fresh = false;
        item.reads = is_narrow ? 1u << master_place : 0;
        const auto make = [&](const py::object& name, const py::object& before) {
            py::object value = make_state(item.param, group, name);
            created_.push_back({k, name, value, before});
            return value;
        };
        for (std::size_t s = 0; s < parameter.states.size(); ++s) {
            const bool is_master = s == master_place;
            const bool used = is_master ? is_narrow && wants_master(k, group)
                                        : static_cast<int>(s) < update_.state_count &&
                                              options.uses_state(static_cast<int>(s));
            if (used) item.reads |= 1u << s;
            if (!used) parameter.states[s].reset();
            if (!used || parameter.states[s]) continue;
            PyObject* const none = PyDict_GetItemWithError(item.entry.ptr(), keys_.states[s].ptr());
            parameter.states[s] =
                make(keys_.states[s], py::reinterpret_borrow<py::object>(none));  // or not there
            item.fresh = item.fresh || !is_master;
        }
        item.has_master = parameter.states[master_place].has_value();

        TypeOptions types;
        find_types(update_, parameter, types);
        keys_.read_noise(group, types);
        // An SGD of torch does not count its steps; the random numbers depend on the count.
        item.counts = item.step || types.stochastic || std::string_view(update_.name) != "sgd";
        if (!read_steps(k)) {
            const py::object before = item.step;  // a number, or a tensor of another type
            item.step = make(keys_.step, before);
            item.counter = StepCounter::get(item.step, parameter);
            if (before) {
                parameter.step = StepCounter::checked(as_number(before, "step"), parameter);
                item.counter->set(parameter.step);
            }
        }

        const auto objects = type_objects(group);
        item.options = 0;
        while (item.options < groups_.size() && !(sources_[item.options].group == item.group &&
                                                  groups_[item.options].options.types() == types))
            ++item.options;
        if (item.options == groups_.size()) {
            groups_.push_back({GroupOptions(update_, group, types), py::none()});
            sources_.push_back({item.group, objects});
        }
        parameter.group = item.options;
        make_dense(update_, parameter, copies_);
    }

    // Puts the new states where the optimizer finds them.
    void insert_created(const py::object& state) {
        for (Created& created : created_) {
            const Item& item = items_[created.item];
            if (!item.has_entry) {
                if (PyObject_SetItem(state.ptr(), item.param.ptr(), item.entry.ptr()) != 0)
                    throw py::error_already_set();
            }
            created.inserted = true;
            if (PyDict_SetItem(item.entry.ptr(), created.key.ptr(), created.value.ptr()) != 0)
                throw py::error_already_set();
        }
    }

    // After a step that was not taken: removes what was made for it.
    void drop(const py::object& state) {
        const py::error_scope scope;  // keeps an error of Python
        plan_.clear();
        planned_ = false;
        for (const Created& created : created_) {
            if (!created.inserted) continue;
            const Item& item = items_[created.item];
            if (created.before)
                PyDict_SetItem(item.entry.ptr(), created.key.ptr(), created.before.ptr());
            else
                PyDict_DelItem(item.entry.ptr(), created.key.ptr());
            if (!item.has_entry) PyObject_DelItem(state.ptr(), item.param.ptr());
            PyErr_Clear();
        }
    }

    // After a step that was taken.
    void finish() {
        plan_.finish(parameters_);
        for (std::size_t k = 0; k < items_.size(); ++k) {
            plan_.tensor(k).fresh = false;
            if (items_[k].counter) items_[k].counter->set(parameters_[k].step);
        }
        copies_.copy_back();
        if (!planned_) plan_.clear();
    }

    const Update& update_;
    const Keys keys_;
    py::object step_info_;  // the type
    std::vector<Item> items_;
    std::vector<Parameter> parameters_;  // of the items
    std::vector<Group> groups_;          // one for each group of torch and each choice of types
    std::vector<Source> sources_;        // of the groups
    std::vector<Created> created_;
    DenseCopies copies_;
    Plan plan_;
    bool planned_ = false;  // the plan is for these items
    User user_ = 0;
};

// One update of each of several tensors, whose states the caller keeps.
void step_tensors(const py::object& kernel, const py::dict& group, const py::list& params,
                  const py::list& grads, const py::dict& states, const py::list& state_steps,
                  const py::object& out, const py::object& grad_scale) {
    const int number = find_update(kernel);
    const Update& update = update_row(number);
    const Keys keys(update);
    const GradOptions options = grad_options(py::none(), py::float_(2.0), grad_scale,
                                             py::bool_(false), py::bool_(false), py::none());
    const GroupOptions plain(update, group, TypeOptions{});
    const auto require_length = [&](const py::object& list, const char* name) {
        if (const std::size_t length = py::len(list); length != params.size())
            throw_error<py::value_error>("{} has {} for {}", name, counted(length, "tensor"),
                                         counted(params.size(), "parameter"));
    };
    require_length(grads, "grads");
    require_length(state_steps, "state_steps");
    if (!out.is_none()) require_length(out, "out");
    std::vector<Parameter> parameters;
    std::vector<Group> groups;
    std::vector<StepCounter> counters;
    DenseCopies copies;
    for (std::size_t k = 0; k < params.size(); ++k) {
        parameters.push_back(make_parameter(update, py::str(std::to_string(k)), params[k], 0));
        Parameter& parameter = parameters.back();
        if (py::object(grads[k]).is_none())
            throw_error<py::type_error>("{} is None; leave out parameters without a gradient",
                                        parameter.grad_what);
        for (std::size_t s = 0; s < parameter.states.size(); ++s) {
            const bool is_master = s == master_place;
            if (!is_master && (static_cast<int>(s) >= update.state_count ||
                               !plain.uses_state(static_cast<int>(s))))
                continue;
            const py::object list = find(states, keys.states[s]);
            const std::string name = is_master ? master_name : update.states[s];
            if (!list && is_master) continue;
            if (!list) throw_error<py::type_error>("{} is None, but this update needs it", name);
            require_length(list, name.c_str());
            const py::object state = list[py::int_(k)];
            if (!state.is_none())
                parameter.states[s] = state;
            else if (!is_master)
                throw_error<py::type_error>("{} is None, but this update needs it",
                                            state_name(update, s, parameter));
        }
        TypeOptions types;
        find_types(update, parameter, types);
        keys.read_noise(group, types);
        const Type type = type_of(float_array(parameter.param, parameter.what));
        const bool has_master_param = parameter.states[master_place].has_value();
        if (has_master_param && !is_16_bit(type))
            throw_error<py::type_error>(
                "{} is given, but {} has 32 or 64 bits and no master; pass None",
                state_name(update, master_place, parameter), parameter.what);
        if (type == Type::float16 && types.master != TypeOptions::Master::float32)
            throw_error<py::type_error>(
                "{} has dtype float16, which needs master_params of float32", parameter.what);
        while (parameter.group < groups.size() &&
               !(groups[parameter.group].options.types() == types))
            ++parameter.group;
        if (parameter.group == groups.size())
            groups.push_back({GroupOptions(update, group, types), py::none()});
        counters.push_back(StepCounter::get(py::object(state_steps[k]), parameter));
        parameter.step = counters.back().steps(parameter);
        make_dense(update, parameter, copies);
    }
    const py::tuple outputs = out.is_none() ? py::tuple() : py::tuple(out);
    check_overlap(update, copies, parameters, py::tuple(grads), outputs);
    Plan plan(number);
    plan.prepare(parameters, groups, py::tuple(grads), outputs, false);
    for (std::size_t k = 0; k < parameters.size(); ++k)
        plan.tensor(k).fresh = parameters[k].step == 0;
    const StepResult result = plan.run(options);
    if (result.misfit)
        throw_misfit(*result.misfit, parameters[plan.parameter(result.misfit->tensor)]);
    for (std::size_t k = 0; k < parameters.size(); ++k) counters[k].set(parameters[k].step + 1);
    copies.copy_back();
}

}  // namespace

void bind_tensors(py::module_& module) {
    using Guard = py::call_guard<DefaultFloatingPoint>;
    py::class_<TensorUpdater>(module, "TensorUpdater", "Steps for an optimizer of torch.",
                              collected<TensorUpdater>())
        .def(py::init([](const py::object& kernel, py::object step_info) {
                 return std::make_unique<TensorUpdater>(find_update(kernel), std::move(step_info));
             }),
             py::arg("kernel"), py::arg("step_info"))
        .def("step", &TensorUpdater::step, py::arg("groups"), py::arg("state"),
             py::arg("make_state"), py::arg("step_others"), py::arg("increment_version"),
             py::arg("max_norm") = py::none(), py::arg("grad_scale") = 1.0,
             py::arg("skip_nonfinite") = false, Guard());
    module.def("step_tensors", &step_tensors, py::arg("kernel"), py::arg("group"),
               py::arg("params"), py::arg("grads"), py::arg("states"), py::arg("state_steps"),
               py::arg("out") = py::none(), py::arg("grad_scale") = 1.0, Guard());
}

}  // namespace fastopt
