// A persistent pool of threads that spin shortly and then sleep.
//
// One atomic word, the gate, says which job is open and how many workers are inside it:
//   bits 0-15 workers inside, 16-31 workers wanted, 32 open, 33-63 number of the job.
// A worker enters by compare-and-swap while the gate is open; the caller shuts the gate when all
// chunks are handed out and waits only for those inside. So a worker that wakes late costs nothing,
// and a job's fields never change while anyone may read them.
#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

#include "threads.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastopt {
namespace {

// The host's rounding mode, flush-to-zero and exception flags, put aside for the time of a step.
class DefaultFloatingPoint {
public:
#if defined(__x86_64__)
    DefaultFloatingPoint() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~DefaultFloatingPoint() { _mm_setcsr(saved_); }

private:
    unsigned saved_;
#else
    DefaultFloatingPoint() {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFloatingPoint() { std::fesetenv(&saved_); }

private:
    std::fenv_t saved_;
#endif
public:
    DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
    DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;
};

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr std::uint64_t inside_mask = 0xffff;
constexpr int wanted_shift = 16;
constexpr std::uint64_t wanted_mask = 0xffff;
constexpr std::uint64_t open_bit = std::uint64_t{1} << 32;
constexpr int job_shift = 33;
constexpr int max_workers = 0xffff;
constexpr int worker_spins = 2000;  // about 50 us: the time between the steps of a small model
constexpr int caller_spins = 2000;  // then yield: a worker inside may have lost its core

class Pool {
public:
    // False if another thread's job is running.
    bool try_run(std::size_t count, int threads, detail::Body body, const void* context) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn.owns_lock()) return false;
        const int wanted = grow(std::min(threads - 1, max_workers));
        body_ = body;
        context_ = context;
        count_ = count;
        next_.store(0, std::memory_order_relaxed);
        ++job_;
        gate_.store(job_ << job_shift | open_bit |
                    static_cast<std::uint64_t>(wanted) << wanted_shift);
        if (sleepers_.load() > 0) {
            const std::lock_guard<std::mutex> lock(sleep_);
            wake_.notify_all();
        }
        work();
        gate_.fetch_and(~open_bit, std::memory_order_acq_rel);
        for (int spin = 0; gate_.load(std::memory_order_acquire) & inside_mask; ++spin)
            spin < caller_spins ? relax() : static_cast<void>(sched_yield());
        return true;
    }

private:
    void work() {
        const DefaultFloatingPoint scope;
        for (std::size_t index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < count_;)
            body_(context_, index);
    }

    // Starts workers until there are `wanted`; fewer if the system grants no more.
    int grow(int wanted) {
        if (workers_ >= wanted) return wanted;
        sigset_t all, before;  // signals belong to the host's threads
        sigfillset(&all);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&all, fault);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            while (workers_ < wanted) {
                std::thread([this, number = workers_] { serve(number); }).detach();
                ++workers_;
            }
        } catch (const std::exception&) {  // fewer threads, the same result
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return workers_;
    }

    // Whether worker `number` should enter the job that `gate` shows, having seen job `seen`.
    static bool is_call(std::uint64_t gate, int number, std::uint64_t seen) {
        return (gate & open_bit) != 0 && gate >> job_shift != seen &&
               static_cast<std::uint64_t>(number) < (gate >> wanted_shift & wanted_mask);
    }

    [[noreturn]] void serve(int number) {
        std::uint64_t seen = 0;
        while (true) {
            std::uint64_t gate = gate_.load(std::memory_order_acquire);
            for (int spin = 0; !is_call(gate, number, seen) && spin < worker_spins; ++spin) {
                relax();
                gate = gate_.load(std::memory_order_acquire);
            }
            if (!is_call(gate, number, seen)) {
                std::unique_lock<std::mutex> lock(sleep_);
                sleepers_.fetch_add(1);
                wake_.wait(lock, [&] { return is_call(gate = gate_.load(), number, seen); });
                sleepers_.fetch_sub(1);
            }
            while (is_call(gate, number, seen)) {
                if (!gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel,
                                                 std::memory_order_acquire))
                    continue;
                seen = gate >> job_shift;
                work();
                gate_.fetch_sub(1, std::memory_order_acq_rel);
            }
        }
    }

    std::mutex turn_;  // held by the thread whose job is running
    int workers_ = 0;
    std::uint64_t job_ = 0;
    detail::Body body_ = nullptr;
    const void* context_ = nullptr;
    std::size_t count_ = 0;
    alignas(64) std::atomic<std::size_t> next_{0};
    alignas(64) std::atomic<std::uint64_t> gate_{0};
    std::mutex sleep_;
    std::condition_variable wake_;
    std::atomic<int> sleepers_{0};
};

// Never destroyed: its threads live until the process ends. A child of fork() has none of them, so
// it forgets the pool and makes its own.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
    Pool* existing = the_pool.load(std::memory_order_acquire);
    if (existing != nullptr) return *existing;
    Pool* fresh = new Pool;
    if (the_pool.compare_exchange_strong(existing, fresh)) return *fresh;
    delete fresh;
    return *existing;
}

}  // namespace

void forget_pool_after_fork() {
    if (pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); }) != 0)
        throw std::bad_alloc();
}

void detail::parallel_for(std::size_t count, bool small, Body body, const void* context) noexcept {
    const int threads =
        small
            ? 1
            : static_cast<int>(std::min<std::size_t>(count, static_cast<unsigned>(num_threads())));
    if (threads > 1 && pool().try_run(count, threads, body, context)) return;
    const DefaultFloatingPoint scope;
    for (std::size_t index = 0; index < count; ++index) body(context, index);
}

}  // namespace fastopt
