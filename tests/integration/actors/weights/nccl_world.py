"""A learner's weights on one GPU and an engine on another, each in a process of its own. Written, never run so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from actors.agent.prompts import PRESETS
from actors.agent.protocol import TAGS
from actors.model.load import copy_without_weights, load_policy
from actors.model.renderer import load_renderer
from actors.model.tiny import save_tiny
from actors.sampler.engine import Engine
from actors.sampler.settings import EngineSettings
from actors.weights.nccl import NamedShape, NcclTransport, Peer
from actors.weights.transport import write_weights

SETTINGS = EngineSettings(max_model_len=1024, kv_cache_bytes=256 << 20, nccl_updates=True)


class EngineActor:
    """The part of a RolloutSampler that NCCL talks to."""

    def __init__(self, model: str) -> None:
        self._engine = Engine(model, SETTINGS, load_renderer(model), None)  # type: ignore[arg-type]

    async def start(self) -> None:
        await self._engine.start()

    async def accepts_transfer(self, shapes: dict[str, tuple[int, ...]]) -> None:
        assert shapes

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        await self._engine.join_transfer(init_info)

    async def receive_transfer(self, update_info: dict[str, Any], version: int) -> None:
        await self._engine.receive_transfer(update_info, version)

    async def checksums(self) -> list[dict[str, str]]:
        found = await self._engine.weight_checksums()
        await self._engine.close()
        return found


class LearnerActor:
    def send(self, model: str, sampler: Any) -> None:
        weights = changed(model, "cuda")
        shapes = [NamedShape(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()]
        transport = NcclTransport(lambda: shapes, lambda: iter(weights.items()), 0, timeout_s=120)
        transport.connect([Peer(sampler, 1)])
        transport.send(1)
        transport.close()


def changed(model: str, device: str) -> dict[str, Any]:
    policy = load_policy(model, "bfloat16")
    return {name: (value.detach() * 1.25).to(device) for name, value in policy.named_parameters()}


def tiny(root: Path) -> str:
    texts = [preset.opening + preset.after_image + preset.after_text for preset in PRESETS.values()]
    return str(save_tiny(texts, root / "tiny", tags=TAGS, seed=1))


def checksums_after_nccl(root: Path) -> list[dict[str, str]]:
    model = tiny(root)
    sampler: Any = ray.remote(EngineActor).options(num_gpus=1).remote(model)
    ray.get(sampler.start.remote(), timeout=300)
    learner: Any = ray.remote(LearnerActor).options(num_gpus=1).remote()
    ray.get(learner.send.remote(model, sampler), timeout=300)
    found = ray.get(sampler.checksums.remote(), timeout=120)
    for actor in (sampler, learner):
        ray.kill(actor)
    return found


def checksums_of_fresh(root: Path) -> list[dict[str, str]]:
    folder = root / "fresh"
    copy_without_weights(root / "tiny", folder)
    write_weights(changed(str(root / "tiny"), "cpu").items(), folder)
    sampler: Any = ray.remote(EngineActor).options(num_gpus=1).remote(str(folder))
    ray.get(sampler.start.remote(), timeout=300)
    found = ray.get(sampler.checksums.remote(), timeout=120)
    ray.kill(sampler)
    return found
