"""The table of schedules: each row makes the same schedule of fastopt or of torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastopt as fo

LRS = (0.1, 0.037)  # of the two groups


@dataclass(frozen=True, eq=False)
class Schedule:
    """A schedule in one configuration: `make` gets a module with the classes and an optimizer."""

    name: str
    make: Callable[[Any, Any], Any]
    last: int = 200  # the last step at which it equals torch

    def __str__(self) -> str:
        return self.name


def one(cls: str, last: int = 200, **options: Any) -> Schedule:
    """Return the row of a single class."""
    shown = {key: "..." if key == "lr_lambda" else value for key, value in options.items()}
    text = ",".join(f"{key}={value}" for key, value in shown.items())
    return Schedule(f"{cls}({text})", lambda m, o: getattr(m, cls)(o, **options), last)


def grid(cls: str, **choices: list[Any]) -> Iterator[Schedule]:
    """Yield a row for every combination of the options."""
    for values in itertools.product(*choices.values()):
        yield one(cls, **dict(zip(choices, values, strict=True)))


def one_cycles() -> Iterator[Schedule]:
    """Yield rows of OneCycleLR; the line ends one step earlier than the cosine, see its docstring.

    No phase has the length 0, for which torch divides by zero.
    """
    options = itertools.product(
        [200, 37, 7],
        [0.3, 0.25, 0.0, 0.61],
        ["cos", "linear"],
        [False, True],
        [(25.0, 1e4), (2, 3)],
    )
    for total, start, shape, three, (div, final) in options:
        yield one(
            "OneCycleLR",
            last=total if shape == "cos" else total - 1,
            max_lr=0.3,
            total_steps=total,
            pct_start=start,
            anneal_strategy=shape,
            three_phase=three,
            div_factor=div,
            final_div_factor=final,
        )
    yield one("OneCycleLR", max_lr=[0.5, 0.2], epochs=20, steps_per_epoch=10)
    yield one(
        "OneCycleLR",
        max_lr=1,
        total_steps=200,
        base_momentum=[0.7, 0.8],
        max_momentum=[0.9, 0.99],
    )
    yield one("OneCycleLR", max_lr=0.1, total_steps=200, cycle_momentum=False)


SINGLE = [
    *grid("StepLR", step_size=[1, 7, 30, 500], gamma=[0.1, 0.97, 1.3, 0.0]),
    one("StepLR", step_size=30),
    *grid("MultiStepLR", milestones=[[30, 80], [0, 3, 3, 199], [150, 20], []], gamma=[0.1, 0.7]),
    *grid("ConstantLR", factor=[1.0 / 3, 0.1, 1.0, 1e-5], total_iters=[1, 5, 100, 500]),
    one("ConstantLR", factor=0.0, total_iters=500),
    one("ConstantLR"),
    *grid(
        "LinearLR",
        start_factor=[1.0 / 3, 0.001, 1.0],
        end_factor=[1.0, 0.1, 0.7],
        total_iters=[1, 5, 77, 500],
    ),
    one("LinearLR", start_factor=1.0, end_factor=0.0, total_iters=100),
    one("LinearLR"),
    *grid("ExponentialLR", gamma=[0.95, 0.999, 1.01, 0.0]),
    *grid("PolynomialLR", total_iters=[1, 5, 77, 200, 500], power=[1.0, 0.9, 2, 0, 0.5]),
    one("PolynomialLR"),
    *grid("CosineAnnealingLR", T_max=[1, 2, 7, 50, 199, 500], eta_min=[0.0, 1e-5, 0.01, 0.2]),
    *grid("CosineAnnealingWarmRestarts", T_0=[1, 3, 10, 300], T_mult=[1, 2, 3], eta_min=[0, 0.01]),
    *one_cycles(),
    one("LambdaLR", lr_lambda=lambda epoch: 0.95**epoch),
    one("LambdaLR", lr_lambda=[lambda epoch: 1 / (1 + epoch), lambda epoch: epoch // 30]),
]

COMPOSED = [
    Schedule(
        "warm-up and cosine",
        lambda m, o: m.SequentialLR(
            o,
            [m.LinearLR(o, start_factor=0.01, total_iters=20), m.CosineAnnealingLR(o, T_max=180)],
            milestones=[20],
        ),
    ),
    Schedule(
        "constant and exponential",
        lambda m, o: m.SequentialLR(
            o, [m.ConstantLR(o, 0.1, 20), m.ExponentialLR(o, 0.9)], milestones=[20]
        ),
    ),
    Schedule(
        "all that have a formula",
        lambda m, o: m.SequentialLR(
            o,
            [
                m.StepLR(o, 5, 0.5),
                m.MultiStepLR(o, [0, 3, 11], 0.7),
                m.ConstantLR(o, 0.3, 4),
                m.LinearLR(o, 0.2, 0.8, 9),
                m.ExponentialLR(o, 0.9),
                m.PolynomialLR(o, 15, 1.5),
                m.CosineAnnealingLR(o, 13, 0.003),
                m.CosineAnnealingWarmRestarts(o, 4, 2, 0.001),
                m.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
            ],
            milestones=[10, 30, 31, 50, 70, 90, 120, 150],
        ),
    ),
    Schedule(
        "cosine first",
        lambda m, o: m.SequentialLR(
            o, [m.CosineAnnealingLR(o, 40, 0.007), m.PolynomialLR(o, 60)], milestones=[37]
        ),
    ),
    Schedule(
        "cosine up, restarted where its formula loses a bit",
        lambda m, o: m.SequentialLR(
            o, [m.StepLR(o, 3), m.CosineAnnealingLR(o, 50, 0.7)], milestones=[7]
        ),
    ),
    Schedule(
        "a schedule that is skipped",
        lambda m, o: m.SequentialLR(
            o,
            [m.LinearLR(o), m.StepLR(o, 3), m.CosineAnnealingLR(o, 9), m.ExponentialLR(o, 0.8)],
            milestones=[0, 12, 12],
        ),
    ),
    Schedule(
        "constant, then one cycle",
        lambda m, o: m.SequentialLR(
            o, [m.ConstantLR(o, 0.5, 9), m.OneCycleLR(o, 0.3, total_steps=190)], milestones=[15]
        ),
    ),
    Schedule(
        "one cycle, then exponential",
        lambda m, o: m.SequentialLR(
            o, [m.OneCycleLR(o, 0.3, total_steps=50), m.ExponentialLR(o, 0.9)], milestones=[49]
        ),
    ),
    Schedule(
        "chained",
        lambda m, o: m.ChainedScheduler(
            [
                m.ConstantLR(o, 0.1, 20),
                m.ExponentialLR(o, 0.97),
                m.StepLR(o, 17, 0.8),
                m.MultiStepLR(o, [5, 50], 0.6),
                m.LinearLR(o, 0.5, 1.0, 60),
                m.PolynomialLR(o, 300, 0.7),
            ],
        ),
    ),
    Schedule(
        "chained cosine",
        lambda m, o: m.ChainedScheduler(
            [m.CosineAnnealingLR(o, T_max=500), m.ExponentialLR(o, 0.99)], o
        ),
    ),
    Schedule(
        "chained sequence",
        lambda m, o: m.ChainedScheduler(
            [
                m.SequentialLR(
                    o,
                    [m.LinearLR(o, total_iters=9), m.CosineAnnealingLR(o, T_max=190)],
                    milestones=[9],
                ),
                m.StepLR(o, 50, 0.5),
            ]
        ),
    ),
    Schedule(
        "sequence that begins with a chain",
        lambda m, o: m.SequentialLR(
            o,
            [m.ChainedScheduler([m.ConstantLR(o, 0.5, 3), m.StepLR(o, 4)]), m.StepLR(o, 11)],
            milestones=[25],
        ),
    ),
]

SCHEDULES = SINGLE + COMPOSED


# One or two rows of each class, for slow tests.
SOME = [
    one("StepLR", step_size=7, gamma=0.97),
    one("MultiStepLR", milestones=(3, 11, 11, 40), gamma=0.7),
    one("ConstantLR", factor=0.1, total_iters=9),
    one("LinearLR", start_factor=0.001, end_factor=0.7, total_iters=30),
    one("ExponentialLR", gamma=0.95),
    one("PolynomialLR", total_iters=77, power=0.9),
    one("CosineAnnealingLR", T_max=19, eta_min=0.01),
    one("CosineAnnealingWarmRestarts", T_0=3, T_mult=2, eta_min=0.01),
    one("LambdaLR", lr_lambda=lambda epoch: 0.95**epoch),
    one("OneCycleLR", max_lr=0.3, total_steps=200),
    one("OneCycleLR", last=60, max_lr=0.3, total_steps=60, three_phase=True),
    *COMPOSED,
]


def groups(kind: str) -> Any:
    """Return an optimizer of fastopt with two groups of arrays of ones."""
    rates = [{"params": [np.ones(3)], "lr": lr} for lr in LRS]
    make: Any = {
        "SGD": lambda: fo.SGD(rates, momentum=0.9),
        "RMSprop": lambda: fo.RMSprop(rates),
        "Adam": lambda: fo.Adam(rates),
        "AdamW": lambda: fo.AdamW(rates),
        "reference.SGD": lambda: fo.reference.SGD(rates, momentum=0.9),
        "reference.AdamW": lambda: fo.reference.AdamW(rates),
    }[kind]
    return make()
