// Working memory.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace fastopt {

// Memory of this thread. Its content lasts until the next call, or until this thread has done its
// part of the job. Returns nullptr if memory is missing.
std::byte* thread_scratch(std::size_t bytes);

// Frees the memory of thread_scratch() if it is too large to keep for the next job.
void trim_thread_scratch();

// Memory for a call, not zeroed. Blocks of 64 KiB to 16 MiB are kept for the next call of this
// thread. malloc may return such blocks to the system, which zeroes their pages again: a sixth of
// the time of cross-entropy with few classes.
std::byte* take_block(std::size_t bytes);
void give_back_block(std::byte* block, std::size_t bytes) noexcept;

template <class T>
struct BlockAllocator {
    using value_type = T;

    BlockAllocator() = default;
    template <class U>
    BlockAllocator(const BlockAllocator<U>&) {}

    T* allocate(std::size_t count) { return reinterpret_cast<T*>(take_block(count * sizeof(T))); }
    void deallocate(T* block, std::size_t count) noexcept {
        give_back_block(reinterpret_cast<std::byte*>(block), count * sizeof(T));
    }
    template <class U, class... Values>
    void construct(U* place, Values&&... values) {
        if constexpr (sizeof...(values) == 0)
            ::new (static_cast<void*>(place)) U;  // not set to zero
        else
            ::new (static_cast<void*>(place)) U(std::forward<Values>(values)...);
    }
    bool operator==(const BlockAllocator&) const { return true; }
    bool operator!=(const BlockAllocator&) const { return false; }
};

// A vector for one call. BlockVector<T>(n) does not set its elements.
template <class T>
using BlockVector = std::vector<T, BlockAllocator<T>>;

}  // namespace fastopt
