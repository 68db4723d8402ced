"""metrics.jsonl: whole lines, no step twice, honest about what is no number."""

from __future__ import annotations

import json

import numpy as np

from cluster.storage import Folder
from cluster.telemetry import FILE, Metrics, read


def test_each_step_is_one_line_of_json(tmp_path):
    with Metrics(Folder(tmp_path), clock=lambda: 100.0) as metrics:
        metrics.log(1, {"loss": 0.5, "note": "first"}, prefix="train/")
        metrics.log(2, {"loss": np.float32(0.25), "n": np.int64(3), "bad": float("nan")})
    assert read(Folder(tmp_path)) == [
        {"step": 1, "time": 100.0, "train/loss": 0.5, "train/note": "first"},
        {"step": 2, "time": 100.0, "loss": 0.25, "n": 3, "bad": None},
    ]


def test_every_line_is_there_at_once_and_outlives_its_writer(tmp_path):
    metrics = Metrics(Folder(tmp_path), flush_every_s=3600)
    for step in (1, 2):
        metrics.log(step, {"loss": 1.0})
        assert [line["step"] for line in read(Folder(tmp_path))][-1] == step
    metrics.close()
    metrics.close()


def test_resuming_drops_what_came_after_and_starting_anew_drops_all(tmp_path):
    folder = Folder(tmp_path)
    with Metrics(folder) as metrics:
        for step in (1, 2, 3):
            metrics.log(step, {"x": step})
    with Metrics(folder, resume_at=2) as metrics:
        metrics.log(3, {"x": 30})
    assert [line["x"] for line in read(folder)] == [1, 2, 30]
    Metrics(folder).close()
    assert read(folder) == []


def test_a_line_torn_by_a_kill_is_left_out_and_dropped_on_resume(tmp_path):
    folder = Folder(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"step": 1, "time": 0}) + '\n{"step": 2, "ti')
    assert [line["step"] for line in read(folder)] == [1]
    with Metrics(folder, resume_at=1) as metrics:
        metrics.log(2, {})
    assert [line["step"] for line in read(folder)] == [1, 2]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Metrics(Folder(tmp_path)) as metrics:
        metrics.log(1, {"loss": 0.5})
        metrics.log(2, {"loss": 0.25})
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [(event.step, event.value) for event in curves.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
