// The table of losses, compiled once per instruction set. The flags may differ from those of the
// updates.
#include "losses/cross_entropy.hpp"
#include "losses/pointwise.hpp"
#include "losses/softmax.hpp"
#include "losses/targets.hpp"
#include "table.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

constexpr Pointwise pointwise[] = {
    make_pointwise<mse>("mse"),
    make_pointwise<l1>("l1"),
    make_pointwise<smooth_l1>("smooth_l1"),
    make_pointwise<huber>("huber"),
    make_pointwise<bce>("bce"),
    make_pointwise<bce_with_logits>("bce_with_logits"),
    make_pointwise<kl_div>("kl_div"),
    make_pointwise<kl_div_log_target>("kl_div_log_target"),
    make_pointwise<sigmoid>("sigmoid"),
    make_pointwise<sigmoid_backward>("sigmoid_backward"),
    make_pointwise<relu>("relu"),
    make_pointwise<relu_backward>("relu_backward"),
    make_pointwise<tanh>("tanh"),
    make_pointwise<tanh_backward>("tanh_backward"),
    make_pointwise<Gated<LogisticGate, false>>("silu"),
    make_pointwise<Gated<LogisticGate, true>>("silu_backward"),
    make_pointwise<Gated<NormalGate, false>>("gelu"),
    make_pointwise<Gated<NormalGate, true>>("gelu_backward"),
    make_pointwise<Gated<TanhGate, false>>("gelu_tanh"),
    make_pointwise<Gated<TanhGate, true>>("gelu_tanh_backward"),
    make_pointwise<logistic>("logistic"),
    make_pointwise<dropout>("dropout"),
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
