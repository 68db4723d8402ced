"""`mmsearch bench async`: what asynchrony is worth, on real GRPO runs that differ in scheduling alone.

    for each seed, tool trace and arm:  workflows.grpo.run.train(plan)  ->  <run>/bench/async/<trace>/<arm>/seed-<n>

Every run starts from the same checkpoint, is asked the same questions in the same order in batches of the same size,
and meets the same injected latency for the same query. A run that was made with the same settings is not made again,
so a bench that was stopped continues. The run's own training is left alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from actors.model.load import check_model_folder
from cluster import machine, runtime
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.bench import async_tables
from workflows.bench.async_evaluation import Evaluation
from workflows.bench.async_form import AsyncForm
from workflows.bench.async_numbers import RunNumbers
from workflows.bench.async_report import Report, Setting
from workflows.bench.async_runs import Run, carry_out, known, run_of
from workflows.grpo.cast import Plan
from workflows.grpo.plan import plan_of
from workflows.run_folder import RunFolder

FOLDER, RESULTS = "bench/async", "results.json"


def run(settings: Any, form: AsyncForm, *, again: bool = False, as_json: bool = False) -> None:
    """The command. Raise `UserError`; KeyboardInterrupt when stopped. `again`: also what was made before."""
    form.check()
    plan = plan_of(settings)
    root = RunFolder(settings.run.folder).root / FOLDER
    _check_start(plan)
    evaluation = Evaluation.of(settings, form.evaluation) if form.evaluation else None
    made = _all(plan, runs_of(plan, root, form, evaluation), again, Console(stderr=True))
    traces = tuple(dict.fromkeys(trace for trace, _ in form.pairs()))
    setting = Setting(plan.model, traces, plan.grpo.groups_per_step, plan.grpo.group_size, machine.cores())
    report = Report(setting, made)
    document = document_of(report, form)
    root.write_json(RESULTS, document)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        async_tables.show(report, form, Console(width=async_tables.COLUMNS))


def runs_of(plan: Plan, root: Folder, form: AsyncForm, evaluation: Evaluation | None = None) -> list[Run]:
    """Seed by seed, so that a bench that is stopped has whole comparisons."""
    return [
        run_of(plan, root, trace, arm, plan.seed + number, form, evaluation)
        for number in range(form.seeds)
        for trace, arm in form.pairs()
    ]


def document_of(report: Report, form: AsyncForm) -> dict[str, Any]:
    """What is reported, as JSON takes it."""
    return {
        "setting": dataclasses.asdict(report.setting),
        "latency": "injected",
        "form": dataclasses.asdict(form),
        "runs": [
            {name: value for name, value in dataclasses.asdict(one).items() if name != "answers"}  # those the run has
            | {"mean_s": one.mean_s, "median_s": one.median_s, "wall_s": one.wall_s}
            | {"exact_match": one.exact_match, "asked": len(one.answers), "controller_share": one.controller_share}
            | {"lower_bound_s": report.bound_s(one)}
            for one in report.runs
        ],
        "findings": [dataclasses.asdict(one) | {"verdict": one.verdict} for one in report.findings()],
    }


def _check_start(plan: Plan) -> None:
    plan.check()
    model = Folder(plan.model)
    if not model.exists("config.json"):
        raise UserError(
            f"The bench starts every arm from the model at {model}, which is not there: run `mmsearch demo"
            f" run.name={plan.name}` first, or name another run with run.storage or another model with grpo.start_from."
        )
    if model.is_local:
        check_model_folder(model.local_path)


def _all(plan: Plan, runs: Sequence[Run], again: bool, console: Console) -> list[RunNumbers]:
    made: list[RunNumbers] = []
    with runtime.connect(plan.cluster):
        for number, one in enumerate(runs, start=1):
            found = None if again else known(one)
            what = f"bench async, {number} of {len(runs)}: {one.trace.name}, {one.arm.name}, seed {one.seed}"
            if found is None:
                console.print(f"{what}: {one.arm.says}", highlight=False, soft_wrap=True)
                found = carry_out(one)
            console.print(f"{what}: {async_tables.line_of(found)}", highlight=False, soft_wrap=True)
            made.append(found)
    return made
