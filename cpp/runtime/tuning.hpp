// The numbers that were chosen by measurement (bench/sweep.py); constants outside of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastopt {

struct Tuning {
    // Elements of a chunk. The grid of the norms' sums, so part of their bits.
    std::size_t chunk_size = 16384;
    // An update of fewer elements runs on one thread,
    std::size_t serial_size = 24576;
    // and so does one of fewer than this whose workers sleep, if such jobs come seldom.
    std::size_t wake_size = 196608;
    // One of fewer runs backwards every other time, for what the last one has left in the caches.
    std::size_t turn_size = 2 << 20;
    // How long an idle worker waits before it sleeps; jobs that come sooner are not seldom.
    std::int64_t spin_ns = 100'000;
};

inline Tuning tuning;

}  // namespace fastopt
