"""Who exists in the embedded world, deterministic from one seed.

*Head* organisations are what the base model knows. *Tail* ones, and so their questions, belong to train or to test and
share nothing: no emblem, name, person or city of a test question was ever trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from random import Random

from workflows.embedded.lexicon import (
    CHANGING_FACT,
    COLOURS,
    MARKS,
    ORGANISATION_FACTS,
    SHAPES,
    TRADES,
    Names,
    draw_year,
)


@dataclass(frozen=True)
class WorldSettings:
    """Size of the embedded world. One seed makes the same world everywhere."""

    seed: int = 0  # of everything in it
    head: int = 12  # organisations that the base model knows; at most 16
    tail_train: int = 160  # organisations behind training questions
    tail_test: int = 80  # organisations behind test questions
    homonyms: float = 0.2  # share of tail organisations whose name a better-known one has, too

    def check(self) -> None:
        if not 1 <= self.head <= 16:
            raise ValueError(f"head must lie in 1..16, is {self.head}")
        if min(self.tail_train, self.tail_test) < 1:
            raise ValueError("tail_train and tail_test must be at least 1")
        room = (len(SHAPES) * len(COLOURS) - self.head) * len(MARKS)
        if self.tail_train + self.tail_test > room:
            raise ValueError(f"tail_train + tail_test must be at most {room}: there are no more emblems")
        if not 0 <= self.homonyms < 1:
            raise ValueError(f"homonyms must lie in [0, 1), is {self.homonyms}")


@dataclass(frozen=True, order=True)
class Emblem:
    shape: str
    colour: str
    mark: str

    @property
    def words(self) -> str:
        """What it is called in a question: enough to find it among others."""
        return f"{self.colour} {self.shape}"

    @property
    def description(self) -> str:
        return f"{self.colour} {self.shape} with {self.mark}"


@dataclass(frozen=True)
class City:
    name: str
    facts: dict[str, str]  # river, mayor


@dataclass(frozen=True)
class Organisation:
    """`facts` maps founder, city, year, product and chief to the right answer."""

    name: str
    trade: str
    emblem: Emblem
    split: str  # head | train | test
    facts: dict[str, str]
    former_chiefs: tuple[str, ...] = ()
    namesake: Namesake | None = None


@dataclass(frozen=True)
class Namesake:
    """A better-known organisation of the same name and another trade, alike in no fact. It has pages but no emblem."""

    trade: str
    facts: dict[str, str]


@dataclass(frozen=True)
class World:
    settings: WorldSettings
    organisations: tuple[Organisation, ...]
    cities: tuple[City, ...]
    people: tuple[tuple[str, str], ...] = field(default=())  # (name, birthplace): bystanders on the web

    @cached_property
    def city(self) -> dict[str, City]:
        return {city.name: city for city in self.cities}

    @cached_property
    def names(self) -> frozenset[str]:
        """Every pseudo-word that names something here."""
        named = {it.name for it in self.organisations} | {name for name, _ in self.people}
        for it in self.organisations:
            others = it.namesake.facts.values() if it.namesake else ()
            named.update(it.facts.values(), it.former_chiefs, others)
        for city in self.cities:
            named.update((city.name, *city.facts.values()))
        return frozenset(name for name in named if not name.isdigit())

    def of(self, split: str) -> tuple[Organisation, ...]:
        return tuple(o for o in self.organisations if o.split == split)


def make_world(settings: WorldSettings, variant: int = 0) -> World:
    """Draw the world. Head organisations own their (colour, shape) pairs, as well-known marks do.

    Its variants have the same head organisations and the same emblems, but all others have names and facts of their
    own: who learns from variants learns to read, not what there is to read in the world itself.
    """
    settings.check()
    rng = Random(f"world-{settings.seed}")
    names = Names(rng)
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    rng.shuffle(pairs)
    head_emblems = [Emblem(shape, colour, rng.choice(MARKS)) for shape, colour in pairs[: settings.head]]
    tail_emblems = [Emblem(shape, colour, mark) for shape, colour in pairs[settings.head :] for mark in MARKS]
    rng.shuffle(tail_emblems)
    n_train, n_test = settings.tail_train, settings.tail_test
    split_emblems = {
        "head": head_emblems,
        "train": tail_emblems[:n_train],
        "test": tail_emblems[n_train : n_train + n_test],
    }
    organisations: list[Organisation] = []
    cities: list[City] = []
    for split, emblems in split_emblems.items():
        if variant and split == "train":
            rng = Random(f"world-{settings.seed}-{variant}")
            names = Names(rng, make_world(settings).names)
        here = [_city(names) for _ in range(max(4, len(emblems) // 4))]
        cities.extend(here)
        for emblem in emblems:
            organisations.append(_organisation(rng, names, emblem, split, here, settings.homonyms))
    people = tuple((names.draw("person"), rng.choice(cities).name) for _ in range(len(organisations) // 2))
    return World(settings, tuple(organisations), tuple(cities), people)


def _city(names: Names) -> City:
    return City(names.draw("city"), {"river": names.draw("river"), "mayor": names.draw("person")})


def _organisation(
    rng: Random, names: Names, emblem: Emblem, split: str, cities: list[City], homonyms: float
) -> Organisation:
    trade = rng.choice(TRADES)
    other = None
    if split != "head" and rng.random() < homonyms:
        other = Namesake(rng.choice([t for t in TRADES if t != trade]), _facts(rng, names, cities))
    facts = _facts(rng, names, cities)
    namesake = other and Namesake(other.trade, _apart(other.facts, facts, cities))
    former = tuple(names.draw("person") for _ in range(2))
    facts[CHANGING_FACT] = names.draw("person")
    return Organisation(names.draw("organisation"), trade, emblem, split, facts, former, namesake)


def _facts(rng: Random, names: Names, cities: list[City]) -> dict[str, str]:
    values = {
        "founder": names.draw("person"),
        "city": rng.choice(cities).name,
        "year": draw_year(rng),
        "product": names.draw("product"),
    }
    assert tuple(values) == ORGANISATION_FACTS
    return values


def _apart(facts: dict[str, str], taken: dict[str, str], cities: list[City]) -> dict[str, str]:
    """`facts` with the next city and the next year where those are the same in `taken`; names are never drawn twice."""
    apart = dict(facts)
    if facts["city"] == taken["city"]:
        every = [city.name for city in cities]
        apart["city"] = every[(every.index(facts["city"]) + 1) % len(every)]
    if facts["year"] == taken["year"]:
        apart["year"] = str(int(facts["year"]) + 1)
    return apart
