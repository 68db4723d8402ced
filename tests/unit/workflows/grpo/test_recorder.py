"""What people see of a run: metrics that never repeat a step, and a bounded sample of episodes."""

import io
import json
from contextlib import nullcontext

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from actors.agent.trajectory import Ending, Question, Segment, SegmentKind, Summary, Trajectory, VersionSpan
from cluster.errors import UserError
from cluster.storage import Folder
from cluster.telemetry import Metrics, read
from cluster.trackers import Tracking
from tests.full_disk import files_of_at_most
from workflows.grpo.ports import GroupResult
from workflows.grpo.recorder import RunRecorder

NO_CURVES = Tracking(trackers=())


def group(i, siblings=4):
    trajectories = [
        Trajectory(
            f"q{i}", j,
            (Segment(SegmentKind.ACTION, np.array([1], np.int32), np.zeros(1, np.float32), (VersionSpan(0, 0, 1),)),),
            (), Ending.ANSWERED, answer="x",
        )
        for j in range(siblings)
    ]  # fmt: skip
    summaries = tuple(Summary.of(t) for t in trajectories)
    return GroupResult(i, Question(f"q{i}", "who?", answers=("x",)), 0, summaries, tuple(trajectories))


async def fetch(payloads):
    return list(payloads)


async def record(folder, done, steps, per_step=5, evaluated=-1, evaluate=()):
    out = io.StringIO()
    with RunRecorder(folder, fetch, 9, done, per_step, Console(file=out, width=200), None, evaluated) as recorder:
        for version in evaluate:
            await recorder.evaluated(
                version, {"eval/version": float(version), "eval/exact_match": 0.25, "eval/best": 1.0}
            )
        for step in steps:
            await recorder.step(step, {"reward/mean": step / 10, "time/step_s": 1.0}, [group(i) for i in range(3)])
        recorder.say("sampler s0 is fenced: [died]")
    return out.getvalue()


async def test_steps_become_metrics_lines_and_a_sample_of_episodes(tmp_path):
    folder = Folder(tmp_path)
    text = await record(folder, 0, [1, 2])
    assert [m["reward/mean"] for m in read(folder)] == [0.1, 0.2]
    rows = pq.read_table(io.BytesIO(folder.read_bytes("trajectories/step-000002.parquet"))).to_pylist()
    assert [(r["question_id"], r["sample_index"]) for r in rows] == [
        ("q0", 0), ("q1", 0), ("q2", 0), ("q0", 1), ("q1", 1),
    ]  # fmt: skip
    assert json.loads(rows[0]["record"])["answer"] == "x"
    assert "step 2" in text
    assert "[died]" in text


async def test_a_step_that_is_made_again_stands_once(tmp_path):
    folder = Folder(tmp_path)
    await record(folder, 0, [1, 2, 3])
    await record(folder, 1, [2])
    assert [m["step"] for m in read(folder)] == [1, 2]


async def test_an_evaluation_is_a_line_of_its_own_until_it_is_made_again(tmp_path):
    folder = Folder(tmp_path)
    text = await record(folder, 0, [1, 2], evaluate=[0, 2])
    assert "evaluation at step 2: right 25.0%  the best so far" in text
    assert sorted(m["step"] for m in read(folder)) == [0, 1, 2, 2]
    await record(folder, 2, [3], evaluated=0)  # the checkpoint of step 2 was made while that was evaluated
    assert [m["eval/version"] for m in read(folder) if "eval/version" in m] == [0]
    await record(folder, 0, [1], evaluated=0)  # stopped after the first evaluation, before the first step
    assert sorted((m["step"], "eval/version" in m) for m in read(folder)) == [(0, True), (1, False)]


@pytest.mark.parametrize("room", [0, 30, 700])
async def test_what_a_full_disk_refuses_is_written_with_the_next_step(tmp_path, room):
    """30 bytes tear a line of the metrics; 700 take it, and tear the episodes."""
    folder, out = Folder(tmp_path), io.StringIO()
    with RunRecorder(folder, fetch, 9, 0, 5, Console(file=out, width=200), NO_CURVES) as recorder:
        for step in range(1, 8):
            with files_of_at_most(room) if step in (2, 3, 5, 6) else nullcontext():
                await recorder.step(step, {"time/step_s": 1.0, "reward/mean": 0.5}, [group(i) for i in range(3)])
    assert [m["step"] for m in read(folder)] == list(range(1, 8))
    for step in range(1, 8):
        rows = pq.read_table(tmp_path / f"trajectories/step-{step:06d}.parquet").to_pylist()
        assert {row["step"] for row in rows} == {step}
    assert "step 2 could not be written down: File too large; it is kept for the next try (1 of 3)" in out.getvalue()


async def refused(folder, steps, error=None):
    """The disk is full from the first step on."""
    with RunRecorder(folder, fetch, 9, 0, 5, Console(file=io.StringIO()), NO_CURVES) as recorder:
        with files_of_at_most(30):
            for step in range(1, steps + 1):
                await recorder.step(step, {"time/step_s": 1.0}, [])
        if error:
            raise error
        recorder._folder.write_text("reached", "")


async def test_a_disk_that_stays_full_ends_the_run_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"^step 3 could not be written down, 3 times in a row: File too large\."):
        await refused(Folder(tmp_path), 3)


async def test_what_is_still_unwritten_when_a_run_ends_is_written_then_or_told(tmp_path, monkeypatch):
    await refused(Folder(tmp_path / "room"), 2)
    assert [m["step"] for m in read(Folder(tmp_path / "room"))] == [1, 2]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Metrics, "_append", full)
    with pytest.raises(UserError, match="what the last steps did could not be written down: No space left"):
        await refused(Folder(tmp_path / "none"), 1)
    with pytest.raises(RuntimeError, match="the reason"):  # which comes first
        await refused(Folder(tmp_path / "none"), 1, RuntimeError("the reason"))
