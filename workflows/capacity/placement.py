"""Actors on nodes: how many nodes a run needs, and one way to put its actors there. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.errors import UserError


@dataclass(frozen=True)
class Actors:
    """Equal actors, and what Ray reserves for each."""

    role: str
    count: int
    cpus: float
    gpus: float
    gang: bool = False  # as close together as can be, as the placement group in actors/learner/actor.py has them


@dataclass
class Node:
    """One machine and who is on it."""

    free_gpus: float
    cpus: float = 0.0
    actors: dict[str, int] = field(default_factory=dict)

    def take(self, actors: Actors) -> None:
        self.free_gpus -= actors.gpus
        self.cpus += actors.cpus
        self.actors[actors.role] = self.actors.get(actors.role, 0) + 1


def place(actors: Sequence[Actors], gpus_per_node: int, cpus_per_node: float | None = None) -> list[Node]:
    """The largest first, each on the first node that has room; those without GPUs that are no gang where the fewest
    CPUs are taken.

    An actor's GPUs and CPUs are on one node. Raise `UserError` for one that no node can hold.
    """
    for some in actors:
        if cpus_per_node is not None and some.cpus > cpus_per_node:
            raise UserError(f"A {some.role} needs {some.cpus:g} CPUs of one node, and a node has {cpus_per_node:g}.")
        if some.gpus > gpus_per_node:
            raise UserError(f"A {some.role} needs {some.gpus:g} GPUs of one node, and a node has {gpus_per_node}.")
    nodes: list[Node] = []
    for some in sorted(actors, key=lambda some: -some.gpus):
        for _ in range(some.count):
            order = nodes if some.gpus or some.gang else sorted(nodes, key=lambda node: node.cpus)
            home = next((node for node in order if _has_room(node, some, cpus_per_node)), None)
            if home is None:
                home = Node(float(gpus_per_node))
                nodes.append(home)
            home.take(some)
    return nodes


def gpus_needed(actors: Sequence[Actors]) -> int:
    return math.ceil(sum(some.count * some.gpus for some in actors))


def _has_room(node: Node, some: Actors, cpus_per_node: float | None) -> bool:
    fits_cpus = cpus_per_node is None or node.cpus + some.cpus <= cpus_per_node + 1e-9
    return node.free_gpus + 1e-9 >= some.gpus and fits_cpus
