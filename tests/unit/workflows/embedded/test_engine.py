"""The real engine finds what the right calls ask for, and not what the wrong ones do."""

import io
from random import Random

import numpy as np
import pytest
from PIL import Image

from actors.agent.trajectory import Outcome, Tool, ToolRequest
from actors.search.seams import ErrorKind, ImageQuery, ProviderError
from tests.unit.workflows.embedded.conftest import TOP_K
from workflows.embedded.lexicon import ORGANISATION_FACTS
from workflows.embedded.pictures import compose, render
from workflows.embedded.questions import KINDS, MixSettings, draft_questions, follow
from workflows.embedded.search import EmbeddedGrounder

FAR = 1e9


async def search(gateway, query: str) -> list[str]:
    """The lines of a text search."""
    result = await gateway.call(ToolRequest(Tool.TEXT_SEARCH, query), deadline=FAR)
    return [f"{e.title}: {e.text}" for e in result.evidence]


async def look(gateway, picture, expression: str = "") -> list[str]:
    """The titles of an image search."""
    result = await gateway.call(ToolRequest(Tool.IMAGE_SEARCH, expression, image=picture), deadline=FAR)
    return [e.title for e in result.evidence]


def says(lines: list[str], value: str) -> bool:
    return any(f" {value}." in line for line in lines)


async def test_the_right_calls_lead_to_each_answer(world, web):
    gateway = web.gateway()
    asked = [d for d in draft_questions(world, MixSettings(), "test", 100, 1) if d.subject is not None]
    assert {d.kind for d in asked} == set(KINDS) - {"looking"}
    reached = 0
    for draft in asked:
        it = draft.subject
        named = draft.emblem is None
        assert it is not None
        if draft.emblem is not None:
            picture = web.images.put(render(draft.scene))
            named = (await look(gateway, picture, draft.emblem.words))[:1] == [it.name]
        reached += named and await answers(gateway, world, draft)
    assert reached >= 0.97 * len(asked)


async def answers(gateway, world, draft) -> bool:
    it = draft.subject
    for hop, fact in enumerate(draft.path):
        if hop:
            query = f"{follow(world, it, draft.path[:hop])} {fact}"
        elif fact == "chief":
            query = f"{it.name} current {fact}"
        else:
            query = f"{it.name} {it.trade} {fact}" if it.namesake else f"{it.name} {fact}"
        if not says(await search(gateway, query), follow(world, it, draft.path[: hop + 1])):
            return False
    return True


async def test_poor_queries_of_refinements_fail_and_refined_ones_succeed(world, web):
    gateway = web.gateway()
    for it in world.organisations:
        chief = it.facts["chief"]
        assert not says(await search(gateway, f"{it.name} chief"), chief)
        assert says(await search(gateway, f"{it.name} current chief"), chief)
        for fact in ORGANISATION_FACTS if it.namesake else ():
            assert not says(await search(gateway, f"{it.name} {fact}"), it.facts[fact])
            assert says(await search(gateway, f"{it.name} {it.trade} {fact}"), it.facts[fact])


async def test_a_plain_query_suffices_where_there_is_no_namesake(world, web):
    gateway = web.gateway()
    for it in world.organisations:
        for fact in ORGANISATION_FACTS if it.namesake is None else ():
            lines = await search(gateway, f"{it.name} {fact}")
            assert len(lines) <= TOP_K
            assert says(lines[:1], it.facts[fact])


def scenes(world, n_emblems: int, n: int):
    rng = Random(f"scenes-{n_emblems}")
    while n:
        shown = [it.emblem for it in rng.sample(world.organisations, n_emblems)]
        if len({emblem.words for emblem in shown}) == n_emblems:
            yield compose(shown, rng), rng.choice(shown)
            n -= 1


async def test_a_whole_picture_of_one_emblem_is_found_and_of_several_is_not(world, web):
    name = {it.emblem: it.name for it in world.organisations}
    gateway = web.gateway()
    found = {False: 0, True: 0}
    for n_emblems in (1, 2, 3, 4):
        for scene, emblem in scenes(world, n_emblems, 30):
            found[scene.crowded] += name[emblem] in await look(gateway, web.images.put(render(scene)))
    assert found[False] >= 29  # of 30
    assert found[True] <= 4  # of 90


async def test_grounding_finds_what_is_named_and_its_crop_is_found(world, web):
    name = {it.emblem: it.name for it in world.organisations}
    gateway, grounder = web.gateway(), EmbeddedGrounder()
    grounded = found = n = 0
    for n_emblems in (1, 2, 3, 4):
        for scene, emblem in scenes(world, n_emblems, 18):
            n += 1
            png = render(scene)
            best = max(await grounder.ground(png, emblem.words), key=lambda box: box.score)
            placed = scene.placed[scene.emblems.index(emblem)]
            x0, y0, x1, y1 = best.box
            grounded += x0 < placed.x < x1 and y0 < placed.y < y1 and best.score > 0.25
            found += (await look(gateway, web.images.put(png), emblem.words))[:1] == [name[emblem]]
    assert grounded >= 0.97 * n
    assert found >= 0.97 * n


async def test_what_is_not_there_is_not_grounded_and_punctuation_does_not_matter(world):
    grounder = EmbeddedGrounder()
    it = next(it for it in world.organisations if it.emblem.colour == "red")
    png = render(compose([it.emblem], Random(0)))
    assert (await grounder.ground(png, "the bridge"))[0].score == 0
    other = next(o for o in world.organisations if o.emblem.colour == "green")
    assert (await grounder.ground(png, other.emblem.words))[0].score < 0.25
    plain, spoken = [await grounder.ground(png, said) for said in (it.emblem.words, f"The {it.emblem.words}, please.")]
    assert plain == spoken


async def test_a_picture_of_nothing_finds_nothing_and_a_torn_one_is_a_bad_request(web):
    grey = io.BytesIO()
    Image.fromarray(np.full((60, 60, 3), 128, dtype=np.uint8)).save(grey, format="PNG")
    result = await web.gateway().call(
        ToolRequest(Tool.IMAGE_SEARCH, image=web.images.put(grey.getvalue())), deadline=FAR
    )
    assert result.outcome is Outcome.EMPTY
    with pytest.raises(ProviderError) as caught:
        await web.image.search(ImageQuery(b"not a picture", 3))
    assert caught.value.kind is ErrorKind.BAD_REQUEST


async def test_words_that_are_on_no_page_find_nothing(web):
    assert await search(web.gateway(), "zzqx") == []
    assert await search(web.gateway(), "the of") == []
