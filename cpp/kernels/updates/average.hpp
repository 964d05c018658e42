// Exponential moving averages of parameters: the average is the array that is updated, and the
// parameter takes the place of its gradient.
#pragma once

#include "update.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct weight_ema : update_defaults {
    static constexpr const char* name = "weight_ema";
    static constexpr Words words = {"WeightEMA", "average of", "parameter"};
    static constexpr bool has_types = false;
    enum : int {
        decay,
        warmup,
        option_count
    };
    static constexpr Option options[] = {
        {"decay", Domain::fraction},
        {"warmup", Domain::flag},
    };

    template <class T>
    struct Scalars {
        T weight;  // of the parameter
    };
    static Prepared<Scalars, 1> prepare(const double* o, std::int64_t step, bool) {
        const auto before = static_cast<double>(step - 1);  // updates
        const double limit = (1.0 + before) / (10.0 + before);
        const bool limited = o[warmup] != 0.0 && limit < o[decay];
        return {.scalars = {.weight = 1.0 - (limited ? limit : o[decay])}, .flags = {step == 1}};
    }

    static constexpr Range<Scalars> ranges[] = {{"1 - decay", &Scalars<double>::weight}};

    template <class T, bool first>
    struct Rule {
        static constexpr unsigned states = 0;
        static constexpr bool copies = first;
        Scalars<T> s;

        void operator()(T& average, T param, T&, T&, T&) const {
            average = first ? param : average + s.weight * (param - average);
        }
    };
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
