// The private extension module fastopt._core: a list of its families.
#include "bindings.hpp"

PYBIND11_MODULE(_core, module) {
    module.doc() = "The compiled half of fastopt; private.";
    module.attr("__version__") = FASTOPT_VERSION;
    fastopt::bind_runtime(module);
    fastopt::bind_optim(module);
    fastopt::bind_clipping(module);
    fastopt::bind_losses(module);
    fastopt::bind_pointwise(module);
    fastopt::bind_softmax(module);
}
