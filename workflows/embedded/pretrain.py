"""`mmsearch pretrain`: the embedded world's base model, from nothing.

    tokenizer from the world's words -> random weights -> lessons (see, know, read), a fresh batch a step -> base/

Step n's lessons follow from seed and n alone, so a run that was stopped or killed continues from its last checkpoint
as if nothing had happened. A base model of the same configuration is not made twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from actors.agent.protocol import TAGS
from actors.agent.trajectory import ImageRef, Segment, SegmentKind, VersionSpan, WeightVersion
from actors.model.expansion import Expanded, expand
from actors.model.renderer import ChatRenderer, load_renderer
from cluster.allocator import freed_memory_kept
from cluster.storage import Folder
from cluster.trackers import Tracking
from workflows.embedded.entities import World
from workflows.embedded.lessons import READING, SEEING, Lesson, LessonMix, Lessons, corpus
from workflows.embedded.pictures import SIDE, render
from workflows.embedded.pretrain_settings import PretrainSettings
from workflows.embedded.web import ensure_web
from workflows.identity import changes
from workflows.progress import TrainingProgress, stopped_by_signals
from workflows.run_folder import RunFolder
from workflows.supervised import INCIDENTAL

if TYPE_CHECKING:
    from actors.learner.supervised import SupervisedLearner
    from workflows.settings import Settings

PROCESSOR = "processor"  # in pretrain/: tokenizer and image processor
STATE = "state.json"  # in pretrain/: which checkpoint is whole, and whether all is done
PICTURE_BYTES = 64 << 20  # of pixel values that are kept: several steps' worth, and each step has pictures of its own


def run(settings: Settings, console: Console | None = None) -> None:
    """The stage, as the command line and the demo call it. Raise `UserError`, or KeyboardInterrupt when stopped."""
    console = console or Console(stderr=True)
    folder = RunFolder(settings.run.folder)
    folder.root.ensure_writable()
    world = ensure_web(folder.world, settings.world)
    identity = identity_of(settings)
    left = _left(folder.pretrain)
    state = left if left.get("identity") == identity else {}
    if state.get("complete") and folder.base.exists("config.json"):
        console.print(f"pretrain: the base model of this configuration is there already: {folder.base}")
        return
    if not state:
        if left:
            console.print(f"pretrain: made anew, because {changes(left['identity'], identity)}")
        for old in (folder.pretrain, folder.base):
            old.delete()
    with freed_memory_kept(), tempfile.TemporaryDirectory(prefix="mmsearch-pretrain-") as scratch:
        tracking = settings.tracking("pretrain")
        Pretraining(
            settings.pretrain, settings.run.seed, world, folder, identity, Path(scratch), console, tracking
        ).run(int(state.get("step", 0)))


def identity_of(settings: Settings) -> dict[str, Any]:
    """What must stay the same for a checkpoint to be continued, as JSON gives it back."""
    recipe = {k: v for k, v in dataclasses.asdict(settings.pretrain).items() if k not in INCIDENTAL}
    world = dataclasses.asdict(settings.world)
    return json.loads(json.dumps({"pretrain": recipe, "world": world, "seed": settings.run.seed}))


def _left(folder: Folder) -> dict[str, Any]:
    """The state that an earlier run left; empty if there is none."""
    try:
        state = folder.read_json(STATE)
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state.get("identity"), dict) else {}


class Pretraining:
    """One run. The scratch folder holds what Hugging Face's loaders want to find on a disk."""

    def __init__(
        self,
        settings: PretrainSettings,
        seed: int,
        world: World,
        folder: RunFolder,
        identity: Mapping[str, Any],
        scratch: Path,
        console: Console,
        tracking: Tracking,
    ) -> None:
        self.settings, self.seed, self.world = settings, seed, world
        self.folder, self.identity, self.scratch, self.console = folder, identity, scratch, console
        self.tracking = tracking
        self.began = time.time()

    def run(self, done: int) -> None:
        settings = self.settings
        self.console.print(f"pretrain: a tokenizer, then {settings.steps} steps of lessons")
        learner = self.make(resumes=done > 0)
        if done:
            self._restore(learner, done)
            self.console.print(f"pretrain: continuing after step {done} of {settings.steps}")
        with (
            TrainingProgress(
                "pretrain", self.folder.pretrain, settings.steps, done, self.console, self.tracking
            ) as progress,
            stopped_by_signals() as stop,
        ):
            for step in range(done + 1, settings.steps + 1):
                progress.step(step, *self.step(learner, step))
                if stop or step == settings.steps or step % settings.checkpoint_every == 0:
                    self._checkpoint(learner, step)
                if stop and step < settings.steps:
                    raise KeyboardInterrupt(f"pretrain: stopped by {stop.signal}")
        learner.export(self.folder.base, self.scratch)
        self._write_state(settings.steps, complete=True)
        took = time.time() - self.began
        left = f"{settings.steps} steps, this part in {took:.0f} s; the model is at {self.folder.base}"
        self.console.print(f"pretrain: {left}")

    # --- making it --------------------------------------------------------------------------------------------------

    def make(self, resumes: bool) -> SupervisedLearner:
        """Tokenizer, pictures and an untrained model in its engine."""
        # torch is imported here, so that a configuration error answers at once
        import torch
        import transformers

        from actors.learner.backends.ranks import Ranks, join
        from actors.learner.supervised import SupervisedLearner
        from actors.model.pixels import Pixels
        from actors.model.tiny import build_model, build_tokenizer, save_processor

        transformers.utils.logging.disable_progress_bar()
        settings = self.settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        if resumes:  # with the very tokenizer that it began with
            self.folder.pretrain.download(self.scratch, PROCESSOR)
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.scratch)
        else:
            words = corpus(self.world, settings.corpus, self.seed)
            tokenizer = build_tokenizer(words, settings.size.vocabulary, TAGS)
            save_processor(tokenizer, settings.size, self.scratch)
            self.folder.pretrain.upload(self.scratch, PROCESSOR)
        self.renderer = load_renderer(self.scratch)
        self.pictures = _Pictures()
        pixels = Pixels.load(self.scratch, self.pictures, capacity=PICTURE_BYTES, dtype="bfloat16")
        model = build_model(tokenizer, settings.size, self.seed)
        ranks = join(Ranks())
        return SupervisedLearner(model, settings.backend, ranks, pixels, settings.micro_batch_tokens)

    def step(self, learner: SupervisedLearner, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """One optimizer step; its numbers, and per kind the share of lessons that were known by heart before it."""
        started = time.perf_counter()
        lessons = lessons_of(self.world, self.settings, self.seed, step)
        self.pictures.clear()
        sequences = [sequence_of(lesson, self.renderer, self.pictures) for lesson in lessons]
        stats, exact = learner.step(sequences)
        seen = float(sum(len(sequence) for sequence in sequences))
        numbers = stats.numbers() | {"tokens_seen": seen, "seconds": time.perf_counter() - started}
        return numbers, rates_of([lesson.kind for lesson in lessons], exact)

    # --- leaving and returning --------------------------------------------------------------------------------------

    def _checkpoint(self, learner: SupervisedLearner, step: int) -> None:
        with tempfile.TemporaryDirectory(dir=self.scratch) as part:
            learner.save(Path(part))
            self.folder.pretrain.upload(part, _checkpoint_name(step))
        self._write_state(step, complete=False)
        for name in self.folder.pretrain.list():
            if name.startswith("checkpoint-") and name != _checkpoint_name(step):
                self.folder.pretrain.delete(name)

    def _restore(self, learner: SupervisedLearner, step: int) -> None:
        with tempfile.TemporaryDirectory(dir=self.scratch) as part:
            learner.load(self.folder.pretrain.download(part, _checkpoint_name(step)))

    def _write_state(self, step: int, *, complete: bool) -> None:
        state = {"identity": dict(self.identity), "step": step, "complete": complete}
        self.folder.pretrain.write_json(STATE, state)


class _Pictures:
    """An `agent.seams.ImageStore` of one step's pictures: nobody else needs them."""

    def __init__(self) -> None:
        self._bytes: dict[str, bytes] = {}

    def clear(self) -> None:
        self._bytes.clear()

    def put(self, data: bytes) -> ImageRef:
        sha256 = hashlib.sha256(data).hexdigest()
        self._bytes[sha256] = data
        return ImageRef(sha256, SIDE, SIDE)

    def get(self, ref: ImageRef) -> bytes:
        return self._bytes[ref.sha256]

    def has(self, ref: ImageRef) -> bool:
        return ref.sha256 in self._bytes


def lessons_of(world: World, settings: PretrainSettings, seed: int, step: int) -> list[Lesson]:
    """The lessons of one step. They follow from seed and step alone: a resumed run needs no state for them."""
    return list(islice(Lessons(world, _mix(settings, step), seed * 1_000_003 + step), settings.batch))


def _mix(settings: PretrainSettings, step: int) -> LessonMix:
    """First to read, then to see, then all of it together."""
    if step <= settings.reading_steps:
        return READING
    return SEEING if step <= settings.reading_steps + settings.seeing_steps else settings.lessons


def sequence_of(lesson: Lesson, renderer: ChatRenderer, pictures: _Pictures) -> Expanded:
    """A lesson as a chat; its replies are what is learned."""
    segments: list[Segment] = []
    images = [pictures.put(render(lesson.scene, "BMP"))] if lesson.scene else []
    for exchange in lesson.exchanges:
        asked = renderer.observe(exchange.text) if segments else renderer.open(exchange.text, images)
        ids = renderer.action(exchange.reply)
        spans = (VersionSpan(WeightVersion(0), 0, len(ids)),)
        segments += [asked, Segment(SegmentKind.ACTION, ids, np.zeros(len(ids), dtype=np.float32), spans)]
    return expand(segments, renderer.image_token)


def rates_of(kinds: Sequence[str], exact: Sequence[bool]) -> dict[str, float]:
    """Share of the exact ones of each kind that occurs."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for kind, value in zip(kinds, exact, strict=True):
        by_kind[kind].append(value)
    return {kind: float(np.mean(values)) for kind, values in by_kind.items()}


def _checkpoint_name(step: int) -> str:
    return f"checkpoint-{step:06d}"
