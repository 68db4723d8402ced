"""The ranks of a learner: who I am, and small sums over all of us.

A process group that already stands (Ray Train makes one) is used as it is; otherwise one is made, over TCP for
several ranks, and within the process for one, which needs no port.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `world`."""

    rank: int = 0
    world: int = 1

    def total(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over ranks."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def largest(self, values: Sequence[float]) -> list[float]:
        """Element-wise maximum over ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world == 1 or not values:
            return [float(v) for v in values]
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor, how)
        return tensor.tolist()


def join(ranks: Ranks, *, address: str = "", port: int = 0, timeout_s: float = 600.0) -> Ranks:
    """Enter the process group. `address` and `port` are of rank 0 and needed when there are several ranks."""
    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    os.environ.update(RANK=str(ranks.rank), WORLD_SIZE=str(ranks.world))
    os.environ.setdefault("LOCAL_RANK", "0" if torch.cuda.is_available() else str(ranks.rank))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if ranks.world == 1:
        # DeepSpeed reads these even when the group stands already
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        if not address or not port:
            raise ValueError("several ranks need the address and port of rank 0")
        os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
        dist.init_process_group(
            backend,
            init_method=f"tcp://{address}:{port}",
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=timeout,
        )
    return ranks


def training_device() -> torch.device:
    """The accelerator of this process, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
