"""metrics.jsonl -> the charts worth drawing. Pure; a curve that no run has is left out.

With one run, colours tell curves apart; with several, colours are runs and dashes are curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflows.report.charts import Chart, Line, Point, bins, smooth
from workflows.report.sources import RunFacts, number

SMOOTHED_FROM = 40  # points; fewer are drawn as they are
WINDOWS = 12  # as many smoothing windows make the whole curve
MOST_WINDOW = 25
AREA_POINTS = 40  # of a stacked area: finer is only noise
COLOURS = 8  # of the page; a ninth curve has the first one again
MOST_AREAS = 6  # runs whose idle times are drawn
BUSY = "busy"
# The colours of what a role waits for. Two that share one are of different roles, or what a learner seldom waits for.
CAUSES = {
    BUSY: 0, "publish": 1, "tool_wait": 2, "long_tail": 3, "batch_starvation": 4, "fenced": 4, "no_slot": 5,
    "checkpoint": 5, "quota_wait": 6, "evaluation": 7, "record": 7,
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """A chart and its curves: (name, the keys that may hold it, the first that a run has)."""

    title: str
    says: str
    curves: tuple[tuple[str, tuple[str, ...]], ...]
    unit: str = ""
    ceiling: float | None = None
    smooth: bool = False
    marks: bool = False


GRPO = (
    Wanted(
        "held-out questions", "A fixed set, asked on the way: exact match, and what share of the questions that need"
        " no search (free) and of those that need one (required) is searched.",
        (("exact match", ("eval/exact_match",)), ("free", ("eval/search_ratio_free",)),
         ("required", ("eval/search_ratio_required",))), ceiling=1.0, marks=True,
    ),
    Wanted(
        "reward", "Mean over all finished groups of a step, filtered ones included.",
        (("reward", ("sampled/reward/mean", "reward/mean")),), smooth=True,
    ),
    Wanted(
        "accuracy", "Share of sampled episodes that are right, by whether the question needs a search.",
        (("all", ("sampled/reward/accuracy", "reward/accuracy")),
         ("free", ("sampled/reward/accuracy_free", "reward/accuracy_free")),
         ("required", ("sampled/reward/accuracy_required", "reward/accuracy_required"))), ceiling=1.0, smooth=True,
    ),
    Wanted(
        "search ratio", "Share of sampled episodes that search, by whether the question needs it.",
        (("free", ("sampled/search/ratio_free", "search/ratio_free")),
         ("required", ("sampled/search/ratio_required", "search/ratio_required")),
         ("unlabelled", ("sampled/search/ratio_unknown", "search/ratio_unknown"))), ceiling=1.0, smooth=True,
    ),
    Wanted(
        "staleness", "Versions between the weights that sampled a token and those that it trains.",
        (("mean", ("staleness/mean_tokens",)), ("max", ("staleness/max",))), "versions",
    ),
    Wanted(
        "publish lag", "From the end of a training step until its weights run everywhere.",
        (("lag", ("publish_lag_s",)),), "s",
    ),
    Wanted(
        "mismatch KL", "Between the sampler's and the learner's probabilities of the same tokens.",
        (("KL", ("learner/mismatch_kl", "mismatch_kl")),), "nats",
    ),
    Wanted(
        "throughput", "Tokens of the policy per second of the whole run.",
        (("sampled", ("tokens/sampled_per_s",)), ("trained", ("tokens/trained_per_s",))), "tokens/s", smooth=True,
    ),
    Wanted(
        "tokens wasted", "Sampled and never trained on, per step.",
        (("all", ("tokens/never_trained_on",)),
         ("filtered", ("since_last_step/tokens/wasted_by_filter",)),
         ("stale", ("since_last_step/tokens/wasted_by_staleness",)),
         ("cancelled", ("since_last_step/tokens/wasted_by_cancelling",)),
         ("failed", ("since_last_step/tokens/wasted_by_failures",))), "tokens",
    ),
)  # fmt: skip
LOSS = Wanted("loss", "Mean over the trained tokens of a step.", (("loss", ("loss",)),), "nats")
ROLES = (("learner", "where the learner's time goes"), ("sampler", "where the samplers' time goes"))


def grpo_charts(runs: Sequence[RunFacts]) -> list[Chart]:
    """In the order of `GRPO`, then idle times by cause, for each run of its own."""
    told = [(run.name, run.curves.get("grpo", ())) for run in runs]
    charts = [chart for wanted in GRPO if (chart := overlaid(wanted, told)).lines]
    areas = [(name, lines) for name, lines in told if lines][:MOST_AREAS]
    for name, lines in areas:
        for role, title in ROLES:
            chart = idle(role, title if len(areas) == 1 else f"{title}, {name}", lines)
            charts += [chart] if chart.lines else []
    return charts


def supervised_charts(runs: Sequence[RunFacts], stage: str) -> list[Chart]:
    """Loss, and the rates of exact answers, of pretraining or fine-tuning."""
    told = [(run.name, run.curves.get(stage, ())) for run in runs]
    exact = sorted({key for _, lines in told for line in lines for key in line if key.startswith("exact/")})
    rates = Wanted(
        "exact answers", "Share of whole answers predicted word by word, by kind.",
        tuple((key.removeprefix("exact/").replace("_", " "), (key,)) for key in exact), ceiling=1.0, smooth=True,
    )  # fmt: skip
    return [chart for wanted in (LOSS, rates) if (chart := overlaid(wanted, told)).lines]


def overlaid(wanted: Wanted, told: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Chart:
    """One chart of several runs, without curves that none has, that are zero throughout, or that say the same."""
    several = sum(bool(lines) for _, lines in told) > 1
    lines: list[Line] = []
    for at_run, (run, steps) in enumerate(told):
        own: list[tuple[Point, ...]] = []
        for at_curve, (name, keys) in enumerate(wanted.curves):
            points = next((found for key in keys if (found := points_of(steps, key))), ())
            empty = not any(y is not None for _, y in points) or (at_curve and not any(y for _, y in points))
            if empty or points in own:  # a part that is the whole
                continue
            own.append(points)
            if several and len(wanted.curves) == 1:
                lines.append(_line(wanted, points, run, at_run))
            elif several:
                lines.append(_line(wanted, points, f"{run} · {name}", at_run, at_curve, name))
            else:
                lines.append(_line(wanted, points, name, at_curve))
    return Chart(wanted.title, wanted.says + _smoothing(lines), tuple(lines), wanted.unit, wanted.ceiling)


def points_of(steps: Sequence[Mapping[str, Any]], key: str) -> tuple[Point, ...]:
    """(step, value); null and what is no number is a gap, a step that does not measure it is skipped."""
    return tuple((float(step["step"]), number(step[key])) for step in steps if key in step)


def idle(role: str, title: str, steps: Sequence[Mapping[str, Any]]) -> Chart:
    """Shares of a role's time by cause, work first, stacked."""
    before, after = f"idle/{role}_", "_s"
    causes = sorted({k for step in steps for k in step if k.startswith(before) and k.endswith(after)})
    curves: dict[str, list[Point]] = {name: [] for name in (BUSY, *causes)}
    for step in steps:
        shares = _shares(step, causes, number(step.get(f"idle/{role}_busy_share")))
        for name in curves:
            curves[name].append((float(step["step"]), shares.get(name) if shares else None))
    order = [name for name in curves if any(y for _, y in curves[name])]
    if not causes or BUSY not in order:
        return Chart(title, "", ())
    most = max(1, min(AREA_POINTS, len(steps)))
    return Chart(
        title, "Shares of its time, by what it waited for.",
        tuple(
            Line(cause.replace("_", " "), bins(curves[name], most), CAUSES.get(cause, 7))
            for name in order
            for cause in [name.removeprefix(before).removesuffix(after)]
        ),
        ceiling=1.0, stacked=True,
    )  # fmt: skip


def _shares(step: Mapping[str, Any], causes: Sequence[str], busy: float | None) -> dict[str, float] | None:
    seconds = {cause: number(step.get(cause)) or 0.0 for cause in causes}
    waited = sum(seconds.values())
    if busy is None or (waited == 0 and busy == 0):
        return None
    return {BUSY: busy} | {cause: (1 - busy) * s / waited if waited else 0.0 for cause, s in seconds.items()}


def _line(wanted: Wanted, points: tuple[Point, ...], name: str, colour: int, dash: int = 0, key: str = "") -> Line:
    colour %= COLOURS
    if not wanted.smooth or len(points) < SMOOTHED_FROM:
        return Line(name, points, colour, dash, marks=wanted.marks, key=key)
    window = min(MOST_WINDOW, len(points) // WINDOWS) | 1
    faint = points if dash == 0 and len(wanted.curves) < 4 else ()  # more of them would be a thicket
    return Line(name, smooth(points, window), colour, dash, faint, key=key)


def _smoothing(lines: Sequence[Line]) -> str:
    windows = {min(MOST_WINDOW, len(line.faint) // WINDOWS) | 1 for line in lines if line.faint}
    if not windows:
        return ""
    shown = " to ".join(str(w) for w in sorted({min(windows), max(windows)}))
    return f" Bold: {shown}-step mean."
