"""The NCCL transport against vLLM's own types; the transfer itself needs two GPUs and has not been run so far."""

from __future__ import annotations

import inspect

import pytest
import ray
import torch

from actors.weights.manifest import WeightMismatch
from actors.weights.nccl import NamedShape, NcclTransport, Peer, PeersClient

SHAPES = [NamedShape("a", torch.bfloat16, (4, 3)), NamedShape("b", torch.float32, (5,))]


class NotingSampler:
    """Remembers what it is asked, and refuses another model's weights."""

    def __init__(self, needs):
        self._needs, self.noted = needs, []

    async def accepts_transfer(self, shapes):
        if shapes != self._needs:
            raise WeightMismatch("another model")

    async def join_transfer(self, init_info):
        self.noted.append(("join", init_info))

    async def receive_transfer(self, update_info, version):
        self.noted.append(("receive", update_info, version))

    async def all_noted(self):
        return self.noted


@pytest.fixture
def peers(ray_cluster):
    needs = {one.name: one.shape for one in SHAPES}
    actors = [ray.remote(NotingSampler).options(num_cpus=0).remote(needs) for _ in range(3)]
    yield [Peer(actor, workers) for actor, workers in zip(actors, (1, 4, 2), strict=True)]
    for actor in actors:
        ray.kill(actor)


def noted(peers):
    return ray.get([peer.actor.all_noted.remote() for peer in peers])


def test_every_engine_gets_its_own_places_in_the_group_and_each_update_with_its_version(peers):
    from vllm.distributed.weight_transfer import VLLMWeightSyncClient

    client = PeersClient(peers, 7, 60)
    assert isinstance(client, VLLMWeightSyncClient)
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 8})
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    client.finish_weight_update()
    offsets = [calls[0][1]["rank_offset"] for calls in noted(peers)]
    assert offsets == [1, 2, 6]
    assert all(calls[1:] == [("receive", {"names": ["a"]}, 7)] for calls in noted(peers))


def test_a_sampler_of_another_model_refuses_before_anything_moves(peers):
    client = PeersClient(peers, 7, 60)
    client.accepts(SHAPES)
    with pytest.raises(WeightMismatch, match="another model"):
        client.accepts(SHAPES[:1])
    assert noted(peers) == [[], [], []]


def test_without_samplers_nothing_is_sent():
    transport = NcclTransport(lambda: SHAPES, lambda: iter(()), 0)
    with pytest.raises(ValueError, match="no sampler is connected"):
        transport.send(1)
    with pytest.raises(ValueError, match="from GPU to GPU"):
        transport.opened(1)


def test_vllm_takes_what_it_is_given():
    """Signatures of the installed vLLM; what they do is for a GPU to show."""
    from vllm.distributed.weight_transfer import ParamMeta, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLTrainerInitInfo,
        NCCLTrainerWeightTransferEngine,
        NCCLWeightTransferEngine,
    )
    from vllm.v1.engine.async_llm import AsyncLLM

    info = NCCLTrainerInitInfo("127.0.0.1", 1, 3, rank=0)
    assert info.is_sender
    inspect.signature(WeightTransferTrainerFactory.trainer_init).bind(info, client=None, source=None)
    inspect.signature(NCCLTrainerWeightTransferEngine.send_weights).bind(None)
    update = {"names": ["a"], "dtype_names": ["bfloat16"], "shapes": [[4, 3]]}
    assert NCCLWeightTransferEngine.update_info_cls(**update).names == ["a"]
    assert ParamMeta("a", torch.bfloat16, (4, 3)).shape == (4, 3)
    assert WeightTransferUpdateRequest(update_info=update).update_info == update
    assert WeightTransferInitRequest(init_info={}).init_info == {}
    for name in ("init_weight_transfer_engine", "shutdown_weight_transfer_engine", "start_weight_update",
                 "update_weights", "finish_weight_update"):  # fmt: skip
        assert inspect.iscoroutinefunction(getattr(AsyncLLM, name))


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_an_engine_that_received_by_nccl_is_as_one_that_was_started_so(ray_cluster, tmp_path):
    """Learner on one GPU, engine on another: never run so far."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices: NCCL refuses two ranks on one")
    from tests.integration.actors.weights.nccl_world import checksums_after_nccl, checksums_of_fresh

    assert checksums_after_nccl(tmp_path) == checksums_of_fresh(tmp_path)
