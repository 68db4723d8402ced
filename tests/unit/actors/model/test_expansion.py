"""Expansion: ids, mask, log-probs and versions grow in step, and what does not match never reaches a model."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.agent.trajectory import ImageRef, PlacedImage, Segment, SegmentKind, VersionSpan, WeightVersion
from actors.model.expansion import ExpansionError, expand, expanded_ids, images_of

IMAGE = 7
REFS = [ImageRef(letter * 64, 112, 84) for letter in "abcde"]
plain_ids = st.integers(8, 99)


@st.composite
def seen(draw) -> Segment:
    """A prompt or observation with images at some of its offsets, listed in any order."""
    ids = draw(st.lists(st.one_of(plain_ids, st.just(IMAGE)), max_size=12))
    offsets = draw(st.permutations([i for i, token in enumerate(ids) if token == IMAGE]))
    images = tuple(PlacedImage(o, draw(st.sampled_from(REFS)), draw(st.integers(1, 6))) for o in offsets)
    kind = draw(st.sampled_from([SegmentKind.PROMPT, SegmentKind.OBSERVATION]))
    return Segment(kind, np.array(ids, dtype=np.int32), images=images)


@st.composite
def sampled(draw) -> Segment:
    """An action of one to three weight versions."""
    lengths = draw(st.lists(st.integers(1, 5), max_size=3))
    ends = np.cumsum([0, *lengths]).tolist()
    spans = [VersionSpan(WeightVersion(v), a, b) for v, (a, b) in enumerate(itertools.pairwise(ends), 3)]
    ids = draw(st.lists(plain_ids, min_size=ends[-1], max_size=ends[-1]))
    logprobs = -np.arange(1, ends[-1] + 1, dtype=np.float32)
    return Segment(SegmentKind.ACTION, np.array(ids, dtype=np.int32), logprobs, tuple(spans))


@given(st.lists(st.one_of(seen(), sampled()), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_every_array_has_the_expanded_length_and_says_the_same_of_each_token(segments):
    it = expand(segments, IMAGE)
    n = sum(segment.expanded_length for segment in segments)
    assert len(it) == n
    assert [len(a) for a in (it.token_ids, it.loss_mask, it.logprobs, it.versions)] == [n] * 4
    assert (it.token_ids.dtype, it.loss_mask.dtype, it.logprobs.dtype) == (np.int32, np.bool_, np.float32)
    assert not (it.loss_mask & (it.token_ids == IMAGE)).any()
    assert (it.versions[~it.loss_mask] == -1).all()
    assert (it.logprobs[~it.loss_mask] == 0).all()

    actions = [s for s in segments if s.kind is SegmentKind.ACTION]
    joined = [token for s in actions for token in s.token_ids.tolist()]
    assert it.token_ids[it.loss_mask].tolist() == joined
    assert it.logprobs[it.loss_mask].tolist() == [p for s in actions for p in s.logprobs.tolist()]
    versions = [int(v.version) for s in actions for v in s.spans for _ in range(v.start, v.end)]
    assert it.versions[it.loss_mask].tolist() == versions

    placed = [image for s in segments for image in sorted(s.images, key=lambda image: image.offset)]
    assert list(it.images) == [image.ref for image in placed]
    assert int((it.token_ids == IMAGE).sum()) == sum(image.n_tokens for image in placed)
    once = [t for s in segments for t in s.token_ids.tolist() if t != IMAGE]
    assert it.token_ids[it.token_ids != IMAGE].tolist() == once
    assert expanded_ids(segments, IMAGE).tolist() == it.token_ids.tolist()
    assert images_of(segments) == it.images


def prompt(ids, *images) -> Segment:
    return Segment(SegmentKind.PROMPT, np.array(ids, dtype=np.int32), images=images)


MISMATCHED = {
    "a placeholder without an image": prompt([8, IMAGE, 9]),
    "an image without a placeholder": prompt([8, 9], PlacedImage(1, REFS[0], 2)),
    "an image beside its placeholder": prompt([8, IMAGE, 9], PlacedImage(2, REFS[0], 2)),
    "two images at one placeholder": prompt([IMAGE, 9], PlacedImage(0, REFS[0], 2), PlacedImage(0, REFS[1], 2)),
    "an image of no tokens": prompt([IMAGE], PlacedImage(0, REFS[0], 0)),
    "a placeholder that was sampled": Segment(
        SegmentKind.ACTION,
        np.array([IMAGE], dtype=np.int32),
        np.zeros(1, dtype=np.float32),
        (VersionSpan(WeightVersion(0), 0, 1),),
    ),
}


@pytest.mark.parametrize("segment", MISMATCHED.values(), ids=MISMATCHED)
def test_it_is_refused_to_expand(segment):
    with pytest.raises(ExpansionError):
        expand([prompt([8]), segment], IMAGE)
    with pytest.raises(ExpansionError):
        expanded_ids([prompt([8]), segment], IMAGE)


def test_nothing_cannot_be_expanded():
    with pytest.raises(ExpansionError, match="no segments"):
        expand([], IMAGE)


def action(n: int, *spans: tuple[int, int]) -> Segment:
    versions = tuple(VersionSpan(WeightVersion(0), a, b) for a, b in spans)
    return Segment(SegmentKind.ACTION, np.arange(8, 8 + n, dtype=np.int32), np.zeros(n, dtype=np.float32), versions)


@pytest.mark.parametrize(
    "spans", [[], [(0, 3)], [(0, 2), (3, 5)], [(0, 3), (2, 4)], [(2, 4), (0, 2)], [(0, 6), (6, 4)]]
)
def test_an_action_whose_versions_leave_gaps_is_no_segment(spans):
    with pytest.raises(ValueError, match="do not cover the 4 tokens"):
        action(4, *spans)


def test_an_action_needs_a_logprob_a_token_and_nothing_else_has_any():
    assert action(4, (0, 1), (1, 4)).trained
    with pytest.raises(ValueError, match="carries 0 log-probs"):
        Segment(SegmentKind.ACTION, np.arange(4, dtype=np.int32))
    with pytest.raises(ValueError, match="was not sampled"):
        Segment(SegmentKind.PROMPT, np.arange(2, dtype=np.int32), np.zeros(2, dtype=np.float32))
    with pytest.raises(ValueError, match="outside its segment"):
        prompt([8], PlacedImage(1, REFS[0], 2))
