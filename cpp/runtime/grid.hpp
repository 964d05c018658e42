// The grid of chunks that work is cut into: the same for every instruction set and thread count.
#pragma once

#include <cstddef>
#include <vector>

#include "../kernels/table.hpp"

namespace fastopt {

constexpr std::size_t chunk_size = 16384;   // elements
constexpr std::size_t serial_size = 65536;  // an update of fewer elements runs on one thread

constexpr std::size_t size_of(Type type) {
    return type == Type::float32 ? sizeof(float) : sizeof(double);
}

// A chunk of one tensor.
struct Piece {
    std::size_t tensor;
    std::size_t start;
    std::size_t count;
};

// The chunks of a list of tensors. Small ones are handed out together, as one share.
class Grid {
public:
    void clear();
    void add(std::size_t count);  // the next tensor

    std::size_t elements() const { return elements_; }
    std::size_t pieces() const { return pieces_.size(); }
    std::size_t shares() const { return share_ends_.size(); }

    // Calls body(piece, its number) for each piece of a share.
    template <class F>
    void each(std::size_t share, const F& body) const {
        for (std::size_t i = share == 0 ? 0 : share_ends_[share - 1]; i < share_ends_[share]; ++i)
            body(pieces_[i], i);
    }

private:
    std::vector<Piece> pieces_;
    std::vector<std::size_t> share_ends_;  // in pieces_
    std::size_t tensors_ = 0;
    std::size_t elements_ = 0;
    std::size_t open_ = 0;  // elements of the last share
};

}  // namespace fastopt
