// The grid of chunks: the same for every instruction set and number of threads.
#pragma once

#include <cstddef>
#include <vector>

#include "../kernels/table.hpp"
#include "tuning.hpp"

namespace fastopt {

// The sum of the lanes of a chunk. It sets them to 0 for the next chunk.
template <std::size_t count>
double take_sum(double (&lanes)[count]) {
    const double sum = sum_lanes(lanes);
    for (double& lane : lanes) lane = 0.0;
    return sum;
}

// A part of one tensor: one chunk, or several consecutive chunks.
struct Piece {
    std::size_t tensor;
    std::size_t start;
    std::size_t count;
    std::size_t chunk;  // the number of its first chunk in the grid
};

// The chunks of a list of tensors. Small tensors form one share, which one thread takes.
class Grid {
public:
    void clear();
    // Adds a tensor. Its pieces have about `at_once` elements, but at least one chunk.
    void add(std::size_t count, std::size_t at_once);

    std::size_t elements() const { return elements_; }
    std::size_t chunks() const { return chunks_; }
    std::size_t chunk_size() const { return chunk_size_; }
    std::size_t shares() const { return share_ends_.size(); }

    // Calls body(piece) for each piece of a share.
    template <class F>
    void each(std::size_t share, const F& body) const {
        for (std::size_t i = share == 0 ? 0 : share_ends_[share - 1]; i < share_ends_[share]; ++i)
            body(pieces_[i]);
    }

private:
    std::vector<Piece> pieces_;
    std::vector<std::size_t> share_ends_;  // in pieces_
    std::size_t tensors_ = 0;
    std::size_t chunks_ = 0;
    std::size_t chunk_size_ = tuning.chunk_size;
    std::size_t elements_ = 0;
    std::size_t open_ = 0;  // elements of the last share
};

}  // namespace fastopt
