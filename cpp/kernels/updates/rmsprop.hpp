// RMSprop (Tieleman and Hinton 2012), plain, centered (Graves 2013), with momentum.
#pragma once

#include "../arithmetic/power.hpp"
#include "update.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct rmsprop : update_defaults {
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
        {"lr", Domain::non_negative},       {"alpha", Domain::fraction},
        {"eps", Domain::non_negative},      {"weight_decay", Domain::non_negative},
        {"momentum", Domain::non_negative}, {"centered", Domain::flag},
        {"maximize", Domain::flag},
    };
    static constexpr int state_count = 3;
    static constexpr const char* states[] = {"square_avg", "momentum_buffer", "grad_avg"};
    static constexpr int second_moment = 0;

    static bool uses_state(const double* o, int index) {
        return index == 0 || o[index == 1 ? momentum : centered] != 0.0;
    }

    template <class T>
    struct Scalars {
        T lr, alpha, one_minus_alpha, eps, weight_decay, momentum;
    };
    static Prepared<Scalars, 3> prepare(const double* o, std::int64_t, bool) {
        return {
            .scalars = {.lr = o[lr],
                        .alpha = o[alpha],
                        .one_minus_alpha = 1.0 - o[alpha],
                        .eps = o[eps],
                        .weight_decay = o[weight_decay],
                        .momentum = o[momentum]},
            .flags = {o[weight_decay] != 0.0, o[momentum] != 0.0, o[centered] != 0.0},
        };
    }

    static constexpr Range<Scalars> ranges[] = {
        {"lr", &Scalars<double>::lr},
        {"eps", &Scalars<double>::eps, Small::must_not_vanish},
        {"weight_decay", &Scalars<double>::weight_decay},
        {"momentum", &Scalars<double>::momentum},
    };

    template <class T, bool with_weight_decay, bool with_momentum, bool centered>
    struct Rule {
        static constexpr unsigned states = 1 | (with_momentum ? 2 : 0) | (centered ? 4 : 0);
        Scalars<T> s;

        void operator()(T& param, T grad, T& square_avg, T& momentum_buffer, T& grad_avg) const {
            if constexpr (with_weight_decay) grad = grad + s.weight_decay * param;
            square_avg = s.alpha * square_avg + s.one_minus_alpha * grad * grad;
            T variance = square_avg;
            if constexpr (centered) {
                grad_avg = s.alpha * grad_avg + s.one_minus_alpha * grad;
                variance = square_avg - grad_avg * grad_avg;
                variance = variance < T{0} ? T{0} : variance;  // rounding; NaN stays NaN
            }
            const T denom = square_root(variance) + s.eps;
            if constexpr (with_momentum) {
                momentum_buffer = s.momentum * momentum_buffer + grad / denom;
                param = param - s.lr * momentum_buffer;
            } else {
                param = param - s.lr * grad / denom;
            }
        }
    };
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
