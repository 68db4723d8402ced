"""Lessons in reading what a search returns: find the line that answers and quote it, or ask again, or ask on.

Names, facts and pages are made up afresh for each lesson and are nobody's in the world, so that copying and comparing
are learned, not names. The pages have the forms of the web's own (`pages.py`), its misleading ones included.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from workflows.embedded.lexicon import (
    CHANGING_FACT,
    CITY_FACTS,
    ORGANISATION_FACTS,
    TRADES,
    Names,
    draw_year,
)

ASKS = ("what is the {} of {}?", "name the {} of {}.", "tell me the {} of {}.")
ANOTHER = "another one."  # none of the results answers
DONE = "done."  # the answer has been read
LOOK_UP = "better look."  # it is known, and searched for all the same
ONCE_MORE = "once more."  # the answer has been read, and is searched for all the same
_SORTS = {
    "founder": "person",
    CHANGING_FACT: "person",
    "mayor": "person",
    "city": "city",
    "river": "river",
    "name": "organisation",
}


@dataclass(frozen=True)
class Exchange:
    text: str  # `<image>` where the picture goes
    reply: str


def wanted(fact: str) -> str:
    """What is to be found out next, said before it is done: so which tool follows hangs on words that were read."""
    return f"{fact}?"


def stated(fact: str, value: str) -> str:
    """What is seen or known by heart, said before it is answered: the answer is then a copy of words near by."""
    return f"{wanted(fact)} {value}."


def quoted(text: str, number: int) -> str:
    """How a result is quoted: its words, then its number. `text` ends with a full stop."""
    return f"{text.removesuffix('.')} [{number}]."


class Reader:
    """Made-up results of searches, and what to say to them. One lesson's worth of names each."""

    def __init__(self, rng: Random, names: Names) -> None:
        self._rng, self._names = rng, names
        self._number = 1  # of the next result

    def find(self) -> list[Exchange]:
        """A named organisation or city is asked about; in a quarter of the lessons nothing found answers."""
        self._number = self._rng.choice([1, 1, 3, 5])
        answered = self._rng.random() < 0.75
        if self._rng.random() < 0.25:
            city, fact = self._names.draw("city"), self._rng.choice(CITY_FACTS)
            right, lines = self._city(city, fact, answered)
            return [self._asked(fact, city, lines, right, ANOTHER)]
        it = _Unknown.drawn(self._rng, self._names)
        fact = self._rng.choice((*ORGANISATION_FACTS, CHANGING_FACT))
        right, lines = self._organisation(it, fact, answered)
        about = it.name if fact == CHANGING_FACT or self._rng.random() < 0.5 else f"the {it.trade} {it.name}"
        return [self._asked(_asked(fact), about, lines, right, ANOTHER)]

    def follow(self, emblem: str) -> list[Exchange]:
        """From what a picture was recognised as to the answer: name, query, perhaps a better query, perhaps a hop."""
        it = _Unknown.drawn(self._rng, self._names)
        hop = self._rng.random() < 0.3
        fact = "city" if hop else self._rng.choice((*ORGANISATION_FACTS, CHANGING_FACT))
        last = self._rng.choice(CITY_FACTS) if hop else fact
        lines = [f"{it.name}: emblem of the {it.trade}."]
        lines.append(f"{self._names.draw('organisation')}: emblem of the {self._rng.choice(TRADES)}.")
        about = f"the city of {emblem}" if hop else emblem
        poor = fact == CHANGING_FACT or (not hop and self._rng.random() < 0.5)
        exchanges = [
            self._asked(_asked(last), about, lines, "", f"it is {it.name} [1]. {wanted(fact)} {it.name} {fact}")
        ]
        if poor:
            _, lines = self._organisation(it, fact, False)
            better = f"current {fact}" if fact == CHANGING_FACT else f"{it.trade} {fact}"
            exchanges.append(self._shown(lines, "", f"{ANOTHER} {it.name} {better}"))
        right, lines = self._organisation(it, fact, True)
        if not hop:
            return [*exchanges, self._shown(lines, right, DONE)]
        city = it.city
        exchanges.append(self._shown(lines, right, f"{wanted(last)} {city} {last}"))
        right, lines = self._city(city, last, True)
        return [*exchanges, self._shown(lines, right, DONE)]

    def values(self, n: int) -> str:
        """Values of all sorts in a row."""
        facts = ("name", *ORGANISATION_FACTS, *CITY_FACTS)
        return " ".join(self._value(fact) for fact in self._rng.choices(facts, k=n))

    # --- what is found ----------------------------------------------------------------------------------------------

    def _organisation(self, it: _Unknown, fact: str, answered: bool) -> tuple[str, list[str]]:
        """The right line ("" when it is not among them) and two lines in some order."""
        right = f"{it.name}: the current {fact} is {self._value(fact)}."
        if fact != CHANGING_FACT:
            value = it.city if fact == "city" else self._value(fact)
            right = f"{it.name}: the {fact} of the {it.trade} is {value}."
        wrong = [self._misleading(it, fact) for _ in range(2)]
        return self._mixed(right, wrong, answered)

    def _misleading(self, it: _Unknown, fact: str) -> str:
        rng, value = self._rng, self._value(fact)
        if fact == CHANGING_FACT or rng.random() < 0.25:
            return (
                f"{it.name} archive: in {draw_year(rng)} the {CHANGING_FACT} of {it.name} was {self._value('chief')}."
            )
        trade = rng.choice([trade for trade in TRADES if trade != it.trade])
        other = rng.choice([other for other in ORGANISATION_FACTS if other != fact])
        return rng.choice(
            [
                f"{it.name}: {it.name} {trade}: {fact} {value}.",
                f"{it.name} news: {trade} {it.name} {fact}: {value}.",
                f"{it.name} archive: {trade} {it.name} {fact}: {value}.",
                f"{it.name}: the {other} of the {it.trade} is {self._value(other)}.",
                f"{self._names.draw('organisation')}: the {fact} of the {trade} is {value}.",
            ]
        )

    def _city(self, city: str, fact: str, answered: bool) -> tuple[str, list[str]]:
        other = next(other for other in CITY_FACTS if other != fact)
        wrong = [
            f"{city}: a fine place to visit.",
            f"{city}: the {other} is {self._value(other)}.",
            f"{self._names.draw('city')}: the {fact} is {self._value(fact)}.",
            f"{self._names.draw('person')}: born in {city}.",
        ]
        return self._mixed(f"{city}: the {fact} is {self._value(fact)}.", self._rng.sample(wrong, 2), answered)

    def _mixed(self, right: str, wrong: list[str], answered: bool) -> tuple[str, list[str]]:
        lines = [right, wrong[0]] if answered else wrong
        self._rng.shuffle(lines)
        return right if answered else "", lines

    def _value(self, fact: str) -> str:
        return draw_year(self._rng) if fact == "year" else self._names.draw(_SORTS.get(fact, "product"))

    # --- how it is shown and answered -------------------------------------------------------------------------------

    def _asked(self, asked: str, about: str, lines: list[str], right: str, reply: str) -> Exchange:
        shown = self._shown(lines, right, DONE if right else reply)
        return Exchange(f"{self._rng.choice(ASKS).format(asked, about)}\n{shown.text}", shown.reply)

    def _shown(self, lines: list[str], right: str, more: str) -> Exchange:
        """The lines with their numbers; the reply is the right one, quoted, and `more`."""
        first, self._number = self._number, self._number + len(lines)
        numbered = "\n".join(f"[{first + i}] {line}" for i, line in enumerate(lines))
        quote = quoted(right.partition(": ")[2], first + lines.index(right)) + " " if right else ""
        return Exchange(f"<information>{numbered}</information>", quote + more)


@dataclass(frozen=True)
class _Unknown:
    """An organisation that is nobody's."""

    name: str
    trade: str
    city: str

    @classmethod
    def drawn(cls, rng: Random, names: Names) -> _Unknown:
        return cls(names.draw("organisation"), rng.choice(TRADES), names.draw("city"))


def _asked(fact: str) -> str:
    return f"current {fact}" if fact == CHANGING_FACT else fact
