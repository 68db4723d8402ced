"""The till of the keys as an actor: shared by all doors, and what its death changes (no budget begins anew)."""

import asyncio
import os
import signal
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from cluster.runtime import NAMESPACE
from workflows.serve.errors import ApiError
from workflows.serve.keys import digest
from workflows.serve.settings import KeySettings
from workflows.serve.till import Till, end_register, register_name

pytestmark = pytest.mark.usefixtures("ray_cluster")

KEY = "mms-ada-and-nobody-else"
AUTHORIZATION = f"Bearer {KEY}"


@pytest.fixture
def folder(tmp_path):
    """A journal of the test's own; its till is ended."""
    yield str(tmp_path)
    end_register(str(tmp_path))


def door(folder, per_minute=60.0, usd_per_day=None):
    return Till([KeySettings("ada", digest(KEY), per_minute, usd_per_day)], folder)


async def refusal(till):
    with pytest.raises(ApiError) as refused:
        await till.admit(AUTHORIZATION)
    return refused.value


async def pid_of(folder):
    """The process of the till, as soon as it has one."""
    register: Any = ray.get_actor(register_name(folder), namespace=NAMESPACE)
    while True:
        try:
            return await register.pid.remote()
        except RayError:
            await asyncio.sleep(0.05)


@ray.remote(num_cpus=0)
class AnotherDoor:
    """An ingress replica in a process of its own."""

    def __init__(self, till):
        self._till = till

    async def admit(self):
        try:
            return await self._till.admit(AUTHORIZATION)
        except ApiError as error:
            return error.code

    async def charge(self, usd):
        self._till.charge("ada", usd)
        await self._till.settled()


async def test_doors_in_two_processes_share_the_rate_of_a_key(folder):
    here = door(folder, per_minute=2)
    there: Any = AnotherDoor.remote(here)
    assert await there.admit.remote() == "ada"
    assert await here.admit(AUTHORIZATION) == "ada"
    assert await there.admit.remote() == "rate_limit_exceeded"
    assert (await refusal(here)).status == 429


async def test_what_one_door_charges_is_spent_at_the_other(folder):
    here = door(folder, usd_per_day=1.0)
    there: Any = AnotherDoor.remote(here)
    await there.charge.remote(1.0)
    assert (await refusal(here)).code == "insufficient_quota"


async def test_a_till_that_is_killed_remembers_what_was_spent_and_gives_no_second_burst(folder):
    here = door(folder, per_minute=1, usd_per_day=1.0)
    await here.admit(AUTHORIZATION)
    here.charge("ada", 0.6)
    await here.settled()
    os.kill(await pid_of(folder), signal.SIGKILL)
    async with asyncio.timeout(60):
        while (error := await refusal(here)).status == 503:  # it is starting
            await asyncio.sleep(0.1)
    assert error.code == "rate_limit_exceeded"
    here.charge("ada", 0.6)
    await here.settled()
    assert (await refusal(here)).code == "insufficient_quota"


async def test_a_door_that_leaves_takes_no_till_along(folder):
    first: Any = AnotherDoor.remote(door(folder, usd_per_day=1.0))
    await first.charge.remote(1.0)
    ray.kill(first)
    assert (await refusal(door(folder, usd_per_day=1.0))).code == "insufficient_quota"


async def test_a_till_that_is_ended_is_gone_and_its_journal_is_not(folder):
    here = door(folder, usd_per_day=1.0)
    here.charge("ada", 1.0)
    await here.settled()
    end_register(folder)
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(register_name(folder), namespace=NAMESPACE)
    end_register(folder)  # there is none: nothing to end
    assert (await refusal(door(folder, usd_per_day=1.0))).code == "insufficient_quota"
