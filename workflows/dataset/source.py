"""Where questions come from: a class named by dotted path, and what it must do."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from actors.agent.seams import Generator, ImageStore
from actors.agent.trajectory import Question
from actors.model.renderer import ChatRenderer
from actors.search.settings import SearchSettings
from cluster.errors import UserError

if TYPE_CHECKING:
    from workflows.settings import Settings


@dataclass(frozen=True)
class Part:
    """One of the tables that a dataset has."""

    name: str  # its folder in dataset/
    split: str  # train | test
    rows: int  # wanted in the end
    units: int  # to be drawn from a source that can make any number
    taught: bool  # conversations of a teacher, not bare questions


@dataclass(frozen=True)
class Candidate:
    """A question, and who can play it; `teacher` is None where nobody can."""

    question: Question
    teacher: Callable[[ChatRenderer], Generator] | None = None
    search: SearchSettings | None = None  # the tools that it is played with; those of the run when None


@dataclass(frozen=True)
class Dropped:
    """What could not become a row: `cause` in a word, to be counted; `detail` for people."""

    where: str
    cause: str
    detail: str


class Source(Protocol):
    """Made as `Class(settings, **kwargs)`, in the driver and in every actor of the pipeline."""

    def __init__(self, settings: Settings, **kwargs: Any) -> None: ...

    def units(self, part: Part) -> list[dict[str, Any]] | Any:
        """What the pipeline is fed: plain values, or a `ray.data.Dataset` of rows."""
        ...

    def read(self, unit: dict[str, Any], images: ImageStore) -> Iterator[Candidate | Dropped]:
        """The questions of one unit. Does not raise for what is wrong with the data."""
        ...


def source_of(settings: Settings) -> Source:
    """The configured source. Raise `UserError` when its path leads nowhere or its class does not take the kwargs."""
    path, kwargs = settings.dataset.source, settings.dataset.kwargs
    module, _, name = path.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"dataset.source {path!r} cannot be imported: {error}") from error
    try:
        return made(settings, **kwargs)
    except TypeError as error:
        raise UserError(f"dataset.source {path!r} does not take dataset.kwargs: {error}") from error
