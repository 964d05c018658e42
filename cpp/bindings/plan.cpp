#include "plan.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string_view>

#include "../runtime/isa.hpp"
#include "gil.hpp"
#include "scalars.hpp"

namespace fastopt {
namespace {

std::byte* bytes_of(const py::array& array) {
    return static_cast<std::byte*>(const_cast<void*>(array.data()));
}

GradView grad_view(const py::array& grad, const std::vector<py::ssize_t>& order) {
    return {type_of(grad), static_cast<std::size_t>(grad.size()), reader(grad, order)};
}

Type state_type(std::size_t place, Type param, const TypeOptions& options) {
    return param == Type::float64 ? Type::float64 : options.state[place];
}

bool is_split(Type param, const TypeOptions& options) {
    return param == Type::bfloat16 && options.master == TypeOptions::Master::split;
}

py::dtype state_dtype(std::size_t place, const py::array& param, const TypeOptions& options) {
    const Type type = type_of(param);
    if (place != master_place) return dtype_of(state_type(place, type, options), param);
    return is_split(type, options) ? py::dtype::of<std::int16_t>() : py::dtype::of<float>();
}

// How the arrays of a parameter are stored, without its gradient and a copy.
Storage storage_of(Type param, const TypeOptions& options) {
    Storage storage{};
    storage.param = param;
    for (std::size_t i = 0; i < max_states; ++i) storage.state[i] = state_type(i, param, options);
    storage.split = is_split(param, options);
    storage.stochastic = options.stochastic;
    if (has_master(param, options) && !storage.split) {
        storage.master = true;
        storage.param = Type::float32;
        storage.copy = param;
    }
    return storage;
}

void set_plain(Slice& arrays) {
    Storage& storage = arrays.storage;
    const auto is_plain = [](Type type) { return !is_16_bit(type); };
    storage.plain = is_plain(storage.param) && is_plain(storage.grad) && arrays.copy == nullptr;
    for (int i = 0; i < max_states; ++i)
        storage.plain &= arrays.state[i] == nullptr || is_plain(storage.state[i]);
}

py::handle item(const py::tuple& copies, std::size_t number) {
    if (copies.size() == 0) return Py_None;
    return PyTuple_GET_ITEM(copies.ptr(), static_cast<py::ssize_t>(number));
}

// `given` as an array that can get a copy of the parameter.
py::array copy_array(py::handle given, const std::string& what, const Parameter& parameter,
                     const py::array& param) {
    if (type_of(param) != Type::float32)
        throw_error<py::type_error>(
            "{} is given, but {} has dtype {}: only parameters of float32 have copies; pass None",
            what, parameter.what, dtype_name(param));
    const py::object object = as_array(given, what);
    if (py::isinstance<py::array>(object)) {
        const py::array copy = plain_array(object);
        if (const auto type = find_type(copy.dtype()); !type || !is_16_bit(*type))
            throw_error<py::type_error>(
                "{} must have dtype bfloat16 or float16, not {}; allocate it with np.empty", what,
                dtype_name(copy));
    }
    py::array array = float_array(object, what, Purpose::result);
    require_twin(array, what, param, parameter.what);
    return array;
}

// FNV-1a of the name in UTF-8, with all its characters.
std::uint64_t hash_of(py::handle name) {
    const auto bytes = py::reinterpret_steal<py::bytes>(
        PyUnicode_AsEncodedString(name.ptr(), "utf-8", "surrogatepass"));
    if (!bytes) throw py::error_already_set();
    std::uint64_t hash = 0xcbf29ce484222325;
    for (const char byte : std::string_view(bytes)) {
        hash ^= static_cast<unsigned char>(byte);
        hash *= 0x100000001b3;
    }
    return hash;
}

}  // namespace

int find_update(const py::object& given) {
    const std::string name = as_text(given, "kernel");
    const UpdateTable& table = update_kernels();
    for (int i = 0; i < table.update_count; ++i)
        if (name == table.updates[i].name) return i;
    throw_error<py::value_error>("there is no update '{}'", name);
}

const Update& update_row(int number) { return update_kernels().updates[number]; }

Parameter make_parameter(const Update& update, py::handle name_given, py::handle array,
                         std::size_t group) {
    const std::string name = as_text(name_given, "the name of a parameter");
    const std::string name_quoted = " '" + name + "'";
    return {name,
            hash_of(name_given),
            update.words.param + name_quoted,
            update.words.grad + name_quoted,
            py::reinterpret_borrow<py::object>(array),
            group,
            {}};
}

bool has_master(Type param, const TypeOptions& options) {
    return is_16_bit(param) && options.master != TypeOptions::Master::none;
}

void require_row(Type type, const std::string& what, const TypeOptions& options) {
    const char* dtype = nullptr;
    const char* taken = nullptr;
    if (type == Type::float64 && options.state_given) {
        dtype = "float64";
        taken = "states of float64: use state_dtype=None";
    }
    if (type == Type::float16 && options.master != TypeOptions::Master::float32) {
        dtype = "float16";
        taken = "a master of float32: use master='float32'";
    }
    if (dtype == nullptr) return;
    constexpr const char* masters[] = {"None", "'float32'", "'split'"};
    throw_error<py::type_error>(
        "{} has dtype {}, which needs {} (here state_dtype={}, master={}); other parameters are "
        "float32, or bfloat16 with master=None, 'split' or 'float32'",
        what, dtype, taken,
        !options.state_given                 ? "None"
        : options.state[0] == Type::bfloat16 ? "'bfloat16'"
                                             : "'float32'",
        masters[static_cast<int>(options.master)]);
}

py::array state_array(py::handle given, const std::string& what, std::size_t place,
                      const py::array& param, const TypeOptions& options) {
    const py::object object = as_array(given, what);
    const bool is_master = place == master_place;
    const bool remainder = is_master && is_split(type_of(param), options);
    const Type type = is_master ? Type::float32 : state_type(place, type_of(param), options);
    if (py::isinstance<py::array>(object)) {
        require_no_mask(object, what);
        py::array array = plain_array(object);
        const py::dtype found = array.dtype();
        if (remainder ? found.num() == py::dtype::of<std::int16_t>().num()
                      : find_type(found) == type) {
            require_native(array, what);
            return array;
        }
    }
    if (!is_master) float_array(object, what);  // throws if it is of none of the types
    const char* const wanted = remainder ? "int16" : name_of(type);
    const py::object dtype = attribute(given, "dtype");
    if (!is_master && torch::is_tensor(given))
        throw_error<py::type_error>(
            "{} must be a tensor of {}, not {}; convert it with .to(torch.{})", what, wanted,
            py::str(dtype), wanted);
    throw_error<py::type_error>(
        "{} must be an array of {}, not {}; {}", what, wanted,
        dtype ? py::object(py::str(dtype)) : py::object(py::str(type_name(object))),
        is_master ? "load it with the option master that it was saved with"
                  : "load it with the option state_dtype that it was saved with, or "
                    "convert it with .astype");
}

Fingerprint::Fingerprint(py::handle object, const py::array& array) {
    dlpack::Tensor tensor;
    if (py::isinstance<py::array>(object)) {
        if (Py_TYPE(object.ptr()) != ndarray_type() || array.ndim() > max_dimensions) return;
        dtype_ = array.dtype();
    } else {
        if (!torch::read(object.ptr(), tensor) || array.ndim() > max_dimensions) return;
        type_ = tensor.dtype;
    }
    data_ = dtype_ ? array.data() : tensor.data;
    item_size_ = array.itemsize();
    flags_ = array.flags() & checked_flags;
    dimensions_ = static_cast<int>(array.ndim());
    std::copy_n(array.shape(), array.ndim(), shape_.begin());
    std::copy_n(array.strides(), array.ndim(), strides_.begin());
}

bool Fingerprint::matches_tensor(PyObject* object, const void*& data) const {
    dlpack::Tensor tensor;
    if (dtype_ || dimensions_ < 0 || !torch::read(object, tensor) || tensor.dtype != type_ ||
        tensor.ndim != dimensions_)
        return false;
    for (std::size_t i = 0; i < static_cast<std::size_t>(dimensions_); ++i)
        if (tensor.shape[i] != shape_[i] || tensor.strides[i] * item_size_ != strides_[i])
            return false;
    data = tensor.data;
    return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::size_t>(item_size_) == 0;
}

Extent Fingerprint::extent_at(const void* data) const {
    const auto* low = static_cast<const std::byte*>(data);
    const std::byte* high = low;
    for (std::size_t i = 0; i < static_cast<std::size_t>(dimensions_); ++i) {
        if (shape_[i] == 0) return {low, low};
        const py::ssize_t reach = (shape_[i] - 1) * strides_[i];
        (reach < 0 ? low : high) += reach;
    }
    return {low, high + item_size_};
}

void Plan::clear() {
    entries_.clear();
    const auto held = std::exchange(held_, {});
    stepper_.tensors.clear();
    stepper_.cut();
}

void Plan::prepare(const std::vector<Parameter>& parameters, const std::vector<Group>& groups,
                   const py::tuple& grads, const py::tuple& copies, bool zero_grads) {
    if (zero_grads != std::exchange(zero_grads_, zero_grads) ||
        writes_with_grad(parameters, grads, copies) || !refresh(parameters, grads, copies))
        make(parameters, groups, grads, copies);
    number_steps(parameters);
}

bool Plan::fits(const std::vector<Parameter>& parameters, const py::tuple& grads) {
    const py::tuple copies;
    if (zero_grads_ || writes_with_grad(parameters, grads, copies) ||
        !refresh(parameters, grads, copies))
        return false;
    number_steps(parameters);
    return true;
}

void Plan::number_steps(const std::vector<Parameter>& parameters) {
    for (std::size_t k = 0; k < entries_.size(); ++k) {
        const Parameter& parameter = parameters[entries_[k].parameter];
        if (parameter.step == last_step)
            throw_error<py::value_error>("the step counter of {} is at its end (2**63 - 1)",
                                         parameter.what);
        stepper_.tensors[k].step = parameter.step + 1;
    }
}

StepResult Plan::run(const GradOptions& options) {
    StepResult result;
    {
        const GilRelease release;
        result = stepper_.run(number_, options);
    }
    const auto held = std::exchange(held_, {});
    return result;
}

void Plan::finish(std::vector<Parameter>& parameters) {
    for (std::size_t k = 0; k < entries_.size(); ++k) {
        Parameter& parameter = parameters[entries_[k].parameter];
        ++parameter.step;
        if (!std::exchange(entries_[k].creates, false)) continue;
        stepper_.tensors[k].fresh = false;
        for (std::size_t i = 0; i < parameter.states.size(); ++i)
            if (entries_[k].created[i]) std::swap(parameter.states[i], entries_[k].created[i]);
    }
}

void Plan::skip() {
    const auto creates = [](const Entry& entry) { return entry.creates; };
    if (std::any_of(entries_.begin(), entries_.end(), creates)) clear();
}

// Whether the plan fits these gradients, or could be made to.
bool Plan::refresh(const std::vector<Parameter>& parameters, const py::tuple& grads,
                   const py::tuple& copies) {
    std::size_t k = 0;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
        const py::handle grad = PyTuple_GET_ITEM(grads.ptr(), static_cast<py::ssize_t>(i));
        const bool planned = k < entries_.size() && entries_[k].parameter == i;
        if (grad.is_none() == planned) return false;
        if (!planned) continue;
        const Parameter& parameter = parameters[i];
        const Entry& entry = entries_[k];
        if (!entry.param.matches(parameter.param.ptr())) return false;
        for (std::size_t s = 0; s < parameter.states.size(); ++s) {
            if ((entry.used >> s & 1) == 0) continue;
            const auto& state = parameter.states[s];
            if (!state || !entry.states[s].matches(state->ptr())) return false;
        }
        const py::handle copy = item(copies, i);
        if (copy.is_none() == entry.copied) return false;
        if (entry.copied && !entry.copy.matches(copy.ptr())) return false;
        if (!entry.grad.matches(grad.ptr()) && !take_grad(k, parameter, grad)) return false;
        ++k;
    }
    return true;
}

// Takes another gradient for entry `number`. Returns false if only a new plan can tell whether it
// may be used.
bool Plan::take_grad(std::size_t number, const Parameter& parameter, py::handle grad) {
    Entry& entry = entries_[number];
    if (zero_grads_) return false;  // the gradient is written too
    TensorUpdate& tensor = stepper_.tensors[number];
    if (const void* data = nullptr; entry.grad.matches_elsewhere(grad.ptr(), data)) {
        if (is_written(entry.grad.extent_at(data))) return false;
        tensor.grad.reader.move(data);
        entry.grad.move(data);
        return true;
    }
    const py::array array = check_grad(grad, parameter, plain_array(parameter.param));
    if (is_written(extent(array))) return false;
    GradView view = grad_view(array, entry.order);
    // The pieces were cut for the layout of the old gradient.
    if (view.reader.at_once() != tensor.grad.reader.at_once()) return false;
    tensor.grad = std::move(view);
    tensor.arrays.storage.grad = tensor.grad.type;
    set_plain(tensor.arrays);
    entry.grad = keep(grad, array, false);
    return true;
}

// Checks everything and plans anew.
void Plan::make(const std::vector<Parameter>& parameters, const std::vector<Group>& groups,
                const py::tuple& grads, const py::tuple& copies) {
    clear();
    writes_tensors_ = false;
    OverlapCheck overlap;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
        const py::object grad = grads[i];
        if (grad.is_none()) continue;
        entries_.emplace_back().parameter = i;
        add(parameters[i], groups[parameters[i].group].options, grad, item(copies, i), overlap);
    }
    overlap.run();
    written_ = overlap.written();
    stepper_.cut();
}

// Fills the last entry.
void Plan::add(const Parameter& parameter, const GroupOptions& options, py::handle grad,
               py::handle copy, OverlapCheck& overlap) {
    Entry& entry = entries_.back();
    const py::array param = parameter_array(parameter.param, parameter.what);
    const Type type = type_of(param);
    overlap.add(param, parameter.what, true);
    entry.param = keep(parameter.param, param, true);
    entry.order = memory_order(param);
    const py::array grad_array = check_grad(grad, parameter, param);
    overlap.add(grad_array, parameter.grad_what, zero_grads_);
    entry.grad = keep(grad, grad_array, zero_grads_);
    TensorUpdate tensor{};
    tensor.grad = grad_view(grad_array, entry.order);
    tensor.options = options.values();
    Slice& arrays = tensor.arrays;
    arrays.param = bytes_of(param);
    arrays.storage = storage_of(type, options.types());
    arrays.storage.grad = tensor.grad.type;
    arrays.noise = {options.types().seed, 0, parameter.name_hash};
    if (arrays.storage.stochastic) arrays.first = parameter.first;
    add_states(parameter, param, options, tensor, overlap);
    if (!copy.is_none()) {
        const std::string what = "copy of '" + parameter.name + "'";
        const py::array array = copy_array(copy, what, parameter, param);
        overlap.add(array, what, true);
        entry.copy = keep(copy, array, true);
        entry.copied = true;
        arrays.copy = bytes_of(array);
        arrays.storage.copy = type_of(array);
    }
    set_plain(arrays);
    stepper_.tensors.push_back(std::move(tensor));
}

// Creates the states that are used and do not exist yet.
void Plan::add_states(const Parameter& parameter, const py::array& param,
                      const GroupOptions& options, TensorUpdate& tensor, OverlapCheck& overlap) {
    Entry& entry = entries_.back();
    const TypeOptions& types = options.types();
    const bool has_master_array = has_master(type_of(param), types);
    for (std::size_t i = 0; i < parameter.states.size(); ++i) {
        const bool is_master = i == master_place;
        if (is_master ? !has_master_array
                      : static_cast<int>(i) >= update().state_count ||
                            !options.uses_state(static_cast<int>(i)))
            continue;
        entry.used |= 1u << i;
        const std::string what =
            (is_master ? master_name : update().states[i]) + (" of '" + parameter.name + "'");
        const std::optional<py::object>& given = parameter.states[i];
        py::array state;
        if (given) {
            state = state_array(*given, what, i, param, types);
            require_twin(state, what, param, parameter.what);
        } else {
            const bool is_float = is_master && types.master == TypeOptions::Master::float32;
            state = is_float ? wide_copy(param) : zeros_like(param, state_dtype(i, param, types));
            entry.created[i] = state;
            entry.creates = true;
            tensor.fresh |= !is_master;
        }
        overlap.add(state, what, true);
        entry.states[i] = keep(given ? *given : state, state, true);
        void* const data = bytes_of(state);
        if (!is_master) {
            tensor.arrays.state[i] = data;
        } else if (tensor.arrays.storage.split) {
            tensor.arrays.remainder = data;
        } else {
            tensor.arrays.copy = tensor.arrays.param;
            tensor.arrays.param = data;
        }
    }
}

py::array Plan::check_grad(py::handle grad, const Parameter& parameter,
                           const py::array& param) const {
    py::array array = float_array(grad, parameter.grad_what);
    const Type type = type_of(param);
    const Type arithmetic = arithmetic_type(type);
    if (is_16_bit(type) && type_of(array) == Type::float64)
        throw_error<py::type_error>(
            "{} has dtype float64 but {} has {}, whose arithmetic is float32; convert it with {}",
            parameter.grad_what, parameter.what, dtype_name(param),
            conversion(array, Type::float32));
    if (arithmetic_type(type_of(array)) != arithmetic)
        require_type(array, parameter.grad_what, param, parameter.what);
    require_same_shape(array, parameter.grad_what, param, parameter.what);
    if (zero_grads_) {
        require_writeable(array, parameter.grad_what);
        require_distinct_elements(array, parameter.grad_what);
    }
    return array;
}

// The fingerprint of an array, which is kept for this step if it has none: the next step needs
// another view of the object, whose memory may be elsewhere then.
Fingerprint Plan::keep(py::handle object, const py::array& array, bool written) {
    Fingerprint fingerprint(object, array);
    if (!fingerprint.is_set()) held_.push_back(array);
    writes_tensors_ |= written && fingerprint.is_tensor();
    return fingerprint;
}

// Whether the step would write to a tensor that requires a gradient where one is recorded.
bool Plan::writes_with_grad(const std::vector<Parameter>& parameters, const py::tuple& grads,
                            const py::tuple& copies) const {
    if (!writes_tensors_ || !torch::grad_enabled()) return false;
    return std::any_of(entries_.begin(), entries_.end(), [&](const Entry& entry) {
        const Parameter& parameter = parameters[entry.parameter];
        const auto has_grad = [](const std::optional<py::object>& state) {
            return state && torch::requires_grad(*state);
        };
        return torch::requires_grad(parameter.param) ||
               torch::requires_grad(item(copies, entry.parameter)) ||
               (zero_grads_ && torch::requires_grad(item(grads, entry.parameter))) ||
               std::any_of(parameter.states.begin(), parameter.states.end(), has_grad);
    });
}

// Whether the step writes memory in this range.
bool Plan::is_written(Extent range) const {
    const auto [begin, end] = range;
    const auto after = std::lower_bound(
        written_.begin(), written_.end(), end,
        [](const Extent& written, const std::byte* limit) { return written.first < limit; });
    return begin != end && after != written_.begin() && std::prev(after)->second > begin;
}

}  // namespace fastopt
