"""A scripted policy that plays episodes to make SFT data, through the same loop and tools as everybody else.

It may read the world's truth to choose its actions. It never writes an answer that it did not see in the picture, in
the facts of a head organisation, or in a tool's result; what it cannot find, it gives up on. Its style is imperfect on
purpose: it searches what it need not, tries the whole picture of a crowded scene, asks a poor first query and corrects
it, and makes one search too many, so that reinforcement learning has something to improve. What it is about to do it
says in its reason: a clumsy step follows from words that can be unlearned, not from chance at the tag.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from actors.agent.prompts import GIVE_UP
from actors.agent.protocol import Action, Answer, Grammar, ImageSearch, TextSearch, render_turn
from actors.agent.seams import Generation, Sampling
from actors.agent.trajectory import Label, Segment, SegmentKind, VersionSpan, WeightVersion
from actors.model.renderer import ChatRenderer
from workflows.embedded.entities import World
from workflows.embedded.lexicon import CHANGING_FACT
from workflows.embedded.questions import Draft, follow
from workflows.embedded.reading import ANOTHER, DONE, LOOK_UP, ONCE_MORE, quoted, stated, wanted


@dataclass(frozen=True)
class StyleSettings:
    """How often the teacher is clumsy; probabilities."""

    needless: float = 0.3  # searches although it knows
    whole_first: float = 0.35  # searches the whole of a crowded picture before a crop
    poor_query: float = 0.6  # leaves out the word that tells apart, and corrects it
    one_more: float = 0.15  # searches once more although it has found the answer

    def check(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], is {value}")


class Teacher:
    """An `agent.seams.Generator` for one draft: reads what the last tool returned and writes the next turn."""

    def __init__(self, draft: Draft, world: World, style: StyleSettings, renderer: ChatRenderer, seed: int) -> None:
        self._script = _Script(draft, world, style, Random(f"teacher-{seed}-{draft.id}"))
        self._renderer = renderer

    async def generate(self, segments: Sequence[Segment], sampling: Sampling, *, deadline: float) -> Generation:
        last = segments[-1]
        seen = last.text if last.kind is SegmentKind.OBSERVATION else ""
        reason, action = self._script.next(seen)
        ids = self._renderer.action(render_turn(reason, action, Grammar()))
        spans = (VersionSpan(WeightVersion(0), 0, len(ids)),)
        return Generation(ids, np.zeros(len(ids), dtype=np.float32), spans, "end_of_turn")


class _Script:
    """What to do next, given what the last tool returned."""

    def __init__(self, draft: Draft, world: World, style: StyleSettings, rng: Random) -> None:
        self.draft, self.world, self.rng = draft, world, rng
        free = draft.label is Label.FREE
        self.needless = free and draft.subject is not None and rng.random() < style.needless
        self.whole = not draft.scene.crowded and rng.random() < 0.5
        self.whole |= draft.scene.crowded and rng.random() < style.whole_first
        self.poor = rng.random() < style.poor_query
        self.one_more = rng.random() < style.one_more
        self.named = draft.emblem is None  # the organisation's name is known
        self.hop = 0
        self.last: Action | None = None
        self.found: tuple[str, Answer] | None = None  # what was read, quoted, and the answer in it

    def next(self, seen: str) -> tuple[str, Action]:
        reason, action = self._next(seen)
        self.last = action
        return reason, action

    def _next(self, seen: str) -> tuple[str, Action]:
        if self.last is None:
            return self._first()
        if self.found:
            return self.found
        if isinstance(self.last, ImageSearch):
            return self._after_image(seen)
        return self._after_text(seen)

    def _first(self) -> tuple[str, Action]:
        draft = self.draft
        if draft.subject is None:
            assert draft.emblem is not None
            return f"a {draft.emblem.description}. {stated(draft.category, draft.answer)}", Answer(draft.answer)
        name = draft.subject.name
        known = draft.label is Label.FREE
        if draft.emblem is not None:
            reason = f"a {draft.emblem.description} is {name if known else 'unknown'}."
        else:
            reason = f"{name} is {'known' if known else 'unknown'}."
        if known and not self.needless:
            return f"{reason} {stated(self._fact(), draft.answer)}" if draft.path else reason, Answer(draft.answer)
        if known:
            reason = f"{reason} {LOOK_UP}"
        if draft.emblem is None or (known and draft.path):
            return reason, self._query()
        return reason, ImageSearch() if self.whole else ImageSearch(draft.emblem.words)

    def _after_image(self, seen: str) -> tuple[str, Action]:
        assert self.draft.subject is not None
        assert self.draft.emblem is not None
        name = self.draft.subject.name
        number = _holding(seen, f"{name}:")
        if number is None:
            if isinstance(self.last, ImageSearch) and self.last.expression:
                return "not found.", Answer(GIVE_UP)
            return "not found.", ImageSearch(self.draft.emblem.words)
        self.named = True
        read = f"it is {name} [{number}]."
        if self.draft.path:
            return f"{read} {wanted(self._fact())}", self._query()
        self.found = (f"{read} {DONE}", Answer(name, (number,)))
        if self.one_more and self.draft.label is Label.REQUIRED:
            return f"{read} {ONCE_MORE}", TextSearch(f"{name} {self.draft.subject.trade}")
        return self.found

    def _after_text(self, seen: str) -> tuple[str, Action]:
        assert self.draft.subject is not None
        value = follow(self.world, self.draft.subject, self.draft.path[: self.hop + 1])
        number = _holding(seen, f" {value}.")
        if number is None:
            if not self.poor:
                return "not found.", Answer(GIVE_UP)
            self.poor = False
            return ANOTHER, self._query()
        read = quoted(_text_of(seen, number), number)
        self.hop += 1
        if self.hop < len(self.draft.path):
            return f"{read} {wanted(self._fact())}", self._query()
        self.found = (f"{read} {DONE}", Answer(value, (number,)))
        if self.one_more and self.draft.label is Label.REQUIRED:
            self.hop -= 1
            return f"{read} {ONCE_MORE}", self._query()
        return self.found

    def _fact(self) -> str:
        return self.draft.path[self.hop]

    def _query(self) -> TextSearch:
        """The query for the present hop; the word that tells apart is left out when the query is to be poor."""
        draft, fact = self.draft, self._fact()
        assert draft.subject is not None
        if self.hop:
            return TextSearch(f"{follow(self.world, draft.subject, draft.path[: self.hop])} {fact}")
        name = draft.subject.name
        if fact == CHANGING_FACT and not self.poor:
            return TextSearch(f"{name} current {fact}")
        if draft.subject.namesake is not None and not self.poor:
            return TextSearch(f"{name} {draft.subject.trade} {fact}")
        return TextSearch(f"{name} {fact}")


def _holding(seen: str, words: str) -> int | None:
    """The number of the first line of evidence that holds `words`."""
    for line in seen.splitlines():
        numbered = re.search(r"\[(\d+)\] ", line)
        if numbered and words in line:
            return int(numbered[1])
    return None


def _text_of(seen: str, number: int) -> str:
    """The words of a line of evidence, without its number and title."""
    line = next(line for line in seen.splitlines() if f"[{number}] " in line)
    return line.partition(f"[{number}] ")[2].partition(": ")[2].removesuffix("</information>")
