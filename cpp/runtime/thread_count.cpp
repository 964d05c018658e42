// The number of threads, from the environment, the scheduler and the cgroup files.
#include "thread_count.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace fastopt {
namespace {

std::optional<int> positive_integer(std::string_view text) {
    int value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (end != text.data() + text.size() || text.starts_with('-')) return std::nullopt;
    if (error == std::errc::result_out_of_range) return std::numeric_limits<int>::max();
    if (error != std::errc{} || value < 1) return std::nullopt;
    return value;
}

// Quota over period in whole CPUs; 0 without a quota ("max", -1, a missing file).
int whole_cpus(double quota, double period) {
    return quota > 0 && period > 0 ? std::max(1, static_cast<int>(quota / period)) : 0;
}

int quota_v2(const std::string& folder) {
    std::ifstream file(folder + "/cpu.max");
    double quota = 0, period = 0;
    return file >> quota >> period ? whole_cpus(quota, period) : 0;
}

int quota_v1(const std::string& folder) {
    std::ifstream quota_file(folder + "/cpu.cfs_quota_us");
    std::ifstream period_file(folder + "/cpu.cfs_period_us");
    double quota = 0, period = 0;
    return quota_file >> quota && period_file >> period ? whole_cpus(quota, period) : 0;
}

// The smallest quota of a group and all its parents.
int tightest(const std::string& mount, std::string group, int (*quota)(const std::string&)) {
    int cpus = 0;
    while (true) {
        const int here = quota(mount + group);
        if (here > 0) cpus = cpus == 0 ? here : std::min(cpus, here);
        if (group.empty()) return cpus;
        const auto slash = group.rfind('/');
        group.erase(slash == std::string::npos ? 0 : slash);
    }
}

// Whether "cpu" is in a list such as "cpu,cpuacct".
bool lists_cpu(std::string_view controllers) {
    while (true) {
        const auto comma = controllers.find(',');
        if (controllers.substr(0, comma) == "cpu") return true;
        if (comma == std::string_view::npos) return false;
        controllers.remove_prefix(comma + 1);
    }
}

int from_environment() {
    if (const char* text = std::getenv("FASTOPT_NUM_THREADS"); text != nullptr && *text != '\0') {
        if (const auto count = positive_integer(text)) return *count;
        throw std::invalid_argument("FASTOPT_NUM_THREADS must be a positive integer, not '" +
                                    std::string(text) + "'");
    }
    if (const char* text = std::getenv("OMP_NUM_THREADS")) {
        const std::string_view list = text;  // one count for each level of nesting
        if (const auto count = positive_integer(list.substr(0, list.find(',')))) return *count;
    }
    return usable_cpus();
}

std::atomic<int>& current() {
    static std::atomic<int> count{std::min(from_environment(), usable_cpus())};
    return count;
}

}  // namespace

int affinity_cpus() {
#if defined(__linux__)
    for (std::size_t cpus = 1024; cpus <= (1u << 20); cpus *= 2) {  // grow until the kernel's fits
        std::vector<cpu_set_t> set(cpus / CPU_SETSIZE);
        const std::size_t bytes = set.size() * sizeof(cpu_set_t);
        if (sched_getaffinity(0, bytes, set.data()) == 0)
            return std::max(1, CPU_COUNT_S(bytes, set.data()));
    }
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int cgroup_cpus(const std::string& root) {
    int cpus = 0;
    const auto keep = [&](int found) {
        if (found > 0) cpus = cpus == 0 ? found : std::min(cpus, found);
    };
    const std::string mount = root + "/sys/fs/cgroup";
    std::ifstream groups(root + "/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // number:controllers:/path
        const auto first = line.find(':');
        const auto second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        std::string path = line.substr(second + 1);
        if (path == "/") path.clear();
        if (controllers.empty()) {
            keep(tightest(mount, path, quota_v2));
        } else if (lists_cpu(controllers)) {
            std::string folder = mount;
            folder.append("/").append(controllers);
            keep(tightest(folder, path, quota_v1));
        }
    }
    return cpus;
}

int usable_cpus() {
    const int quota = cgroup_cpus("");
    return quota > 0 ? std::min(quota, affinity_cpus()) : affinity_cpus();
}

int num_threads() { return current().load(std::memory_order_relaxed); }

void set_num_threads(int count, bool beyond) {
    if (count < 1)
        throw std::invalid_argument("the number of threads must be at least 1, not " +
                                    std::to_string(count));
    current().store(beyond ? count : std::min(count, usable_cpus()));
}

ThreadSlot::ThreadSlot(void (*forget)(void*)) {
    pthread_key_t key{};
    made_ = pthread_key_create(&key, forget) == 0;
    key_ = key;
}

void* ThreadSlot::get() const {
    return made_ ? pthread_getspecific(static_cast<pthread_key_t>(key_)) : nullptr;
}

bool ThreadSlot::set(void* pointer) const {
    return made_ && pthread_setspecific(static_cast<pthread_key_t>(key_), pointer) == 0;
}

}  // namespace fastopt
