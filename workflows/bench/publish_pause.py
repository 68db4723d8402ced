"""How long an engine stands still when its weights change under running requests.

    requests - 1 turns, each begun again when it ends, and one request whose every token is timed

All of them are in flight all the time, but where turns are short some are on their way into the engine: how many it
runs when weights come is told.

The usual time between two tokens of that one is the engine's step; the longest one across a publish, less a step, is
the pause that the publish added. Turns go through `sampler.engine.Engine`, as episodes do; each must end as turns end,
else it is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.agent.seams import GenerationFailed, ImageStore, Sampling
from actors.agent.trajectory import Segment
from actors.model.load import load_policy
from actors.model.renderer import load_renderer
from actors.sampler.engine import Engine
from actors.sampler.settings import EngineSettings
from actors.weights.receiver import Receiver
from actors.weights.transport import FolderTransport, default_root
from cluster.collector import collect_rarely
from cluster.errors import RunBroken
from workflows.bench.ratios import Spread

STEPS_ALLOWED, MS_ALLOWED = 2, 20.0  # of a pause
STEPS_TIMED = 200  # between two tokens, while nothing is published
BETWEEN_S = 0.4  # from one publish to the next
DEADLINE_S = 300.0  # for the engine to get so far, and for the turns to end
QUESTION = "tell a long story about what you know"


@dataclass
class Turns:
    """What became of the turns."""

    ended: int = 0
    lost: int = 0
    across: int = 0  # sampled under more than one version
    tokens: int = 0


@dataclass
class Clock:
    """When the tokens of the timed request came."""

    at: list[float] = field(default_factory=list)

    def gaps(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Seconds between tokens, of pairs that overlap this time."""
        return [b - a for a, b in zip(self.at, self.at[1:], strict=False) if b >= since and a <= until]


async def measure(
    model: Path, settings: EngineSettings, images: ImageStore, requests: int, publishes: int, console: Console
) -> dict[str, Any]:
    """Start an engine, publish under its requests, and say what that did. Raise `RunBroken` when it gets nowhere."""
    console.print(f"bench publish: an engine with {requests} requests in flight", highlight=False)
    renderer = load_renderer(model)
    weights = dict(load_policy(model, settings.dtype).named_parameters())
    transport = FolderTransport(default_root(f"bench-pause-{time.time_ns()}"), model)
    turns, clock, ending = Turns(), Clock(), asyncio.Event()
    async with Engine(model, settings, renderer, images) as engine:
        collect_rarely()
        prompt = [renderer.open(QUESTION, [])]
        length = settings.max_model_len // 2
        work = [asyncio.create_task(_turns(engine, prompt, length, turns, ending)) for _ in range(requests - 1)]
        work.append(asyncio.create_task(_timed(engine, settings.max_model_len, clock, ending)))
        try:
            await _until(lambda: len(clock.at) > STEPS_TIMED and _all_begun(engine, turns, requests), work)
            step = Spread.of(clock.gaps()[-STEPS_TIMED:])
            added, whole, running = await _publish(engine, transport, weights, publishes, clock)
            ending.set()
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*work)
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            transport.close()
    return document_of(requests, step, added, whole, running, turns)


def _all_begun(engine: Engine, turns: Turns, requests: int) -> bool:
    """Turns that end are begun again at once, so when the first ones end all have begun."""
    return turns.ended > 0 or engine.stats().running >= requests - 1


async def _turns(engine: Engine, prompt: Sequence[Segment], length: int, turns: Turns, ending: asyncio.Event) -> None:
    while not ending.is_set():
        try:
            sampling, deadline = Sampling(max_tokens=length), time.monotonic() + DEADLINE_S
            turn = await engine.generate(prompt, sampling, deadline=deadline)
        except GenerationFailed:
            turns.lost += 1
            return
        turns.lost += turn.stop == "aborted"
        turns.ended += turn.stop != "aborted"
        turns.across += len(turn.spans) > 1
        turns.tokens += len(turn.token_ids)


async def _timed(engine: Engine, max_model_len: int, clock: Clock, ending: asyncio.Event) -> None:
    """One request after the other, straight to vLLM: `Engine` tells of turns, not of tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    llm: Any = engine._llm
    number = 0
    while not ending.is_set():
        number += 1
        parameters = SamplingParams(
            max_tokens=max_model_len - 2, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        request = f"timed-{number}"
        # The priority of a first turn, as all have here: without one it would be let in last.
        async for _ in llm.generate({"prompt_token_ids": [0]}, parameters, request, priority=-1):
            clock.at.append(time.perf_counter())
            if ending.is_set():
                await llm.abort(request)
                return


async def _publish(
    engine: Engine, transport: FolderTransport, weights: Mapping[str, Any], publishes: int, clock: Clock
) -> tuple[list[float], list[float], list[int]]:
    """Seconds that each publish added between two tokens, from pause to resume as the engine says, and what it ran."""
    usual = median(clock.gaps()[-STEPS_TIMED:])
    added, whole, running = [], [], []
    with closing(Receiver()) as receiver:
        for version in range(1, publishes + 1):
            ticket = await asyncio.to_thread(transport.send, version, weights.items())
            await asyncio.sleep(BETWEEN_S)
            with receiver.opened(ticket) as folder:
                running.append(engine.stats().running)
                began = time.perf_counter()
                await engine.update(str(folder), version)
                ended = time.perf_counter()
            await asyncio.sleep(BETWEEN_S)
            added.append(max(clock.gaps(began, ended), default=0.0) - usual)
            whole.append(engine.stats().last_update_s)
    return added, whole, running


async def _until(true: Any, work: Sequence[asyncio.Task[None]]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        if time.monotonic() > end or any(task.done() for task in work):
            raise RunBroken("the engine of the bench did not get its requests running")
        await asyncio.sleep(0.05)


def document_of(
    requests: int,
    step: Spread,
    added: Sequence[float],
    whole: Sequence[float],
    running: Sequence[int],
    turns: Turns,
) -> dict[str, Any]:
    """As JSON takes it; times in milliseconds."""
    return {
        "requests": requests,
        "running": median(running),
        "publishes": len(added),
        "step_ms": _in_ms(step),
        "pause_ms": _in_ms(Spread.of(added)),
        "update_ms": _in_ms(Spread.of(whole)),
        "allowed_ms": STEPS_ALLOWED * step.median * 1e3 + MS_ALLOWED,
        "turns": asdict(turns),
    }


def _in_ms(spread: Spread) -> dict[str, float]:
    return {"median": spread.median * 1e3, "low": spread.low * 1e3, "high": spread.high * 1e3, "n": spread.n}


def table(pause: Mapping[str, Any]) -> Table:
    """The same for a person."""
    title = f"{pause['requests']} requests in flight, {pause['publishes']} publishes: ms, median (from - to)"
    made = Table(title=title, title_justify="left", show_header=False)
    made.add_column("")
    made.add_column("", justify="right")

    def spread(of: Mapping[str, float]) -> str:
        return f"{of['median']:.1f} ({of['low']:.1f} - {of['high']:.1f})"

    made.add_row("of them in the engine when weights come, median", f"{pause['running']:.0f}")
    made.add_row("engine step, undisturbed", spread(pause["step_ms"]))
    made.add_row("pause: what a publish adds between two tokens", spread(pause["pause_ms"]))
    made.add_row("from pause to resume, as the engine says", spread(pause["update_ms"]))
    reached = "reached" if pause["pause_ms"]["median"] <= pause["allowed_ms"] else "missed"
    allowed = f"allowed: {STEPS_ALLOWED} steps and {MS_ALLOWED:g} ms"
    made.add_row(allowed, f"{pause['allowed_ms']:.1f}: {reached}")
    turns = pause["turns"]
    made.add_row("turns ended / sampled under several versions", f"{turns['ended']:,} / {turns['across']:,}")
    made.add_row("turns lost", f"{turns['lost']:,}")
    return made
