#include "plan.hpp"

#include <algorithm>
#include <iterator>

#include "../runtime/isa.hpp"
#include "gil.hpp"
#include "scalars.hpp"

namespace fastopt {
namespace {

PyObject* dtype_of(const py::array& array) { return py::detail::array_proxy(array.ptr())->descr; }

std::byte* bytes_of(const py::array& array) {
    return static_cast<std::byte*>(const_cast<void*>(array.data()));
}

GradView grad_view(const py::array& grad, const std::vector<py::ssize_t>& order) {
    return {type_of(grad), static_cast<std::size_t>(grad.size()), reader(grad, order)};
}

}  // namespace

const Update& update_row(int number) { return update_kernels().updates[number]; }

Parameter make_parameter(const Update& update, const std::string& name, py::handle array,
                         std::size_t group) {
    const std::string name_quoted = " '" + name + "'";
    return {name,
            update.words.param + name_quoted,
            update.words.grad + name_quoted,
            py::reinterpret_borrow<py::array>(array),
            group,
            {}};
}

Fingerprint::Fingerprint(const py::array& array, PyObject* dtype) {
    const auto* fields = py::detail::array_proxy(array.ptr());
    if (Py_TYPE(array.ptr()) != ndarray_type() || fields->descr != dtype ||
        fields->nd > max_dimensions)
        return;
    data_ = fields->data;
    dtype_ = fields->descr;
    flags_ = fields->flags & checked_flags;
    dimensions_ = fields->nd;
    std::copy_n(fields->dimensions, fields->nd, shape_.begin());
    std::copy_n(fields->strides, fields->nd, strides_.begin());
}

void Plan::clear() {
    entries_.clear();
    stepper_.tensors.clear();
    stepper_.cut();
}

void Plan::prepare(const std::vector<Parameter>& parameters, const std::vector<Group>& groups,
                   const py::tuple& grads, bool zero_grads) {
    if (zero_grads != std::exchange(zero_grads_, zero_grads) || !refresh(parameters, grads))
        make(parameters, groups, grads);
    for (std::size_t k = 0; k < entries_.size(); ++k) {
        const Parameter& parameter = parameters[entries_[k].parameter];
        if (parameter.step == last_step)
            throw_error<py::value_error>("the step counter of {} is at its end (2**63 - 1)",
                                         parameter.what);
        stepper_.tensors[k].step = parameter.step + 1;
    }
}

StepResult Plan::run(const GradOptions& options) {
    const GilRelease release;
    return stepper_.run(number_, options);
}

void Plan::finish(std::vector<Parameter>& parameters) {
    for (std::size_t k = 0; k < entries_.size(); ++k) {
        Parameter& parameter = parameters[entries_[k].parameter];
        ++parameter.step;
        if (!std::exchange(stepper_.tensors[k].fresh, false)) continue;
        for (std::size_t i = 0; i < max_states; ++i)
            if (entries_[k].created[i]) std::swap(parameter.states[i], entries_[k].created[i]);
    }
}

void Plan::skip() {
    const auto is_fresh = [](const TensorUpdate& tensor) { return tensor.fresh; };
    if (std::any_of(stepper_.tensors.begin(), stepper_.tensors.end(), is_fresh)) clear();
}

// Whether the plan fits these gradients, or could be made to.
bool Plan::refresh(const std::vector<Parameter>& parameters, const py::tuple& grads) {
    std::size_t k = 0;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
        const py::handle grad = PyTuple_GET_ITEM(grads.ptr(), static_cast<py::ssize_t>(i));
        const bool planned = k < entries_.size() && entries_[k].parameter == i;
        if (grad.is_none() == planned) return false;
        if (!planned) continue;
        const Parameter& parameter = parameters[i];
        const Entry& entry = entries_[k];
        if (!entry.param.matches(parameter.param.ptr())) return false;
        for (std::size_t s = 0; s < max_states; ++s) {
            if (stepper_.tensors[k].state[s] == nullptr) continue;
            const auto& state = parameter.states[s];
            if (!state || !entry.states[s].matches(state->ptr())) return false;
        }
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
    if (entry.grad.matches_elsewhere(grad.ptr())) {
        if (is_written(extent(py::reinterpret_borrow<py::array>(grad)))) return false;
        const void* data = py::detail::array_proxy(grad.ptr())->data;
        tensor.grad.reader.move(data);
        entry.grad.move(data);
        return true;
    }
    const py::array array = check_grad(grad, parameter);
    if (is_written(extent(array))) return false;
    GradView view = grad_view(array, entry.order);
    // The pieces were cut for the layout of the old gradient.
    if (view.reader.at_once() != tensor.grad.reader.at_once()) return false;
    tensor.grad = std::move(view);
    entry.grad = {array, dtype_of(parameter.param)};
    return true;
}

// Checks everything and plans anew.
void Plan::make(const std::vector<Parameter>& parameters, const std::vector<Group>& groups,
                const py::tuple& grads) {
    clear();
    OverlapCheck overlap;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
        const py::object grad = grads[i];
        if (grad.is_none()) continue;
        entries_.emplace_back().parameter = i;
        add(parameters[i], groups[parameters[i].group].options, grad, overlap);
    }
    overlap.run();
    written_ = overlap.written();
    stepper_.cut();
}

// Fills the last entry, and creates the states that are used and do not exist yet.
void Plan::add(const Parameter& parameter, const GroupOptions& options, py::handle grad,
               OverlapCheck& overlap) {
    Entry& entry = entries_.back();
    const py::array& param = parameter.param;
    PyObject* const dtype = dtype_of(param);
    const py::array plain = parameter_array(param, parameter.what);
    overlap.add(plain, parameter.what, true);
    entry.param = {param, dtype};
    entry.order = memory_order(plain);
    const py::array grad_array = check_grad(grad, parameter);
    overlap.add(grad_array, parameter.grad_what, zero_grads_);
    entry.grad = {grad_array, dtype};
    TensorUpdate tensor{};
    tensor.param = bytes_of(plain);
    tensor.grad = grad_view(grad_array, entry.order);
    tensor.options = options.values();
    for (std::size_t i = 0; i < static_cast<std::size_t>(update().state_count); ++i) {
        if (!options.uses_state(static_cast<int>(i))) continue;
        const std::string what = update().states[i] + (" of '" + parameter.name + "'");
        std::optional<py::array> state = parameter.states[i];
        if (!state) {
            state = entry.created[i] = zeros_like(param);
            tensor.fresh = true;
        } else {
            float_array(*state, what);
            require_twin(*state, what, param, parameter.what);
        }
        overlap.add(*state, what, true);
        tensor.state[i] = bytes_of(*state);
        entry.states[i] = {*state, dtype};
    }
    stepper_.tensors.push_back(std::move(tensor));
}

py::array Plan::check_grad(py::handle grad, const Parameter& parameter) const {
    py::array array = float_array(grad, parameter.grad_what);
    require_like(array, parameter.grad_what, parameter.param, parameter.what);
    if (zero_grads_) {
        require_writeable(array, parameter.grad_what);
        require_distinct_elements(array, parameter.grad_what);
    }
    return array;
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
