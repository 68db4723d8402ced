"""What the bench of asynchronous training is asked to do: arms, tool traces, steps, seeds. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cluster.errors import UserError


@dataclass(frozen=True)
class Arm:
    """One way of scheduling the same training."""

    name: str
    says: str
    max_staleness: int
    rounds: bool = False  # every turn of all episodes waits for the slowest


@dataclass(frozen=True)
class ToolTrace:
    """How long tools take, beyond what they take anyway. Log-normal; the same query takes the same time everywhere."""

    name: str
    median_s: float = 0.0  # 0: nothing is injected
    p99_s: float = 0.0
    per_second: float = 0.0  # requests that each search endpoint allows; 0: no quota
    burst: int = 1

    @property
    def says(self) -> str:
        latency = f"log-normal, median {self.median_s:g} s, p99 {self.p99_s:g} s" if self.median_s else "none injected"
        return f"{latency}; {self.per_second:g} requests/s per endpoint" if self.per_second else latency


ARMS = (
    Arm("rounds", "round-synchronous: every turn of all episodes waits for the slowest", 0, rounds=True),
    Arm("sync", "synchronous steps, no barrier between turns", 0),
    Arm("async-1", "asynchronous, staleness 1", 1),
    Arm("async-2", "asynchronous, staleness 2", 2),
    Arm("async-4", "asynchronous, staleness 4", 4),
)
TRACES = (
    ToolTrace("near-zero"),  # first: in its `sync` arm the uncontended costs are measured
    ToolTrace("log-normal", 0.4, 3.0),
    ToolTrace("quota", 0.4, 3.0, per_second=5.0, burst=5),
)
BY_NAME = {arm.name: arm for arm in ARMS}
QUICK = {"log-normal": ("rounds", "sync", "async-1", "async-2", "async-4")}
QUICK_OTHERS = ("sync", "async-2")  # fifteen minutes hold no more
CALIBRATION = ("near-zero", "sync")  # trace and arm: nothing overlaps there


@dataclass(frozen=True)
class AsyncForm:
    """How much is run."""

    steps: int = 10
    # optimiser steps of each run
    seeds: int = 1
    # of each arm under each trace; seed i is run.seed + i
    full: bool = False
    # every arm under every trace; else those that the targets are about
    arms: tuple[str, ...] = ()
    # only these; all when empty
    traces: tuple[str, ...] = ()
    # only these; all when empty
    reward: float = 0.75
    # mean reward of sampled episodes, over three steps, that the time is told to
    refill: bool = False
    # groups whose episodes all score alike are replaced, as in a real run: batches stay equal, episodes played do not
    evaluation: int = 0
    # test questions that the last weights are asked, or as many as there are; 0: none

    @classmethod
    def asked(
        cls,
        full: bool,
        steps: int | None,
        seeds: int | None,
        arms: tuple[str, ...],
        traces: tuple[str, ...],
        reward: float,
        refill: bool,
    ) -> AsyncForm:
        """The quick form or the full one, with what of it is to be different."""
        usual = FULL if full else cls()
        return replace(
            usual,
            steps=steps or usual.steps,
            seeds=seeds or usual.seeds,
            arms=arms,
            traces=traces,
            reward=reward,
            refill=refill,
        )

    def check(self) -> None:
        """Raise `UserError` for what there is not."""
        _known("--arm", self.arms, [arm.name for arm in ARMS])
        _known("--trace", self.traces, [trace.name for trace in TRACES])

    def pairs(self) -> list[tuple[ToolTrace, Arm]]:
        """What is run for each seed, in order."""
        found: list[tuple[ToolTrace, Arm]] = []
        for trace in TRACES:
            if self.traces and trace.name not in self.traces:
                continue
            usual = [arm.name for arm in ARMS] if self.full or self.arms else QUICK.get(trace.name, QUICK_OTHERS)
            found += [(trace, arm) for arm in ARMS if arm.name in (self.arms or usual)]
        return found


FULL = AsyncForm(steps=45, seeds=3, full=True, evaluation=500)  # with fewer, two points are within the noise


def _known(option: str, given: tuple[str, ...], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{option} is {name!r} and must be one of {', '.join(known)}.")
