"""Weights from GPU to GPU by vLLM's own NCCL engine. NOT RUN so far: its tests are marked `gpu`.

                      rank 0                              samplers, at once
    send(v)   accepts(names, dtypes, shapes) ----->  refuse before anything moves, or
              gather a bucket, broadcast it  =====>  pause, receive, load, label, resume
              the ticket                     ----->  update(ticket): it is the version that runs here

Every rank calls `send`, because ZeRO-3 gathers each bucket on all of them; rank 0 alone talks to the samplers. The
group is made anew when another sampler takes part. Unlike the other transports there is no folder and no digest: bytes
go straight into the engines, so what breaks off leaves engines broken, to be replaced, and one that joins later waits
for the version after (`WeightsMissed`): where all are replaced within one step, nobody can sample for the next. Names,
dtypes and shapes are compared on both sides; bytes are NCCL's business.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.weights.manifest import WeightEntry, WeightTicket, make_ticket
from actors.weights.shards import dtype_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

UNDIGESTED = "none"  # of an entry whose bytes nobody digested


@dataclass(frozen=True)
class NamedShape:
    """What a weight will be, known without gathering it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Peer:
    """A sampler actor (`RolloutSampler`), and how many GPUs its engine has."""

    actor: Any
    workers: int


class NcclTransport:
    """`transport.WeightTransport` on vLLM's trainer engine, with one of these on every rank of the learner."""

    def __init__(
        self,
        shapes: Callable[[], Sequence[NamedShape]],
        weights: Callable[[], Iterator[tuple[str, Tensor]]],
        rank: int,
        *,
        timeout_s: float = 600.0,
    ) -> None:
        """`weights` yields what `shapes` says, in its order; every rank iterates in lock-step."""
        self._shapes, self._weights = shapes, weights
        self._rank, self._timeout_s = rank, timeout_s
        self._peers: tuple[Peer, ...] = ()
        self._engine: Any = None

    def connect(self, peers: Sequence[Peer]) -> None:
        """Who receives from the next version on. Call on every rank, with the same samplers in the same order."""
        if tuple(peers) != self._peers:
            self.close()
            self._peers = tuple(peers)

    def send(self, version: int, weights: Any = None) -> WeightTicket:
        """Send to all that are connected; every rank calls it. `weights` is not looked at: this end asks for them.

        Raise ValueError when nobody is connected, what a sampler raised when it refuses, and RuntimeError of NCCL.
        """
        if not self._peers:
            raise ValueError("no sampler is connected, so nobody would receive the weights")
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        client = PeersClient(self._peers, version, self._timeout_s)
        if self._engine is None:
            address, port = _endpoint() if self._rank == 0 else ("", 0)
            world = 1 + sum(peer.workers for peer in self._peers)
            info = NCCLTrainerInitInfo(address, port, world, rank=self._rank)
            source = _source(self._shapes, self._weights)
            self._engine = WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
        self._engine.client = client
        try:
            if self._rank == 0:
                client.accepts(self._shapes())
            self._engine.send_weights()
        except BaseException:
            self._engine = None  # after a failure the group is of no more use
            raise
        entries = [WeightEntry(s.name, dtype_name(s.name, s.dtype), s.shape, UNDIGESTED) for s in self._shapes()]
        return make_ticket(version, "", entries, "nccl")

    def opened(self, version: int) -> AbstractContextManager[Path]:
        raise ValueError(f"version {version} went from GPU to GPU: there is no folder of it; export the model instead")

    def close(self) -> None:
        """Leave the group."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None


class PeersClient:
    """`VLLMWeightSyncClient` on several independent engines, of one version."""

    def __init__(self, peers: Sequence[Peer], version: int, timeout_s: float) -> None:
        self._peers, self._version, self._timeout_s = peers, version, timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each engine counts its workers from 0, so each gets its own place in the group."""
        calls, offset = [], int(init_info["rank_offset"])
        for peer in self._peers:
            calls.append(peer.actor.join_transfer.remote(init_info | {"rank_offset": offset}))
            offset += peer.workers
        self._all(calls)

    def start_weight_update(self) -> None:
        """Nothing yet: an engine pauses when it receives."""

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Runs beside the broadcast. Each sampler loads, labels its tokens with the version, and goes on."""
        self._all([peer.actor.receive_transfer.remote(update_info, self._version) for peer in self._peers])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing more: `update_weights` has ended on every sampler."""

    def accepts(self, shapes: Sequence[NamedShape]) -> None:
        """Raise what the first sampler raises whose model is another, while nothing has moved."""
        needed = {one.name: one.shape for one in shapes}
        self._all([peer.actor.accepts_transfer.remote(needed) for peer in self._peers])

    def _all(self, calls: list[Any]) -> None:
        import ray

        ray.get(calls, timeout=self._timeout_s)


def _source(shapes: Callable[[], Sequence[NamedShape]], weights: Callable[[], Iterator[tuple[str, Tensor]]]) -> Any:
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    class Source(WeightSource):
        """Whole weights, bucket by bucket; those of ZeRO-3 are gathered on the way."""

        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(one.name, one.dtype, one.shape) for one in shapes()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return weights()

    return Source()


def _endpoint() -> tuple[str, int]:
    """An address of this node and a port that was free a moment ago."""
    import ray

    address = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((address, 0))
        return address, probe.getsockname()[1]
