"""A model of the time of a sharded step, for any number of ranks and any network.

A step of `fastopt.distributed.Sharded` copies and sums gradients, sends them, steps the own part,
sends the parameters and copies them. The model adds the times of these parts: bytes over a
bandwidth, of the memory or of the network, and a latency for each message. It overlaps nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from fastopt.distributed._exchange import piece_bytes

MOVED = 28  # bytes that a step of AdamW reads and writes for a float32 parameter


@dataclass(frozen=True)
class Machine:
    """What one rank has while all of them work."""

    copy: float  # bytes per second that a copy of an array reads and writes
    add: float  # and a sum of two arrays
    step: float  # and a step of AdamW on one rank
    bandwidth: float  # bytes per second that the rank sends while it receives as many
    latency: float  # seconds of a message without contents

    def __str__(self) -> str:
        names = ("copy", "add", "step")
        memory = ", ".join(f"{name} {getattr(self, name) / 1e9:.1f}" for name in names)
        return (
            f"{memory}, send {self.bandwidth / 1e9:.2f} GB/s; "
            f"{self.latency * 1e6:.1f} us for a message"
        )


@dataclass(frozen=True)
class Times:
    """The seconds of the parts of a sharded step."""

    reduce: float  # copy and send gradients, and sum them
    own: float  # step the own part
    gather: float  # send parameters, and copy those of the others
    agree: float  # the small collectives; measured: with the wait for the slowest rank

    @property
    def total(self) -> float:
        """The seconds of a step."""
        return self.reduce + self.own + self.gather + self.agree


def bytes_sent(
    parameters: int, ranks: int, grad_bytes: int = 4, param_bytes: int = 4
) -> tuple[float, float]:
    """Return the bytes of gradients and of parameters that a rank sends in a step, on average.

    They are those of a reduce-scatter and of an all-gather on a ring.

    >>> bytes_sent(1_000_000, ranks=4)
    (3000000.0, 3000000.0)
    """
    others = (ranks - 1) / ranks * parameters
    return others * grad_bytes, others * param_bytes


def step_time(
    machine: Machine,
    parameters: int,
    ranks: int,
    *,
    grad_bytes: int = 4,
    param_bytes: int = 4,
    moved: int = MOVED,
    one_array: bool = False,
    piece: int | None = None,
) -> Times:
    """Return the times of a sharded step as the model has them.

    Parameters
    ----------
    machine : Machine
    parameters, ranks : int
    grad_bytes : int
        Bytes of a gradient on its way: 4, or 2 with ``grad_dtype="bfloat16"``. The gradients
        themselves and their sums are float32. The time of the conversion is that of its bytes.
    param_bytes : int
        Bytes of a parameter.
    moved : int
        Bytes that the plain step reads and writes for a parameter.
    one_array : bool
        Whether all parameters are one array: what goes to one rank is then sent without a copy.
    piece : int
        Bytes that a rank sends at a time to all; by default those of `Sharded`.

    Examples
    --------
    7 B parameters on 64 hosts with 100 Gbit/s each:

    >>> machine = Machine(copy=40e9, add=40e9, step=50e9, bandwidth=12.5e9, latency=2e-6)
    >>> times = step_time(machine, 7_000_000_000, ranks=64)
    >>> print(f"{times.total:.1f} s, of which {times.own / times.total:.1%} is the own step")
    10.2 s, of which 0.6% is the own step
    """
    piece = piece_bytes(ranks) if piece is None else piece
    own = parameters / ranks
    others = parameters - own
    sent = bytes_sent(parameters, ranks, grad_bytes, param_bytes)
    # Gradients and parameters are read and written before they are sent, if they are not a part of
    # one array of the type that is sent. The parameters of the others are copied from a buffer.
    converted = grad_bytes != 4
    packed = others * (not one_array or converted or ranks > 2) + own * (not one_array or converted)
    copied = packed * (4 + grad_bytes), (others + own * (not one_array)) * 2 * param_bytes
    # Two parts are read, and their sum is written; each further one is added to it.
    summed = own * (2 * grad_bytes + 4 + (ranks - 2) * (grad_bytes + 8))

    def exchange(sent: float, copied: float, itemsize: int) -> float:
        messages = ceil(parameters * itemsize / piece) * (ranks - 1)
        return copied / machine.copy + sent / machine.bandwidth + messages * machine.latency

    alone = ranks == 1
    return Times(
        reduce=0 if alone else exchange(sent[0], copied[0], grad_bytes) + summed / machine.add,
        own=moved * own / machine.step,
        gather=0 if alone else exchange(sent[1], copied[1], param_bytes),
        agree=3 * ceil(log2(ranks)) * machine.latency,
    )
