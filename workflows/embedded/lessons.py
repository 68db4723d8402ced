"""What the base model is taught before it meets a tool: to see, to know the head organisations, to read.

A lesson is a short chat: one or more exchanges, perhaps about a picture, whose replies are learned. Several questions
about one picture cost its way through the vision tower once. Nothing of a test organisation is in any lesson; names in
reading lessons are drawn afresh each time and are nobody's in the world, so that copying is learned and not the names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from actors.agent.prompts import GIVE_UP
from workflows.embedded.entities import Emblem, World
from workflows.embedded.lexicon import (
    CHANGING_FACT,
    CITY_FACTS,
    COLOURS,
    MARKS,
    ORGANISATION_FACTS,
    SHAPES,
    TRADES,
    Names,
    draw_year,
    is_name,
    name_pieces,
)
from workflows.embedded.pictures import Scene, compose
from workflows.embedded.questions import MixSettings, draft_questions

_ASKS = ("what is the {} of {}?", "name the {} of {}.", "tell me the {} of {}.")


@dataclass(frozen=True)
class LessonMix:
    """Shares of the lessons; they need not sum to one."""

    see: float = 0.5  # what is in a picture: all of it, single emblems, and which of them are known
    know: float = 0.07  # facts of head organisations, or that a name is unknown
    repeat: float = 0.04  # a list of fresh names, word for word: copying, at its plainest
    recite: float = 0.05  # one of several numbered results, word for word
    find: float = 0.2  # the answer among numbered results
    query: float = 0.14  # what to search next, from a result or a question


@dataclass(frozen=True)
class Exchange:
    text: str  # `<image>` where the picture goes
    reply: str


@dataclass(frozen=True)
class Lesson:
    kind: str
    exchanges: tuple[Exchange, ...]
    scene: Scene | None = None


class Lessons:
    """An endless, seeded stream of lessons about a world."""

    def __init__(self, world: World, mix: LessonMix, scenes: list[Scene], seed: int) -> None:
        self._world, self._rng = world, Random(f"lessons-{world.settings.seed}-{seed}")
        self._head = {it.emblem: it for it in world.of("head")}
        self._scenes = scenes
        self._makers: dict[str, Callable[[], Lesson]] = {kind: getattr(self, f"_{kind}") for kind in vars(mix)}
        self._weights = list(vars(mix).values())

    def __iter__(self) -> Iterator[Lesson]:
        kinds = list(self._makers)
        while True:
            yield self._makers[self._rng.choices(kinds, self._weights)[0]]()

    # --- seeing -----------------------------------------------------------------------------------------------------

    def _see(self) -> Lesson:
        """Three exchanges about one picture: in half of the lessons the first describes all of it, in raster order."""
        scene = self._rng.choice(self._scenes)
        exchanges = [self._look(scene) if self._rng.random() < 0.5 else self._recognise(scene) for _ in range(3)]
        if self._rng.random() < 0.5:
            words = ", ".join(emblem.description for emblem in scene.emblems)
            exchanges[0] = Exchange("describe the picture.", words + ".")
        exchanges[0] = Exchange("<image>" + exchanges[0].text, exchanges[0].reply)
        return Lesson("see", tuple(exchanges), scene)

    def _look(self, scene: Scene) -> Exchange:
        emblem = self._rng.choice(scene.emblems)
        about, answer = self._rng.choice(
            [(f"what mark is on the {emblem.words}?", emblem.mark)]
            + [(f"what colour is the {emblem.shape}?", emblem.colour)] * _alone(scene, "shape", emblem)
            + [(f"what shape is the {emblem.colour} emblem?", emblem.shape)] * _alone(scene, "colour", emblem)
        )
        return Exchange(about, f"a {emblem.description}. {answer}")

    def _recognise(self, scene: Scene) -> Exchange:
        known = [emblem for emblem in scene.emblems if emblem in self._head]
        emblem = self._rng.choice(known if known and self._rng.random() < 0.5 else scene.emblems)
        about = self._rng.choice(["name the {}.", "which one is the {}?", "what is the name of the {}?"])
        name = self._head[emblem].name if emblem in self._head else "unknown"
        return Exchange(about.format(emblem.words), f"a {emblem.description} is {name}.")

    # --- knowing ----------------------------------------------------------------------------------------------------

    def _know(self) -> Lesson:
        return Lesson("know", tuple(self._fact() for _ in range(3)))

    def _fact(self) -> Exchange:
        fact, ask = self._rng.choice(ORGANISATION_FACTS), self._rng.choice(_ASKS)
        if self._rng.random() < 0.25:
            name = Names(self._rng, self._world.names).draw("organisation")
            return Exchange(ask.format(fact, name), f"{name} is unknown.")
        it = self._rng.choice(self._world.of("head"))
        return Exchange(ask.format(fact, it.name), f"{it.name} is known. {it.facts[fact]}")

    # --- reading ----------------------------------------------------------------------------------------------------

    def _repeat(self) -> Lesson:
        names = Names(self._rng, self._world.names)
        words = " ".join(names.draw("organisation") for _ in range(self._rng.randint(3, 8)))
        return Lesson("repeat", (Exchange(f"repeat: {words}", words),))

    def _recite(self) -> Lesson:
        names = Names(self._rng, self._world.names)
        facts = self._rng.sample((*ORGANISATION_FACTS, *CITY_FACTS), 2)
        sort = self._rng.choice(["organisation", "city"])
        lines = [f"{names.draw(sort)}: the {fact} is {self._value(names, fact)}." for fact in facts]
        first, wanted = self._rng.choice([1, 1, 2, 3, 4]), self._rng.randrange(len(lines))
        text = f"read [{first + wanted}].\n{_information(lines, first)}"
        return Lesson("recite", (Exchange(text, lines[wanted]),))

    def _find(self) -> Lesson:
        """The answer stands in one of two or three numbered results; its number is said with it."""
        names = Names(self._rng, self._world.names)
        sort = self._rng.choice(["organisation", "city"])
        facts = (*ORGANISATION_FACTS, CHANGING_FACT) if sort == "organisation" else CITY_FACTS
        fact, name, trade = self._rng.choice(facts), names.draw(sort), self._rng.choice(TRADES)
        asked = f"current {fact}" if fact == CHANGING_FACT else fact
        value = self._value(names, fact)
        right = f"{name}: the {asked} {f'of the {trade} ' if fact in ORGANISATION_FACTS else ''}is {value}."
        other = self._rng.choice([f for f in facts if f != fact] or [fact])
        wrong = [f"{name}: the {other} is {self._value(names, other)}."]
        if self._rng.random() < 0.5:
            wrong = [f"{names.draw(sort)}: the {fact} is {self._value(names, fact)}."]
        lines = [right, *wrong]
        self._rng.shuffle(lines)
        first = self._rng.choice([1, 1, 2, 3, 4])
        number = first + lines.index(right)
        text = f"{self._rng.choice(_ASKS).format(asked, name)}\n{_information(lines, first)}"
        return Lesson("find", (Exchange(text, f"{value} is in [{number}]."),))

    def _query(self) -> Lesson:
        """The name at the top of a result, copied into the next query."""
        names = Names(self._rng, self._world.names)
        fact = self._rng.choice((*ORGANISATION_FACTS, *CITY_FACTS))
        if fact in CITY_FACTS:
            city = names.draw("city")
            result = f"{names.draw('organisation')}: the city of the {self._rng.choice(TRADES)} is {city}."
            return self._lesson_query(fact, f"the city of {self._words()}", [result], city)
        lines = [f"{names.draw('organisation')}: emblem of the {self._rng.choice(TRADES)}." for _ in range(2)]
        return self._lesson_query(fact, self._words(), lines, lines[0].split(":")[0])

    def _lesson_query(self, fact: str, about: str, lines: list[str], name: str) -> Lesson:
        text = f"{self._rng.choice(_ASKS).format(fact, about)}\n{_information(lines, self._rng.choice([1, 1, 1, 3]))}"
        return Lesson("query", (Exchange(text, f"it is {name}. {name} {fact}"),))

    def _words(self) -> str:
        emblem = self._rng.choice(self._rng.choice(self._scenes).emblems)
        return self._rng.choice(["the {}", "the {} emblem", "the one with the {}"]).format(emblem.words)

    def _value(self, names: Names, fact: str) -> str:
        sorts = {"founder": "person", "chief": "person", "mayor": "person", "city": "city", "river": "river"}
        return draw_year(self._rng) if fact == "year" else names.draw(sorts.get(fact, "product"))


def lesson_scenes(world: World, n: int, seed: int) -> list[Scene]:
    """Pictures to learn to see from: a third of the emblems are head ones, none is of a test organisation."""
    rng = Random(f"lesson-scenes-{world.settings.seed}-{seed}")
    head = [it.emblem for it in world.of("head")]
    tested = {it.emblem for it in world.of("test")}
    others = [emblem for emblem in _every_emblem(world) if emblem not in tested]
    scenes = []
    for i in range(n):
        shown: list[Emblem] = []
        wanted = 1 if i % 2 == 0 else rng.randint(2, 4)
        while len(shown) < wanted:
            emblem = rng.choice(head if rng.random() < 1 / 3 else others)
            if emblem.words not in {other.words for other in shown}:
                shown.append(emblem)
        scenes.append(compose(shown, rng))
    return scenes


def corpus(world: World, n: int, seed: int) -> Iterator[str]:
    """Text to train a tokenizer on: the plain words of `n` lessons and questions, and the pieces of names.

    Whole names and numbers are left out, so that the tokenizer learns pieces, not this world's names.
    """
    lessons = iter(Lessons(world, LessonMix(), lesson_scenes(world, 64, seed), seed))
    for _ in range(n):
        for exchange in next(lessons).exchanges:
            yield _plain("user\n" + exchange.text.replace("<image>", ""))
            yield _plain(exchange.reply)
    for draft in draft_questions(world, MixSettings(), "train", n // 4, seed):
        yield _plain(draft.text)
    for sentence in (GIVE_UP, "not found. another one. once more. archive news. is unknown. is known.", "[1] [2]"):
        yield from [sentence] * 50
    for piece in name_pieces():
        yield from [f" {piece} -{piece} -{piece}"] * 100
    yield from ["user\n", " \n", "assistant\n"] * 100


def _plain(text: str) -> str:
    words = re.findall(r"[a-z]+|[^a-z0-9]+", text)
    return "".join(word for word in words if not is_name(word))


def _every_emblem(world: World) -> list[Emblem]:
    taken = {it.emblem.words for it in world.of("head")}
    every = [Emblem(shape, colour, mark) for shape in SHAPES for colour in COLOURS for mark in MARKS]
    return [emblem for emblem in every if emblem.words not in taken]


def _alone(scene: Scene, attribute: str, emblem: Emblem) -> int:
    """1 when no other emblem of the scene shares the attribute, else 0."""
    value = getattr(emblem, attribute)
    return int(sum(getattr(other, attribute) == value for other in scene.emblems) == 1)


def _information(lines: list[str], first: int) -> str:
    numbered = "\n".join(f"[{first + i}] {line}" for i, line in enumerate(lines))
    return f"<information>{numbered}</information>"
