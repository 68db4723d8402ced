"""The cache's actor under a real Ray: one computation for all workers, and what is left when it is killed.

And a cassette on a real S3 server.
"""

import asyncio
import os
import signal
import time
import uuid
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from actors.agent.trajectory import Evidence
from actors.search.store.cache_actor import RemoteAnswers, cache_name, start_answer_cache
from actors.search.store.cassette import Cassette, open_cassette
from actors.search.store.records import Call, Codec, Found
from actors.search.store.settings import CacheSettings, CassetteSettings, Mode
from actors.search.store.shared_cache import SharedCache
from cluster.errors import UserError
from cluster.storage import Folder
from tests.unit.actors.search.search_world import FolderImages, scene
from workflows.cassette import merge

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Asker:
    """A worker with its side of the cache; what it computes takes until `gate` is a file."""

    def __init__(self, handle, settings: CacheSettings, gate: str) -> None:
        self.cache: SharedCache = SharedCache(settings, Codec(), RemoteAnswers(handle, settings.rpc_s))
        self.gate, self.computed = gate, 0

    async def compute(self) -> str:
        self.computed += 1
        async with asyncio.timeout(60):
            while not os.path.exists(self.gate):
                await asyncio.sleep(0.02)
        return "the answer"

    async def ask(self, key: str, times: int) -> list[tuple[str, bool]]:
        return await asyncio.gather(*(self.cache.get(key, self.compute) for _ in range(times)))

    async def count(self) -> int:
        return self.computed

    async def close(self) -> None:
        await self.cache.close()


class Started:
    """The actor over one folder, and workers; all ended afterwards."""

    def __init__(self, folder) -> None:
        self.folder, self.actors = folder, []
        self.settings = CacheSettings(folder=str(folder / "answers"), claim_s=2.0, wait_s=60.0)

    def __call__(self, **changes):
        self.settings = replace(self.settings, **changes)
        handle = start_answer_cache(self.settings, uuid.uuid4().hex)
        self.actors.append(handle)
        return handle, [self.worker(handle) for _ in range(3)]

    def worker(self, handle):
        asker = ray.remote(Asker).options(num_cpus=0, max_concurrency=1000)
        self.actors.append(asker.remote(handle, self.settings, str(self.folder / "gate")))
        return self.actors[-1]


@pytest.fixture
def started(tmp_path):
    started = Started(tmp_path)
    yield started
    for actor in started.actors:
        ray.kill(actor)


async def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, "it did not come to be"
        await asyncio.sleep(0.05)


async def computations(workers) -> int:
    return sum(await asyncio.gather(*(worker.count.remote() for worker in workers)))


async def test_a_hundred_identical_calls_from_three_workers_make_one_computation(started, tmp_path):
    handle, workers = started()
    asked = [worker.ask.remote("k", n) for worker, n in zip(workers, (34, 33, 33), strict=True)]

    async def all_wait():
        return await computations(workers) == 1 and (await handle.stats.remote()).misses == 1

    await until(all_wait)
    (tmp_path / "gate").touch()
    answers = [answer for part in await asyncio.gather(*asked) for answer in part]
    assert [value for value, _ in answers] == ["the answer"] * 100
    assert sum(not shared for _, shared in answers) == 1
    assert await computations(workers) == 1
    assert (await handle.stats.remote()).answers == 1


async def test_a_cache_killed_in_the_middle_fails_nobody_and_finds_what_was_stored_when_it_is_back(started, tmp_path):
    handle, workers = started()
    (tmp_path / "gate").touch()
    await workers[0].ask.remote("before", 1)
    await workers[0].close.remote()  # what it had to tell has been told
    (tmp_path / "gate").unlink()
    pid = await handle.pid.remote()
    asked = [worker.ask.remote("k", 30) for worker in workers]

    async def somebody_asks():
        return await computations(workers) >= 2

    await until(somebody_asks)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: back(handle, pid))
    (tmp_path / "gate").touch()
    answers = [answer for part in await asyncio.gather(*asked) for answer in part]
    assert [value for value, _ in answers] == ["the answer"] * 90
    assert await computations(workers) <= 1 + 3  # each worker once at most, and the one before

    newcomer = started.worker(handle)
    assert await newcomer.ask.remote("before", 1) == [("the answer", True)]
    assert await newcomer.count.remote() == 0


async def back(handle, pid) -> bool:
    try:
        return await asyncio.wait_for(handle.pid.remote(), 5.0) != pid
    except (RayError, TimeoutError):
        return False


async def test_a_worker_killed_with_the_claim_passes_it_on(started, tmp_path):
    handle, workers = started(claim_s=1.0)
    first = workers[0].ask.remote("k", 1)

    async def claimed():
        return (await handle.stats.remote()).misses == 1

    await until(claimed)
    rest = [worker.ask.remote("k", 10) for worker in workers[1:]]
    ray.kill(workers[0])
    with pytest.raises(RayError):
        await first
    (tmp_path / "gate").touch()
    answers = [answer for part in await asyncio.gather(*rest) for answer in part]
    assert [value for value, _ in answers] == ["the answer"] * 20
    assert await computations(workers[1:]) == 1
    assert (await handle.stats.remote()).lapsed == 1


async def test_the_same_run_and_folder_share_one_actor_by_name(tmp_path):
    settings = CacheSettings(folder=str(tmp_path / "answers"))
    run = uuid.uuid4().hex
    one, two, other = (start_answer_cache(settings, name) for name in (run, run, f"{run}-2"))
    try:
        pids = [await handle.pid.remote() for handle in (one, two, other)]
        assert pids[0] == pids[1] != pids[2]
        named: Any = ray.get_actor(cache_name(run, str(tmp_path / "answers")))
        assert await named.pid.remote() == pids[0]
    finally:
        ray.kill(one)
        ray.kill(other)


def test_a_folder_that_is_not_here_is_refused_before_an_actor_starts(tmp_path):
    (tmp_path / "file").touch()
    for folder in ("s3://bucket/answers", str(tmp_path / "file" / "answers")):
        with pytest.raises(UserError):
            start_answer_cache(CacheSettings(folder=folder), "run")


async def test_a_cassette_is_recorded_on_s3_by_several_merged_and_replayed(s3_bucket, tmp_path):
    images = FolderImages(str(tmp_path))
    seen = Found((Evidence(1, "t", "x", thumbnail=images.put(scene("red"))),), "p")
    for name in ("one", "two"):
        record = Cassette(Folder(f"{s3_bucket}/{name}"), Mode.RECORD, Codec(images))
        for query in ("both", name):
            await record.answer(Call("image_search", {"query": query}), answer_with(seen))
        assert await asyncio.to_thread(record.flush) == 2
    merged = await asyncio.to_thread(merge, [f"{s3_bucket}/one", f"{s3_bucket}/two"], f"{s3_bucket}/all")
    assert (merged.calls, merged.repeated, merged.conflicts) == (3, 1, ())
    (tmp_path / "there").mkdir()
    there = FolderImages(str(tmp_path / "there"))
    replay = open_cassette(CassetteSettings(Mode.REPLAY, f"{s3_bucket}/all"), Codec(there))
    for query in ("one", "two", "both"):
        call = Call("image_search", {"query": query})
        assert await replay.answer(call, answer_with(None)) == (seen, True)
    assert there.get(seen.evidence[0].thumbnail) == scene("red")


def answer_with(value):
    async def ask():
        return value

    return ask
