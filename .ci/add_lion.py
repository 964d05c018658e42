"""Adds an optimizer, Lion, to a copy of the repository: ``python .ci/add_lion.py COPY``.

It writes the files that CONTRIBUTING.md lists under "Add an optimizer" and nothing else. So a test
of the copy shows that the list is complete.
"""

from __future__ import annotations

import sys
from pathlib import Path

NEW_FILES = {
    "cpp/kernels/updates/lion.hpp": """\
// Lion (Chen et al. 2023).
#pragma once

#include "update.hpp"

namespace fastopt::FASTOPT_ISA {
namespace {

struct lion : update_defaults {
    static constexpr const char* name = "lion";
    enum : int {
        lr,
        beta1,
        beta2,
        weight_decay,
        option_count
    };
    static constexpr Option options[] = {
        {"lr", Domain::non_negative},
        {"betas", Domain::decay_rate, 0},
        {"betas", Domain::decay_rate, 1},
        {"weight_decay", Domain::non_negative},
    };
    static constexpr int state_count = 1;
    static constexpr const char* states[] = {"exp_avg"};

    template <class T>
    struct Scalars {
        T lr, shrink, beta1, one_minus_beta1, beta2, one_minus_beta2;
    };
    static Prepared<Scalars, 1> prepare(const double* o, std::int64_t, bool) {
        return {
            .scalars = {.lr = o[lr],
                        .shrink = 1.0 - o[lr] * o[weight_decay],
                        .beta1 = o[beta1],
                        .one_minus_beta1 = 1.0 - o[beta1],
                        .beta2 = o[beta2],
                        .one_minus_beta2 = 1.0 - o[beta2]},
            .flags = {o[weight_decay] != 0.0},
        };
    }

    static constexpr Range<Scalars> ranges[] = {
        {"lr", &Scalars<double>::lr},
        {"1 - lr * weight_decay", &Scalars<double>::shrink},
    };

    template <class T, bool with_weight_decay>
    struct Rule {
        static constexpr unsigned states = 1;
        Scalars<T> s;

        void operator()(T& param, T grad, T& exp_avg, T&, T&) const {
            const T mixed = s.beta1 * exp_avg + s.one_minus_beta1 * grad;
            const T sign = mixed > T{0} ? T{1} : mixed < T{0} ? T{-1} : mixed;
            exp_avg = s.beta2 * exp_avg + s.one_minus_beta2 * grad;
            if constexpr (with_weight_decay) param = s.shrink * param;
            param = param - s.lr * sign;
        }
    };
};

}  // namespace
}  // namespace fastopt::FASTOPT_ISA
""",
    "python/fastopt/optim/lion.py": '''\
"""Lion."""

from __future__ import annotations

from typing import Any, ClassVar

from fastopt._types import Params
from fastopt.optim._fused import FusedOptimizer


class Lion(FusedOptimizer):
    """Lion: the sign of a moving average."""

    _kernel: ClassVar[str] = "lion"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **types: Any,
    ) -> None:
        options = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, options | types)
''',
    "python/fastopt/reference/lion.py": '''\
"""Lion, in plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt._types import FloatArray, Group, Params
from fastopt.reference._base import ReferenceOptimizer


class Lion(ReferenceOptimizer):
    """`fastopt.Lion` in plain NumPy."""

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **types: Any,
    ) -> None:
        options = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, options | types)

    def update(
        self, param: FloatArray, grad: FloatArray, state: dict[str, Any], group: Group
    ) -> None:
        """Apply one step of Lion."""
        lr, (beta1, beta2) = group["lr"], group["betas"]
        exp_avg = state.get("exp_avg", np.zeros_like(param))
        mixed = beta1 * exp_avg + (1 - beta1) * grad
        sign = np.where(mixed == 0, mixed, np.sign(mixed))
        state["exp_avg"] = beta2 * exp_avg + (1 - beta2) * grad
        if group["weight_decay"] != 0:
            param *= 1 - lr * group["weight_decay"]
        param -= lr * sign
''',
}

# In these files a line for Lion follows each line that contains one of these texts.
NEW_LINES = {
    "cpp/kernels/updates.cpp": ['#include "updates/rmsprop.hpp"'],
    "python/fastopt/optim/__init__.py": ["import RMSprop", '"RMSprop"'],
    "python/fastopt/reference/__init__.py": ["import RMSprop", '"RMSprop"'],
    "tests/cases.py": ['Case("RMSprop", {})'],
    "docs/reference/optimizers.md": ["fastopt.RMSprop"],
}


def main(copy: Path) -> None:
    """Write the new files and lines into `copy`."""
    for name, text in NEW_FILES.items():
        (copy / name).write_text(text)
    for name, marks in NEW_LINES.items():
        text = (copy / name).read_text()
        for mark in marks:
            (line,) = (line for line in text.splitlines(keepends=True) if mark in line)
            twin = line.replace("RMSprop", "Lion").replace("rmsprop", "lion")
            gap = "\n" if name.endswith(".md") else ""
            text = text.replace(line, line + gap + twin)
        (copy / name).write_text(text)
    table = copy / "cpp/kernels/updates.cpp"
    row = "make_row<rmsprop>(), "
    assert row in table.read_text()
    table.write_text(table.read_text().replace(row, row + "make_row<lion>(), ", 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
