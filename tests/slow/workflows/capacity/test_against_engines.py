"""What a plan counts beside what real engines hold: weights, gradients and optimizer states, to the byte.

A plan counts the peak of a step, and engines are looked at between their passes and the optimizer. `counted` takes
that into account in three cases: a pass's own gradients (plain) and whole ones (ZeRO 1 in fp32) are gone by then, and
ZeRO 3's bucket for reducing, which a plan has among its buckets, is there. What is left over are the counters of
optimizers, a few numbers of each group's padding, and DeepSpeed's own scalars.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.learner.settings import BackendSettings, LoraSettings
from workflows.capacity.activations import FP32
from workflows.capacity.architecture import Architecture, architecture, model_files
from workflows.capacity.rank_memory import REDUCE_BUCKET, states, width_of

HOLDINGS = Path(__file__).with_name("holdings.py")
ROOT = HOLDINGS.parents[4]
SCALARS = 512  # bytes
ALONE = [
    "plain-0-bf16-all", "plain-0-fp32-all", "plain-0-bf16-lora", "plain-0-bf16-text",
    "deepspeed-0-bf16-all", "deepspeed-0-fp32-all", "deepspeed-1-bf16-all", "deepspeed-1-fp32-all",
    "deepspeed-2-bf16-all", "deepspeed-2-bf16-text", "deepspeed-3-bf16-all", "deepspeed-3-bf16-lora",
]  # fmt: skip
TOGETHER = [
    "deepspeed-0-bf16-all", "deepspeed-1-bf16-all", "deepspeed-2-bf16-all", "deepspeed-3-bf16-all",
    "deepspeed-3-bf16-lora",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    from actors.model.tiny import TinySize, save_tiny

    size = TinySize(hidden=64, layers=2, mlp=128, mrope_section=(2, 3, 3), vision_hidden=48, vision_layers=2)
    texts = [f"the red star of city {i} was founded by a person" for i in range(50)]
    return save_tiny(texts, tmp_path_factory.mktemp("tiny"), size=size)


@pytest.fixture(scope="module")
def shapes(tiny) -> dict[str, Architecture]:
    files = model_files(str(tiny))
    return {
        "all": architecture(files),
        "text": architecture(files, ("vision", "projector")),
        "lora": architecture(files, (), LoraSettings(rank=4)),
    }


def held_by(folder: Path, world: int, cases: list[str]) -> dict[str, int]:
    """Bytes by case, of rank 0 of `world`."""
    port = _free_port() if world > 1 else 0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HOLDINGS), str(folder), str(rank), str(world), str(port), *cases],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        told = [rank.communicate(timeout=600) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, told[0][1][-2000:]
    rows = [json.loads(line) for line in told[0][0].splitlines() if line.startswith("{")]
    return {row["case"]: row["bytes"] for row in rows}


def counted(shape: Architecture, case: str, world: int) -> int:
    """What a plan says of the same moment: all passes are done, and gradients wait for the optimizer."""
    kind, stage, precision, _ = case.split("-")
    backend = BackendSettings(kind=kind, zero_stage=int(stage), precision=precision)  # pyright: ignore
    found, width = states(shape, backend, world), width_of(backend)
    total = found.weights + found.gradients + found.masters + found.adam
    if kind == "plain":
        total -= width * shape.learned  # a pass's own gradients are added up and gone
    if (kind, stage, precision) == ("deepspeed", "1", "fp32"):
        total -= FP32 * shape.learned  # whole gradients have just been reduced, and are gone
    if (kind, stage) == ("deepspeed", "3"):
        total += width * min(REDUCE_BUCKET, shape.learned)  # made once, for good; counted among the buckets
    return total


@pytest.fixture(scope="module")
def alone(tiny) -> dict[str, int]:
    return held_by(tiny, 1, ALONE)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", ALONE)
def test_one_rank_holds_what_is_counted(case, alone, shapes):
    assert 0 <= alone[case] - counted(shapes[case.rpartition("-")[2]], case, 1) < SCALARS


@pytest.mark.timeout(900)
def test_two_ranks_hold_their_share(tiny, shapes):
    found = held_by(tiny, 2, TOGETHER)
    assert set(found) == set(TOGETHER)
    for case, size in found.items():
        assert 0 <= size - counted(shapes[case.rpartition("-")[2]], case, 2) < SCALARS, case


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
