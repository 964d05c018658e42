// Turns Python objects into numbers, flags and texts, and into words of messages.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "../runtime/run_norm.hpp"

namespace fastopt {

namespace py = pybind11;

// Throws an error with a message made by str.format.
template <class Error, class... Values>
[[noreturn]] void throw_error(const char* pattern, const Values&... values) {
    throw Error(std::string(py::str(pattern).format(values...)));
}

// `name` is the name of the argument. Each throws TypeError if the object is of another kind. Other
// exceptions from the code of the object pass through.

// A float, an int, a NumPy scalar of these, an array of them without axes, or an object with
// __float__, but not a bool. Throws ValueError for numbers beyond float64. `taken` describes the
// accepted values in messages.
double as_number(py::handle value, std::string_view name, const char* taken = "a number");

// True, False, a NumPy bool, or a number that is 0 or 1. Throws ValueError for other numbers.
bool as_flag(py::handle value, std::string_view name);

// An object with __index__, but not a bool. Throws ValueError beyond 64 bits.
std::int64_t as_integer(py::handle value, std::string_view name);

// In UTF-8; lone surrogates and control characters are escaped.
std::string as_text(py::handle value, std::string_view name);

// 2 or infinity.
NormType as_norm_type(py::handle value, std::string_view name);

// The repr for messages: at most some 80 characters, and only a part of an array or a long list. If
// the repr of the object raises an Exception other than MemoryError, it is the name of the type.
std::string short_repr(py::handle value);

// A str as one line of UTF-8, cut after 80 characters; lone surrogates and control characters are
// escaped.
std::string short_text(py::handle text);

// A number and its noun: 1 group, 2 groups.
std::string counted(std::size_t number, const char* singular);

// An attribute, or a null object if it does not exist. Other exceptions pass through.
py::object attribute(py::handle object, const char* name);

}  // namespace fastopt
