"""Batches: each sequence once, within the budget, and only what was sampled is a target."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.agent.trajectory import ImageRef
from actors.model.batch import PASS_TOKENS, collate, micro_batches
from actors.model.expansion import Expanded
from actors.model.pixels import Pixels

REFS = [ImageRef(letter * 64, 28 * n, 28) for n, letter in enumerate("abc", start=1)]
PAD = 5


class Patches(Pixels):
    """Pixels whose values say which image they are of: n patches of value n for the n-th image."""

    def __init__(self) -> None:
        """Nothing to process."""

    def get(self, ref: ImageRef) -> tuple[torch.Tensor, torch.Tensor]:
        n = ref.width // 28
        return torch.full((n, 3), float(n)), torch.tensor([1, 1, n])


def sequence(ids, mask, images=()) -> Expanded:
    n = len(ids)
    return Expanded(
        np.array(ids, dtype=np.int32),
        np.array(mask, dtype=np.bool_),
        np.linspace(-1, 0, n, dtype=np.float32),
        np.zeros(n, dtype=np.int32),
        tuple(images),
    )


@given(lengths=st.lists(st.integers(1, 300), max_size=40), budget=st.integers(1, 1000))
@settings(deadline=None)
def test_micro_batches_hold_each_index_once_and_stay_within_the_budget(lengths, budget):
    batches = micro_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
    assert sum(len(batch) for batch in batches) == len(lengths)


def test_micro_batches_are_as_few_as_equal_lengths_allow():
    assert [len(batch) for batch in micro_batches([10] * 7, 30)] == [3, 3, 1]


@given(lengths=st.lists(st.integers(1, 4000), min_size=1, max_size=7), budget=st.integers(1000, 9000))
def test_no_cut_of_the_sorted_lengths_is_cheaper(lengths, budget):
    def cost(batches):
        return sum(batch[0] * len(batch) + PASS_TOKENS for batch in batches)

    ordered = sorted(lengths, reverse=True)
    cheapest = cost([[length] for length in ordered])
    for cuts in product([False, True], repeat=len(ordered) - 1):
        batches = [[ordered[0]]]
        for length, new in zip(ordered[1:], cuts, strict=True):
            batches.append([length]) if new else batches[-1].append(length)
        if all(len(batch) == 1 or batch[0] * len(batch) <= budget for batch in batches):
            cheapest = min(cheapest, cost(batches))
    assert cost([[lengths[i] for i in batch] for batch in micro_batches(lengths, budget)]) == cheapest


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_padding_stands_on_the_right_and_only_sampled_tokens_are_targets(masks):
    sequences = [sequence(np.arange(10, 10 + len(mask)), mask) for mask in masks]
    values = [s.logprobs for s in sequences]
    batch = collate(sequences, Patches(), PAD, {"behaviour": values})
    assert batch.input_ids.shape == (len(masks), max(map(len, masks)))
    for row, (it, mask) in enumerate(zip(sequences, masks, strict=True)):
        n = len(it)
        assert batch.input_ids[row].tolist() == it.token_ids.tolist() + [PAD] * (len(batch.input_ids[row]) - n)
        assert batch.loss_mask[row, :n].tolist() == [False, *mask[1:]]
        assert not batch.loss_mask[row, n:].any()
    assert batch.trained_tokens == sum(sum(mask[1:]) for mask in masks)
    flat = [v for value, mask in zip(values, masks, strict=True) for v, m in zip(value[1:], mask[1:], strict=True) if m]
    assert batch.flat("behaviour").tolist() == flat


def test_pictures_stand_in_order_of_appearance_and_text_alone_has_none():
    text = sequence([8, 9], [False, True])
    shown = [sequence([8, 9], [False, True], images) for images in ([REFS[1]], [REFS[0], REFS[2]])]
    batch = collate([shown[0], text, shown[1]], Patches(), PAD)
    assert batch.pixel_values is not None
    assert batch.image_grid_thw is not None
    assert batch.pixel_values[:, 0].tolist() == [2, 2, 1, 3, 3, 3]
    assert batch.image_grid_thw[:, 2].tolist() == [2, 1, 3]
    alone = collate([text], Patches(), PAD)
    assert alone.pixel_values is None
    assert alone.image_grid_thw is None


def test_a_picture_is_asked_for_once_however_often_it_appears():
    asked: list[ImageRef] = []

    class Watched(Patches):
        def get(self, ref: ImageRef) -> tuple[torch.Tensor, torch.Tensor]:
            asked.append(ref)
            return super().get(ref)

    shown = [sequence([8, 9], [False, True], images) for images in ([REFS[1], REFS[0]], [REFS[1]])]
    batch = collate(shown, Watched(), PAD)
    assert asked == [REFS[1], REFS[0]]
    assert batch.image_index is not None
    assert batch.image_index.tolist() == [0, 1, 0]


def test_values_of_another_length_are_refused():
    it = sequence([8, 9, 10], [False, True, True])
    with pytest.raises(ValueError, match="'behaviour' are not as long"):
        collate([it], Patches(), PAD, {"behaviour": [np.zeros(1, dtype=np.float32)]})


def test_a_moved_batch_keeps_everything():
    it = collate([sequence([8, 9], [False, True], REFS[:1])], Patches(), PAD, {"x": [np.ones(2, dtype=np.float32)]})
    moved = it.to("cpu")
    assert moved.extras.keys() == it.extras.keys()
    assert moved.trained_tokens == 1
    assert moved.pixel_values is not None
