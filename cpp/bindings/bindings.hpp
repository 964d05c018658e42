// One function for each family; module.cpp calls them.
#pragma once

#include <pybind11/pybind11.h>

namespace fastopt {

void bind_runtime(pybind11::module_& module);
void bind_updates(pybind11::module_& module);
void bind_average(pybind11::module_& module);
void bind_clipping(pybind11::module_& module);
void bind_losses(pybind11::module_& module);
void bind_pointwise(pybind11::module_& module);
void bind_softmax(pybind11::module_& module);
void bind_tensors(pybind11::module_& module);

}  // namespace fastopt
