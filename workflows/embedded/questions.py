"""What is asked in the embedded world. For every kind the right tools are known, because the world is.

kind          needs                                          label
looking       only eyes                                      free
head          eyes and what the base model knows             free
image         an image search                                required
text          a text search: the organisation is named       required
image_text    an image search, then a text search            required
two_hops      an image search, then two text searches        required
refinement    a text query that says which (a namesake or an
              outdated page ranks first), with or without an
              image search before                            required
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from actors.agent.trajectory import Label
from workflows.embedded.entities import Emblem, Organisation, World
from workflows.embedded.lexicon import CHANGING_FACT, CITY_FACTS, ORGANISATION_FACTS
from workflows.embedded.pictures import Scene, compose

FREE_KINDS = ("looking", "head")
KINDS = (*FREE_KINDS, "image", "text", "image_text", "two_hops", "refinement")


@dataclass(frozen=True)
class MixSettings:
    """Shares of the kinds of questions; they need not sum to one."""

    looking: float = 0.15
    head: float = 0.20
    image: float = 0.10
    text: float = 0.10
    image_text: float = 0.25
    two_hops: float = 0.10
    refinement: float = 0.10
    crowded: float = 0.5  # share of scenes with two to four emblems

    def check(self) -> None:
        shares = [getattr(self, kind) for kind in KINDS]
        if min(shares) < 0 or sum(shares) <= 0:
            raise ValueError("shares of question kinds must not be negative, and not all zero")
        if not 0 <= self.crowded <= 1:
            raise ValueError(f"crowded must lie in [0, 1], is {self.crowded}")


@dataclass(frozen=True)
class Draft:
    """A question with the truth behind it. Only a teacher and the scoring may read `subject`, `path` and `answer`.

    `path` is the chain of facts from the subject: () for its name, ("city", "river") for two hops.
    """

    id: str
    text: str
    scene: Scene
    kind: str
    label: Label
    category: str
    answer: str
    subject: Organisation | None  # None: only looking is asked
    emblem: Emblem | None  # what the question refers to in the picture; None: the organisation is named
    path: tuple[str, ...] = ()
    unseen_wording: bool = False  # asked in words that are kept for the test split

    @property
    def first_tools(self) -> tuple[str, ...]:
        """What a right first step is: the whole of a crowded picture finds nothing."""
        if self.label is Label.FREE:
            return ("none",)
        if self.emblem is None:
            return ("text_search",)
        return ("crop",) if self.scene.crowded else ("crop", "image_search")

    @property
    def tags(self) -> tuple[str, ...]:
        return (*["crowded"] * self.scene.crowded, *["unseen_wording"] * self.unseen_wording)


def draft_questions(world: World, mix: MixSettings, split: str, n: int, seed: int) -> Iterator[Draft]:
    """`n` questions of a split (train or test); question i depends on seed and i alone."""
    shares = [getattr(mix, kind) for kind in KINDS]
    for i in range(n):
        rng = Random(f"question-{world.settings.seed}-{split}-{seed}-{i}")
        kind = rng.choices(KINDS, shares)[0]
        yield _Drafter(world, mix, split, rng).draft(f"{split}-{seed}-{i:05d}", kind)


@dataclass
class _Drafter:
    world: World
    mix: MixSettings
    split: str
    rng: Random
    crowded: bool = field(init=False)
    unseen_wording: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.crowded = self.rng.random() < self.mix.crowded

    def draft(self, id: str, kind: str) -> Draft:
        if kind == "looking":
            return self._looking(id)
        subject = self._subject(kind)
        path = self._path(kind, subject)
        named = kind == "text" or (kind == "refinement" and self.rng.random() < 0.5)
        if kind == "head" and path and self.rng.random() < 0.25:
            named = True
        scene = self._scene(None if named else subject)
        says_trade = kind == "refinement" and path != (CHANGING_FACT,) and named
        about = self._name(subject, says_trade) if named else self._reference(subject.emblem, scene)
        text = self._ask(path, about)
        return Draft(
            id=id,
            text=text,
            scene=scene,
            kind=kind,
            label=Label.FREE if kind in FREE_KINDS else Label.REQUIRED,
            category=path[-1] if path else "name",
            answer=follow(self.world, subject, path),
            subject=subject,
            emblem=None if named else subject.emblem,
            path=path,
            unseen_wording=self.unseen_wording,
        )

    def _subject(self, kind: str) -> Organisation:
        if kind == "head":
            return self.rng.choice(self.world.of("head"))
        tail = self.world.of(self.split)
        if kind in ("text", "image_text", "two_hops"):  # a namesake would make these refinements
            tail = tuple(it for it in tail if it.namesake is None) or tail
        if kind == "refinement" and self.rng.random() < 0.5:
            tail = tuple(it for it in tail if it.namesake is not None) or tail
        return self.rng.choice(tail)

    def _path(self, kind: str, subject: Organisation) -> tuple[str, ...]:
        if kind == "image" or (kind == "head" and self.rng.random() < 0.2):
            return ()
        if kind == "two_hops":
            return ("city", self.rng.choice(CITY_FACTS))
        if kind == "refinement" and subject.namesake is None:
            return (CHANGING_FACT,)
        return (self.rng.choice(ORGANISATION_FACTS),)

    def _scene(self, subject: Organisation | None) -> Scene:
        """A picture with the subject in it, or (subject None) of others; no two emblems have the same words."""
        wanted = self.rng.randint(2, 4) if self.crowded else 1
        shown = [] if subject is None else [subject.emblem]
        pool = self.world.of(self.split) + self.world.of("head")
        wanted = min(wanted, len({it.emblem.words for it in pool}))  # a world may be very small
        while len(shown) < wanted:
            other = self.rng.choice(pool).emblem
            if other.words not in {emblem.words for emblem in shown}:
                shown.append(other)
        self.rng.shuffle(shown)
        return compose(shown, self.rng)

    def _looking(self, id: str) -> Draft:
        scene = self._scene(None)
        emblem = self.rng.choice(scene.emblems)
        asks: list[tuple[str, str, str]] = [("mark", emblem.mark, f"what mark is on the {emblem.words}?")]
        if sum(other.shape == emblem.shape for other in scene.emblems) == 1:
            asks.append(("colour", emblem.colour, f"what colour is the {emblem.shape}?"))
        if sum(other.colour == emblem.colour for other in scene.emblems) == 1:
            asks.append(("shape", emblem.shape, f"what shape is the {emblem.colour} emblem?"))
        category, answer, text = self.rng.choice(asks)
        return Draft(id, text, scene, "looking", Label.FREE, category, answer, None, emblem)

    # --- words ------------------------------------------------------------------------------------------------------

    def _ask(self, path: tuple[str, ...], about: str) -> str:
        """Openings and references combine freely; which combinations are asked tells train from test."""
        if not path:
            return self._pick((f"what is the name of {about}?", f"name {about}.", f"which one is {about}?"), about)
        fact = path[-1]
        if len(path) == 2:
            about = f"the city of {about}"
        elif fact == CHANGING_FACT:
            fact = f"current {fact}"
        asked = f"the {fact} of {about}"
        return self._pick((f"what is {asked}?", f"name {asked}.", f"tell me {asked}."), about)

    def _reference(self, emblem: Emblem, scene: Scene) -> str:
        styles = [f"the {emblem.words}", f"the one with the {emblem.words}", f"the {emblem.words} emblem"]
        if not scene.crowded:
            styles += ["this emblem", "the emblem shown here"]
        return self.rng.choice(styles)

    def _name(self, subject: Organisation, says_trade: bool) -> str:
        return f"the {subject.trade} {subject.name}" if says_trade else subject.name

    def _pick(self, wordings: tuple[str, ...], about: str) -> str:
        """Of the three wordings, one is kept for the test questions of a manner of reference."""
        held_out = len(about.split()) % len(wordings)
        if self.split == "test" and self.rng.random() < 0.5:
            self.unseen_wording = True
            return wordings[held_out]
        return wordings[(held_out + self.rng.randint(1, len(wordings) - 1)) % len(wordings)]


def follow(world: World, subject: Organisation, path: tuple[str, ...]) -> str:
    """The right answer: the end of a chain of facts."""
    if not path:
        return subject.name
    value = subject.facts[path[0]]
    return value if len(path) == 1 else world.city[value].facts[path[1]]
