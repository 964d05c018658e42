// Working without the GIL.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

namespace fastopt {

// Releases the GIL for its lifetime. Unlike the class of pybind11, it works when the interpreter
// has ended: before Python 3.14, taking the GIL then throws an exception in a daemon thread, which
// must not leave a destructor. Here such a thread sleeps until the process ends, as in Python 3.14.
class GilRelease {
public:
    GilRelease() : state_(PyEval_SaveThread()) {}
    ~GilRelease() {
        try {
            PyEval_RestoreThread(state_);
        } catch (abi::__forced_unwind&) {
            while (true) pause();
        }
    }
    GilRelease(const GilRelease&) = delete;
    GilRelease& operator=(const GilRelease&) = delete;

private:
    PyThreadState* state_;
};

}  // namespace fastopt
