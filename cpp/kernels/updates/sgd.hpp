// SGD: heavy-ball or Nesterov momentum, dampening, L2 weight decay.
#pragma once

#include "update.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct sgd {
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
        {"lr", -1, Domain::non_negative, {}},
        {"momentum", -1, Domain::non_negative, {}},
        {"dampening", -1, Domain::finite, {}},
        {"weight_decay", -1, Domain::non_negative, {}},
        {"nesterov", -1, Domain::flag, {}},
        {"maximize", -1, Domain::flag, {}},
        {"momentum_init", -1, Domain::choice, {"grad", "zero"}},
    };
    static constexpr int state_count = 1;
    static constexpr const char* states[] = {"momentum_buffer"};

    static const char* conflict(const double* o) {
        const bool sound = o[momentum] > 0.0 && o[dampening] == 0.0;
        return o[nesterov] != 0.0 && !sound ? "nesterov needs momentum > 0 and dampening = 0"
                                            : nullptr;
    }
    static bool uses_state(const double* o, int) { return o[momentum] != 0.0; }

    struct Scalars {
        double lr, weight_decay, momentum, one_minus_dampening;
        bool with_momentum, nesterov, buffer_from_grad, with_weight_decay;
    };
    static Scalars prepare(const double* o, std::int64_t, bool fresh) {
        return {
            .lr = o[lr],
            .weight_decay = o[weight_decay],
            .momentum = o[momentum],
            .one_minus_dampening = 1.0 - o[dampening],
            .with_momentum = o[momentum] != 0.0,
            .nesterov = o[nesterov] != 0.0,
            .buffer_from_grad = fresh && o[momentum_init] == 0.0,
            .with_weight_decay = o[weight_decay] != 0.0,
        };
    }

    static constexpr Range<Scalars> ranges[] = {
        {"lr", &Scalars::lr, Small::may_vanish},
        {"momentum", &Scalars::momentum, Small::may_vanish},
        {"1 - dampening", &Scalars::one_minus_dampening, Small::may_vanish},
        {"weight_decay", &Scalars::weight_decay, Small::may_vanish},
    };

    template <class T, bool with_weight_decay, bool with_momentum, bool nesterov, bool from_grad>
    struct Rule {
        static constexpr unsigned states = with_momentum ? 1 : 0;
        T lr, weight_decay, momentum, one_minus_dampening;

        void operator()(T& param, T grad, T& momentum_buffer, T&, T&) const {
            if constexpr (with_weight_decay) grad = grad + weight_decay * param;
            if constexpr (with_momentum) {
                momentum_buffer =
                    from_grad ? grad : momentum * momentum_buffer + one_minus_dampening * grad;
                grad = nesterov ? grad + momentum * momentum_buffer : momentum_buffer;
            }
            param = param - lr * grad;
        }
    };

    template <class T, class Run>
    static void with_rule(const Scalars& s, Run run) {
        with_flag(s.with_weight_decay, [&](auto decay) {
            const auto pick = [&](auto momentum, auto nesterov, auto from_grad) {
                run(Rule<T, decay.value, momentum.value, nesterov.value, from_grad.value>{
                    static_cast<T>(s.lr), static_cast<T>(s.weight_decay),
                    static_cast<T>(s.momentum), static_cast<T>(s.one_minus_dampening)});
            };
            if (!s.with_momentum) return pick(Bool<false>{}, Bool<false>{}, Bool<false>{});
            with_flag(s.nesterov, [&](auto nesterov) {
                with_flag(s.buffer_from_grad,
                          [&](auto from_grad) { pick(Bool<true>{}, nesterov, from_grad); });
            });
        });
    }
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
