"""A rank of SFT by itself: adapters and frozen parts on tiny models of both families, exported as ordinary models."""

from __future__ import annotations

import io
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from actors.agent.trajectory import Segment, SegmentKind, VersionSpan, WeightVersion
from actors.learner.backends.ranks import Ranks
from actors.learner.settings import LoraSettings
from actors.model import load
from actors.model.expansion import expand
from actors.model.load import check_model_folder, load_policy, local_model
from actors.model.renderer import load_renderer
from actors.model.settings import PictureSettings
from actors.model.tiny import QWEN3, TinySize, save_tiny
from cluster.errors import RunBroken, UserError
from workflows import sft_rank
from workflows.dataset.conversations import Conversation
from workflows.run_folder import RunFolder
from workflows.sft_rank import Rank, Task, answered, open_board
from workflows.sft_settings import SftSettings

FAMILIES = {"qwen2_5_vl": TinySize(layers=2, vision_layers=2), "qwen3_vl": replace(QWEN3, layers=2, vision_layers=2)}
LANGUAGE = "model.language_model.layers."


class Run:
    """A model, and conversations about pictures, as they lie in a run's folder."""

    def __init__(self, root, size: TinySize, pictures: PictureSettings) -> None:
        self.root = str(root / "run")
        self.model = str(save_tiny(["what is this? a red star."] * 3, root / "model", size=size))
        self.address = pictures.on(self.model)
        self.images = RunFolder.at(self.root).images()
        self.renderer = load_renderer(local_model(self.address, root / "cache"))
        self.conversations = [self._conversation(i) for i in range(8)]

    def _conversation(self, i: int) -> Conversation:
        out = io.BytesIO()
        noise = np.random.default_rng(i).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).save(out, format="PNG")
        ids = self.renderer.action("a red star.")
        n = len(ids)
        spans = (VersionSpan(WeightVersion(0), 0, n),)
        said = Segment(SegmentKind.ACTION, ids, np.zeros(n, np.float32), spans)
        asked = self.renderer.open("<image> what is this?", [self.images.put(out.getvalue())])
        return Conversation(f"c{i}", "see", expand([asked, said], self.renderer.image_token))

    def rank(self, **settings) -> Rank:
        wanted = SftSettings(
            steps=4, batch=4, warmup_steps=1, lr=5e-3, threads=1, activation_checkpointing=True, **settings
        )
        return Rank(Task(wanted, 0, self.root, self.address), Ranks(), lambda token: self.conversations)

    def moved(self) -> set[str]:
        """Names of the weights that the export has and the model that training began with has not."""
        export = RunFolder.at(self.root).sft_export.local_path
        check_model_folder(export)
        before, after = (dict(load_policy(folder, "bfloat16").named_parameters()) for folder in (self.model, export))
        assert before.keys() == after.keys()
        return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def run(request, tmp_path):
    """Of the family that the test names."""
    return Run(tmp_path, FAMILIES[request.param], PictureSettings(max_pixels=64 * 96))


def losses(rank: Rank, steps: int = 4) -> list[float]:
    return [rank.step(step)[0]["loss"] for step in range(1, steps + 1)]


@pytest.mark.parametrize(("run", "precision"), [("qwen2_5_vl", "fp32"), ("qwen3_vl", "bf16")], indirect=["run"])
def test_lora_learns_and_is_exported_as_an_ordinary_model(run, precision, monkeypatch):
    read = []
    monkeypatch.setattr(load, "load_policy", lambda path, dtype: read.append(dtype) or load_policy(path, dtype))
    rank = run.rank(lora=LoraSettings(rank=4), freeze=["vision", "projector"], precision=precision)
    assert read == [{"fp32": "float32", "bf16": "bfloat16"}[precision]]
    assert {buffer.dtype for buffer in rank.learner._backend.model.buffers()} == {torch.float32}  # rotary frequencies
    found = losses(rank)
    assert found[-1] < found[0] - 0.05
    rank.export()
    moved = run.moved()
    assert moved
    assert all(name.startswith(LANGUAGE) and name.endswith("proj.weight") for name in moved)
    export = RunFolder.at(run.root).sft_export.local_path
    assert not list(export.glob("*adapter*"))
    assert isinstance(AutoModelForImageTextToText.from_pretrained(export), type(load_policy(run.model)))
    # a checkpoint knows the pictures that it learned from
    assert AutoImageProcessor.from_pretrained(export).size["longest_edge"] == 64 * 96


@pytest.mark.parametrize(
    ("run", "freeze", "stage"),
    [("qwen2_5_vl", ["vision"], 1), ("qwen3_vl", ["vision", "projector"], 3)],
    indirect=["run"],
)
def test_parts_that_are_frozen_stay_and_all_others_move(run, freeze, stage):
    rank = run.rank(freeze=freeze, precision="fp32", zero_stage=stage)
    losses(rank, 2)
    rank.export()
    moved = run.moved()
    parts: dict[str, set[str]] = {"vision": set(), "projector": set(), "language": set()}
    for name in load_policy(run.model).state_dict():
        kind = "language" if ".visual." not in name else "projector" if "merger" in name else "vision"
        parts[kind].add(name)
    assert {kind for kind, names in parts.items() if not names & moved} == set(freeze)


@pytest.mark.parametrize("run", ["qwen3_vl"], indirect=True)
def test_conversations_that_were_written_under_other_bounds_are_refused(run):
    run.address = run.model
    with pytest.raises(UserError, match=r"Conversation c0 gives its pictures \d tokens, and the model reads 1\d"):
        run.rank()


def test_a_board_that_hangs_or_is_gone_is_told_in_a_sentence(ray_cluster, monkeypatch):
    board = open_board()
    assert answered(board.put.remote(1, {"loss": 1.0}, {})) is False
    assert answered(board.take.remote()) == [(1, {"loss": 1.0}, {})]
    board.__ray_call__.remote(lambda _: time.sleep(60))
    monkeypatch.setattr(sft_rank, "ANSWER_S", 0.1)
    with pytest.raises(RunBroken, match="on the machine of this command, gave no answer in 0 s; the same command"):
        answered(board.take.remote())
    monkeypatch.undo()
    ray.kill(board)
    with pytest.raises(RunBroken, match="on the machine of this command, is gone; the same command goes on"):
        answered(board.take.remote())


def test_muon_and_adapters_do_not_go_together():
    with pytest.raises(ValueError, match="lora needs adamw"):
        SftSettings(lora=LoraSettings(), optimizer="muon", engine="plain").check()
