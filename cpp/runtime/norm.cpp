// Norms over a fixed grid.
#include "norm.hpp"

#include <algorithm>
#include <cmath>

#include "isa.hpp"
#include "parallel.hpp"

namespace fastopt {

double square_root(double x) { return std::sqrt(x); }

void SquareSums::add(const GradView& grad, const Piece& piece, std::size_t number, double scale) {
    const auto add_squares = kernels().add_squares[static_cast<int>(grad.type)];
    double lanes[norm_lanes] = {};
    grad.reader.each_run(piece.start, piece.count, [&](const std::byte* data, std::size_t count) {
        add_squares(data, count, scale, lanes);
    });
    for (std::size_t half = norm_lanes / 2; half > 0; half /= 2)
        for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    partial_[number] = lanes[0];
}

double SquareSums::total() const {
    double sum = 0.0;
    for (const double part : partial_) sum += part;
    return sum;
}

Norm total_norm(const std::vector<GradView>& grads) {
    Grid grid;
    for (const GradView& grad : grads) grid.add(grad.count);
    SquareSums sums;
    sums.start(grid.pieces());
    const auto grad_of = [&](std::size_t tensor) -> const GradView& { return grads[tensor]; };
    parallel_for(grid.shares(), grid.elements() < serial_size, [&](std::size_t share) {
        grid.each(share, [&](const Piece& piece, std::size_t number) {
            sums.add(grad_of(piece.tensor), piece, number);
        });
    });
    Norm norm;
    with_default_floating_point([&] { norm = norm_of(sums, grid, grad_of); });
    return norm;
}

namespace {

void change_all(const std::vector<GradView>& grads,
                void (*const (&change)[type_count])(void*, std::size_t, double), double number) {
    Grid grid;
    for (const GradView& grad : grads) grid.add(grad.count);
    parallel_for(grid.shares(), grid.elements() < serial_size, [&](std::size_t share) {
        grid.each(share, [&](const Piece& piece, std::size_t) {
            const GradView& grad = grads[piece.tensor];
            grad.reader.change_runs(piece.start, piece.count, [&](void* x, std::size_t count) {
                change[static_cast<int>(grad.type)](x, count, number);
            });
        });
    });
}

}  // namespace

void scale_all(const std::vector<GradView>& grads, double factor) {
    change_all(grads, kernels().scale, factor);
}

void clamp_all(const std::vector<GradView>& grads, double limit) {
    change_all(grads, kernels().clamp, limit);
}

}  // namespace fastopt
