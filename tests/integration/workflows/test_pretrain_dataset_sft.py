"""From nothing to a fine-tuned policy, small: pre-training, a dataset through Ray Data, SFT on Ray Train."""

import io
import threading
import time
from contextlib import suppress

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.train import ControllerError
from rich.console import Console

from actors.model.load import check_model_folder, load_policy
from cluster.errors import UserError
from cluster.telemetry import read as metrics_of
from workflows import sft
from workflows.dataset import build, inspect
from workflows.dataset.schema import CONVERSATIONS
from workflows.embedded import pretrain
from workflows.grpo.questions import load_questions
from workflows.run_folder import RunFolder
from workflows.settings import load

SMALL = [
    "world.head=3", "world.tail_train=12", "world.tail_test=8",
    "pretrain.steps=4", "pretrain.warmup_steps=1", "pretrain.batch=8", "pretrain.corpus=300",
    "pretrain.checkpoint_every=2", "pretrain.seeing_steps=1", "pretrain.reading_steps=1", "dataset.embed_images=true",
    "pretrain.size.hidden=64", "pretrain.size.layers=2", "pretrain.size.mlp=128",
    "pretrain.size.mrope_section=[2,3,3]", "pretrain.size.vision_hidden=48", "pretrain.size.vision_layers=2",
    "dataset.train_questions=60", "dataset.test_questions=20", "dataset.conversations=60", "dataset.actors=1",
    "dataset.shards=2", "dataset.batch=16",
    "sft.warmup_steps=2", "sft.batch=8", "sft.checkpoint_every=3", "sft.max_failures=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def console():
    return Console(file=io.StringIO(), width=140)


@pytest.fixture(scope="module")
def made(ray_cluster, tmp_path_factory, console):
    """A run with a base model and a dataset, and how to ask for its settings."""
    storage = tmp_path_factory.mktemp("run")

    def settings(*more):
        return load(None, [f"run.storage={storage}", *SMALL, *more])

    pretrain.run(settings(), console)
    build.run(settings(), console)
    return settings


def rows_of(folder):
    return [row for name in folder.files() for row in pq.read_table(folder.local_path / name).to_pylist()]


def wait_for(condition, seconds=600.0):
    """Whether it came true in time. A poll, as what is waited for happens in other processes."""
    deadline = time.monotonic() + seconds
    paused = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        paused.wait(0.02)
    return True


@pytest.mark.timeout(900)
def test_the_base_model_is_whole_and_not_made_twice(made, console):
    folder = RunFolder(made().run.folder)
    check_model_folder(folder.base.local_path)
    steps = [line["step"] for line in metrics_of(folder.pretrain)]
    assert steps == [1, 2, 3, 4]
    weights = (folder.base.local_path / "model.safetensors").stat().st_mtime_ns
    pretrain.run(made(), console)
    assert (folder.base.local_path / "model.safetensors").stat().st_mtime_ns == weights


@pytest.mark.timeout(900)
def test_the_dataset_has_what_was_asked_for_and_every_conversation_is_right(made, console):
    folder = RunFolder(made().run.folder)
    train = load_questions(folder.questions("train"), folder.images())
    test = load_questions(folder.questions("test"), folder.images())
    assert (len(train.by_id), len(test.by_id), train.dropped, test.dropped) == (60, 20, 0, 0)
    rows = rows_of(folder.conversations)
    labels = [row["designed_label"] for row in rows]
    assert labels.count("free") == labels.count("required") == len(rows) // 2
    assert len(rows) >= 40
    assert any(row["searches"] > 0 for row in rows)
    for row in rows:
        said = [segment["text"] for segment in row["segments"] if segment["kind"] == "action"]
        assert row["reward_model"]["ground_truth"] in said[-1]
    report = folder.dataset.read_json(build.REPORT)
    assert report["sft"]["rows"] == len(rows)
    inspect.run(made(), console)
    shown = console.file.getvalue()
    assert "searches in a conversation" in shown
    assert "observation" in shown


@pytest.mark.timeout(900)
def test_a_dataset_of_the_same_configuration_is_left_alone(made, console):
    folder = RunFolder(made().run.folder).dataset
    before = {name: (folder.local_path / name).stat().st_mtime_ns for name in folder.files()}
    build.run(made(), console)
    assert {name: (folder.local_path / name).stat().st_mtime_ns for name in folder.files()} == before


@pytest.mark.slow  # half a minute of Ray Train
@pytest.mark.timeout(900)
def test_sft_lowers_the_loss_and_leaves_out_what_is_broken(made, console, tmp_path):
    folder = RunFolder(made().run.folder)
    rows = rows_of(folder.conversations)
    rows[0]["images"] = [{"bytes": b"no picture"}]
    rows[1]["segments"][0]["token_ids"] = [1, 2, 3]
    pq.write_table(pa.Table.from_pylist(rows, schema=CONVERSATIONS), tmp_path / "part-0.parquet")
    (tmp_path / "part-1.parquet").write_bytes(b"PAR1 torn")
    sft.run(made("sft.steps=6", f"sft.conversations={tmp_path}"), console)
    state = folder.sft.read_json(sft.STATE)
    assert state["complete"]
    assert (state["dropped"], state["rows"]) == (3, len(rows) - 2)
    assert len(state["listed"]) == 3
    lines = metrics_of(folder.sft)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]
    check_model_folder(folder.sft_export.local_path)
    assert load_policy(folder.sft_export.local_path).config.image_token_id > 0


@pytest.mark.slow  # another half a minute
@pytest.mark.timeout(900)
def test_a_rank_that_refuses_is_told_in_its_own_sentence_and_not_tried_again(made, console):
    wanted = made("sft.steps=6", "sft.max_failures=1", "pictures.max_pixels=6272")
    with pytest.raises(UserError, match=r"gives its pictures \d+ tokens, and the model reads \d+") as refused:
        sft.run(wanted, console)
    assert isinstance(refused.value.__cause__, ControllerError)  # after a try in vain: WorkerGroupError


def kill_our_train_worker():
    """Whether there was one. Other processes come and go meanwhile."""
    killed = False
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                killed = True
    return killed


NOTED = "checkpoint_manager_snapshot.json"  # Ray Train writes it when its controller has heard of a checkpoint


@pytest.mark.slow  # two trainings, the first of which is killed
@pytest.mark.timeout(900)
def test_sft_that_was_killed_goes_on_after_its_last_checkpoint(made, console):
    folder = RunFolder(made().run.folder)
    wanted = made("sft.steps=100", "sft.checkpoint_every=5", "sft.lr=1e-3")
    folder.sft.delete()  # of other tests

    def kill_after_a_checkpoint():
        if wait_for(lambda: (folder.sft / sft.CHECKPOINTS).exists(NOTED)):
            wait_for(kill_our_train_worker, seconds=10.0)

    killer = threading.Thread(target=kill_after_a_checkpoint)
    killer.start()
    with pytest.raises(Exception, match=r"(?i)worker|actor|died"):
        sft.run(wanted, console)
    killer.join()
    assert not folder.sft.read_json(sft.STATE)["complete"]
    before = [line["step"] for line in metrics_of(folder.sft)]

    sft.run(wanted, console)
    assert folder.sft.read_json(sft.STATE)["complete"]
    assert [line["step"] for line in metrics_of(folder.sft)] == list(range(1, 101))
    assert "continuing after step" in console.file.getvalue()
    assert len(before) < 100
