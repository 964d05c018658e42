// Instruction sets, threads and build facts.
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string_view>

#include "../runtime/isa.hpp"
#include "../runtime/thread_count.hpp"
#include "../runtime/thread_pool.hpp"
#include "../runtime/tuning.hpp"
#include "arrays.hpp"
#include "bindings.hpp"
#include "late.hpp"
#include "scalars.hpp"

namespace py = pybind11;

namespace fastopt {

void bind_runtime(py::module_& module) {
    try {  // a bad FASTOPT_ISA or FASTOPT_NUM_THREADS fails the import, not a later step
        loss_kernels();
        num_threads();
    } catch (const std::invalid_argument& error) {  // its text may contain any bytes
        const std::string_view text = error.what();
        throw py::import_error(std::string(py::str(new_object(PyUnicode_DecodeUTF8(
            text.data(), static_cast<py::ssize_t>(text.size()), "backslashreplace")))));
    }
    forget_pool_after_fork();
    module.attr("compiler") = FASTOPT_COMPILER;
    py::class_<Tuning>(module, "Tuning")
        .def_readwrite("chunk_size", &Tuning::chunk_size)
        .def_readwrite("serial_size", &Tuning::serial_size)
        .def_readwrite("wake_size", &Tuning::wake_size)
        .def_readwrite("turn_size", &Tuning::turn_size)
        .def_readwrite("spin_ns", &Tuning::spin_ns);
    module.attr("tuning") = py::cast(&tuning, py::return_value_policy::reference);
    module.def("available_isas", &available_isas);
    module.def("active_isa", &active_isa);
    module.def(
        "use_isa", [](const py::object& name) { use_isa(as_text(name, "name")); }, py::arg("name"));
    module.def("get_num_threads", &num_threads);
    module.def(
        "set_num_threads",
        [](const py::object& count, const py::object& beyond) {
            const std::int64_t most = std::numeric_limits<int>::max();
            const std::int64_t least = std::numeric_limits<int>::min();
            set_num_threads(static_cast<int>(std::clamp(as_integer(count, "count"), least, most)),
                            as_flag(beyond, "beyond"));
        },
        py::arg("count"), py::arg("beyond") = false);
    module.def("affinity_cpus", &affinity_cpus);
    module.def(
        "cgroup_cpus", [](const py::object& root) { return cgroup_cpus(as_text(root, "root")); },
        py::arg("root") = "");
    // The options of functions in Python.
    module.def(
        "as_number",
        [](const py::object& value, const std::string& name) {
            return new_float(as_number(value, name));
        },
        py::arg("value"), py::arg("name"));
    module.def("as_flag", &as_flag, py::arg("value"), py::arg("name"));
    module.def(
        "as_integer",
        [](const py::object& value, const std::string& name) {
            return new_integer(as_integer(value, name));
        },
        py::arg("value"), py::arg("name"));
    module.def("as_text", &as_text, py::arg("value"), py::arg("name"));
    module.def(
        "check_array",
        [](const py::object& array, const std::string& name) { float_array(array, name); },
        py::arg("array"), py::arg("name"));
    module.def("short_repr", &short_repr, py::arg("value"));
}

}  // namespace fastopt
