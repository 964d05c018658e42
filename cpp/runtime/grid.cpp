// Cutting tensors into chunks.
#include "grid.hpp"

#include <algorithm>

namespace fastopt {
namespace {

// Pieces. A tensor is not cut into fewer, if it has as many chunks, so that the threads finish at
// about the same time.
constexpr std::size_t fewest_pieces = 16;

}  // namespace

void Grid::clear() {
    pieces_.clear();
    share_ends_.clear();
    tensors_ = elements_ = chunks_ = open_ = 0;
    chunk_size_ = tuning.chunk_size;
}

void Grid::add(std::size_t count, std::size_t at_once) {
    const std::size_t chunks = (count + chunk_size_ - 1) / chunk_size_;
    const std::size_t most = std::max<std::size_t>(1, chunks / fewest_pieces);
    const std::size_t together = std::clamp<std::size_t>(at_once / chunk_size_, 1, most);
    for (std::size_t start = 0; start < count; start += together * chunk_size_) {
        const std::size_t part = std::min(together * chunk_size_, count - start);
        if (share_ends_.empty() || open_ + part > chunk_size_) {
            share_ends_.push_back(pieces_.size());
            open_ = 0;
        }
        pieces_.push_back({tensors_, start, part, chunks_ + start / chunk_size_});
        share_ends_.back() = pieces_.size();
        open_ += part;
    }
    ++tensors_;
    chunks_ += chunks;
    elements_ += count;
}

}  // namespace fastopt
