"""What the service's figures are made of, and whether they reach what is asked of them. Pure.

Always true: a figure that could not be measured counts as missed; what is compared question by question did the same
work on both sides; what must never happen is a problem in words, apart from the figures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from workflows.bench.ratios import paired, steady_rate
from workflows.bench.serve_exchange import Exchange, Outcome

OVERHEAD_MS = 15.0
OVERHEAD_THROUGHPUT = 0.25
FIRST_STEP_MS = 150.0
TEXTS_PER_S = 20.0
MEMORY_GROWTH = 0.05
P99_RATIO = 2.0
WHOLE_S = 45.0
WARM_SHARE = 0.2  # of a load, before what it does and holds counts
NEAR_BEST = 0.95  # of the most answers a second: the fewest clients that reach this are the capacity's


@dataclass(frozen=True)
class Verdict:
    """A figure and the most that it may be. `unit`: ms | s | share | x | "" for a count."""

    says: str
    value: float | None
    bound: float
    unit: str

    @property
    def reached(self) -> bool:
        return self.value is not None and self.value <= self.bound


def verdicts(*made: Verdict) -> list[dict[str, Any]]:
    """As JSON takes them."""
    return [asdict(one) | {"reached": one.reached} for one in made]


def quantile(values: Sequence[float], share: float) -> float | None:
    """The least value that this share of all do not exceed; None of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def rate(ended: Sequence[float], began: float, seconds: float) -> float:
    """Answers a second while a crowd asked for so long, the time in which it gathered left out."""
    until = began + seconds
    return steady_rate([(at, 1) for at in ended], until - (1 - WARM_SHARE) * seconds, until)


# --- overhead ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SidePass:
    """One side's work, once: the same questions one at a time, then many at once. `per_s`: answers a second then."""

    seconds: tuple[float, ...]
    sampled: tuple[int, ...]  # tokens, by question
    per_s: float


def overhead(service: Sequence[SidePass], bare: Sequence[SidePass]) -> dict[str, Any]:
    """Of neighbouring passes. Raises ValueError for sides of different lengths, or none.

    `noise_ms` is what a side differs from itself between two passes, by the same pairing: no difference below it means
    anything. None with one pass of each.
    """
    cost = paired([one.per_s for one in service], [one.per_s for one in bare])
    pairs = [_differences(ours, theirs) for ours, theirs in zip(service, bare, strict=True)]
    all_ms = [ms for found in pairs for ms in found]
    asked = sum(len(one.seconds) for one in bare)
    middle = median(all_ms) if all_ms else None
    again = [_differences(side[i + 1], side[i]) for side in (service, bare) for i in range(len(side) - 1)]
    noise = [abs(median(found)) for found in again if found]
    return {
        "median_ms": middle,
        "by_pass_ms": [median(found) if found else None for found in pairs],
        "p95_ms": quantile(all_ms, 0.95),
        "noise_ms": max(noise, default=None),
        "same_work": len(all_ms) / asked if asked else 0.0,
        "service_ms": [_middle_ms(one) for one in service],
        "bare_ms": [_middle_ms(one) for one in bare],
        "service_per_s": [one.per_s for one in service],
        "bare_per_s": [one.per_s for one in bare],
        "throughput_cost": 1.0 - cost.median,
        "throughput_cost_low": 1.0 - cost.high,
        "throughput_cost_high": 1.0 - cost.low,
        "verdicts": verdicts(
            Verdict("added to a request, median", middle, OVERHEAD_MS, "ms"),
            Verdict("answers a second lost, many clients", 1.0 - cost.median, OVERHEAD_THROUGHPUT, "share"),
        ),
        "problems": [],
    }


def _differences(one: SidePass, other: SidePass) -> list[float]:
    """Milliseconds by which `one` took longer, of questions on which both sampled as many tokens."""
    rows = zip(one.seconds, other.seconds, one.sampled, other.sampled, strict=True)
    return [(mine - its) * 1000 for mine, its, tokens, others in rows if tokens == others]


def _middle_ms(one: SidePass) -> float | None:
    return median(one.seconds) * 1000 if one.seconds else None


# --- steps ------------------------------------------------------------------------------------------------------------


def steps(alone: Sequence[Exchange], crowd: Sequence[Exchange]) -> dict[str, Any]:
    """Streams of one client at a time, and of many at once: how soon a step is told, and how often text is."""
    first = [one.first_step_s * 1000 for one in alone if one.first_step_s is not None]
    answered = [one for one in (*alone, *crowd) if one.outcome is Outcome.ANSWERED]
    most = max((one.texts_per_s for one in answered), default=None)
    return {
        "streams": len(answered),
        "first_step_median_ms": quantile(first, 0.5),
        "first_step_p95_ms": quantile(first, 0.95),
        "texts_per_s": most,
        "verdicts": verdicts(
            Verdict("first step of a request, median", quantile(first, 0.5), FIRST_STEP_MS, "ms"),
            Verdict("first step of a request, p95", quantile(first, 0.95), FIRST_STEP_MS, "ms"),
            Verdict("texts in a client's fullest second", most, TEXTS_PER_S, ""),
        ),
        "problems": failures((*alone, *crowd)),
    }


# --- load -------------------------------------------------------------------------------------------------------------


def capacity(levels: Mapping[int, float]) -> int:
    """The fewest clients that get nearly as many answers a second as any number does. Raises ValueError for none."""
    best = max(levels.values())
    return min(clients for clients, per_s in levels.items() if per_s >= NEAR_BEST * best)


def overload(
    load: Sequence[Exchange],
    p99_at_capacity_s: float | None,
    memory: Sequence[tuple[float, Mapping[str, float]]] | None,
    *,
    deadline_s: float,
    unsent: int,
) -> dict[str, Any]:
    """What became of more requests than can be answered.

    `memory`: seconds since the beginning, and MiB by role; None where the processes are on another machine.
    """
    by = Counter(one.outcome for one in load)
    accepted = [one.seconds for one in load if one.outcome is Outcome.ANSWERED]
    refused = [one for one in load if one.outcome is Outcome.REFUSED]
    p99 = quantile(accepted, 0.99)
    ratio = p99 / p99_at_capacity_s if p99 and p99_at_capacity_s else None
    grown = growth(memory or ())
    held = [] if memory is None else [Verdict("memory grown after warm-up", grown.get("all"), MEMORY_GROWTH, "share")]
    late = sum(one.seconds > deadline_s for one in load)
    mute = sum(one.retry_after_s is None for one in refused)
    problems = failures(load)
    problems += [f"{late} requests ended after their deadline of {deadline_s:g} s"] * bool(late)
    problems += [f"{mute} refusals had no Retry-After"] * bool(mute)
    problems += [f"{unsent} requests were not sent: too many waited"] * bool(unsent)
    return {
        "requests": len(load),
        "outcomes": {outcome.value: by[outcome] for outcome in Outcome},
        "p99_s": p99,
        "p99_at_capacity_s": p99_at_capacity_s,
        "refused_after_ms": {name: _ms(quantile([one.seconds for one in refused], share)) for name, share in _SHARES},
        "memory_growth": grown,
        "memory_mib": memory[-1][1] if memory else {},
        "verdicts": verdicts(
            Verdict("p99 of answered requests, to that at capacity", ratio, P99_RATIO, "x"),
            *held,
            Verdict("requests neither answered nor refused", by[Outcome.FAILED] + by[Outcome.HUNG], 0.0, ""),
        ),
        "problems": problems,
    }


_SHARES = (("median", 0.5), ("p99", 0.99))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def growth(memory: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """By role, and of all: the median of the last fifth of the time over that of the fifth after warm-up, less one."""
    if not memory:
        return {}
    length = memory[-1][0]
    early = [mib for at, mib in memory if WARM_SHARE * length <= at <= 2 * WARM_SHARE * length]
    late = [mib for at, mib in memory if at >= (1 - WARM_SHARE) * length]
    if not early or not late:
        return {}
    roles = sorted({role for mib in (*early, *late) for role in mib})
    grown = {role: _grown([m.get(role, 0.0) for m in early], [m.get(role, 0.0) for m in late]) for role in roles}
    return {"all": _grown([sum(m.values()) for m in early], [sum(m.values()) for m in late]), **grown}


def _grown(early: Sequence[float], late: Sequence[float]) -> float:
    before = median(early)
    return median(late) / before - 1.0 if before else 0.0


# --- weights and deaths -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Swap:
    """`mmsearch serve update` under load: when it was called, and when it said that the version runs everywhere."""

    began: float
    ended: float
    version: int


def swaps(load: Sequence[Exchange], made: Sequence[Swap]) -> dict[str, Any]:
    """Requests while weights were swapped. `everywhere_s`: from the call to the last answer of older weights."""
    answered = [one for one in load if one.outcome is Outcome.ANSWERED]
    wrong = sum(one.outcome in (Outcome.FAILED, Outcome.HUNG) for one in load)
    older = [[one for one in answered if one.version < swap.version] for swap in made]
    stale = sum(one.began > swap.ended for swap, those in zip(made, older, strict=True) for one in those)
    problems = failures(load)
    problems += [f"{stale} requests that came after a swap were answered by older weights"] * bool(stale)
    problems += ["an answer does not say which weights gave it"] * any(one.version < 0 for one in answered)
    return {
        "requests": len(load),
        "versions": {str(version): n for version, n in sorted(Counter(one.version for one in answered).items())},
        "command_s": [swap.ended - swap.began for swap in made],
        "everywhere_s": [
            max((one.ended - swap.began for one in those if one.ended > swap.began), default=0.0)
            for swap, those in zip(made, older, strict=True)
        ],
        "refused": sum(one.outcome is Outcome.REFUSED for one in load),
        "verdicts": verdicts(Verdict("requests failed while weights were swapped", float(wrong), 0.0, "")),
        "problems": problems,
    }


@dataclass(frozen=True)
class Death:
    """A replica that was killed: when, and when the service was whole again (None: not within its time).

    `held`: the most requests that any one replica was seen to have just before it.
    """

    at: float
    whole_at: float | None
    held: int = 0


def deaths(load: Sequence[Exchange], suffered: Sequence[Death], replicas: int) -> dict[str, Any]:
    """Requests while agents were killed. `longest_gap_s`: between two answers, from a death until all was whole.

    Which replica a request was on, no client knows. So a death excuses no more failures than the dead can have had: its
    even share of those in flight, or what one replica was seen to have.
    """
    wrong = [one for one in load if one.outcome in (Outcome.FAILED, Outcome.HUNG)]
    in_flight = [sum(one.began <= death.at < one.ended for one in load) for death in suffered]
    most = [max(math.ceil(n / replicas), death.held) for n, death in zip(in_flight, suffered, strict=True)]
    died = Counter(death for one in wrong if (death := _struck_by(one, suffered)) is not None)
    struck = sum(min(died[i], most[i]) for i in range(len(suffered)))
    beside = len(wrong) - struck
    whole = [None if death.whole_at is None else death.whole_at - death.at for death in suffered]
    slowest = None if None in whole else max((s for s in whole if s is not None), default=None)
    gaps = [_gap(load, death) for death in suffered]
    problems = [f"{beside} requests failed that were not in flight on the replica that died"] * bool(beside)
    if unshaped := sum(not one.shaped for one in load if one.outcome in (Outcome.FAILED, Outcome.REFUSED)):
        problems.append(f"{unshaped} errors had not OpenAI's shape")
    if hanging := sum(one.outcome is Outcome.HUNG for one in wrong):
        problems.append(f"{hanging} requests hung")
    problems += ["the service did not become whole again"] * (None in whole)
    made = [
        Verdict("requests failed beside those in flight", float(beside), 0.0, ""),
        Verdict("whole again after a replica's death, slowest", slowest, WHOLE_S, "s"),
    ]
    if replicas > 1:
        first = min((death.at for death in suffered), default=math.inf)  # who waited for a death tells nothing usual
        usual = quantile([o.seconds for o in load if o.outcome is Outcome.ANSWERED and o.ended <= first], 0.99)
        made.append(Verdict("longest time without an answer", max(gaps, default=None), max(2.0, usual or 0.0), "s"))
    return {
        "replicas": replicas,
        "requests": len(load),
        "failed_in_flight": struck,
        "in_flight": in_flight,
        "most_on_one": most,
        "refused": sum(one.outcome is Outcome.REFUSED for one in load),
        "whole_s": whole,
        "longest_gap_s": gaps,
        "said": dict(Counter(one.problem for one in wrong).most_common(3)),
        "verdicts": verdicts(*made),
        "problems": problems,
    }


def _struck_by(one: Exchange, suffered: Sequence[Death]) -> int | None:
    """The last death that came while it was in flight."""
    return next((i for i in reversed(range(len(suffered))) if one.began <= suffered[i].at < one.ended), None)


def _gap(load: Sequence[Exchange], death: Death) -> float:
    until = death.whole_at if death.whole_at is not None else max((one.ended for one in load), default=death.at)
    answers = [o.ended for o in load if o.outcome is Outcome.ANSWERED and death.at < o.ended < until]
    times = [death.at, *sorted(answers), until]
    return max(after - before for before, after in pairwise(times))


def failures(load: Sequence[Exchange]) -> list[str]:
    """What must not happen to any request, in words; nothing where nothing did."""
    found: list[str] = []
    for outcome in (Outcome.FAILED, Outcome.HUNG):
        those = [one for one in load if one.outcome is outcome]
        if those:
            said = Counter(one.problem for one in those).most_common(1)[0][0]
            found.append(f"{len(those)} requests {outcome}, most of them: {said}")
    if unshaped := sum(not one.shaped for one in load if one.outcome in (Outcome.FAILED, Outcome.REFUSED)):
        found.append(f"{unshaped} errors had not OpenAI's shape")
    return found
