"""The best weights: whole or not there, and there for as long as a checkpoint may go back to them."""

import asyncio
import errno
import threading

import pytest

from cluster.drives import LocalDrive
from cluster.storage import Folder
from workflows.grpo.best_models import BestModels
from workflows.grpo.evaluation_state import Best


def best(step):
    return Best(step, step, "exact_match", step / 100, 0.0, 1.0)


async def copy(version, address):
    Folder(address).write_text("model.safetensors", f"weights {version}")
    Folder(address).write_text("config.json", "{}")


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "best")


def models(folder, copy=copy, timeout_s=5.0, say=print):
    return BestModels(folder, copy, 2, timeout_s, say)


async def test_the_best_is_a_model_folder_with_its_numbers_beside_it(folder, tmp_path):
    kept = models(folder)
    await kept.keep(best(10))
    assert folder.list() == ["best.json", "step-000010"]
    pointer = folder.read_json("best.json")
    assert (pointer["step"], pointer["value"], pointer["folder"]) == (10, 0.1, "step-000010")
    target = Folder(tmp_path / "export")
    target.write_text("stale.safetensors", "of another run")
    await kept.export(best(10), target)
    assert target.list() == ["best.json", "config.json", "model.safetensors"]
    assert target.read_text("model.safetensors") == "weights 10"


async def test_what_a_kept_checkpoint_names_stays(folder):
    kept = models(folder)
    for step in (0, 10, 20, 30):
        await kept.keep(best(step))
        await kept.checkpointed(best(step))
    assert folder.list() == ["best.json", "step-000020", "step-000030"]
    await kept.keep(best(40))  # better, but no checkpoint says so yet
    await kept.checkpointed(best(30))
    assert folder.list() == ["best.json", "step-000030", "step-000040"]


async def test_what_is_being_copied_stays_while_a_checkpoint_is_made_that_does_not_name_it(folder):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(version, address):
        Folder(address).write_text("model-00001.safetensors", f"weights {version}")
        if version == 20:
            begun.set()
            await go_on.wait()
        Folder(address).write_text("config.json", "{}")

    kept = models(folder, slow)
    await kept.keep(best(10))
    await kept.checkpointed(best(10))
    copying = asyncio.create_task(kept.keep(best(20)))
    await begun.wait()
    await kept.checkpointed(best(10))
    go_on.set()
    await copying
    assert (folder / "step-000020").list() == ["best.json", "config.json", "model-00001.safetensors"]
    assert models(folder).resume(best(20))


async def test_a_copy_begins_when_the_pruning_under_way_has_ended(folder, monkeypatch):
    """What a killed run left of the same step is deleted by it, and would be together with what is copied there."""
    found, go_on, delete = asyncio.Event(), threading.Event(), LocalDrive.delete
    loop = asyncio.get_running_loop()

    def slow(self, path):
        monkeypatch.undo()  # the first one alone
        loop.call_soon_threadsafe(found.set)
        assert go_on.wait(10)
        delete(self, path)

    (folder / "step-000020").write_text("model.safetensors", "half")
    kept = models(folder)
    await kept.checkpointed(None)
    monkeypatch.setattr(LocalDrive, "delete", slow)
    pruning = asyncio.create_task(kept.checkpointed(None))
    await found.wait()
    copying = asyncio.create_task(kept.keep(best(20)))
    await asyncio.wait({copying}, timeout=0.2)
    go_on.set()
    await asyncio.gather(pruning, copying)
    assert models(folder).resume(best(20))
    assert (folder / "step-000020").read_text("model.safetensors") == "weights 20"


async def test_what_cannot_be_deleted_is_told_and_fails_no_checkpoint(folder, monkeypatch):
    said = []
    kept = models(folder, say=said.append)
    for step in (0, 10, 20):
        await kept.keep(best(step))

    def refuses(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(LocalDrive, "delete", refuses)
    for _ in range(2):
        await kept.checkpointed(best(20))
    assert said == ["best weights that are not needed any more could not be deleted: Read-only file system"]


async def test_going_back_to_a_checkpoint_goes_back_to_its_best(folder):
    first = models(folder)
    for step in (0, 10):
        await first.keep(best(step))
    again = models(folder)
    assert again.resume(best(0))
    assert folder.read_json("best.json")["step"] == 0
    await again.checkpointed(best(0))
    assert folder.list() == ["best.json", "step-000000"]


async def test_weights_that_are_gone_or_torn_are_not_the_best(folder):
    async def killed(version, address):
        await copy(version, address)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await models(folder, killed).keep(best(10))
    assert not models(folder).resume(best(10))
    assert models(folder).resume(None)


async def test_a_copy_that_hangs_is_told(folder):
    async def hangs(version, address):
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match="keeping the best weights took longer"):
        await models(folder, hangs, 0.01).keep(best(10))
