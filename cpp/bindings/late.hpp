// Results that exist before the kernels run: nothing can fail once something has been written.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fastopt {

// pybind11's own report a lack of memory as a RuntimeError or a TypeError.
inline pybind11::object new_object(PyObject* object) {
    if (object == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(object);
}
inline pybind11::object new_float(double value) { return new_object(PyFloat_FromDouble(value)); }
inline pybind11::object new_integer(std::int64_t value) {
    return new_object(PyLong_FromLongLong(value));
}

// A float that nobody else has seen before it gets its value.
class LateFloat {
public:
    void set(double value) { reinterpret_cast<PyFloatObject*>(object_.ptr())->ob_fval = value; }
    const pybind11::object& object() const { return object_; }

private:
    pybind11::object object_ = new_float(0.5);
};

// An int in place of one whose memory it takes.
class LateInteger {
public:
    pybind11::object make(std::int64_t value) {
        reserve_.release().dec_ref();
        return new_integer(value);
    }

private:
    pybind11::object reserve_ = new_integer(std::int64_t{1} << 59);
};

}  // namespace fastopt
