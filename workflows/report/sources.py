"""What a run's folder tells, read tolerantly: what is missing or damaged is said, and the rest is shown.

Older and newer runs differ in what they write; nothing here is required, but that the folder is a run's at all.
"""

from __future__ import annotations

import json
import math
import shlex
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import UserError
from cluster.storage import Folder
from workflows.evaluate.arms import ARMS

STAGES = ("pretrain", "dataset", "sft", "grpo", "evaluate")
# A folder with none of these is no run.
MARKS = (
    "demo.json",
    "evaluate/results.json",
    "grpo/metrics.jsonl",
    "grpo/manifest.json",
    "sft/metrics.jsonl",
    "pretrain/metrics.jsonl",
    "dataset/report.json",
    "base/config.json",
    "manifest.json",
)
CURVES = ("pretrain", "sft", "grpo")  # stages that write metrics.jsonl
# What the report would show, the file that it comes from, the command that makes it.
PARTS = (
    ("the results of the arms, and held-out episodes", "evaluate/results.json", "evaluate"),
    ("the curves of reinforcement", "grpo/metrics.jsonl", "grpo"),
    ("the curve of fine-tuning", "sft/metrics.jsonl", "sft"),
)
MODELS = ("base", "grpo/export", "sft/export", "export")  # where to look for what the model is, in this order
HEADER_LIMIT = 64 << 20  # bytes of a safetensors header that are believed


@dataclass(frozen=True)
class RunFacts:
    """One run, as far as its folder tells. Plain values."""

    name: str  # differs among the runs of a report
    folder: Folder
    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage
    finished_at: float | None = None  # unix seconds, of the newest stage
    peak_memory_bytes: int | None = None
    results: Mapping[str, Any] = field(default_factory=dict)  # evaluate/results.json
    settings: Mapping[str, Any] = field(default_factory=dict)  # by dotted path
    versions: Mapping[str, str] = field(default_factory=dict)
    model: str = ""  # in words
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # lines of metrics.jsonl by stage
    missing: tuple[tuple[str, str], ...] = ()  # what is not there, and the command that makes it
    notes: tuple[str, ...] = ()  # what is damaged

    @property
    def arms(self) -> Mapping[str, Mapping[str, Any]]:
        """What results.json has of each arm, in the order of the evaluation's own; empty without an evaluation."""
        found = self.results.get("arms")
        told = {k: v for k, v in found.items() if isinstance(v, Mapping)} if isinstance(found, Mapping) else {}
        order = {name: i for i, name in enumerate(ARMS)}
        return {name: told[name] for name in sorted(told, key=lambda name: order.get(name, len(order)))}

    @property
    def seed(self) -> Any:
        return self.settings.get("run.seed", self.results.get("seed"))


def run_at(word: str) -> Folder:
    """The folder that a person named: an address, or a run.name under runs/, or of one of its variants (grpo.folder).

    Raise `UserError` for none.
    """
    named = None if word.startswith(("/", ".")) or "://" in word else Folder(f"runs/{word}")
    for folder in (named, Folder(word)):
        if folder is not None and is_run(folder):
            return folder
    looked = Folder(word) if named is None else f"{named} or {Folder(word)}"
    raise UserError(f"There is no run at {looked}: give the folder of a run, or the run.name of one under runs/.")


def is_run(folder: Folder) -> bool:
    return any(folder.exists(name) for name in MARKS)


def read_run(folder: Folder, name: str) -> RunFacts:
    """Everything but episodes and pictures."""
    notes: list[str] = []
    trained = "" if folder.exists("manifest.json") else "grpo/"  # a variant's folder is a training, with no other stage
    demo, results = _json(folder, "demo.json", notes), _json(folder, "evaluate/results.json", notes)
    manifest = _json(folder, f"{trained}manifest.json", notes)
    stages = {stage: _json(folder, f"stages/{stage}.json", notes) for stage in STAGES}
    seconds = {stage: number(told.get("seconds")) for stage, told in stages.items()}
    took = demo.get("seconds")
    seconds |= {s: number(took.get(s)) for s in STAGES if isinstance(took, Mapping) and s in took}
    for stage, told in (("grpo", manifest), ("evaluate", results)):
        seconds[stage] = number(told.get("seconds")) if seconds[stage] is None else seconds[stage]
    ends = [end for told in stages.values() if (end := number(told.get("finished_at"))) is not None]
    where = {stage: folder if stage == "grpo" and not trained else folder / stage for stage in CURVES}
    curves = {stage: lines for stage in CURVES if (lines := read_lines(where[stage], stage, notes))}
    ends += [end for lines in curves.values() if not ends and (end := number(lines[-1].get("time"))) is not None]
    memory = number(demo.get("peak_memory_bytes"))
    settings = manifest.get("settings")
    return RunFacts(
        name=name,
        folder=folder,
        seconds={stage: value for stage, value in seconds.items() if value is not None},
        finished_at=max(ends, default=None),
        peak_memory_bytes=None if memory is None else int(memory),
        results=results,
        settings=flat(settings) if isinstance(settings, Mapping) else {},
        versions=_versions(manifest, results),
        model=_model(folder),
        curves=curves,
        missing=tuple(
            (what, f"mmsearch {command} run.storage={shlex.quote(folder.address)}") for what, file, command in PARTS
            if trained and not folder.exists(file)
        ),
        notes=tuple(notes),
    )  # fmt: skip


def names_of(folders: Sequence[Folder]) -> list[str]:
    """The last parts of the addresses, as many as it takes to tell them apart."""
    parts = [folder.path.strip("/").split("/") for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("The same run is named twice: name each once.")


def read_lines(folder: Folder, stage: str, notes: list[str]) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that have a step, in its order; damaged ones are left out, and `notes` says how many."""
    try:
        text = folder.read_bytes("metrics.jsonl").decode(errors="replace")
    except FileNotFoundError:
        return []
    by_step: dict[float, dict[str, Any]] = {}
    broken = 0
    for line in filter(str.strip, text.split("\n")):
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        step = number(values.get("step")) if isinstance(values, dict) else None
        if step is None or values is None:
            broken += 1
        else:
            by_step[step] = values  # a step that was done again replaces what stood there
    if broken:
        notes.append(f"{stage}/metrics.jsonl: {broken} damaged line{'s' * (broken > 1)} left out.")
    return [by_step[step] for step in sorted(by_step)]


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by dotted path; lists stay values."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{above}{key}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return found


def _json(folder: Folder, name: str, notes: list[str]) -> Mapping[str, Any]:
    """Empty where there is none; what cannot be read is noted."""
    try:
        value = folder.read_json(name)
    except FileNotFoundError:
        return {}
    except ValueError:
        value = None
    if isinstance(value, Mapping):
        return value
    notes.append(f"{name} cannot be read and is left out.")
    return {}


def _versions(*told: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for document in told:
        versions = document.get("versions")
        found |= {str(k): str(v) for k, v in versions.items()} if isinstance(versions, Mapping) else {}
    return found


def _model(folder: Folder) -> str:
    """Architecture and size, from the first model folder that is there."""
    for name in MODELS:
        config = _json(folder / name, "config.json", [])
        if config:
            kind = (config.get("architectures") or [config.get("model_type", "")])[0]
            size = parameters(folder / name)
            return f"{kind}, {size / 1e6:,.1f} M parameters" if size else str(kind)
    return ""


def parameters(folder: Folder) -> int:
    """How many a model folder's safetensors hold, by their headers alone; 0 when they do not say."""
    total = 0
    for name in folder.list():
        if not name.endswith(".safetensors"):
            continue
        try:
            with folder.open(name) as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(min(length, HEADER_LIMIT)))
            total += sum(math.prod(v["shape"]) for k, v in header.items() if k != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return 0
    return total
