"""Trackers show a run's curves, and nothing that one does wrong reaches the run."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import threading
import time

import pytest

from cluster import telemetry, trackers
from cluster.errors import UserError
from cluster.storage import Folder
from cluster.telemetry import Metrics, read
from cluster.tracker_thread import TrackerThread
from cluster.trackers import TrackedRun, Tracking

HERE = __name__
SETTINGS = {"run": {"name": "unit", "seed": 0}, "grpo": {"steps": 3, "window": None, "trackers": ["wandb"]}}


class Kept:
    """A tracker of one's own, by dotted path."""

    runs: list = []  # noqa: RUF012 (what the tests look at)

    def __init__(self, run):
        self.run, self.logged, self.closed = run, [], False
        Kept.runs.append(self)

    def log(self, step, metrics):
        self.logged.append((step, dict(metrics)))

    def close(self):
        self.closed = True


class Raises(Kept):
    def log(self, step, metrics):
        super().log(step, metrics)
        if step == 2:
            raise ConnectionError("the server is gone")


class NeverStarts:
    def __init__(self, run):
        raise OSError("no key")


class Hangs(Kept):
    freed = threading.Event()

    def log(self, step, metrics):
        super().log(step, metrics)
        Hangs.freed.wait(30)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for kind in (Kept, Raises, Hangs):
        monkeypatch.setattr(kind, "runs", [], raising=False)
    monkeypatch.setattr(Hangs, "freed", threading.Event())
    yield
    Hangs.freed.set()


def mine(kind):
    return f"{HERE}:{kind.__name__}"


def log_three(folder, names, said, **how):
    with Metrics(folder, tracking=Tracking(names, "unit/grpo", SETTINGS), say=said.append, **how) as metrics:
        for step in (1, 2, 3):
            metrics.log(step, {"loss": 1.0 / step, "note": "words", "bad": float("nan")})


def test_one_of_ones_own_is_told_what_runs_and_given_every_number(tmp_path):
    said = []
    log_three(Folder(tmp_path), [mine(Kept)], said)
    (tracker,) = Kept.runs
    assert (tracker.run.name, tracker.run.folder, tracker.run.settings) == ("unit/grpo", tmp_path, SETTINGS)
    assert tracker.logged == [(1, {"loss": 1.0}), (2, {"loss": 0.5}), (3, {"loss": 1.0 / 3})]
    assert tracker.closed
    assert not said


def test_a_resumed_run_is_the_same_one_and_a_new_one_is_not(tmp_path):
    folder = Folder(tmp_path)
    for resume_at in (None, 2, None):
        Metrics(folder, resume_at=resume_at, tracking=Tracking([mine(Kept)])).close()
    first, resumed, new = (tracker.run for tracker in Kept.runs)
    assert first.id == resumed.id != new.id
    assert (first.resume_at, resumed.resume_at) == (None, 2)


@pytest.mark.parametrize(("kind", "words"), [(Raises, "the server is gone"), (NeverStarts, "no key")])
def test_one_that_raises_is_told_of_once_and_dropped(tmp_path, kind, words):
    said = []
    log_three(Folder(tmp_path), [mine(kind), mine(Kept)], said)
    assert len(said) == 1
    assert words in said[0]
    assert [line["step"] for line in read(Folder(tmp_path))] == [1, 2, 3]
    others = [tracker for tracker in Kept.runs if type(tracker) is Kept]
    assert [step for step, _ in others[0].logged] == [1, 2, 3]


def test_one_that_hangs_delays_no_step_and_what_it_misses_is_counted(tmp_path):
    said = []
    run = TrackedRun("unit", tmp_path, {}, "id")
    thread = TrackerThread(mine(Hangs), run, said.append, queued=4)
    began = time.monotonic()
    for step in range(1, 101):
        thread.log(step, {"loss": 1.0})
    thread.close(0.2)
    assert time.monotonic() - began < 5.0
    assert 95 <= thread.dropped <= 96
    assert sum("too slow" in line for line in said) == 2
    assert any("is left behind" in line for line in said)


def test_closing_the_metrics_waits_no_longer_than_it_may(tmp_path, monkeypatch):
    monkeypatch.setattr(telemetry, "CLOSE_S", 0.2)
    said = []
    began = time.monotonic()
    log_three(Folder(tmp_path), [mine(Hangs)], said)
    assert time.monotonic() - began < 10.0
    assert ["left behind" in line for line in said] == [True]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["tensorbord"], "There is no tracker 'tensorbord'; there are tensorboard, wandb"),
        (["no.such.module:Class"], "no.such.module:Class cannot be loaded"),
        (["cluster.trackers:Nobody"], "Nobody"),
        (["tensorboard", "tensorboard"], "named twice"),
    ],
)
def test_a_tracker_that_cannot_be_is_refused(names, words):
    with pytest.raises(UserError, match=words):
        trackers.check(names)


def test_a_missing_library_is_told_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        trackers.check(["wandb"])


def test_wandb_is_offline_where_nobody_has_logged_in(tmp_path):
    nobody = {"NETRC": str(tmp_path / "none")}
    assert trackers.wandb_mode(nobody) == "offline"
    assert trackers.wandb_mode({**nobody, "WANDB_API_KEY": "k"}) == "online"
    assert trackers.wandb_mode({**nobody, "WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}) == "disabled"
    (tmp_path / "netrc").write_text("machine wandb.here login user password key")
    known = {"NETRC": str(tmp_path / "netrc"), "WANDB_BASE_URL": "https://wandb.here/"}
    assert trackers.wandb_mode(known) == "online"


def test_settings_become_names_with_dots():
    assert trackers.flat(SETTINGS)["grpo.steps"] == 3


@pytest.fixture
def patient(monkeypatch):
    """Libraries take their time to start on a busy machine, and these runs take none."""
    monkeypatch.setattr(telemetry, "CLOSE_S", 200.0)


def in_parts(folder, name):
    """A run of three steps, the last of which is made again after a resume."""
    said = []
    log_three(folder, [name], said)
    with Metrics(folder, resume_at=2, tracking=Tracking([name], "unit/grpo", SETTINGS), say=said.append) as metrics:
        metrics.log(3, {"loss": 9.0, "eval/kind/two hops (é)": 0.5})
    assert not said
    assert [line["loss"] for line in read(folder)] == [1.0, 0.5, 9.0]


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("patient")
def test_mlflow_keeps_one_run_over_both_parts(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mmsearch-ray[mlflow]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    in_parts(Folder(tmp_path / "run"), "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run/mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("mmsearch").experiment_id])
    assert run.info.status == "FINISHED"
    assert (run.data.params["grpo.steps"], run.data.params["run.name"]) == ("3", "unit")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history][-1] == (3, 9.0)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("patient")
def test_trackio_keeps_one_run_over_both_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read as it is imported
    pytest.importorskip("trackio", reason="trackio is not installed: pip install mmsearch-ray[trackio]")
    monkeypatch.chdir(tmp_path)
    in_parts(Folder(tmp_path / "run"), "trackio")
    (database,) = (tmp_path / "trackio").glob("mmsearch*.db")
    with sqlite3.connect(database) as rows:
        assert rows.execute("select count(distinct run_name), count(*) from metrics").fetchone() == (1, 4)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("patient")
def test_wandb_offline_needs_neither_network_nor_login(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install mmsearch-ray[wandb]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    in_parts(Folder(tmp_path / "run"), "wandb")
    assert len(list((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))) == 2
    assert os.listdir(tmp_path) == ["run"]
