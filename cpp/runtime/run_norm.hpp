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

// What a norm is made of: for each chunk of a grid the sum of its squares, added up in the chunks'
// order, or the largest magnitude in it.
class NormParts {
public:
    // Forgets the parts and allocates those of a grid.
    void start(const Grid& grid, NormType type = NormType::two) {
        parts_.assign(grid.chunks(), 0.0);
        chunk_size_ = grid.chunk_size();
        type_ = type;
    }

    // Fills the parts of one piece; different pieces may be added by different threads.
    void add(const GradView& grad, const Piece& piece, double scale = 1.0);

    double total() const;
    NormType type() const { return type_; }

    // Whether no square that matters to `sum` has over- or underflowed.
    static bool in_range(double sum) { return sum > 0x1p-900 && sum < 0x1p1000; }

private:
    std::vector<double> parts_;
    std::size_t chunk_size_ = 0;
    NormType type_ = NormType::two;
};

struct Norm {
    double value = 0.0;
    bool finite = true;  // every element is, whatever their norm
};

// The norm whose parts hold all pieces of `grid`. Where squares of float64 have over- or
// underflowed they are added up anew, scaled. `grad_of(tensor)` is the gradient of a tensor.
template <class GradOf>
Norm norm_of(NormParts& parts, const Grid& grid, const GradOf& grad_of) {
    const double plain = parts.total();
    if (parts.type() == NormType::inf) return {plain, std::isfinite(plain)};
    if (NormParts::in_range(plain)) return {square_root(plain), true};
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

// How gradients are scaled: by one factor, or where their type does not hold it with all its
// digits, by a division and a product in double. The factor is 0 where double does not hold it so.
struct Scaling {
    double factor = 1.0, divisor = 1.0, multiplier = 1.0;

    bool fits(Type type) const;
};

// Divides gradients of this norm by `scale`, and clips them to `max_norm` then: by
// min(1, max_norm / (norm / scale + 1e-6)), or NaN.
Scaling clipping(double max_norm, double norm, double scale);

// Multiplies all elements of all arrays, or clamps them into [-limit, limit].
void scale_all(const std::vector<GradView>& grads, const Scaling& scaling);
void clamp_all(const std::vector<GradView>& grads, double limit);

}  // namespace fastopt
