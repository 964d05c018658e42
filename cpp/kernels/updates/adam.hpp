// Adam (Kingma and Ba 2015), AMSGrad (Reddi et al. 2018), AdamW (Loshchilov and Hutter 2019).
#pragma once

#include "../arithmetic/functions.hpp"
#include "update.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct adam {
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
        {"lr", -1, Domain::non_negative, {}},
        {"betas", 0, Domain::decay_rate, {}},
        {"betas", 1, Domain::decay_rate, {}},
        {"eps", -1, Domain::non_negative, {}},
        {"weight_decay", -1, Domain::non_negative, {}},
        {"amsgrad", -1, Domain::flag, {}},
        {"maximize", -1, Domain::flag, {}},
        {"decoupled_weight_decay", -1, Domain::flag, {}},
    };
    static constexpr int state_count = 3;
    static constexpr const char* states[] = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"};

    static const char* conflict(const double*) { return nullptr; }
    static bool uses_state(const double* o, int index) { return index < 2 || o[amsgrad] != 0.0; }

    struct Scalars {
        double step_size, shrink, weight_decay, eps, inverse_root_correction2;
        double beta1, one_minus_beta1, beta2, one_minus_beta2;
        bool with_weight_decay, amsgrad;
    };
    static Scalars prepare(const double* o, std::int64_t step, bool) {
        const bool decoupled = o[decoupled_weight_decay] != 0.0;
        return {
            .step_size = o[lr] / one_minus_power(o[beta1], step),
            .shrink = decoupled ? 1.0 - o[lr] * o[weight_decay] : 1.0,
            .weight_decay = o[weight_decay],
            .eps = o[eps],
            .inverse_root_correction2 = 1.0 / square_root(one_minus_power(o[beta2], step)),
            .beta1 = o[beta1],
            .one_minus_beta1 = 1.0 - o[beta1],
            .beta2 = o[beta2],
            .one_minus_beta2 = 1.0 - o[beta2],
            .with_weight_decay = !decoupled && o[weight_decay] != 0.0,
            .amsgrad = o[amsgrad] != 0.0,
        };
    }

    static constexpr Range<Scalars> ranges[] = {
        {"lr / (1 - betas[0]**step)", &Scalars::step_size, Small::may_vanish},
        {"1 - lr * weight_decay", &Scalars::shrink, Small::may_vanish},
        {"weight_decay", &Scalars::weight_decay, Small::may_vanish},
        {"eps", &Scalars::eps, Small::must_not_vanish},
    };

    template <class T, bool with_weight_decay, bool amsgrad>
    struct Rule {
        static constexpr unsigned states = amsgrad ? 7 : 3;
        T step_size, shrink, weight_decay, eps, inverse_root_correction2;
        T beta1, one_minus_beta1, beta2, one_minus_beta2;

        void operator()(T& param, T grad, T& exp_avg, T& exp_avg_sq, T& max_exp_avg_sq) const {
            if constexpr (with_weight_decay) grad = grad + weight_decay * param;
            exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
            exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad;
            T second = exp_avg_sq;
            if constexpr (amsgrad) {
                // NaN enters the maximum, and stays.
                const bool keep = max_exp_avg_sq >= exp_avg_sq || max_exp_avg_sq != max_exp_avg_sq;
                max_exp_avg_sq = keep ? max_exp_avg_sq : exp_avg_sq;
                second = max_exp_avg_sq;
            }
            const T denom = square_root(second) * inverse_root_correction2 + eps;
            param = shrink * param - step_size * exp_avg / denom;
        }
    };

    template <class T, class Run>
    static void with_rule(const Scalars& s, Run run) {
        with_flag(s.with_weight_decay, [&](auto decay) {
            with_flag(s.amsgrad, [&](auto amsgrad) {
                run(Rule<T, decay.value, amsgrad.value>{
                    static_cast<T>(s.step_size), static_cast<T>(s.shrink),
                    static_cast<T>(s.weight_decay), static_cast<T>(s.eps),
                    static_cast<T>(s.inverse_root_correction2), static_cast<T>(s.beta1),
                    static_cast<T>(s.one_minus_beta1), static_cast<T>(s.beta2),
                    static_cast<T>(s.one_minus_beta2)});
            });
        });
    }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
