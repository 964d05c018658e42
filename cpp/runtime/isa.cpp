// Chooses an instruction set. The tables are compiled from cpp/kernels/updates.cpp and losses.cpp.
#include "isa.hpp"

#include <atomic>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

// CMakeLists.txt defines FASTOPT_ISA_LIST as X(name) X(name) ..., the lowest first.
namespace fastopt {
#define X(isa)                        \
    namespace isa {                   \
    extern const UpdateTable updates; \
    extern const LossTable losses;    \
    }
FASTOPT_ISA_LIST
#undef X

namespace {

struct Isa {
    const char* name;
    const UpdateTable* updates;
    const LossTable* losses;
};

constexpr Isa compiled[] = {
#define X(isa) {#isa, &isa::updates, &isa::losses},
    FASTOPT_ISA_LIST
#undef X
};

// The run-time check of each name: the same features as its flags in CMakeLists.txt.
bool runs_here(std::string_view name) {
#if defined(__x86_64__)
    if (name == "avx2") return __builtin_cpu_supports("avx2");
    if (name == "avx512")
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return name == "baseline" || name == "generic";
}

const Isa& find(std::string_view name) {
    for (const Isa& isa : compiled)
        if (name == isa.name && runs_here(name)) return isa;
    std::string message =
        "instruction set '" + std::string(name) + "' is not available; choose from";
    for (const std::string& choice : available_isas()) message += " " + choice;
    throw std::invalid_argument(message);
}

const Isa& preferred() {
    const char* name = std::getenv("FASTOPT_ISA");
    if (name != nullptr && *name != '\0') {
        try {
            return find(name);
        } catch (const std::invalid_argument& error) {
            throw std::invalid_argument(std::string("FASTOPT_ISA: ") + error.what());
        }
    }
    const Isa* best = &compiled[0];
    for (const Isa& isa : compiled)
        if (runs_here(isa.name)) best = &isa;
    return *best;
}

std::atomic<const Isa*>& active() {
    static std::atomic<const Isa*> isa{&preferred()};
    return isa;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Isa& isa : compiled)
        if (runs_here(isa.name)) names.emplace_back(isa.name);
    return names;
}

std::string active_isa() { return active().load()->name; }

void use_isa(std::string_view name) { active().store(&find(name)); }

const UpdateTable& update_kernels() { return *active().load()->updates; }

const LossTable& loss_kernels() { return *active().load()->losses; }

}  // namespace fastopt
