// Weighted sums of gradients: the sum is the array that is updated.
#pragma once

#include "update.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct accumulate : update_defaults {
    static constexpr const char* name = "accumulate";
    static constexpr Words words = {"GradAccumulator", "sum of", "gradient of"};
    static constexpr bool has_types = false;
    enum : int {
        weight,
        option_count
    };
    static constexpr Option options[] = {{"weight", Domain::non_negative}};

    template <class T>
    struct Scalars {
        T weight;
    };
    static Prepared<Scalars, 1> prepare(const double* o, std::int64_t step, bool) {
        return {.scalars = {.weight = o[weight]}, .flags = {step == 1}};
    }

    static constexpr Range<Scalars> ranges[] = {
        {"weight", &Scalars<double>::weight, Small::must_not_vanish},
    };

    // The first gradient replaces what is in the array: nothing need be set to zero before.
    template <class T, bool first>
    struct Rule {
        static constexpr unsigned states = 0;
        Scalars<T> s;

        void operator()(T& sum, T grad, T&, T&, T&) const {
            sum = first ? s.weight * grad : sum + s.weight * grad;
        }
    };
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
