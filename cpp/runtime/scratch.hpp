// Working memory for the threads of the pool.
#pragma once

#include <cstddef>

namespace fastopt {

// Memory of this thread's own, whose content lasts until the next call or the end of this thread's
// part of the job; nullptr if there is none.
std::byte* thread_scratch(std::size_t bytes);

// Frees it if it is too large to be kept from job to job.
void trim_thread_scratch();

}  // namespace fastopt
