"""The embedded world as a source of questions, each with its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from actors.agent.seams import Generator, ImageStore
from actors.agent.trajectory import Question
from actors.model.renderer import ChatRenderer
from workflows.dataset.source import Candidate, Dropped, Part
from workflows.embedded.entities import World, WorldSettings, make_world
from workflows.embedded.pictures import render
from workflows.embedded.questions import FREE_KINDS, KINDS, Draft, MixSettings, draft_questions
from workflows.embedded.teacher import StyleSettings, Teacher

if TYPE_CHECKING:
    from workflows.settings import Settings

NAME = "embedded"
SFT_SEEDS = 1 << 33  # above every run.seed: conversations are about other questions than those that GRPO asks


class EmbeddedSource:
    """Drafts by number: any number of them, the same for the same settings."""

    def __init__(self, settings: Settings) -> None:
        self._world, self._mix, self._style = settings.world, settings.mix, settings.dataset.style
        self._seed = settings.run.seed

    def units(self, part: Part) -> list[dict[str, Any]]:
        seed = self._seed + SFT_SEEDS * part.taught
        common = {"split": part.split, "seed": seed, "of": part.units, "balanced": part.taught}
        return [{**common, "number": number} for number in range(part.units)]

    def read(self, unit: dict[str, Any], images: ImageStore) -> Iterator[Candidate | Dropped]:
        mix = balanced(self._mix) if unit["balanced"] else self._mix
        draft = _drafts(self._world, mix, unit["split"], unit["of"], unit["seed"])[unit["number"]]
        yield Candidate(question_of(draft, images), _TeacherOf(draft, _world(self._world), self._style, self._seed))


@dataclass(frozen=True)
class _TeacherOf:
    """The teacher of one draft, once there is a renderer to speak through."""

    draft: Draft
    world: World
    style: StyleSettings
    seed: int

    def __call__(self, renderer: ChatRenderer) -> Generator:
        return Teacher(self.draft, self.world, self.style, renderer, self.seed)


def question_of(draft: Draft, images: ImageStore) -> Question:
    """A draft as a question: its picture drawn and kept, the truth behind it left out."""
    return Question(
        id=draft.id,
        text=draft.text,
        images=(images.put(render(draft.scene)),),
        answers=(draft.answer,),
        designed_label=draft.label,
        category=draft.category,
        kind=draft.kind,
        source=NAME,
    )


def balanced(mix: MixSettings) -> MixSettings:
    """The same mix with search-free and search-required kinds in equal parts; unchanged if it has only one of them."""
    free = sum(getattr(mix, kind) for kind in FREE_KINDS)
    required = sum(getattr(mix, kind) for kind in KINDS if kind not in FREE_KINDS)
    if not free or not required:
        return mix
    shares = {kind: getattr(mix, kind) / (free if kind in FREE_KINDS else required) for kind in KINDS}
    return replace(mix, **shares)


@lru_cache(maxsize=2)
def _world(settings: WorldSettings) -> World:
    return make_world(settings)


@lru_cache(maxsize=4)
def _drafts(world: WorldSettings, mix: MixSettings, split: str, n: int, seed: int) -> list[Draft]:
    return list(draft_questions(_world(world), mix, split, n, seed))
