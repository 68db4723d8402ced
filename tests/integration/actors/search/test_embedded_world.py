"""The embedded world's real engine behind the gateway, configured as a run configures it."""

import random

import pytest

from actors.agent.trajectory import Outcome, Tool, ToolRequest
from actors.search.build import build_gateway
from actors.search.settings import ProviderSettings, SearchSettings
from cluster.storage import Folder
from tests.unit.actors.search.search_world import FolderImages
from workflows.embedded.entities import WorldSettings, make_world
from workflows.embedded.pictures import compose, render
from workflows.embedded.search import publish_web

ENGINE = "workflows.embedded.search"
FAR = 1e9


@pytest.fixture(scope="module")
def world():
    return make_world(WorldSettings(head=4, tail_train=20, tail_test=12))


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    path = tmp_path_factory.mktemp("web")
    publish_web(world, Folder(str(path)))
    return str(path)


@pytest.fixture
def gateway_and_images(folder, tmp_path):
    settings = SearchSettings(
        text=[ProviderSettings(path=f"{ENGINE}:EmbeddedTextSearch", kwargs={"folder": folder})],
        image=[ProviderSettings(path=f"{ENGINE}:EmbeddedImageSearch", kwargs={"folder": folder})],
        grounder=ProviderSettings(path=f"{ENGINE}:EmbeddedGrounder"),
    )
    images = FolderImages(str(tmp_path))
    return build_gateway(settings, images), images


async def test_a_crop_finds_in_a_crowd_what_the_whole_image_does_not(world, gateway_and_images):
    gateway, images = gateway_and_images
    rng = random.Random(0)
    found_by_crop = found_by_whole = 0
    for organisation in world.organisations:
        other = rng.choice([o for o in world.organisations if o.emblem.words != organisation.emblem.words])
        picture = images.put(render(compose([organisation.emblem, other.emblem], rng)))
        crop = await gateway.call(
            ToolRequest(Tool.IMAGE_SEARCH, organisation.emblem.words, image=picture), deadline=FAR
        )
        whole = await gateway.call(ToolRequest(Tool.IMAGE_SEARCH, image=picture), deadline=FAR)
        assert crop.crop_box is not None
        found_by_crop += crop.evidence[0].title == organisation.name
        found_by_whole += bool(whole.evidence) and whole.evidence[0].title == organisation.name
    assert found_by_crop >= 0.9 * len(world.organisations)
    assert found_by_whole <= 0.2 * len(world.organisations)


async def test_a_text_query_finds_the_page_with_the_fact(world, gateway_and_images):
    gateway, _ = gateway_and_images
    organisation = world.of("test")[0]
    query = f"founder of {organisation.name} {organisation.trade}"
    result = await gateway.call(ToolRequest(Tool.TEXT_SEARCH, query), deadline=FAR)
    assert result.outcome is Outcome.OK
    assert organisation.facts["founder"] in result.evidence[0].text
    assert result.evidence[0].provider == "EmbeddedTextSearch"


async def test_what_the_world_does_not_hold_is_empty(gateway_and_images):
    gateway, _ = gateway_and_images
    result = await gateway.call(ToolRequest(Tool.TEXT_SEARCH, "zzqx"), deadline=FAR)
    assert result.outcome is Outcome.EMPTY
