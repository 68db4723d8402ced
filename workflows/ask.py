"""`mmsearch ask`: the agent in hand. One engine, the tools in this process, and every step as it happens.

No Ray and no actors: the same `run_episode` as everywhere, with an observer that prints. With `--url` a running
service plays the episode (workflows/remote_ask.py), and the same is printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.agent.episode import run_episode
from actors.agent.seams import ImageRefused, ImageStore, Observer, Sampling
from actors.agent.trajectory import Failure, ImageRef, Question, Trajectory
from actors.model.images import MAX_BYTES, BlobImages
from actors.model.load import local_model
from cluster.blobs import BlobStore
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.evaluate.arms import MADE_BY, WEIGHTS
from workflows.progress import interrupts_noted
from workflows.remote_ask import Service, answered_by
from workflows.steps import StepPrinter, document

STOP_S = 5.0  # after Ctrl-C, for engine and tools to end in good order


@dataclass(frozen=True)
class Asked:
    """What a person wants to know. `right` is known for examples alone."""

    question: Question
    right: tuple[str, ...] = ()


def run(
    settings: Any,
    question: str | None = None,
    images: Sequence[Path] = (),
    checkpoint: str | None = None,
    example: int | None = None,
    as_json: bool = False,
    service: Service | None = None,
) -> None:
    """The command. `service`: who is asked in place of a model here. Raises `UserError` before anything is started."""
    console = Console(stderr=as_json)  # standard output belongs to the JSON document
    with tempfile.TemporaryDirectory(prefix="mmsearch-ask-") as scratch:
        store = BlobImages(BlobStore(scratch))
        asked = _asked(settings, store, question, images, example, console)
        observer = StepPrinter(console)
        if service is not None:
            pictures = [store.get(ref) for ref in asked.question.images]
            told = answered_by(service, asked.question, pictures, observer)
        else:
            told = _answered_here(settings, asked.question, store, checkpoint, observer, console)
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        observer.conclude(told, asked.right)
    if told["failure"] in (Failure.INFRA.value, Failure.DATA.value):
        print(f"mmsearch: the question could not be answered: {told['problem']}", file=sys.stderr)
        raise SystemExit(1)


def _answered_here(
    settings: Any,
    question: Question,
    store: ImageStore,
    checkpoint: str | None,
    observer: StepPrinter,
    console: Console,
) -> dict[str, Any]:
    """The episode's document, played by an engine of this process."""
    if len(question.images) > settings.engine.images_per_prompt:
        raise UserError(
            f"{len(question.images)} pictures are more than engine.images_per_prompt="
            f"{settings.engine.images_per_prompt}."
        )
    model = local_model(settings.pictures.on(str(model_folder(settings.run.folder, checkpoint))))
    console.print(f"[dim]model: {model}[/]", highlight=False)
    with interrupts_noted(at_latest=STOP_S) as pressed:
        try:
            trajectory = asyncio.run(_answer(settings, model, store, question, observer, console, pressed))
        except Exception as error:
            if pressed:  # the engine's processes get Ctrl-C too, and complain of it
                raise KeyboardInterrupt from error
            raise
    return document(question, trajectory, observer.steps, str(model))


def model_folder(run: Folder, checkpoint: str | None) -> Path:
    """The local, checked folder of `model_address`. Raises `UserError`."""
    return local_model(model_address(run, checkpoint))


def model_address(run: Folder, checkpoint: str | None) -> str:
    """Where the model is that `checkpoint` means: base, sft or rl of this run, a model folder, or a run's.

    Without one: this run's newest stage. Raises `UserError`.
    """
    if checkpoint in WEIGHTS:
        return _model_of(run, [checkpoint])
    if checkpoint is None:
        return _model_of(run, ["rl", "sft"])
    folder = Folder(checkpoint)
    if folder.exists("config.json"):
        return folder.address
    if folder.exists(WEIGHTS["sft"]) or folder.exists(WEIGHTS["rl"]):
        return _model_of(folder, ["rl", "sft"])
    raise UserError(f"There is no model at {checkpoint}: give base, sft or rl, a model folder, or a run's folder.")


def _model_of(run: Folder, names: Sequence[str]) -> str:
    for name in names:
        if (run / WEIGHTS[name]).exists("config.json"):
            return (run / WEIGHTS[name]).address
    wanted = MADE_BY[names[0]]
    raise UserError(
        f"The run at {run} has no trained model yet: run `mmsearch demo` or `mmsearch {wanted}` first,"
        " or name one with --checkpoint."
    )


def _asked(
    settings: Any, store: ImageStore, text: str | None, images: Sequence[Path], example: int | None, console: Console
) -> Asked:
    if example is not None:
        if text or images:
            raise UserError("--example brings its own question and picture: leave the others out.")
        return _example(settings, store, example, console)
    if not text or not text.strip():
        raise UserError('Say what to ask, as in `mmsearch ask "who ...?"`, or take one with `--example 0`.')
    return Asked(Question("asked", text.strip(), tuple(put_picture(store, path) for path in images)))


def put_picture(store: ImageStore, path: Path) -> ImageRef:
    """A picture of the person's, checked and stored. Raises `UserError`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)  # one more is enough to be refused
        return store.put(data)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ImageRefused as error:
        raise UserError(f"{path} cannot be used: {error}.") from error


def _example(settings: Any, store: ImageStore, number: int, console: Console) -> Asked:
    """Test question `number` of the run; its pictures are written where a person finds them."""
    from workflows.grpo.questions import load_questions
    from workflows.run_folder import RunFolder

    run = RunFolder(settings.run.folder)
    kept = run.images()
    found = load_questions(run.questions("test"), kept)
    questions = list(found.by_id.values())
    if found.dropped:
        console.print(f"[yellow]{found.dropped} test questions cannot be read, so numbers differ[/]:", end=" ")
        console.print(found.reasons[0], highlight=False, markup=False)
    if not 0 <= number < len(questions):
        raise UserError(f"--example must lie in 0..{len(questions) - 1}, is {number}.")
    question = questions[number]
    pictures: list[str] = []
    for i, ref in enumerate(question.images):
        name = f"examples/{number}{f'-{i}' if i else ''}.png"
        picture = kept.get(ref)
        store.put(picture)
        run.root.write_bytes(name, picture)
        pictures.append(f"{run.root.address}/{name}")
    console.print(f"example {number} ({question.kind}): {question.text}", highlight=False, markup=False)
    for picture in pictures:
        console.print(f"  picture: {picture}", highlight=False, markup=False, soft_wrap=True)
    return Asked(replace(question, answers=()), question.answers)


@contextmanager
def _quiet(pressed: Sequence[int]) -> Iterator[None]:
    """Keep what starting vLLM prints (warnings of its and torch's parts) from a person, unless it fails by itself.

    File descriptors, because most of it comes from processes that it starts; they stay quiet.
    """
    sys.stderr.flush()
    loud = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            if not pressed:
                log.seek(0)
                os.write(loud, log.read()[-20_000:])
            raise
        finally:
            sys.stderr.flush()
            os.dup2(loud, 2)
            os.close(loud)


async def _answer(
    settings: Any,
    model: Path,
    store: ImageStore,
    question: Question,
    observer: Observer,
    console: Console,
    pressed: Sequence[int],
) -> Trajectory:
    """Start engine and tools, play the episode, stop them. `pressed`: not empty once Ctrl-C was."""
    from actors.model.renderer import load_renderer
    from actors.sampler.engine import Engine
    from actors.search.build import build_gateway

    gateway = build_gateway(settings.search, store)
    preset = settings.agent.protocol
    renderer = load_renderer(model, preset.system)
    shows = console.is_terminal and not console.stderr
    waiting = console.status("starting the engine (10 to 20 s)") if shows else nullcontext()
    began = time.monotonic()
    engine = Engine(model, settings.engine, renderer, store)
    with waiting, _quiet(pressed):
        await gateway.open()
        await engine.start()
    console.print(f"[dim]the engine started in {time.monotonic() - began:.0f} s[/]", highlight=False)
    try:
        return await run_episode(
            question,
            0,
            preset,
            engine,
            renderer,
            gateway,
            sampling=Sampling(temperature=0.0, max_tokens=settings.agent.limits.max_turn_tokens),
            limits=settings.agent.limits,
            clock=time.monotonic,
            observer=observer,
            max_images=settings.engine.images_per_prompt,
        )
    finally:
        await engine.close()
        await gateway.close()
