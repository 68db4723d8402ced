"""A run on a real Ray cluster whose nodes come and go, as a process of its own; prints what it saw as one line of JSON.

Everything that decides is real: Ray's nodes and actors, the controller, its fleet, the recruiter. Only the engines are
actors that sleep, and the learner does, too; but what it trains on is as large as an episode, and it fetches that.
"""

import asyncio
import itertools
import json
import os
import sys
import time
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray is imported: the nodes of its test cluster start without tokens

import numpy as np
import ray
from ray.cluster_utils import Cluster

from actors.agent.trajectory import Ending, Failure, Question, Summary
from cluster.runtime import RuntimeSettings, connect
from workflows.grpo.controller import Controller
from workflows.grpo.ray_ports import RayRecruiter, RaySampler, fetch
from workflows.grpo.settings import GrpoSettings
from workflows.grpo.work_buffer import GroupState

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
WAIT_S = 120.0  # for Ray to notice what a node did
PAYLOAD_BYTES = 256 << 10  # beyond what Ray returns within its message: it lies in the object store of a node
SETTINGS = GrpoSettings(
    steps=100_000, groups_per_step=3, group_size=4, max_staleness=1, samplers=1, max_samplers=3, episodes_per_sampler=8,
    checkpoint_every=100_000, ready_timeout_s=60, probe_every_s=1, filter_zero_variance=False,
)  # fmt: skip


class SleepingSampler:
    def __init__(self):
        self.version, self.episodes, self.node = None, 0, ray.get_runtime_context().get_node_id()

    async def ready(self):
        return {}

    async def update(self, version):
        await asyncio.sleep(0.02)
        self.version = version

    @ray.method(num_returns=2)
    async def run(self, question, index, sampling, policy):
        assert self.version is not None, "an episode came before the weights"
        self.episodes, began = self.episodes + 1, self.version
        await asyncio.sleep(0.3 + 0.05 * index)
        self.episodes -= 1
        extra = {"tokens_by_version": {began: 10}, "node": self.node}
        good, reward = (Ending.ANSWERED, Failure.NONE), float(index % 2)
        summary = Summary(question.id, index, reward, 1.0, *good, 0, 10, 20, began, began, 1.0, extra)
        return summary, np.zeros(PAYLOAD_BYTES, np.uint8)

    async def cancel(self, question_id, sample_index=None):
        return 0

    async def healthy(self):
        return True

    async def stats(self):
        return {"episodes": self.episodes, "running": self.episodes, "waiting": 0, "sampled_tokens": 0}

    async def close(self):
        return None


class Others:
    """Learner, storage and recorder."""

    def __init__(self):
        self.trained, self.said, self.live, self.nodes, self.stale = [], [], [], set(), 0

    async def train(self, groups, version):
        """Slower than the samplers, so that finished groups wait for it."""
        await asyncio.sleep(1.0)
        payloads = [payload for group in groups for payload in group.payloads]
        assert {payload.size for payload in await fetch(payloads)} == {PAYLOAD_BYTES}
        self.trained += [group.id for group in groups]
        return {}

    async def publish(self, version):
        return version

    async def save(self, state, finished):
        return None

    async def step(self, step, metrics, groups):
        self.stale = max(self.stale, metrics["staleness/max"])
        self.live.append(int(metrics["samplers/live"]))
        self.nodes |= nodes_of(groups)

    async def evaluated(self, step, metrics):
        return None

    def say(self, message):
        self.said.append(message)


def nodes_of(groups):
    return {summary.extra["node"] for group in groups for summary in group.summaries}


async def main(nodes):
    others, numbers, made = Others(), itertools.count(), []

    def another():
        start = ray.remote(SleepingSampler).options(num_cpus=1, max_concurrency=100).remote
        made.append(RaySampler(f"sampler-{next(numbers)}", start))
        return made[-1]

    first = another()
    await first.ready()
    questions = {f"q{i}": Question(f"q{i}", "?") for i in range(200)}
    recruiter = RayRecruiter(another, 60.0, made.remove)
    c = Controller(SETTINGS, questions, [first], others, others, others, recruiter=recruiter, episode_s=30)
    run = asyncio.create_task(c.run())
    seen = {}

    def finished():
        return [c.rollouts.results[group.id] for group in c.buffer.groups(GroupState.FINISHED)]

    def others_play():
        return any(place.running for place in c.fleet.places if place.name != first.name and not place.fenced)

    async def when(what, condition):
        began = time.monotonic()
        while not condition():
            assert not run.done(), run.result()
            assert time.monotonic() - began < WAIT_S, (what, others.said, others.live[-3:])
            await asyncio.sleep(0.1)
        seen[what] = time.monotonic() - began

    await when("three steps alone", lambda: len(others.live) >= 3)
    alone = set(others.live)
    second = nodes.add_node(**NODE)
    await when("two samplers", lambda: others.live[-1] == 2)
    third = nodes.add_node(**NODE)
    await when("three nodes have sampled", lambda: others.live[-1] == 3 and len(others.nodes) == 3)
    await when("work of the second waits for the learner", lambda: second.node_id in nodes_of(finished()))
    nodes.remove_node(second, allow_graceful=False)
    await when("one has left", lambda: any("has left" in line for line in others.said))
    steps = len(others.live)
    await when("steps without it", lambda: len(others.live) > steps + 3 and others.live[-1] == 2)
    await when("the third plays", others_play)
    nodes.remove_node(third, allow_graceful=False)
    await when("alone again", lambda: others.live[-1] == 1)
    c.stop("seen enough")
    end = await run
    b = c.buffer
    return {
        "alone": sorted(alone), "steps": end.step, "twice": len(others.trained) - len(set(others.trained)),
        "stale": others.stale, "masked": c.totals["episodes/masked"], "reissued": c.totals["episodes/failed_attempts"],
        "books": b.admitted == b.released + b.held, "left": [line for line in others.said if "has left" in line],
        "seconds": seen, "samplers": [sampler.name for sampler in made],
    }  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.getcwd())  # workers import this package
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        with connect(RuntimeSettings(address=cluster.address)):
            Path(sys.argv[1]).write_text(json.dumps(asyncio.run(main(cluster))))
    finally:
        cluster.shutdown()
