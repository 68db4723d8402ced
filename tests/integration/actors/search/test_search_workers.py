"""SearchWorker actors under a real Ray: what a call gets when a worker is killed in the middle of it."""

import asyncio
import pickle
import time
from dataclasses import replace

import pytest
import ray

from actors.agent.seams import ImageRefused
from actors.agent.trajectory import Outcome, Tool, ToolRequest
from actors.search.actor import RemoteToolbox, start_search_workers
from actors.search.pool import Searchers
from actors.search.settings import PoolSettings, ProviderSettings, SearchSettings
from actors.search.store.settings import CassetteSettings, Mode
from cluster.errors import UserError
from tests.unit.actors.search.search_world import SIZE, FolderImages, scene

WORLD = "tests.unit.actors.search.search_world"
pytestmark = pytest.mark.usefixtures("ray_cluster")


def settings(text: ProviderSettings, workers: int) -> SearchSettings:
    return SearchSettings(
        text=[text],
        image=[ProviderSettings(path=f"{WORLD}:Colours")],
        grounder=ProviderSettings(path=f"{WORLD}:Squares"),
        pool=PoolSettings(min=workers, max=workers),
    )


def ask(i: int) -> ToolRequest:
    return ToolRequest(Tool.TEXT_SEARCH, f"who founded Velmora {i}")


def stop(workers) -> None:
    for worker in workers:
        ray.kill(worker)


@pytest.mark.parametrize("n_workers", [1, 2])
async def test_a_worker_killed_in_mid_call_loses_no_call(tmp_path, n_workers):
    dying = ProviderSettings(path=f"{WORLD}:DiesOnce", kwargs={"mark": str(tmp_path / "died")})
    workers = start_search_workers(settings(dying, n_workers), FolderImages(str(tmp_path)))
    try:
        toolbox = pickle.loads(pickle.dumps(RemoteToolbox(workers)))
        results = await asyncio.gather(*(toolbox.call(ask(i), deadline=time.monotonic() + 60) for i in range(20)))
        assert (tmp_path / "died").exists()
        assert [result.outcome for result in results] == [Outcome.OK] * 20
        assert all("Ilse Tarn" in result.evidence[0].text for result in results)
    finally:
        stop(workers)


async def test_when_no_worker_is_left_the_call_ends_at_its_deadline(tmp_path):
    workers = start_search_workers(
        settings(ProviderSettings(path=f"{WORLD}:Sentences"), 1), FolderImages(str(tmp_path))
    )
    stop(workers)
    result = await RemoteToolbox(workers).call(ask(0), deadline=time.monotonic() + 1.0)
    assert result.outcome is Outcome.INFRA_ERROR
    assert "no search worker answered" in result.message
    assert 0.9 < result.latency_s < 5


async def test_pictures_thumbnails_faults_of_data_and_totals_cross_the_process(tmp_path):
    images = FolderImages(str(tmp_path))
    workers = start_search_workers(settings(ProviderSettings(path=f"{WORLD}:Sentences"), 1), images)
    try:
        toolbox = RemoteToolbox(workers)
        picture = images.put(scene("red", "green"))
        found = await toolbox.call(
            ToolRequest(Tool.IMAGE_SEARCH, "the green square", image=picture), deadline=time.monotonic() + 60
        )
        assert found.evidence[0].title == "A green square"
        assert found.evidence[0].thumbnail is not None
        assert images.get(found.evidence[0].thumbnail) == scene("green")
        torn = images.put_unchecked(b"torn", SIZE, SIZE)
        with pytest.raises(ImageRefused, match="cannot be searched"):
            await toolbox.call(ToolRequest(Tool.IMAGE_SEARCH, image=torn), deadline=time.monotonic() + 60)
        totals = await toolbox.totals()
        assert totals.by_tool == {"ground": 1, "image_search": 1}
    finally:
        stop(workers)


def test_a_provider_that_does_not_exist_is_said_before_an_actor_starts(tmp_path):
    with pytest.raises(UserError, match="cannot be imported"):
        start_search_workers(settings(ProviderSettings(path=f"{WORLD}:Nobody"), 1), FolderImages(str(tmp_path)))


@pytest.mark.parametrize("pool", [PoolSettings(), PoolSettings(max=3)], ids=["fixed", "pool"])
async def test_an_index_that_cannot_be_opened_is_said_before_the_first_call(tmp_path, pool):
    index = ProviderSettings(
        path="actors.search.local.text:LocalTextSearch", kwargs={"folder": str(tmp_path / "nowhere")}
    )
    searchers = Searchers(replace(settings(index, 1), pool=pool), FolderImages(str(tmp_path)))
    try:
        with pytest.raises(UserError, match="nowhere"):
            await asyncio.wait_for(searchers.ready(), 60)
    finally:
        await searchers.close()


async def test_what_workers_recorded_is_written_before_they_end(tmp_path):
    tape = tmp_path / "tape"
    recording = replace(
        settings(ProviderSettings(path=f"{WORLD}:Sentences"), 2),
        cassette=CassetteSettings(mode=Mode.RECORD, folder=str(tape), flush_s=3600),
    )
    searchers = Searchers(recording, FolderImages(str(tmp_path)))
    await searchers.ready()
    await asyncio.gather(*(searchers.toolbox.call(ask(i), deadline=time.monotonic() + 30) for i in range(10)))
    await searchers.close()
    replaying = replace(recording, cassette=CassetteSettings(mode=Mode.REPLAY, folder=str(tape)))
    searchers = Searchers(replaying, FolderImages(str(tmp_path)))
    results = await asyncio.gather(*(searchers.toolbox.call(ask(i), deadline=time.monotonic() + 30) for i in range(11)))
    totals = await searchers.toolbox.totals()
    await searchers.close()
    assert [result.outcome for result in results] == [*[Outcome.OK] * 10, Outcome.REFUSED]
    assert (totals.replayed, totals.unrecorded, totals.requests) == (10, 1, 0)
