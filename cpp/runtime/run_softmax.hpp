// softmax, log_softmax and their backward forms over all positions of an array.
#pragma once

#include "../kernels/table.hpp"

namespace fastopt {

// `whole` has the arrays and sizes; with `grad` it is the backward form.
void run_softmax(const SoftmaxBlock& whole, Type type, bool log);

}  // namespace fastopt
