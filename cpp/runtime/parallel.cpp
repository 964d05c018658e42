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
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

#include "threads.hpp"
#include "tuning.hpp"

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
constexpr int max_workers = 1023;
constexpr int caller_spins = 2000;  // then yield: a worker inside may have lost its core

enum class Stage {
    first,
    second,
    over
};

int current_cpu() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

// A worker that has woken up on the caller's core would only take turns with the caller. The system
// puts it there when a thread of the host (a BLAS waiting for work) spins on each of the others,
// and tends to keep it there. So the worker leaves.
class CoreChoice {
public:
    void leave([[maybe_unused]] int cpu) {
#if defined(__linux__)
        if (cpu < 0 || current_cpu() != cpu) return;
        cpu_set_t allowed;
        if (pthread_getaffinity_np(pthread_self(), sizeof(allowed), &allowed) != 0) return;
        if (left_ >= 0) CPU_SET(left_, &allowed);
        CPU_CLR(cpu, &allowed);
        if (CPU_COUNT(&allowed) == 0) return;
        if (pthread_setaffinity_np(pthread_self(), sizeof(allowed), &allowed) == 0) left_ = cpu;
#endif
    }

private:
    [[maybe_unused]] int left_ = -1;  // the core that this worker may not use at present
};

// The indices that one thread of a team begins with, and others help with when theirs are done: so
// a thread meets the same memory in every step, which may still be in its cache.
struct alignas(64) Range {
    std::atomic<std::size_t> next{0};
    std::size_t end = 0;
};

class Pool {
public:
    // False if another thread's job is running.
    bool try_run(const detail::Job& job, int threads) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn.owns_lock()) return false;
        const int wanted = grow(std::min(threads - 1, max_workers));
        job_ = &job;
        caller_cpu_ = current_cpu();
        ranges_ = static_cast<std::size_t>(wanted) + 1;
        share_out(job.first.count, first_ranges_);
        share_out(job.second.count, second_ranges_);
        done_.store(0, std::memory_order_relaxed);
        stage_.store(Stage::first, std::memory_order_relaxed);
        ++number_;
        gate_.store(number_ << job_shift | open_bit |
                    static_cast<std::uint64_t>(wanted) << wanted_shift);
        if (sleepers_.load() > 0) {
            const std::lock_guard<std::mutex> lock(sleep_);
            wake_.notify_all();
        }
        work(0);
        gate_.fetch_and(~open_bit, std::memory_order_acq_rel);
        for (int spin = 0; gate_.load(std::memory_order_acquire) & inside_mask; ++spin)
            spin < caller_spins ? relax() : static_cast<void>(sched_yield());
        return true;
    }

private:
    void share_out(std::size_t count, Range* ranges) const {
        const std::size_t part = count / ranges_, rest = count % ranges_;
        for (std::size_t r = 0, begin = 0; r < ranges_; ++r) {
            ranges[r].next.store(begin, std::memory_order_relaxed);
            ranges[r].end = begin += part + (r < rest);
        }
    }

    // As member number `who` of the team; the caller is number 0.
    void work(std::size_t who) {
        const DefaultFloatingPoint scope;
        const detail::Job& job = *job_;
        const std::size_t finished = run_loop(job.first, first_ranges_, who);
        if (job.between == nullptr) return;
        // Whoever finishes the last index of the first loop decides about the second.
        if (finished > 0 &&
            done_.fetch_add(finished, std::memory_order_acq_rel) + finished == job.first.count)
            stage_.store(job.between(job.between_context) ? Stage::second : Stage::over,
                         std::memory_order_release);
        Stage stage = Stage::first;
        for (int spin = 0; (stage = stage_.load(std::memory_order_acquire)) == Stage::first; ++spin)
            spin < caller_spins ? relax() : static_cast<void>(sched_yield());
        if (stage == Stage::second) run_loop(job.second, second_ranges_, who);
    }

    // Takes indices while there are any; returns how many.
    std::size_t run_loop(const detail::Loop& loop, Range* ranges, std::size_t who) const {
        std::size_t taken = 0;
        for (std::size_t i = 0; i < ranges_; ++i) {
            Range& range = ranges[(who + i) % ranges_];
            for (std::size_t index;
                 (index = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end; ++taken)
                loop.body(loop.context, index);
        }
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
        using Clock = std::chrono::steady_clock;
        std::uint64_t seen = 0;
        bool spin = true;
        CoreChoice cores;
        while (true) {
            std::uint64_t gate = gate_.load(std::memory_order_acquire);
            const auto limit = Clock::now() + std::chrono::nanoseconds(tuning.spin_ns);
            while (spin && !is_call(gate, number, seen) && Clock::now() < limit) {
                for (int i = 0; i < 8 && !is_call(gate, number, seen); ++i) {
                    relax();
                    gate = gate_.load(std::memory_order_acquire);
                }
            }
            if (!is_call(gate, number, seen)) {
                std::unique_lock<std::mutex> lock(sleep_);
                sleepers_.fetch_add(1);
                wake_.wait(lock, [&] { return is_call(gate = gate_.load(), number, seen); });
                sleepers_.fetch_sub(1);
            }
            // Jobs that come seldom find a sleeping worker: it leaves its core to the host, whose
            // own threads (BLAS) want it between two steps.
            spin = Clock::now() < limit;
            while (is_call(gate, number, seen)) {
                if (!gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel,
                                                 std::memory_order_acquire))
                    continue;
                seen = gate >> job_shift;
                cores.leave(caller_cpu_);
                work(static_cast<std::size_t>(number) + 1);
                gate_.fetch_sub(1, std::memory_order_acq_rel);
            }
        }
    }

    std::mutex turn_;  // held by the thread whose job is running
    int workers_ = 0;
    std::uint64_t number_ = 0;  // of the job
    const detail::Job* job_ = nullptr;
    int caller_cpu_ = -1;
    std::size_t ranges_ = 1;  // of the team; each loop has its own
    Range first_ranges_[max_workers + 1], second_ranges_[max_workers + 1];
    alignas(64) std::atomic<std::size_t> done_{0};  // indices of the first loop
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
