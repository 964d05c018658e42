// The one place that turns a Python object into a number, a flag or a text.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "../runtime/run_norm.hpp"

namespace fastopt {

namespace py = pybind11;

// `name` is that of the argument. Each throws TypeError if the object is of another kind, and
// passes on what user code in the object raises, but for a TypeError.

// A float, an int, a NumPy scalar of either, an array of one without axes, or what has __float__.
// Throws ValueError beyond float64.
double as_number(py::handle value, const std::string& name);

// True, False, NumPy's, or a number that is 0 or 1; ValueError for other numbers.
bool as_flag(py::handle value, const std::string& name);

// What has __index__. Throws ValueError beyond 64 bits.
std::int64_t as_integer(py::handle value, const std::string& name);

// In UTF-8; lone surrogates and control characters are escaped.
std::string as_text(py::handle value, const std::string& name);

// 2 or infinity.
NormType as_norm_type(py::handle value, const std::string& name);

// The repr for messages: of some 80 characters, and never all of an array or a long list. Where
// the object's own raises an Exception it is the type's name; MemoryError passes.
std::string short_repr(py::handle value);

// A str as one line of UTF-8, cut after 80 characters; lone surrogates and control characters are
// escaped.
std::string short_text(py::handle text);

// A number and its noun: 1 group, 2 groups.
std::string counted(std::size_t number, const char* singular);

// An attribute, or a null object if there is none; what else user code raises is thrown.
py::object attribute(py::handle object, const char* name);

}  // namespace fastopt
