// Which kernel tables exist, which this machine runs, and which one is in use.
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

// The table in use. Chosen on the first call: FASTOPT_ISA, else the highest that is available.
const Table& kernels();

}  // namespace fastopt
