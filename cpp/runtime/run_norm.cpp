// Norms over a fixed grid.
#include "run_norm.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "isa.hpp"
#include "thread_pool.hpp"

namespace fastopt {

double square_root(double x) { return std::sqrt(x); }

namespace {

// Returns NaN if one of the two is NaN.
double larger_or_nan(double a, double b) { return a != a || a > b ? a : b; }

}  // namespace

void NormParts::add(const GradView& grad, const Piece& piece, double scale) {
    const auto add_squares = update_kernels().add_squares[static_cast<int>(grad.type)];
    const auto largest_magnitude = update_kernels().largest_magnitude[static_cast<int>(grad.type)];
    double lanes[norm_lanes] = {};
    std::size_t done = 0;  // of the piece
    grad.reader.each_run(piece.start, piece.count, [&](const std::byte* data, std::size_t count) {
        for (const std::size_t end = done + count; done < end;) {
            const std::size_t chunk = done / chunk_size_;
            const std::size_t chunk_end = std::min((chunk + 1) * chunk_size_, piece.count);
            const std::size_t part = std::min(end, chunk_end) - done;
            double& of_chunk = parts_[piece.chunk + chunk];
            if (type_ == NormType::inf)
                of_chunk = larger_or_nan(of_chunk, largest_magnitude(data, part));
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
        total = type_ == NormType::inf ? larger_or_nan(total, part) : total + part;
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

bool Scaling::fits(Type type) const {
    const bool is_float = arithmetic_type(type) == Type::float32;
    const double smallest =
        is_float ? std::numeric_limits<float>::min() : std::numeric_limits<double>::min();
    const double largest =
        is_float ? std::numeric_limits<float>::max() : std::numeric_limits<double>::max();
    return std::abs(factor) >= smallest && std::abs(factor) <= largest;
}

Scaling clipping(double max_norm, double norm, double scale) {
    constexpr double epsilon = 1e-6;  // torch.nn.utils.clip_grad_norm_ adds it to the norm
    const double clip = max_norm / (norm / scale + epsilon);
    const Scaling plain{1.0 / scale, scale, 1.0};
    if (clip > 1.0) return plain;  // NaN stays
    // A denormal `clip` has lost digits, even if the product is normal.
    const bool exact = std::isnormal(clip) && std::isnormal(plain.factor);
    const double factor = exact ? plain.factor * clip : 0.0;
    if (norm == 0.0) return {factor, scale, 1.0};
    return {factor, norm + epsilon * scale, max_norm};
}

void scale_all(const std::vector<GradView>& grads, const Scaling& scaling) {
    change_all(grads, [&](Type type, void* x, std::size_t count) {
        const int index = static_cast<int>(type);
        if (scaling.fits(type))
            update_kernels().scale[index](x, count, scaling.factor);
        else
            update_kernels().rescale_in_place[index](x, count, scaling.divisor, scaling.multiplier);
    });
}

void clamp_all(const std::vector<GradView>& grads, double limit) {
    change_all(grads, [&](Type type, void* x, std::size_t count) {
        update_kernels().clamp[static_cast<int>(type)](x, count, limit);
    });
}

}  // namespace fastopt
