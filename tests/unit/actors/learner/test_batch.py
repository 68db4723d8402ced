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
    PlacedImage,
    RewardParts,
    Segment,
    SegmentKind,
    Trajectory,
    VersionSpan,
    WeightVersion,
)
from actors.learner.batch import cut_segments, share, split_steps, to_micro_batches, train_sequences

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


def prepare(groups, **kwargs):
    options = {"advantage": "mean", "image_token_id": IMAGE, "max_length": 100, "version": 3} | kwargs
    return train_sequences(groups, **options)


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
    assert split_steps(sequences, 4, 1) == []


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), world=st.integers(1, 5))
def test_ranks_share_everything_once_and_evenly(lengths, world):
    pairs = [[episode(PROMPT, action(n), reward=1.0), episode(PROMPT, action(1), reward=0.0)] for n in lengths]
    sequences, _ = prepare(pairs)
    parts = [share(sequences, rank, world) for rank in range(world)]
    assert sorted(id(s) for part in parts for s in part) == sorted(id(s) for s in sequences)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(n=st.integers(0, 30), steps=st.integers(1, 6), world=st.integers(1, 4))
def test_every_rank_has_work_in_every_step(n, steps, world):
    sequences, _ = prepare([[episode(PROMPT, action(1)), episode(PROMPT, action(1), reward=0.0)]] * n)
    parts = split_steps(sequences, steps, world)
    assert all(len(part) >= world for part in parts)
    assert len(parts) <= steps
    if len(sequences) >= world:
        assert sum(map(len, parts)) == len(sequences)


def test_micro_batches_carry_advantages_and_behaviour_beside_each_trained_token():
    plain = text(SegmentKind.PROMPT, 3)
    groups = [[episode(plain, action(4, logprob=-2.0)), episode(plain, action(2), reward=0.0)]]
    sequences, _ = prepare(groups)
    (batch,) = to_micro_batches(sequences, pixels=None, pad_id=0, token_budget=100)  # pyright: ignore
    assert batch.flat("behaviour").tolist() == [-2.0] * 4 + [-1.0] * 2
    assert batch.flat("advantages").tolist() == [0.5] * 4 + [-0.5] * 2
    assert len(to_micro_batches(sequences, pixels=None, pad_id=0, token_budget=10)) == 2  # pyright: ignore
