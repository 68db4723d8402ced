"""What the ingress hands to an agent, and an agent to the search: records that travel between processes."""

from __future__ import annotations

from dataclasses import dataclass

from actors.agent.seams import Sampling
from actors.agent.trajectory import ImageRef, ToolRequest, ToolResult
from workflows.serve.chat import Bounds

Picture = tuple[ImageRef, bytes]


@dataclass(frozen=True)
class Order:
    """One choice of one request: play this. Pictures travel with it: nothing of a request is kept anywhere else."""

    identity: str  # of the request, for logs
    index: int  # of the choice
    caller: str  # whose key pays for its searches
    text: str
    pictures: tuple[Picture, ...]
    sampling: Sampling
    bounds: Bounds
    until: float  # unix seconds: by then it is to have ended, however long it waited for an agent
    stop: tuple[str, ...] = ()
    search: bool = True
    thumbnails: bool = False  # whether it is shown the pictures that were found


@dataclass(frozen=True)
class Errand:
    """A search, with the bytes of the picture that is searched."""

    request: ToolRequest
    caller: str  # whose key pays for it
    seconds: float
    picture: Picture | None = None


@dataclass(frozen=True)
class Found:
    """Its result, with the bytes of the pictures in it."""

    result: ToolResult
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Standing:
    """What an agent replica runs. `refused`: the version that it would not take last; None where it took all."""

    version: int
    checkpoint: str
    healthy: bool
    episodes: int
    refused: int | None = None
