"""One learner rank's real tensors, counted: `python holdings.py FOLDER RANK WORLD PORT CASE...` prints JSON.

For each case, as `deepspeed-2-bf16-lora` (engine, ZeRO stage, precision, what is trained): two optimizer steps of a
tiny model, then the bytes of every storage that this process holds and did not hold before, at the moment at which the
second step is about to be made: all passes are done, and the optimizer's states are there.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

from actors.learner.adapters import add_adapters
from actors.learner.backends import build_backend
from actors.learner.backends.ranks import Ranks, join
from actors.learner.objective import SupervisedObjective
from actors.learner.parts import freeze_parts
from actors.learner.settings import BackendSettings, LoraSettings
from actors.model.batch import TokenBatch
from actors.model.load import load_policy

LORA = LoraSettings(rank=4)
SIDE = 8  # patches of a picture


def held() -> dict[int, int]:
    """Bytes of each storage that a tensor of this process looks at."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return found


def batch_for(config: Any, dtype: torch.dtype) -> TokenBatch:
    """Two sequences with a picture each, so that every parameter has a gradient."""
    vision = config.vision_config
    ids = torch.randint(10, 250, (2, 50))
    ids[:, 2 : 2 + (SIDE // vision.spatial_merge_size) ** 2] = config.image_token_id
    mask = torch.zeros(2, 50, dtype=torch.bool)
    mask[:, 30:] = True
    numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return TokenBatch(ids, mask, torch.randn(2 * SIDE**2, numbers, dtype=dtype), torch.tensor([[1, SIDE, SIDE]] * 2))


def measure(folder: Path, settings: BackendSettings, ranks: Ranks, trained: str) -> int:
    before = held()
    policy: Any = load_policy(folder, "float32" if settings.precision == "fp32" else "bfloat16")
    if trained == "text":
        freeze_parts(policy, ["vision", "projector"])
    elif trained == "lora":
        add_adapters(policy, LORA)
    batch = batch_for(policy.config, torch.float32)
    backend: Any = build_backend(policy, settings, ranks)
    del policy
    backend.train_batch([batch, batch], SupervisedObjective())
    counted: list[int] = []
    update = backend._update

    def count_first() -> Any:
        now = held()
        mine = {t.untyped_storage().data_ptr() for t in (batch.input_ids, batch.loss_mask, batch.pixel_values)}
        mine.add(batch.image_grid_thw.untyped_storage().data_ptr())
        counted.append(sum(size for at, size in now.items() if at not in before and at not in mine))
        return update()

    backend._update = count_first
    backend.train_batch([batch, batch], SupervisedObjective())
    backend._update = update
    return counted[0]


def main(folder: str, rank: int, world: int, port: int, cases: list[str]) -> None:
    torch.manual_seed(0)
    ranks = join(Ranks(rank, world), address="127.0.0.1", port=port)
    for case in cases:
        kind, stage, precision, trained = case.split("-")
        settings = BackendSettings(kind=kind, zero_stage=int(stage), precision=precision)
        size = measure(Path(folder), settings, ranks, trained)
        if rank == 0:
            print(json.dumps({"case": case, "bytes": size}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
