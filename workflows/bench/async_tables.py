"""The bench of asynchronous training for a person. Tables are Markdown, to be put where they are told of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median

from rich import box
from rich.console import Console
from rich.table import Table

from workflows.bench.async_form import CALIBRATION, AsyncForm
from workflows.bench.async_numbers import RunNumbers
from workflows.bench.async_report import Report
from workflows.bench.ratios import Spread

NOT_TOLD = "-"
FEW_STEPS = 30  # below it, what a reward or a share says is mostly noise
COLUMNS = 240  # the widest table; on a narrower terminal it wraps, in a file it is whole


def line_of(one: RunNumbers) -> str:
    """A run as soon as it is over."""
    spoilt = f"; the infrastructure failed episodes in steps {_numbers(one.spoilt)}" if one.spoilt else ""
    return f"{one.mean_s:.2f} s a steady step, {one.wall_s:.0f} s for {len(one.step_s)}{spoilt}"


def show(report: Report, form: AsyncForm, out: Console) -> None:
    """What was measured, from what, and what of it was to be reached."""
    s = report.setting
    out.print(f"Every run starts from the checkpoint {s.start}.", highlight=False, soft_wrap=True)
    out.print(
        "The tools' latency is injected: it is drawn from the query, so that the same query takes the same time in"
        f" every arm. A step is {s.groups_per_step} groups of {s.group_size} episodes;"
        f" {'groups without variance are replaced' if form.refill else 'all groups are trained on'};"
        f" {form.steps} steps, {form.seeds} seed{'s' if form.seeds > 1 else ''}, {s.cores} cores.",
        highlight=False,
        soft_wrap=True,
    )
    for trace in s.traces:
        out.print(f"\n{trace.name}: {trace.says}\n", highlight=False)
        out.print(_times(report, trace.name, form.reward))
        out.print(_waste(report, trace.name))
        out.print(_idle(report, trace.name))
    _costs(report, out)
    for one in report.runs:
        if one.spoilt:
            which = f"{one.trace}, {one.arm}, seed {one.seed}: the infrastructure failed episodes in steps"
            out.print(f"{which} {_numbers(one.spoilt)}, which are left out of s/step.", highlight=False)
    for finding in report.findings():
        sign = "at most" if finding.at_most else "at least"
        spread = " (95 % from {:.2f} to {:.2f})".format(*finding.interval) if finding.interval else ""
        told = f"{finding.says}: {finding.value:.2f}{spread}, to be {sign} {finding.bound:g}: {finding.verdict}"
        out.print(told, highlight=False, soft_wrap=True)
    if form.steps < FEW_STEPS:
        out.print(f"Of {form.steps} steps, times say something; rewards and exact match hardly do.", highlight=False)


def _times(report: Report, trace: str, target: float) -> Table:
    steps = max(len(one.step_s) for one in report.of(trace))
    table = _table(
        "", "s/step", "median", "faster than rounds", "than sync", f"s to {steps} steps", f"s to reward {target:g}",
        "exact match", "lower bound, s/step", "over it",
    )  # fmt: skip
    for arm in report.arms(trace):
        runs = report.of(trace, arm)
        reached = [one.reward_after_s(target) for one in runs]
        matches = [one.exact_match for one in runs if one.exact_match is not None]
        bounds = [bound for one in runs if (bound := report.bound_s(one))]
        table.add_row(
            arm,
            _median(runs, lambda one: one.mean_s),
            _median(runs, lambda one: one.median_s),
            _spread(report.speedup(trace, arm, "rounds")),
            _spread(report.speedup(trace, arm, "sync")),
            _median(runs, lambda one: one.wall_s, ".0f"),
            "/".join("never" if seconds is None else f"{seconds:.0f}" for seconds in reached),
            f"{fmean(matches):.1%}" if matches else NOT_TOLD,
            f"{median(bounds):.2f}" if bounds else NOT_TOLD,
            _spread(report.over_bound(trace, arm)),
        )
    return table


def _waste(report: Report, trace: str) -> Table:
    ages = sorted({age for one in report.of(trace) for age in one.staleness})
    titles = [f"{age} versions old" if age != 1 else "1 version old" for age in ages]
    table = _table("", *titles, "tokens sampled", "never trained on", "searches", "requests", "s each for quotas")
    for arm in report.arms(trace):
        runs = report.of(trace, arm)
        sampled, wasted = sum(one.sampled for one in runs), sum(one.wasted for one in runs)
        calls = sum(one.searches for one in runs)
        table.add_row(
            arm,
            *(f"{fmean(one.staleness.get(age, 0.0) for one in runs):.0%}" for age in ages),
            f"{sampled:,}",
            f"{wasted / sampled:.1%}" if sampled else NOT_TOLD,
            f"{calls:,}",
            f"{sum(one.sent for one in runs):,}",
            f"{sum(one.quota_wait_s for one in runs) / calls:.2f}" if calls else NOT_TOLD,
        )
    return table


def _idle(report: Report, trace: str) -> Table:
    """Shares of the wall-clock; what is left of a row's role is work."""
    causes = sorted({name for one in report.of(trace) for name, share in one.idle.items() if share >= 0.005})
    table = _table("idle", *(name.replace("/", ": ").replace("_", " ") for name in causes))
    for arm in report.arms(trace):
        runs = report.of(trace, arm)
        table.add_row(arm, *(f"{fmean(one.idle.get(cause, 0.0) for one in runs):.0%}" for cause in causes))
    return table


def _costs(report: Report, out: Console) -> None:
    seeds = dict.fromkeys(one.seed for one in report.runs)
    used = [found for seed in seeds if (found := report.used(seed))]
    trace, arm = CALIBRATION
    if not used:
        out.print(f"\nNo lower bound: it is measured in the arm {arm} under {trace}, on a cluster started here.")
        return
    learner, sampler, controller = (
        fmean(getattr(one, role) for one in used) for role in ("learner", "sampler", "controller")
    )
    shares = [share for one in report.of(trace, arm) if (share := one.controller_share) is not None]
    out.print(
        f"\nLower bound: a step costs {learner:.2f} CPU s of the learner and {sampler:.2f} of the samplers where they"
        f" alternate ({arm}, {trace}), on {report.setting.cores} cores; under a quota at least its requests by the"
        f" quota. Beside them {controller:.2f} CPU s of the controller, Ray's client included: {fmean(shares):.1%} of"
        " the step's time.",
        highlight=False,
        soft_wrap=True,
    )


def _numbers(spoilt: Sequence[int]) -> str:
    return ", ".join(str(i + 1) for i in spoilt)


def _table(*columns: str) -> Table:
    table = Table(box=box.MARKDOWN)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _median(runs: Sequence[RunNumbers], value: Callable[[RunNumbers], float], form: str = ".2f") -> str:
    return format(median(value(one) for one in runs), form)


def _spread(found: Spread | None) -> str:
    if found is None:
        return NOT_TOLD
    among = f" ({found.low:.2f} to {found.high:.2f})" if found.n > 1 else ""
    return f"{found.median:.2f}{among}"
