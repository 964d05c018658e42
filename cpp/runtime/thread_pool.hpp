// The thread pool: parallel_for over a fixed grid of chunks. No other file of fastopt uses threads.
#pragma once

#include <cstddef>
#include <memory>

namespace fastopt {

// To be called once, before the first parallel_for. A child of fork() then starts a new pool.
void forget_pool_after_fork();

// The number of forks between the first process and this one.
unsigned fork_count();

namespace detail {
// A loop over [0, count), type-erased.
struct Loop {
    std::size_t count = 0;
    void (*body)(const void* context, std::size_t index) = nullptr;
    const void* context = nullptr;
    bool backwards = false;  // each thread begins with the last of its indices
};
template <class F>
Loop make_loop(std::size_t count, const F& body, bool backwards) {
    return {
        count,
        [](const void* context, std::size_t index) { (*static_cast<const F*>(context))(index); },
        std::addressof(body), backwards};
}

// Runs `first`, then calls `between` once, and runs `second` if `between` has returned true.
struct Job {
    Loop first;
    bool (*between)(const void* context) = nullptr;  // nullptr: there is no second loop
    const void* between_context = nullptr;
    Loop second;
};
void run(const Job& job, std::size_t work) noexcept;
}  // namespace detail

// Calls body(index) once for each index in [0, count), on num_threads() threads. Uses only the
// calling thread if the `work` (in elements of an update) is small, or if the pool is busy with the
// job of another caller. Returns when all calls have returned. Each call runs with the default
// floating-point environment; that of the caller is restored. `body` must not throw, and its result
// must not depend on the order of the calls.
template <class F>
void parallel_for(std::size_t count, std::size_t work, const F& body,
                  bool backwards = false) noexcept {
    detail::run({detail::make_loop(count, body, backwards), nullptr, nullptr, {}}, work);
}

// Two loops in one parallel region. `between` is called once, after all calls of the first loop
// have returned. It returns whether the second loop runs.
template <class First, class Between, class Second>
void parallel_for_twice(std::size_t first_count, const First& first, const Between& between,
                        std::size_t second_count, const Second& second, std::size_t work,
                        bool backwards) noexcept {
    const auto call = [](const void* context) { return (*static_cast<const Between*>(context))(); };
    detail::run({detail::make_loop(first_count, first, false), call, std::addressof(between),
                 detail::make_loop(second_count, second, backwards)},
                work);
}

// Runs `body` on this thread with the default floating-point environment.
template <class F>
void with_default_floating_point(const F& body) noexcept {
    parallel_for(1, 0, [&](std::size_t) { body(); });
}

}  // namespace fastopt
