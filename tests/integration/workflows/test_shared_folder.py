"""Actors of a run on a node that sees another disk, told before they do anything there."""

from __future__ import annotations

import pytest
import ray

from cluster.errors import UserError
from cluster.shared_folder import MARK, SharedFolder
from cluster.storage import Folder
from workflows.grpo.ray_ports import RaySampler


class Engine:
    """An actor whose disk lacks what was written after `since`, or has what an earlier run left."""

    def __init__(self, elsewhere: str | None = None):
        if elsewhere is not None:
            mine = Folder(elsewhere)
            Folder.read_text = lambda self, name: mine.read_bytes(name).decode()
        self.started = False

    async def ready(self):
        self.started = True
        return {}


def actor(elsewhere=None):
    return ray.remote(Engine).options(num_cpus=0, max_concurrency=10).remote(elsewhere)


async def test_a_node_that_sees_another_disk_is_named_before_the_engine_starts(ray_cluster, tmp_path):
    shared, other = SharedFolder(Folder(tmp_path / "run"), "run.storage"), Folder(tmp_path / "other")
    there, made = "does not see this run's folder .*/run: run.storage must be a folder that all nodes see", []

    def start():
        made.append(actor(other.address))
        return made[-1]

    sampler = RaySampler("sampler-0", start, look=shared.seen_by)
    with pytest.raises(UserError, match=rf"^Node [\d.]+ {there}"):
        await sampler.ready()
    other.write_text(MARK, "of an earlier run")
    with pytest.raises(UserError, match=there):
        await sampler.ready()
    assert not await made[0].__ray_call__.remote(lambda self: self.started)
    sampler.kill()


async def test_an_actor_that_sees_the_folder_starts_and_the_mark_goes(ray_cluster, tmp_path):
    shared = SharedFolder(Folder(tmp_path), "run.storage")
    sampler = RaySampler("sampler-0", actor, look=shared.seen_by)
    assert await sampler.ready() == {}
    shared.close()
    assert not list(tmp_path.iterdir())
    sampler.kill()
