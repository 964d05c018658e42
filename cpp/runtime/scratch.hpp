// Working memory for the threads of the pool.
#pragma once

#include <cstddef>

namespace fastopt {

// Memory of this thread's own, whose content lasts until the next call; nullptr if there is none.
std::byte* thread_scratch(std::size_t bytes);

}  // namespace fastopt
