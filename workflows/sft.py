"""`mmsearch sft`: supervised fine-tuning with Ray Train, DeepSpeed inside.

    dataset/sft/*.parquet -> Ray Data: read, check, drop -> TorchTrainer: ranks of workflows/sft_rank.py -> sft/export

A run that was stopped or killed continues from its newest checkpoint in `sft/checkpoints`; one that is complete is not
run again. Ctrl-C: the step under way is finished, a checkpoint is made, and the command ends.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cluster import runtime
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.dataset.build import REPORT, tokenizer_of
from workflows.dataset.conversations import shards_of
from workflows.identity import changes
from workflows.progress import TrainingProgress, stopped_by_signals
from workflows.run_folder import RunFolder
from workflows.supervised import INCIDENTAL

if TYPE_CHECKING:
    from workflows.settings import Settings
    from workflows.sft_rank import Fit

STATE = "state.json"  # in sft/: whose checkpoints lie there, what was dropped, and whether all is done
CHECKPOINTS = "checkpoints"  # Ray Train's own layout
LISTED = 20  # dropped rows told one by one; all are counted
POLL_S = 0.5
ELSEWHERE = ("ranks", "rank_cpus", "rank_gpus", "max_failures", "keep_checkpoints")  # where, not what is learned


def run(settings: Settings, console: Console | None = None) -> None:
    """The stage, as the command line and the demo call it. Raise `UserError`, or KeyboardInterrupt when stopped."""
    console = console or Console(stderr=True)
    folder = RunFolder(settings.run.folder)
    folder.root.ensure_writable()
    model = Folder(settings.sft.start_from) if settings.sft.start_from else folder.base
    source = Folder(settings.sft.conversations) if settings.sft.conversations else folder.conversations
    shards_of(source)
    identity = identity_of(settings, model, source)
    state = _state(folder.sft, identity)
    if state.get("complete") and folder.sft_export.exists("config.json"):
        console.print(
            f"SFT: the {settings.sft.steps} steps of this configuration are done already: {folder.sft_export}"
        )
        return
    with runtime.connect(settings.cluster) as cluster:
        needed = {
            "CPU": settings.sft.ranks * settings.sft.rank_cpus,
            "GPU": settings.sft.ranks * settings.sft.rank_gpus,
        }
        cluster.require({name: amount for name, amount in needed.items() if amount}, "SFT")
        if not state:  # what another configuration left goes when this one is known to start, not before
            left = _json(folder.sft, STATE).get("identity")
            if left:
                console.print(f"SFT: done anew, because {changes(left, identity)}")
            folder.sft.delete()
            folder.sft.write_json(STATE, {"identity": identity, "complete": False})
        _train(settings, folder, model, source, identity, console)


def identity_of(settings: Settings, model: Folder, source: Folder) -> dict[str, Any]:
    """What must stay the same for a checkpoint to be continued, as JSON gives it back. Raise `UserError`."""

    tokenizer = tokenizer_of(model)
    report = {} if settings.sft.conversations else _json(RunFolder(settings.run.folder).dataset, REPORT)
    written = report.get("sft", {}).get("identity", {}).get("tokenizer", tokenizer)
    if written != tokenizer:
        raise UserError(
            f"The conversations at {source} are in another tokenizer's tokens than {model}: build the dataset again."
        )
    recipe = {k: v for k, v in dataclasses.asdict(settings.sft).items() if k not in INCIDENTAL and k not in ELSEWHERE}
    identity = {
        "sft": recipe,
        "seed": settings.run.seed,
        "model": model.fingerprint(".safetensors"),
        "conversations": source.fingerprint(".parquet"),
        "ranks": settings.sft.ranks if settings.sft.engine == "deepspeed" else 1,  # ZeRO's shards are one a rank
        **({"pictures": settings.pictures.given} if settings.pictures.given else {}),
    }
    return json.loads(json.dumps(identity))


def _train(
    settings: Settings, folder: RunFolder, model: Folder, source: Folder, identity: Mapping[str, Any], console: Console
) -> None:
    from workflows import sft_rank  # Ray Train, which costs seconds to import

    began, wanted = time.time(), settings.sft
    data, dropped = sft_rank.conversations(source, folder.root.address, model.address, wanted)
    rows = data.count()
    epochs = wanted.steps * wanted.batch / max(rows, 1)
    console.print(f"SFT: {wanted.steps} steps of {wanted.batch} from {rows} conversations ({epochs:.1f} epochs)")
    if dropped:
        console.print(f"[yellow]SFT: {len(dropped)} rows cannot be used and were dropped[/]: {dropped[0]}")
    if not rows:
        raise UserError(f"None of the conversations at {source} can be used; the first problem: {dropped[0]}")
    facts = {"identity": dict(identity), "rows": rows, "dropped": len(dropped), "listed": dropped[:LISTED]}
    folder.sft.write_json(STATE, {**facts, "complete": False})
    task = sft_rank.Task(wanted, settings.run.seed, folder.root.address, settings.pictures.on(model.address))
    step = _watched(sft_rank.Fit(task, data, folder.sft, CHECKPOINTS), settings, folder.sft, console)
    if step < wanted.steps:
        raise KeyboardInterrupt("SFT: stopped after a checkpoint")
    folder.sft.write_json(STATE, {**facts, "complete": True})
    took = time.time() - began
    console.print(f"SFT: {wanted.steps} steps, this part in {took:.0f} s; the model is at {folder.sft_export}")


def _watched(fit: Fit, settings: Settings, folder: Folder, console: Console) -> int:
    """Run `fit` in a thread and show what its ranks report; returns the last step if it ended with an exported model.

    Raises what the training raised.
    """
    failed: list[BaseException] = []

    def work() -> None:
        try:
            fit.run()
        except BaseException as error:  # handed to the thread that waits for it
            failed.append(error)

    thread = threading.Thread(target=work, name="ray-train", daemon=True)
    last = 0
    with ExitStack() as stack:
        stop = stack.enter_context(stopped_by_signals())
        progress: TrainingProgress | None = None
        thread.start()
        alive = True
        while alive:
            thread.join(POLL_S)
            alive = thread.is_alive()  # asked before the board, so that nothing put on it is missed
            if stop:
                fit.stop()
            for step, numbers, rates in fit.news():
                if progress is None:
                    if step > 1:
                        console.print(f"SFT: continuing after step {step - 1} of {settings.sft.steps}")
                    watched = TrainingProgress(
                        "SFT", folder, settings.sft.steps, step - 1, console, settings.tracking("sft")
                    )
                    progress = stack.enter_context(watched)
                if step > last:  # ranks that were started again repeat steps
                    progress.step(step, numbers, rates)
                last = max(step, last)
    if failed:
        raise failed[0]
    return fit.done()


def _state(folder: Folder, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of the same identity left; empty if there is none."""
    state = _json(folder, STATE)
    return state if state.get("identity") == identity else {}


def _json(folder: Folder, name: str) -> dict[str, Any]:
    try:
        return folder.read_json(name)
    except (FileNotFoundError, ValueError):
        return {}
