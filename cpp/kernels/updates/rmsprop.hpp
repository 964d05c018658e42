// RMSprop (Tieleman and Hinton 2012), plain, centered (Graves 2013), with momentum.
#pragma once

#include "../arithmetic/functions.hpp"
#include "update.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct rmsprop {
    static constexpr const char* name = "rmsprop";
    enum : int {
        lr,
        alpha,
        eps,
        weight_decay,
        momentum,
        centered,
        maximize,
        option_count
    };
    static constexpr Option options[] = {
        {"lr", -1, Domain::non_negative, {}},       {"alpha", -1, Domain::fraction, {}},
        {"eps", -1, Domain::non_negative, {}},      {"weight_decay", -1, Domain::non_negative, {}},
        {"momentum", -1, Domain::non_negative, {}}, {"centered", -1, Domain::flag, {}},
        {"maximize", -1, Domain::flag, {}},
    };
    static constexpr int state_count = 3;
    static constexpr const char* states[] = {"square_avg", "momentum_buffer", "grad_avg"};

    static const char* conflict(const double*) { return nullptr; }
    static bool uses_state(const double* o, int index) {
        return index == 0 || o[index == 1 ? momentum : centered] != 0.0;
    }

    struct Scalars {
        double lr, alpha, one_minus_alpha, eps, weight_decay, momentum;
        bool with_weight_decay, with_momentum, centered;
    };
    static Scalars prepare(const double* o, std::int64_t, bool) {
        return {
            .lr = o[lr],
            .alpha = o[alpha],
            .one_minus_alpha = 1.0 - o[alpha],
            .eps = o[eps],
            .weight_decay = o[weight_decay],
            .momentum = o[momentum],
            .with_weight_decay = o[weight_decay] != 0.0,
            .with_momentum = o[momentum] != 0.0,
            .centered = o[centered] != 0.0,
        };
    }

    static constexpr Range<Scalars> ranges[] = {
        {"lr", &Scalars::lr, Small::may_vanish},
        {"eps", &Scalars::eps, Small::must_not_vanish},
        {"weight_decay", &Scalars::weight_decay, Small::may_vanish},
        {"momentum", &Scalars::momentum, Small::may_vanish},
    };

    template <class T, bool with_weight_decay, bool with_momentum, bool centered>
    struct Rule {
        static constexpr unsigned states = 1 | (with_momentum ? 2 : 0) | (centered ? 4 : 0);
        T lr, alpha, one_minus_alpha, eps, weight_decay, momentum;

        void operator()(T& param, T grad, T& square_avg, T& momentum_buffer, T& grad_avg) const {
            if constexpr (with_weight_decay) grad = grad + weight_decay * param;
            square_avg = alpha * square_avg + one_minus_alpha * grad * grad;
            T variance = square_avg;
            if constexpr (centered) {
                grad_avg = alpha * grad_avg + one_minus_alpha * grad;
                variance = square_avg - grad_avg * grad_avg;
                variance = variance < T{0} ? T{0} : variance;  // rounding; NaN stays NaN
            }
            const T denom = square_root(variance) + eps;
            if constexpr (with_momentum) {
                momentum_buffer = momentum * momentum_buffer + grad / denom;
                param = param - lr * momentum_buffer;
            } else {
                param = param - lr * grad / denom;
            }
        }
    };

    template <class T, class Run>
    static void with_rule(const Scalars& s, Run run) {
        with_flag(s.with_weight_decay, [&](auto decay) {
            with_flag(s.with_momentum, [&](auto momentum) {
                with_flag(s.centered, [&](auto centered) {
                    run(Rule<T, decay.value, momentum.value, centered.value>{
                        static_cast<T>(s.lr), static_cast<T>(s.alpha),
                        static_cast<T>(s.one_minus_alpha), static_cast<T>(s.eps),
                        static_cast<T>(s.weight_decay), static_cast<T>(s.momentum)});
                });
            });
        });
    }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
