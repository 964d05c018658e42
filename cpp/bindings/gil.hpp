// Working without the GIL.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

namespace fastopt {

// Releases the GIL for its lifetime. Unlike pybind11's, it survives the end of the interpreter:
// before Python 3.14 a daemon thread that asks for the GIL then is ended by an exception that must
// not leave a destructor. Such a thread sleeps until the process is gone, as 3.14 does.
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
