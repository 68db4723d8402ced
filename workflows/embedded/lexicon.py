"""The words of the embedded world. Everything is lower case, so that a word is the same tokens wherever it stands."""

from __future__ import annotations

from collections.abc import Container
from random import Random

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "hexagon", "heart")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 40),
    "orange": (245, 130, 10),
    "yellow": (240, 215, 20),
    "green": (30, 160, 60),
    "teal": (15, 190, 190),
    "blue": (30, 70, 215),
    "purple": (130, 40, 180),
    "pink": (240, 70, 175),
}
MARKS = ("dot", "ring", "bar", "pillar", "plus")
TRADES = ("bank", "school", "circus", "brewery", "museum", "airline", "theatre", "bakery")

# the facts of an organisation, and of a city; each is a word that questions, queries and pages share
ORGANISATION_FACTS = ("founder", "city", "year", "product")
CHANGING_FACT = "chief"  # has outdated pages
CITY_FACTS = ("river", "mayor")

_ONSETS, _VOWELS, _CODAS = "bdfgklmnprstvz", "aeiou", "lnrsk"
_FIRST_NAMES = (
    *("anna", "bruno", "clara", "david", "elsa", "felix", "greta", "hugo", "ida", "jonas"),
    *("karin", "leo", "maria", "nils", "olga", "paul", "rosa", "simon", "tara", "viktor"),
)
# endings are three letters with a consonant at both ends, as syllables are: no pair of letters across a seam looks like
# one inside a piece, so a tokenizer that knows the pieces cuts every name, also one never seen, at its seams
_ENDINGS = {
    "organisation": ("rax", "mix", "dex", "lon", "vox", "tar"),
    "city": ("ton", "bon", "ham", "fel"),
    "river": ("dan", "bet"),
    "person": ("son", "man", "ler", "kin"),
    "product": ("tit", "dum", "gax", "pol"),
}


def _syllables() -> tuple[str, ...]:
    rng = Random(11)  # part of the language, not of a world: every world speaks the same syllables
    every = [onset + vowel + coda for onset in _ONSETS for vowel in _VOWELS for coda in _CODAS]
    return tuple(sorted(rng.sample(every, 48)))


SYLLABLES = _syllables()


class Names:
    """Draws pseudo-words, each at most once, and none of those that are `taken`."""

    def __init__(self, rng: Random, taken: Container[str] = ()) -> None:
        self._rng, self._taken = rng, taken
        self._used: set[str] = set()

    def draw(self, sort: str) -> str:
        """A new name of a sort: organisation, city, river, person or product."""
        while True:
            name = _compose(self._rng, sort)
            if name not in self._used and name not in self._taken:
                self._used.add(name)
                return name


def _compose(rng: Random, sort: str) -> str:
    ending = rng.choice(_ENDINGS[sort])
    if sort == "person":
        return f"{rng.choice(_FIRST_NAMES)} {rng.choice(SYLLABLES)}{ending}"
    return rng.choice(SYLLABLES) + rng.choice(SYLLABLES) + ending


def is_name(word: str) -> bool:
    """Whether a word is a pseudo-word of this language."""
    endings = {ending for several in _ENDINGS.values() for ending in several}
    return any(word.endswith(ending) and word[:3] in SYLLABLES for ending in endings)


def name_pieces() -> list[str]:
    """Every piece that names are made of, first names included."""
    return [*SYLLABLES, *_FIRST_NAMES, *(ending for several in _ENDINGS.values() for ending in several)]


def draw_year(rng: Random) -> str:
    return str(rng.randint(1800, 2019))
