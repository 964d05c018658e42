// The one translation unit of the kernels, compiled once per instruction set: it fills the table.
#include "losses/cross_entropy.hpp"
#include "losses/pointwise.hpp"
#include "losses/softmax.hpp"
#include "losses/targets.hpp"
#include "table.hpp"
#include "updates/accumulate.hpp"
#include "updates/adam.hpp"
#include "updates/average.hpp"
#include "updates/clip.hpp"
#include "updates/norm.hpp"
#include "updates/rmsprop.hpp"
#include "updates/sgd.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

constexpr Optimizer optimizers[] = {
    make_row<sgd>(),        make_row<rmsprop>(),    make_row<adam>(),
    make_row<weight_ema>(), make_row<accumulate>(),
};

constexpr Pointwise pointwise[] = {
    make_pointwise<mse>(),       make_pointwise<l1>(),
    make_pointwise<smooth_l1>(), make_pointwise<huber>(),
    make_pointwise<bce>(),       make_pointwise<bce_with_logits>(),
    make_pointwise<kl_div>(),    make_pointwise<kl_div_log_target>(),
    make_pointwise<sigmoid>(),   make_pointwise<sigmoid_backward>(),
    make_pointwise<relu>(),      make_pointwise<relu_backward>(),
    make_pointwise<logistic>(),  make_pointwise<dropout>(),
};

}  // namespace

extern const Table table;
constexpr Table table = {
    .optimizers = optimizers,
    .optimizer_count = sizeof(optimizers) / sizeof(optimizers[0]),
    .cross_entropy_rows = {cross_entropy_rows<float>, cross_entropy_rows<double>},
    .cross_entropy_columns = {cross_entropy_columns<float>, cross_entropy_columns<double>},
    .softmax = {softmax_kernels<float>(), softmax_kernels<double>()},
    .copy_targets = copy_targets,
    .rescale = {rescale<float>, rescale<double>},
    .scale = {scale<float>, scale<double>},
    .clamp = {clamp<float>, clamp<double>},
    .add_squares = {add_squares<float>, add_squares<double>},
    .largest_magnitude = {largest_magnitude<float>, largest_magnitude<double>},
    .pointwise = pointwise,
    .pointwise_count = sizeof(pointwise) / sizeof(pointwise[0]),
    .leaves_unit_interval = {leaves_unit_interval<float>, leaves_unit_interval<double>},
};

}  // namespace fastopt::FASTOPT_ISA
