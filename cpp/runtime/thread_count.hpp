// The number of threads of a step: from the user's setting, the CPU affinity and the cgroup quota.
#pragma once

#include <cstdint>
#include <string>

namespace fastopt {

// The number of CPUs in the affinity mask of this process.
int affinity_cpus();

// The quota of the cgroup in whole CPUs, at least 1; 0 without a quota. `root` is "" for the real
// file system; tests pass another folder.
int cgroup_cpus(const std::string& root);

// The smaller of affinity_cpus() and the quota.
int usable_cpus();

// The number in use: FASTOPT_NUM_THREADS, or else OMP_NUM_THREADS, or else all; at most
// usable_cpus(). Throws std::invalid_argument if FASTOPT_NUM_THREADS is not a positive integer.
int num_threads();

// Sets the number to min(count, usable_cpus()). `beyond` removes this limit, for tests. count >= 1.
void set_num_threads(int count, bool beyond);

// One pointer for each thread. A thread_local object with a destructor would end the process if
// memory for it is missing; this does not.
class ThreadSlot {
public:
    // `forget` is called with the pointer when its thread ends.
    explicit ThreadSlot(void (*forget)(void*));

    void* get() const;  // nullptr if there is none yet
    bool set(void* pointer) const;

private:
    std::uintptr_t key_ = 0;
    bool made_ = false;
};

}  // namespace fastopt
