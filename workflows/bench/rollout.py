"""`mmsearch bench rollout`: whole episodes against the bare engine on the same tokens.

    A  episodes of training questions on one RolloutSampler: Ray, agent loop, searches, rewards; every turn is noted
    B  exactly those turns' prompts, pictures and lengths, to AsyncLLM in a plain process, as many in flight

Both engines are alive and idle while the other side works (an idle engine uses no processor after a second), both
begin every pass with empty caches, and passes alternate: A B A B. The run is only read.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from actors.agent.seams import Sampling
from actors.agent.trajectory import Failure, Question, Summary
from actors.model.load import local_model
from actors.reward.actor import RemoteScorer, start_evaluators
from actors.search.pool import Searchers
from cluster import runtime
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.bench.load import Load
from workflows.bench.processes import between, cpu_seconds, scheduling
from workflows.bench.ratios import Pass, Spread, paired, shares, steady_rate
from workflows.bench.raw import RawEngine, Replayed
from workflows.bench.recording import NOTED, start_bench_sampler
from workflows.bench.replay import Request, requests_of
from workflows.grpo.cast import Plan
from workflows.grpo.plan import plan_of
from workflows.grpo.prompts_cursor import epoch_order
from workflows.grpo.questions import load_questions

TARGET = 0.8  # of the bare engine's tokens a second
CLOSE_S = 30.0  # for an engine to stop; after that its process is killed
SETTLE_S = 1.5  # between passes: vLLM's processes spin for a second after their last message
Episode = tuple[Question, int]


@dataclass(frozen=True)
class Round:
    """A pass of each side, and where the episodes' time went."""

    rollout: Pass
    raw: Pass
    shares: dict[str, float]
    failed: int  # episodes that the infrastructure or the data spoilt


def run(settings: Any, load: Load, *, as_json: bool = False) -> None:
    """The command. Raise `UserError`."""
    document = measure(plan_of(settings), load, Console(stderr=True))
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        show(document, Console())


def measure(plan: Plan, load: Load, console: Console) -> dict[str, Any]:
    """All passes and what follows from them, as JSON takes it."""
    plan.check()
    if not Folder(plan.model).exists("config.json"):
        raise UserError(
            f"The rollout bench plays the model at {plan.model}, which is not there: run `mmsearch sft"
            f" run.name={plan.name}` first, or name another model with grpo.start_from."
        )
    questions = load_questions(plan.questions, plan.images).by_id
    order = [questions[id] for id in epoch_order(questions, plan.seed, 0)]
    with runtime.connect(plan.cluster) as cluster:
        return asyncio.run(_measure(plan, load, order, cluster, console))


def episodes_of(questions: Sequence[Question], number: int, load: Load, group: int) -> list[Episode]:
    """The episodes of pass `number`: groups of siblings as in training, each pass other questions while they last."""
    n = -(-load.episodes // group)
    chosen = [questions[(number * n + i) % len(questions)] for i in range(n)]
    return [(question, sample) for question in chosen for sample in range(group)][: load.episodes]


class _Cast:
    """Searchers, evaluators and the one sampler."""

    def __init__(self, plan: Plan, cluster: runtime.Cluster, model: str) -> None:
        g = plan.grpo
        cpus = plan.search.pool.reserved_cpus + plan.reward.evaluators * plan.reward.evaluator_cpus
        needed = {"CPU": cpus + g.sampler_cpus} | ({"GPU": g.sampler_gpus} if g.sampler_gpus else {})
        cluster.require(needed, "the bench")
        self._searchers = Searchers(plan.search, plan.images)
        self._evaluators = start_evaluators(plan.reward, plan.preset)
        scorer = RemoteScorer(self._evaluators, plan.reward.timeout)
        self.sampler = start_bench_sampler(
            model, plan.engine, plan.preset, plan.limits, self._searchers.toolbox, scorer, plan.images,
            num_cpus=g.sampler_cpus, num_gpus=g.sampler_gpus,
        )  # fmt: skip

    async def ready(self) -> Mapping[str, Any]:
        facts, _ = await asyncio.gather(self.sampler.ready.remote(), self._searchers.ready())
        return facts

    async def close(self) -> None:
        with suppress(TimeoutError, ray.exceptions.RayError):
            async with asyncio.timeout(CLOSE_S):
                await self.sampler.close.remote()
        await self._searchers.close()
        for actor in (self.sampler, *self._evaluators):
            ray.kill(actor)


async def _measure(
    plan: Plan, load: Load, questions: Sequence[Question], cluster: runtime.Cluster, console: Console
) -> dict[str, Any]:
    model = str(local_model(plan.start_model))
    g = plan.grpo
    sampling = Sampling(temperature=g.temperature, top_p=g.top_p, max_tokens=g.max_tokens)
    console.print("bench rollout: starting a sampler and a bare engine", highlight=False)
    cast = _Cast(plan, cluster, model)
    try:
        async with cluster.starting("the bench", g.ready_timeout_s):
            facts = await cast.ready()
        [(niceness, group)] = scheduling([facts["pid"]])
        async with RawEngine(model, plan.engine, plan.images, niceness) as raw:
            bench = _Bench(cast.sampler, raw, sampling, load.concurrency)
            with _progress(console) as bar:
                warm = dataclasses.replace(load, episodes=min(load.episodes, load.concurrency))
                await bench.round(
                    episodes_of(questions, load.rounds, warm, g.group_size), _advance(bar, "warm-up", warm)
                )
                rounds: list[Round] = []
                for i in range(load.rounds):
                    episodes = episodes_of(questions, i, load, g.group_size)
                    rounds.append(await bench.round(episodes, _advance(bar, f"round {i + 1}", load)))
                    bar.console.print(f"bench rollout: {line_of(i + 1, rounds[-1])}", highlight=False)
                profile = ""
                if load.profile:
                    episodes = episodes_of(questions, load.rounds + 1, load, g.group_size)
                    profile = await bench.profile(episodes, _advance(bar, "profile", load))
            same = scheduling([raw.pid]) == [(niceness, group)]
    finally:
        await cast.close()
    setting = {
        "model": plan.model,
        "engine": dataclasses.asdict(plan.engine),
        "sampling": dataclasses.asdict(sampling),
        "load": dataclasses.asdict(load),
        "niceness": niceness,
        "same_scheduling": same,
    }
    return document_of(setting, rounds) | ({"profile": profile} if profile else {})


class _Bench:
    """Passes of both sides, one after the other."""

    def __init__(self, sampler: Any, raw: RawEngine, sampling: Sampling, concurrency: int) -> None:
        self._sampler, self._raw, self._sampling, self._concurrency = sampler, raw, sampling, concurrency

    async def round(self, episodes: Sequence[Episode], told: Callable[[], None]) -> Round:
        """Play the episodes, then replay their turns."""
        await self._sampler.fresh.remote()
        await asyncio.sleep(SETTLE_S)
        before = cpu_seconds(self._raw.pid)
        began, seconds, full_until, summaries = await self._play(episodes, told)
        between_passes = cpu_seconds(self._raw.pid)
        turns, spent, _ = await self._sampler.noted.remote()
        requests = requests_of(turns)
        await asyncio.sleep(SETTLE_S)
        before_raw = cpu_seconds(self._raw.pid)
        replayed = await self._raw.replay(requests, self._sampling, self._concurrency)
        after = cpu_seconds(self._raw.pid)
        ended = [(turn.answered_at, turn.sampled) for turn in turns]
        whole = spent.pop("episodes")
        return Round(
            _pass_of(requests, seconds, steady_rate(ended, began, full_until), between(before, between_passes)),
            _raw_pass(requests, replayed, between(before_raw, after)),
            shares(spent, whole),
            sum(one.failure in (Failure.INFRA, Failure.DATA) for one in summaries),
        )

    async def profile(self, episodes: Sequence[Episode], told: Callable[[], None]) -> str:
        await self._sampler.fresh.remote(profiled=True)
        await self._play(episodes, told)
        return (await self._sampler.noted.remote())[2]

    async def _play(
        self, episodes: Sequence[Episode], told: Callable[[], None]
    ) -> tuple[float, float, float, list[Summary]]:
        """When it began, how long it took, when places began to be idle, and how each episode ended."""
        queue, summaries, payloads = deque(episodes), [], []
        full_until = 0.0

        async def place() -> None:
            nonlocal full_until
            while queue:
                question, sample = queue.popleft()
                summary, trajectory = self._sampler.run.remote(question, sample, self._sampling, NOTED)
                payloads.append(trajectory)  # held as the controller holds them
                summaries.append(await summary)
                told()
            full_until = full_until or time.monotonic()

        began = time.monotonic()
        await asyncio.gather(*(place() for _ in range(self._concurrency)))
        return began, time.monotonic() - began, full_until, summaries


def _pass_of(requests: Sequence[Request], seconds: float, steady: float, cpu: dict[str, float]) -> Pass:
    return Pass(
        seconds,
        len(requests),
        sum(one.sampled for one in requests),
        sum(one.prompt_tokens for one in requests),
        steady,
        cpu,
    )


def _raw_pass(requests: Sequence[Request], replayed: Replayed, cpu: dict[str, float]) -> Pass:
    """Raise RuntimeError when the bare engine did not do the same work."""
    made, asked = sum(tokens for _, tokens in replayed.ended), sum(one.sampled for one in requests)
    if made != asked:
        raise RuntimeError(f"the bare engine sampled {made} tokens where the rollout sampled {asked}")
    steady = steady_rate(replayed.ended, replayed.began, replayed.full_until)
    return _pass_of(requests, replayed.seconds, steady, cpu)


def document_of(setting: Mapping[str, Any], rounds: Sequence[Round]) -> dict[str, Any]:
    """What is reported, as JSON takes it. Raise `UserError` when the infrastructure spoilt episodes."""
    if failed := sum(one.failed for one in rounds):
        raise UserError(
            f"{failed} episodes failed for reasons of the infrastructure or the data: nothing was measured."
        )

    def of(side: str, name: str) -> list[float]:
        return [getattr(getattr(one, side), name) for one in rounds]

    def side(which: str) -> dict[str, Any]:
        roles = {role for one in rounds for role in getattr(one, which).cpu}
        cpu = {role: Spread.of([getattr(one, which).cpu.get(role, 0.0) for one in rounds]).median for role in roles}
        names = ("seconds", "turns", "sampled", "prompt", "sampled_per_s", "total_per_s", "steady")
        return {name: dataclasses.asdict(Spread.of(of(which, name))) for name in names} | {"cpu_seconds": cpu}

    spent = {name: Spread.of([one.shares.get(name, 0.0) for one in rounds]).median for name in rounds[0].shares}
    return {
        "setting": dict(setting),
        "rounds": len(rounds),
        "rollout": side("rollout"),
        "raw": side("raw"),
        "ratio": dataclasses.asdict(paired(of("rollout", "sampled_per_s"), of("raw", "sampled_per_s"))),
        "ratio_steady": dataclasses.asdict(paired(of("rollout", "steady"), of("raw", "steady"))),
        "target": TARGET,
        "shares_of_episode_time": spent,
    }


def line_of(number: int, one: Round) -> str:
    """A round as soon as it is over: whoever stops the bench keeps what was measured."""
    a, b = one.rollout, one.raw
    used = [sum(side.cpu.values()) for side in (a, b)]
    return (
        f"round {number}: {a.sampled} tokens in {a.seconds:.1f} s ({used[0]:.1f} s of processors),"
        f" bare {b.seconds:.1f} s ({used[1]:.1f}): {b.seconds / a.seconds:.1%}"
    )


def show(document: Mapping[str, Any], out: Console) -> None:
    """The same for a person."""
    load = document["setting"]["load"]
    title = f"{load['episodes']} episodes, {load['concurrency']} at a time, {document['rounds']} passes of each side"
    table = Table(title=title, title_justify="left")
    for column in ("", "rollout", "bare engine"):
        table.add_column(column, justify="right" if column else "left")
    rows = {
        "seconds": "{:.2f}", "turns": "{:.0f}", "sampled": "{:.0f}", "prompt": "{:.0f}", "sampled_per_s": "{:,.0f}",
        "total_per_s": "{:,.0f}", "steady": "{:,.0f}",
    }  # fmt: skip
    names = {"sampled_per_s": "sampled tok/s", "total_per_s": "sampled + prompt tok/s", "sampled": "tokens sampled",
             "prompt": "prompt tokens", "steady": "sampled tok/s, all places taken"}  # fmt: skip
    for name, form in rows.items():
        table.add_row(names.get(name, name), *(form.format(document[s][name]["median"]) for s in ("rollout", "raw")))
    for role in sorted({*document["rollout"]["cpu_seconds"], *document["raw"]["cpu_seconds"]}):
        cells = (document[s]["cpu_seconds"].get(role) for s in ("rollout", "raw"))
        table.add_row(f"CPU s: {role}", *("" if value is None else f"{value:.2f}" for value in cells))
    out.print(table)
    for name, says in (("ratio", "rollout / bare engine"), ("ratio_steady", "the same while all places are taken")):
        it = document[name]
        out.print(f"{says}: {it['median']:.1%} (from {it['low']:.1%} to {it['high']:.1%})", highlight=False)
    spent = document["shares_of_episode_time"]
    parts = ", ".join(f"{name} {share:.1%}" for name, share in sorted(spent.items(), key=lambda it: -it[1]))
    out.print(f"an episode's time: {parts}", highlight=False)
    if not document["setting"]["same_scheduling"]:
        out.print("[yellow]the two sides had different niceness or autogroups: do not trust the ratio[/]")
    reached = "reached" if document["ratio"]["median"] >= document["target"] else "missed"
    out.print(f"target {document['target']:.0%}: {reached}", highlight=False)
    if profile := document.get("profile"):
        out.print(profile, markup=False, highlight=False)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("bench rollout: {task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
        TimeElapsedColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip


def _advance(bar: Progress, name: str, load: Load) -> Callable[[], None]:
    if bar.disable and name == "warm-up":
        bar.console.print("bench rollout: warming up", highlight=False)
    task = bar.add_task(name, total=load.episodes)
    return lambda: bar.advance(task)
