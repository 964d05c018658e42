// The private extension module fastopt._core: a list of its families.
#include <exception>
#include <stdexcept>
#include <utility>

#include "bindings.hpp"

PYBIND11_MODULE(core, module) {
    module.doc() = "The compiled half of fastopt; private.";
    module.attr("__version__") = FASTOPT_VERSION;
    // If memory for an object is missing, pybind11 throws another exception and leaves the
    // MemoryError of Python set.
    pybind11::register_local_exception_translator([](std::exception_ptr error) {
        try {
            std::rethrow_exception(std::move(error));
        } catch (const std::runtime_error&) {
            if (PyErr_Occurred() == nullptr) throw;
        }
    });
    fastopt::bind_runtime(module);
    fastopt::bind_updates(module);
    fastopt::bind_average(module);
    fastopt::bind_clipping(module);
    fastopt::bind_losses(module);
    fastopt::bind_pointwise(module);
    fastopt::bind_softmax(module);
    fastopt::bind_tensors(module);
}

// pybind11 would wait for the lock of the first interpreter, on Python 3.11 for ever.
// NOLINTNEXTLINE(bugprone-reserved-identifier): Python gives the name.
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) return PyInit_core();
    PyErr_SetString(PyExc_ImportError,
                    "fastopt cannot be imported in a sub-interpreter; import it in the main one");
    return nullptr;
}
