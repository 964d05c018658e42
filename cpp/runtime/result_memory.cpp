#include "result_memory.hpp"

#include <sys/mman.h>

#include <algorithm>

namespace fastopt {
namespace {

// Blocks. A training step has results of a few sizes. The block that was freed first is dropped
// first.
constexpr std::size_t most_kept = 4;

// Bytes. The system can take the pages of a block back, but not its addresses, which a process may
// run out of.
constexpr std::size_t most_kept_bytes = 256 << 20;

Memory kept[most_kept];
std::size_t kept_count = 0;
std::size_t kept_bytes = 0;

Memory remove_kept(std::size_t index) {
    const Memory removed = kept[index];
    std::copy(kept + index + 1, kept + kept_count, kept + index);
    --kept_count;
    kept_bytes -= removed.size;
    return removed;
}

void unmap(Memory memory) { munmap(memory.data, memory.size); }

void* map(std::size_t size) {
    return mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

}  // namespace

Memory take_memory(std::size_t size) {
    for (std::size_t i = kept_count; i-- > 0;)
        if (kept[i].size == size) return remove_kept(i);
    void* data = map(size);
    for (; data == MAP_FAILED && kept_count > 0; data = map(size)) unmap(remove_kept(0));
    if (data == MAP_FAILED) return {nullptr, 0};
#ifdef MADV_HUGEPAGE
    madvise(data, size, MADV_HUGEPAGE);  // it may fail: huge pages only save time
#endif
    return {data, size};
}

void give_back(Memory memory) {
    if (memory.data == nullptr) return;
#ifdef MADV_FREE
    if (memory.size <= most_kept_bytes && madvise(memory.data, memory.size, MADV_FREE) == 0) {
        while (kept_count == most_kept || kept_bytes > most_kept_bytes - memory.size)
            unmap(remove_kept(0));
        kept[kept_count++] = memory;
        kept_bytes += memory.size;
        return;
    }
#endif
    unmap(memory);
}

}  // namespace fastopt
