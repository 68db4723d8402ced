"""Bytes of a pass, worked by hand on the small shape (h 8, q 8, k 4, f 16, V 32; vision h 4, f 6)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.capacity.activations import Pass, activations, forward_working, head, text_layer, vision_block

TEXT_LAYER = 2 * 8 * 8 + 2 * (2 * 8 + 2 * 4) + 4 * 4 + 4 * 2 * 2 + 4 * 2 * 16  # norms, attention, sums, tables, MLP
VISION_BLOCK = 2 * 8 * 4 + 4 * 2 * 4 + 4 * 2 * 6


def test_a_layer_keeps_what_its_operations_save(shape):
    assert text_layer(shape.text, 2) == TEXT_LAYER == 336
    assert vision_block(shape.vision, 2) == VISION_BLOCK == 144
    assert vision_block(replace(shape.vision, gated=False), 2) == 2 * 4 * 4 + 4 * 2 * 4 + 2 * 2 * 6


def test_fp32_keeps_twice_as_much_but_for_what_is_fp32_anyway(shape):
    assert text_layer(shape.text, 4) == 2 * 12 * 8 + 4 * 24 + 4 * 4 + 4 * 4 * 2 + 4 * 4 * 16


def test_norms_of_queries_and_keys_add_theirs(shape):
    assert text_layer(replace(shape.text, query_norms=True), 2) - TEXT_LAYER == (4 + 2) * (8 + 4)


def test_the_head_is_the_vocabulary_three_times_in_fp32(shape):
    assert head(shape.text) == 3 * 4 * 32
    found = activations(shape, Pass(tokens=10, trained=1000, pictures=0), 2, checkpointing=True)
    assert found.head == 1000 * 3 * 4 * 32
    assert found.total == found.text + found.vision + found.head
    assert forward_working(shape, Pass(10, 1000, 0), 2) == 1000 * 2 * 4 * 32


def test_without_checkpointing_every_layer_is_kept(shape):
    found = activations(shape, Pass(tokens=10, trained=0, pictures=0), 2, checkpointing=False)
    assert found.text == 10 * (3 * TEXT_LAYER + 8 * 8)  # and the last norm


def test_with_checkpointing_a_layer_keeps_its_input_and_one_is_made_again(shape):
    found = activations(shape, Pass(tokens=10, trained=0, pictures=0), 2, checkpointing=True)
    assert found.text == 10 * (3 * 2 * 8 + 8 * 8)
    assert found.layer == 10 * (TEXT_LAYER + 2 * (2 * 16 + 2 * 8))


def test_a_frozen_tower_keeps_nothing_and_a_projector_behind_it_only_its_own(shape):
    work = Pass(tokens=100, trained=10, pictures=50)
    tower_frozen = replace(shape, trained=replace(shape.trained, vision=0))
    both_frozen = replace(shape, trained=replace(shape.trained, vision=0, projector=0))
    kept = [activations(s, work, 2, checkpointing=False).vision for s in (both_frozen, tower_frozen, shape)]
    assert kept[0] == 0 < kept[1] < kept[2]
    assert kept[2] - kept[1] == 50 * 4 * (2 * VISION_BLOCK + 2 * 12)  # 4 patches a token, 2 blocks, and their numbers


@pytest.mark.parametrize("width", [2, 4])
@given(tokens=st.integers(1, 10_000), trained=st.integers(0, 10_000), pictures=st.integers(0, 10_000))
def test_more_work_never_takes_less_and_checkpointing_never_keeps_more(shape, width, tokens, trained, pictures):
    work = Pass(tokens, trained, pictures)
    whole, checkpointed = (activations(shape, work, width, checkpointing=on) for on in (False, True))
    assert checkpointed.text + checkpointed.vision <= whole.text + whole.vision
    for more in (replace(work, tokens=tokens + 1), replace(work, trained=trained + 1)):
        assert activations(shape, more, width, checkpointing=True).total >= checkpointed.total
