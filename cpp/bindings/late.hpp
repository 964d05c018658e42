// Results that are allocated before the kernels run: nothing can fail after the first write.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>

namespace fastopt {

// The functions of pybind11 report missing memory as a RuntimeError or a TypeError.
inline pybind11::object new_object(PyObject* object) {
    if (object == nullptr) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(object);
}
inline pybind11::object new_float(double value) { return new_object(PyFloat_FromDouble(value)); }
inline pybind11::object new_integer(std::int64_t value) {
    return new_object(PyLong_FromLongLong(value));
}

// A float that gets its value later. Other threads must not reach it before; see LateTuple.
class LateFloat {
public:
    void set(double value) { reinterpret_cast<PyFloatObject*>(object_.ptr())->ob_fval = value; }
    const pybind11::object& object() const { return object_; }

private:
    pybind11::object object_ = new_float(0.5);
};

// An int that reuses the memory of another.
class LateInteger {
public:
    pybind11::object make(std::int64_t value) {
        reserve_.release().dec_ref();
        return new_integer(value);
    }

private:
    pybind11::object reserve_ = new_integer(std::int64_t{1} << 59);
};

// A tuple that gets its items later. It is not tracked by the garbage collector until get(). So no
// other thread can reach it through gc.get_objects(), and its items may still be set.
class LateTuple {
public:
    explicit LateTuple(std::size_t size)
        : tuple_(new_object(PyTuple_New(static_cast<Py_ssize_t>(size)))) {
        PyObject_GC_UnTrack(tuple_.ptr());
    }

    // An object of a subclass of tuple. No Python code runs before it is untracked.
    LateTuple(const pybind11::object& type, const pybind11::tuple& items)
        : tuple_(pybind11::handle(reinterpret_cast<PyObject*>(&PyTuple_Type))
                     .attr("__new__")(type, items)) {
        PyObject_GC_UnTrack(tuple_.ptr());
    }

    void set(std::size_t index, pybind11::object item) noexcept {
        const auto place = static_cast<Py_ssize_t>(index);
        const auto before =
            pybind11::reinterpret_steal<pybind11::object>(PyTuple_GET_ITEM(tuple_.ptr(), place));
        PyTuple_SET_ITEM(tuple_.ptr(), place, item.release().ptr());
    }

    // To be called after all items are set.
    pybind11::object get() const {
        PyObject_GC_Track(tuple_.ptr());
        return tuple_;
    }

private:
    pybind11::object tuple_;
};

}  // namespace fastopt
