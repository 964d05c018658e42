// Instruction sets, threads and build facts.
#include <pybind11/stl.h>

#include "../runtime/grid.hpp"
#include "../runtime/isa.hpp"
#include "../runtime/parallel.hpp"
#include "../runtime/threads.hpp"
#include "bindings.hpp"

namespace py = pybind11;

namespace fastopt {

void bind_runtime(py::module_& module) {
    kernels();  // a bad FASTOPT_ISA or FASTOPT_NUM_THREADS fails the import, not a later step
    num_threads();
    forget_pool_after_fork();
    module.attr("compiler") = FASTOPT_COMPILER;
    module.attr("chunk_size") = chunk_size;
    module.attr("serial_size") = serial_size;
    module.def("available_isas", &available_isas);
    module.def("active_isa", &active_isa);
    module.def("use_isa", [](const std::string& name) { use_isa(name); }, py::arg("name"));
    module.def("get_num_threads", &num_threads);
    module.def("set_num_threads", &set_num_threads, py::arg("count"), py::arg("beyond") = false);
    module.def("affinity_cpus", &affinity_cpus);
    module.def("cgroup_cpus", &cgroup_cpus, py::arg("root") = "");
}

}  // namespace fastopt
