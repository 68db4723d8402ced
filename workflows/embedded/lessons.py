"""What the base model is taught before it meets a tool: to see, to know the head organisations, to read.

A lesson is a short chat: one or more exchanges, perhaps about a picture, whose replies are learned. Several questions
about one picture cost its way through the vision tower once. Every picture is drawn for one lesson: of two thousand
that come again and again, a model learns the backgrounds by heart. Names in reading lessons are drawn afresh as well
and are nobody's in the world, so that copying is learned and not the names.

Of a test organisation no lesson says anything, neither its name nor that it is unknown. What emblems look like is
taught of all combinations of shape, colour and mark alike, the 80 of test organisations among the 400: were those left
out, a model would learn which marks do not go with which words, and would be wrong about just these pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from actors.agent.prompts import GIVE_UP
from actors.agent.protocol import ANSWER, IMAGE_SEARCH, REASON, TEXT_SEARCH
from workflows.embedded.entities import Emblem, World
from workflows.embedded.lexicon import COLOURS, MARKS, ORGANISATION_FACTS, SHAPES, Names, is_name, name_pieces
from workflows.embedded.pictures import Scene, compose
from workflows.embedded.questions import MixSettings, draft_questions
from workflows.embedded.reading import ANOTHER, ASKS, DONE, LOOK_UP, ONCE_MORE, Exchange, Reader, stated

DESCRIBE = "describe the picture."
MARKUP = (REASON, TEXT_SEARCH, IMAGE_SEARCH, ANSWER)


@dataclass(frozen=True)
class LessonMix:
    """Shares of the lessons; they need not sum to one."""

    describe: float = 0.05  # all that is in a picture, in raster order
    see: float = 0.36  # what is in a picture: all of it, single emblems, which of them are known, and what of them
    know: float = 0.08  # facts of head organisations, or that a name is unknown
    repeat: float = 0.05  # a list of fresh names, word for word: copying, at its plainest
    markup: float = 0.06  # the same between tags, as every real base model has seen them: what is opened is closed
    find: float = 0.2  # which of the results answers, quoted with its number; or that none does
    follow: float = 0.2  # what to search next from a result, up to the answer: several searches in one lesson


READING = LessonMix(describe=0.05, see=0.0, know=0.05, repeat=0.7, markup=0.0, find=0.1, follow=0.1)
SEEING = LessonMix(describe=0.4, see=0.3, know=0.1, repeat=0.1, markup=0.0, find=0.05, follow=0.05)


@dataclass(frozen=True)
class Lesson:
    kind: str
    exchanges: tuple[Exchange, ...]
    scene: Scene | None = None


class Lessons:
    """An endless, seeded stream of lessons about a world."""

    def __init__(self, world: World, mix: LessonMix, seed: int) -> None:
        self._world, self._rng = world, Random(f"lessons-{world.settings.seed}-{seed}")
        self._head = {it.emblem: it for it in world.of("head")}
        self._tested = {it.emblem for it in world.of("test")}
        self._others = _every_emblem(world)
        self._makers: dict[str, Callable[[], Lesson]] = {kind: getattr(self, f"_{kind}") for kind in vars(mix)}
        self._weights = list(vars(mix).values())

    def __iter__(self) -> Iterator[Lesson]:
        kinds = list(self._makers)
        while True:
            yield self._makers[self._rng.choices(kinds, self._weights)[0]]()

    # --- seeing -----------------------------------------------------------------------------------------------------

    def _describe(self) -> Lesson:
        scene = self._scene()
        return Lesson("describe", (Exchange("<image>" + DESCRIBE, _description(scene)),), scene)

    def _see(self) -> Lesson:
        """Five exchanges about one picture: in half of the lessons the first describes all of it."""
        scene = self._scene()
        exchanges = [self._look(scene) if self._rng.random() < 0.5 else self._recognise(scene) for _ in range(5)]
        if self._rng.random() < 0.5:
            exchanges[0] = Exchange(DESCRIBE, _description(scene))
        exchanges[0] = Exchange("<image>" + exchanges[0].text, exchanges[0].reply)
        return Lesson("see", tuple(exchanges), scene)

    def _look(self, scene: Scene) -> Exchange:
        emblem = self._rng.choice(scene.emblems)
        about, asked = self._rng.choice(
            [(f"what mark is on the {emblem.words}?", "mark")]
            + [(f"what colour is the {emblem.shape}?", "colour")] * _alone(scene, "shape", emblem)
            + [(f"what shape is the {emblem.colour} emblem?", "shape")] * _alone(scene, "colour", emblem)
        )
        return Exchange(about, f"a {emblem.description}. {stated(asked, getattr(emblem, asked))}")

    def _recognise(self, scene: Scene) -> Exchange:
        askable = [emblem for emblem in scene.emblems if emblem not in self._tested]
        if not askable:
            return self._look(scene)
        known = [emblem for emblem in askable if emblem in self._head]
        emblem = self._rng.choice(known if known and self._rng.random() < 0.5 else askable)
        if emblem in self._head and self._rng.random() < 0.5:
            return self._recall(emblem)
        about = self._rng.choice(["name the {}.", "which one is the {}?", "what is the name of the {}?"])
        name = self._head[emblem].name if emblem in self._head else "unknown"
        return Exchange(about.format(emblem.words), f"a {emblem.description} is {name}.")

    def _recall(self, emblem: Emblem) -> Exchange:
        """A fact of what is recognised: from the picture to the name, from the name to the fact."""
        it, fact = self._head[emblem], self._rng.choice(ORGANISATION_FACTS)
        ask = self._rng.choice(ASKS).format(fact, f"the {emblem.words}")
        return Exchange(ask, f"a {emblem.description} is {it.name}. {stated(fact, it.facts[fact])}")

    def _scene(self) -> Scene:
        """A new picture, half of them crowded; a third of the emblems are head ones."""
        rng, shown = self._rng, list[Emblem]()
        wanted = 1 if rng.random() < 0.5 else rng.randint(2, 4)
        while len(shown) < wanted:
            emblem = rng.choice(list(self._head) if rng.random() < 1 / 3 else self._others)
            if emblem.words not in {other.words for other in shown}:
                shown.append(emblem)
        return compose(shown, rng)

    # --- knowing ----------------------------------------------------------------------------------------------------

    def _know(self) -> Lesson:
        return Lesson("know", tuple(self._fact() for _ in range(3)))

    def _fact(self) -> Exchange:
        fact, ask = self._rng.choice(ORGANISATION_FACTS), self._rng.choice(ASKS)
        if self._rng.random() < 0.25:
            name = Names(self._rng, self._world.names).draw("organisation")
            return Exchange(ask.format(fact, name), f"{name} is unknown.")
        it = self._rng.choice(self._world.of("head"))
        return Exchange(ask.format(fact, it.name), f"{it.name} is known. {stated(fact, it.facts[fact])}")

    # --- reading ----------------------------------------------------------------------------------------------------

    def _repeat(self) -> Lesson:
        """Names of every sort, and years: how to copy is learned token by token, not once for all."""
        words = self._reader().values(self._rng.randint(3, 8))
        return Lesson("repeat", (Exchange(f"repeat: {words}", words),))

    def _markup(self) -> Lesson:
        """Two pieces of text, each in the tag that was asked for, in the order that was asked for."""
        reader, tags = self._reader(), self._rng.sample(MARKUP, 2)
        pieces = [self._rng.choice([reader.values(self._rng.randint(1, 3)), self._words()]) for _ in tags]
        asked = " and ".join(f"{tag}: {piece}" for tag, piece in zip(tags, pieces, strict=True))
        reply = "".join(f"<{tag}>{piece}</{tag}>" for tag, piece in zip(tags, pieces, strict=True))
        return Lesson("markup", (Exchange(f"write {asked}", reply),))

    def _words(self) -> str:
        return self._rng.choice(self._others).words

    def _find(self) -> Lesson:
        return Lesson("find", tuple(self._reader().find()))

    def _follow(self) -> Lesson:
        emblem = self._rng.choice(self._others)
        words = self._rng.choice(["the {}", "the {} emblem", "the one with the {}"]).format(emblem.words)
        return Lesson("follow", tuple(self._reader().follow(words)))

    def _reader(self) -> Reader:
        return Reader(self._rng, Names(self._rng, self._world.names))


def corpus(world: World, n: int, seed: int) -> Iterator[str]:
    """Text to train a tokenizer on: the plain words of `n` lessons and questions, and the pieces of names.

    Whole names and numbers are left out, so that the tokenizer learns pieces, not this world's names.
    """
    lessons = iter(Lessons(world, LessonMix(), seed))
    for _ in range(n):
        for exchange in next(lessons).exchanges:
            yield _plain("user\n" + exchange.text.replace("<image>", ""))
            yield _plain(exchange.reply)
    for draft in draft_questions(world, MixSettings(), "train", n // 4, seed):
        yield _plain(draft.text)
    for sentence in (
        GIVE_UP,
        f"not found. {ANOTHER} {DONE} {LOOK_UP} {ONCE_MORE} archive news. is unknown. is known.",
        "[1] [2]",
    ):
        yield from [sentence] * 50
    for piece in name_pieces():
        yield from [f" {piece} -{piece} -{piece}"] * 100
    yield from ["user\n", " \n", "assistant\n"] * 100


def _plain(text: str) -> str:
    words = re.findall(r"[a-z]+|[^a-z0-9]+", text)
    return "".join(word for word in words if not is_name(word))


def _description(scene: Scene) -> str:
    return ", ".join(emblem.description for emblem in scene.emblems) + "."


def _every_emblem(world: World) -> list[Emblem]:
    """All combinations, but for those that share their words with a head emblem."""
    taken = {it.emblem.words for it in world.of("head")}
    every = [Emblem(shape, colour, mark) for shape in SHAPES for colour in COLOURS for mark in MARKS]
    return [emblem for emblem in every if emblem.words not in taken]


def _alone(scene: Scene, attribute: str, emblem: Emblem) -> int:
    """1 when no other emblem of the scene shares the attribute, else 0."""
    value = getattr(emblem, attribute)
    return int(sum(getattr(other, attribute) == value for other in scene.emblems) == 1)
