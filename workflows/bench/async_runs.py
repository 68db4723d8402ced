"""One run of the bench: the plan of an arm, and the real GRPO run that it makes.

The path is that of `mmsearch grpo` (`workflows.grpo.run.train`): an arm changes `max_staleness`, the tools' latency,
and what would only cost time here (checkpoints on the way, the check of the start, evaluations: the last weights are
asked afterwards, `async_evaluation.py`). The arm in rounds also has its episodes played under `async_rounds.in_rounds`.
Everything lands in the arm's own folder.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from cluster.storage import Folder
from cluster.telemetry import read
from cluster.trackers import Tracking
from workflows.bench.async_evaluation import Evaluation
from workflows.bench.async_form import Arm, AsyncForm, ToolTrace
from workflows.bench.async_latency import slowed
from workflows.bench.async_numbers import RunNumbers, Used, numbers, phases
from workflows.bench.async_processors import ProcessorWatch, uncontended
from workflows.bench.async_rounds import IN_ROUNDS
from workflows.grpo import manifest
from workflows.grpo.cast import Plan
from workflows.grpo.ray_ports import spending
from workflows.grpo.recorder import training_steps
from workflows.grpo.run import identity_of, train
from workflows.grpo.settings import OnlineEvaluationSettings

NUMBERS, LOG = "numbers.json", "log.txt"  # in the run's folder, beside what every GRPO run leaves
VERSION = 3  # raise it when the same run comes to other numbers
AGES = "staleness/tokens_"
LEFT = ("checkpoints", "export", "best")  # of a finished run: nobody continues from it


@dataclass(frozen=True)
class Run:
    """One run that is to be made."""

    trace: ToolTrace
    arm: Arm
    seed: int
    plan: Plan
    evaluation: Evaluation | None = None  # of its last weights

    @property
    def mark(self) -> str:
        """Another one for whatever decides the numbers; the machine left aside."""
        parts = ("engine", "search", "reward", "learner", "grpo", "limits")
        settings = {part: dataclasses.asdict(getattr(self.plan, part)) for part in parts}
        asked = self.evaluation.identity if self.evaluation else []
        decisive = [VERSION, identity_of(self.plan), settings, dataclasses.asdict(self.arm), asked]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def run_of(
    base: Plan, root: Folder, trace: ToolTrace, arm: Arm, seed: int, form: AsyncForm, evaluation: Evaluation | None
) -> Run:
    """One arm's run. `base` is the plan that `mmsearch grpo` would carry out; `root` has a folder for each run."""
    g = base.grpo
    name = f"{trace.name}/{arm.name}/seed-{seed}"
    grpo = replace(
        g,
        steps=form.steps,
        max_staleness=arm.max_staleness,
        window=None,
        filter_zero_variance=form.refill,
        start_check_questions=0,
        checkpoint_every=form.steps + 1,
        trajectories_per_step=0,
        evaluation=OnlineEvaluationSettings(),
        export="last",
    )
    search = slowed(base.search, trace, seed, name.replace("/", "-"))
    search = replace(search, max_concurrency=max(search.max_concurrency, grpo.samplers * grpo.most_per_sampler))
    changed = {"grpo": dataclasses.asdict(grpo), "search": dataclasses.asdict(search)}
    plan = replace(
        base,
        seed=seed,
        folder=root / name,
        grpo=grpo,
        search=search,
        resolved={**base.resolved, **changed},
        tracking=Tracking(()),
        policy=IN_ROUNDS if arm.rounds else None,
    )
    return Run(trace, arm, seed, plan, evaluation)


def known(run: Run) -> RunNumbers | None:
    """The numbers of this very run, if it was made before."""
    try:
        found = run.plan.folder.read_json(NUMBERS)
    except (FileNotFoundError, ValueError):
        return None
    return numbers_from(found["numbers"]) if found["mark"] == run.mark else None


def carry_out(run: Run) -> RunNumbers:
    """Train, and return what it came to. Ray is running. Raise what `train` and the evaluation raise."""
    said = io.StringIO()
    folder = run.plan.folder
    try:
        with ProcessorWatch() as watch:
            train(run.plan, resume=False, console=Console(file=said, width=160))
    finally:
        folder.write_text(LOG, said.getvalue())
    requests = {name: int(spent["month"]["requests"]) for name, spent in asyncio.run(spending(run.plan.search)).items()}
    searched = manifest.read(folder)["searches"]
    found = numbers(run.trace.name, run.arm, run.seed, read(folder), _ages(folder), searched, requests)
    answers = run.evaluation.answers(folder / "export") if run.evaluation else {}
    found = replace(found, used=_used(run, watch), answers=answers)
    folder.write_json(NUMBERS, {"mark": run.mark, "numbers": dataclasses.asdict(found)})
    for name in LEFT:
        folder.delete(name)
    return found


def numbers_from(data: dict[str, Any]) -> RunNumbers:
    """What `dataclasses.asdict` made of it, from JSON."""
    return RunNumbers(
        **{
            **data,
            "step_s": tuple(data["step_s"]),
            "reward": tuple(data["reward"]),
            "spoilt": tuple(data["spoilt"]),
            "staleness": {int(age): share for age, share in data["staleness"].items()},
            "used": Used(**data["used"]) if data["used"] else None,
        }
    )


def _used(run: Run, watch: ProcessorWatch) -> Used | None:
    """Of a step where sampling and training alternate; None elsewhere, and where nothing was seen."""
    borders = phases(training_steps(run.plan.folder))
    if run.arm.max_staleness or not borders or not watch.samples:
        return None
    learner, sampler, controller = (seconds / len(borders) for seconds in uncontended(watch.samples, borders))
    return Used(learner, sampler, controller) if learner and sampler else None


def _ages(folder: Folder) -> Counter[int]:
    """Trained tokens by age: versions between those that sampled them and those that they trained."""
    ages: Counter[int] = Counter()
    for line in training_steps(folder):
        for name, tokens in line.items():
            if name.startswith(AGES):
                ages[int(name.removeprefix(AGES))] += int(tokens)
    return ages
