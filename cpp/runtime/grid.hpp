// The grid of chunks that work is cut into: the same for every instruction set and thread count.
#pragma once

#include <cstddef>
#include <vector>

#include "../kernels/table.hpp"
#include "tuning.hpp"

namespace fastopt {

constexpr std::size_t size_of(Type type) {
    return type == Type::float32 ? sizeof(float) : sizeof(double);
}

// A part of one tensor: a chunk, or several that follow one another.
struct Piece {
    std::size_t tensor;
    std::size_t start;
    std::size_t count;
    std::size_t chunk;  // the number of its first chunk in the grid
};

// The chunks of a list of tensors. Small ones are handed out together, as one share.
class Grid {
public:
    void clear();
    // The next tensor, whose pieces should have about `at_once` elements, a chunk at least.
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
