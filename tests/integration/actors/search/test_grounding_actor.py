"""The Grounding DINO actor under a real Ray: shared by all workers, and made anew when it has died."""

import asyncio
import contextlib
import time

import pytest
import ray

from actors.agent.trajectory import Outcome, Tool, ToolRequest
from actors.search.actor import RemoteToolbox, start_search_workers
from actors.search.grounding.dino import DinoGrounder, DinoSettings, GroundingDino
from actors.search.seams import ErrorKind, ProviderError
from actors.search.settings import PoolSettings, ProviderSettings, SearchSettings
from cluster.runtime import NAMESPACE
from tests.unit.actors.search.grounding.tiny_dino import encoded, photo, save_tiny_dino
from tests.unit.actors.search.search_world import FolderImages

ASKED = {"threshold": 0.0, "pad_to": 32}
CLIENT = {**ASKED, "num_cpus": 0.1}
pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(300)]  # torch is imported four times


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def maker(checkpoint):
    """Makes the actor that the tests share. It starts slowly, and lives as long as whoever has made it."""
    made = DinoGrounder(checkpoint, **CLIENT)
    yield made
    with contextlib.suppress(ValueError):  # it is gone already
        ray.kill(ray.get_actor(made.actor_name, namespace=NAMESPACE))


@pytest.fixture
async def shared_actor(maker):
    """The handle of the actor, well."""
    assert await answered(maker)
    return maker._actor


async def answered(grounder, expression="a cat", seconds=100.0):
    """What the gateway's retries would get."""
    until = time.monotonic() + seconds
    while True:
        try:
            return await grounder.ground(encoded(photo()), expression)
        except ProviderError as error:
            if error.kind is not ErrorKind.TRANSIENT or time.monotonic() > until:
                raise
        await asyncio.sleep(0.1)


async def never_well(grounder):
    while True:
        await grounder.ground(encoded(photo()), "a cat")


async def test_clients_share_one_actor_whose_boxes_are_those_of_the_model(checkpoint, shared_actor):
    here = GroundingDino(DinoSettings(checkpoint, **ASKED))
    clients = [DinoGrounder(checkpoint, **CLIENT) for _ in range(3)]
    found = await asyncio.gather(
        *(client.ground(encoded(photo(seed=i)), "a cat") for i in range(4) for client in clients)
    )
    assert all(client._actor == shared_actor for client in clients)
    for i, boxes in enumerate(found):
        (expected,) = here.detect([photo(seed=i // 3)], ["a cat"])
        assert [one.score for one in boxes] == pytest.approx([one.score for one in expected], abs=1e-4)
        assert [v for one in boxes for v in one.box] == pytest.approx(
            [v for one in expected for v in one.box], abs=0.01
        )


async def test_an_unreadable_picture_is_a_bad_request_across_processes(checkpoint, shared_actor):
    grounder = DinoGrounder(checkpoint, **CLIENT)
    bad, good = await asyncio.gather(
        grounder.ground(b"no picture", "cat"), grounder.ground(encoded(photo()), "cat"), return_exceptions=True
    )
    assert type(bad) is ProviderError
    assert bad.kind is ErrorKind.BAD_REQUEST
    assert good


async def test_an_actor_that_died_may_come_back_and_does_with_the_same_handle(checkpoint, maker, shared_actor):
    before = await answered(maker)
    ray.kill(shared_actor, no_restart=False)
    with pytest.raises(ProviderError) as caught:
        await never_well(maker)
    assert caught.value.kind is ErrorKind.TRANSIENT
    assert await answered(maker) == before
    assert maker._actor is shared_actor


async def test_a_call_that_is_given_up_leaves_the_actor_well(checkpoint, shared_actor):
    grounder = DinoGrounder(checkpoint, **CLIENT)
    await answered(grounder)
    calls = [asyncio.create_task(grounder.ground(encoded(photo(seed=i)), "cat")) for i in range(8)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in done[::2])
    assert all(isinstance(one, list) and one for one in done[1::2])
    assert await answered(grounder)


async def test_workers_share_the_model_that_one_of_them_has_made_and_others_outlive_it(
    checkpoint, maker, shared_actor, tmp_path
):
    before = await answered(maker)
    ray.kill(shared_actor)
    settings = SearchSettings(
        image=[ProviderSettings(path="tests.unit.actors.search.search_world:Colours")],
        grounder=ProviderSettings(
            path="actors.search.grounding.dino:DinoGrounder", kwargs={"model": checkpoint, **CLIENT}
        ),
        pool=PoolSettings(min=2, max=2),
    )
    images = FolderImages(str(tmp_path))
    workers = start_search_workers(settings, images)
    try:
        picture = images.put(encoded(photo(400, 300)))
        toolbox = RemoteToolbox(workers)
        requests = [ToolRequest(Tool.IMAGE_SEARCH, f"a cat {i}", image=picture) for i in range(6)]
        found = await asyncio.gather(*(toolbox.call(one, deadline=time.monotonic() + 90) for one in requests))
        assert [result.outcome for result in found] == [Outcome.OK] * 6
        assert all(result.crop_box is not None for result in found)
        named = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if "dino" in one["name"]]
        assert named == [maker.actor_name]
    finally:
        for worker in workers:
            ray.kill(worker)
    assert await answered(maker) == before  # the actor has died with the worker that made it
