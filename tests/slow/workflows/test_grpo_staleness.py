"""How old tokens are that a real run trains on, counted token by token in the episodes that it kept."""

import json
from itertools import pairwise

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from actors.agent.trajectory import SegmentKind
from cluster.runtime import RuntimeSettings, connect
from cluster.storage import Folder
from workflows.grpo.plan import plan_of
from workflows.grpo.recorder import training_steps
from workflows.grpo.records import trajectory_from
from workflows.grpo.run import train
from workflows.settings import load

pytestmark = pytest.mark.timeout(1500)

STEPS = 12
SMALL = [
    f"grpo.steps={STEPS}", "grpo.groups_per_step=2", "grpo.group_size=4", "grpo.trajectories_per_step=8",
    "grpo.start_check_questions=0", "grpo.checkpoint_every=100",
]  # fmt: skip


@pytest.fixture(scope="module")
def ray_running():
    """One for both runs."""
    with connect(RuntimeSettings(address="local", num_cpus=2, oversubscribe=True, object_store_mib=256)):
        yield


def run(folder, max_staleness):
    """A run's versions by trained step: for each episode, one version per sampled token, in order."""
    name = f"run.name=staleness-{max_staleness}"
    settings = load("miniature", [f"run.storage={folder}", name, *SMALL, f"grpo.max_staleness={max_staleness}"])
    assert train(plan_of(settings)).complete
    found = {}
    for step in range(1, STEPS + 1):
        rows = pq.read_table(folder / f"grpo/trajectories/step-{step:06d}.parquet").to_pylist()
        found[step] = [versions_of(trajectory_from(json.loads(row["record"]))) for row in rows]
    return found


def versions_of(trajectory):
    """One version per sampled token; the spans of a turn must leave none out and count none twice."""
    versions = []
    for segment in trajectory.segments:
        if segment.kind is SegmentKind.ACTION:
            borders = [0, *(span.end for span in segment.spans)]
            assert [(span.start, span.end) for span in segment.spans] == list(pairwise(borders))
            assert borders[-1] == len(segment.token_ids)
            versions += [span.version for span in segment.spans for _ in range(span.start, span.end)]
    return versions


def ages(found):
    """Of every token that was trained on: the version that was trained less the one that sampled it."""
    return [step - 1 - version for step, episodes in found.items() for e in episodes for version in e]


def learned(folder):
    """The largest change of any weight, from the start model to the export."""
    before, after = (load_file(folder / where / "model.safetensors") for where in ("sft/export", "grpo/export"))
    assert before.keys() == after.keys()
    return max(float((after[name].float() - before[name].float()).abs().max()) for name in before)


def test_without_staleness_every_token_is_as_new_as_the_weights_that_it_trains(prepared, ray_running):
    folder = prepared("on-policy")
    found = run(folder, 0)
    assert sum(map(len, found.values())) == STEPS * 8
    assert set(ages(found)) == {0}
    assert {step["staleness/max"] for step in training_steps(Folder(folder / "grpo"))} == {0.0}
    assert learned(folder) > 1e-3


def test_with_staleness_two_no_token_is_older_and_updates_land_inside_episodes(prepared, ray_running):
    folder = prepared("off-policy")
    found = run(folder, 2)
    assert 0 < max(ages(found)) <= 2
    assert min(ages(found)) >= 0
    assert all(step["staleness/max"] <= 2 for step in training_steps(Folder(folder / "grpo")))
    episodes = [versions for step in found.values() for versions in step]
    crossed = [versions for versions in episodes if len(set(versions)) > 1]
    print(f"{len(crossed)} of {len(episodes)} episodes were sampled under more than one version")
    assert crossed
    assert all(versions == sorted(versions) for versions in episodes)
    assert learned(folder) > 1e-3
