// Arrays of other libraries, which are read where they are, by way of DLPack: torch's tensors, and
// any object with __dlpack__. Nothing is compiled against these libraries, and none is imported.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace fastopt {

namespace py = pybind11;

// The structs of DLPack 1.x, https://dmlc.github.io/dlpack/latest/c_api.html.
namespace dlpack {

struct Device {
    std::int32_t type, id;
};

struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
    bool operator==(const DataType&) const = default;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; may be nullptr for C order
    std::uint64_t byte_offset;
};

std::size_t element_count(const Tensor& tensor);
// The kind of elements by NumPy's letter: i, u, f, c or b; 'V' for others.
char kind_of(DataType type);

}  // namespace dlpack

// The types of torch, once the process has imported it.
namespace torch {

// Reads a tensor in the memory of the CPU without taking hold of it: `out` is valid as long as the
// tensor is. Returns false for every other object, also for subclasses of Tensor other than
// Parameter and DTensor, whose local tensor it reads, and for values that are not in the memory.
// With `may_negate` false, it is known that no bit of the tensor negates its elements.
bool read(PyObject* object, dlpack::Tensor& out, bool may_negate = true);

// Like read with `may_negate` false, and faster: for an object in the place of one that was read.
bool read_again(PyObject* object, dlpack::Tensor& out);

// Whether gradients are recorded, so that a tensor with requires_grad must not be written.
bool grad_enabled();

bool is_tensor(py::handle object);

// Whether it is a subclass of Tensor other than Parameter: of those that can be read, a DTensor.
bool is_distributed(py::handle object);
bool requires_grad(py::handle object);  // whether it is such a tensor

}  // namespace torch

// The dtype of bfloat16 from another library: two plain bytes, because NumPy has no such dtype
// without another package. It stays within the bindings.
bool is_own_bfloat16(const py::dtype& dtype);

// Whether the memory of an array is that of a DLPack capsule, which the array keeps.
bool owns_capsule(const py::array& array);

// An array of NumPy as it is, and an array of another library as a NumPy array of the same memory;
// any other object as it is. Throws TypeError or ValueError, with `what` as the name, if the memory
// cannot be read. The result is read-only if the other library does not allow writes. So it is for
// a tensor that requires a gradient where one is recorded, unless `despite_grad`.
py::object as_array(py::handle object, const std::string& what, bool despite_grad = false);

}  // namespace fastopt
