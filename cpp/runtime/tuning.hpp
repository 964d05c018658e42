// The numbers that bench/sweep.py has measured. Only bench/sweep.py and the tests change them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastopt {

struct Tuning {
    // Elements of a chunk. The bits of a norm depend on it, because it sets the order of the sums.
    std::size_t chunk_size = 16384;
    // An update of fewer elements runs on one thread: sharing it would take longer.
    std::size_t serial_size = 24576;
    // If the workers sleep and jobs are rare, an update of fewer elements runs on one thread:
    // waking the workers takes 20 to 60 us.
    std::size_t wake_size = 196608;
    // An update of fewer elements runs backwards every second time: it then begins with the data
    // that the last update has left in the caches.
    std::size_t turn_size = 2 << 20;
    // Nanoseconds that an idle worker spins before it sleeps. Jobs with longer gaps are rare jobs.
    std::int64_t spin_ns = 100'000;
};

inline Tuning tuning;

}  // namespace fastopt
