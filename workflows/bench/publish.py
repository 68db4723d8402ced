"""`mmsearch bench publish`: how fast new weights get out of the learner, into a sampler's process, and into an engine.

- *transports*: a made-up decoder of so many MiB in bf16 is sent and received again and again, by each transport. The
  receiver is an actor, hence another process, that does what a sampler does: opens the ticket (every byte is digested
  and compared) and copies each tensor into memory of its own. The bound is this machine's memory copy of as many bytes,
  by one thread or by all cores, whichever is faster, made once before each version. The first version is told apart:
  for that one the kernel has to find pages.
- *pause* (`publish_pause.py`): the run's own model in a real engine with requests in flight.

Nothing of the run is written; what is sent goes to shared memory and a scratch folder.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.model.load import local_model
from actors.weights.build import build_transport
from actors.weights.manifest import TornPublish, WeightTicket, digest_of, weight_files
from actors.weights.receiver import Receiver
from actors.weights.settings import PublishSettings, Transport
from actors.weights.transport import WeightTransport, default_root
from cluster import machine, runtime
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.bench.ratios import Spread, paired
from workflows.grpo.plan import plan_of

TARGET_WRITE = 0.5  # of the machine's memory copy, shared memory
TARGET_END_TO_END = 2e9  # bytes a second, shared memory
TRANSPORTS: tuple[Transport, ...] = ("shared_memory", "object_store", "storage")
PARTS = ("transports", "pause")
WIDTH, INNER = 1024, 2816  # of the made-up decoder
SCRATCH_MIB = 256  # of Ray's store, beside two versions


@dataclass(frozen=True)
class PublishLoad:
    """How much is sent, and how often."""

    mib: int = 500
    # of weights
    versions: int = 10
    # of each transport, after a first one that is told apart
    transports: tuple[Transport, ...] = TRANSPORTS
    storage: str | None = None
    # address of transport storage, a directory or s3://; a scratch folder when not given
    requests: int = 128
    # in flight while the engine's weights change
    publishes: int = 15
    # of the pause
    parts: tuple[str, ...] = PARTS

    def check(self) -> None:
        """Raise `UserError` for what cannot be asked."""
        _known("--part", self.parts, PARTS)
        if min(self.mib, self.versions, self.publishes) < 1 or self.requests < 2:
            raise UserError("--mib, --versions and --publishes must be at least 1, --requests at least 2.")


def transports_named(names: Sequence[str]) -> tuple[Transport, ...]:
    """Those, or all when none is named. Raise `UserError` for one that there is not."""
    _known("--transport", names, TRANSPORTS)
    by_name: dict[str, Transport] = {one: one for one in TRANSPORTS}
    return tuple(by_name[name] for name in names) or TRANSPORTS


def _known(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [one for one in given if one not in known]:
        raise UserError(f"{option} is {unknown[0]!r} and must be {', '.join(known[:-1])} or {known[-1]}.")


@dataclass(frozen=True)
class Sent:
    """One version on its way, in seconds. `copy`: the same bytes from memory to memory."""

    write: float
    total: float  # until the receiver has it in its tensors
    copy: float


def run(settings: Any, load: PublishLoad, *, as_json: bool = False) -> None:
    """The command. Raise `UserError`."""
    load.check()
    plan, console = plan_of(settings), Console(stderr=True)
    found: dict[str, Any] = {"cores": machine.cores(), "load": asdict(load)}
    if "pause" in load.parts and not Folder(plan.model).exists("config.json"):
        raise UserError(
            f"The pause is measured with the model at {plan.model}, which is not there: run `mmsearch sft"
            f" run.name={plan.name}` first, name another model with grpo.start_from, or ask for --part transports."
        )
    if "transports" in load.parts:
        wanted = 2 * load.mib + SCRATCH_MIB if "object_store" in load.transports else 0
        cluster = replace(plan.cluster, object_store_mib=max(plan.cluster.object_store_mib, wanted))
        with runtime.connect(cluster):
            found["transports"] = transports(load, console)
    if "pause" in load.parts:
        from workflows.bench.publish_pause import measure

        model = local_model(plan.model)
        found["pause"] = asyncio.run(measure(model, plan.engine, plan.images, load.requests, load.publishes, console))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(found, Console())


def transports(load: PublishLoad, console: Console) -> dict[str, Any]:
    """Each transport in its turn. Ray must be running."""
    weights = decoder(load.mib << 20)
    n_bytes = sum(tensor.nbytes for tensor in weights.values())
    copy = MemoryCopy(n_bytes)
    found = {}
    for name in load.transports:
        console.print(f"bench publish: {name}, {load.versions} versions of {n_bytes / 1e6:,.0f} MB", highlight=False)
        with tempfile.TemporaryDirectory(prefix="mmsearch-bench-") as scratch:
            address = (load.storage or scratch) if name == "storage" else ""
            way = build_transport(PublishSettings(name, address), default_root(f"bench-{Path(scratch).name}"))
            try:
                first, *later = _versions(way, weights, load.versions, copy)
            finally:
                way.close()
        found[name] = document_of(n_bytes, first, later)
    return found


def _versions(way: WeightTransport, weights: Mapping[str, Any], n: int, copy: MemoryCopy) -> list[Sent]:
    import ray

    reader: Any = ray.remote(Reader).options(num_cpus=0).remote()
    made: list[Sent] = []
    ticket: WeightTicket | None = None
    try:
        ray.get(reader.ready.remote())
        for version in range(n + 1):
            copied = copy.seconds()
            began = time.perf_counter()
            ticket = way.send(version, weights.items())
            written = time.perf_counter()
            ray.get(reader.read.remote(ticket))
            made.append(Sent(written - began, time.perf_counter() - began, copied))
        ray.get(reader.check.remote(ticket))
        ray.get(reader.close.remote())
    finally:
        ray.kill(reader)
    return made


class Reader:
    """What a sampler does with a ticket, up to its engine's tensors. An actor."""

    def __init__(self) -> None:
        self._receiver = Receiver()
        self._tensors: dict[str, Any] = {}

    def ready(self) -> None:
        """The process is there, and has imported what it needs."""
        import safetensors.torch  # noqa: F401

    def read(self, ticket: WeightTicket) -> None:
        """Open, compare, copy. Raise what the receiver raises."""
        from safetensors import safe_open

        with self._receiver.opened(ticket) as folder:
            for file in weight_files(folder):
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (not a mapping)
                        came = opened.get_tensor(name)
                        if name in self._tensors:
                            self._tensors[name].copy_(came)
                        else:
                            self._tensors[name] = came.clone()

    def check(self, ticket: WeightTicket) -> None:
        """Raise `TornPublish` unless the tensors are those of the ticket."""
        import torch

        for entry in ticket.manifest:
            if digest_of(self._tensors[entry.name].view(torch.uint8).numpy()) != entry.digest:
                raise TornPublish(f"{entry.name} did not arrive as it was sent")

    def close(self) -> None:
        self._receiver.close()


class MemoryCopy:
    """The machine's own copy of so many bytes, between pages that are there."""

    def __init__(self, n_bytes: int) -> None:
        import torch

        self._source = torch.ones(n_bytes, dtype=torch.uint8)
        self._target = torch.zeros(n_bytes, dtype=torch.uint8)

    def seconds(self) -> float:
        """Of one copy: by one thread, or by as many as there are cores, which may be faster."""
        import torch

        before = torch.get_num_threads()
        best = float("inf")
        try:
            for threads in (1, machine.cores()):
                torch.set_num_threads(threads)
                began = time.perf_counter()
                self._target.copy_(self._source)
                best = min(best, time.perf_counter() - began)
        finally:
            torch.set_num_threads(before)
        return best


def decoder(n_bytes: int) -> dict[str, Any]:
    """bf16 tensors named and shaped as those of a decoder, of about so many bytes in all."""
    import torch

    shapes = {
        "self_attn.q_proj.weight": (WIDTH, WIDTH),
        "self_attn.k_proj.weight": (WIDTH // 4, WIDTH),
        "self_attn.v_proj.weight": (WIDTH // 4, WIDTH),
        "self_attn.o_proj.weight": (WIDTH, WIDTH),
        "mlp.gate_proj.weight": (INNER, WIDTH),
        "mlp.up_proj.weight": (INNER, WIDTH),
        "mlp.down_proj.weight": (WIDTH, INNER),
        "input_layernorm.weight": (WIDTH,),
        "post_attention_layernorm.weight": (WIDTH,),
    }
    layer = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    generator = torch.Generator().manual_seed(0)
    return {
        f"model.layers.{number}.{name}": torch.randn(shape, generator=generator).to(torch.bfloat16)
        for number in range(max(1, n_bytes // layer))
        for name, shape in shapes.items()
    }


def document_of(n_bytes: int, first: Sent, later: Sequence[Sent]) -> dict[str, Any]:
    """What the versions of one transport say, as JSON takes it; rates in bytes a second."""
    return {
        "bytes": n_bytes,
        "versions": len(later),
        "copy": asdict(Spread.of([n_bytes / one.copy for one in later])),
        "write": asdict(Spread.of([n_bytes / one.write for one in later])),
        "write_of_copy": asdict(paired([one.copy for one in later], [one.write for one in later])),
        "end_to_end": asdict(Spread.of([n_bytes / one.total for one in later])),
        "first_write": n_bytes / first.write,
        "first_end_to_end": n_bytes / first.total,
    }


def show(found: Mapping[str, Any], out: Console) -> None:
    """The same for a person."""
    if ways := found.get("transports"):
        out.print(_transport_table(ways))
    if pause := found.get("pause"):
        from workflows.bench.publish_pause import table

        out.print(table(pause))


def _transport_table(ways: Mapping[str, Mapping[str, Any]]) -> Table:
    any_way = next(iter(ways.values()))
    title = f"{any_way['bytes'] / 1e6:,.0f} MB of weights, {any_way['versions']} versions: GB/s, median (from - to)"
    table = Table(title=title, title_justify="left")
    for column in ("", *ways):
        table.add_column(column, justify="right" if column else "left")

    def row(title: str, cell: Callable[[Mapping[str, Any]], str]) -> None:
        table.add_row(title, *(cell(one) for one in ways.values()))

    def rate(of: Mapping[str, float]) -> str:
        return f"{of['median'] / 1e9:.2f} ({of['low'] / 1e9:.2f} - {of['high'] / 1e9:.2f})"

    row("memory copy of this machine", lambda it: rate(it["copy"]))
    row("learner's write", lambda it: rate(it["write"]))
    row("as a share of the copy", lambda it: f"{it['write_of_copy']['median']:.0%}")
    row("end to end", lambda it: rate(it["end_to_end"]))
    row("first version: write", lambda it: f"{it['first_write'] / 1e9:.2f}")
    row("first version: end to end", lambda it: f"{it['first_end_to_end'] / 1e9:.2f}")
    if shared := ways.get("shared_memory"):
        reached = shared["write_of_copy"]["median"] >= TARGET_WRITE
        whole = shared["end_to_end"]["median"] >= TARGET_END_TO_END
        wanted = f"targets: a write of {TARGET_WRITE:.0%} of the copy, {TARGET_END_TO_END / 1e9:g} GB/s end to end"
        told = ["reached" if ok else "missed" for ok in (reached, whole)]
        table.caption = f"{wanted}; shared memory: {told[0]}, {told[1]}"
    return table
