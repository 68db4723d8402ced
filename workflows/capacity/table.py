"""A plan as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.table import Table

from workflows.capacity.hardware import Hardware
from workflows.capacity.memory import Memory, amount, gib
from workflows.capacity.stages import StagePlan


def show(console: Console, found: StagePlan, hardware: Hardware) -> None:
    """Print one stage."""
    console.print(f"\n[bold]{found.stage}[/] of {found.shape.name}: {_model(found)}")
    tables = [_memory(memory) for memory in found.memories if memory.items]
    console.print(Group(*tables, _actors(found), _tokens(found)))
    for warning in found.warnings:
        console.print(f"[yellow]warning:[/] {warning}")


def _model(found: StagePlan) -> str:
    parts, trained = found.shape.parts, found.shape.trained
    names = ("vision", "projector", "language", "embeddings")
    told = ", ".join(
        f"{name} {amount(getattr(parts, name))}{'' if getattr(trained, name) else ' frozen'}" for name in names
    )
    adapters = f", LoRA {amount(found.shape.adapters)}" if found.shape.adapters else ""
    source = " (its folder is not here: shapes from this package)" if found.shipped else ""
    return f"{amount(parts.total)} parameters: {told}{adapters}{source}"


def _memory(memory: Memory) -> Group:
    capacity = "" if memory.capacity is None else f" of {gib(memory.capacity)}"
    verdict = f", [red]{gib(memory.missing)} missing[/]" if memory.missing else ""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column("what")
    table.add_column("size", justify="right")
    table.add_column("of what", style="dim")
    for item in memory.items:
        if item.bytes:
            table.add_row(item.name, gib(item.bytes), item.note)
    return Group(f"{memory.of}: {gib(memory.total)}{capacity}{verdict}{_moment(memory.moment)}", table)


def _moment(moment: str) -> str:
    return f", in {moment}" if moment.startswith("the ") else ""


def _actors(found: StagePlan) -> Table:
    table = Table(title="actors and nodes", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("actor", "count", "CPUs each", "GPUs each", "on node"):
        table.add_column(name, justify="left" if name in ("actor", "on node") else "right")
    for some in found.actors:
        homes = _homes([node.actors.get(some.role, 0) for node in found.nodes])
        table.add_row(some.role, str(some.count), f"{some.cpus:g}", f"{some.gpus:g}", homes)
    return table


def _homes(counts: Sequence[int]) -> str:
    """`8 on each of 1-2, 3 on 3` for [8, 8, 3]."""
    told, start = [], 0
    for end in range(1, len(counts) + 1):
        if end < len(counts) and counts[end] == counts[start]:
            continue
        if counts[start]:
            where = f"{start + 1}" if end == start + 1 else f"each of {start + 1}-{end}"
            told.append(f"{counts[start]} on {where}")
        start = end
    return ", ".join(told)


def _tokens(found: StagePlan) -> Table:
    tokens = found.tokens
    table = Table(title="one step", title_justify="left", box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column("what")
    table.add_column("how many", justify="right")
    episodes = "conversations" if found.stage == "sft" else "episodes"
    table.add_row(episodes, f"{tokens.sequences:,}")
    table.add_row("tokens, expected", f"{tokens.expected:,}")
    table.add_row("tokens, at most", f"{tokens.most:,}")
    table.add_row("passes of a rank, expected", f"{tokens.passes:,}")
    if found.kv is not None:
        table.add_row("episodes at a time, all samplers", f"{tokens.in_flight:,}")
        table.add_row("episodes in a sampler's KV cache, expected length", f"{found.kv.episodes_expected:,}")
        table.add_row("episodes in a sampler's KV cache, longest", f"{found.kv.episodes_longest:,}")
        table.add_row("calls of tools, at most", f"{tokens.tool_calls:,}")
        table.add_row("published weights", gib(tokens.publish_bytes))
    return table
