"""A checkpoint is whole or passed over, and what it holds comes back bit by bit."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.trajectory import (
    Ending,
    Evidence,
    Failure,
    ImageRef,
    Outcome,
    PlacedImage,
    Question,
    RewardParts,
    Segment,
    SegmentKind,
    Tool,
    ToolCall,
    ToolRequest,
    ToolResult,
    Trajectory,
    VersionSpan,
)  # fmt: skip
from cluster.drives import LocalDrive
from cluster.errors import UserError
from cluster.storage import Folder
from tests.full_disk import files_of_at_most
from workflows.grpo.checkpoint import CheckpointStore, SavedGroup
from workflows.grpo.evaluation_state import Best, EvaluationState
from workflows.grpo.ports import ControllerState
from workflows.grpo.prompts_cursor import PromptsCursor
from workflows.grpo.records import row_for_people, trajectory_from, trajectory_to
from workflows.grpo.work_buffer import WorkBuffer

PICTURE = ImageRef("ab" * 32, 112, 112)
floats = st.floats(-50, 0, width=32)


def trajectory(logprobs=(-0.1, -2.5), searched=True):
    ids = np.arange(len(logprobs), dtype=np.int32)
    half = len(logprobs) // 2
    spans = (VersionSpan(3, 0, half), VersionSpan(4, half, len(logprobs)))
    action = Segment(SegmentKind.ACTION, ids, np.array(logprobs, dtype=np.float32), spans, text="<answer>x</answer>")
    prompt = Segment(
        SegmentKind.PROMPT, np.array([7, 8, 9], dtype=np.int32), images=(PlacedImage(1, PICTURE, 16),), text="?"
    )
    evidence = Evidence(1, "Title", "words", crop_box=(1, 2, 3, 4), thumbnail=PICTURE)
    call = ToolCall(
        ToolRequest(Tool.IMAGE_SEARCH, "the red star", PICTURE, box=(0, 0, 500, 500), return_crop=True),
        ToolResult(Outcome.OK, (evidence,), latency_s=0.25, crop_box=(5, 6, 7, 8), crop=ImageRef("cd" * 32, 2, 2)),
        turn=0,
        started_at=1.5,
    )
    return Trajectory(
        "q", 2, (prompt, action), (call,) if searched else (), Ending.ANSWERED, Failure.NONE, "x", (1,), True,
        reward=RewardParts(0.9, 1.0, 1.0, 0.9, 1), seconds=2.0,
    )  # fmt: skip


@given(st.lists(floats, max_size=20), st.booleans())
def test_a_trajectory_comes_back_bit_by_bit(logprobs, searched):
    before = trajectory(logprobs, searched)
    after = trajectory_from(json.loads(json.dumps(trajectory_to(before))))
    for a, b in zip(before.segments, after.segments, strict=True):
        assert (a.kind, a.spans, a.images, a.text) == (b.kind, b.spans, b.images, b.text)
        assert a.token_ids.dtype == b.token_ids.dtype
        assert a.token_ids.tobytes() == b.token_ids.tobytes()
        assert a.logprobs.tobytes() == b.logprobs.tobytes()
    assert (before.tool_calls, before.reward, before.citations) == (after.tool_calls, after.reward, after.citations)
    assert (before.ending, before.failure, before.answer) == (after.ending, after.failure, after.answer)


def test_a_record_from_before_crops_were_returned_is_read():
    told = json.loads(json.dumps(trajectory_to(trajectory())))
    call = told["tool_calls"][0]
    del call["request"]["return_crop"], call["result"]["crop"], call["result"]["evidence"][0]["image_number"]
    read = trajectory_from(told).tool_calls[0]
    assert (read.request.return_crop, read.result.crop, read.result.evidence[0].image_number) == (False, None, 0)


def test_a_row_for_people_holds_the_whole_record():
    row = row_for_people(3, Question("q", "who?", answers=("x",), kind="head"), trajectory())
    assert (row["step"], row["kind"], row["accuracy"], row["searches"]) == (3, "head", 1.0, 1)
    assert trajectory_from(json.loads(row["record"])).answer == "x"


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(tmp_path, said):
    return CheckpointStore(Folder(tmp_path), {"group_size": 4, "model": "m"}, 2, said.append)


def state(step):
    buffer = WorkBuffer(2, 1)
    for i in range(3):
        buffer.admit(f"q{i}", step)
    buffer.start(0)
    buffer.finish(0, step)
    buffer.start(1)
    cursor = PromptsCursor(["q0", "q1", "q2"], 1).snapshot()
    seen = EvaluationState(step, Best(1, 1, "exact_match", 0.5, 0.4, 0.6), 0.5, 1)
    return ControllerState(step, step, buffer.snapshot(), cursor, {"t": 2}, seen)


async def save_learner(folder, n_bytes=1000):
    folder.write_json("state.json", {"steps": 1, "parts": 0, "ranks": 0})
    folder.write_bytes("weights.bin", b"w" * n_bytes)


async def write(store, step):
    return await store.write(state(step), [SavedGroup(0, (trajectory(),) * 2, 1)], save_learner)


def test_a_new_run_has_no_checkpoint(store):
    assert store.latest() is None


async def test_the_newest_comes_back_whole(store):
    await write(store, 1)
    await write(store, 2)
    found = store.latest()
    assert found.state == state(2)
    assert found.folder.read_bytes("learner/weights.bin") == b"w" * 1000
    (group,) = found.groups
    assert (group.id, group.masked) == (0, 1)
    assert [t.sample_index for t in group.trajectories] == [2, 2]


async def test_old_ones_are_deleted_and_a_step_may_be_saved_again(store, tmp_path):
    for step in (1, 2, 2):
        await write(store, step)
    assert Folder(tmp_path).list() == ["step-000002-00", "step-000002-01"]


@pytest.mark.parametrize("victim", ["learner/weights.bin", "controller.json", "groups.parquet", "COMPLETE.json"])
async def test_a_truncated_one_is_passed_over_and_that_is_said(store, said, victim):
    await write(store, 1)
    newest = await write(store, 2)
    newest.write_bytes(victim, newest.read_bytes(victim)[:-20])
    assert store.latest().state.step == 1
    assert "step-000002-00 is not whole" in said[0]


async def test_a_writer_that_dies_leaves_the_one_before(store, said):
    await write(store, 1)

    async def dies(folder):
        folder.write_bytes("weights.bin", b"w")
        raise RuntimeError("a rank died")

    with pytest.raises(RuntimeError, match="a rank died"):
        await store.write(state(2), [], dies)
    assert store.latest().state.step == 1
    assert "did not finish" in said[0]


@pytest.mark.parametrize(("room", "learner"), [(0, 1), (1999, 2000), (300, 300), (1200, 1)])
async def test_a_disk_that_is_full_leaves_the_one_before_and_takes_the_next(store, tmp_path, said, room, learner):
    """Bytes that it takes of a file, and of the learner's: the first two cases refuse the learner's, the others what
    the controller writes after it."""
    await write(store, 1)
    asked = []

    async def save(folder):
        await save_learner(folder, learner)
        asked.append(folder)

    random = np.random.default_rng(0).uniform(-9, 0, 400).astype(np.float32)
    with files_of_at_most(room), pytest.raises(OSError, match="File too large"):
        await store.write(state(2), [SavedGroup(0, (trajectory(random),), 1)], save)
    assert len(asked) == (room >= learner)
    assert Folder(tmp_path).list() == ["step-000001-00"]
    assert store.latest().state == state(1)
    assert not said
    await write(store, 3)
    assert store.latest().state == state(3)


@pytest.mark.parametrize(
    ("seen", "missing"),
    [
        ({"part-00001.safetensors", "rng-00001.safetensors"}, "state.json"),  # rank 0 is on another node
        ({"state.json", "part-00000.safetensors", "rng-00000.safetensors"}, "part-00001.safetensors"),
        ({"state.json", "part-00000.safetensors", "part-00001.safetensors"}, "rng-00000.safetensors"),
    ],
)
async def test_one_that_ranks_wrote_to_disks_of_their_own_is_refused_and_the_one_before_stays(
    store, tmp_path, seen, missing
):
    await write(store, 1)

    async def save(folder):
        for name in seen:
            folder.write_json(name, {"steps": 1, "parts": 2, "ranks": 2})

    with pytest.raises(UserError, match=rf"learner lacks {missing}: .* All nodes must see the run's folder"):
        await store.write(state(2), [], save)
    assert Folder(tmp_path).list() == ["step-000001-00"]
    assert store.latest().state == state(1)


async def test_what_killed_writers_left_goes_and_does_not_count_as_kept(store, tmp_path):
    for step in (1, 2):
        await write(store, step)
    for torn in (3, 4):
        (await write(store, torn)).delete("COMPLETE.json")
    Folder(tmp_path / "step-000001-00").write_text("COMPLETE.json", "{}")
    await write(store, 5)
    assert Folder(tmp_path).list() == ["step-000002-00", "step-000005-00"]


async def test_old_ones_that_cannot_be_deleted_do_not_make_the_new_one_fail(store, said, monkeypatch):
    for step in (1, 2):
        await write(store, step)

    def refuses(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(LocalDrive, "delete", refuses)
    await write(store, 3)
    assert store.latest().state == state(3)
    assert "could not be deleted: Read-only file system" in said[0]


async def test_when_none_is_whole_a_person_is_told(store):
    folder = await write(store, 1)
    folder.delete("learner/weights.bin")
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        store.latest()


async def test_a_run_that_was_killed_within_its_first_checkpoint_begins_anew(store, said):
    folder = await write(store, 1)
    folder.delete("COMPLETE.json")
    assert store.latest() is None
    assert "did not finish" in said[0]
    await write(store, 1)
    assert store.latest().state.step == 1


async def test_another_configuration_is_refused_with_both_values(store, tmp_path):
    await write(store, 1)
    other = CheckpointStore(Folder(tmp_path), {"group_size": 8, "model": "m"}, 2, print)
    with pytest.raises(UserError, match="group_size was 4 and is 8"):
        other.latest()
