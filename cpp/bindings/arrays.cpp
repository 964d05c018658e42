// Checks of NumPy arrays: every message names the array, what is wrong and the way out.
#include "arrays.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string_view>

#include "../runtime/grid.hpp"
#include "../runtime/isa.hpp"
#include "../runtime/result_memory.hpp"
#include "../runtime/thread_pool.hpp"
#include "dlpack.hpp"
#include "scalars.hpp"

namespace fastopt {
namespace {

constexpr int float32_number = 11;  // NPY_FLOAT, NPY_DOUBLE: part of NumPy's stable ABI
constexpr int float64_number = 12;
constexpr int float16_number = 23;
constexpr int first_user_number = 256;  // of the types that other packages add

constexpr double rounds_to_infinity = 0x1.ffffffp127;  // or more, in float32

// The element type in the code that a message proposes.
std::string dtype_code(Type type) {
    constexpr const char* codes[] = {"np.float32", "np.float64", "ml_dtypes.bfloat16",
                                     "np.float16"};
    static_assert(std::size(codes) == type_count);
    return codes[static_cast<int>(type)];
}

bool is_of_tensor(const py::array& array) {
    const py::object base = array.base();
    return base && torch::is_tensor(base);
}

bool share_memory(const py::array& a, const py::array& b) {
    return py::module_::import("numpy").attr("shares_memory")(a, b).cast<bool>();
}

void free_memory(void* memory) {
    const std::unique_ptr<Memory> held(static_cast<Memory*>(memory));
    give_back(*held);
}

constexpr const char* allocate = "; allocate it with np.empty";

// The way out for an array of the wrong kind.
std::string convert(Purpose purpose, const std::string& call) {
    return purpose == Purpose::result ? allocate : "; convert it with " + call;
}

}  // namespace

std::string dtype_name(const py::array& array) {
    if (is_own_bfloat16(array.dtype())) return "bfloat16";
    return short_text(py::str(py::object(array.dtype())));
}

const char* name_of(Type type) {
    constexpr const char* names[] = {"float32", "float64", "bfloat16", "float16"};
    static_assert(std::size(names) == type_count);
    return names[static_cast<int>(type)];
}

std::string conversion(const py::array& array, Type type) {
    if (is_of_tensor(array)) return std::string(".to(torch.") + name_of(type) + ")";
    return ".astype(" + dtype_code(type) + ")";
}

py::array plain_array(py::handle array) {
    const auto& numpy = py::detail::npy_api::get();
    if (Py_TYPE(array.ptr()) == numpy.PyArray_Type_)
        return py::reinterpret_borrow<py::array>(array);
    if (!py::isinstance<py::array>(array)) return as_array(array, "the array");
    auto view = py::reinterpret_steal<py::array>(numpy.PyArray_FromAny_(
        array.ptr(), nullptr, 0, 0, py::detail::npy_api::NPY_ARRAY_ENSUREARRAY_, nullptr));
    if (!view) throw py::error_already_set();
    return view;
}

void throw_no_array(py::handle object, const std::string& what, const std::string& taken,
                    const char* dtype, Purpose purpose) {
    const py::type type = py::type::of(object);
    const auto offers = [&](const char* name) { return py::hasattr(type, name); };
    const std::string it = what.find(' ') == std::string::npos ? what : "...";
    std::string way_out;
    if (purpose == Purpose::result)
        way_out = allocate;
    else if (is_numpy_scalar(object))
        way_out = "; use np.array(" + it + ")";
    else if (offers("toarray"))
        way_out = "; convert it with .toarray()";
    else if (offers("to_numpy"))
        way_out = "; convert it with .to_numpy()";
    else if (offers("numpy"))
        way_out = "; convert it with .numpy()";
    else if (py::isinstance<py::str>(object) || py::isinstance<py::dict>(object))
        way_out = "; pass the array itself";
    else if (offers("__next__"))
        way_out = "; collect it with np.array(list(" + it + ")" + dtype + ")";
    else if (offers("__array__") || offers("__len__") || PyNumber_Check(object.ptr()) == 1)
        way_out = "; convert it with np.asarray(" + it + dtype + ")";
    throw_error<py::type_error>("{} must be {}, not {}{}", what, taken, type_name(object), way_out);
}

py::array float_array(py::handle given, const std::string& what, Purpose purpose, Taken taken) {
    const py::object object = as_array(given, what);
    const std::string taken_types =
        taken == Taken::all ? "float32, float64, bfloat16 or float16" : "float32 or float64";
    if (!py::isinstance<py::array>(object))
        throw_no_array(object, what, "a NumPy array of " + taken_types, ", np.float32", purpose);
    require_no_mask(object, what);
    const py::array array = plain_array(object);
    const py::dtype dtype = array.dtype();
    const std::optional<Type> type = find_type(dtype);
    if (!type || (is_16_bit(*type) && taken == Taken::arithmetic)) {
        std::string way_out = convert(purpose, conversion(array, Type::float32));
        if (purpose == Purpose::input && dtype.has_fields()) way_out = "; take one of its fields";
        if (purpose == Purpose::input && dtype.kind() == 'c') way_out = "; take its .real or .imag";
        throw_error<py::type_error>("{} must have dtype {}, not {}{}", what, taken_types,
                                    dtype_name(array), way_out);
    }
    require_native(array, what, purpose);
    return array;
}

void require_native(const py::array& array, const std::string& what, Purpose purpose) {
    const char order = array.dtype().byteorder();
    if (order != '=' && order != '|')
        throw_error<py::value_error>("{} is byte-swapped (dtype {}){}", what, dtype_name(array),
                                     convert(purpose, ".astype(dtype.newbyteorder('='))"));
    if ((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0)
        throw py::value_error(what + " is misaligned" +
                              convert(purpose, is_of_tensor(array) ? ".clone()" : ".copy()"));
}

bool is_numpy_scalar(py::handle object) {
    return py::isinstance(object, py::module_::import("numpy").attr("generic"));
}

std::string type_name(py::handle object) {
    const std::string_view full = Py_TYPE(object.ptr())->tp_name;  // runs no code of a metaclass
    const std::string name = short_text(py::str(std::string(full.substr(full.rfind('.') + 1))));
    return is_numpy_scalar(object) ? "a NumPy scalar (" + name + ")" : name;
}

std::string describe_place(std::size_t number, const py::handle& shape) {
    const py::object place = py::module_::import("numpy").attr("unravel_index")(number, shape);
    std::string where;
    for (const py::handle index : place)
        where += (where.empty() ? "" : ", ") + std::string(py::str(index));
    return "[" + (where.empty() ? "()" : where) + "]";
}

void require_no_mask(py::handle object, const std::string& what) {
    const bool subclass = Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_;
    if (subclass && py::hasattr(py::type::of(object), "mask"))
        throw py::type_error(what +
                             " is a masked array, whose mask would be ignored; pass its .data "
                             "or a filled copy");
}

bool same_elements(const py::array& a, const py::array& b) {
    bool same = a.data() == b.data() && a.ndim() == b.ndim();
    for (py::ssize_t axis = 0; same && axis < a.ndim(); ++axis)
        same = a.shape(axis) == b.shape(axis) &&
               (a.shape(axis) <= 1 || a.strides(axis) == b.strides(axis));
    return same;
}

std::optional<Type> find_type(const py::dtype& dtype) {
    static int bfloat16_number = 0;  // the last that was seen
    const int number = dtype.num();
    if (number == float32_number) return Type::float32;
    if (number == float64_number) return Type::float64;
    if (number == float16_number) return Type::float16;
    if (number < first_user_number)
        return is_own_bfloat16(dtype) ? std::optional(Type::bfloat16) : std::nullopt;
    if (number != bfloat16_number) {
        if (dtype.itemsize() != 2 || std::string(py::str(dtype.attr("name"))) != "bfloat16")
            return std::nullopt;
        bfloat16_number = number;
    }
    return Type::bfloat16;
}

Type type_of(const py::array& array) { return find_type(array.dtype()).value(); }

py::dtype dtype_of(Type type, const py::array& model) {
    if (type_of(model) == type && !is_own_bfloat16(model.dtype())) return model.dtype();
    if (type == Type::bfloat16)
        return py::dtype(py::module_::import("fastopt._storage").attr("bfloat16")());
    constexpr int numbers[] = {float32_number, float64_number, 0, float16_number};
    return py::dtype(numbers[static_cast<int>(type)]);
}

std::string describe_shape(const py::array& array) {
    return py::str(py::object(array.attr("shape")));
}

void require_writeable(const py::array& array, const std::string& what) {
    if (array.writeable()) return;
    if (is_of_tensor(array))
        throw_error<py::value_error>(
            "{} is a tensor that requires grad; write it within torch.no_grad()", what);
    if (owns_capsule(array))
        throw_error<py::value_error>(
            "{} is an array of another library that does not allow writes (a tensor that requires "
            "grad is written within torch.no_grad()); pass a NumPy array",
            what);
    throw py::value_error(what +
                          " is read-only; it is updated in place (pass a writeable "
                          "array, or set .flags.writeable)");
}

std::vector<py::ssize_t> memory_order(const py::array& array) {
    std::vector<py::ssize_t> axes(static_cast<std::size_t>(array.ndim()));
    std::iota(axes.begin(), axes.end(), 0);
    std::sort(axes.begin(), axes.end(), [&](py::ssize_t a, py::ssize_t b) {
        return array.strides(a) != array.strides(b) ? array.strides(a) > array.strides(b) : a < b;
    });
    return axes;
}

bool is_dense(const py::array& array) {
    if (array.size() == 0) return true;
    const auto order = memory_order(array);
    py::ssize_t expected = array.itemsize();
    for (std::size_t i = order.size(); i-- > 0;) {
        const py::ssize_t size = array.shape(order[i]);
        if (size == 1) continue;
        if (array.strides(order[i]) != expected) return false;
        expected *= size;
    }
    return true;
}

void require_dense(const py::array& array, const std::string& what) {
    if (is_dense(array)) return;
    throw_error<py::value_error>(
        "{} is not dense in memory (strides {} for shape {}); keep it in a separate array, "
        "not in a strided view",
        what, py::object(array.attr("strides")), describe_shape(array));
}

py::array parameter_array(py::handle object, const std::string& what, Taken taken) {
    py::array array = float_array(object, what, Purpose::input, taken);
    require_writeable(array, what);
    require_dense(array, what);
    return array;
}

bool has_order(const py::array& array, const py::array& model) {
    return reader(array, memory_order(model)).contiguous();
}

void require_twin(const py::array& array, const std::string& what, const py::array& model,
                  const std::string& model_what) {
    require_same_shape(array, what, model, model_what);
    require_writeable(array, what);
    require_dense(array, what);
    if (!has_order(array, model))
        throw_error<py::value_error>(
            "{} is laid out otherwise in memory than {}; give both the same order", what,
            model_what);
}

void require_type(const py::array& array, const std::string& what, const py::array& model,
                  const std::string& model_what, Purpose purpose) {
    if (type_of(array) == type_of(model)) return;
    std::string way_out = convert(purpose, conversion(array, type_of(model)));
    if (purpose == Purpose::result)
        way_out += "(" + model_what + ".shape, " + model_what + ".dtype)";
    throw_error<py::type_error>("{} has dtype {} but {} has {}{}", what, dtype_name(array),
                                model_what, dtype_name(model), way_out);
}

void require_like(const py::array& array, const std::string& what, const py::array& model,
                  const std::string& model_what, Purpose purpose) {
    require_type(array, what, model, model_what, purpose);
    require_same_shape(array, what, model, model_what);
}

void require_same_shape(const py::array& array, const std::string& what, const py::array& model,
                        const std::string& model_what) {
    if (array.ndim() != model.ndim() ||
        !std::equal(array.shape(), array.shape() + array.ndim(), model.shape()))
        throw_error<py::value_error>("{} has shape {} but {} has shape {}; they must be equal",
                                     what, describe_shape(array), model_what,
                                     describe_shape(model));
}

void require_range(const py::array& array, const std::string& what, const py::array& model,
                   const std::string& model_what) {
    if (type_of(array) != Type::float64 || type_of(model) == Type::float64) return;
    std::size_t number = 0;
    std::optional<std::size_t> found;
    const auto size = static_cast<std::size_t>(array.size());
    c_order_reader(array).each_run(0, size, [&](const std::byte* run, std::size_t count) {
        for (std::size_t i = 0; i < count; ++i, ++number) {
            double value;
            std::memcpy(&value, run + i * sizeof(value), sizeof(value));
            const bool too_large = std::abs(value) >= rounds_to_infinity && std::isfinite(value);
            if (too_large && !found) found = number;
        }
    });
    if (!found) return;
    const py::object shape = array.attr("shape");
    throw_error<py::value_error>(
        "{}{} is {!s}, too large for float32, {}", what, describe_place(*found, shape),
        py::object(array.attr("flat")[py::int_(*found)]), float32_reason(model, model_what));
}

std::string float32_reason(const py::array& model, const std::string& what) {
    if (!is_16_bit(type_of(model))) return "the dtype of " + what;
    return "which computes " + what + " of " + dtype_name(model);
}

StridedReader c_order_reader(const py::array& array) {
    std::vector<py::ssize_t> order(static_cast<std::size_t>(array.ndim()));
    std::iota(order.begin(), order.end(), 0);
    return reader(array, order);
}

StridedReader broadcast_reader(const py::array& array, const py::array& model) {
    std::vector<Dimension> dimensions;
    const py::ssize_t missing = model.ndim() - array.ndim();
    for (py::ssize_t axis = 0; axis < model.ndim(); ++axis) {
        const bool stays = axis >= missing && array.shape(axis - missing) != 1;
        dimensions.push_back({model.shape(axis), stays ? array.strides(axis - missing) : 0});
    }
    return {array.data(), dimensions, static_cast<std::size_t>(array.itemsize())};
}

StridedReader reader(const py::array& array, const std::vector<py::ssize_t>& order) {
    std::vector<Dimension> dimensions;
    dimensions.reserve(order.size());
    for (const py::ssize_t axis : order)
        dimensions.push_back({array.shape(axis), array.strides(axis)});
    return {array.data(), dimensions, static_cast<std::size_t>(array.itemsize())};
}

std::optional<ClassArray> class_array(const py::array& array, py::ssize_t axis) {
    const auto stride = [&](py::ssize_t a) { return array.strides(a) / array.itemsize(); };
    const bool empty = array.size() == 0;
    bool fits = true;
    // The stride of the axes in [begin, end), merged into one.
    const auto merged = [&](py::ssize_t begin, py::ssize_t end) {
        py::ssize_t size = 1, result = 0;
        for (py::ssize_t a = end - 1; a >= begin; --a) {
            if (array.shape(a) == 1) continue;
            if (size == 1) result = stride(a);
            fits = fits && (empty || stride(a) == size * result);
            size *= array.shape(a);
        }
        return result;
    };
    const ClassArray result{const_cast<void*>(array.data()), merged(0, axis),
                            merged(axis + 1, array.ndim()), stride(axis)};
    return fits ? std::optional(result) : std::nullopt;
}

py::array empty_like(const py::array& model) { return empty_like(model, type_of(model)); }

py::array empty_like(const py::array& model, Type type) {
    const auto size = static_cast<std::size_t>(model.size()) * size_of(type);
    const py::dtype dtype = dtype_of(type, model);
    if (size >= large_result) {
        std::unique_ptr<Memory, void (*)(void*)> memory(new Memory{}, free_memory);
        *memory = take_memory(size);
        if (memory->data != nullptr) {
            std::vector<py::ssize_t> shape(model.shape(), model.shape() + model.ndim());
            const py::capsule owner(memory.get(), free_memory);
            void* const data = memory.release()->data;
            return py::array(dtype, std::move(shape), data, owner);
        }
    }
    return py::module_::import("numpy").attr("empty")(model.attr("shape"), dtype);
}

py::array as_type(const py::array& array, Type type) {
    if (type_of(array) == type) return array;
    const py::array result = empty_like(array, type);
    copy_rounded(array, result);
    return result;
}

void copy_rounded(const py::array& from, const py::array& to) {
    const Type source = type_of(from), target = type_of(to);
    const Type middle = is_16_bit(source) || is_16_bit(target) ? Type::float32 : source;
    if (source != middle && target != middle) return copy_rounded(as_type(from, middle), to);
    auto* out = static_cast<std::byte*>(const_cast<void*>(to.data()));
    const auto convert = [&](const std::byte* run, std::size_t count) {
        const auto* const floats = reinterpret_cast<const float*>(run);
        const auto* const doubles = reinterpret_cast<const double*>(run);
        auto* const out_floats = reinterpret_cast<float*>(out);
        if (source == target)
            std::memcpy(out, run, count * size_of(target));
        else if (is_16_bit(source))
            update_kernels().widen[static_cast<int>(source)](run, count, out_floats);
        else if (is_16_bit(target))
            update_kernels().narrow[static_cast<int>(target)](floats, count, out);
        else if (target == Type::float32)
            std::transform(doubles, doubles + count, out_floats,
                           [](double x) { return static_cast<float>(x); });
        else
            std::copy_n(floats, count, reinterpret_cast<double*>(out));
        out += count * size_of(target);
    };
    const StridedReader elements = reader(from, memory_order(to));
    with_default_floating_point(
        [&] { elements.each_run(0, static_cast<std::size_t>(from.size()), convert); });
}

py::array zeros_like(const py::array& model, const py::dtype& dtype) {
    const auto order = memory_order(model);
    std::vector<py::ssize_t> strides(order.size());
    py::ssize_t stride = dtype.itemsize();
    for (std::size_t i = order.size(); i-- > 0;) {
        strides[static_cast<std::size_t>(order[i])] = stride;
        stride *= std::max<py::ssize_t>(1, model.shape(order[i]));
    }
    // New pages from the system are zero already, so they are not touched before the step.
    py::array zeros = py::module_::import("numpy").attr("zeros")(model.size(), dtype);
    return py::array(dtype, std::vector<py::ssize_t>(model.shape(), model.shape() + model.ndim()),
                     std::move(strides), zeros.mutable_data(), zeros);
}

py::array copy_like(const py::array& array, const py::array& model) {
    const auto type = find_type(array.dtype());
    const py::array copy = zeros_like(model, type ? dtype_of(*type, array) : array.dtype());
    copy_to_dense(array, copy);
    return copy;
}

void copy_to_dense(const py::array& array, const py::array& dense) {
    auto* to = static_cast<std::byte*>(const_cast<void*>(dense.data()));
    const auto size = static_cast<std::size_t>(array.itemsize());
    reader(array, memory_order(dense))
        .each_run(0, static_cast<std::size_t>(array.size()),
                  [&](const std::byte* run, std::size_t count) {
                      std::memcpy(to, run, count * size);
                      to += count * size;
                  });
}

void copy_from_dense(const py::array& dense, const py::array& array) {
    const auto* from = static_cast<const std::byte*>(dense.data());
    const auto size = static_cast<std::size_t>(array.itemsize());
    reader(array, memory_order(dense))
        .change_runs(0, static_cast<std::size_t>(array.size()),
                     [&](std::byte* run, std::size_t count) {
                         std::memcpy(run, from, count * size);
                         from += count * size;
                     });
}

py::array wide_copy(const py::array& array) {
    const Type type = type_of(array);
    if (!is_16_bit(type)) return copy_like(array, array);
    const py::array copy = zeros_like(array, dtype_of(Type::float32, array));
    update_kernels().widen[static_cast<int>(type)](
        array.data(), static_cast<std::size_t>(array.size()),
        static_cast<float*>(const_cast<void*>(copy.data())));
    return copy;
}

std::pair<const std::byte*, const std::byte*> extent(const py::array& array) {
    const auto* low = static_cast<const std::byte*>(array.data());
    if (array.size() == 0) return {low, low};
    const std::byte* high = low;
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
        const py::ssize_t reach = (array.shape(axis) - 1) * array.strides(axis);
        (reach < 0 ? low : high) += reach;
    }
    return {low, high + array.itemsize()};
}

void require_distinct_elements(const py::array& array, const std::string& what) {
    if (array.size() == 0) return;
    std::vector<std::pair<py::ssize_t, py::ssize_t>> steps;  // stride, size
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
        if (array.shape(axis) > 1)
            steps.emplace_back(std::abs(array.strides(axis)), array.shape(axis));
    std::sort(steps.begin(), steps.end());
    py::ssize_t reach = array.itemsize();
    for (const auto& [stride, size] : steps) {
        if (stride < reach)
            throw py::value_error(what +
                                  " has elements that share memory (a broadcast view?); it "
                                  "cannot be written");
        reach += stride * (size - 1);
    }
}

py::array check_out(py::handle object, const std::string& what, const NamedArray& model,
                    const std::vector<NamedArray>& read, std::size_t replaceable) {
    const py::array out = float_array(object, what, Purpose::result);
    require_like(out, what, model.array, model.what, Purpose::result);
    require_writeable(out, what);
    require_distinct_elements(out, what);
    OverlapCheck overlap(Purpose::result);
    overlap.add(out, what, true);
    for (std::size_t i = 0; i < read.size(); ++i)
        if (i >= replaceable || !same_elements(out, read[i].array))
            overlap.add(read[i].array, read[i].what, false);
    overlap.run();
    return out;
}

void OverlapCheck::throw_overlap(const Extent& a, const Extent& b) const {
    const bool are_tensors = is_of_tensor(a.array) && is_of_tensor(b.array);
    throw_error<py::value_error>(
        "{} and {} share memory; an array that is written must have separate memory ({})", a.what,
        b.what,
        purpose_ == Purpose::result ? "allocate out with np.empty_like"
        : are_tensors               ? "use .clone()"
                                    : "use .copy()");
}

void OverlapCheck::add(const py::array& array, std::string what, bool written) {
    const auto [begin, end] = extent(array);
    if (begin != end) extents_.push_back({begin, end, written, array, std::move(what)});
}

void OverlapCheck::run() {
    std::sort(extents_.begin(), extents_.end(),
              [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    // One sweep. `furthest` is the array with the highest end so far, `written` the written one.
    const Extent* furthest = nullptr;
    const Extent* written = nullptr;
    bool suspect = false;
    for (const Extent& extent : extents_) {
        const Extent* other = extent.written ? furthest : written;
        if (other != nullptr && extent.begin < other->end) {
            if (share_memory(extent.array, other->array)) throw_overlap(*other, extent);
            suspect = true;  // interleaved strided views
        }
        if (furthest == nullptr || extent.end > furthest->end) furthest = &extent;
        if (extent.written && (written == nullptr || extent.end > written->end)) written = &extent;
    }
    if (!suspect) return;
    for (const Extent& a : extents_)
        for (const Extent& b : extents_)
            if (&a < &b && (a.written || b.written) && b.begin < a.end &&
                share_memory(a.array, b.array))
                throw_overlap(a, b);
}

std::vector<std::pair<const std::byte*, const std::byte*>> OverlapCheck::written() const {
    std::vector<std::pair<const std::byte*, const std::byte*>> ranges;
    for (const Extent& extent : extents_)
        if (extent.written) ranges.emplace_back(extent.begin, extent.end);
    return ranges;
}

}  // namespace fastopt
