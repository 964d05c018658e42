// One growing buffer for each thread.
#include "scratch.hpp"

#include <memory>
#include <new>

namespace fastopt {
namespace {

// A float32 class axis of 128256 takes 15.7 MiB, if it is not the last.
constexpr std::size_t kept_bytes = 16 << 20;

thread_local std::unique_ptr<std::byte[]> memory;
constinit thread_local std::size_t size = 0;

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

}  // namespace fastopt
