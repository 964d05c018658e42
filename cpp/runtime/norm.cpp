// Norms over a fixed grid.
#include "norm.hpp"

#include <algorithm>
#include <cmath>

#include "isa.hpp"
#include "parallel.hpp"

namespace fastopt {

double square_root(double x) { return std::sqrt(x); }

namespace {

double take_sum(double (&lanes)[norm_lanes]) {
    for (std::size_t half = norm_lanes / 2; half > 0; half /= 2)
        for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    const double sum = lanes[0];
    std::fill(std::begin(lanes), std::end(lanes), 0.0);
    return sum;
}

}  // namespace

void SquareSums::add(const GradView& grad, const Piece& piece, double scale) {
    const auto add_squares = kernels().add_squares[static_cast<int>(grad.type)];
    double lanes[norm_lanes] = {};
    std::size_t done = 0;  // of the piece
    grad.reader.each_run(piece.start, piece.count, [&](const std::byte* data, std::size_t count) {
        for (const std::size_t end = done + count; done < end;) {
            const std::size_t chunk = done / chunk_size_;
            const std::size_t chunk_end = std::min((chunk + 1) * chunk_size_, piece.count);
            const std::size_t part = std::min(end, chunk_end) - done;
            add_squares(data, part, scale, lanes);
            data += part * size_of(grad.type);
            done += part;
            if (done == chunk_end) partial_[piece.chunk + chunk] = take_sum(lanes);
        }
    });
}

double SquareSums::total() const {
    double sum = 0.0;
    for (const double part : partial_) sum += part;
    return sum;
}

Norm total_norm(const std::vector<GradView>& grads) {
    Grid grid;
    for (const GradView& grad : grads) grid.add(grad.count, grad.reader.at_once());
    SquareSums sums;
    sums.start(grid);
    const auto grad_of = [&](std::size_t tensor) -> const GradView& { return grads[tensor]; };
    parallel_for(grid.shares(), grid.elements(), [&](std::size_t share) {
        grid.each(share, [&](const Piece& piece) { sums.add(grad_of(piece.tensor), piece); });
    });
    Norm norm;
    with_default_floating_point([&] { norm = norm_of(sums, grid, grad_of); });
    return norm;
}

namespace {

void change_all(const std::vector<GradView>& grads,
                void (*const (&change)[type_count])(void*, std::size_t, double), double number) {
    Grid grid;
    for (const GradView& grad : grads) grid.add(grad.count, grad.reader.at_once());
    parallel_for(grid.shares(), grid.elements(), [&](std::size_t share) {
        grid.each(share, [&](const Piece& piece) {
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
