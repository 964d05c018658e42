#include "dlpack.hpp"

#include <dlfcn.h>
#include <pybind11/gil_safe_call_once.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "late.hpp"
#include "scalars.hpp"

namespace fastopt {
namespace dlpack {
namespace {

struct Version {
    std::uint32_t major, minor;
};

struct Managed {  // of producers that do not know versions
    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);
};

struct ManagedVersioned {
    Version version;
    void* context;
    void (*deleter)(ManagedVersioned*);
    std::uint64_t flags;
    Tensor tensor;
};

constexpr std::uint64_t read_only_flag = 1, copied_flag = 2;  // a write to a copy would be lost
constexpr std::uint32_t known_version = 1;

// What a type of torch offers in __dlpack_c_exchange_api__.
struct ExchangeApi {
    Version version;
    ExchangeApi* previous;
    void* functions_for_owners[3];
    int (*read)(void* object, Tensor* out);  // may be nullptr
    void* current_work_stream;
};

enum Code : std::uint8_t {
    integer = 0,
    unsigned_integer = 1,
    floating = 2,
    bfloat = 4,
    complex = 5,
    boolean = 6
};

// The CPU, memory of the CPU that a GPU can read, and memory that both share.
bool is_on_cpu(Device device) {
    constexpr std::int32_t types[] = {1, 3, 11, 13};
    return std::find(std::begin(types), std::end(types), device.type) != std::end(types);
}

bool is_contiguous(const Tensor& tensor) {
    std::int64_t expected = 1;
    for (std::int32_t axis = tensor.ndim; axis-- > 0 && tensor.strides != nullptr;) {
        if (tensor.shape[axis] != 1 && tensor.strides[axis] != expected) return false;
        expected *= tensor.shape[axis];
    }
    return true;
}

}  // namespace

std::size_t element_count(const Tensor& tensor) {
    std::size_t count = 1;
    for (std::int32_t axis = 0; axis < tensor.ndim; ++axis)
        count *= static_cast<std::size_t>(tensor.shape[axis]);
    return count;
}

char kind_of(DataType type) {
    if (type.lanes != 1) return 'V';
    switch (type.code) {
        case integer: return 'i';
        case unsigned_integer: return 'u';
        case floating: return 'f';
        case complex: return 'c';
        case boolean: return type.bits == 8 ? 'b' : 'V';
        default: return 'V';
    }
}

}  // namespace dlpack

namespace torch {
namespace {

// They live as long as the process, as torch does.
struct Types {
    PyTypeObject* tensor = nullptr;
    PyTypeObject* parameter = nullptr;
    PyObject* is_grad_enabled = nullptr;
    int (*read)(void*, dlpack::Tensor*) = nullptr;  // torch < 2.10 has none
};

PyObject* interned(const char* text) {
    return new_object(PyUnicode_InternFromString(text)).release().ptr();
}

const Types* find_types(Types& found) {
    static PyObject* const name = interned("torch");
    const auto module = py::reinterpret_steal<py::object>(PyImport_GetModule(name));
    if (!module) {
        PyErr_Clear();
        return nullptr;
    }
    const py::object tensor = attribute(module, "Tensor"),
                     enabled = attribute(module, "is_grad_enabled");
    const py::object nn = attribute(module, "nn");
    const py::object parameter = nn ? attribute(nn, "Parameter") : py::object();
    if (!tensor || !enabled || !parameter || !PyType_Check(tensor.ptr()) ||
        !PyType_Check(parameter.ptr()))
        return nullptr;  // torch is being imported
    if (const py::object capsule = attribute(tensor, "__dlpack_c_exchange_api__");
        capsule && PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api") != 0) {
        const auto* api = static_cast<const dlpack::ExchangeApi*>(
            PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        while (api != nullptr && api->version.major > dlpack::known_version) api = api->previous;
        if (api != nullptr && api->version.major == dlpack::known_version) found.read = api->read;
    }
    found.parameter = reinterpret_cast<PyTypeObject*>(py::object(parameter).release().ptr());
    found.is_grad_enabled = py::object(enabled).release().ptr();
    found.tensor = reinterpret_cast<PyTypeObject*>(py::object(tensor).release().ptr());
    return &found;
}

const Types* types() {
    static Types found;
    return found.tensor != nullptr ? &found : find_types(found);
}

bool is_plain(const Types& types, PyObject* object) {
    return Py_TYPE(object) == types.tensor || Py_TYPE(object) == types.parameter;
}

// Reads tensors through the stable C interface of libtorch, which takes the address of an
// at::Tensor. It counts no reference, as the function of DLPack does, which takes longer than all
// else.
class Getters {
public:
    // `tensor`: any that is_plain. Its content shows whether an object begins with an at::Tensor.
    explicit Getters(PyObject* tensor) {
        const py::object content = attribute(tensor, "_cdata");
        void* const library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
        if (!content || library == nullptr) return;
        works_ = PyLong_AsVoidPtr(content.ptr()) == *static_cast<void**>(content_of(tensor));
        PyErr_Clear();
        const auto find = [&](auto& function, const char* name) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
            works_ = works_ && function != nullptr;
        };
        const auto constant = [&](const char* name) {
            std::int32_t (*function)() = nullptr;
            find(function, name);
            return function == nullptr ? -1 : function();
        };
        find(device_, "aoti_torch_get_device_type");
        find(type_, "aoti_torch_get_dtype");
        find(axes_, "aoti_torch_get_dim");
        find(shape_, "aoti_torch_get_sizes");
        find(strides_, "aoti_torch_get_strides");
        find(data_, "torch_get_mutable_data_ptr");
        cpu_ = constant("aoti_torch_device_type_cpu");
        types_ = {{{constant("aoti_torch_dtype_float32"), {dlpack::floating, 32, 1}},
                   {constant("aoti_torch_dtype_bfloat16"), {dlpack::bfloat, 16, 1}},
                   {constant("aoti_torch_dtype_float16"), {dlpack::floating, 16, 1}},
                   {constant("aoti_torch_dtype_float64"), {dlpack::floating, 64, 1}},
                   {constant("aoti_torch_dtype_int16"), {dlpack::integer, 16, 1}},
                   {constant("aoti_torch_dtype_int64"), {dlpack::integer, 64, 1}}}};
    }

    // Returns false if it cannot tell; without an error of Python.
    bool read(PyObject* object, dlpack::Tensor& out) const {
        void* const tensor = content_of(object);
        std::int32_t device = 0, number = 0;
        std::int64_t axes = 0;
        // What is not dense, such as a sparse tensor, has no pointer.
        if (!works_ || device_(tensor, &device) != 0 || device != cpu_ ||
            type_(tensor, &number) != 0 || axes_(tensor, &axes) != 0 ||
            shape_(tensor, &out.shape) != 0 || strides_(tensor, &out.strides) != 0 ||
            data_(tensor, &out.data) != 0 || out.data == nullptr)
            return false;
        const auto is_it = [number](const auto& type) { return type.first == number; };
        const auto* const type = std::find_if(types_.begin(), types_.end(), is_it);
        if (type == types_.end()) return false;
        out.dtype = type->second;
        out.device = {1, 0};
        out.ndim = static_cast<std::int32_t>(axes);
        out.byte_offset = 0;
        return true;
    }

private:
    static void* content_of(PyObject* tensor) { return tensor + 1; }

    bool works_ = false;
    int (*device_)(void*, std::int32_t*) = nullptr;
    int (*type_)(void*, std::int32_t*) = nullptr;
    int (*axes_)(void*, std::int64_t*) = nullptr;
    int (*shape_)(void*, std::int64_t**) = nullptr;
    int (*strides_)(void*, std::int64_t**) = nullptr;
    int (*data_)(void*, void**) = nullptr;
    std::int32_t cpu_ = 0;
    std::array<std::pair<std::int32_t, dlpack::DataType>, 6> types_{};
};

// Whether the tensor negates what is in its memory, as the imaginary part of a conjugate does.
bool may_be_negated(PyObject* object) {
    static PyObject* const is_neg = interned("is_neg");
    const auto answer =
        py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object, is_neg));
    if (!answer) PyErr_Clear();
    return answer.ptr() != Py_False;
}

// The tensor in which the elements of a tensor are: the local one of a DTensor. A null object for
// another subclass.
py::object holder(const Types& types, PyObject* object) {
    if (is_plain(types, object)) return py::reinterpret_borrow<py::object>(object);
    if (std::string_view(Py_TYPE(object)->tp_name) != "DTensor") return {};
    const py::object local = attribute(object, "_local_tensor");
    return local && is_plain(types, local.ptr()) ? local : py::object();
}

}  // namespace

bool is_distributed(py::handle object) {
    const Types* const known = types();
    return known != nullptr && !is_plain(*known, object.ptr()) && is_tensor(object);
}

bool is_tensor(py::handle object) {
    const Types* const known = types();
    return known != nullptr && PyObject_TypeCheck(object.ptr(), known->tensor) != 0;
}

bool requires_grad(py::handle object) {
    static PyObject* const name = interned("requires_grad");
    return is_tensor(object) && new_object(PyObject_GetAttr(object.ptr(), name)).ptr() == Py_True;
}

bool grad_enabled() {
    const Types* const known = types();
    if (known == nullptr) return false;
    const auto answer =
        py::reinterpret_steal<py::object>(PyObject_CallNoArgs(known->is_grad_enabled));
    if (!answer) throw py::error_already_set();
    return answer.ptr() == Py_True;
}

bool read_again(PyObject* object, dlpack::Tensor& out) {
    const Types* const known = types();
    if (known == nullptr || !is_plain(*known, object)) return read(object, out, false);
    static const Getters getters(object);
    return getters.read(object, out) || read(object, out, false);
}

bool read(PyObject* object, dlpack::Tensor& out, bool may_negate) {
    const Types* const known = types();
    if (known == nullptr || known->read == nullptr) return false;
    if (!is_plain(*known, object)) {
        const py::object local = is_tensor(object) ? holder(*known, object) : py::object();
        return local && read(local.ptr(), out, may_negate);
    }
    if (known->read(object, &out) != 0) {  // a sparse tensor, say
        PyErr_Clear();
        return false;
    }
    if (!dlpack::is_on_cpu(out.device)) return false;
    out.data = static_cast<std::byte*>(out.data) + std::exchange(out.byte_offset, 0);
    const std::size_t count = dlpack::element_count(out);
    if (out.data == nullptr && count > 0) return false;
    // An imaginary part has a stride of 2. Only as_strided() hides it: as_array looks for that when
    // it sees a tensor for the first time.
    return !may_negate || (count > 1 && dlpack::is_contiguous(out)) || !may_be_negated(object);
}

}  // namespace torch

namespace dlpack {
namespace {

const py::object& own_bfloat16() {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> dtype;
    return dtype.call_once_and_store_result([]() -> py::object { return py::dtype("V2"); })
        .get_stored();
}

// The dtype of NumPy for these elements; a null object if there is none.
py::object dtype_of(DataType type) {
    if (type == DataType{bfloat, 16, 1}) return own_bfloat16();
    const char kind = kind_of(type);
    if (kind == 'b') return py::dtype("?");
    const int smallest = kind == 'f' ? 16 : kind == 'c' ? 64 : 8, largest = kind == 'c' ? 128 : 64;
    const bool is_power = (type.bits & (type.bits - 1)) == 0;
    if (kind == 'V' || !is_power || type.bits < smallest || type.bits > largest) return {};
    return py::dtype(kind + std::to_string(type.bits / 8));
}

constexpr const char* owner_name = "fastopt.dlpack";

// Owns a tensor of DLPack that an array shows.
template <class Owner>
py::capsule owned(Owner* managed) {
    return py::capsule(managed, owner_name, [](PyObject* capsule) {
        const py::error_scope scope;  // keeps an error of Python
        auto* const owner = static_cast<Owner*>(PyCapsule_GetPointer(capsule, owner_name));
        if (owner->deleter != nullptr) owner->deleter(owner);
    });
}

// A NumPy array of the same memory, which `base` keeps.
py::array view(const Tensor& tensor, const py::object& base, bool writeable,
               const std::string& what, const py::handle& object) {
    const py::object dtype = dtype_of(tensor.dtype);
    if (!dtype) {
        const py::object given = attribute(object, "dtype");
        throw_error<py::type_error>("{} has dtype {}, which is not taken; convert it to float32",
                                    what, given ? given : py::str("of another library"));
    }
    constexpr std::int32_t most_axes = 32;
    const auto axes = static_cast<std::size_t>(std::max(0, tensor.ndim));
    if (tensor.ndim < 0 || tensor.ndim > most_axes)
        throw_error<py::value_error>("{} has {} dimensions; there can be 0 to {}", what,
                                     tensor.ndim, most_axes);
    if (axes > 0 && tensor.shape == nullptr)
        throw_error<py::value_error>("{} has dimensions but no shape", what);
    std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + axes), strides(axes);
    const auto size = static_cast<py::ssize_t>(tensor.dtype.bits / 8);
    py::ssize_t stride = size;
    bool overflow = false;
    for (std::size_t axis = axes; axis-- > 0;) {
        if (shape[axis] < 0)
            throw_error<py::value_error>("{} has a shape with a negative number, {}", what,
                                         shape[axis]);
        strides[axis] = stride;
        if (tensor.strides != nullptr)
            overflow |= __builtin_mul_overflow(tensor.strides[axis], size, &strides[axis]);
        overflow |= __builtin_mul_overflow(stride, std::max<py::ssize_t>(1, shape[axis]), &stride);
    }
    if (overflow) throw_error<py::value_error>("{} has a shape or strides beyond 64 bits", what);
    if (tensor.data == nullptr && element_count(tensor) > 0)
        throw_error<py::value_error>("{} has elements but no memory", what);
    alignas(std::max_align_t) static constexpr std::byte nothing{};  // NumPy would allocate memory
    const auto* const data = tensor.data == nullptr
                                 ? &nothing
                                 : static_cast<const std::byte*>(tensor.data) + tensor.byte_offset;
    py::array array(py::reinterpret_borrow<py::dtype>(dtype), std::move(shape), std::move(strides),
                    data, base);
    using Api = py::detail::npy_api;
    int& flags = py::detail::array_proxy(array.ptr())->flags;
    if (!writeable) flags &= ~Api::NPY_ARRAY_WRITEABLE_;
    // NumPy does not know the alignment of our bfloat16.
    if (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::size_t>(size) != 0)
        flags &= ~Api::NPY_ARRAY_ALIGNED_;
    return array;
}

[[noreturn]] void throw_elsewhere(const std::string& what, const py::object& device) {
    throw_error<py::type_error>("{} is on device {}; copy it to the CPU, as with .cpu()", what,
                                short_repr(device));
}

// Throws what is wrong with a tensor that torch::read does not read.
[[noreturn]] void throw_unread(py::handle tensor, const std::string& what) {
    const py::object device = tensor.attr("device");
    const std::string kind = py::str(device.attr("type"));
    if (kind == "meta")
        throw_error<py::type_error>("{} is on device meta, so it has no elements", what);
    if (kind != "cpu")
        throw_error<py::type_error>("{} is on device {}; copy it to the CPU with .cpu()", what,
                                    py::str(device));
    if (const std::string layout = py::str(tensor.attr("layout")); layout != "torch.strided")
        throw_error<py::type_error>("{} is a tensor of layout {}; convert it with .to_dense()",
                                    what, layout);
    if (!torch::holder(*torch::types(), tensor.ptr()))
        throw_error<py::type_error>(
            "{} is a {}, a subclass of Tensor whose memory may be elsewhere; pass a plain tensor",
            what, type_name(tensor));
    if (torch::may_be_negated(tensor.ptr()))
        throw_error<py::value_error>("{} is a negated view; convert it with .resolve_neg()", what);
    throw_error<py::type_error>(
        "{} is a tensor without plain memory (of torch.func, nested or quantized?); pass a plain "
        "tensor",
        what);
}

// Takes what the capsule holds.
template <class Owner>
py::array take(const py::capsule& capsule, const char* new_name, bool writeable,
               const std::string& what, py::handle object) {
    auto* const managed = capsule.get_pointer<Owner>();
    const py::capsule owner = owned(managed);
    PyCapsule_SetName(capsule.ptr(), new_name);  // cannot fail: the capsule is valid
    if constexpr (requires { managed->flags; }) {
        if (managed->version.major > known_version)
            throw_error<py::type_error>("{} comes as DLPack {}.{}; there can be 1.x", what,
                                        managed->version.major, managed->version.minor);
        writeable = writeable && (managed->flags & (read_only_flag | copied_flag)) == 0;
    }
    const Device device = managed->tensor.device;
    if (!is_on_cpu(device)) throw_elsewhere(what, py::make_tuple(device.type, device.id));
    return view(managed->tensor, owner, writeable, what, object);
}

// A capsule without a version does not say whether its memory may be written.
py::array from_capsule(py::handle object, const py::object& given, const std::string& what,
                       bool writeable, bool writeable_without_version) {
    const auto is = [&](const char* name) { return PyCapsule_IsValid(given.ptr(), name) != 0; };
    const bool versioned = is("dltensor_versioned");
    if (!versioned && !is("dltensor"))
        throw_error<py::type_error>("{} has a __dlpack__ that returns no unused capsule of DLPack",
                                    what);
    const auto capsule = py::reinterpret_borrow<py::capsule>(given);
    return versioned
               ? take<ManagedVersioned>(capsule, "used_dltensor_versioned", writeable, what, object)
               : take<Managed>(capsule, "used_dltensor", writeable_without_version, what, object);
}

// The result of a call of the object's code. Its errors become a TypeError with `what`.
template <class Call>
py::object answer(const py::object& object, const std::string& what, Call call) {
    try {
        return call();
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw;
        const std::string message =
            what + " is a " + type_name(object) + " that does not give its memory (" +
            short_text(py::str(error.value())) + "); convert it with np.asarray(" +
            (what.find(' ') == std::string::npos ? what : "...") + ")";
        py::raise_from(error, PyExc_TypeError, message.c_str());
        throw py::error_already_set();
    }
}

// The result of __dlpack__, of version 1 if the producer knows versions.
py::object capsule_of(const py::object& object, const std::string& what) {
    return answer(object, what, [&] {
        const py::object method = object.attr("__dlpack__");
        try {
            return method(py::arg("max_version") = py::make_tuple(known_version, 0));
        } catch (py::error_already_set& error) {
            if (!error.matches(PyExc_TypeError)) throw;
        }
        return method();
    });
}

// Throws if the object says that its memory is on another device.
void require_on_cpu(const py::object& object, const std::string& what) {
    const py::object pair = answer(object, what, [&] {
        const py::object method = attribute(object, "__dlpack_device__");
        return method ? method() : py::none();
    });
    if (pair.is_none()) return;  // the capsule will say it
    const bool is_device = py::isinstance<py::tuple>(pair) && py::len(pair) == 2;
    const py::object type = is_device ? py::object(pair[py::int_(0)]) : py::none();
    if (PyIndex_Check(type.ptr()) == 0)
        throw_error<py::type_error>("{} has a __dlpack_device__ that returns no device", what);
    const auto number = static_cast<std::int32_t>(as_integer(type, what + "'s device"));
    if (!is_on_cpu({number, 0})) throw_elsewhere(what, pair);
}

}  // namespace
}  // namespace dlpack

bool owns_capsule(const py::array& array) {
    const py::object base = array.base();
    return base && PyCapsule_IsValid(base.ptr(), dlpack::owner_name) != 0;
}

bool is_own_bfloat16(const py::dtype& dtype) { return dtype.is(dlpack::own_bfloat16()); }

py::object as_array(py::handle object, const std::string& what, bool despite_grad) {
    if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::object>(object);
    auto given = py::reinterpret_borrow<py::object>(object);
    if (torch::is_tensor(object)) {
        // A tensor that requires a gradient may be written only where none is recorded.
        const bool writeable =
            despite_grad || !torch::grad_enabled() || !torch::requires_grad(object);
        const py::object holder = torch::holder(*torch::types(), object.ptr());
        if (!holder || torch::may_be_negated(holder.ptr())) dlpack::throw_unread(object, what);
        dlpack::Tensor tensor;
        if (torch::read(object.ptr(), tensor))
            return dlpack::view(tensor, given, writeable, what, object);
        if (torch::types()->read != nullptr ||
            std::string(py::str(object.attr("device").attr("type"))) != "cpu")
            dlpack::throw_unread(object, what);
        return dlpack::from_capsule(object, dlpack::capsule_of(holder.attr("detach")(), what), what,
                                    writeable, writeable);
    }
    if (PyType_Check(object.ptr()) || !py::hasattr(py::type::of(object), "__dlpack__"))
        return given;
    dlpack::require_on_cpu(given, what);
    return dlpack::from_capsule(object, dlpack::capsule_of(given, what), what, true, false);
}

}  // namespace fastopt
