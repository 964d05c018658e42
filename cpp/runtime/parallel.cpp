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

enum class Stage {
    first,
    second,
    over
};

class Pool {
public:
    // False if another thread's job is running.
    bool try_run(const detail::Job& job, int threads) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn.owns_lock()) return false;
        const int wanted = grow(std::min(threads - 1, max_workers));
        job_ = &job;
        next_[0].store(0, std::memory_order_relaxed);
        next_[1].store(0, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        stage_.store(Stage::first, std::memory_order_relaxed);
        ++number_;
        gate_.store(number_ << job_shift | open_bit |
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
        const detail::Job& job = *job_;
        const std::size_t finished = run_loop(job.first, next_[0]);
        if (job.between == nullptr) return;
        // Whoever finishes the last index of the first loop decides about the second.
        if (finished > 0 &&
            done_.fetch_add(finished, std::memory_order_acq_rel) + finished == job.first.count)
            stage_.store(job.between(job.between_context) ? Stage::second : Stage::over,
                         std::memory_order_release);
        Stage stage = Stage::first;
        for (int spin = 0; (stage = stage_.load(std::memory_order_acquire)) == Stage::first; ++spin)
            spin < caller_spins ? relax() : static_cast<void>(sched_yield());
        if (stage == Stage::second) run_loop(job.second, next_[1]);
    }

    // Takes indices while there are any; returns how many.
    static std::size_t run_loop(const detail::Loop& loop, std::atomic<std::size_t>& next) {
        std::size_t taken = 0;
        for (std::size_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < loop.count;
             ++taken)
            loop.body(loop.context, index);
        return taken;
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
    std::uint64_t number_ = 0;  // of the job
    const detail::Job* job_ = nullptr;
    alignas(64) std::atomic<std::size_t> next_[2] = {};  // the next index of each loop
    std::atomic<std::size_t> done_{0};                   // indices of the first loop
    std::atomic<Stage> stage_{Stage::first};
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

void detail::run(const Job& job, bool small) noexcept {
    const std::size_t widest = std::max(job.first.count, job.second.count);
    const int limit = small || job.first.count == 0 ? 1 : num_threads();
    const int threads = static_cast<int>(std::min(widest, static_cast<std::size_t>(limit)));
    if (threads > 1 && pool().try_run(job, threads)) return;
    const DefaultFloatingPoint scope;
    for (std::size_t index = 0; index < job.first.count; ++index)
        job.first.body(job.first.context, index);
    if (job.between == nullptr || !job.between(job.between_context)) return;
    for (std::size_t index = 0; index < job.second.count; ++index)
        job.second.body(job.second.context, index);
}

}  // namespace fastopt
