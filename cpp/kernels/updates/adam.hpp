// Adam (Kingma and Ba 2015), AMSGrad (Reddi et al. 2018), AdamW (Loshchilov and Hutter 2019).
#pragma once

#include "../arithmetic/power.hpp"
#include "update.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct adam : update_defaults {
    static constexpr const char* name = "adam";
    enum : int {
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        amsgrad,
        maximize,
        decoupled_weight_decay,
        option_count
    };
    static constexpr Option options[] = {
        {"lr", Domain::non_negative},
        {"betas", Domain::decay_rate, 0},
        {"betas", Domain::decay_rate, 1},
        {"eps", Domain::non_negative},
        {"weight_decay", Domain::non_negative},
        {"amsgrad", Domain::flag},
        {"maximize", Domain::flag},
        {"decoupled_weight_decay", Domain::flag},
    };
    static constexpr int state_count = 3;
    static constexpr const char* states[] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
    static constexpr int second_moment = 1;
    static constexpr bool first_is_optional = true;  // if beta1 is 0

    static bool uses_state(const double* o, int index) {
        if (index == 0) return o[beta1] != 0.0;
        return index == 1 || o[amsgrad] != 0.0;
    }

    template <class T>
    struct Scalars {
        T step_size, shrink, weight_decay, eps, inverse_root_correction2;
        T beta1, one_minus_beta1, beta2, one_minus_beta2;
    };
    static Prepared<Scalars, 2> prepare(const double* o, std::int64_t step, bool) {
        const bool decoupled = o[decoupled_weight_decay] != 0.0;
        const double root_correction2 = square_root(one_minus_power(o[beta2], step));
        return {
            .scalars = {.step_size = o[lr] / one_minus_power(o[beta1], step),
                        .shrink = decoupled ? 1.0 - o[lr] * o[weight_decay] : 1.0,
                        .weight_decay = o[weight_decay],
                        .eps = o[eps],
                        .inverse_root_correction2 = 1.0 / root_correction2,
                        .beta1 = o[beta1],
                        .one_minus_beta1 = 1.0 - o[beta1],
                        .beta2 = o[beta2],
                        .one_minus_beta2 = 1.0 - o[beta2]},
            .flags = {!decoupled && o[weight_decay] != 0.0, o[amsgrad] != 0.0},
        };
    }

    static constexpr Range<Scalars> ranges[] = {
        {"lr / (1 - betas[0]**step)", &Scalars<double>::step_size},
        {"1 - lr * weight_decay", &Scalars<double>::shrink},
        {"weight_decay", &Scalars<double>::weight_decay},
        {"eps", &Scalars<double>::eps, Small::must_not_vanish},
    };

    template <class T, bool with_weight_decay, bool amsgrad>
    struct Rule {
        static constexpr unsigned states = amsgrad ? 7 : 3;
        Scalars<T> s;

        void operator()(T& param, T grad, T& exp_avg, T& exp_avg_sq, T& max_exp_avg_sq) const {
            if constexpr (with_weight_decay) grad = grad + s.weight_decay * param;
            exp_avg = s.beta1 * exp_avg + s.one_minus_beta1 * grad;
            exp_avg_sq = s.beta2 * exp_avg_sq + s.one_minus_beta2 * grad * grad;
            T second = exp_avg_sq;
            if constexpr (amsgrad) {
                // NaN enters the maximum, and stays.
                const bool keep = max_exp_avg_sq >= exp_avg_sq || max_exp_avg_sq != max_exp_avg_sq;
                max_exp_avg_sq = keep ? max_exp_avg_sq : exp_avg_sq;
                second = max_exp_avg_sq;
            }
            const T denom = square_root(second) * s.inverse_root_correction2 + s.eps;
            param = s.shrink * param - s.step_size * exp_avg / denom;
        }
    };
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
