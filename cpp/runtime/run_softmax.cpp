#include "run_softmax.hpp"

#include "class_blocks.hpp"
#include "isa.hpp"

namespace fastopt {

void run_softmax(const SoftmaxBlock& whole, Type type, bool log) {
    const LossTable& table = loss_kernels();
    const auto& kernels = whole.grad.data ? table.softmax_backward : table.softmax;
    run_class_blocks(whole, kernels[static_cast<int>(arithmetic_type(type))][log],
                     {type, {&SoftmaxBlock::x, &SoftmaxBlock::grad}, &SoftmaxBlock::out},
                     [](SoftmaxBlock&) {});
}

}  // namespace fastopt
