// Instruction sets, threads and build facts.
#include <pybind11/stl.h>

#include "../runtime/isa.hpp"
#include "../runtime/parallel.hpp"
#include "../runtime/threads.hpp"
#include "../runtime/tuning.hpp"
#include "bindings.hpp"

namespace py = pybind11;

namespace fastopt {

void bind_runtime(py::module_& module) {
    kernels();  // a bad FASTOPT_ISA or FASTOPT_NUM_THREADS fails the import, not a later step
    num_threads();
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
    module.def("use_isa", [](const std::string& name) { use_isa(name); }, py::arg("name"));
    module.def("get_num_threads", &num_threads);
    module.def("set_num_threads", &set_num_threads, py::arg("count"), py::arg("beyond") = false);
    module.def("affinity_cpus", &affinity_cpus);
    module.def("cgroup_cpus", &cgroup_cpus, py::arg("root") = "");
}

}  // namespace fastopt
