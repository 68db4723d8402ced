"""The learner's ranks as Ray actors, and one handle on all of them.

Every method of `PolicyLearner` blocks its actor's only thread; `LearnerRanks` awaits all ranks together and returns
rank 0's answer. Trajectories may come as object references, which each rank fetches itself.

The ranks are a gang: one placement group reserves the places of all of them, on as few nodes as can be, or of none. Two
runs that want the same cluster never hold half of it each. The reservation ends with `close`, or with the driver.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.agent.seams import ImageStore
from actors.learner.backends.protocol import StepStats
from actors.learner.settings import LearnerSettings
from actors.weights.manifest import WeightTicket
from actors.weights.nccl import Peer

Payload = Any  # a Trajectory, or a Ray reference to one


class PolicyLearner:
    """One rank. `ready` builds the engine: it is the first call, on all ranks together."""

    def __init__(
        self, model: str, settings: LearnerSettings, images: ImageStore, weights_root: str, rank: int, world: int
    ) -> None:
        self._make = (model, settings, images, weights_root)
        self._rank, self._world = rank, world
        self._learner: Any = None

    def endpoint(self) -> tuple[str, int]:
        """An address of this node and a port that was free a moment ago, for rank 0 to listen on."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, probe.getsockname()[1]

    def ready(self, address: str = "", port: int = 0) -> int:
        """Load the model and its engine; returns the rank."""
        # torch and DeepSpeed are imported here, so that creating the handle costs the driver nothing
        from actors.learner.backends.ranks import Ranks
        from actors.learner.learner import Learner

        if self._learner is None:
            self._learner = Learner(*self._make, Ranks(self._rank, self._world), address=address, port=port)
        return self._rank

    def train(self, groups: Sequence[Sequence[Payload]], version: int) -> StepStats:
        """One batch of groups, each a sequence of trajectories or of references to them."""
        flat = [payload for group in groups for payload in group]
        references = [payload for payload in flat if isinstance(payload, ray.ObjectRef)]
        fetched = iter(ray.get(references))
        trajectories = [next(fetched) if isinstance(p, ray.ObjectRef) else p for p in flat]
        ordered = iter(trajectories)
        return self._learner.train([[next(ordered) for _ in group] for group in groups], version)

    def publish(self, version: int) -> WeightTicket | None:
        return self._learner.publish(version)

    def connect(self, peers: Sequence[Peer]) -> None:
        self._learner.connect(peers)

    def save(self, address: str) -> None:
        self._learner.save(address)

    def load(self, address: str) -> None:
        self._learner.load(address)

    def export(self, address: str) -> None:
        self._learner.export(address)

    def keep(self, version: int, address: str) -> None:
        self._learner.keep(version, address)

    def close(self) -> None:
        if self._learner is not None:
            self._learner.close()


class LearnerRanks:
    """All ranks of one learner. Each method is one call on every rank, in the same order everywhere."""

    def __init__(self, actors: Sequence[Any], gang: PlacementGroup) -> None:
        self.actors, self._gang = list(actors), gang
        self._placed = False

    @classmethod
    def start(
        cls,
        model: str,
        settings: LearnerSettings,
        images: ImageStore,
        weights_root: str,
        *,
        world: int = 1,
        cpus: float = 1.0,
        gpus: float = 0.0,
    ) -> LearnerRanks:
        """Create `world` actors with so many CPUs and GPUs each; `images` must be picklable."""
        each = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
        gang = placement_group([each] * world, strategy="PACK")
        actors = [
            ray.remote(PolicyLearner)
            .options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(gang, placement_group_bundle_index=rank),
            )
            .remote(model, settings, images, weights_root, rank, world)
            for rank in range(world)
        ]
        return cls(actors, gang)

    async def ready(self) -> None:
        """Wait for the places of all ranks, however long; raise what the construction of any rank raised."""
        await self._gang.ready()
        self._placed = True
        address, port = "", 0
        if len(self.actors) > 1:
            address, port = await self.actors[0].endpoint.remote()
        await self._all("ready", address, port)

    async def train(self, groups: Sequence[Sequence[Payload]], version: int) -> StepStats:
        """Learn from one batch; the update makes `version + 1`."""
        return await self._all("train", groups, version)

    async def publish(self, version: int) -> WeightTicket:
        """Write the present weights out as `version`."""
        return await self._all("publish", version)

    async def connect(self, peers: Sequence[Peer]) -> None:
        """Who receives weights from GPU to GPU, from the next version on; the other transports need not know."""
        await self._all("connect", list(peers))

    async def save(self, address: str) -> None:
        await self._all("save", address)

    async def load(self, address: str) -> None:
        await self._all("load", address)

    async def export(self, address: str) -> None:
        await self._all("export", address)

    async def keep(self, version: int, address: str) -> None:
        """Copy a published version into a model folder; comes after whatever the ranks are doing."""
        await self._all("keep", version, address)

    async def close(self) -> None:
        """Let every rank clean up, then end its process and give back its place; also when that fails."""
        try:
            if self._placed:
                await self._all("close")
        finally:
            for actor in self.actors:
                ray.kill(actor)
            remove_placement_group(self._gang)

    async def _all(self, method: str, *arguments: Any) -> Any:
        """Rank 0's answer, after all ranks have answered; the first failure of any is raised at once."""
        calls = [getattr(actor, method).remote(*arguments) for actor in self.actors]
        answers = await asyncio.gather(*calls)
        return answers[0]
