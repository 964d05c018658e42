// Results that exist before the kernels run: nothing can fail once something has been written.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

namespace fastopt {

// A float that nobody else has seen before it gets its value.
class LateFloat {
public:
    void set(double value) { reinterpret_cast<PyFloatObject*>(object_.ptr())->ob_fval = value; }
    const pybind11::float_& object() const { return object_; }

private:
    pybind11::float_ object_{0.5};
};

// An int in place of one whose memory it takes.
class LateInteger {
public:
    pybind11::int_ make(std::int64_t value) {
        reserve_ = pybind11::int_();
        return pybind11::int_(value);
    }

private:
    pybind11::int_ reserve_{std::int64_t{1} << 59};
};

}  // namespace fastopt
