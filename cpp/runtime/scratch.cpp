// One growing buffer for each thread.
#include "scratch.hpp"

#include <memory>
#include <new>

namespace fastopt {

std::byte* thread_scratch(std::size_t bytes) {
    thread_local std::unique_ptr<std::byte[]> memory;
    thread_local std::size_t size = 0;
    if (bytes > size) {
        memory.reset(new (std::nothrow) std::byte[bytes]);
        size = memory ? bytes : 0;
    }
    return memory.get();
}

}  // namespace fastopt
