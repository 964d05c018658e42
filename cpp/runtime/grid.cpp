// Cutting tensors into chunks.
#include "grid.hpp"

#include <algorithm>

namespace fastopt {

void Grid::clear() {
    pieces_.clear();
    share_ends_.clear();
    tensors_ = elements_ = open_ = 0;
}

void Grid::add(std::size_t count) {
    for (std::size_t start = 0; start < count; start += chunk_size) {
        const std::size_t part = std::min(chunk_size, count - start);
        if (share_ends_.empty() || open_ + part > chunk_size) {
            share_ends_.push_back(pieces_.size());
            open_ = 0;
        }
        pieces_.push_back({tensors_, start, part});
        share_ends_.back() = pieces_.size();
        open_ += part;
    }
    ++tensors_;
    elements_ += count;
}

}  // namespace fastopt
