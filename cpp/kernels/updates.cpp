// The table of updates, compiled once per instruction set.
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

constexpr Update rows[] = {
    make_row<sgd>(),        make_row<rmsprop>(),    make_row<adam>(),
    make_row<weight_ema>(), make_row<accumulate>(),
};

}  // namespace

// In the order of `Type`.
#define FASTOPT_EACH_TYPE(function) \
    {function<float>, function<double>, function<bfloat16>, function<float16>}

extern const UpdateTable updates;
constexpr UpdateTable updates = {
    .updates = rows,
    .update_count = sizeof(rows) / sizeof(rows[0]),
    .widen = {nullptr, nullptr, widen<bfloat16>, widen<float16>},
    .narrow = {nullptr, nullptr, narrow<bfloat16>, narrow<float16>},
    .rescale = FASTOPT_EACH_TYPE(rescale),
    .rescale_in_place = FASTOPT_EACH_TYPE(rescale_in_place),
    .scale = FASTOPT_EACH_TYPE(scale),
    .clamp = FASTOPT_EACH_TYPE(clamp),
    .add_squares = FASTOPT_EACH_TYPE(add_squares),
    .largest_magnitude = FASTOPT_EACH_TYPE(largest_magnitude),
};

}  // namespace fastopt::FASTOPT_ISA
