"""The embedded world as a source of questions, each with its teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from actors.agent.seams import Generator, ImageStore
from actors.agent.trajectory import Question
from actors.model.renderer import ChatRenderer
from actors.search.settings import ProviderSettings, SearchSettings
from workflows.dataset.source import Candidate, Dropped, Part
from workflows.embedded.entities import World, WorldSettings, make_world
from workflows.embedded.pictures import render
from workflows.embedded.questions import FREE_KINDS, KINDS, Draft, MixSettings, draft_questions
from workflows.embedded.search import PICTURES, publish_web
from workflows.embedded.teacher import StyleSettings, Teacher
from workflows.run_folder import RunFolder

if TYPE_CHECKING:
    from workflows.settings import Settings

NAME = "embedded"
SFT_SEEDS = 1 << 33  # above every run.seed: conversations are about other questions than those that GRPO asks


class EmbeddedSource:
    """Drafts by number: any number of them, the same for the same settings.

    Conversations are played in `variants` of the world (0: in the world itself), each with a web of its own: what SFT
    could learn by heart is true nowhere else, so it learns to search and to read, and GRPO's questions are new.
    """

    def __init__(self, settings: Settings, variants: int = 4) -> None:
        self._world, self._mix, self._style = settings.world, settings.mix, settings.dataset.style
        self._seed, self._search, self._variants = settings.run.seed, settings.search, variants
        self._webs = RunFolder(settings.run.folder).world / "variants"

    def units(self, part: Part) -> list[dict[str, Any]]:
        seed = self._seed + SFT_SEEDS * part.taught
        common = {"split": part.split, "seed": seed, "of": part.units, "balanced": part.taught}
        variants = range(1, self._variants + 1) if part.taught and self._variants else [0]
        for variant in variants:
            if variant and not self._webs.exists(f"{variant}/{PICTURES}"):
                publish_web(_world(self._world, variant), self._webs / str(variant))
        return [{**common, "number": n, "variant": variants[n % len(variants)]} for n in range(part.units)]

    def read(self, unit: dict[str, Any], images: ImageStore) -> Iterator[Candidate | Dropped]:
        mix = balanced(self._mix) if unit["balanced"] else self._mix
        world = _world(self._world, unit["variant"])
        draft = _drafts(self._world, unit["variant"], mix, unit["split"], unit["of"], unit["seed"])[unit["number"]]
        teacher = _TeacherOf(draft, world, self._style, self._seed)
        yield Candidate(question_of(draft, images), teacher, self._tools(unit["variant"]))

    def _tools(self, variant: int) -> SearchSettings | None:
        """The run's, reading a variant's web."""
        if not variant:
            return None
        web = {"folder": (self._webs / str(variant)).address}

        def there(providers: list[ProviderSettings]) -> list[ProviderSettings]:
            return [replace(p, kwargs={**p.kwargs, **web}) if "folder" in p.kwargs else p for p in providers]

        return replace(self._search, text=there(self._search.text), image=there(self._search.image))


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
        first_tools=draft.first_tools,
        tags=draft.tags,
    )


def balanced(mix: MixSettings) -> MixSettings:
    """The same mix with search-free and search-required kinds in equal parts; unchanged if it has only one of them."""
    free = sum(getattr(mix, kind) for kind in FREE_KINDS)
    required = sum(getattr(mix, kind) for kind in KINDS if kind not in FREE_KINDS)
    if not free or not required:
        return mix
    shares = {kind: getattr(mix, kind) / (free if kind in FREE_KINDS else required) for kind in KINDS}
    return replace(mix, **shares)


@lru_cache(maxsize=16)
def _world(settings: WorldSettings, variant: int) -> World:
    return make_world(settings, variant)


@lru_cache(maxsize=16)
def _drafts(world: WorldSettings, variant: int, mix: MixSettings, split: str, n: int, seed: int) -> list[Draft]:
    return list(draft_questions(_world(world, variant), mix, split, n, seed))
