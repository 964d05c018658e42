// Stores past the caches, for output that will not be read soon. A cache line that is overwritten
// whole is then not read first, and the caches keep what they hold.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastopt::FASTOPT_ISA {
namespace {

#if defined(__x86_64__)
constexpr std::size_t stream_alignment = 16;

// `to` is a multiple of stream_alignment, and so is the number of bytes.
inline void stream_bytes(void* to, const void* from, std::size_t bytes) {
    using Vector = float __attribute__((vector_size(16)));
    for (std::size_t i = 0; i < bytes; i += sizeof(Vector)) {
        Vector part;
        __builtin_memcpy(&part, static_cast<const char*>(from) + i, sizeof(part));
#if defined(__clang__)
        __builtin_nontemporal_store(part, reinterpret_cast<Vector*>(static_cast<char*>(to) + i));
#else
        __builtin_ia32_movntps(reinterpret_cast<float*>(static_cast<char*>(to) + i), part);
#endif
    }
}

// Other threads see such stores only after this.
inline void finish_streaming() { __builtin_ia32_sfence(); }

inline bool can_stream(const void* to) {
    return reinterpret_cast<std::uintptr_t>(to) % stream_alignment == 0;
}
#else
inline void stream_bytes(void* to, const void* from, std::size_t bytes) {
    __builtin_memcpy(to, from, bytes);
}
inline void finish_streaming() {}
inline bool can_stream(const void*) { return false; }
#endif

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
