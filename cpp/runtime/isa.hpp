// The instruction sets that this machine can run, and the kernels of the one in use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "../kernels/table.hpp"

namespace fastopt {

// The names that this machine can run, the lowest first.
std::vector<std::string> available_isas();

std::string active_isa();

// Makes `name` the instruction set in use; throws std::invalid_argument listing the choices.
void use_isa(std::string_view name);

// The tables in use. The first call chooses the set: FASTOPT_ISA, or the highest that is available.
const UpdateTable& update_kernels();
const LossTable& loss_kernels();

}  // namespace fastopt
