"""The order in which SFT reads its conversations."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from workflows.sft_batches import batch_of, part_of


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_every_conversation_comes_once_in_an_epoch(n, batch, seed):
    steps = -(-3 * n // batch)
    seen = [i for step in range(1, steps + 1) for i in batch_of(step, batch, n, seed)]
    for epoch in range(3):
        assert Counter(seen[epoch * n : (epoch + 1) * n]) == Counter(range(n))


def test_a_step_follows_from_its_number_alone():
    assert batch_of(7, 4, 10, seed=1) == batch_of(7, 4, 10, seed=1)
    assert batch_of(1, 10, 10, seed=1) != batch_of(2, 10, 10, seed=1)
    assert batch_of(1, 10, 10, seed=1) != batch_of(1, 10, 10, seed=2)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 5))
def test_ranks_share_a_batch_without_overlap_and_about_evenly(lengths, world):
    parts = [part_of(lengths, rank, world) for rank in range(world)]
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths)
