"""How many pictures a process keeps is a matter of their bytes."""

from __future__ import annotations

import pytest
import torch

from actors.agent.trajectory import ImageRef
from actors.model.pixels import Pixels


class Counted(Pixels):
    """As many patches of 8 numbers as a picture is wide; says which were processed."""

    def __init__(self, capacity: int) -> None:
        super().__init__(None, None, capacity)  # pyright: ignore[reportArgumentType]
        self.processed: list[str] = []

    def _process(self, ref: ImageRef) -> tuple[torch.Tensor, torch.Tensor]:
        self.processed.append(ref.sha256)
        return torch.zeros(ref.width, 8), torch.tensor([1, 1, ref.width])


def picture(name: str, patches: int) -> ImageRef:
    return ImageRef(name, patches, 1)


def asked_for(pixels: Counted, *refs: ImageRef) -> list[str]:
    pixels.processed.clear()
    for ref in refs:
        assert len(pixels.get(ref)[0]) == ref.width
    return list(pixels.processed)


def test_pictures_are_kept_as_long_as_their_bytes_fit():
    pixels = Counted(capacity=1000)  # of 32 bytes a patch
    small = [picture(f"small-{i}", 3) for i in range(10)]
    assert len(asked_for(pixels, *small)) == 10
    assert asked_for(pixels, *small) == []
    large = picture("large", 25)
    assert asked_for(pixels, large, large) == ["large"]
    assert asked_for(pixels, *small[8:], large) == []  # the two that were used last still fit beside it
    assert asked_for(pixels, small[0]) == ["small-0"]
    assert asked_for(pixels, small[8], large) == ["small-8"]  # the least recently used one went for it


@pytest.mark.parametrize("capacity", [0, 1000])
def test_a_picture_that_is_too_large_is_read_and_not_kept(capacity):
    pixels = Counted(capacity)
    huge = picture("huge", 100)
    assert asked_for(pixels, huge, huge) == ["huge", "huge"]
    assert pixels._held == 0
