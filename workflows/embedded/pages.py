"""The small web: short pages about organisations, cities and people, with namesakes, outdated and irrelevant ones.

Emblems are not described anywhere in text: what a picture shows can only be found by picture. Nothing here says which
page answers a question; that some rank above the right one is how this web is written (the name twice, in a page about
the better-known namesake or in an archive), and the engine is an ordinary one. There are three such pages of a fact:
a query that does not say which organisation, or that it asks for today, fails with up to three results a search.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from workflows.embedded.entities import City, Organisation, World
from workflows.embedded.lexicon import CHANGING_FACT, ORGANISATION_FACTS


@dataclass(frozen=True)
class WebPage:
    """`links` point to other pages of this web, or to what is there no more (dead links)."""

    url: str
    title: str
    text: str
    links: tuple[str, ...] = ()


def make_pages(world: World) -> list[WebPage]:
    """Every page of the web of this world, in an order that says nothing."""
    rng = Random(f"pages-{world.settings.seed}")
    pages: list[WebPage] = []
    for organisation in world.organisations:
        pages.extend(_organisation_pages(organisation, rng))
    for city in world.cities:
        pages.extend(_city_pages(city))
    for name, birthplace in world.people:
        pages.append(
            WebPage(_url("people", name), name, f"born in {birthplace}.", (f"{_url('city', birthplace)}/visit",))
        )
    rng.shuffle(pages)
    return pages


def _organisation_pages(it: Organisation, rng: Random) -> Iterator[WebPage]:
    home = _url(it.trade, it.name)
    now = f"{home}/now"
    dead = f"{home}/closed-{rng.randint(100, 999)}"
    for fact in ORGANISATION_FACTS:
        yield WebPage(f"{home}/{fact}", it.name, f"the {fact} of the {it.trade} is {it.facts[fact]}.", (now, dead))
    yield WebPage(now, it.name, f"the current {CHANGING_FACT} is {it.facts[CHANGING_FACT]}.", (f"{home}/founder",))
    for i, former in enumerate((*it.former_chiefs, it.former_chiefs[0])):  # the first one twice
        year = 1930 + 30 * i + rng.randint(0, 29)
        text = f"in {year} the {CHANGING_FACT} of {it.name} was {former}."
        yield WebPage(f"{home}/archive/{year}", f"{it.name} archive", text, (dead,))
    if it.namesake is not None:
        known = it.namesake
        for fact in ORGANISATION_FACTS:
            url = _url(known.trade, it.name) + "/" + fact
            text = f"{it.name} {known.trade}: {fact} {known.facts[fact]}."
            yield WebPage(url, it.name, text)
            more = f"{known.trade} {it.name} {fact}: {known.facts[fact]}."
            yield WebPage(f"{url}/news", f"{it.name} news", more)
            yield WebPage(f"{url}/archive", f"{it.name} archive", more)


def _city_pages(city: City) -> Iterator[WebPage]:
    for fact, value in city.facts.items():
        yield WebPage(f"{_url('city', city.name)}/{fact}", city.name, f"the {fact} is {value}.")
    yield WebPage(f"{_url('city', city.name)}/visit", city.name, "a fine place to visit.")


def _url(*parts: str) -> str:
    return "https://web.example/" + "/".join(part.replace(" ", "-") for part in parts)
