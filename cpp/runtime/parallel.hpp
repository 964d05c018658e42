// parallel_for over a fixed grid of chunks: the thread pool. Nothing else in fastopt knows threads.
#pragma once

#include <cstddef>
#include <memory>

namespace fastopt {

// Once, before the first parallel_for: a child of fork() starts a fresh pool.
void forget_pool_after_fork();

namespace detail {
using Body = void (*)(const void* context, std::size_t index);
void parallel_for(std::size_t count, bool small, Body body, const void* context) noexcept;
}  // namespace detail

// Calls body(index) once for each index in [0, count), on num_threads() threads, or on this one if
// the work is `small` or the pool is busy with another caller's. Returns when all calls have
// returned. Each call runs with the default floating-point environment; the caller's is restored.
// `body` must not throw, and its result must not depend on the order of the calls.
template <class F>
void parallel_for(std::size_t count, bool small, const F& body) noexcept {
    const auto call = [](const void* context, std::size_t index) {
        (*static_cast<const F*>(context))(index);
    };
    detail::parallel_for(count, small, call, std::addressof(body));
}

// Runs `body` on this thread with the default floating-point environment.
template <class F>
void with_default_floating_point(const F& body) noexcept {
    parallel_for(1, true, [&](std::size_t) { body(); });
}

}  // namespace fastopt
