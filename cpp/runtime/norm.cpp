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

// NaN if one of them is.
double larger(double a, double b) { return a != a || a > b ? a : b; }

}  // namespace

void NormParts::add(const GradView& grad, const Piece& piece, double scale) {
    const auto add_squares = kernels().add_squares[static_cast<int>(grad.type)];
    const auto largest_magnitude = kernels().largest_magnitude[static_cast<int>(grad.type)];
    double lanes[norm_lanes] = {};
    std::size_t done = 0;  // of the piece
    grad.reader.each_run(piece.start, piece.count, [&](const std::byte* data, std::size_t count) {
        for (const std::size_t end = done + count; done < end;) {
            const std::size_t chunk = done / chunk_size_;
            const std::size_t chunk_end = std::min((chunk + 1) * chunk_size_, piece.count);
            const std::size_t part = std::min(end, chunk_end) - done;
            double& of_chunk = parts_[piece.chunk + chunk];
            if (type_ == NormType::inf)
                of_chunk = larger(of_chunk, largest_magnitude(data, part));
            else
                add_squares(data, part, scale, lanes);
            data += part * size_of(grad.type);
            done += part;
            if (type_ == NormType::two && done == chunk_end) of_chunk = take_sum(lanes);
        }
    });
}

double NormParts::total() const {
    double total = 0.0;
    for (const double part : parts_)
        total = type_ == NormType::inf ? larger(total, part) : total + part;
    return total;
}

Norm total_norm(const std::vector<GradView>& grads, NormType type) {
    Grid grid;
    for (const GradView& grad : grads) grid.add(grad.count, grad.reader.at_once());
    NormParts parts;
    parts.start(grid, type);
    const auto grad_of = [&](std::size_t tensor) -> const GradView& { return grads[tensor]; };
    parallel_for(grid.shares(), grid.elements(), [&](std::size_t share) {
        grid.each(share, [&](const Piece& piece) { parts.add(grad_of(piece.tensor), piece); });
    });
    Norm norm;
    with_default_floating_point([&] { norm = norm_of(parts, grid, grad_of); });
    return norm;
}

namespace {

// Calls change(type, x, count) for runs of all elements of all arrays.
template <class Change>
void change_all(const std::vector<GradView>& grads, const Change& change) {
    Grid grid;
    for (const GradView& grad : grads) grid.add(grad.count, grad.reader.at_once());
    parallel_for(grid.shares(), grid.elements(), [&](std::size_t share) {
        grid.each(share, [&](const Piece& piece) {
            const GradView& grad = grads[piece.tensor];
            grad.reader.change_runs(piece.start, piece.count, [&](void* x, std::size_t count) {
                change(grad.type, x, count);
            });
        });
    });
}

}  // namespace

Scale clip_scale(double max_norm, double norm) {
    const double limit = norm + 1e-6;
    const double clip = max_norm / limit;
    if (!(clip < 0x1p-100) || max_norm == 0.0 || !std::isfinite(limit))
        return {clip > 1.0 ? 1.0 : clip, 0};  // NaN stays
    int above = 0, below = 0;
    const double quotient = std::frexp(max_norm, &above) / std::frexp(limit, &below);
    return {quotient / 2, above - below + 1};  // less than 1: no product with it overflows
}

void scale_all(const std::vector<GradView>& grads, Scale scale) {
    change_all(grads, [&](Type type, void* x, std::size_t count) {
        // The least power of two of the type; what it leaves goes to the factor.
        const int power = std::max(scale.exponent, type == Type::float32 ? -149 : -1074);
        const double factor = std::ldexp(scale.factor, scale.exponent - power);
        kernels().scale[static_cast<int>(type)](x, count, factor, std::ldexp(1.0, power));
    });
}

void clamp_all(const std::vector<GradView>& grads, double limit) {
    change_all(grads, [&](Type type, void* x, std::size_t count) {
        kernels().clamp[static_cast<int>(type)](x, count, limit);
    });
}

}  // namespace fastopt
