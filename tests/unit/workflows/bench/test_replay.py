"""What is asked of the bare engine is what the episodes asked of theirs."""

from __future__ import annotations

import numpy as np

from actors.agent.trajectory import ImageRef, PlacedImage, Question, Segment, SegmentKind, VersionSpan, WeightVersion
from workflows.bench.load import Load
from workflows.bench.replay import Turn, pictures_of, requests_of
from workflows.bench.rollout import episodes_of

CAT, DOG = ImageRef("c" * 64, 112, 112), ImageRef("d" * 64, 56, 56)
PAD = 7


def shown(ids: list[int], *images: tuple[int, ImageRef, int]) -> Segment:
    return Segment(
        SegmentKind.PROMPT, np.array(ids, dtype=np.int32), images=tuple(PlacedImage(*image) for image in images)
    )


def said(ids: list[int]) -> Segment:
    span = (VersionSpan(WeightVersion(0), 0, len(ids)),)
    return Segment(SegmentKind.ACTION, np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.float32), span)


def test_requests_come_in_the_order_in_which_turns_were_asked_whoever_answered_first():
    prompt = (shown([1, 2]),)
    turns = [Turn(3.0, 3.1, prompt, 5), Turn(1.0, 9.0, prompt, 6), Turn(2.0, 2.5, prompt, 7)]
    assert [request.sampled for request in requests_of(turns)] == [6, 7, 5]


def test_a_later_turn_carries_the_whole_history_with_every_picture_in_its_place():
    history = (shown([1, PAD, 2, PAD], (3, DOG, 4), (1, CAT, 16)), said([11, 12]), shown([3, PAD], (1, CAT, 16)))
    [request] = requests_of([Turn(0.0, 1.0, history, 3)])
    assert request.prompt_token_ids.tolist() == [1, PAD, 2, PAD, 11, 12, 3, PAD]
    assert request.images == (CAT, DOG, CAT)
    assert request.prompt_tokens == (2 + 16 + 4) + 2 + (1 + 16)
    assert pictures_of([request, request]) == [CAT, DOG]


def test_a_turn_that_sampled_nothing_is_asked_of_nobody():
    assert requests_of([Turn(0.0, 0.0, (shown([1]),), 0)]) == []


def test_passes_play_groups_of_siblings_and_each_pass_other_questions():
    questions = [Question(str(i), "who?") for i in range(6)]
    load = Load(episodes=7, concurrency=4)
    first, second = (episodes_of(questions, i, load, 4) for i in (0, 1))
    assert [(q.id, sample) for q, sample in first] == [
        ("0", 0),
        ("0", 1),
        ("0", 2),
        ("0", 3),
        ("1", 0),
        ("1", 1),
        ("1", 2),
    ]
    assert {q.id for q, _ in second} == {"2", "3"}
    assert len(episodes_of(questions, 5, load, 4)) == 7  # after the last question the first one again
