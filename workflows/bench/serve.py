"""`mmsearch bench serve`: the service of a run against the bare episode loop, under load, and while it is hurt.

    overhead  the same questions to the service and to the bare loop (serve_bare.py), in alternation: A B A B
    steps     streams: how soon a client is told a step, and how often text
    overload  the capacity, then twice as many requests as that, for minutes
    swap      other weights under load, by `mmsearch serve update`
    kill      SIGKILL to an agent under load: of one, and of two

Service and bare loop are never alive together, for idle processes of a service are not still. Nothing is simulated. Who
asks takes of the same processors as who answers, and that counts against the service. What is told is held against what
the service must reach (serve_figures.py); what must never happen to a request is a problem and makes exit code 1, while
a time that misses its target is told and no more, for it depends on what else the machine does.

Always true: whatever becomes of the service, results.json says it; the run is only read, but for bench/serve in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from actors.agent.trajectory import Question
from actors.model.images import BlobImages
from actors.model.load import local_model
from cluster.errors import RunBroken, UserError
from workflows.ask import model_folder
from workflows.bench import serve_figures as figures
from workflows.bench import serve_parts as parts
from workflows.bench.serve_bare import BarePlan, bare_pass
from workflows.bench.serve_figures import SidePass
from workflows.bench.serve_form import ServeForm
from workflows.bench.serve_load import chat_body
from workflows.bench.serve_parts import Asking
from workflows.bench.serve_service import Service
from workflows.evaluate.arms import WEIGHTS
from workflows.grpo.questions import load_questions
from workflows.remote_ask import KEY_ENV, service_at
from workflows.run_folder import RunFolder

FOLDER = "bench/serve"
WARM = 16  # questions before those that count
TWO = ("serve.agents=2", "serve.max_agents=2", "serve.agent_cpus=0.5")


def run(settings: Any, form: ServeForm, words: Sequence[str], *, as_json: bool = False) -> None:
    """The command. `words`: what the run is configured by, as on the command line.

    Raises `UserError` where there is nothing to begin with, `RunBroken` when something is not as it must be.
    """
    console = Console(stderr=True)
    folder = settings.run.folder
    if not folder.is_local:
        raise UserError("bench serve looks at processes and files of this machine: give it a local run.storage.")
    bench = _Bench(settings, form, words, _questions(settings, form), console)
    try:
        bench.remote() if form.url else bench.all()
    except (RuntimeError, aiohttp.ClientError, TimeoutError) as error:
        bench.made["the bench"] = {"verdicts": [], "problems": [f"ended: {error or type(error).__name__}"]}
    document = {"form": asdict(form), "cpus": os.cpu_count(), "parts": bench.made}
    (folder / FOLDER).write_json("results.json", document)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        show(document, Console())
    if wrong := [f"{name}: {problem}" for name, part in document["parts"].items() for problem in part["problems"]]:
        raise RunBroken(f"{len(wrong)} things are not as they must be, the first: {wrong[0]}.")


@dataclass(frozen=True)
class Asked:
    """The run's test questions, each once, and the store with their pictures."""

    alone: tuple[Question, ...]
    warm: tuple[Question, ...]
    crowd: tuple[Question, ...]
    images: BlobImages


def _questions(settings: Any, form: ServeForm) -> Asked:
    """Raises `UserError` for a run without enough of them."""
    run = RunFolder(settings.run.folder)
    images = run.images()
    found = list(load_questions(run.questions("test"), images).by_id.values())
    random.Random(0).shuffle(found)
    if len(found) <= WARM:
        raise UserError(f"The run has {len(found)} test questions, too few to bench with: run `mmsearch demo` first.")
    rest = found[WARM:]
    return Asked(tuple(rest[: form.questions]), tuple(found[:WARM]), tuple(rest), images)


class _Bench:
    """What the parts have in common: how services are started, and what is asked of them."""

    def __init__(self, settings: Any, form: ServeForm, words: Sequence[str], asked: Asked, console: Console) -> None:
        self._settings, self._form, self._words, self._asked = settings, form, words, asked
        self._console = console
        self._folder: Path = settings.run.folder.local_path
        self.made: dict[str, Any] = {}  # what the parts came to so far

    def all(self) -> None:
        """Every part that was asked for, on services of its own. Raises RuntimeError, aiohttp's errors, `UserError`."""
        model = local_model(self._settings.pictures.on(str(model_folder(self._settings.run.folder, None))))
        wanted, made = self._form.parts, self.made
        if "overhead" in wanted:
            made["overhead"] = self._overhead(str(model))
        if {"steps", "overload", "swap", "kill"} & {*wanted}:
            with self._service() as service:
                asking = self._asking(service.url)
                todo: dict[str, Callable[[], Any]] = {
                    "steps": lambda: parts.steps(asking),
                    "overload": lambda: parts.overload(asking, service),
                    "swap": lambda: parts.swap(asking, service, self._checkpoints()),
                    "kill": lambda: parts.kill(asking, service, 1),
                }
                for name in wanted:
                    if name in todo:
                        self._say(name)
                        made[name] = asyncio.run(todo[name]())
        if "kill" in wanted:
            self._say("kill, with two agents")
            with self._service(TWO) as service:
                made["kill, two agents"] = asyncio.run(parts.kill(self._asking(service.url), service, 2))

    def remote(self) -> None:
        """The parts that a service can be asked by whoever can reach it."""
        service = service_at(self._form.url)
        asking = self._asking(service.url, service.key)
        if "steps" in self._form.parts:
            self.made["steps"] = asyncio.run(parts.steps(asking))
        if "overload" in self._form.parts:
            self.made["overload"] = asyncio.run(parts.overload(asking, None))

    def _overhead(self, model: str) -> dict[str, Any]:
        ours: list[SidePass] = []
        bare: list[SidePass] = []
        for number in range(1, self._form.rounds + 1):
            self._say(f"overhead, the service, pass {number} of {self._form.rounds}")
            with self._service() as service:
                niceness = service.niceness()
                ours.append(asyncio.run(parts.service_pass(self._asking(service.url))))
            self._say(f"overhead, the bare loop, pass {number} of {self._form.rounds}")
            asked, form = self._asked, self._form
            plan = BarePlan(self._settings, model, asked.warm, asked.alone, form.clients, form.crowd_s, niceness)
            bare.append(bare_pass(plan))
        return figures.overhead(ours, bare)

    def _service(self, more: Sequence[str] = ()) -> Service:
        return Service(self._words, self._folder, self._folder / FOLDER / "log.txt", more)

    def _asking(self, url: str, key: str | None = None) -> Asking:
        asked, key = self._asked, os.environ.get(KEY_ENV, "") if key is None else key
        return Asking(
            url, key, self._form, self._bodies(asked.alone), self._bodies(asked.warm), self._bodies(asked.crowd)
        )

    def _bodies(self, questions: Sequence[Question]) -> parts.Bodies:
        def made(model: str, stream: bool, seconds: float) -> list[bytes]:
            store = self._asked.images
            return [
                chat_body(model, one.text, [store.get(ref) for ref in one.images], stream=stream, seconds=seconds)
                for one in questions
            ]

        return made

    def _checkpoints(self) -> list[str]:
        """What weights are swapped to, in turn; the same again where the run has no others."""
        there = [name for name in ("sft", "rl") if (self._settings.run.folder / WEIGHTS[name]).exists("config.json")]
        return there or ["sft"]

    def _say(self, what: str) -> None:
        self._console.print(f"bench serve: {what}", highlight=False)


# --- what it comes to -------------------------------------------------------------------------------------------------


def show(document: Mapping[str, Any], console: Console) -> None:
    """Every figure against what it must be, then what stands behind them."""
    title = f"the service, {document['form']['clients']} clients, {document['cpus']} processors"
    table = Table("part", "figure", "measured", "at most", "", title=title, title_justify="left")
    for name, part in document["parts"].items():
        for one in part["verdicts"]:
            verdict = "reached" if one["reached"] else "missed"
            table.add_row(
                name, one["says"], words(one["value"], one["unit"]), words(one["bound"], one["unit"]), verdict
            )
    console.print(table)
    for name, part in document["parts"].items():
        for line in behind(part):
            console.print(f"{name}: {line}", highlight=False, markup=False)
        for problem in part["problems"]:
            console.print(f"{name}: PROBLEM: {problem}", highlight=False, markup=False)


def words(value: float | None, unit: str) -> str:
    """A figure as a person reads it."""
    if value is None:
        return "not measured"
    forms = {"ms": "{:.1f} ms", "s": "{:.1f} s", "share": "{:.1%}", "x": "{:.2f} x"}
    return forms.get(unit, "{:.0f}").format(value)


def behind(part: Mapping[str, Any]) -> list[str]:
    """What a person should know of a part's figures."""
    said: list[str] = []
    if "same_work" in part:
        noise = words(part["noise_ms"], "ms")
        said.append(f"{part['same_work']:.0%} of the pairs did the same work; a side differs from itself by {noise}")
        low, high = words(part["throughput_cost_low"], "share"), words(part["throughput_cost_high"], "share")
        per_s = [f"{max(part[side]):.1f}" for side in ("service_per_s", "bare_per_s")]
        said.append(f"answers a second: {per_s[0]} and {per_s[1]} at best; lost from {low} to {high}")
    if "levels" in part:
        levels = ", ".join(f"{clients}: {per_s:.1f}" for clients, per_s in part["levels"].items())
        said.append(f"answers a second by clients: {levels}; offered {part['offered_per_s']:.1f}")
    if "outcomes" in part:
        counts = ", ".join(f"{number} {name}" for name, number in part["outcomes"].items())
        after = words(part["refused_after_ms"]["p99"], "ms")
        said.append(f"{counts}; 99 % of refusals came within {after}")
        grown = ", ".join(f"{role} {share:+.1%}" for role, share in part["memory_growth"].items())
        said.append(f"memory grown: {grown or 'not looked at'}")
    if "everywhere_s" in part:
        took = ", ".join(words(seconds, "s") for seconds in part["everywhere_s"])
        said.append(f"answers by version {part['versions']}; older weights answered for {took}")
    if "failed_in_flight" in part:
        flight = f"{part['failed_in_flight']} of {sum(part['in_flight'])} requests in flight failed with the dead,"
        flight += f" which had at most {', '.join(str(n) for n in part['most_on_one'])}"
        gaps = ", ".join(words(seconds, "s") for seconds in part["longest_gap_s"])
        said.append(f"{flight}; longest time without an answer {gaps}; said {part['said'] or 'nothing'}")
    return said
