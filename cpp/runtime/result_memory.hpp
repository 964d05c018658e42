// Memory of large results. The system hands out new memory page by page and zeroes it, which takes
// as long as the loss that is written there; so that of a result that has died is kept for the next
// one of its size, up to 256 MiB in all. Meanwhile the system may take its pages back.
#pragma once

#include <cstddef>

namespace fastopt {

// What is smaller is left to malloc: glibc's keeps blocks of up to 32 MiB in the same way.
constexpr std::size_t large_result = 32 << 20;

struct Memory {
    void* data;  // nullptr if there is none
    std::size_t size;
};

// Not zeroed. What is kept has no lock of its own: callers of either hold one, Python's.
Memory take_memory(std::size_t size);
void give_back(Memory memory);

}  // namespace fastopt
