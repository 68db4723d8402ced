"""What is told when a tool was refused for good in the middle of a run: what the rest of the run would need.

Pure. Amounts of a budget are in its own unit: requests, tokens or USD.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from actors.search.build import endpoint_name
from actors.search.settings import ProviderSettings, SearchSettings
from actors.search.store.settings import Mode
from workflows.grpo.settings import GrpoSettings

Spending = Mapping[str, Mapping[str, float]]  # of one endpoint: "day" and "month" -> requests, tokens, usd
FIGURES = 2  # that an estimate is worth; it is rounded up to them


@dataclass(frozen=True)
class SpentBudget:
    """A budget that has no room for one more request. `spent`: in its window, by whoever; `used`: by this part."""

    endpoint: str
    window: str  # day or month
    unit: str  # requests, tokens or usd
    spent: float
    used: float


@dataclass(frozen=True)
class Done:
    """Counts of a run so far. `kept`: groups that were trained on or wait for it; `ended`: those and all dropped."""

    episodes: int
    kept: int
    ended: int


@dataclass(frozen=True)
class Pace:
    """`episodes` that this part has ended; `per_step`: of them, for a step; `left`: steps whose groups are missing."""

    episodes: int
    per_step: float
    left: float


def pace(before: Done, now: Done, settings: GrpoSettings) -> Pace:
    """From the counts at the beginning of this part and at its end; dropped groups make a step take more episodes."""
    kept, ended = now.kept - before.kept, now.ended - before.ended
    dropped = ended / kept if kept else 1.0
    per_step = settings.groups_per_step * settings.group_size * dropped
    return Pace(
        now.episodes - before.episodes, per_step, max(0.0, settings.steps - now.kept / settings.groups_per_step)
    )


def spent_budgets(
    search: SearchSettings, before: Mapping[str, Spending], now: Mapping[str, Spending]
) -> list[SpentBudget]:
    """Those that refuse the next request, in the order of the configuration. `before`, `now`: by endpoint."""
    limited = {endpoint_name(endpoint): endpoint for endpoint in search.endpoints() if endpoint.quota}
    known = [name for name in limited if name in before and name in now]
    return [budget for name in known for budget in _spent(name, limited[name], before[name], now[name])]


def _spent(name: str, endpoint: ProviderSettings, before: Spending, now: Spending) -> Iterator[SpentBudget]:
    assert endpoint.quota is not None
    one = {"requests": 1.0, "tokens": float(endpoint.quota.tokens_per_call), "usd": endpoint.usd_per_call}
    for window, budget in (("day", endpoint.quota.per_day), ("month", endpoint.quota.per_month)):
        for unit, next_one in one.items():
            limit, spent = getattr(budget, unit), now[window][unit]
            if limit and round(spent + next_one - limit, 6) > 0:
                used = now["month"][unit] - before["month"][unit]  # a day may have begun in between
                yield SpentBudget(name, window, unit, spent, max(0.0, used))


def told(refusal: str, spent: Sequence[SpentBudget], pace: Pace, mode: Mode) -> str:
    """All that a person reads. `refusal`: what the tool said, endpoint first; `mode`: of the cassette.

    Other budgets that are spent are not told: an endpoint further down the list has answered for them.
    """
    if its_own := [budget for budget in spent if f" {budget.endpoint}: " in refusal]:
        what_to_do = ". ".join(advice(budget, pace) for budget in its_own)
    elif mode is Mode.REPLAY:
        what_to_do = (
            "Sampling is not reproducible, so every run asks something new: let that be asked"
            " (search.cassette.mode=replay_or_live), or recorded too (record), and start again"
        )
    else:
        what_to_do = "See to it, and start again"
    return f"{refusal.rstrip('.')}. {what_to_do}; the run continues from its checkpoint."


def advice(budget: SpentBudget, pace: Pace) -> str:
    """What a step takes of the budget, what the steps that are left would, and what to do. No full stop."""
    unit, key = budget.unit, f"per_{budget.window}.{budget.unit}"
    later = f"when a new {budget.window} has begun (UTC)"
    if not pace.episodes or not budget.used:
        return f"What a step takes of {budget.endpoint} is not known yet: start again with more ({key}), or {later}"
    per_step, whole = budget.used / pace.episodes * pace.per_step, unit != "usd"
    more = rounded_up(per_step * pace.left, whole=whole)
    steps = f"{pace.left:.1f}".removesuffix(".0")
    return (
        f"A step takes about {_number(rounded_up(per_step))} {'USD' if unit == 'usd' else unit} of {budget.endpoint},"
        f" so the {steps} steps that are left need about {_number(more)} more: start again with {key} at"
        f" {_number(rounded_up(budget.spent + more, whole=whole))}, or {later}"
    )


def rounded_up(value: float, *, whole: bool = False) -> float:
    """To `FIGURES` significant figures, and where `whole` to a whole number."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - FIGURES + 1)
    if whole:
        step = max(1.0, step)
    return math.ceil(round(value / step, 6)) * step


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
