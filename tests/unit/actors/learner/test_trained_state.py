"""A rank reads of a checkpoint what it holds, and fills it to the last number, however the reads are cut."""

from __future__ import annotations

import pytest
import torch

from actors.learner.backends import trained_state
from actors.learner.backends.ranks import Ranks
from actors.learner.backends.trained_state import ADAMW_MOMENTS, MASTER, Piece, load_state, save_state, saved_steps
from cluster.errors import UserError
from cluster.storage import Folder

SHAPES = {"embedding": (64, 32), "bias": (7,), "first": (40, 50), "second": (300,)}
KINDS = (MASTER, *ADAMW_MOMENTS)
STEPS = 3


def whole(name: str, kind: str) -> torch.Tensor:
    """Each element another one."""
    size = int(torch.Size(SHAPES[name]).numel())
    start = 100_000 * list(SHAPES).index(name) + 10_000 * KINDS.index(kind)
    return torch.arange(start, start + size, dtype=torch.float32)


def pieces_of(rank: int, world: int) -> list[Piece]:
    """As ZeRO-3 has them, empty: equal stretches of each parameter, the last one shorter."""
    pieces = []
    for name, shape in SHAPES.items():
        size = int(torch.Size(shape).numel())
        length = -(-size // world)
        start = min(rank * length, size)
        values = {kind: torch.zeros(min(length, size - start)) for kind in KINDS}
        pieces.append(Piece(name, shape, start, values))
    return pieces


@pytest.fixture
def saved(tmp_path, monkeypatch) -> Folder:
    monkeypatch.setattr(trained_state, "PART_BYTES", 25_000)
    pieces = [Piece(name, shape, 0, {kind: whole(name, kind) for kind in KINDS}) for name, shape in SHAPES.items()]
    save_state(tmp_path, pieces, STEPS, Ranks(), partitioned=False)
    folder = Folder(tmp_path)
    assert folder.read_json("state.json")["parts"] == 3
    return folder


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """The bytes of each read of a part, headers apart."""
    asked: list[int] = []
    read_bytes = Folder.read_bytes

    def counted(folder: Folder, name: str, start: int = 0, end: int | None = None) -> bytes:
        data = read_bytes(folder, name, start, end)
        if name.startswith("part-") and start > 8:
            asked.append(len(data))
        return data

    monkeypatch.setattr(Folder, "read_bytes", counted)
    return asked


@pytest.mark.parametrize("together", [(0, 0), (100, 2000), (1 << 20, 1 << 20)])
@pytest.mark.parametrize("world", [1, 4])
def test_every_rank_gets_its_elements(saved, monkeypatch, world, together):
    for name, value in zip(("READ_GAP", "READ_BYTES"), together, strict=True):
        monkeypatch.setattr(trained_state, name, value)
    for rank in range(world):
        pieces = pieces_of(rank, world)
        assert load_state(saved, pieces, Ranks()) == STEPS
        for piece in pieces:
            for kind, values in piece.values.items():
                assert torch.equal(values, whole(piece.name, kind)[piece.start : piece.start + len(values)])


def test_the_ranks_of_a_partitioned_engine_read_a_checkpoint_once_together(saved, monkeypatch, read):
    monkeypatch.setattr(trained_state, "READ_GAP", 0)
    for rank in range(4):
        load_state(saved, pieces_of(rank, 4), Ranks())
    assert sum(read) == sum(4 * len(whole(name, kind)) for name in SHAPES for kind in KINDS)


def test_what_lies_near_together_is_read_at_once(saved, read):
    load_state(saved, pieces_of(0, 4), Ranks())
    assert len(read) == 3


def test_a_part_that_is_truncated_or_of_other_numbers_is_refused_without_being_filled_in(saved):
    data = saved.read_bytes("part-00001.safetensors")
    for damaged, told in ((data[:-4], "truncated"), (data[:4], "truncated"), (data.replace(b"F32", b"I32"), "I32")):
        saved.write_bytes("part-00001.safetensors", damaged)
        with pytest.raises(UserError, match=f"cannot be loaded: .*{told}"):
            load_state(saved, pieces_of(0, 1), Ranks())
    saved.delete("part-00001.safetensors")
    with pytest.raises(UserError, match=r"cannot be loaded: .*part-00001"):
        load_state(saved, pieces_of(0, 1), Ranks())


def test_without_a_checkpoint_there_are_no_steps_to_be_told(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        saved_steps(Folder(tmp_path))
