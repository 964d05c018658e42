#include "scalars.hpp"

#include <pybind11/numpy.h>

#include <algorithm>
#include <limits>
#include <string_view>

#include "arrays.hpp"
#include "dlpack.hpp"

namespace fastopt {
namespace {

constexpr py::ssize_t longest_repr = 80;

bool is_control(char c) { return static_cast<unsigned char>(c) < ' ' || c == 0x7f; }

// Removes control characters: a NUL would end the message.
std::string utf8(py::handle text) {
    const auto bytes = py::reinterpret_steal<py::bytes>(
        PyUnicode_AsEncodedString(text.ptr(), "utf-8", "backslashreplace"));
    if (!bytes) throw py::error_already_set();
    std::string escaped;
    for (const char c : std::string_view(bytes)) {
        if (is_control(c))
            (escaped += "\\x") += {"0123456789abcdef"[c / 16], "0123456789abcdef"[c % 16]};
        else
            escaped += c;
    }
    return escaped;
}

// reprlib shortens these. It looks only at the name of the class, which other classes may have.
bool is_container(py::handle value) {
    PyObject* const it = value.ptr();
    return PyList_CheckExact(it) || PyTuple_CheckExact(it) || PyDict_CheckExact(it) ||
           PyUnicode_CheckExact(it) || PyLong_CheckExact(it) || PyAnySet_CheckExact(it) ||
           py::type::of(value).is(py::module_::import("collections").attr("deque")) ||
           py::type::of(value).is(py::module_::import("array").attr("array"));
}

// Throws: the argument `name` must be what `taken` says.
template <class Error>
[[noreturn]] void throw_taken(py::handle value, std::string_view name, const char* taken) {
    throw_error<Error>("{} must be {}, not {}", name, taken, short_repr(value));
}

// Throws if the conversion has raised an exception: a TypeError with our message, a ValueError for
// a number that is too large, other exceptions unchanged.
void require_converted(py::handle value, std::string_view name, const char* taken,
                       const char* fitting) {
    if (!PyErr_Occurred()) return;
    const bool wrong_kind = PyErr_ExceptionMatches(PyExc_TypeError) != 0;
    if (!wrong_kind && PyErr_ExceptionMatches(PyExc_OverflowError) == 0)
        throw py::error_already_set();
    PyErr_Clear();
    if (wrong_kind) throw_taken<py::type_error>(value, name, taken);
    throw_taken<py::value_error>(value, name, fitting);
}

// Throws TypeError for objects that Python or NumPy would convert, but with a warning, with an
// error of its own or to an unintended number. `kinds` are the NumPy kinds of dtype that are
// taken.
void require_scalar(py::handle value, std::string_view name, const char* taken,
                    std::string_view kinds) {
    const auto is_taken = [&](char kind) { return kinds.find(kind) != std::string_view::npos; };
    if (PyComplex_Check(value.ptr()) || PyUnicode_Check(value.ptr()) ||
        (PyBool_Check(value.ptr()) && !is_taken('b')))
        throw_taken<py::type_error>(value, name, taken);
    const py::object axes = attribute(value, "ndim");
    if (!axes) return;
    const bool has_axes = PyLong_Check(axes.ptr()) && !axes.equal(py::int_(0));
    if (has_axes) throw_taken<py::type_error>(value, name, taken);
    if (!py::isinstance<py::array>(value) && !is_numpy_scalar(value)) return;
    require_no_mask(value, std::string(name));
    if (!is_taken(py::reinterpret_borrow<py::dtype>(value.attr("dtype")).kind()))
        throw_taken<py::type_error>(value, name, taken);
}

}  // namespace

double as_number(py::handle value, std::string_view name, const char* taken) {
    if (PyFloat_CheckExact(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
    if (torch::is_tensor(value) && value.attr("numel")().equal(py::int_(1)))
        return as_number(value.attr("item")(), name, taken);  // of a learning rate, say
    if (!PyLong_CheckExact(value.ptr())) require_scalar(value, name, taken, "iuf");
    const double number = PyFloat_AsDouble(value.ptr());
    if (number == -1.0) require_converted(value, name, taken, "within the range of float64");
    return number;
}

bool as_flag(py::handle value, std::string_view name) {
    if (PyBool_Check(value.ptr())) return value.ptr() == Py_True;
    constexpr const char* taken = "True or False";
    require_scalar(value, name, taken, "biuf");
    const double number = PyFloat_AsDouble(value.ptr());
    if (number == -1.0) require_converted(value, name, taken, taken);
    if (number != 0 && number != 1) throw_taken<py::value_error>(value, name, taken);
    return number == 1;
}

std::int64_t as_integer(py::handle value, std::string_view name) {
    constexpr const char* taken = "an integer";
    constexpr const char* fitting = "an integer of 64 bits";
    if (!PyLong_CheckExact(value.ptr())) require_scalar(value, name, taken, "iu");
    const auto integer = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!integer) require_converted(value, name, taken, fitting);
    const long long number = PyLong_AsLongLong(integer.ptr());
    if (number == -1) require_converted(value, name, taken, fitting);
    return number;
}

std::string as_text(py::handle value, std::string_view name) {
    if (!PyUnicode_Check(value.ptr())) throw_taken<py::type_error>(value, name, "a string");
    return utf8(value);
}

std::string short_text(py::handle text) {
    if (PyUnicode_IS_COMPACT_ASCII(text.ptr()) &&
        PyUnicode_GET_LENGTH(text.ptr()) <= longest_repr) {
        Py_ssize_t size = 0;
        const char* const start = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
        const std::string_view plain(start, static_cast<std::size_t>(size));
        const auto other = [](char c) { return c == ' ' || is_control(c); };
        if (std::none_of(plain.begin(), plain.end(), other)) return std::string(plain);
    }
    const py::object line = py::str(" ").attr("join")(text.attr("split")());
    const auto start =
        py::reinterpret_steal<py::object>(PyUnicode_Substring(line.ptr(), 0, longest_repr));
    if (!start) throw py::error_already_set();
    return utf8(start) + (py::len(line) > static_cast<std::size_t>(longest_repr) ? "..." : "");
}

NormType as_norm_type(py::handle value, std::string_view name) {
    constexpr const char* taken = "2 or inf";
    const double number = as_number(value, name, taken);
    if (number == 2.0) return NormType::two;
    if (number == std::numeric_limits<double>::infinity()) return NormType::inf;
    throw_taken<py::value_error>(value, name, taken);
}

std::string short_repr(py::handle value) {
    if (py::isinstance<py::array>(value)) {
        const py::array array = plain_array(value);
        if (array.size() > 8)
            return "an array of shape " + describe_shape(array) + " and dtype " +
                   short_text(py::str(py::object(array.dtype())));
    }
    try {
        if (!is_container(value)) return short_text(py::repr(value));
        const py::object maker = py::module_::import("reprlib").attr("Repr")();
        for (const char* limit : {"maxstring", "maxother", "maxlong"})
            maker.attr(limit) = longest_repr;
        maker.attr("maxlevel") = 2;
        return short_text(maker.attr("repr")(value));
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw;
        // An int may have more digits than Python prints.
        return "a value of type " + type_name(value) +
               (PyLong_Check(value.ptr()) ? " that is too long to print" : "");
    }
}

std::string counted(std::size_t number, const char* singular) {
    return std::to_string(number) + ' ' + singular + (number == 1 ? "" : "s");
}

py::object attribute(py::handle object, const char* name) {
    auto value = py::reinterpret_steal<py::object>(PyObject_GetAttrString(object.ptr(), name));
    if (value) return value;
    if (PyErr_ExceptionMatches(PyExc_AttributeError) == 0) throw py::error_already_set();
    PyErr_Clear();
    return value;
}

}  // namespace fastopt
