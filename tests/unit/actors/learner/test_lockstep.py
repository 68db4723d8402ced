"""Equally many passes on every rank, alike in whether there are pictures."""

from __future__ import annotations

import pytest
import torch

from actors.learner.backends.lockstep import BlankPicture, counts_of, passes
from actors.learner.backends.ranks import Ranks
from actors.model.batch import TokenBatch

BLANK = BlankPicture(token=99, side=2, width=6)


class Beside:
    """The first of two ranks, of which the other says these numbers, one list a question."""

    rank, world = 0, 2

    def __init__(self, *said: list[float]) -> None:
        self._said = list(said)

    def largest(self, values):
        return [max(pair) for pair in zip(values, self._said.pop(0), strict=True)]

    def total(self, values):
        return [sum(pair) for pair in zip(values, self._said.pop(0), strict=True)]


def batch(rows: int, width: int, *, pictures: int = 0, trained: int = 1) -> TokenBatch:
    mask = torch.zeros((rows, width), dtype=torch.bool)
    mask[:, 1 : 1 + trained] = True
    return TokenBatch(
        torch.full((rows, width), 5),
        mask,
        torch.ones(4 * pictures, 6) if pictures else None,
        torch.tensor([[1, 2, 2]] * pictures) if pictures else None,
        {"advantages": torch.ones(rows, width)},
    )


def test_a_rank_with_fewer_batches_repeats_its_smallest_which_is_not_real():
    mine = [batch(1, 9), batch(2, 3), batch(1, 8)]
    planned = passes(mine, Beside([5], [0] * 5), BLANK)
    assert [one.batch for one in planned] == [*mine, mine[1], mine[1]]
    assert [one.real for one in planned] == [True, True, True, False, False]
    assert [one.last for one in planned] == [False] * 4 + [True]


def test_where_another_rank_has_a_picture_a_blank_one_is_put_behind_the_text():
    mine = [batch(2, 4, pictures=2), batch(2, 3), batch(2, 3)]
    seeing, text, blank = (one.batch for one in passes(mine, Beside([3], [0, 0, 1]), BLANK))
    assert seeing.pixel_values is mine[0].pixel_values
    assert text is mine[1]
    assert blank.input_ids.tolist() == [[5, 5, 5, 99], [5, 5, 5, 0]]
    assert blank.loss_mask[:, :3].equal(mine[2].loss_mask)
    assert not blank.loss_mask[:, 3].any()
    assert blank.flat("advantages").equal(mine[2].flat("advantages"))
    assert blank.pixel_values.shape == (4, 6)
    assert blank.image_grid_thw.tolist() == [[1, 2, 2]]


def test_with_several_ranks_pictures_are_read_in_one_way():
    """Whether or not a batch shows one twice: the order in which parameters are asked for is the same."""
    shared = batch(1, 4, pictures=2)
    shared.image_index = torch.tensor([0, 0])
    planned = passes([shared, batch(1, 4, pictures=2), batch(1, 3)], Beside([3], [0, 0, 1]), BLANK)
    assert [one.batch.image_index.tolist() for one in planned] == [[0, 0], [0, 1], [0]]


def test_alone_nothing_is_repeated_or_put_behind():
    mine = [batch(1, 4), batch(1, 3, pictures=1)]
    assert [one.batch for one in passes(mine, Ranks(), BLANK)] == mine


def test_the_first_pass_can_be_made_to_see():
    mine = [batch(1, 4), batch(1, 3)]
    first, second = (one.batch for one in passes(mine, Ranks(), BLANK, first_sees=True))
    assert first.input_ids.tolist() == [[5, 5, 5, 5, 99]]
    assert second is mine[1]


def test_a_rank_without_batches_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        passes([], Ranks(), BLANK)


def test_counts_are_of_all_ranks_and_leave_out_what_is_not_trained():
    idle = batch(3, 4, trained=0)
    counts = counts_of([batch(2, 5, trained=2), idle], Beside([7, 4]))
    assert (counts.tokens, counts.sequences) == (2 * 2 + 7, 2 + 4)


def test_the_blank_picture_is_of_the_models_own_sizes():
    class Vision:
        in_channels, temporal_patch_size, patch_size, spatial_merge_size = 3, 2, 14, 2

    class Config:
        vision_config, image_token_id = Vision, 7

    assert BlankPicture.of(Config) == BlankPicture(token=7, side=2, width=1176)
