// Memory of large results, kept for reuse. New memory costs as much time as a loss, because the
// system zeroes each page. So the memory of a freed result is kept for the next result of the same
// size, up to 256 MiB in all. The system may take the pages of kept memory back.
#pragma once

#include <cstddef>

namespace fastopt {

// Bytes. Smaller results use malloc: glibc reuses blocks of up to 32 MiB by itself.
constexpr std::size_t large_result = 32 << 20;

struct Memory {
    void* data;  // nullptr if there is none
    std::size_t size;
};

// Both must be called with the GIL, which protects the kept blocks. The memory is not zeroed.
Memory take_memory(std::size_t size);
void give_back(Memory memory);

}  // namespace fastopt
