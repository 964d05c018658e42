// The norms of many arrays of gradients, with the same bits for any number of threads.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "grid.hpp"
#include "strided.hpp"

namespace fastopt {

// The elements of a gradient, in the order of its parameter.
struct GradView {
    Type type;
    std::size_t count;
    StridedReader reader;
};

double square_root(double x);

enum class NormType {
    two,  // the root of the sum of squares
    inf   // the largest magnitude
};

// The parts of a norm: for each chunk of a grid, the sum of its squares or its largest magnitude.
// total() combines them in the order of the chunks.
class NormParts {
public:
    // Drops the parts and allocates those of a grid.
    void start(const Grid& grid, NormType type = NormType::two) {
        parts_.assign(grid.chunks(), 0.0);
        chunk_size_ = grid.chunk_size();
        type_ = type;
    }

    // Fills the parts of one piece. Different threads may add different pieces.
    void add(const GradView& grad, const Piece& piece, double scale = 1.0);

    double total() const;
    NormType type() const { return type_; }

    // Whether no square that changes `sum` has overflowed or underflowed. A square that underflows
    // is less than 2^-1022: it takes 2^70 of them to change the last digit of a sum of 2^-900.
    static bool in_range(double sum) { return sum > 0x1p-900 && sum < 0x1p1000; }

private:
    std::vector<double> parts_;
    std::size_t chunk_size_ = 0;
    NormType type_ = NormType::two;
};

struct Norm {
    double value = 0.0;
    bool finite = true;  // whether every element is finite; the norm may still be infinite
};

// The norm from the parts of all pieces of `grid`. If squares of float64 have overflowed or
// underflowed, they are summed again with a scale. `grad_of(tensor)` is the gradient of a tensor.
template <class GradOf>
Norm norm_of(NormParts& parts, const Grid& grid, const GradOf& grad_of) {
    const double plain = parts.total();
    if (parts.type() == NormType::inf) return {plain, std::isfinite(plain)};
    if (NormParts::in_range(plain)) return {square_root(plain), true};
    // Powers of two change no digit. With the first, squares of the smallest numbers are normal.
    // With the second, the sum of 2^64 squares of the largest numbers is finite.
    for (const double scale : {0x1p700, 0x1p-600}) {
        parts.start(grid);
        for (std::size_t share = 0; share < grid.shares(); ++share)
            grid.each(share,
                      [&](const Piece& piece) { parts.add(grad_of(piece.tensor), piece, scale); });
        const double sum = parts.total();
        if (NormParts::in_range(sum)) return {square_root(sum) / scale, true};
    }
    return {square_root(plain), plain == 0.0};
}

// The norm of all elements of all arrays.
Norm total_norm(const std::vector<GradView>& grads, NormType type);

// The scaling of gradients: one factor. If their type cannot hold all its digits, the gradients are
// divided and multiplied in double. `factor` is 0 if double cannot hold all its digits either.
struct Scaling {
    double factor = 1.0, divisor = 1.0, multiplier = 1.0;

    bool fits(Type type) const;
};

// Divides gradients of this norm by `scale`, then clips them to `max_norm`: multiplies them by
// min(1, max_norm / (norm / scale + 1e-6)), which may be NaN.
Scaling clipping(double max_norm, double norm, double scale);

// Multiplies all elements of all arrays, or clamps them into [-limit, limit].
void scale_all(const std::vector<GradView>& grads, const Scaling& scaling);
void clamp_all(const std::vector<GradView>& grads, double limit);

}  // namespace fastopt
