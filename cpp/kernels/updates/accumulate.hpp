// Weighted sums of gradients: a row of the table of optimizers whose "parameter" is the sum.
#pragma once

#include "update.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct accumulate : stateless {
    static constexpr const char* name = "accumulate";
    static constexpr Words words = {"GradAccumulator", "sum of", "gradient of"};
    enum : int {
        weight,
        option_count
    };
    static constexpr Option options[] = {
        {"weight", -1, Domain::non_negative, {}},
    };

    struct Scalars {
        double weight;
        bool first;
    };
    static Scalars prepare(const double* o, std::int64_t step, bool) {
        return {.weight = o[weight], .first = step == 1};
    }

    static constexpr Range<Scalars> ranges[] = {
        {"weight", &Scalars::weight, Small::must_not_vanish},
    };

    // The first gradient replaces whatever is there: nothing need be set to zero.
    template <class T, bool first>
    struct Rule {
        static constexpr unsigned states = 0;
        T weight;

        void operator()(T& sum, T grad, T&, T&, T&) const {
            sum = first ? weight * grad : sum + weight * grad;
        }
    };

    template <class T, class Run>
    static void with_rule(const Scalars& s, Run run) {
        with_flag(s.first,
                  [&](auto first) { run(Rule<T, first.value>{static_cast<T>(s.weight)}); });
    }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
