// The table of losses, compiled once per instruction set with other flags than the updates.
#include "losses/cross_entropy.hpp"
#include "losses/pointwise.hpp"
#include "losses/softmax.hpp"
#include "losses/targets.hpp"
#include "table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

constexpr Pointwise pointwise[] = {
    make_pointwise<mse>(),       make_pointwise<l1>(),
    make_pointwise<smooth_l1>(), make_pointwise<huber>(),
    make_pointwise<bce>(),       make_pointwise<bce_with_logits>(),
    make_pointwise<kl_div>(),    make_pointwise<kl_div_log_target>(),
    make_pointwise<sigmoid>(),   make_pointwise<sigmoid_backward>(),
    make_pointwise<relu>(),      make_pointwise<relu_backward>(),
    make_pointwise<tanh>(),      make_pointwise<tanh_backward>(),
    make_pointwise<silu>(),      make_pointwise<silu_backward>(),
    make_pointwise<gelu>(),      make_pointwise<gelu_backward>(),
    make_pointwise<gelu_tanh>(), make_pointwise<gelu_tanh_backward>(),
    make_pointwise<logistic>(),  make_pointwise<dropout>(),
};

}  // namespace

extern const LossTable losses;
constexpr LossTable losses = {
    .cross_entropy = {cross_entropy<float>, cross_entropy<double>},
    .softmax = {{softmax<float>, log_softmax<float>}, {softmax<double>, log_softmax<double>}},
    .softmax_backward = {{softmax_backward<float, false>, softmax_backward<float, true>},
                         {softmax_backward<double, false>, softmax_backward<double, true>}},
    .copy_targets = copy_targets,
    .pointwise = pointwise,
    .pointwise_count = sizeof(pointwise) / sizeof(pointwise[0]),
    .leaves_unit_interval = {leaves_unit_interval<float>, leaves_unit_interval<double>},
};

}  // namespace fastopt::FASTOPT_ISA
