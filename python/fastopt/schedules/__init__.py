r"""Learning-rate schedules, with the names, arguments and float64 values of torch.

With the initial rate :math:`\eta_0`, the rate :math:`\eta_t` of step t, an epoch or a batch:

=========================== ======================================= ===========================
schedule                    rate of step t                          when to use it
=========================== ======================================= ===========================
StepLR                      eta_0 * gamma**(t // step_size)         the classic for SGD
MultiStepLR                 eta_0 * gamma**(milestones up to t)     drops where you say
ConstantLR                  eta_0 * factor, then eta_0              the simplest warm-up
LinearLR                    eta_0 times a line from start_factor    warm-up; linear decay
                            to end_factor over total_iters
ExponentialLR               eta_0 * gamma**t                        smooth decay without an end
PolynomialLR                eta_0 * (1 - t / total_iters)**power    decay to 0 at a known end
CosineAnnealingLR           half a cosine from eta_0 to eta_min     a run of known length: a
                            over T_max                              good default
CosineAnnealingWarmRestarts the same again and again, in periods    snapshots; a run of unknown
                            of T_0, T_0 * T_mult, ...               length
OneCycleLR                  up to max_lr, down to almost 0, and     a short run at a large rate
                            momentum the other way
ReduceLROnPlateau           eta * factor when a metric stalls       when nothing else is known
LambdaLR                    eta_0 * f(t)                            any formula
SequentialLR                one schedule after another              warm-up, then decay
ChainedScheduler            several at once                         products of the above
=========================== ======================================= ===========================

Warm-up, then decay (see `SequentialLR` for the example that runs): `LinearLR` over the warm-up,
`CosineAnnealingLR` with ``T_max`` of the rest, and the end of the warm-up as the milestone. For
warm-up and the inverse root of Transformers, `LambdaLR` with
``lambda t: min((t + 1) / warmup, (warmup / (t + 1)) ** 0.5)``.

Values are those of torch 2.13 to the last bit, with these exceptions, where torch fails or leaves
the range of a rate:

- `LinearLR`, the line of `OneCycleLR` and the return of `CosineAnnealingLR` to an initial rate of 0
  stop at 0 where torch's rate is negative.
- `ConstantLR` with factor 0 returns to the initial rate, and a phase of `OneCycleLR` that has no
  length stands at its end: torch divides by zero.
- Two `OneCycleLR` on one optimizer do not share their bounds.
- `CosineAnnealingWarmRestarts` with ``last_epoch >= T_0`` and ``T_mult > 1`` starts in the right
  period. So does its ``step(epoch)``; torch rounds a logarithm there, and may take another one.
- `SequentialLR` may hold a `SequentialLR` or `ChainedScheduler`, and groups may be added later.
- ``total_iters=0`` is refused: torch would never take the factor of step 0 away again.
- A rate that would be negative, infinite or NaN raises ValueError.
- Counts, such as ``total_iters`` or ``last_epoch``, are integers below 2**63.

After an exception in your own function, or an interrupt by Ctrl-C, a schedule and its groups are as
before the call or as after it, never between.

To resume, save `state_dict` of the schedule beside that of the optimizer and load both, in any
order: the run goes on as if it had never stopped.

Only `CosineAnnealingWarmRestarts` has the form ``step(epoch)``, which torch deprecates for the
others. No order of calls causes a warning: `LRScheduler` says when to call `step`.
"""

from __future__ import annotations

from fastopt.schedules._base import LRScheduler
from fastopt.schedules.composed import ChainedScheduler, SequentialLR
from fastopt.schedules.cosine import CosineAnnealingLR, CosineAnnealingWarmRestarts, OneCycleLR
from fastopt.schedules.decay import (
    ConstantLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from fastopt.schedules.plateau import ReduceLROnPlateau

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]
