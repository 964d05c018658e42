// SGD: heavy-ball or Nesterov momentum, dampening, L2 weight decay.
#pragma once

#include "update.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct sgd : update_defaults {
    static constexpr const char* name = "sgd";
    enum : int {
        lr,
        momentum,
        dampening,
        weight_decay,
        nesterov,
        maximize,
        momentum_init,
        option_count
    };
    static constexpr Option options[] = {
        {"lr", Domain::non_negative},
        {"momentum", Domain::non_negative},
        {"dampening", Domain::finite},
        {"weight_decay", Domain::non_negative},
        {"nesterov", Domain::flag},
        {"maximize", Domain::flag},
        {"momentum_init", Domain::choice, no_item, {"grad", "zero"}},
    };
    static constexpr int state_count = 1;
    static constexpr const char* states[] = {"momentum_buffer"};

    static const char* conflict(const double* o) {
        const bool sound = o[momentum] > 0.0 && o[dampening] == 0.0;
        return o[nesterov] != 0.0 && !sound ? "nesterov needs momentum > 0 and dampening = 0"
                                            : nullptr;
    }
    static bool uses_state(const double* o, int) { return o[momentum] != 0.0; }

    template <class T>
    struct Scalars {
        T lr, weight_decay, momentum, one_minus_dampening;
    };
    static Prepared<Scalars, 4> prepare(const double* o, std::int64_t, bool fresh) {
        const bool with_momentum = o[momentum] != 0.0;
        return {
            .scalars = {.lr = o[lr],
                        .weight_decay = o[weight_decay],
                        .momentum = o[momentum],
                        .one_minus_dampening = 1.0 - o[dampening]},
            .flags = {o[weight_decay] != 0.0, with_momentum, o[nesterov] != 0.0,
                      with_momentum && fresh && o[momentum_init] == 0.0},
        };
    }

    static constexpr Range<Scalars> ranges[] = {
        {"lr", &Scalars<double>::lr},
        {"momentum", &Scalars<double>::momentum},
        {"1 - dampening", &Scalars<double>::one_minus_dampening},
        {"weight_decay", &Scalars<double>::weight_decay},
    };

    template <class T, bool with_weight_decay, bool with_momentum, bool nesterov, bool from_grad>
        requires(with_momentum || (!nesterov && !from_grad))
    struct Rule {
        static constexpr unsigned states = with_momentum ? 1 : 0;
        Scalars<T> s;

        void operator()(T& param, T grad, T& momentum_buffer, T&, T&) const {
            if constexpr (with_weight_decay) grad = grad + s.weight_decay * param;
            if constexpr (with_momentum) {
                momentum_buffer =
                    from_grad ? grad : s.momentum * momentum_buffer + s.one_minus_dampening * grad;
                grad = nesterov ? grad + s.momentum * momentum_buffer : momentum_buffer;
            }
            param = param - s.lr * grad;
        }
    };
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
