"""Actors on nodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import UserError
from workflows.capacity.placement import Actors, gpus_needed, place


def test_the_papers_cast_fills_four_nodes_of_eight():
    actors = [Actors("rank", 16, 4, 1), Actors("sampler", 16, 4, 1), Actors("worker", 8, 0.25, 0)]
    nodes = place(actors, 8)
    assert [node.actors.get("rank", 0) for node in nodes] == [8, 8, 0, 0]
    assert [node.actors.get("sampler", 0) for node in nodes] == [0, 0, 8, 8]
    assert [node.actors["worker"] for node in nodes] == [2, 2, 2, 2]  # where the fewest CPUs are taken
    assert (gpus_needed(actors), nodes[0].free_gpus, nodes[0].cpus) == (32, 0, 32.5)


def test_the_gpus_of_an_actor_are_on_one_node():
    nodes = place([Actors("rank", 3, 1, 1), Actors("sampler", 2, 1, 4)], 8)
    assert [node.actors for node in nodes] == [{"sampler": 2}, {"rank": 3}]
    with pytest.raises(UserError, match="A sampler needs 16 GPUs of one node, and a node has 8"):
        place([Actors("sampler", 1, 1, 16)], 8)


def test_shares_of_a_gpu_share_one():
    assert len(place([Actors("rank", 16, 1, 0.5)], 8)) == 1
    assert len(place([Actors("rank", 17, 1, 0.5)], 8)) == 2


def test_a_gang_without_gpus_stands_together():
    actors = [Actors("sampler", 9, 1, 1), Actors("rank", 2, 1, 0, gang=True), Actors("worker", 3, 1, 0)]
    assert [node.actors.get("rank", 0) for node in place(actors, 8)] == [2, 0]
    assert [node.actors.get("worker", 0) for node in place(actors, 8)] == [0, 3]


def test_cpus_are_of_one_node_where_they_are_known():
    actors = [Actors("rank", 4, 4, 1), Actors("worker", 5, 1, 0)]
    assert [node.actors for node in place(actors, 8, 8)] == [{"rank": 2}, {"rank": 2}, {"worker": 5}]
    with pytest.raises(UserError, match=r"A rank needs 4 CPUs of one node, and a node has 3\.5"):
        place(actors, 8, 3.5)


def test_a_run_without_gpus_is_on_one_node():
    nodes = place([Actors("rank", 1, 1, 0), Actors("sampler", 2, 1, 0)], 8)
    assert [node.actors for node in nodes] == [{"rank": 1, "sampler": 2}]


@given(
    st.lists(
        st.builds(
            Actors, st.sampled_from("abc"), st.integers(1, 9), st.floats(0, 8), st.sampled_from([0, 0.5, 1, 2, 4, 8])
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda some: some.role,
    )
)
def test_everyone_is_placed_once_and_no_node_is_overfull(actors):
    nodes = place(actors, 8, 16)
    for some in actors:
        assert sum(node.actors.get(some.role, 0) for node in nodes) == some.count
    assert all(node.free_gpus >= -1e-9 and node.cpus <= 16 + 1e-6 for node in nodes)
    assert len(nodes) >= gpus_needed(actors) / 8
