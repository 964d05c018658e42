// A persistent pool of threads. Idle threads sleep; if jobs follow closely, they spin for a while.
//
// Waking a sleeping thread takes 20 to 60 us. So the caller does a shorter job alone, unless other
// jobs came shortly before it. A spinning worker yields to other threads of the process. If another
// thread takes its core, the worker stops spinning for some jobs.
//
// One atomic word, the gate, holds the open job and the number of workers inside it:
//   bits 0-15 workers inside, 16-31 workers wanted, 32 open, 33-63 number of the job.
// A worker enters by compare-and-swap while the gate is open. The caller closes the gate when all
// chunks are taken, and waits only for the workers inside. So a worker that wakes late costs no
// time, and the fields of a job never change while a worker may read them.
#include "thread_pool.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "floating_point.hpp"
#include "scratch.hpp"
#include "thread_count.hpp"
#include "tuning.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastopt {
namespace {

// The scope of the part of a job that one thread does.
class Part {
public:
    Part() = default;
    ~Part() { trim_thread_scratch(); }
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

private:
    DefaultFloatingPoint scope_;
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

// Workers. Each has a range of indices in the pool, which is allocated once.
constexpr int max_workers = 1023;

// A yield that takes longer means that another thread has used the core.
constexpr auto core_lost = std::chrono::microseconds(10);

// Jobs. After a worker has lost its core, the workers do not spin between the next 16 jobs. Each
// time that it happens again the number doubles, up to 256.
constexpr int crowded_jobs_first = 16;
constexpr int crowded_jobs_most = 256;

// Looks at the gate or the stage, some 30 to 100 us. The caller then yields between two looks,
// because a worker that it waits for may have lost its core.
constexpr int caller_spins = 2000;

// Looks at the gate between two yields of an idle worker.
constexpr int worker_spins = 16;

enum class Stage {
    first,
    second,
    over
};

int current_core() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

// The thread of a worker, which avoids the core of its caller. If other threads of the process (a
// waiting BLAS) spin on all other cores, the system often wakes the worker on the core of its
// caller, and the two would take turns.
class Worker {
public:
    explicit Worker(pthread_t thread) : thread_(thread) {}

    void avoid([[maybe_unused]] int core) {
#if defined(__linux__)
        cpu_set_t cores;
        if (core < 0 || pthread_getaffinity_np(thread_, sizeof(cores), &cores) != 0) return;
        const bool ours = avoided_ >= 0 && CPU_EQUAL(&cores, &set_);
        if (ours && core == avoided_) return;
        if (ours) CPU_SET(avoided_, &cores);  // otherwise the process has set another mask
        avoided_ = -1;
        if (!CPU_ISSET(core, &cores) || CPU_COUNT(&cores) == 1) {
            if (ours) pthread_setaffinity_np(thread_, sizeof(cores), &cores);
            return;
        }
        CPU_CLR(core, &cores);
        if (pthread_setaffinity_np(thread_, sizeof(cores), &cores) != 0) return;
        set_ = cores;
        avoided_ = core;
#endif
    }

private:
    [[maybe_unused]] pthread_t thread_;
    [[maybe_unused]] int avoided_ = -1;  // the core that was removed from its mask
#if defined(__linux__)
    cpu_set_t set_{};  // the mask without that core
#endif
};

using Clock = std::chrono::steady_clock;

void run_alone(const detail::Job& job) {
    const Part part;
    for (std::size_t index = 0; index < job.first.count; ++index)
        job.first.body(job.first.context, index);
    if (job.between == nullptr || !job.between(job.between_context)) return;
    for (std::size_t index = 0; index < job.second.count; ++index)
        job.second.body(job.second.context, index);
}

// The indices of one thread. Other threads take some of them when their own are done. A thread thus
// works on the same memory in every step, which may still be in its cache.
struct alignas(64) Range {
    std::atomic<std::size_t> taken{0};
    std::size_t begin = 0, count = 0;
    bool backwards = false;
};

class Pool {
public:
    // Returns false if the caller should do the job alone: another job is running, or waking the
    // workers would take longer than the job.
    bool try_run(const detail::Job& job, int threads, std::size_t work) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn.owns_lock()) return false;
        const int crowded = crowded_.load(std::memory_order_relaxed);
        if (crowded > 0) crowded_.store(crowded - 1, std::memory_order_relaxed);
        const bool frequent = crowded == 0 && Clock::now() - last_end_.load() <
                                                  std::chrono::nanoseconds(tuning.spin_ns);
        const bool ready = workers() >= threads - 1 && sleepers_.load() == 0;
        if (!frequent && !ready && work < tuning.wake_size) {
            turn.unlock();  // another caller may have a larger job
            run_alone(job);
            last_end_ = Clock::now();
            return true;
        }
        const int wanted = grow(std::min(threads - 1, max_workers));
        job_ = &job;
        ranges_ = static_cast<std::size_t>(wanted) + 1;
        share_out(job.first, first_ranges_);
        share_out(job.second, second_ranges_);
        done_.store(0, std::memory_order_relaxed);
        stage_.store(Stage::first, std::memory_order_relaxed);
        spinning_.store(frequent, std::memory_order_relaxed);
        ++number_;
        gate_.store(number_ << job_shift | open_bit |
                    static_cast<std::uint64_t>(wanted) << wanted_shift);
        const bool grown = wanted > team_;
        team_ = wanted;
        if (sleepers_.load() > 0 || grown) {
            const int core = current_core();
            for (int i = 0; i < wanted; ++i) workers_[static_cast<std::size_t>(i)].avoid(core);
            const std::lock_guard<std::mutex> lock(sleep_);
            wake_.notify_all();
            if (grown) spare_.notify_all();
        }
        run_as(0);
        gate_.fetch_and(~open_bit, std::memory_order_acq_rel);
        for (int spin = 0; gate_.load(std::memory_order_acquire) & inside_mask; ++spin)
            spin < caller_spins ? relax() : static_cast<void>(sched_yield());
        last_end_ = Clock::now();
        return true;
    }

private:
    void share_out(const detail::Loop& loop, Range* ranges) const {
        const std::size_t part = loop.count / ranges_, rest = loop.count % ranges_;
        for (std::size_t r = 0, begin = 0; r < ranges_; ++r) {
            Range& range = ranges[r];
            range.taken.store(0, std::memory_order_relaxed);
            range.begin = begin;
            range.count = part + (r < rest);
            range.backwards = loop.backwards;
            begin += range.count;
        }
    }

    // Runs the job as thread number `who`; the caller is number 0.
    void run_as(std::size_t who) {
        const Part part;
        const detail::Job& job = *job_;
        const std::size_t finished = run_loop(job.first, first_ranges_, who);
        if (job.between == nullptr) return;
        // The thread that finishes the last index of the first loop calls `between`.
        if (finished > 0 &&
            done_.fetch_add(finished, std::memory_order_acq_rel) + finished == job.first.count)
            stage_.store(job.between(job.between_context) ? Stage::second : Stage::over,
                         std::memory_order_release);
        Stage stage = Stage::first;
        for (int spin = 0; (stage = stage_.load(std::memory_order_acquire)) == Stage::first; ++spin)
            spin < caller_spins ? relax() : static_cast<void>(sched_yield());
        if (stage == Stage::second) run_loop(job.second, second_ranges_, who);
    }

    // Takes indices until none is left; returns their number.
    std::size_t run_loop(const detail::Loop& loop, Range* ranges, std::size_t who) const {
        std::size_t taken = 0;
        for (std::size_t i = 0; i < ranges_; ++i) {
            Range& range = ranges[(who + i) % ranges_];
            for (std::size_t k;
                 (k = range.taken.fetch_add(1, std::memory_order_relaxed)) < range.count; ++taken)
                loop.body(loop.context, range.begin + (range.backwards ? range.count - 1 - k : k));
        }
        return taken;
    }

    int workers() const { return static_cast<int>(workers_.size()); }

    // Starts workers until there are `wanted`, or until the system refuses another thread.
    int grow(int wanted) {
        if (workers() >= wanted) return wanted;
        sigset_t all, before;  // workers block all signals except faults
        sigfillset(&all);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&all, fault);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            while (workers() < wanted) {
                workers_.reserve(workers_.size() + 1);
                std::thread thread([this, number = workers()] { serve(number); });
                workers_.emplace_back(thread.native_handle()).avoid(current_core());
                thread.detach();
            }
        } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): fewer threads are enough
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return workers();
    }

    // Waits for a new job for a short time. If another thread of the process (a BLAS, between two
    // steps) takes this core, the workers sleep between the next `patience` jobs.
    template <class IsNew>
    std::uint64_t spin(const IsNew& is_new, int& patience) {
        const auto begin = Clock::now();
        auto now = begin;
        while (now - begin < std::chrono::nanoseconds(tuning.spin_ns)) {
            for (int i = 0; i < worker_spins; ++i) {
                const std::uint64_t gate = gate_.load(std::memory_order_acquire);
                if (is_new(gate)) {
                    patience = crowded_jobs_first;
                    return gate;
                }
                relax();
            }
            sched_yield();
            const auto after = Clock::now();
            if (after - now > core_lost) {
                crowded_.store(patience, std::memory_order_relaxed);
                patience = std::min(2 * patience, crowded_jobs_most);
                break;
            }
            now = after;
        }
        return gate_.load(std::memory_order_acquire);
    }

    [[noreturn]] void serve(int number) {
        std::uint64_t seen = 0;  // the last job that this worker has seen
        int patience = crowded_jobs_first;
        const auto is_new = [&](std::uint64_t gate) { return gate >> job_shift != seen; };
        const auto is_wanted = [&](std::uint64_t gate) {
            return number < static_cast<int>(gate >> wanted_shift & wanted_mask);
        };
        while (true) {
            std::uint64_t gate = gate_.load(std::memory_order_acquire);
            if (!is_wanted(gate)) {
                std::unique_lock<std::mutex> lock(sleep_);
                spare_.wait(lock, [&] { return is_wanted(gate = gate_.load()); });
            } else if (spinning_.load(std::memory_order_relaxed)) {
                gate = spin(is_new, patience);
            }
            if (!is_new(gate)) {
                std::unique_lock<std::mutex> lock(sleep_);
                sleepers_.fetch_add(1);
                wake_.wait(lock, [&] { return is_new(gate = gate_.load()); });
                sleepers_.fetch_sub(1);
            }
            while (is_new(gate)) {
                if ((gate & open_bit) == 0 || !is_wanted(gate)) {  // too late, or for others
                    seen = gate >> job_shift;
                } else if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel,
                                                       std::memory_order_acquire)) {
                    seen = gate >> job_shift;
                    run_as(static_cast<std::size_t>(number) + 1);
                    gate_.fetch_sub(1, std::memory_order_acq_rel);
                }
            }
        }
    }

    std::mutex turn_;              // held by the thread whose job is running
    std::vector<Worker> workers_;  // which never end
    int team_ = 0;                 // the workers wanted by the last job
    std::uint64_t number_ = 0;     // of the job
    std::atomic<Clock::time_point> last_end_{Clock::time_point{}};  // of a job
    std::atomic<bool> spinning_{false};  // the last job came soon after the one before
    std::atomic<int> crowded_{0};        // jobs until workers spin again
    const detail::Job* job_ = nullptr;
    std::size_t ranges_ = 1;  // of the team; each loop has its own
    Range first_ranges_[max_workers + 1], second_ranges_[max_workers + 1];
    alignas(64) std::atomic<std::size_t> done_{0};  // indices of the first loop
    std::atomic<Stage> stage_{Stage::first};
    alignas(64) std::atomic<std::uint64_t> gate_{0};
    std::mutex sleep_;
    std::condition_variable wake_;
    std::condition_variable spare_;  // for workers that the team is too small for
    std::atomic<int> sleepers_{0};
};

// Never destroyed, because its threads run until the process ends. A child of fork() does not have
// these threads, so it drops the pool and makes a new one.
std::atomic<Pool*> the_pool{nullptr};
unsigned forks = 0;  // between the first process and this one

// Returns nullptr if memory for it is missing.
Pool* pool() {
    Pool* existing = the_pool.load(std::memory_order_acquire);
    if (existing != nullptr) return existing;
    Pool* fresh = new (std::nothrow) Pool;
    if (fresh == nullptr || the_pool.compare_exchange_strong(existing, fresh)) return fresh;
    delete fresh;
    return existing;
}

}  // namespace

void forget_pool_after_fork() {
    const auto in_child = [] {
        the_pool.store(nullptr);
        ++forks;
    };
    if (pthread_atfork(nullptr, nullptr, in_child) != 0) throw std::bad_alloc();
}

unsigned fork_count() { return forks; }

void detail::run(const Job& job, std::size_t work) noexcept {
    const std::size_t widest = std::max(job.first.count, job.second.count);
    const int limit = work < tuning.serial_size || job.first.count == 0 ? 1 : num_threads();
    const int threads = static_cast<int>(std::min(widest, static_cast<std::size_t>(limit)));
    Pool* const team = threads > 1 ? pool() : nullptr;
    if (team == nullptr || !team->try_run(job, threads, work)) run_alone(job);
}

}  // namespace fastopt
