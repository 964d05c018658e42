// One growing buffer for each thread, and a few blocks.
#include "scratch.hpp"

#include <memory>
#include <new>
#include <utility>

namespace fastopt {
namespace {

// A float32 class axis of 128256 takes 15.7 MiB, if it is not the last.
constexpr std::size_t kept_bytes = 16 << 20;

thread_local std::unique_ptr<std::byte[]> memory;
constinit thread_local std::size_t size = 0;

// Blocks that were given back. The sizes are coarse, so that one serves batches nearly alike.
constexpr std::size_t granule = 64 << 10;
struct Block {
    std::unique_ptr<std::byte[]> data;
    std::size_t size = 0;
};
thread_local Block blocks[4];  // as many as cross-entropy takes at a time

// What a block of so many bytes has: less than a granule is left to malloc as it is.
std::size_t block_size(std::size_t bytes) {
    return bytes < granule ? bytes : (bytes + granule - 1) / granule * granule;
}

}  // namespace

std::byte* thread_scratch(std::size_t bytes) {
    if (bytes > size) {
        memory.reset();
        memory.reset(new (std::nothrow) std::byte[bytes]);
        size = memory ? bytes : 0;
    }
    return memory.get();
}

void trim_thread_scratch() {
    if (size <= kept_bytes) return;
    memory.reset();
    size = 0;
}

std::byte* take_block(std::size_t bytes) {
    bytes = block_size(bytes);
    for (Block& block : blocks)
        if (block.size == bytes && block.data != nullptr) {
            block.size = 0;
            return block.data.release();
        }
    if (auto* fresh = new (std::nothrow) std::byte[bytes]) return fresh;
    for (Block& block : blocks) block = {};
    return new std::byte[bytes];
}

void give_back_block(std::byte* block, std::size_t bytes) noexcept {
    bytes = block_size(bytes);
    std::unique_ptr<std::byte[]> owned(block);
    if (bytes < granule || bytes > kept_bytes) return;
    // The others move on; without room for all, the one that was given back first goes.
    for (Block& kept : blocks) {
        std::swap(kept.data, owned);
        std::swap(kept.size, bytes);
        if (owned == nullptr) return;
    }
}

}  // namespace fastopt
