"""`mmsearch evaluate`: arms on held-out questions, on samplers that all arms share.

<run>/evaluate/  <arm>.parquet  one row per episode, whole trajectory included
                 <arm>.json     what the rows were made from; written after them, so that a run that was stopped
                                continues with the first arm that is not complete
                 judge/         verdicts, where a judge is configured
                 results.json   the numbers, written last
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from actors.agent.episode import Limits
from actors.agent.prompts import PRESETS
from actors.agent.seams import ImageStore, Sampling
from actors.agent.trajectory import Question
from actors.model.load import local_model
from actors.model.settings import PictureSettings
from actors.reward.actor import check_reward
from actors.reward.settings import RewardSettings
from actors.sampler.settings import EngineSettings
from actors.search.actor import check_providers
from actors.search.settings import SearchSettings
from cluster import runtime
from cluster.errors import UserError
from cluster.runtime import RuntimeSettings
from cluster.storage import Folder
from workflows.evaluate import tables
from workflows.evaluate.arms import ARMS, MADE_BY, WEIGHTS, missing_in, policy_path
from workflows.evaluate.cast import Cast
from workflows.evaluate.document import RESULTS, arm_document
from workflows.evaluate.judging import Judged, judge_arms
from workflows.evaluate.play import ArmSampler, play_arm, ticket_of
from workflows.evaluate.rows import Row, read_rows, row_of, write_rows
from workflows.evaluate.settings import EvaluateSettings
from workflows.grpo.manifest import versions
from workflows.grpo.prompts_cursor import epoch_order
from workflows.grpo.questions import Questions, load_questions

WAY_S = 5.0  # for an episode's way there and back, beyond all that it may take


@dataclass(frozen=True)
class Plan:
    """Everything that one evaluation needs to know, from wherever it was configured."""

    seed: int
    folder: Folder  # where its results go
    models: Mapping[str, str]  # address of the model folder, by the names of WEIGHTS
    questions: Folder  # Parquet shards
    images: ImageStore
    preset: str
    limits: Limits
    engine: EngineSettings
    search: SearchSettings
    reward: RewardSettings
    evaluate: EvaluateSettings
    cluster: RuntimeSettings
    pictures: PictureSettings = dataclasses.field(default_factory=PictureSettings)  # of the models' image processors

    def check(self) -> None:
        """Raise `UserError` for parts that do not fit each other, or cannot be found."""
        check_providers(self.search)
        check_reward(self.reward)
        if self.limits.max_total_tokens > self.engine.max_model_len:
            raise UserError(
                f"an episode may have {self.limits.max_total_tokens} tokens,"
                f" but the engine's max_model_len is {self.engine.max_model_len}."
            )
        for name in self.evaluate.arms:
            if missing := missing_in(ARMS[name], self.preset):
                raise UserError(f"Arm {name} needs {missing}, which agent.preset={self.preset} does not have.")

    @property
    def episode_s(self) -> float:
        """After which an episode is given up from outside: it has ended by itself, and been scored, before."""
        return self.limits.longest_s + self.reward.timeout + WAY_S

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.evaluate.temperature, max_tokens=self.evaluate.max_tokens)

    @property
    def max_calls(self) -> int:
        """Tool calls that the protocol allows in an episode."""
        return PRESETS[self.preset].max_tool_calls

    def identity(self, arm: str) -> dict[str, Any]:
        """What an arm's rows depend on: with the same, they need not be made again."""
        e = self.evaluate
        return {
            "weights": Folder(self.models[ARMS[arm].weights]).fingerprint(".safetensors"),
            "questions": self.questions.fingerprint(".parquet"),
            "policy": policy_path(ARMS[arm], self.preset),
            "preset": self.preset,
            "limits": dataclasses.asdict(self.limits),
            "sampling": dataclasses.asdict(self.sampling),
            "asked": [e.questions, e.samples, self.seed],
            "dtype": self.engine.dtype,
            "top_k": self.search.top_k,
            "reward": dataclasses.asdict(self.reward.rule()),
            **({"pictures": self.pictures.given} if self.pictures.given else {}),
        }


def plan_of(settings: Any) -> Plan:
    """`settings` is `workflows.settings.Settings`. The one place here that knows where other stages leave things."""
    from workflows.run_folder import RunFolder

    run = RunFolder(settings.run.folder)
    dataset = settings.evaluate.dataset
    weights = {**WEIGHTS, "rl": f"{settings.grpo.folder}/export"}
    return Plan(
        seed=settings.run.seed,
        folder=run.root / settings.evaluate.folder,
        models={name: (run.root / where).address for name, where in weights.items()},
        questions=Folder(dataset) if dataset else run.questions("test"),
        images=run.images(),
        preset=settings.agent.protocol.name,
        limits=settings.agent.limits,
        engine=settings.engine,
        search=settings.search,
        reward=settings.reward,
        evaluate=settings.evaluate,
        cluster=settings.cluster,
        pictures=settings.pictures,
    )


def run(settings: Any) -> None:
    """The stage, as the command line and the demo call it. Raises `UserError`."""
    evaluate(plan_of(settings))


def evaluate(plan: Plan, console: Console | None = None) -> dict[str, Any]:
    """Play what has not been played, print the tables, write and return the results."""
    console = console or Console(stderr=True)
    began = time.time()
    plan.check()
    models = check_models(plan)
    plan.folder.ensure_writable()
    questions = load_questions(plan.questions, plan.images)
    asked = choose(questions.by_id, plan.evaluate.questions, plan.seed)
    tell = f"evaluate: {len(asked)} of {len(questions.by_id)} held-out questions, arms {', '.join(plan.evaluate.arms)}"
    console.print(tell, highlight=False)
    if questions.dropped:
        first = questions.reasons[0]
        console.print(f"{questions.dropped} rows are no questions and were dropped, the first: {first}", markup=False)
    arms = {name: rows for name in plan.evaluate.arms if (rows := finished(plan, name))}
    for name in arms:
        console.print(f"evaluate: arm {name} was played already with the same weights and questions", highlight=False)
    missing = [name for name in plan.evaluate.arms if name not in arms]
    if missing:
        with runtime.connect(plan.cluster) as cluster:
            arms |= asyncio.run(_play(plan, cluster, models, asked, missing, console))
    ordered = {name: arms[name] for name in plan.evaluate.arms}
    judge = plan.evaluate.judge
    # On a cluster the judge's key has its broker there, shared with other jobs; alone, one of this process's own.
    shared = judge.model is not None and judge.quota is not None and runtime.joins(plan.cluster)
    with runtime.connect(plan.cluster) if shared else nullcontext():
        judged = judge_arms(
            judge, ordered, questions.by_id, plan.images, plan.folder, console, plan.search.quota_folder
        )
    return _conclude(plan, judged, questions, time.time() - began, console)


def check_models(plan: Plan) -> dict[str, Path]:
    """The local folder of every model that the arms need, checked. Raises `UserError` with the command that mends."""
    found: dict[str, Path] = {}
    for name in plan.evaluate.arms:
        weights = ARMS[name].weights
        address = plan.models[weights]
        if not Folder(address).exists("config.json"):
            raise UserError(
                f"Arm {name} needs the model at {address}, which is not there: run `mmsearch {MADE_BY[weights]}`"
                " first, or leave the arm out of evaluate.arms."
            )
        found[weights] = found.get(weights) or local_model(address)
    return found


def choose(questions: Mapping[str, Question], n: int, seed: int) -> list[Question]:
    """All, or `n` of them; the same for the same seed, in an order of ids."""
    ids = epoch_order(questions, seed, 0)[:n] if n else list(questions)
    return [questions[id] for id in sorted(ids)]


def finished(plan: Plan, arm: str) -> list[Row]:
    """The rows of an arm that was played before with the same everything; none otherwise."""
    try:
        done = plan.folder.read_json(f"{arm}.json")
        if done != _as_json(plan.identity(arm)):
            return []
        return read_rows(plan.folder, f"{arm}.parquet")
    except (OSError, ValueError, TypeError):  # none, torn, or of an older format: played again
        return []


async def _play(
    plan: Plan, cluster: runtime.Cluster, models: Mapping[str, Path], asked: Sequence[Question], arms: Sequence[str],
    console: Console,
) -> dict[str, list[Row]]:  # fmt: skip
    first = ARMS[arms[0]].weights
    console.print(f"evaluate: starting {plan.evaluate.samplers} engine(s) with the {first} weights", highlight=False)
    cast = Cast(plan, cluster, plan.pictures.on(str(models[first])))
    rows: dict[str, list[Row]] = {}
    total = len(asked) * plan.evaluate.samples
    try:
        await cast.ready(plan.evaluate.ready_timeout_s)
        live = first
        with _progress(console) as bar:
            for name in arms:
                if ARMS[name].weights != live:
                    live = ARMS[name].weights
                    await _publish(plan, cast.samplers, models[live], list(models).index(live) + 1)
                task = bar.add_task(f"arm {name}", total=total)
                rows[name] = await _play_arm(plan, cast.samplers, asked, name, lambda task=task: bar.advance(task))
                if not console.is_terminal:
                    console.print(f"evaluate: arm {name} was played", highlight=False)
        console.print(f"evaluate: searches: {await cast.toolbox.totals()}", highlight=False)
    finally:
        await cast.close()
    return rows


async def _publish(plan: Plan, samplers: Sequence[ArmSampler], folder: Path, version: int) -> None:
    ticket = await asyncio.to_thread(ticket_of, folder, version)
    async with asyncio.timeout(plan.evaluate.update_timeout_s):
        await asyncio.gather(*(sampler.set_weights(ticket) for sampler in samplers))


async def _play_arm(
    plan: Plan, samplers: Sequence[ArmSampler], asked: Sequence[Question], arm: str, told: Any
) -> list[Row]:
    e = plan.evaluate
    played = await play_arm(
        samplers,
        asked,
        policy_path(ARMS[arm], plan.preset),
        plan.sampling,
        samples=e.samples,
        concurrency=e.concurrency,
        retries=e.retries,
        timeout_s=plan.episode_s,
        told=told,
    )
    rows = [row_of(arm, one.question, one.trajectory, one.attempts) for one in played]
    await asyncio.to_thread(write_rows, plan.folder, f"{arm}.parquet", rows)
    if all(row.counts for row in rows):  # else a further run may do better
        await asyncio.to_thread(plan.folder.write_json, f"{arm}.json", plan.identity(arm))
    return rows


def _conclude(plan: Plan, judged: Judged, questions: Questions, seconds: float, console: Console) -> dict[str, Any]:
    arms = judged.arms
    results = {
        "seed": plan.seed,
        "preset": plan.preset,
        "max_calls": plan.max_calls,
        "questions": len({row.question_id for rows in arms.values() for row in rows}),
        "dropped": questions.dropped,
        "dropped_because": list(questions.reasons),
        "seconds": seconds,
        "judge": judged.told,
        "versions": versions(),
        "arms": {
            name: {"model": plan.models[ARMS[name].weights], "says": ARMS[name].says}
            | arm_document([rows], plan.max_calls)
            for name, rows in arms.items()
        },
    }
    plan.folder.write_json(RESULTS, results)
    tables.show(results["arms"])
    console.print(f"evaluate: {seconds:.0f} s; rows and {RESULTS} are at {plan.folder}", highlight=False)
    return results


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip


def _as_json(value: Any) -> Any:
    """As it comes back from a JSON file."""
    import json

    return json.loads(json.dumps(value))
