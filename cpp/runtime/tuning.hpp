// The numbers that bench/sweep.py has measured. Only bench/sweep.py and the tests change them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastopt {

struct Tuning {
    // Elements. The size of a chunk, which is the unit of work of a thread. The bits of a norm
    // depend on it, because it sets the order of the sums.
    std::size_t chunk_size = 16384;

    // Elements. A smaller update runs on one thread, because sharing it takes longer.
    std::size_t serial_size = 24576;

    // Elements. A smaller update runs on one thread if the workers sleep and jobs are rare, because
    // waking the workers takes 20 to 60 us.
    std::size_t wake_size = 196608;

    // Elements. A smaller update runs backwards every second time, so that it begins with the data
    // that the last update has left in the caches.
    std::size_t turn_size = 2 << 20;

    // Nanoseconds. An idle worker spins for this time before it sleeps. A job that comes later
    // after the one before counts as rare.
    std::int64_t spin_ns = 100'000;
};

inline Tuning tuning;

}  // namespace fastopt
