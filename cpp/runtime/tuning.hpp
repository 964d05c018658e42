// The three numbers that were chosen by measurement (bench/sweep.py); constants outside of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastopt {

struct Tuning {
    std::size_t chunk_size = 16384;  // elements; the grid of the norms' sums, so part of their bits
    std::size_t serial_size = 65536;  // an update of fewer elements runs on one thread
    std::int64_t spin_ns = 50'000;    // how long an idle worker waits before it sleeps
};

inline Tuning tuning;

}  // namespace fastopt
