#include "options.hpp"

#include <cmath>
#include <utility>

#include "scalars.hpp"

namespace fastopt {
namespace {

// The words for the range of a number in messages, and whether a number is in the range.
struct NumberRange {
    const char* text;
    bool (*holds)(double);
};

NumberRange range_of(Domain domain) {
    switch (domain) {
        case Domain::non_negative:
            return {"finite and >= 0", [](double x) { return std::isfinite(x) && x >= 0; }};
        case Domain::fraction: return {"in [0, 1]", [](double x) { return x >= 0 && x <= 1; }};
        case Domain::decay_rate: return {"in [0, 1)", [](double x) { return x >= 0 && x < 1; }};
        default: return {"finite", [](double x) { return std::isfinite(x); }};
    }
}

py::object interned(const char* name) {
    PyObject* key = PyUnicode_InternFromString(name);
    if (key == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(key);
}

// Item number `item` of a pair such as betas.
py::object pair_item(py::handle value, const char* name, int item) {
    py::object items;
    if (PySequence_Check(value.ptr()) && !PyUnicode_Check(value.ptr())) {
        items = py::reinterpret_steal<py::object>(PySequence_Fast(value.ptr(), ""));
        if (!items && PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw py::error_already_set();
        PyErr_Clear();
    }
    if (!items || PySequence_Fast_GET_SIZE(items.ptr()) != 2)
        throw_error<py::type_error>("{} must be a pair of numbers, not {}", name,
                                    short_repr(value));
    return py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(items.ptr(), item));
}

double read_option(const Option& option, py::object value) {
    std::string name = option.name;
    if (option.item >= 0) {
        value = pair_item(value, option.name, option.item);
        name += "[" + std::to_string(option.item) + "]";
    }
    if (option.domain == Domain::choice) {
        for (int i = 0; i < 2; ++i)
            if (PyUnicode_Check(value.ptr()) && as_text(value, name) == option.choices[i]) return i;
        throw_error<py::value_error>("{} must be '{}' or '{}', not {}", name, option.choices[0],
                                     option.choices[1], short_repr(value));
    }
    if (option.domain == Domain::flag) return as_flag(value, name) ? 1.0 : 0.0;
    const double number = as_number(value, name);
    if (const NumberRange range = range_of(option.domain); !range.holds(number))
        throw_error<py::value_error>("{} must be {}, not {}", name, range.text, short_repr(value));
    return number;
}

// Whether the value of the object can never change.
bool immutable(py::handle value) {
    PyObject* object = value.ptr();
    if (PyTuple_CheckExact(object)) {
        for (const py::handle item : py::reinterpret_borrow<py::tuple>(value))
            if (!PyFloat_CheckExact(item.ptr()) && !PyLong_CheckExact(item.ptr())) return false;
        return true;
    }
    return PyFloat_CheckExact(object) || PyBool_Check(object) || PyLong_CheckExact(object) ||
           PyUnicode_CheckExact(object);
}

// The values of the options in a message.
std::string named_values(const Update& update, const std::string& message, const py::dict& group) {
    std::string result;
    for (int i = 0; i < update.option_count; ++i) {
        const char* name = update.options[i].name;
        if (message.find(name) == std::string::npos) continue;
        result.append(result.empty() ? "" : ", ").append(name).append("=");
        result.append(short_repr(group[name]));
    }
    return result;
}

}  // namespace

void throw_names(const std::string& message) {
    const py::object error = py::module_::import("fastopt._checks").attr("NamesError");
    PyErr_SetString(error.ptr(), message.c_str());
    throw py::error_already_set();
}

GroupOptions::GroupOptions(const Update& update, const TypeOptions& types)
    : update_(&update), types_(types) {
    for (int i = 0; i < update.option_count; ++i) keys_.push_back(interned(update.options[i].name));
    seen_.resize(keys_.size());
}

GroupOptions::GroupOptions(const Update& update, const py::dict& group)
    : GroupOptions(update, TypeOptions{}) {
    if (update.has_types) read_types(group);
    read(group);
}

GroupOptions::GroupOptions(const Update& update, const py::dict& group, const TypeOptions& types)
    : GroupOptions(update, types) {
    read(group);
}

// The values have been checked by fastopt._storage.check_options.
void GroupOptions::read_types(const py::dict& group) {
    for (const char* name : {"state_dtype", "master", "stochastic_rounding", "seed"})
        type_values_.emplace_back(interned(name), group[name]);
    const auto is = [&](std::size_t number, const char* value) {
        const py::object& given = type_values_[number].second;
        return !given.is_none() && as_text(given, "") == value;
    };
    types_.state_given = !type_values_[0].second.is_none();
    if (is(0, "bfloat16")) types_.set_states(Type::bfloat16);
    if (is(1, "float32")) types_.master = TypeOptions::Master::float32;
    if (is(1, "split")) types_.master = TypeOptions::Master::split;
    types_.stochastic = as_flag(type_values_[2].second, "stochastic_rounding");
    types_.seed = static_cast<std::uint64_t>(as_integer(type_values_[3].second, "seed"));
}

void GroupOptions::check_types(const py::dict& group) const {
    for (const auto& [key, value] : type_values_) {
        PyObject* found = PyDict_GetItemWithError(group.ptr(), key.ptr());
        if (found == value.ptr()) continue;
        if (found == nullptr) {
            if (PyErr_Occurred()) throw py::error_already_set();
            throw_names("the parameter group has no option '" + as_text(key, "") + "'");
        }
        if (Py_TYPE(found) == Py_TYPE(value.ptr()) &&
            py::reinterpret_borrow<py::object>(found).equal(value))
            continue;
        throw_error<py::value_error>(
            "{} of a parameter group is fixed: it is {}, not {} (only load_state_dict changes it)",
            key, short_repr(value), short_repr(found));
    }
}

// Whether the dict holds the same objects as when it was read. To look at all of them takes a
// quarter of the time of looking up the options.
bool GroupOptions::is_as_seen(const py::dict& group) const {
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t position = 0;
    for (const auto& item : items_)
        if (PyDict_Next(group.ptr(), &position, &key, &value) == 0 || key != item.first ||
            value != item.second)
            return false;
    return !items_.empty() && PyDict_Next(group.ptr(), &position, &key, &value) == 0;
}

// The options are kept alive, with their names: an object at the same address is the same object.
void GroupOptions::remember(const py::dict& group) {
    items_.clear();
    std::size_t found = 0;
    for (const auto& [key, value] : group) {
        items_.emplace_back(key.ptr(), value.ptr());
        for (std::size_t i = 0; i < keys_.size(); ++i)
            found += keys_[i].is(key) && seen_[i].is(value) &&
                     (i == 0 || !keys_[i - 1].is(key));  // betas: two options of one name
        for (const auto& [own, seen] : type_values_) found += own.is(key) && seen.is(value);
    }
    std::size_t names = type_values_.size();
    for (std::size_t i = 0; i < keys_.size(); ++i) names += i == 0 || !keys_[i].is(keys_[i - 1]);
    if (found < names) items_.clear();
}

bool GroupOptions::read(const py::dict& group) {
    if (is_as_seen(group)) return false;
    const bool changed = read_changed(group);
    remember(group);
    return changed;
}

bool GroupOptions::read_changed(const py::dict& group) {
    check_types(group);
    std::vector<std::pair<std::size_t, py::object>> read;
    std::array<double, max_options> values = values_;
    for (std::size_t i = 0; i < keys_.size(); ++i) {
        PyObject* found = PyDict_GetItemWithError(group.ptr(), keys_[i].ptr());
        if (found != nullptr && found == seen_[i].ptr()) continue;
        if (PyErr_Occurred()) throw py::error_already_set();
        const Option& option = update_->options[i];
        // A group of torch has no choices: the first of each is what torch does.
        if (found == nullptr && option.domain == Domain::choice && type_values_.empty()) continue;
        if (found == nullptr)
            throw_names(std::string("the parameter group has no option '") + option.name + "'");
        const auto value = py::reinterpret_borrow<py::object>(found);
        values[i] = read_option(option, value);
        read.emplace_back(i, immutable(value) ? value : py::object());
    }
    if (read.empty()) return false;
    if (const char* conflict = update_->conflict(values.data()))
        throw_error<py::value_error>("{}, not {}", conflict,
                                     named_values(*update_, conflict, group));
    values_ = values;
    for (auto& [i, value] : read) std::swap(seen_[i], value);
    unsigned used = 0;
    for (int i = 0; i < update_->state_count; ++i)
        if (uses_state(i)) used |= 1u << i;
    return std::exchange(used_, used) != used;
}

bool GroupOptions::needs_state(int index) const {
    std::array<double, max_options> off{};
    for (int i = 0; i < update_->option_count; ++i)
        if (update_->options[i].domain == Domain::decay_rate)
            off[static_cast<std::size_t>(i)] = 0.5;
    return uses_state(index) && update_->uses_state(off.data(), index);
}

std::string GroupOptions::reason_for_state(int index, const py::dict& group) const {
    for (int i = 0; i < update_->option_count; ++i) {
        std::array<double, max_options> without = values_;
        without[static_cast<std::size_t>(i)] = 0.0;
        const char* name = update_->options[i].name;
        if (!update_->uses_state(without.data(), index))
            return name + ("=" + short_repr(group[name]));
    }
    return "";
}

Unfit GroupOptions::unfit(std::int64_t step, Type type) const {
    Coefficients coefficients;
    update_->prepare(values(), step, true, coefficients);
    return update_->unfit(coefficients, type);
}

int GroupOptions::traverse(visitproc visit, void* arg) const {
    for (const py::object& value : seen_) Py_VISIT(value.ptr());
    for (const auto& [key, value] : type_values_) Py_VISIT(value.ptr());
    return 0;
}

GradOptions grad_options(const py::object& max_norm, const py::object& norm_type,
                         const py::object& grad_scale, const py::object& skip_nonfinite,
                         const py::object& zero_grads, const py::object& total_norm) {
    GradOptions options;
    options.scale = as_number(grad_scale, "grad_scale");
    if (!(std::isfinite(options.scale) && options.scale > 0))
        throw_error<py::value_error>("grad_scale must be finite and > 0, not {}",
                                     short_repr(grad_scale));
    options.skip_nonfinite = as_flag(skip_nonfinite, "skip_nonfinite");
    options.zero = as_flag(zero_grads, "zero_grads");
    options.clip = !max_norm.is_none();
    if (options.clip) options.max_norm = as_number(max_norm, "max_norm");
    options.norm_type = as_norm_type(norm_type, "norm_type");
    if (!total_norm.is_none()) options.total_norm = as_number(total_norm, "total_norm");
    if (!(options.max_norm >= 0))
        throw_error<py::value_error>("max_norm must be >= 0, not {}", short_repr(max_norm));
    return options;
}

}  // namespace fastopt
