// Exponential moving averages of parameters: a row of the table of optimizers whose "parameter" is
// the average and whose "gradient" is the parameter.
#pragma once

#include "update.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

template <class T>
struct CopyRule {
    static constexpr unsigned states = 0;
    static constexpr bool reads_bits = true;

    void operator()(T& copy, T value, T&, T&, T&) const { copy = value; }
};

struct weight_ema : stateless {
    static constexpr const char* name = "weight_ema";
    static constexpr Words words = {"WeightEMA", "average of", "parameter"};
    enum : int {
        decay,
        warmup,
        option_count
    };
    static constexpr Option options[] = {
        {"decay", -1, Domain::fraction, {}},
        {"warmup", -1, Domain::flag, {}},
    };

    struct Scalars {
        double weight;  // of the parameter
        bool first;
    };
    static Scalars prepare(const double* o, std::int64_t step, bool) {
        const auto before = static_cast<double>(step - 1);  // updates
        const double limit = (1.0 + before) / (10.0 + before);
        const bool limited = o[warmup] != 0.0 && limit < o[decay];
        return {.weight = 1.0 - (limited ? limit : o[decay]), .first = step == 1};
    }

    static constexpr Range<Scalars> ranges[] = {
        {"1 - decay", &Scalars::weight, Small::may_vanish},
    };

    template <class T>
    struct Rule {
        static constexpr unsigned states = 0;
        T weight;

        void operator()(T& average, T param, T&, T&, T&) const {
            average = average + weight * (param - average);
        }
    };

    template <class T, class Run>
    static void with_rule(const Scalars& s, Run run) {
        if (s.first) return run(CopyRule<T>{});
        run(Rule<T>{static_cast<T>(s.weight)});
    }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
