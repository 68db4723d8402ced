"""Who is killed in a run under fire, and what the kills come to: figures alone, no process is touched here."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

RESUMED = "continuing after step"  # what a run says when it goes on from a checkpoint
STEP = re.compile(r"^step (\d+): ", re.MULTILINE)  # what it says of each step, before it writes it down
QUIET_SHARE = 0.1  # of the time, before the first kill: how fast the run is when nobody disturbs it
STEPS_LOST = 1  # that a kill may cost, at most
TARGET_SPEED = 0.9  # of the undisturbed run, between recoveries and kills
Work = Sequence[tuple[float, float]]  # (seconds, amount)


@dataclass(frozen=True)
class Victim:
    """A kind of process. `title`: what stands in its command line; `back`: what the run says once it is there again."""

    name: str
    title: str
    how: signal.Signals = signal.SIGKILL
    back: str = ""  # "": nothing; another process of the kind shows it, and a step that was begun after the kill
    bound_s: float = 75.0  # to be whole again within; a target, which a busy machine misses


CONTROLLER = Victim("controller", "workflows.cli", back=RESUMED)
VICTIMS = (
    Victim("sampler", "ray::RolloutSampler", back=" is back", bound_s=45.0),
    Victim("engine", "VLLM::EngineCore", back=" is back", bound_s=45.0),
    Victim("sampler that hangs", "ray::RolloutSampler", signal.SIGSTOP, back=" is back", bound_s=45.0),
    Victim("search worker", "ray::SearchWorker", bound_s=45.0),
    Victim("reward evaluator", "ray::RewardEvaluator", bound_s=45.0),
    Victim("learner rank", "ray::PolicyLearner", back=RESUMED),
    CONTROLLER,
)


@dataclass(frozen=True)
class ChaosForm:
    """How long, how often, and drawn from which seed."""

    minutes: float = 30.0  # from the first step on; longer when not every kind was hit by then
    every_s: float = 60.0
    seed: int = 0

    @property
    def quiet_s(self) -> float:
        """From the first step to the first kill."""
        return max(self.every_s, 60 * self.minutes * QUIET_SHARE)


@dataclass(frozen=True)
class Kill:
    """One of them. Seconds since the run's start; `whole_s` from the kill on."""

    victim: str
    at_s: float
    step: int  # the last one recorded when it fell
    bound_s: float
    whole_s: float = 0.0
    repeated: int = 0  # steps that were recorded and had to be done again
    left: tuple[str, ...] = ()  # processes of ours that a dead controller left behind

    @property
    def late(self) -> bool:
        """Whether the run was whole again after its target only."""
        return self.whole_s > self.bound_s


def bag(seed: int) -> Iterator[Victim]:
    """All kinds in a drawn order, then all again in another one."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(VICTIMS, len(VICTIMS))


def over(form: ChaosForm, seconds: float, kills: Sequence[Kill]) -> bool:
    """Whether it is enough, `seconds` after the first step: the time is up for another kill, and no kind was spared."""
    spared = {victim.name for victim in VICTIMS} - {kill.victim for kill in kills}
    return not spared and seconds + form.every_s >= 60 * form.minutes


def whole(victim: Victim, log: str, then: int, now: int, replaced: bool) -> bool:
    """Whether the run is whole again: `log` is what it said since the kill, `then` and `now` its last recorded steps,
    `replaced` whether there is a process of the kind that was not there before.

    A run that began again must also have made a step.
    """
    if victim.back == RESUMED:
        _, resumed, since = log.rpartition(RESUMED)
        return bool(resumed and STEP.search(since))
    if victim.back:
        return victim.back in log
    # others of the kind keep the run going, so steps alone prove nothing; and one of them may have been as good as
    # done when the blow fell
    return replaced and now > then + 1


def repeated(log: str, since: int) -> int:
    """Steps done again because of a kill after the first `since` characters of what the run said."""
    again = [0]
    for resumed in re.finditer(rf"{RESUMED} (\d+)", log):
        if resumed.start() >= since and (made := STEP.findall(log, 0, resumed.start())):
            again.append(int(made[-1]) - int(resumed[1]))
    return max(again)


def rate(work: Work, windows: Sequence[tuple[float, float]]) -> float | None:
    """Work a second within windows (start, end] of seconds that do not overlap; None where they are empty."""
    length = sum(max(0.0, end - start) for start, end in windows)
    inside = sum(amount for at, amount in work if any(start < at <= end for start, end in windows))
    return inside / length if length else None


def speeds(work: Work, kills: Sequence[Kill]) -> dict[str, float | bool | None]:
    """Work a second from the first step to the first kill, and between each recovery and the next kill; and whether
    the latter reach their target. None for what cannot be told.

    `work`: when each step was recorded, in seconds since the run's start, and the episodes that were sampled for it. A
    step is no measure of its own: the better the policy, the more groups of it are scored alike and sampled in vain.
    """
    quiet = between = None
    if work and kills:
        first, last = work[0][0], work[-1][0]
        ends = [*(kill.at_s for kill in kills[1:]), last]
        windows = [(kill.at_s + kill.whole_s, end) for kill, end in zip(kills, ends, strict=True)]
        quiet, between = rate(work, [(first, kills[0].at_s)]), rate(work, windows)
    reached = between >= TARGET_SPEED * quiet if quiet and between is not None else None
    return {"undisturbed_per_s": quiet, "between_per_s": between, "speed_reached": reached}


def costs(kills: Sequence[Kill]) -> list[str]:
    """One sentence for each kill that cost more than it may, time apart: a busy machine makes that longer."""
    found = [
        f"{kill.repeated} steps were done again after a kill of the {kill.victim}, {STEPS_LOST} may be"
        for kill in kills
        if kill.repeated > STEPS_LOST
    ]
    return found + [f"{name} outlived its {kill.victim}" for kill in kills for name in kill.left]
