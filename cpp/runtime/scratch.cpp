// One growing buffer for each thread, and a few blocks.
#include "scratch.hpp"

#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#include "thread_count.hpp"

namespace fastopt {
namespace {

// Bytes. 128256 classes of float32 in an axis that is not the last need 15.7 MiB.
constexpr std::size_t kept_bytes = 16 << 20;

// Bytes. Sizes of kept blocks are multiples of it, so that batches of similar sizes share a block.
constexpr std::size_t granule = 64 << 10;

// Blocks come from malloc, not from new (std::nothrow): libstdc++ allocates memory for the first
// exception of a thread, even if new catches it, and ends the process if memory is missing.
struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
using Bytes = std::unique_ptr<std::byte[], Free>;
Bytes allocate(std::size_t size) { return Bytes(static_cast<std::byte*>(std::malloc(size))); }

struct Block {
    Bytes data;
    std::size_t size = 0;
};

struct Kept {
    Bytes scratch;
    std::size_t scratch_size = 0;
    Block blocks[4];  // cross-entropy uses this number at the same time
};

void forget(void* kept) {
    static_cast<Kept*>(kept)->~Kept();
    std::free(kept);
}

// The blocks that this thread keeps until it ends; nullptr if memory for it is missing.
Kept* kept_here() {
    static const ThreadSlot slot(forget);
    if (void* kept = slot.get()) return static_cast<Kept*>(kept);
    Bytes memory = allocate(sizeof(Kept));
    if (memory == nullptr || !slot.set(memory.get())) return nullptr;
    return new (memory.release()) Kept;
}

// The size of a block for `bytes`. Sizes below a granule are not rounded; malloc keeps such blocks.
std::size_t block_size(std::size_t bytes) {
    return bytes < granule ? bytes : (bytes + granule - 1) / granule * granule;
}

bool is_kept(std::size_t bytes) { return bytes >= granule && bytes <= kept_bytes; }

}  // namespace

std::byte* thread_scratch(std::size_t bytes) {
    Kept* const kept = kept_here();
    if (kept == nullptr) return nullptr;
    if (bytes > kept->scratch_size) {
        kept->scratch.reset();
        kept->scratch = allocate(bytes);
        kept->scratch_size = kept->scratch ? bytes : 0;
    }
    return kept->scratch.get();
}

void trim_thread_scratch() {
    Kept* const kept = kept_here();
    if (kept == nullptr || kept->scratch_size <= kept_bytes) return;
    kept->scratch.reset();
    kept->scratch_size = 0;
}

std::byte* take_block(std::size_t bytes) {
    bytes = block_size(bytes);
    Kept* const kept = is_kept(bytes) ? kept_here() : nullptr;
    if (kept != nullptr)
        for (Block& block : kept->blocks)
            if (block.size == bytes && block.data != nullptr) {
                block.size = 0;
                return block.data.release();
            }
    Bytes fresh = allocate(bytes);
    if (fresh == nullptr) {
        if (Kept* const here = kept_here())
            for (Block& block : here->blocks) block = {};
        fresh = allocate(bytes);
    }
    if (fresh == nullptr && bytes > 0) throw std::bad_alloc();
    return fresh.release();
}

void give_back_block(std::byte* block, std::size_t bytes) noexcept {
    bytes = block_size(bytes);
    Bytes owned(block);
    Kept* const here = is_kept(bytes) ? kept_here() : nullptr;
    if (here == nullptr) return;
    // The other blocks move by one place. If all places are used, the oldest block is freed.
    for (Block& kept : here->blocks) {
        std::swap(kept.data, owned);
        std::swap(kept.size, bytes);
        if (owned == nullptr) return;
    }
}

}  // namespace fastopt
