"""`mmsearch plan`: whether a configuration fits, before anything is started."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.errors import UserError
from workflows.commands import Config, Overrides, stage

STAGES = ("sft", "grpo")


def add_to(app: typer.Typer) -> None:
    """Register everything here."""
    app.command(
        epilog="Examples: `mmsearch plan --config mmsearch_r1_7b --nodes 4`,"
        " `mmsearch plan --config mmsearch_r1_7b --gpu-gib 40 learner.backend.zero_stage=3`"
    )(plan)


def plan(
    overrides: Overrides = None,
    which: Annotated[
        str | None, typer.Option("--stage", metavar="STAGE", help="sft or grpo (default: those that the run needs).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model folder, or the name of a known one as Qwen2.5-VL-7B.")
    ] = None,
    gpu_gib: Annotated[
        float | None, typer.Option(metavar="GIB", min=1, help="Of one GPU (default: the one here, else 80).")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(metavar="N", min=1, help="GPUs of one machine.")] = 8,
    cpus_per_node: Annotated[
        float | None, typer.Option(metavar="N", min=1, help="CPUs of one machine (default: not judged).")
    ] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", min=1, help="Machines there are (default: enough).")] = None,
    host_gib: Annotated[
        float | None, typer.Option(metavar="GIB", min=1, help="Of one machine (default: not judged, where GPUs are).")
    ] = None,
    shm_gib: Annotated[
        float | None, typer.Option(metavar="GIB", min=0, help="/dev/shm of one machine (default: half of its memory).")
    ] = None,
    reserve_gib: Annotated[
        float, typer.Option(metavar="GIB", min=0, help="Of each GPU, left for what is not counted.")
    ] = 2.0,
    mean_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of an episode (default: half of what it may have).")
    ] = None,
    picture_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of a picture at most (default: the image processor's).")
    ] = None,
    trained_share: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Of a pass's tokens that are trained, at most.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    config: Config = None,
) -> None:
    """Memory per GPU, actors, placement and tokens of a run, without starting it; refuses what cannot fit."""
    if which not in (None, *STAGES):
        raise UserError(f"--stage is {which!r} and must be {' or '.join(STAGES)}.")
    from workflows.capacity.run import Asked, Assumptions

    asked = Asked(
        stage=which,
        model=model,
        gpu_gib=gpu_gib,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        nodes=nodes,
        host_gib=host_gib,
        shm_gib=shm_gib,
        reserve_gib=reserve_gib,
        assumed=Assumptions(mean_tokens, picture_tokens, trained_share),
        as_json=as_json,
    )
    stage("workflows.capacity.run:run", config, overrides, asked=asked)
