// Checks of NumPy arrays, and their views for the runtime.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../kernels/table.hpp"
#include "../runtime/strided.hpp"

namespace fastopt {

namespace py = pybind11;

// What an array is for. An input of the wrong kind can be converted. A result must be allocated
// anew: nobody would see what is written to a copy.
enum class Purpose {
    input,
    result
};

// The element types that are taken.
enum class Taken {
    arithmetic,  // float32 and float64
    all          // and bfloat16 and float16
};

// `object` as an array of such a type that C++ can read: native byte order, aligned. `what` names
// it in messages. Throws TypeError or ValueError. A subclass gives a view as a plain array, so that
// methods of the subclass are not called. An array of another library gives a view, too.
py::array float_array(py::handle object, const std::string& what, Purpose purpose = Purpose::input,
                      Taken taken = Taken::all);

// Throws ValueError unless the array has native byte order and is aligned.
void require_native(const py::array& array, const std::string& what,
                    Purpose purpose = Purpose::input);

// A plain NumPy array: the array itself, or a view of a subclass or of another library's array.
py::array plain_array(py::handle array);

const char* name_of(Type type);
// The call that converts an array to this type, for messages: .astype(...), or .to(...) of a
// tensor.
std::string conversion(const py::array& array, Type type);

// The name of its dtype for messages.
std::string dtype_name(const py::array& array);

// Throws TypeError: `what` is not an array. `taken` describes what it should be: "a NumPy array of
// ...".
[[noreturn]] void throw_no_array(py::handle object, const std::string& what,
                                 const std::string& taken, const char* dtype = ", np.float32",
                                 Purpose purpose = Purpose::input);

// Throws TypeError if it is a masked array.
void require_no_mask(py::handle object, const std::string& what);

// Whether both arrays have the same elements in memory in the same order.
bool same_elements(const py::array& a, const py::array& b);

// The type of the elements; none if it is not one of ours. bfloat16 comes from another package, and
// is known by its name.
std::optional<Type> find_type(const py::dtype& dtype);
Type type_of(const py::array& array);  // of a result of float_array
// The dtype of such elements: that of `model`, if it has the type. Throws ModuleNotFoundError if
// bfloat16 is not there.
py::dtype dtype_of(Type type, const py::array& model);
std::string describe_shape(const py::array& array);
std::string type_name(py::handle object);  // for messages
bool is_numpy_scalar(py::handle object);
// The index of the element with this number in C order: "[1, 2]", and "[()]" without axes.
std::string describe_place(std::size_t number, const py::handle& shape);

// Throws ValueError unless the array may be written and has no gaps.
void require_writeable(const py::array& array, const std::string& what);
bool is_dense(const py::array& array);
void require_dense(const py::array& array, const std::string& what);

// `object` as an array that is dense and may be written.
py::array parameter_array(py::handle object, const std::string& what, Taken taken = Taken::all);

// Throws unless `array` has the element type (TypeError) of `model`, and its shape (ValueError).
void require_type(const py::array& array, const std::string& what, const py::array& model,
                  const std::string& model_what, Purpose purpose = Purpose::input);
void require_like(const py::array& array, const std::string& what, const py::array& model,
                  const std::string& model_what, Purpose purpose = Purpose::input);

// Throws ValueError if an element is finite but too large for the arithmetic of `model`.
void require_range(const py::array& array, const std::string& what, const py::array& model,
                   const std::string& model_what);

// Throws ValueError unless `array` has the shape of `model`.
void require_same_shape(const py::array& array, const std::string& what, const py::array& model,
                        const std::string& model_what);

// Whether `array` is contiguous in the memory order of `model`, which has its shape and is dense.
bool has_order(const py::array& array, const py::array& model);

// Throws ValueError unless `array` can be written and has the shape and the memory order of
// `model`. Both are dense.
void require_twin(const py::array& array, const std::string& what, const py::array& model,
                  const std::string& model_what);

// The axes of a dense array from the slowest to the fastest in memory.
std::vector<py::ssize_t> memory_order(const py::array& dense);

// Throws ValueError if two elements of the array share memory.
void require_distinct_elements(const py::array& array, const std::string& what);

// The bytes from the first to the last element of an array of any strides.
std::pair<const std::byte*, const std::byte*> extent(const py::array& array);

// Reads `array` in the given order of its axes.
StridedReader reader(const py::array& array, const std::vector<py::ssize_t>& order);
StridedReader c_order_reader(const py::array& array);
// Reads `array` as if it were broadcast to the shape of `model`.
StridedReader broadcast_reader(const py::array& array, const py::array& model);

// The array as runs of positions with classes along `axis`. The strides must allow it: it must be
// possible to merge the axes before `axis` into one, and those after it too.
std::optional<ClassArray> class_array(const py::array& array, py::ssize_t axis);

// A C-contiguous array with the shape and element type of `model`, for a result; not zeroed.
py::array empty_like(const py::array& model);
py::array empty_like(const py::array& model, Type type);  // of another element type

// The array itself, or a C-contiguous copy that is rounded to another element type.
py::array as_type(const py::array& array, Type type);

// Rounds an array into a dense one of the same shape; to 16 bits by way of float32.
void copy_rounded(const py::array& from, const py::array& to);

// Why float32 limits what goes with this array, for a message: "the dtype of input".
std::string float32_reason(const py::array& model, const std::string& what);

// A dense array of zeros with the shape and memory order of `model`.
py::array zeros_like(const py::array& model, const py::dtype& dtype);

// A dense copy of `array`, which has the shape of `model`, in the memory order of `model`.
py::array copy_like(const py::array& array, const py::array& model);

// Copies between an array of any strides and a dense one of the same shape and dtype.
void copy_to_dense(const py::array& array, const py::array& dense);
void copy_from_dense(const py::array& dense, const py::array& array);

// A dense copy in the type of the arithmetic.
py::array wide_copy(const py::array& array);

struct NamedArray {
    std::string what;
    py::array array;
};

// `object` as an array for a result, with the element type and shape of `model`. It may be
// written, and it shares no memory with the arrays that are read. It may be one of the first
// `replaceable` of these, element by element: the result then replaces what was read.
// Callers check its strides.
py::array check_out(py::handle object, const std::string& what, const NamedArray& model,
                    const std::vector<NamedArray>& read, std::size_t replaceable);

// A set of arrays. A written array of the set must not share memory with another array of it.
class OverlapCheck {
public:
    OverlapCheck() = default;
    // `written`: what the arrays that are written are for.
    explicit OverlapCheck(Purpose written) : purpose_(written) {}
    void add(const py::array& array, std::string what, bool written);
    void run();  // throws ValueError naming two arrays

    // The extents of the written arrays, sorted; after run() they are disjoint.
    std::vector<std::pair<const std::byte*, const std::byte*>> written() const;

private:
    struct Extent {
        const std::byte* begin;
        const std::byte* end;
        bool written;
        py::array array;
        std::string what;
    };
    [[noreturn]] void throw_overlap(const Extent& a, const Extent& b) const;
    Purpose purpose_ = Purpose::input;
    std::vector<Extent> extents_;
};

}  // namespace fastopt
