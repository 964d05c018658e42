"""Steps over several processes: each rank of MPI keeps the states of its part only.

`Sharded` does for an optimizer what ZeRO stage 1 does: gradients are summed over the ranks, each
rank steps its part with the same kernels, and the parameters are gathered. It needs the extra
``mpi``, and `shard` needs nothing: it is for those who communicate themselves.
"""

from __future__ import annotations

from fastopt.distributed._shard import shard
from fastopt.distributed._sharded import Sharded

__all__ = ["Sharded", "shard"]
