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

extern const UpdateTable updates;
constexpr UpdateTable updates = {
    .updates = rows,
    .update_count = sizeof(rows) / sizeof(rows[0]),
    .rescale = {rescale<float>, rescale<double>},
    .scale = {scale<float>, scale<double>},
    .clamp = {clamp<float>, clamp<double>},
    .add_squares = {add_squares<float>, add_squares<double>},
    .largest_magnitude = {largest_magnitude<float>, largest_magnitude<double>},
};

}  // namespace fastopt::FASTOPT_ISA
