"""Why a sampler counts as idle follows from what a step is made of, however many steps are under way."""

from collections import Counter
from types import SimpleNamespace

import pytest

from workflows.grpo.places import FleetLimits, Places
from workflows.grpo.settings import GrpoSettings
from workflows.grpo.watch import Watch
from workflows.grpo.work_buffer import WorkBuffer


@pytest.mark.parametrize("staleness", [0, 4])
@pytest.mark.parametrize(("running", "idle"), [(4, True), (5, False)])
def test_a_quarter_of_a_steps_episodes_is_a_long_tail_and_more_is_none(staleness, running, idle):
    settings = GrpoSettings(groups_per_step=4, group_size=4, max_staleness=staleness)
    places = Places(FleetLimits.of(settings, 60.0))
    place = places.add(SimpleNamespace(name="sampler-0"))
    places.set(place, fenced="")
    for episode in range(running):
        places.began(place, episode)
    now = [0.0]
    fleet = SimpleNamespace(places=places, updating=False, on_change=None)
    watch = Watch(settings, WorkBuffer(4, staleness), fleet, Counter(), lambda: now[0])
    watch.look()
    now[0] = 2.0
    assert watch.lap().get("idle/sampler_long_tail_s", 0.0) == (2.0 if idle else 0.0)
