"""Groups to sequences: cutting, masking, counting, dealing out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.trajectory import (
    Ending,
    Failure,
    ImageRef,
    Outcome,
    PlacedImage,
    RewardParts,
    Segment,
    SegmentKind,
    Tool,
    ToolCall,
    ToolRequest,
    ToolResult,
    Trajectory,
    VersionSpan,
    WeightVersion,
)
from actors.learner.batch import TrainSequence, cut_segments, share, split_steps, to_micro_batches, train_sequences
from actors.model.expansion import expand

IMAGE = 99


def action(n: int, version: int = 0, logprob: float = -1.0) -> Segment:
    spans = (VersionSpan(WeightVersion(version), 0, n),) if n else ()
    ids, logs = np.arange(1, n + 1, dtype=np.int32), np.full(n, logprob, np.float32)
    return Segment(SegmentKind.ACTION, ids, logs, spans)


def text(kind: SegmentKind, n: int, image_tokens: int = 0) -> Segment:
    ids = np.arange(1, n + 1, dtype=np.int32)
    if not image_tokens:
        return Segment(kind, ids)
    ids[0] = IMAGE
    return Segment(kind, ids, images=(PlacedImage(0, ImageRef("a" * 64, 56, 56), image_tokens),))


def episode(*segments: Segment, reward: float = 1.0, failure: Failure = Failure.NONE) -> Trajectory:
    parts = RewardParts(reward, reward, 1.0, 1.0, 0)
    return Trajectory("q", 0, segments, (), Ending.ANSWERED, failure, reward=parts)


PROMPT = text(SegmentKind.PROMPT, 4, image_tokens=5)  # 8 tokens expanded
OBSERVATION = text(SegmentKind.OBSERVATION, 3, image_tokens=4)  # 6 tokens expanded


def called(outcome: Outcome, turn: int) -> ToolCall:
    return ToolCall(ToolRequest(Tool.TEXT_SEARCH, "query"), ToolResult(outcome), turn, 0.0)


def prepare(groups, **kwargs):
    options = {"advantage": "mean", "image_token_id": IMAGE, "max_length": 100, "version": 3} | kwargs
    return train_sequences(groups, **options)


def made(length: int) -> TrainSequence:
    """A sequence of which all is trained."""
    expanded = expand((action(length),), IMAGE)
    return TrainSequence(expanded, 1.0)


def test_tool_tokens_are_in_no_mean_and_images_are_expanded():
    long = episode(PROMPT, action(3, version=1), OBSERVATION, action(2, version=3))
    sequences, report = prepare([[long, episode(PROMPT, action(1), reward=0.0)]])
    assert [len(s.expanded) for s in sequences] == [8 + 3 + 6 + 2, 9]
    assert sequences[0].expanded.loss_mask.tolist() == [False] * 8 + [True] * 3 + [False] * 6 + [True] * 2
    assert [s.advantage for s in sequences] == [0.5, -0.5]
    assert report.tokens == 6
    assert report.staleness_max == 3
    assert report.staleness_mean == pytest.approx((2 * 3 + 0 * 2 + 3 * 1) / 6)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(100, 4), (19, 4), (18, 2), (17, 2), (11, 2), (10, 0), (0, 0)],
)
def test_a_cut_keeps_whole_segments_and_ends_with_an_action(limit, kept):
    segments = (PROMPT, action(3), OBSERVATION, action(2))
    assert cut_segments(segments, limit) == segments[:kept]


def test_what_follows_the_last_action_is_left_out():
    segments = (PROMPT, action(3), OBSERVATION, action(0))
    assert cut_segments(segments, 100) == segments[:2]


def test_cut_and_too_long_episodes_are_counted():
    groups = [
        [
            episode(PROMPT, action(3), OBSERVATION, action(2)),
            episode(text(SegmentKind.PROMPT, 30), action(3), reward=0.0),
            episode(PROMPT, action(2), OBSERVATION, reward=0.5),
        ]
    ]
    sequences, report = prepare(groups, max_length=12)
    assert (report.cut, report.too_long, report.sequences, len(sequences)) == (1, 1, 2, 2)
    assert [len(s.expanded.images) for s in sequences] == [1, 1]


def test_filtered_groups_and_masked_episodes_are_counted():
    groups = [
        [episode(PROMPT, action(2)), episode(PROMPT, action(2))],
        [episode(PROMPT, action(2)), episode(PROMPT, action(2), failure=Failure.DATA)],
        [episode(PROMPT, action(2)), episode(PROMPT, action(2), failure=Failure.INFRA)],
        [
            episode(PROMPT, action(2)),
            episode(PROMPT, action(2), reward=0.0),
            episode(PROMPT, action(2), failure=Failure.INFRA),
        ],
    ]
    sequences, report = prepare(groups)
    assert report.filtered == {"zero_variance": 1, "data": 1, "too_few": 1}
    assert (report.groups, report.masked, len(sequences)) == (4, 1, 2)
    assert report.metrics()["batch_filtered_zero_variance"] == 1.0


def test_flat_groups_are_trained_on_where_they_are_not_filtered():
    flat = [episode(PROMPT, action(3)), episode(PROMPT, action(2))]
    group = [episode(PROMPT, action(2)), episode(PROMPT, action(2), reward=0.0)]
    assert prepare([group, flat])[1].tokens == 4
    sequences, report = prepare([group, flat], flat_groups=True)
    assert [s.advantage for s in sequences] == [0.5, -0.5, 0.0, 0.0]
    assert (report.tokens, report.filtered["zero_variance"]) == (9, 0)


def test_an_episode_that_ran_out_of_tokens_can_be_left_out_and_stays_in_the_baseline():
    full = replace(episode(PROMPT, action(3), reward=0.0), ending=Ending.OUT_OF_TOKENS)
    group = [episode(PROMPT, action(2)), full]
    sequences, report = prepare([group], mask=["over_long"])
    assert [s.advantage for s in sequences] == [0.5]
    assert report.over_long == 1
    assert report.metrics()["batch_over_long"] == 1.0
    assert len(prepare([group])[0]) == 2


@pytest.mark.parametrize(
    ("outcome", "trained"),
    [(Outcome.INFRA_ERROR, 3), (Outcome.REFUSED, 3), (Outcome.POLICY_ERROR, 6), (Outcome.EMPTY, 6), (Outcome.OK, 6)],
)
def test_what_follows_a_tools_failure_can_be_left_out(outcome, trained):
    segments = (PROMPT, action(1), OBSERVATION, action(2), OBSERVATION, action(3))
    calls = (called(Outcome.OK, turn=1), called(outcome, turn=2))
    broken = replace(episode(*segments), tool_calls=calls)
    group = [broken, episode(PROMPT, action(2), reward=0.0)]
    sequences, report = prepare([group], mask=["fatal_tool"])
    assert int(sequences[0].expanded.loss_mask.sum()) == trained
    assert report.tool_failed == (trained == 3)
    assert report.cut == 0
    assert prepare([group])[1].tokens == 6 + 2
    last = replace(episode(PROMPT, action(1), OBSERVATION), tool_calls=(called(outcome, turn=1),))
    assert prepare([[last, group[1]]], mask=["fatal_tool"])[1].tool_failed == 0


def test_a_nonfinite_behaviour_logprob_leaves_the_loss_and_is_counted():
    broken = action(3)
    broken.logprobs[1] = -np.inf
    sequences, report = prepare([[episode(PROMPT, broken), episode(PROMPT, action(1), reward=0.0)]])
    assert report.nonfinite == 1
    assert sequences[0].expanded.loss_mask[8:].tolist() == [True, False, True]
    assert np.isfinite(sequences[0].expanded.logprobs).all()


def test_an_image_without_placeholder_is_left_out_and_counted():
    bad = replace(PROMPT, token_ids=np.arange(1, 5, dtype=np.int32))
    sequences, report = prepare([[episode(bad, action(2)), episode(PROMPT, action(1), reward=0.0)]])
    assert (report.malformed, len(sequences)) == (1, 1)


def test_nothing_to_learn_is_an_empty_batch():
    sequences, report = prepare([])
    assert sequences == []
    assert report.tokens == 0
    assert split_steps(sequences, 4) == []


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), world=st.integers(1, 5))
def test_ranks_share_everything_once_and_evenly(lengths, world):
    pairs = [[episode(PROMPT, action(n), reward=1.0), episode(PROMPT, action(1), reward=0.0)] for n in lengths]
    sequences, _ = prepare(pairs)
    parts = [share(sequences, rank, world) for rank in range(world)]
    trained = [[s for s in part if s.expanded.loss_mask.any()] for part in parts]
    assert sorted(id(s) for part in trained for s in part) == sorted(id(s) for s in sequences)
    assert max(map(len, trained)) - min(map(len, trained)) <= 1


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), world=st.integers(1, 5))
def test_ranks_differ_by_no_more_tokens_than_the_sequences_of_one_round(lengths, world):
    sequences = [made(n) for n in lengths]
    totals = [sum(len(s.expanded) for s in share(sequences, rank, world)) for rank in range(world)]
    order = sorted(lengths, reverse=True)
    rounds = [order[start : start + world] for start in range(0, len(order), world)]
    apart = [one[0] - (one[-1] if len(one) == world else 0) for one in rounds]
    if len(lengths) >= world:
        assert max(totals) - min(totals) <= max(apart)


def test_the_longest_of_each_round_goes_to_the_rank_with_the_fewest_tokens():
    sequences = [made(n) for n in (9, 8, 5, 1, 4, 3)]
    dealt = [[len(s.expanded) for s in share(sequences, rank, 2)] for rank in range(2)]
    assert dealt == [[9, 4, 3], [8, 5, 1]]


def test_a_rank_without_sequences_takes_part_with_one_that_is_not_trained():
    sequences = [made(3), made(2)]
    (idle,) = share(sequences, 2, 3)
    assert len(idle.expanded) == 2
    assert not idle.expanded.loss_mask.any()
    assert sequences[1].expanded.loss_mask.any()


@given(n=st.integers(0, 30), steps=st.integers(1, 6))
def test_steps_take_every_sequence_once_and_none_is_empty(n, steps):
    sequences = [made(1) for _ in range(n)]
    parts = split_steps(sequences, steps)
    assert len(parts) == min(steps, n)
    assert all(parts)
    assert sorted(id(s) for part in parts for s in part) == sorted(id(s) for s in sequences)


def test_micro_batches_carry_advantages_and_behaviour_beside_each_trained_token():
    plain = text(SegmentKind.PROMPT, 3)
    groups = [[episode(plain, action(4, logprob=-2.0)), episode(plain, action(2), reward=0.0)]]
    sequences, _ = prepare(groups)
    (batch,) = to_micro_batches(sequences, pixels=None, pad_id=0, token_budget=100)  # pyright: ignore
    assert batch.flat("behaviour").tolist() == [-2.0] * 4 + [-1.0] * 2
    assert batch.flat("advantages").tolist() == [0.5] * 4 + [-0.5] * 2
    assert len(to_micro_batches(sequences, pixels=None, pad_id=0, token_budget=10)) == 2  # pyright: ignore
