"""The bench of the controller counts what it simulates."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from rich.console import Console

from workflows.bench.controller import (
    BufferFigures,
    ControllerLoad,
    document_of,
    simulated_buffer,
    simulated_controller,
)
from workflows.grpo.settings import GrpoSettings

QUIET = Console(quiet=True)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_every_simulated_group_ends_in_one_way(staleness):
    grpo = GrpoSettings(max_staleness=staleness)
    figures = simulated_buffer(ControllerLoad(samplers=100, groups=2000), grpo, seed=1, console=QUIET)
    assert 2000 <= figures.groups == sum(figures.ends.values())
    assert figures.ends["trained"] > figures.ends["filtered/zero_variance"] > figures.ends["cancelled/infra"] > 0
    assert "cancelled/stale" not in figures.ends


def test_every_episode_of_a_simulated_group_has_a_seat_and_gives_it_back():
    """Groups that were finished and not trained on when it ended gave theirs back, too."""
    figures = simulated_buffer(
        ControllerLoad(samplers=100, groups=2000), GrpoSettings(group_size=5), seed=1, console=QUIET
    )
    assert figures.episodes % 5 == 0
    assert figures.groups <= figures.episodes // 5 <= figures.groups + 100


def test_memory_is_looked_at_evenly_from_before_the_first_group_to_the_last():
    figures = simulated_buffer(ControllerLoad(samplers=20, groups=1000), GrpoSettings(), seed=0, console=QUIET)
    assert len(figures.rss_mib) == 21


def test_growth_is_told_from_when_everything_has_its_size():
    figures = BufferFigures(100, 800, 2.0, 1.0, {}, (10.0, 50.0, 80.0, *[80.0] * 17, 81.5))
    assert figures.growth_mib == 1.5
    assert (figures.per_s, figures.per_s_without_seats) == (50, 100)


def test_the_whole_controller_makes_its_steps_on_ports_that_answer_at_once():
    grpo = GrpoSettings(groups_per_step=2, group_size=2)
    cpu_s = asyncio.run(simulated_controller(replace(grpo, samplers=2), steps=4))
    assert len(cpu_s) == 4
    assert min(cpu_s) > 0


def test_the_overhead_is_a_share_of_a_step_of_the_runs_own_training_if_there_is_one():
    figures = BufferFigures(100, 800, 2.0, 1.0, {}, (10.0, 11.0))
    document = document_of(ControllerLoad(), GrpoSettings(), figures, [0.01, 0.03, 0.02], [2.0, 1.0, 4.0])
    assert document["controller"]["share_of_step"] == pytest.approx(0.01)
    untrained = document_of(ControllerLoad(), GrpoSettings(), figures, [0.01], [])
    assert untrained["controller"]["share_of_step"] is None
