// How many threads a step may use: the user's wish, CPU affinity and the cgroup's quota.
#pragma once

#include <cstdint>
#include <string>

namespace fastopt {

// CPUs that this process may run on (affinity).
int affinity_cpus();

// Whole CPUs that the cgroup's quota grants, at least 1; 0 without a quota. `root` is "" for the
// real file system; tests pass a tree of their own.
int cgroup_cpus(const std::string& root);

// The smaller of the two.
int usable_cpus();

// The count in force: FASTOPT_NUM_THREADS, else OMP_NUM_THREADS, else all; at most usable_cpus().
// Throws std::invalid_argument if FASTOPT_NUM_THREADS is not a positive integer.
int num_threads();

// From now on min(count, usable_cpus()); `beyond` lifts that limit, for tests. count >= 1.
void set_num_threads(int count, bool beyond);

// One pointer for each thread. Unlike a thread_local object with a destructor it does not end the
// process where there is no memory for it.
class ThreadSlot {
public:
    explicit ThreadSlot(void (*forget)(void*));  // called with the pointer when its thread ends

    void* get() const;  // nullptr if there is none yet
    bool set(void* pointer) const;

private:
    std::uintptr_t key_ = 0;
    bool made_ = false;
};

}  // namespace fastopt
