"""What can be configured about a model, and how it travels with the model's address. Imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from cluster.errors import UserError
from cluster.storage import Folder

BOUNDS = ("min_pixels", "max_pixels")


@dataclass(frozen=True)
class PictureSettings:
    """Bounds of the model's own image processor, for all who show it pictures: samplers, learners, and plans.

    They are part of the address that a model is opened by, as in `models/some#max_pixels=903168`, so that nobody can
    open it without them; what is exported from such a model has them in its own files.
    """

    min_pixels: int | None = field(default=None, metadata={"ge": 1})
    # of a picture; a smaller one is scaled up. What the model's folder says when not given
    max_pixels: int | None = field(default=None, metadata={"ge": 1})
    # of a picture; a larger one is scaled down. What the model's folder says when not given

    def check(self) -> None:
        """Raise ValueError for values that do not fit each other."""
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels is {self.min_pixels} and must be at most max_pixels={self.max_pixels}")

    @property
    def given(self) -> dict[str, int]:
        """Those that are set."""
        return {name: value for name in BOUNDS if (value := getattr(self, name)) is not None}

    def on(self, address: str) -> str:
        """The address of the model at `address`, to be shown pictures within these bounds."""
        if not self.given:
            return address
        plain, others = split_address(address)
        both = others.given | self.given
        return f"{plain}#{'&'.join(f'{name}={value}' for name, value in both.items())}"


def absolute(address: str) -> str:
    """The address that means the same model in a process with another working directory. Raise `UserError` for none."""
    plain, pictures = split_address(address)
    return pictures.on(Folder(plain).address)


def split_address(address: str | os.PathLike[str]) -> tuple[str, PictureSettings]:
    """A model's folder, and the bounds that its address carries. Raise `UserError` for bounds that are none."""
    text = os.fspath(address)
    plain, _, carried = text.rpartition("#")
    pairs = dict(parse_qsl(carried))
    if not plain or not pairs or not set(pairs) <= set(BOUNDS):
        return text, PictureSettings()  # a folder may have a # in its name
    try:
        found = PictureSettings(**{name: int(value) for name, value in pairs.items()})
        found.check()
    except ValueError as error:
        raise UserError(f"{text} is no address of a model: {error}.") from error
    return plain, found
