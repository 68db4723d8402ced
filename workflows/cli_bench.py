"""`mmsearch bench ...`: every figure in a README is printed by one of these. Thin, as `cli.py` is."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.errors import UserError
from workflows.commands import Config, Overrides, stage

bench = typer.Typer(
    no_args_is_help=True,
    help="Measure this machine: every figure is a ratio to a bound that is measured in the same run.",
    epilog="Examples: `mmsearch bench rollout run.name=mine`, `mmsearch bench train --stage sft`",
)


@bench.command(
    name="rollout",
    epilog="Examples: `mmsearch bench rollout run.name=mine`, `mmsearch bench rollout --rounds 2 engine.omp_threads=2`,"
    " `mmsearch bench rollout --json grpo.start_from=runs/mine/grpo/export`",
)
def bench_rollout(
    overrides: Overrides = None,
    episodes: Annotated[int, typer.Option(metavar="N", min=1, help="Episodes of one pass.")] = 512,
    concurrency: Annotated[int, typer.Option(metavar="N", min=1, help="Episodes, or requests, at a time.")] = 128,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Passes of each side, alternating.")] = 4,
    profile: Annotated[bool, typer.Option("--profile", help="One more pass, with a profile of the sampler.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    config: Config = None,
) -> None:
    """Whole episodes of a run's questions, against bare vLLM `generate` on the same tokens."""
    from workflows.bench.load import Load

    load = Load(episodes, concurrency, rounds, profile)
    stage("workflows.bench.rollout:run", config, overrides, load=load, as_json=as_json)


@bench.command(
    name="train",
    epilog="Examples: `mmsearch bench train run.name=mine`, `mmsearch bench train --stage pretrain --profile`",
)
def bench_train(
    overrides: Overrides = None,
    which: Annotated[
        str | None, typer.Option("--stage", metavar="STAGE", help="pretrain, sft or grpo (default: all).")
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Optimizer steps that are timed, of each stage.")] = 20,
    profile: Annotated[bool, typer.Option("--profile", help="Also where the time goes, by operation.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    config: Config = None,
) -> None:
    """Tokens a second of real optimizer steps, against what this machine's matrix products would allow."""
    known = ("pretrain", "sft", "grpo")
    if which not in (None, *known):
        raise UserError(f"--stage is {which!r} and must be pretrain, sft or grpo.")
    stages = (which,) if which else known
    stage("workflows.bench.train:run", config, overrides, stages=stages, steps=steps, profile=profile, as_json=as_json)


@bench.command(
    name="search",
    epilog="Examples: `mmsearch bench search`, `mmsearch bench search --part quota --seconds 20`",
)
def bench_search(
    overrides: Overrides = None,
    parts: Annotated[
        list[str] | None,
        typer.Option(
            "--part", metavar="PART", help="quota, broker, pool, overhead or lookups; repeatable (default: all)."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="S", min=1, help="Length of the parts under a quota.")] = 60.0,
    offered: Annotated[float, typer.Option(metavar="N", min=1, help="Calls a second that are offered.")] = 200.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    config: Config = None,
) -> None:
    """The search gateway under a provider's quota, beside a client that retries on 429; a simulated provider."""
    from workflows.bench.search import SearchLoad

    load = SearchLoad(seconds=seconds, offered=offered, parts=tuple(parts or SearchLoad.parts))
    stage("workflows.bench.search:run", config, overrides, load=load, as_json=as_json)


@bench.command(
    name="chaos",
    epilog="Examples: `mmsearch bench chaos run.name=mine`, `mmsearch bench chaos --minutes 3 --every 20`",
)
def bench_chaos(
    overrides: Overrides = None,
    minutes: Annotated[float, typer.Option(metavar="M", min=0.5, help="How long, from the first step on.")] = 30.0,
    every: Annotated[
        float, typer.Option(metavar="S", min=5, help="Seconds between a recovery and the next kill.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Draws who is killed, and when.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    config: Config = None,
) -> None:
    """GRPO while its processes are killed at random: how soon it is whole again, and whether every step is right."""
    from workflows.bench.chaos import ChaosForm

    words = [*(["--config", config] if config else []), *(overrides or [])]
    form = ChaosForm(minutes, every, seed)
    stage("workflows.bench.chaos:run", config, overrides, form=form, words=words, as_json=as_json)


@bench.command(
    name="async",
    epilog="Examples: `mmsearch bench async run.name=mine`, `mmsearch bench async --full --steps 45 --seeds 3`,"
    " `mmsearch bench async --arm sync --arm async-2 --trace near-zero`",
)
def bench_async(
    overrides: Overrides = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every arm under every trace, over 3 seeds and 45 steps.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Optimizer steps of each run (default: 10).")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Runs of each arm under each trace (default: 1).")
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option("--arm", metavar="ARM", help="rounds, sync, async-1, async-2 or async-4; repeatable."),
    ] = None,
    traces: Annotated[
        list[str] | None,
        typer.Option("--trace", metavar="TRACE", help="near-zero, log-normal or quota; repeatable (default: all)."),
    ] = None,
    reward: Annotated[float, typer.Option(metavar="R", help="The mean reward that the time is told to.")] = 0.75,
    refill: Annotated[
        bool, typer.Option("--refill", help="Replace groups without variance, as `mmsearch grpo` does.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Also make runs that were made before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    config: Config = None,
) -> None:
    """GRPO in rounds, in synchronous steps and asynchronously: the same training under the same slow tools.

    The latency is injected; every run starts from the run's SFT model, or from grpo.start_from.
    """
    from workflows.bench.async_form import AsyncForm

    form = AsyncForm.asked(full, steps, seeds, tuple(arms or ()), tuple(traces or ()), reward, refill)
    stage("workflows.bench.asynchrony:run", config, overrides, form=form, again=again, as_json=as_json)


@bench.command(
    name="serve",
    epilog="Examples: `mmsearch bench serve run.name=mine`, `mmsearch bench serve --quick --part overhead`,"
    " `mmsearch bench serve --url http://127.0.0.1:8000 --minutes 2`",
)
def bench_serve(
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="Everything once and briefly: a few minutes in all.")] = False,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", min=0.1, help="Of twice the capacity (default: 10; quick: 1).")
    ] = None,
    clients: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Clients at once.")] = 32,
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", metavar="PART", help="overhead, steps, overload, swap or kill; repeatable."),
    ] = None,
    url: Annotated[
        str, typer.Option(metavar="URL", help="Of a service that runs already: parts steps and overload alone.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    config: Config = None,
) -> None:
    """The service of a run: its cost over the bare episode loop, and what overload, new weights and deaths do to it."""
    from workflows.bench.serve_form import ServeForm

    form = ServeForm.asked(quick, minutes, clients, tuple(parts or ()), url)
    words = [*(["--config", config] if config else []), *(overrides or [])]
    stage("workflows.bench.serve:run", config, overrides, form=form, words=words, as_json=as_json)


@bench.command(
    name="controller",
    epilog="Examples: `mmsearch bench controller`, `mmsearch bench controller --samplers 1000 --groups 100000`",
)
def bench_controller(
    overrides: Overrides = None,
    samplers: Annotated[int, typer.Option(metavar="N", min=1, help="Simulated samplers, a group on each.")] = 10_000,
    groups: Annotated[int, typer.Option(metavar="N", min=1, help="Groups from admission to end.")] = 1_000_000,
    steps: Annotated[int, typer.Option(metavar="N", min=2, help="Steps of the whole controller.")] = 150,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    config: Config = None,
) -> None:
    """What the bookkeeping of asynchronous GRPO costs, on simulated samplers; nothing is started."""
    from workflows.bench.controller import ControllerLoad

    load = ControllerLoad(samplers, groups, steps)
    stage("workflows.bench.controller:run", config, overrides, load=load, as_json=as_json)


@bench.command(
    name="publish",
    epilog="Examples: `mmsearch bench publish run.name=mine`, `mmsearch bench publish --part transports --mib 500`",
)
def bench_publish(
    overrides: Overrides = None,
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", metavar="PART", help="transports or pause; repeatable (default: both)."),
    ] = None,
    ways: Annotated[
        list[str] | None,
        typer.Option("--transport", metavar="WAY", help="shared_memory, object_store or storage; repeatable."),
    ] = None,
    mib: Annotated[int, typer.Option(metavar="N", min=1, help="MiB of weights that are sent.")] = 500,
    versions: Annotated[int, typer.Option(metavar="N", min=1, help="Versions by each transport.")] = 10,
    storage: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of storage: a directory or s3:// (default: scratch).")
    ] = None,
    requests: Annotated[int, typer.Option(metavar="N", min=2, help="In flight while weights change.")] = 128,
    publishes: Annotated[int, typer.Option(metavar="N", min=1, help="Publishes under those requests.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    config: Config = None,
) -> None:
    """New weights out of the learner, into another process, and into an engine that goes on sampling."""
    from workflows.bench.publish import PARTS, PublishLoad, transports_named

    transports = transports_named(ways or ())
    load = PublishLoad(mib, versions, transports, storage, requests, publishes, tuple(parts or PARTS))
    stage("workflows.bench.publish:run", config, overrides, load=load, as_json=as_json)
