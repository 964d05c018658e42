// The 2-norm of many arrays of gradients, with the same bits for any number of threads.
#pragma once

#include <cstddef>
#include <vector>

#include "grid.hpp"
#include "layout.hpp"

namespace fastopt {

// The elements of a gradient, in the order of its parameter.
struct GradView {
    Type type;
    std::size_t count;
    StridedReader reader;
};

double square_root(double x);

// Sums of squares, a partial sum for each chunk of a grid, added up in their order.
class SquareSums {
public:
    // Forgets the partial sums and makes room for those of a grid.
    void start(const Grid& grid) {
        partial_.assign(grid.chunks(), 0.0);
        chunk_size_ = grid.chunk_size();
    }

    // Fills the partial sums of one piece; different pieces may be added by different threads.
    void add(const GradView& grad, const Piece& piece, double scale = 1.0);

    double total() const;

    // Whether no square that matters to `sum` has over- or underflowed.
    static bool in_range(double sum) { return sum > 0x1p-900 && sum < 0x1p1000; }

private:
    std::vector<double> partial_;
    std::size_t chunk_size_ = 0;
};

struct Norm {
    double value = 0.0;
    bool finite = true;  // every element is, whatever their norm
};

// The square root of `sums`, which hold the squares of all pieces of `grid`. Where squares of
// float64 have over- or underflowed they are added up anew, scaled. `grad_of(tensor)` is the
// gradient of a tensor.
template <class GradOf>
Norm norm_of(SquareSums& sums, const Grid& grid, const GradOf& grad_of) {
    const double plain = sums.total();
    if (SquareSums::in_range(plain)) return {square_root(plain), true};
    for (const double scale : {0x1p700, 0x1p-600}) {
        sums.start(grid);
        for (std::size_t share = 0; share < grid.shares(); ++share)
            grid.each(share,
                      [&](const Piece& piece) { sums.add(grad_of(piece.tensor), piece, scale); });
        const double sum = sums.total();
        if (SquareSums::in_range(sum)) return {square_root(sum) / scale, true};
    }
    return {square_root(plain), plain == 0.0};
}

// The norm of all elements of all arrays.
Norm total_norm(const std::vector<GradView>& grads);

// Multiplies all elements of all arrays by `factor`, or clamps them into [-limit, limit].
void scale_all(const std::vector<GradView>& grads, double factor);
void clamp_all(const std::vector<GradView>& grads, double limit);

}  // namespace fastopt
