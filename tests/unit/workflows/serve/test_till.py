"""The till of the keys: one account for all doors, and one that is still right after its end. Without Ray."""

import asyncio
import logging
import pickle

import pytest
import ray
from ray.exceptions import RayActorError

from cluster.storage import Folder
from tests.full_disk import files_of_at_most
from workflows.serve import till as tills
from workflows.serve.errors import ApiError
from workflows.serve.keys import ANYBODY, Allowance, digest
from workflows.serve.settings import KeySettings
from workflows.serve.till import Journal, Register, Till, register_name

KEY = "mms-ada-and-nobody-else"
KEYS = [KeySettings("ada", digest(KEY), 60.0, 1.0)]
ADA = Allowance("ada", 60.0, 1.0)
TODAY, YESTERDAY = "2026-11-21", "2026-11-20"
NOON = 1_795_262_400.0  # of TODAY, UTC


def register(folder, **more):
    return Register(str(folder), lambda: 0.0, lambda: NOON, **more)


async def status_of(work):
    try:
        await work
    except ApiError as error:
        return error.status
    return 200


def door(folder, keys=KEYS, **more):
    return Till(keys, str(folder), **more)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


# --- the journal ----------------------------------------------------------------------------------------------------


def test_a_days_spending_is_the_sum_of_all_writers(tmp_path):
    one, two = Journal(Folder(tmp_path)), Journal(Folder(tmp_path))
    one.write(TODAY, {"ada": 0.1})
    one.write(TODAY, {"ada": 0.25, "bob": 1.0})
    two.write(TODAY, {"ada": 0.5})
    assert Journal(Folder(tmp_path)).read(TODAY) == {"ada": 0.75, "bob": 1.0}


def test_days_before_are_deleted_and_days_to_come_are_left_alone(tmp_path):
    for day in (YESTERDAY, TODAY, "2026-11-22"):
        Journal(Folder(tmp_path)).write(day, {"ada": 1.0})
    assert Journal(Folder(tmp_path)).read(TODAY) == {"ada": 1.0}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_is_not_there_yet_has_no_spending(tmp_path):
    assert Journal(Folder(tmp_path / "new")).read(TODAY) == {}


@pytest.mark.parametrize(
    "broken", ["", "[]", "{}", '{"day": "2026-11-21", "usd": {"ada": "much"}}', '{"usd": 1, "day": 2}']
)
def test_a_file_that_is_no_journal_is_warned_of_and_the_others_count(tmp_path, caplog, broken):
    Journal(Folder(tmp_path)).write(TODAY, {"ada": 1.0})
    (tmp_path / "broken.json").write_text(broken)
    (tmp_path / "notes.txt").write_text("mine")
    assert Journal(Folder(tmp_path)).read(TODAY) == {"ada": 1.0}
    assert "broken.json cannot be read" in caplog.text


# --- the register ---------------------------------------------------------------------------------------------------


async def test_a_budget_holds_over_the_end_of_the_till(tmp_path):
    first = register(tmp_path)
    await first.charge("ada", 0.6)
    second = register(tmp_path, restarted=True)
    await second.charge("ada", 0.5)
    refusal = await register(tmp_path).admit(ADA)
    assert refusal is not None
    assert refusal.code == "insufficient_quota"
    assert Journal(Folder(tmp_path)).read(TODAY) == {"ada": pytest.approx(1.1)}


async def test_a_register_that_was_restarted_gives_no_second_burst(tmp_path):
    assert await register(tmp_path).admit(ADA) is None
    refusal = await register(tmp_path, restarted=True).admit(ADA)
    assert refusal is not None
    assert refusal.code == "rate_limit_exceeded"


async def test_what_is_charged_at_once_is_written_together_and_whole(tmp_path, monkeypatch):
    writes = []
    write = Journal.write
    monkeypatch.setattr(Journal, "write", lambda self, *what: (writes.append(what), write(self, *what)))
    busy = register(tmp_path)
    await asyncio.gather(*(busy.charge("ada", 0.01) for _ in range(100)))
    assert len(writes) < 100
    assert Journal(Folder(tmp_path)).read(TODAY) == {"ada": pytest.approx(1.0)}


async def test_a_write_that_failed_is_made_up_for_by_those_that_wait(tmp_path, monkeypatch):
    write, failures = Journal.write, [OSError("no room"), OSError("no room")]

    def fails_twice(self, day, usd):
        if failures:
            raise failures.pop()
        write(self, day, usd)

    monkeypatch.setattr(Journal, "write", fails_twice)
    poor = register(tmp_path)
    await asyncio.gather(*(poor.charge("ada", 0.5) for _ in range(3)))
    assert Journal(Folder(tmp_path)).read(TODAY) == {"ada": 1.5}


async def test_spending_counts_on_a_full_disk_and_is_written_when_there_is_room(tmp_path, caplog):
    poor = register(tmp_path)
    with files_of_at_most(3):
        await poor.charge("ada", 1.0)
    assert "could not be written down" in caplog.text
    assert await poor.admit(ADA) is not None
    await poor.charge("bob", 1.0)
    assert Journal(Folder(tmp_path)).read(TODAY) == {"ada": 1.0, "bob": 1.0}


# --- the door -------------------------------------------------------------------------------------------------------


async def test_without_keys_nobody_is_asked_and_nothing_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(tills, "_register_of", None)
    open_door = door(tmp_path, [])
    assert await open_door.admit(None) == ANYBODY
    open_door.charge(ANYBODY, 1.0)
    assert not open_door._charging


async def test_a_key_comes_in_by_its_name_and_pays(tmp_path):
    here = door(tmp_path)
    assert await here.admit(f"Bearer {KEY}") == "ada"
    here.charge("ada", 1.0)
    await here.settled()
    assert await status_of(here.admit(f"Bearer {KEY}")) == 429


async def test_a_guess_is_turned_away_without_a_question_to_the_till(tmp_path, monkeypatch):
    monkeypatch.setattr(tills, "_register_of", None)
    assert await status_of(door(tmp_path).admit("Bearer guess")) == 401
    assert await status_of(door(tmp_path).admit(None)) == 401


async def test_two_doors_share_one_till(tmp_path, monkeypatch):
    shared = Register(str(tmp_path))
    monkeypatch.setattr(tills, "_register_of", lambda folder: shared)
    one, two = door(tmp_path), pickle.loads(pickle.dumps(door(tmp_path)))
    one.charge("ada", 2.0)
    await one.settled()
    assert await status_of(two.admit(f"Bearer {KEY}")) == 429


async def test_a_till_that_hangs_lets_nobody_in_and_says_so_in_time(tmp_path, monkeypatch):
    class Hanging(Register):
        async def admit(self, allowance):
            await asyncio.Event().wait()

    monkeypatch.setattr(tills, "_register_of", lambda folder: Hanging(folder))
    async with asyncio.timeout(5):
        assert await status_of(door(tmp_path, answer_s=0.01).admit(f"Bearer {KEY}")) == 503


async def test_a_till_that_was_lost_is_found_or_started_anew(tmp_path, monkeypatch):
    class Dead(Register):
        async def admit(self, allowance):
            raise RayActorError

    registers = [Dead(str(tmp_path)), Register(str(tmp_path))]
    monkeypatch.setattr(tills, "_register_of", lambda folder: registers.pop(0))
    here = door(tmp_path)
    assert await status_of(here.admit(f"Bearer {KEY}")) == 503
    assert await status_of(here.admit(f"Bearer {KEY}")) == 200


async def test_a_charge_that_fails_breaks_no_request_and_names_no_key(tmp_path, monkeypatch, caplog):
    def broken(folder):
        raise OSError("no disk")

    monkeypatch.setattr(tills, "_register_of", broken)
    here = door(tmp_path)
    with caplog.at_level(logging.DEBUG):
        here.charge("ada", 0.5)
        await here.settled()
    assert "0.5 USD of key ada could not be charged" in caplog.text
    assert KEY not in caplog.text


def test_a_door_travels_without_its_till_and_without_a_key(tmp_path):
    here = door(tmp_path)
    here._register = lambda: "cannot be pickled"
    assert pickle.loads(pickle.dumps(here))._register is None
    assert KEY.encode() not in pickle.dumps(here)


def test_each_folder_has_a_till_of_its_own_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert register_name("spent") == register_name(str(tmp_path / "spent")) != register_name("other")
